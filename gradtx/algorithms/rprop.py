"""Rprop, equivalent to torch.optim.Rprop: steps from the signs of full gradients, not for mini-batches."""

from __future__ import annotations

from typing import Annotated, Any

import torch

from gradtx.arguments import NonNegative, OpenFraction, Scalar
from gradtx.maths.entries import at_least, at_most
from gradtx.rules import alias, per_tensor
from gradtx.slots import filled, linear, square

__all__ = ["rprop", "scale_by_rprop"]


@per_tensor(elementwise=True, owns_lr=True)
def scale_by_rprop(
    lr,
    etas: tuple[OpenFraction, Annotated[Scalar, "(1, inf)"]] = (
        0.5,
        1.2,
    ),
    step_sizes: tuple[NonNegative, NonNegative] = (1e-6, 50.0),
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
    first = filled(lr)
    shrink, grow = etas
    smallest, largest = step_sizes

    def update(g, state, p, ctx):
        # As in torch, the initial size is the rate at the first step, which a scheduler may have written after `init`.
        old = state["step_size"]
        size = torch.where(ctx.seen, old, first(old))
        agreement = g.sign() * state["prev"].sign()
        turned = agreement < 0
        size = torch.where(
            agreement > 0, grow * size, torch.where(turned, shrink * size, size)
        )
        size = at_most(at_least(size, smallest), largest)
        masked = torch.where(turned, 0.0, g)
        return -masked.sign() * size, {"prev": masked, "step_size": size}

    return {"prev": linear(), "step_size": square(first)}, update


@alias
def rprop(lr=1e-2, **options: Annotated[Any, scale_by_rprop]):
    r"""Rprop, equivalent to torch.optim.Rprop: steps from the signs of full gradients, not for mini-batches.

    $\Delta \leftarrow \Delta \cdot (\eta^+, 1, \eta^-)$ where the gradient and its predecessor have the same sign, one
    of them is zero, or their signs differ, then clipped; $p \leftarrow p - \mathrm{sign}(g) \Delta$, except where the
    signs differ: there the weight does not change, and the gradient counts as 0.

    When to use: full batches only, with gradients free of noise: small problems, fits of physical models.

    Args:
        lr: $\Delta \ge 0$ in the first step; later values are ignored.
        etas: $(\eta^-, \eta^+)$, the first in (0, 1), the second above 1.
        step_sizes: Bounds of $\Delta$, each in [0, inf).

    Returns:
        A transformation whose updates are added to the parameters. State: `prev`, `step_size`.

    Example:
        >>> tx = gradtx.rprop(lr=0.1)
        >>> tx.update({"w": torch.tensor([1e-4, -7.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([-0.1000,  0.1000])

    Source: Riedmiller and Braun 1993; Igel and Huesken 2000 (iRprop-). Departures: none from torch.optim.Rprop.
    """
    return scale_by_rprop(lr, **options)
