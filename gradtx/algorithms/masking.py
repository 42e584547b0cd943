"""Random masks of whole updates."""

from __future__ import annotations

import torch

from gradtx.algorithms._math import at_least, norm, running_mean
from gradtx.arguments import Decay, Fraction, Positive
from gradtx.rules import per_tensor

__all__ = ["mask_by_alignment"]


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

    Raises:
        ValueError: If an argument is out of range.

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
