"""Rprop: steps whose size depends only on the signs of gradients."""

from __future__ import annotations

import torch

from gradtx.base.exact import Betas, Scalar
from gradtx.rules import per_tensor
from gradtx.transforms._math import at_least, at_most, filled_like

__all__ = ["scale_by_rprop"]

ETAS = ("(0, 1)", "(1, inf)")


@per_tensor(
    elementwise=True,
    owns_lr=True,
    ranges={"step_sizes": "[0, inf)", "etas": ETAS},
    example={"lr": 0.15},
    nonnegative=("step_size",),
)
def scale_by_rprop(
    lr: Scalar, etas: Betas = (0.5, 1.2), step_sizes: Betas = (1e-6, 50.0)
):
    r"""Use a step size per weight that grows while the gradient keeps its sign and shrinks when it flips: Rprop.

    With $a = \mathrm{sign}(g_t g_{t-1})$: $\Delta_t = \Delta_{t-1} \cdot (\eta^+, 1, \eta^-)$ for $a = 1, 0, -1$,
    clipped to $[\Delta_{\min}, \Delta_{\max}]$; then $p \leftarrow p - \mathrm{sign}(g_t) \Delta_t$. Where $a = -1$,
    the weight is not changed, and the next step is treated as a first step ($g_t = 0$ is stored).

    Args:
        lr: $\Delta_0 \ge 0$, the size of the first step; later values are ignored.
        etas: $(\eta^-, \eta^+)$, the first in (0, 1), the second above 1.
        step_sizes: $(\Delta_{\min}, \Delta_{\max})$, each in [0, inf).

    Returns:
        A transformation that owns the learning rate: its updates are added to the parameters. State: `prev` (the
        stored gradient), `step_size`, shaped as the parameter.

    Raises:
        ValueError: If an argument is out of range, or if a later link scales by a learning rate or decays.

    Example:
        >>> tx, params = gradtx.scale_by_rprop(0.1), {"w": torch.zeros(1)}
        >>> state = tx.init(params)
        >>> for grad in (3.0, 0.2, -5.0, -5.0):  # steps of 0.1 and 0.12, no step, 0.06 back
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     params = gradtx.apply_updates(params, updates)
        ...     print(f"{params['w'].item():.2f}")
        -0.10
        -0.22
        -0.22
        -0.16

    Source: Riedmiller and Braun 1993; Igel and Huesken 2000 (iRprop-). Departures: none from torch.optim.Rprop, except
    that signs are compared, because a product of small gradients can underflow. The rule of 1993 also undoes the step
    before a sign change.
    """
    shrink, grow = etas
    smallest, largest = step_sizes

    def init(param):
        return {"prev": torch.zeros_like(param), "step_size": filled_like(param, lr)}

    def update(update, state, param, ctx):
        # As in torch, the initial size is the rate at the first step, which a scheduler may have written after `init`.
        old = state["step_size"]
        size = torch.where(ctx.step == 1, filled_like(old, lr), old)
        agreement = update.sign() * state["prev"].sign()
        size = torch.where(
            agreement > 0, grow * size, torch.where(agreement < 0, shrink * size, size)
        )
        size = at_most(at_least(size, smallest), largest)
        masked_grad = torch.where(agreement < 0, 0.0, update)
        return -masked_grad.sign() * size, {"prev": masked_grad, "step_size": size}

    return init, update
