"""Optimism: extrapolate by the last change of the update."""

from __future__ import annotations

from gradtx.base.exact import Scalar
from gradtx.rules import per_tensor
from gradtx.transforms._math import change_of, zeros

__all__ = ["scale_by_optimistic_gradient"]


@per_tensor(elementwise=True, ranges={"alpha": "(-inf, inf)", "beta": "(-inf, inf)"})
def scale_by_optimistic_gradient(alpha: Scalar = 1.0, beta: Scalar = 1.0):
    r"""Add the last change of the update to extrapolate the next one.

    $u_t = \alpha g_t + \beta (g_t - g_{t-1})$ with $g_0 = g_1$.

    Args:
        alpha: $\alpha$, any number.
        beta: $\beta$, any number; with 0, updates are only scaled.

    Returns:
        A transformation that keeps shapes and dtypes. State: `previous_grad`, the previous input of the link, shaped as
        the parameter.

    Example:
        >>> tx = gradtx.chain(
        ...     gradtx.scale_by_optimistic_gradient(), gradtx.scale_by_learning_rate(0.5)
        ... )
        >>> params = {"x": torch.tensor([1.0]), "y": torch.tensor([1.0])}
        >>> state = tx.init(params)
        >>> # the saddle x y: plain descent in x and ascent in y would spiral out
        >>> for _ in range(30):
        ...     grads = {"x": params["y"], "y": -params["x"]}
        ...     updates, state = tx.update(grads, state, params)
        ...     params = gradtx.apply_updates(params, updates)
        >>> bool(params["x"].abs() < 0.1), bool(params["y"].abs() < 0.1)
        (True, True)

    Source: Daskalakis et al. 2017, arXiv:1711.00141; with two rates: Mokhtari et al. 2019, arXiv:1901.08511.
    Departures: none.
    """

    def update(update, state, param, ctx):
        change = change_of(update, state, ctx)
        return alpha * update + beta * change, {"previous_grad": update}

    return zeros("previous_grad"), update
