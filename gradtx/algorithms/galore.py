"""GaLore: Adam on gradients projected to a low rank."""

from __future__ import annotations

from gradtx.algorithms.adam import scale_by_adam_hat
from gradtx.algorithms.soap import decayed
from gradtx.arguments import Count, NonNegative
from gradtx.combinators.coordinates import Bases, Carry, Side, low_rank
from gradtx.rules import alias

__all__ = ["galore"]


@alias(class_name="GaLore")
def galore(
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-6,
    weight_decay=0.0,
    rank: Count = 128,
    update_proj_gap: Count = 200,
    scale: NonNegative = 0.25,
    side: Side = "short",
    projection: Bases = "svd",
    carry: Carry = "keep",
):
    r"""GaLore: Adam on gradients projected to a low rank.

    $p \leftarrow (p - \eta\, a\, d\, Q^\top)(1 - \eta \lambda)$ with Adam's direction $d$ of $g Q$; see `low_rank`.

    When to use: training with the memory of a low rank; Adam's state of a matrix shrinks to that rank.

    Args:
        lr: $\eta$ in [0, inf).
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: Adam's eps, >= 0.
        weight_decay: $\lambda \ge 0$, applied to the weights after the step.
        rank: Number of columns of $Q$, >= 1, at most the smaller side.
        update_proj_gap: Number of steps between updates of the basis, >= 1.
        scale: $a \ge 0$.
        side: "short", "long", "left" or "right"; see `low_rank`.
        projection: "svd", "power" or "random"; see `low_rank`.
        carry: "keep", "reset" or "rotate"; see `low_rank`.

    Returns:
        A transformation whose updates are added to the parameters. State: `Q`, and `exp_avg` and `exp_avg_sq` at low
        rank; for other leaves, `exp_avg` and `exp_avg_sq` in full size.

    Example:
        >>> tx = gradtx.galore(lr=1.0, rank=1)
        >>> params = {"w": torch.zeros(2, 2)}
        >>> updates, _ = tx.update(
        ...     {"w": torch.tensor([[3.0, 0.0], [0.0, 1.0]])}, tx.init(params), params
        ... )
        >>> updates["w"]
        tensor([[-0.2500,  0.0000],
                [ 0.0000,  0.0000]])

    Source: Zhao et al. 2024, arXiv:2403.03507. Departures: the sign convention of `low_rank`.
    """
    direction = low_rank(
        scale_by_adam_hat(betas, eps),
        rank,
        update_proj_gap,
        projection=projection,
        side=side,
        scale=scale,
        carry=carry,
    )
    return decayed(direction, lr, weight_decay)
