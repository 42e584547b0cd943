"""Shift and scale a leaf by its own statistics."""

from __future__ import annotations

from gradtx.base.exact import Scalar
from gradtx.rules import per_tensor
from gradtx.transforms._math import safe_sqrt, unit_centered

__all__ = ["centralize", "normalize_by_std"]


@per_tensor
def centralize(conv_only: bool = False):
    """Subtract the mean of each output unit from its gradient (gradient centralization).

    The mean is over all dimensions but the first, for leaves with at least 2; others pass unchanged.

    Args:
        conv_only: Centralize only leaves with at least 4 dimensions.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Example:
        >>> tx = gradtx.centralize()
        >>> tx.update({"w": torch.tensor([[1.0, 3.0], [2.0, 2.0]])}, tx.init({}))[0]["w"]
        tensor([[-1.,  1.],
                [ 0.,  0.]])

    Source: Yong et al. 2020, arXiv:2004.01461. Departures: none.
    """

    def update(update, state, param, ctx):
        if update.ndim <= (3 if conv_only else 1):
            return update, state
        return unit_centered(update), state

    return update


@per_tensor
def normalize_by_std(eps: Scalar = 1e-8):
    r"""Divide each leaf by the standard deviation of its entries: $u / (\sigma(u) + \epsilon)$.

    Leaves with 1 or 2 entries pass unchanged; the mean is not subtracted; $\sigma$ is the unbiased estimate.

    Args:
        eps: $\epsilon \ge 0$; use a positive value, because a constant leaf has $\sigma = 0$.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Raises:
        ValueError: If `eps` is negative.

    Example:
        >>> tx = gradtx.normalize_by_std()
        >>> tx.update({"w": torch.tensor([1.0, 3.0, 5.0])}, tx.init({}))[0]["w"]
        tensor([0.5000, 1.5000, 2.5000])

    Source: Wright and Demeure 2021, arXiv:2106.13731 (Ranger21). Departures: none.
    """

    def update(update, state, param, ctx):
        if update.numel() <= 2:
            return update, state
        return update / (safe_sqrt(update.var()) + eps), state

    return update
