"""Noisy SGD: gradients with Gaussian noise that decays over time."""

from __future__ import annotations

from gradtx.arguments import NonNegative
from gradtx.links.noise import add_noise
from gradtx.links.scaling import scale_by_learning_rate
from gradtx.rules import alias
from gradtx.transform import chain

__all__ = ["noisy_sgd"]


@alias(class_name="NoisySGD")
def noisy_sgd(lr, eta: NonNegative = 0.01, gamma: NonNegative = 0.55, seed: int = 0):
    r"""Noisy SGD: gradients with Gaussian noise that decays over time.

    $p \leftarrow p - \eta_t (g_t + N(0, \eta / t^\gamma))$ with the rate $\eta_t$ = `lr`.

    When to use: very deep networks that barely start to learn (the paper's claim).

    Args:
        lr: The learning rate, in [0, inf).
        eta: $\eta \ge 0$, the variance of the noise at $t = 1$.
        gamma: $\gamma \ge 0$, the speed at which the variance falls.
        seed: Seed of the noise, which depends only on the seed, the leaf's name and the step.

    Returns:
        A transformation whose updates are added to the parameters. State: `seed` and `counter`, shared by all leaves.

    Example:
        >>> tx = gradtx.noisy_sgd(lr=0.5, eta=4.0)
        >>> params = {"w": torch.zeros(10_000)}
        >>> updates, _ = tx.update(params, tx.init(params))
        >>> f"{updates['w'].std():.1f}"  # 0.5 times the root of 4
        '1.0'

    Source: Neelakantan et al. 2015, arXiv:1511.06807. Departures: the paper writes $(1 + t)^\gamma$ with $t$ from 0.
    """
    return chain(add_noise(eta, gamma, seed), scale_by_learning_rate(lr))
