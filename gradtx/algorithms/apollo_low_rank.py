"""APOLLO: the gradient itself, with one rate per row computed by a projected Adam."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from gradtx.algorithms.adam import scale_by_adam_hat
from gradtx.algorithms.fira import limit_growth, norm_ratios
from gradtx.algorithms.soap import decayed
from gradtx.arguments import AtLeastOne, Count, NonNegative
from gradtx.combinators._spaces import Space
from gradtx.combinators.coordinates import Bases, Projection, Side
from gradtx.maths.entries import hat_rate
from gradtx.rules import alias, per_tensor

__all__ = ["apollo_low_rank", "scale_by_apollo_low_rank"]


@per_tensor(length="sets")
def scale_by_apollo_low_rank(
    betas=(0.9, 0.999),
    eps=1e-6,
    rank: Count = 128,
    update_proj_gap: Count = 200,
    scale: NonNegative = 1.0,
    side: Side = "short",
    projection: Bases = "random",
    scale_type: Literal["channel", "tensor"] = "channel",
    scale_front=False,
    limit: AtLeastOne = 1.01,
    seed: int = 0,
):
    r"""Scale each row of the gradient as a low-rank Adam would: APOLLO.

    With the basis $Q$ of `low_rank`, $\hat g = g Q$ and Adam's direction $d$ for it without the factor
    $c = \sqrt{1-\beta_2^t} / (1-\beta_1^t)$: $u = g\, \phi$ with
    $\phi = \lVert d \rVert / (\lVert \hat g \rVert + 10^{-8})$, row by row (columns with a basis on the left) or over
    the whole leaf, $u \leftarrow u / (\max(\lVert u \rVert / (n + 10^{-8}), l) / l)$ where the norm $n$ of
    the previous $u$ is not 0; direction $c \sqrt a\, u$. Leaves that are not matrices use `scale_by_adam_hat`.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: Adam's eps, >= 0.
        rank: Number of columns of $Q$, >= 1.
        update_proj_gap: Steps between two refreshes of the basis, >= 1.
        scale: $a \ge 0$.
        side: As in `low_rank`.
        projection: As in `low_rank`.
        scale_type: "channel" or "tensor".
        scale_front: Whether to multiply by $\sqrt a$ before limiting the growth.
        limit: $l \ge 1$: the largest growth factor of the norm of $u$ in one step.
        seed: Seed of random bases.

    Returns:
        A transformation that keeps shapes and dtypes. State: `Q`, `exp_avg`, `exp_avg_sq` at low rank, `last_norm`
        ($n$, 0-d); `seed` and `counter`.

    Example:
        >>> tx = gradtx.scale_by_apollo_low_rank(rank=1, projection="svd")
        >>> grads = {"w": torch.tensor([[3.0, 4.0], [6.0, 8.0]])}
        >>> # Adam at rank 1 scales both rows to the same norm
        >>> tx.update(grads, tx.init(grads))[0]["w"].norm(dim=1)
        tensor([1.0000, 1.0000])

    Source: Zhu et al. 2024, arXiv:2412.05270. Departures: random bases come from the library's random stream; the
    channels of a projected leaf follow the side of its basis; growth from 0 is not limited, so that a leaf moves after
    a gradient of zeros.
    """
    adam = scale_by_adam_hat(betas, eps)
    by_channel = scale_type == "channel"
    before, after = (scale**0.5, 1.0) if scale_front else (1.0, scale**0.5)

    def finish(leaf, u):
        correction = hat_rate(1.0, leaf.ctx, betas)  # of the inner Adam
        ratios = norm_ratios(leaf, u / correction, by_channel)
        u, new_state = limit_growth(leaf, before * leaf.update * ratios, limit)
        return correction * after * u, new_state

    options = rank, update_proj_gap, projection, side, "keep", seed
    return Space(adam, Projection(finish, *options, ("last_norm",)))


@alias(class_name="ApolloLowRank")
def apollo_low_rank(
    lr=1e-2,
    betas=(0.9, 0.999),
    eps=1e-6,
    weight_decay=0.0,
    **options: Annotated[Any, scale_by_apollo_low_rank],
):
    r"""APOLLO: the gradient itself, with one rate per row computed by a projected Adam.

    $p \leftarrow (p - \eta\, d)(1 - \eta \lambda)$ with the direction $d$ of `scale_by_apollo_low_rank`.

    When to use: training with little more memory than SGD, where matrices are much larger than `rank`; the default of
    128 keeps more than AdamW does for matrices of 64 columns. APOLLO-Mini is `rank=1`, `scale=128.0`,
    `scale_type="tensor"`.

    Args:
        lr: $\eta$ in [0, inf).
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: Adam's eps, >= 0.
        weight_decay: $\lambda \ge 0$, applied to the weights after the step.
        rank: Number of columns of $Q$, >= 1.
        update_proj_gap: Number of steps between updates of the basis, >= 1.
        scale: The direction is multiplied by the square root of this, >= 0.
        side: "short", "long", "left" or "right"; see `low_rank`.
        projection: "svd", "power" or "random"; see `low_rank`.
        scale_type: "channel" for one rate per row (per column if the basis is on the left), "tensor" for a single rate.
        scale_front: Whether to multiply by the square root of `scale` before the growth is limited.
        limit: Largest factor by which the norm of the direction may grow in one step, >= 1.
        seed: Seed of random bases.

    Returns:
        A transformation whose updates are added to the parameters. State: `Q`, `last_norm`, and `exp_avg` and
        `exp_avg_sq` at low rank; for other leaves, `exp_avg` and `exp_avg_sq` in full size; `seed` and `counter`.

    Example:
        >>> tx = gradtx.apollo_low_rank(lr=1.0, rank=1, scale_type="tensor")
        >>> params = {"w": torch.zeros(2, 2)}
        >>> updates, _ = tx.update(
        ...     {"w": torch.tensor([[3.0, 0.0], [0.0, 3.0]])}, tx.init(params), params
        ... )
        >>> # the direction of the gradient
        >>> updates["w"][0, 0] == updates["w"][1, 1], updates["w"][0, 1]
        (tensor(True), tensor(0.))

    Source: Zhu et al. 2024, arXiv:2412.05270. Departures: random bases come from gradtx's own random stream. `apollo`
    is a different method, ApolloDQN.
    """
    direction = scale_by_apollo_low_rank(betas, eps, **options)
    return decayed(direction, lr, weight_decay)
