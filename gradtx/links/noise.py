"""Gaussian noise, added to gradients."""

from __future__ import annotations

from gradtx.arguments import NonNegative
from gradtx.base.exact import exact
from gradtx.maths.entries import safe_sqrt
from gradtx.rules import per_tensor

__all__ = ["add_noise"]


@per_tensor(random=True, by_rows=True)
def add_noise(eta: NonNegative, gamma: NonNegative, seed: int):
    r"""Add Gaussian noise whose variance decreases with time: $u_t = g_t + N(0, \eta / t^\gamma)$.

    The noise depends only on the seed, the leaf's name, the step and the number of random links before this one in the
    chain, not on torch's generator.

    Args:
        eta: $\eta \ge 0$, the variance at $t = 1$. 0 leaves updates unchanged.
        gamma: $\gamma \ge 0$, how fast the variance decreases; 0.55 in the paper.
        seed: Seed of the noise.

    Returns:
        A transformation that keeps shapes and dtypes. State: `seed` and `counter`, shared by the whole stage.

    Example:
        >>> tx = gradtx.add_noise(eta=4.0, gamma=1.0, seed=0)
        >>> state = tx.init({"w": torch.zeros(10_000)})
        >>> for _ in range(4):
        ...     updates, state = tx.update({"w": torch.zeros(10_000)}, state)
        ...     print(f"{updates['w'].std():.1f}")  # the root of 4 / t
        2.0
        1.4
        1.2
        1.0

    Source: Neelakantan et al. 2015, arXiv:1511.06807. Departures: the paper writes $(1 + t)^\gamma$ with $t$ from 0.
    """

    def update(update, state, param, ctx):
        variance = exact(eta, update.device) / ctx.time**gamma
        return update + safe_sqrt(variance) * ctx.rng.normal(update), state

    return update
