"""Fromage: every leaf rotates by a fixed angle, and keeps its norm if its gradient is orthogonal to it."""

from __future__ import annotations

from gradtx.arguments import Positive
from gradtx.links.clipping import bound_norm
from gradtx.links.projection import map_after_step
from gradtx.links.scaling import scale_by_learning_rate, scale_by_trust_ratio
from gradtx.rules import alias
from gradtx.transform import chain

__all__ = ["fromage"]


@alias
def fromage(lr=0.01, p_bound: Positive | None = None):
    r"""Fromage: every leaf rotates by a fixed angle, and keeps its norm if its gradient is orthogonal to it.

    $p \leftarrow (p - \eta \, g \lVert p \rVert / \lVert g \rVert) / \sqrt{1 + \eta^2}$; the ratio of norms is 1
    where either is 0.

    When to use: deep networks, including GANs, with one rate that has the same meaning for every layer; start at 0.01.

    Args:
        lr: $\eta$ in [0, inf), the change of a leaf per step relative to its norm.
        p_bound: Upper bound of the norm of every leaf, as a multiple (> 0) of its initial norm; None for no bound.

    Returns:
        A transformation whose updates are added to the parameters. State: none; with `p_bound`, `bound`, 0-d per leaf.

    Example:
        >>> tx = gradtx.fromage(lr=0.75)
        >>> params = {"w": torch.tensor([2.5, 0.0])}
        >>> updates, _ = tx.update({"w": torch.tensor([0.0, 1e-3])}, tx.init(params), params)
        >>> gradtx.apply_updates(params, updates)["w"]
        tensor([ 2.0000, -1.5000])

    Source: Bernstein et al. 2020, arXiv:2002.03432. Departures: none; weights also shrink where the gradient is 0.
    """
    shrink = (1 + lr * lr) ** -0.5
    return chain(
        scale_by_trust_ratio(),
        scale_by_learning_rate(lr),
        map_after_step(lambda x: shrink * x),
        chain() if p_bound is None else bound_norm(p_bound),
    )
