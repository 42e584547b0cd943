"""Links that compare a direction with the gradient: caution, masks and signs."""

from __future__ import annotations

from typing import Annotated

import torch

from gradtx.arguments import (
    Decay,
    Fraction,
    FractionOffAtOne,
    NonNegative,
    Positive,
    is_off,
)
from gradtx.distributed.redistribution import full_tensor
from gradtx.maths.entries import at_least, caution, norm, running_mean
from gradtx.rules import per_tensor
from gradtx.transform import chain

__all__ = [
    "mask_by_alignment",
    "scale_by_agreement_rank",
    "scale_by_caution",
    "scale_by_sign",
    "take_signs_of_gradient",
]


@per_tensor
def scale_by_caution(factor: FractionOffAtOne = 0.0):
    r"""Damp the entries of an update that point against the gradient.

    Entries with $u g \le 0$ are multiplied by $f$, then all entries are divided by the mean weight (at least 1e-5) of
    the leaf; $g$ is the gradient as passed to the clock.

    Args:
        factor: $f$ in [0, 1]. A literal 1.0 omits the link.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Example:
        >>> tx = gradtx.chain(gradtx.trace(0.9), gradtx.scale_by_caution())
        >>> state = tx.init({"w": torch.zeros(2)})
        >>> _, state = tx.update({"w": torch.tensor([10.0, 1.0])}, state)
        >>> # momentum still moves the first entry uphill
        >>> tx.update({"w": torch.tensor([-1.0, 1.0])}, state)[0]["w"]
        tensor([0.0000, 3.8000])

    Source: Liang et al. 2024, arXiv:2411.16085. Departures: the factor and the lower bound of 1e-5 on the mean are from
    adam-atan2-pytorch 0.4.1.
    """
    if is_off(factor, 1.0):
        return chain()

    def update(update, state, param, ctx):
        return update * caution(update, ctx.grad, factor), state

    return update


@per_tensor
def scale_by_agreement_rank(
    fraction: Annotated[int | float, "(0, 1]"] = 0.5,
    alpha: NonNegative = 2.0,
    gamma: NonNegative = 0.1,
):
    r"""Lengthen the entries of an update that agree best with the gradient, and shorten the others: MGUP.

    In each leaf of $n$ entries, those with the $\lfloor \tau n \rfloor$ largest products $u g$ are multiplied by
    $\alpha$, all others by $\gamma$; $g$ is the gradient as passed to the clock. Entries that tie for the last place
    count as others.

    Args:
        fraction: $\tau$ in (0, 1]; 1 multiplies all entries by $\alpha$.
        alpha: $\alpha \ge 0$; $1/\tau$ in the paper, so that with equal entries and $\gamma = 0$ lengths stay the same.
        gamma: $\gamma \ge 0$; $\tau$ in the paper, 0.1 in the authors' code. With 0, the other entries do not move.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Example:
        >>> tx = gradtx.chain(gradtx.trace(0.9), gradtx.scale_by_agreement_rank())
        >>> state = tx.init({"w": torch.zeros(4)})
        >>> _, state = tx.update({"w": torch.tensor([10.0, 1.0, 1.0, 1.0])}, state)
        >>> # the first entry of the momentum points against its gradient
        >>> tx.update({"w": torch.tensor([-1.0, 3.0, 2.0, 0.1])}, state)[0]["w"]
        tensor([0.8000, 7.8000, 5.8000, 0.1000])

    Source: Chang and Yuan 2025 (NeurIPS), arXiv:2606.17526. Departures: ties; as the last link of any direction, where
    the authors' AdamW adds eps before it corrects the bias (`scale_by_adam_hat`).
    """

    def update(update, state, param, ctx):
        product = update * ctx.grad
        entries = product.numel()
        best = int(fraction * entries)
        if best == entries:
            return alpha * update, state
        # The last of these is the largest that is not among the best.
        candidates = full_tensor(product).flatten().topk(best + 1, sorted=False).values
        is_best = product > candidates.amin()
        return torch.where(is_best, alpha * update, gamma * update), state

    return update


def is_without_caution(arguments):
    return is_off(arguments["cautious_factor"], 1.0)


@per_tensor(random=True)
def mask_by_alignment(
    keep: Fraction = 0.5,
    tau: Positive = 2.0,
    momentum: Decay = 0.9,
    smoothing: Decay = 0.9,
    *,
    seed: int = 0,
):
    r"""Skip the update of a leaf at random, and scale the others by the agreement of gradient and momentum: Magma.

    $m \leftarrow \mu m + (1-\mu) g$ and
    $s \leftarrow \sigma s + (1-\sigma)\, \mathrm{sigmoid}(\cos(m, g) / \tau)$ from $s = 1$; the update is $z s u$. Here
    z is 1 with probability `keep` and else 0, the same for all entries of the leaf. There is no division by
    that: steps shrink to about 0.3 of themselves, so raise the rate. Use it as the last link: weight decay in
    $u$ is masked, too, and links before it see every gradient.

    Args:
        keep: Probability of a step, in [0, 1].
        tau: $\tau > 0$, temperature of the agreement.
        momentum: $\mu$ in [0, 1).
        smoothing: $\sigma$ in [0, 1).
        seed: Seed of the masks, which also depend on the step and the name of the leaf.

    Returns:
        A transformation that keeps shapes and dtypes. State: `momentum_buffer`, shaped as the parameter; `alignment`
        ($s$), 0-d; `seed` and `counter`, shared by the whole stage. Leaves that must move together, such as those of
        `precondition_pairs`, should both be outside, by `masked`.

    Example:
        >>> tx = gradtx.mask_by_alignment(keep=0.25, smoothing=0.0, tau=1.0)
        >>> params = {f"layer{i}": torch.ones(2) for i in range(1000)}
        >>> updates, _ = tx.update(params, tx.init(params))
        >>> moved = torch.stack(list(updates.values()))[:, 0]
        >>> f"{(moved > 0).float().mean():.2f}", moved.max()  # sigmoid(1)
        ('0.25', tensor(0.7311))

    Source: arXiv:2602.15322 and magma-optimizer 0.1.1. Departures: always an average of the gradient itself, which
    equals Adam's for equal decay rates.
    """

    def init(param, rng):
        return {
            "momentum_buffer": torch.zeros_like(param),
            "alignment": param.new_ones(()),
        }

    def update(u, state, p, ctx):
        g = ctx.grad
        m = running_mean(state["momentum_buffer"], g, momentum)
        cosine = (m * g).sum() / (at_least(norm(m), 1e-8) * at_least(norm(g), 1e-8))
        s = running_mean(state["alignment"], torch.sigmoid(cosine / tau), smoothing)
        z = (ctx.rng.uniform(state["alignment"]) < keep).to(u.dtype)
        return z * s * u, {"momentum_buffer": m, "alignment": s}

    return init, update


@per_tensor(elementwise=True, length="sets")
def scale_by_sign():
    r"""Replace every entry by its sign: $u \mapsto \mathrm{sign}(u)$.

    Returns:
        A transformation that keeps shapes and dtypes; every entry becomes -1, 0 or 1. No state.

    Example:
        >>> tx = gradtx.scale_by_sign()
        >>> tx.update({"w": torch.tensor([2e-9, 0.0, -5.0])}, tx.init({}))[0]["w"]
        tensor([ 1.,  0., -1.])

    Source: Bernstein et al. 2018, signSGD, arXiv:1802.04434. Departures: none.
    """
    return lambda update, state, param, ctx: (update.sign(), state)


@per_tensor(elementwise=True)
def take_signs_of_gradient():
    r"""Combine the magnitudes of a direction with the signs of the gradient: $u \mapsto \mathrm{sign}(g) |u|$.

    Place it after any direction. $g$ is the gradient that was passed to the chain. Every entry then points downhill on
    this batch, so a later `scale_by_caution` has no effect.

    Returns:
        A transformation that keeps shapes and dtypes; no state. Where the gradient is 0, so is the update.

    Example:
        >>> tx = gradtx.chain(gradtx.trace(1.0), gradtx.take_signs_of_gradient())
        >>> state = tx.init({"w": torch.zeros(2)})
        >>> for grad in ([3.0, 3.0], [-1.0, 0.0]):  # the momentum is then (2, 3)
        ...     updates, state = tx.update({"w": torch.tensor(grad)}, state)
        ...     print(updates["w"])
        tensor([3., 3.])
        tensor([-2.,  0.])

    Source: Cao et al. 2024, arXiv:2412.17107. Departures: none.
    """

    def update(update, state, param, ctx):
        return ctx.grad.sign() * update.abs(), state

    return update
