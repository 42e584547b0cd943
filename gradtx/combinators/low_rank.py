"""Run any chain on matrices projected to a low rank."""

from __future__ import annotations

from gradtx.algorithms._projection import Bases, Carry, Projection, Side
from gradtx.algorithms._spaces import Space
from gradtx.arguments import Count, NonNegative
from gradtx.rules import combinator
from gradtx.transform import GradientTransformation

__all__ = ["low_rank"]


@combinator
def low_rank(
    tx: GradientTransformation,
    rank: Count,
    every: Count = 200,
    projection: Bases = "svd",
    side: Side = "short",
    scale: NonNegative = 1.0,
    carry: Carry = "keep",
    seed: int = 0,
):
    r"""Run a chain on matrices projected to a low rank, so that its state is correspondingly small.

    At steps t with (t - 1) mod `every` = 0 a basis $Q$ with `rank` columns is computed from the update $G$. The chain
    receives $G Q$, or $Q^\top G$ if the basis is on the left; its update $u$ is mapped back to $a\, u\, Q^\top$, or
    $a\, Q u$. Other leaves pass through the chain without projection. The entry of largest magnitude in each basis
    vector is positive: without a sign convention, moments from before and after a new basis would not match.

    Args:
        tx: The chain that runs at low rank, such as `scale_by_adam_hat()`; `ctx.grad` and `params` are projected too.
        rank: Number of basis vectors, >= 1, at most the smaller side unless they are random.
        every: Steps between updates of the basis, >= 1.
        projection: "svd" for the first singular vectors, "power" for $\mathrm{QR}(G^\top G Q)$ (initially from the
            identity), "random" for normal random numbers divided by $\sqrt{\mathrm{rank}}$, not orthogonal.
        side: "short" projects the smaller dimension (the last of a square), "long" the other one; "left", "right".
        scale: $a \ge 0$.
        carry: The treatment of inner slots when the basis changes: "keep", "reset" to their initial values, or
            "rotate": "linear" slots (see `rotated`) are multiplied by $Q^\top Q_{old}$, others are kept.
        seed: Seed of random bases.

    Returns:
        A transformation that preserves shapes and dtypes. State: `Q`, side x rank, for matrices, and the entries of
        `tx`, at low rank; with random bases also `seed` and `counter`.

    Raises:
        TypeError: If `tx` is not a transformation, works on whole trees or averages weights, or if, with "rotate", it
            has a slot without a declared kind.
        ValueError: If an argument is out of range, or if an option is unknown.

    Example:
        >>> tx = gradtx.low_rank(gradtx.scale_by_adam(), rank=1)
        >>> state = tx.init({"w": torch.zeros(512, 64)})
        >>> state["low_rank"]["scale_by_adam"]["exp_avg"]["w"].shape
        torch.Size([512, 1])

    Source: Zhao et al. 2024, GaLore, arXiv:2403.03507. Departures: any chain; the sign convention, since the
    signs of LAPACK are arbitrary; "power", "reset" and "rotate" are added.
    """

    def finish(view, update):
        return scale * view.outward(update), {}

    return Space(tx, Projection(finish, rank, every, projection, side, carry, seed))
