"""Control the growth of weights: a floor on relative updates, and a brake on changes of the norm."""

from __future__ import annotations

import torch

from gradtx.base.exact import Scalar, exact
from gradtx.rules import per_tensor
from gradtx.transforms._math import at_least, norm, quotient, safe_pow, unit_norm

__all__ = ["floor_relative_update", "radial_brake"]


@per_tensor(ranges={"floor": "[0, inf)", "power": "[0, inf)"}, needs=("params",))
def floor_relative_update(
    floor: Scalar = 0.35, per: str = "leaf", power: Scalar = 1.0, eps: Scalar = 1e-8
):
    r"""Enlarge updates that are small relative to their weights: $u \max(f \lVert p \rVert / \lVert u \rVert, 1)^k$.

    Place it before the learning rate. Updates that are mostly noise are enlarged as well, and a decaying momentum no
    longer anneals them: decrease the floor together with the rate.

    Args:
        floor: $f \ge 0$, lower bound of the ratio of the two norms; often a schedule.
        per: "leaf", or "row" for one norm per index of the first dimension in leaves with more than one dimension.
        power: $k \ge 0$; values below 1 only approach the floor.
        eps: Lower bound of both norms, >= 0. Use a positive value if an update may be 0; such updates remain 0.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Raises:
        ValueError: If an argument is out of range, if `per` is unknown, or if `params` is missing.

    Example:
        >>> tx = gradtx.floor_relative_update(0.5)
        >>> params = {"w": torch.tensor([6.0, 8.0])}
        >>> tx.update({"w": torch.tensor([0.0, 0.25])}, tx.init(params), params)[0]["w"]
        tensor([0., 5.])

    Source: modded-nanogpt, track 3, u/w floor. Departures: none.
    """
    if per not in ("leaf", "row"):
        raise ValueError(
            f"floor_relative_update: per must be 'leaf' or 'row', got {per!r}"
        )
    size = norm if per == "leaf" else unit_norm

    def update(update, state, param, ctx):
        ratio = at_least(size(param), eps) / at_least(size(update), eps)
        return update * safe_pow(at_least(floor * ratio, 1.0), power), state

    return update


@per_tensor(needs=("params",))
def radial_brake(
    outward: Scalar = 0.5,
    inward: Scalar = 1.0,
    form: str = "direction",
    eps: Scalar = 1e-8,
):
    r"""Slow down changes of the norm of the weights.

    Place it after the learning rate. With $q = p + u$ and $s$ = `outward` where the norm grows, otherwise `inward`:

    - "norm": $q$ is rescaled to the norm $\lVert p \rVert + s (\lVert q \rVert - \lVert p \rVert)$.
    - "direction": with $a = \langle u, p \rangle / \lVert p \rVert^2$, $u \leftarrow u + (s - 1) a p$, and $p + u$ is
      rescaled to the norm $\lVert p \rVert + \langle u, p \rangle / \lVert p \rVert$, which also removes the growth of
      the norm due to a tangential step.

    Args:
        outward: $s$ where the norm grows (in "direction": where $a > 0$).
        inward: $s$ elsewhere.
        form: "direction" or "norm".
        eps: Lower bound of the norm in the division, >= 0. "direction" does not brake leaves of norm 0.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Raises:
        ValueError: If `eps` is negative, if `form` is unknown, or if `params` is missing.

    Example:
        >>> tx = gradtx.radial_brake(outward=0.5, form="norm")
        >>> params = {"w": torch.tensor([3.0, 0.0])}
        >>> updates, _ = tx.update({"w": torch.tensor([2.0, 0.0])}, tx.init(params), params)
        >>> gradtx.apply_updates(params, updates)["w"]
        tensor([4., 0.])

    Source: modded-nanogpt, track 3 ("direction"); NVIDIA Emerging-Optimizers ("norm"). Departures: none.
    """
    if form not in ("direction", "norm"):
        raise ValueError(
            f"radial_brake: form must be 'direction' or 'norm', got {form!r}"
        )

    def factor(grows):
        return torch.where(
            grows, exact(outward, grows.device), exact(inward, grows.device)
        )

    def by_norm(update, state, param, ctx):
        before, moved = norm(param), param + update
        growth = norm(moved) - before
        wanted = before + factor(growth >= 0) * growth
        return moved * (wanted / at_least(norm(moved), eps)) - param, state

    def by_direction(update, state, param, ctx):
        before = norm(param)
        along = (update * param).sum() / at_least(before, eps).square()
        kept = factor(along > 0) * along
        moved = param + update + (kept - along) * param
        wanted = before * (1 + kept)
        rescaled = moved * quotient(wanted, norm(moved)) - param
        return torch.where(before == 0, update, rescaled), state

    return by_norm if form == "norm" else by_direction
