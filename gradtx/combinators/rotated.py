"""Run any chain in the eigenbases of Kronecker factors."""

from __future__ import annotations

from typing import Annotated, Any

from gradtx.algorithms._rotation import Rotation
from gradtx.algorithms._spaces import Space
from gradtx.rules import combinator
from gradtx.transform import GradientTransformation

__all__ = ["rotated"]


@combinator
def rotated(
    inner: GradientTransformation,
    **options: Annotated[Any, Rotation],
):
    r"""Run a chain in the eigenbases of the Kronecker factors of its updates.

    With the update $u$, a basis $Q_i$ for every dimension i, and a rotation by all $Q_i^\top$ written as a prime, the
    inner transformation receives $u'$, and its update is rotated back. Then the factors are updated with $x = u$:
    "shampoo": $S_i \leftarrow \beta S_i + (1-\beta)\, \mathrm{mat}_i(x) \mathrm{mat}_i(x)^\top$. "kl":
    $S_i \leftarrow (1-w) S_i + w\, \mathrm{mat}_i(\tilde x) \mathrm{mat}_i(\tilde x)^\top d_i / n$ with
    $w = (1-\beta)/(1-\beta^t)$, where $\tilde x$ is x along every other basis, divided by the root of
    $\lambda_j = \max(\mathrm{diag}(Q_j^\top S_j Q_j), \epsilon)$ there (1 at the first step), all from before this
    step. The first bases are the eigenvectors of the first factors, sorted by decreasing eigenvalue.

    Slots of the inner transformation are of three kinds, which its links declare (see `gradtx.slots`): "linear"
    slots (`exp_avg`) are stored unrotated and rotated in every step, "square" slots (`exp_avg_sq`) are stored in the
    rotated coordinates, and "scalar" slots do not change. `ctx.grad` and `params` are rotated as well.

    Args:
        inner: The chain that runs in the rotated coordinates, such as `scale_by_adam_hat()`. Its last link returns a
            direction; a learning rate and weight decay usually follow `rotated`.
        statistics: "shampoo" or "kl".
        sides: "both" rotates every dimension; "left", "right" and "short" rotate matrices only, along the first, the
            last, or the smaller dimension (the last of a square).
        beta: $\beta$ in [0, 1).
        precondition_frequency: Period >= 1: new bases are computed at steps t with (t - offset) mod period = 0.
        max_precondition_dim: Dimensions larger than this, >= 1, are not rotated.
        merge_dims: Merge neighboring dimensions, left to right, while their product does not exceed that limit.
        precondition_1d: Also rotate leaves with one dimension.
        start: "skip": the first step only collects statistics and returns 0, so the inner clock is one step behind;
            inner schedules follow the outer count.
            "identity": the first step runs unrotated. Without effect if `order` is "before".
        refresh: "qr": $Q \leftarrow \mathrm{QR}(S Q)$, column by column in the order of $\mathrm{diag}(Q^\top S Q)$.
            "eigh": eigenvectors of S. "svd": the left singular vectors of $\mathrm{mat}_i(u)$, computed before the
            bases are used; there are no factors in this mode.
        offset: See `precondition_frequency`, >= 0.
        of: x: "update", or "grad" for the gradient itself, `ctx.grad`.
        eps: $\epsilon \ge 0$, for "kl".
        order: "after": a step rotates with the bases of earlier steps, and then updates factors and bases. "before":
            every step, also the first, updates factors and bases first and rotates with the result.
        stagger: Renew the bases of each leaf at a separate step within the period, derived from its name, so that no
            step after the first renews the bases of all leaves.

    Returns:
        A transformation that preserves shapes and dtypes. State: `GG_i` ($S_i$) and `Q_i`, n x n, for every rotated
        dimension in order, and the entries of `inner`. Time: O(n^3).

    Raises:
        TypeError: If `inner` is not a transformation, has a slot without a declared kind, works on whole trees or
            averages weights.
        ValueError: If an argument is out of range, or if an option is unknown.

    Example:
        >>> tx = gradtx.rotated(gradtx.clip_by_value(1.0))
        >>> state = tx.init({"w": torch.zeros(2, 2)})
        >>> for _ in range(2):
        ...     updates, state = tx.update({"w": torch.tensor([[3.0, 0.0], [4.0, 0.0]])}, state)
        >>> # its singular value 5 is clipped to 1; unrotated, the entries 3 and 4 would be
        >>> updates["w"]
        tensor([[0.6000, 0.0000],
                [0.8000, 0.0000]])

    Source: Vyas et al. 2024, arXiv:2409.11321 (SOAP); "kl": Lin et al. 2025, arXiv:2509.03378; "before": REKLS and MOSO
    of NVIDIA's Emerging-Optimizers. Departures: any inner
    chain. If statistics are rank-deficient, part of a basis is arbitrary; see `scale_by_soap`.
    """
    return Space(inner, Rotation(**options))
