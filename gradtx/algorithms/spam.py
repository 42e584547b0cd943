"""SPAM: AdamW that clips spikes of the gradient and resets its averages periodically. Also `stable_spam`."""

from __future__ import annotations

from gradtx.algorithms.adam import scale_by_adam
from gradtx.arguments import (
    Count,
    Decay,
    Decays,
    Fraction,
    NonNegativeInt,
    Positive,
    Scalar,
)
from gradtx.base.exact import Schedule
from gradtx.combinators.clocks import restart
from gradtx.links.clipping import (
    clip_rare_spikes,
    clip_to_peak_history,
    normalize_by_norm_history,
)
from gradtx.links.decay import with_decay
from gradtx.links.scaling import scale
from gradtx.maths.entries import adam_moments, hat_rate, safe_sqrt
from gradtx.rules import alias, per_tensor
from gradtx.schedules.warmup import restart_warmup_schedule, warmup_cosine_schedule
from gradtx.slots import linear
from gradtx.transform import chain

__all__ = ["scale_by_spam", "spam", "stable_spam"]


@per_tensor(elementwise=True, length="sets")
def scale_by_spam(
    betas=(0.9, 0.999),
    eps=1e-6,
    threshold: Positive = 5000.0,
    clip_after: NonNegativeInt = 20,
    every: Count = 500,
):
    r"""Clip spikes using Adam's own average of squares: SPAM's direction.

    Equivalent to `clip_spikes` with the same $\beta_2$ before `scale_by_adam_hat`, with one $v$ for both.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$, outside the root and before its bias correction, in the units of a gradient.
        threshold: $\theta > 0$: entries with $g^2 > \theta v$ are clipped.
        clip_after: $c \ge 0$, number of steps after a restart without clipping. Use at least 2: where $v$ is still 0,
            the gradient is clipped to 0, as are all later ones.
        every: $N \ge 1$, the number of steps between restarts.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_sq`, shaped as the parameter.

    Example:
        >>> tx = gradtx.scale_by_spam(betas=(0.0, 0.75), threshold=4.0, clip_after=2)
        >>> state = tx.init({"w": torch.zeros(2)})
        >>> for grad in ([2.0, 2.0], [1.0, -9.0]):  # -9 is clipped to -2
        ...     updates, state = tx.update({"w": torch.tensor(grad)}, state)
        ...     print(updates["w"])
        tensor([1.0000, 1.0000])
        tensor([ 0.6614, -1.0000])

    Source: Huang et al. 2025, arXiv:2501.06842. Departures: none.
    """
    moments, average = adam_moments(betas)

    def update(g, state, p, ctx):
        g = clip_rare_spikes(g, state["exp_avg_sq"], ctx, threshold, clip_after, every)
        m, v, new_state = average(g, state)
        return hat_rate(safe_sqrt(v) + eps, ctx, betas) * m, new_state

    return {**moments, "exp_avg": linear()}, update


@per_tensor
def stable_spam_direction(
    beta1: Decay,
    gamma1: Decay,
    beta2: Decay,
    gamma2: Scalar,
    eps,
    theta: Scalar,
    every: Count,
):
    """Chain Stable-SPAM's links, with `beta1` and `gamma1` of the step of the whole run, even inside the restart."""
    return chain(
        clip_to_peak_history(theta),
        normalize_by_norm_history((gamma1, gamma2), eps),
        restart(scale_by_adam((beta1, beta2), eps), every),
    )


def _times(number: Scalar, share: Schedule) -> Schedule:
    """Return `number` times a schedule that counts steps from 1."""
    return Schedule(lambda step: number * share(step + 1))


@alias(class_name="SPAM")
def spam(
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-6,
    weight_decay=0.0,
    threshold: Positive = 5000.0,
    clip_after: NonNegativeInt = 20,
    every: Count = 500,
    warmup_steps: NonNegativeInt = 150,
):
    r"""SPAM: AdamW that clips spikes of the gradient and resets its averages periodically.

    `scale_by_spam` in `restart`, whose clock keeps running, and after each restart a warm-up that does not affect the
    decay (`restart_warmup_schedule`).

    When to use: language models whose loss spikes; the paper reports lower losses than AdamW's, in low precision as
    well.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step.
        betas: Decay rates of the two averages, each in [0, 1).
        eps: $\epsilon \ge 0$, added outside the square root, before its bias correction, in units of the gradient.
        weight_decay: $\lambda \ge 0$, decoupled, multiplied by the learning rate.
        threshold: $\theta > 0$: entries with $g^2 > \theta v$ are clipped.
        clip_after: Number of steps at the start, and after a restart, without clipping, >= 0; below 2, gradients are
            clipped to 0 indefinitely.
        every: Number of steps between restarts, >= 1.
        warmup_steps: Number of warm-up steps after a restart, >= 0.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`.

    Example:
        >>> tx = gradtx.spam(lr=0.1, every=3, warmup_steps=2)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> # at the third step the averages start again, at a hundredth of the rate
        >>> for _ in range(4):
        ...     updates, state = tx.update({"w": torch.ones(1)}, state)
        ...     print(updates["w"])
        tensor([-0.1000])
        tensor([-0.1000])
        tensor([-0.0006])
        tensor([-0.0201])

    Source: Huang et al. 2025, arXiv:2501.06842. Departures: the decay is subtracted from the weights before the step;
    all entries are trained (no `density`). pytorch_optimizer's warm-up is one step ahead, and wrong from the second
    restart on.
    """
    direction = restart(
        scale_by_spam(betas, eps, threshold, clip_after, every), every, keep_clock=True
    )
    warmup = scale(restart_warmup_schedule(1.0, every, warmup_steps))
    return with_decay(chain(direction, warmup), weight_decay, True, lr)


@alias(class_name="StableSPAM")
def stable_spam(
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0.0,
    gammas: Decays = (0.7, 0.9),
    theta: Decay = 0.999,
    every: Count = 1000,
    total_steps: Count | None = None,
    eta_min: Fraction = 0.5,
):
    r"""Stable-SPAM: AdamW on gradients bounded by their history, restarted periodically.

    `clip_to_peak_history`, `normalize_by_norm_history`, then Adam in `restart`, with its own clock; the decay is
    decoupled.

    When to use: training in 4 or 8 bits, where single entries and whole norms of gradients spike; the paper reports the
    results of AdamW in 16 bits.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step.
        betas: Decay rates of Adam's two averages, each in [0, 1).
        eps: $\epsilon \ge 0$, added outside the square root, and in the normalization.
        weight_decay: $\lambda \ge 0$, decoupled, multiplied by the learning rate.
        gammas: Decay rates of the averages of norms and of their squares, each in [0, 1).
        theta: Decay rate of the average of the largest entry, in [0, 1).
        every: Number of steps between restarts of Adam, >= 1.
        total_steps: $T \ge 1$: $\beta_1$ and $\gamma_1$ fall as half a cosine, to `eta_min` times their values at
            $t = T + 1$. None keeps them constant.
        eta_min: Final fraction of these values, in [0, 1]; read only with `total_steps`.

    Returns:
        A transformation whose updates are added to the parameters. State: per leaf, `max_avg`, `norm_avg` and
        `norm_sq_avg`, 0-d; `exp_avg`, `exp_avg_sq` with their own `step` and `leaf_steps`.

    Example:
        >>> tx = gradtx.stable_spam(lr=0.1)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for grad in (1.0, 1000.0):  # Adam's second step would be -0.0745
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     print(updates["w"])
        tensor([-0.1000])
        tensor([-0.0989])

    Source: Huang et al. 2025, arXiv:2502.17055. Departures: averages of norms keep the step count of the whole run, and
    at a restart Adam steps with new averages, as in pytorch_optimizer; the authors' code does neither. The cosine is
    that of the paper; pytorch_optimizer's is one step ahead.
    """
    (beta1, beta2), (gamma1, gamma2) = betas, gammas
    if total_steps is not None:
        share = warmup_cosine_schedule(total_steps + 1, 1.0, eta_min)
        beta1, gamma1 = _times(beta1, share), _times(gamma1, share)
    direction = stable_spam_direction(beta1, gamma1, beta2, gamma2, eps, theta, every)
    return with_decay(direction, weight_decay, True, lr)
