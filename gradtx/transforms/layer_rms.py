"""NovoGrad: one second moment per layer."""

from __future__ import annotations

import torch

from gradtx.base.exact import Scalar
from gradtx.rules import per_tensor
from gradtx.transforms._math import peak, running_mean, safe_sqrt, scalar_zero

__all__ = ["scale_by_layer_rms"]


@per_tensor(takes_complex=True, ranges={"beta": "[0, 1)"})
def scale_by_layer_rms(beta: Scalar = 0.98, eps: Scalar = 1e-8, amsgrad: bool = False):
    r"""Divide the gradient of each leaf by a running average of its norm: NovoGrad's direction.

    $v_t = \beta v_{t-1} + (1-\beta) \lVert g_t \rVert^2$, with $v_t = \lVert g_t \rVert^2$ where $v_{t-1} = 0$;
    direction $g_t / (\sqrt{v_t} + \epsilon)$.

    Args:
        beta: $\beta$, in [0, 1).
        eps: $\epsilon \ge 0$, in the units of a gradient. Use a positive value if a gradient may be 0.
        amsgrad: Use the running maximum of $v$ instead of $v$.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg_sq` and, with `amsgrad`, `max_exp_avg_sq`, both
        0-d float64 for each leaf.

    Raises:
        ValueError: If `beta` is outside [0, 1) or `eps` is negative.

    Example:
        >>> tx = gradtx.scale_by_layer_rms()
        >>> updates, state = tx.update(
        ...     {"w": torch.tensor([3.0, 4.0])}, tx.init({"w": torch.zeros(2)})
        ... )
        >>> updates["w"], state["scale_by_layer_rms"]["exp_avg_sq"]["w"]
        (tensor([0.6000, 0.8000]), tensor(25., dtype=torch.float64))

    Source: Ginsburg et al. 2019, arXiv:1905.11286. Departures: none; the average restarts while it is
    exactly 0, as in the authors' code.
    """

    def init(param):
        slots = ("exp_avg_sq", "max_exp_avg_sq") if amsgrad else ("exp_avg_sq",)
        return {slot: scalar_zero(param) for slot in slots}

    def update(update, state, param, ctx):
        old, squared_norm = state["exp_avg_sq"], update.square().sum()
        square = torch.where(
            old == 0, squared_norm, running_mean(old, squared_norm, beta)
        )
        new = {"exp_avg_sq": square}
        square = peak(new, state, "exp_avg_sq", amsgrad)
        return update / (safe_sqrt(square) + eps), new

    return init, update
