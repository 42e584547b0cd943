"""Hyperball: keep weights at their initial norm, and steps at a fraction of it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gradtx.arguments import UnfitError
from gradtx.base import torch_names as _torch
from gradtx.base.exact import Scalar
from gradtx.rules import per_tensor
from gradtx.transforms._math import at_least, norm

__all__ = ["keep_norm", "scale_to_radius"]


def _radius(param: Tensor) -> dict[str, Tensor]:
    """Return the slot `radius`."""
    radius = norm(param)
    if param.numel() and _torch.readable(radius) and radius == 0:
        raise UnfitError(
            "has initial norm 0 and would never leave it; use another transformation for it with partition(...)"
        )
    return {"radius": radius}


def _on_sphere(x: Tensor, radius: Any, eps: Any) -> Tensor:
    return x * (radius / at_least(norm(x), eps))


@per_tensor(takes_complex=True, needs=("params",))
def scale_to_radius(eps: Scalar = 1e-12):
    r"""Scale each update to the initial norm of its leaf: $u \mapsto R\, u / \max(\lVert u \rVert, \epsilon)$.

    Place it before the learning rate, which then is a relative step size. $R = \lVert p_0 \rVert$.

    Args:
        eps: $\epsilon \ge 0$. Use a positive value if an update may be 0.

    Returns:
        A transformation that keeps shapes and dtypes. State: `radius`, 0-d.

    Raises:
        ValueError: If `eps` is negative, if `params` is missing, or if the initial norm of a leaf is 0.

    Example:
        >>> tx = gradtx.scale_to_radius()
        >>> params = {"w": torch.tensor([3.0, 4.0])}
        >>> tx.update({"w": torch.tensor([0.0, 1e-3])}, tx.init(params), params)[0]["w"]
        tensor([0., 5.])

    Source: Hyperball, blog of K. Wen 2025; HeavyBall. Departures: none.
    """

    def update(update, state, param, ctx):
        return _on_sphere(update, state["radius"], eps), state

    return _radius, update


@per_tensor(takes_complex=True, needs=("params",))
def keep_norm(eps: Scalar = 1e-12):
    r"""Rescale each leaf to its initial norm after the step.

    With $q = p + u$, the leaf becomes $R q / \max(\lVert q \rVert, \epsilon)$, $R = \lVert p_0 \rVert$. Place it after
    the learning rate.

    Args:
        eps: $\epsilon \ge 0$.

    Returns:
        A transformation that keeps shapes and dtypes. State: `radius`, 0-d.

    Raises:
        ValueError: If `eps` is negative, if `params` is missing, or if the initial norm of a leaf is 0.

    Example:
        >>> tx = gradtx.chain(gradtx.scale(-1.0), gradtx.keep_norm())
        >>> params = {"w": torch.tensor([5.0, 0.0])}
        >>> updates, _ = tx.update({"w": torch.tensor([2.0, -4.0])}, tx.init(params), params)
        >>> gradtx.apply_updates(params, updates)["w"]  # (3, 4) already has this norm
        tensor([3., 4.])

    Source: Hyperball, blog of K. Wen 2025; HeavyBall. Departures: none. A preceding `scale_to_radius` makes the step
    relative; `hyperball` combines both.
    """

    def update(update, state, param, ctx):
        return _on_sphere(param + update, state["radius"], eps) - param, state

    return _radius, update
