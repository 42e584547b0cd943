"""Take relative steps on the sphere given by the initial weights: Hyperball."""

from __future__ import annotations

from gradtx.algorithms.projection import keep_norm, scale_to_radius
from gradtx.algorithms.scaling import scale_by_learning_rate
from gradtx.rules import combinator
from gradtx.transform import GradientTransformation, chain

__all__ = ["hyperball"]


@combinator
def hyperball(tx: GradientTransformation, lr, eps=1e-12):
    r"""Take steps of a fixed fraction of a leaf's norm, and preserve that norm.

    With $R = \lVert p_0 \rVert$, $N(x) = x / \max(\lVert x \rVert, \epsilon)$ and the direction $u$ of `tx`,
    $p \leftarrow R\, N(p - \eta R\, N(u))$.

    Suited to weights whose scale does not matter because a normalization layer follows: one learning rate then fits
    layers of all sizes, and weight decay is unnecessary.

    Args:
        tx: Computes the direction, without a learning rate.
        lr: $\eta \ge 0$, the relative step size.
        eps: $\epsilon \ge 0$. Keep it above 0 in case an update is 0.

    Returns:
        A transformation whose updates are added to the parameters. State: the entries of `tx`, and `radius`, 0-d, in
        each of `scale_to_radius` and `keep_norm`.

    Raises:
        TypeError: If `tx` is not a transformation.
        ValueError: If an argument is out of range, if `params` is missing, or if the initial norm of a leaf is 0.

    Example:
        >>> tx = gradtx.hyperball(gradtx.trace(0.9), lr=0.75)
        >>> params = {"w": torch.tensor([4.0, 0.0])}
        >>> updates, _ = tx.update({"w": torch.tensor([0.0, -1e-3])}, tx.init(params), params)
        >>> gradtx.apply_updates(params, updates)["w"]  # (4, 3), brought back to norm 4
        tensor([3.2000, 2.4000])

    Source: Hyperball, blog of K. Wen 2025; HeavyBall. Departures: none.
    """
    return chain(tx, scale_to_radius(eps), scale_by_learning_rate(lr), keep_norm(eps))
