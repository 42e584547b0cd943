"""AdEMAMix: AdamW with a second average of gradients that remembers thousands of steps. Also `simplified_ademamix`."""

from __future__ import annotations

from gradtx.arguments import Decay, NonNegative, NonNegativeInt
from gradtx.links.decay import with_decay
from gradtx.maths.entries import (
    adam_moments,
    corrected_root,
    fading_moments,
    running_mean,
    safe_sqrt,
)
from gradtx.rules import alias, per_tensor
from gradtx.schedules.special import ademamix_alpha_schedule, half_life_schedule
from gradtx.slots import linear, scalar

__all__ = [
    "ademamix",
    "scale_by_ademamix",
    "scale_by_simplified_ademamix",
    "simplified_ademamix",
]


@per_tensor(elementwise=True, length="sets")
def scale_by_ademamix(
    betas=(0.9, 0.999, 0.9999),
    alpha: NonNegative = 2.0,
    eps=1e-8,
):
    r"""Add a slow average of gradients to Adam's mean: AdEMAMix's direction.

    Adam's $m_t$, $v_t$ and $l_t = \beta_3 l_{t-1} + (1-\beta_3) g_t$, which is not bias-corrected; direction
    $(\hat m_t + \alpha l_t) / (\sqrt{\hat v_t} + \epsilon)$.

    Args:
        betas: $(\beta_1, \beta_2, \beta_3)$, each in [0, 1). To warm up $\beta_3$, pass `half_life_schedule`.
        alpha: $\alpha \ge 0$, weight of the slow average; to warm it up, pass `ademamix_alpha_schedule`.
        eps: $\epsilon \ge 0$, outside the root.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_slow`, `exp_avg_sq`, shaped as the
        parameter.

    Example:
        >>> tx = gradtx.scale_by_ademamix(betas=(0.0, 0.0, 0.5), alpha=1.0)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> # the slow average remembers the earlier direction
        >>> for grad in (1.0, 1.0, 1.0, -1.0):
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     print(updates["w"])
        tensor([1.5000])
        tensor([1.7500])
        tensor([1.8750])
        tensor([-1.0625])

    Source: Pagliardini et al. 2024, arXiv:2409.03137. Departures: none.
    """
    beta1, beta2, beta3 = betas
    moments, average = adam_moments((beta1, beta2))

    def update(g, state, p, ctx):
        m, v, new_state = average(g, state)
        slow = new_state["exp_avg_slow"] = running_mean(state["exp_avg_slow"], g, beta3)
        root = corrected_root(v, ctx, beta2) + eps
        return (m / ctx.bias_correction(beta1) + alpha * slow) / root, new_state

    return {**moments, "exp_avg_slow": linear(slow=True, decay=beta3)}, update


@per_tensor(elementwise=True, length="sets")
def scale_by_simplified_ademamix(
    betas=(0.99, 0.95),
    alpha: NonNegative = 0.0,
    eps=1e-8,
    bias_correction1=False,
    bias_correction2=True,
):
    r"""Divide a sum of gradients, with extra weight on the newest, by their root mean square: simplified AdEMAMix.

    $m_t = \beta_1 m_{t-1} + g_t$, $n_t = \beta_1 n_{t-1} + 1$, $v_t$ as in Adam; direction
    $(\alpha g_t + m_t) / (\sqrt{\hat v_t} + \epsilon)$, divided by $n_t$ with `bias_correction1`. Otherwise it grows to
    $1/(1-\beta_1)$ times Adam's.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1). To warm up $\beta_1$, pass `half_life_schedule`.
        alpha: $\alpha \ge 0$, additional weight of the newest gradient.
        eps: $\epsilon \ge 0$, outside the root.
        bias_correction1: Divide by $n_t$, the sum of the weights in $m_t$; this includes the term with $\alpha$.
        bias_correction2: False divides the direction by $\sqrt{1-\beta_2^t}$, which cancels the correction of $v$.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_sq`, shaped as the parameter, and
        `num_sum` ($n$), 0-d float64 for each leaf.

    Example:
        >>> tx = gradtx.scale_by_simplified_ademamix(betas=(0.5, 0.9), alpha=1.0)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for grad in (1.0, 1.0, -1.0):  # m is 1, 1.5, -0.25
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     print(updates["w"])
        tensor([2.])
        tensor([2.5000])
        tensor([-1.2500])

    Source: Morwani et al. 2025, arXiv:2502.02431. Departures: none. pytorch_optimizer 4.1.0 has a different rule, with
    $1-\beta_1$ as a factor of $g_t$ and $v$ corrected twice.
    """
    beta1, beta2 = betas

    def update(g, state, p, ctx):
        total, weight = beta1 * state["exp_avg"] + g, beta1 * state["num_sum"] + 1
        v = running_mean(state["exp_avg_sq"], g.square(), beta2)
        root = ctx.bias_correction(beta2).sqrt()
        direction = (alpha * g + total) / (safe_sqrt(v) / root + eps)
        if bias_correction1:
            direction = direction / weight
        if not bias_correction2:
            direction = direction / root
        return direction, {"exp_avg": total, "exp_avg_sq": v, "num_sum": weight}

    return {**fading_moments(betas), "num_sum": scalar()}, update


@alias(class_name="AdEMAMix")
def ademamix(
    lr=1e-3,
    betas=(0.9, 0.999, 0.9999),
    alpha: NonNegative = 2.0,
    eps=1e-8,
    weight_decay=0.0,
    alpha_warmup: NonNegativeInt | None = None,
    beta3_warmup: NonNegativeInt | None = None,
):
    r"""AdEMAMix: AdamW with a second average of gradients that remembers thousands of steps.

    $l \leftarrow \beta_3 l + (1-\beta_3) g$,
    $p \leftarrow p (1 - \eta \lambda) - \eta (\hat m + \alpha l) / (\sqrt{\hat v} + \epsilon)$ with Adam's $\hat m$ and
    $\hat v$.

    When to use: long runs, in which AdamW forgets gradients that would still help; the paper reports AdamW's loss with
    about half of the tokens. Needs one more float per weight. Set both warm-ups to the length of the run, because a
    slow average at full weight makes the first steps unstable.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step, up to $1 + \alpha$ times that where
            gradients agree.
        betas: Decay rates of the mean, of the mean square and of the slow average, each in [0, 1).
        alpha: $\alpha \ge 0$, the weight of the slow average.
        eps: $\epsilon \ge 0$, added outside the square root.
        weight_decay: $\lambda \ge 0$, multiplied by the learning rate.
        alpha_warmup: Number of steps over which $\alpha$ rises from 0, >= 0 (`ademamix_alpha_schedule`); None for no
            warm-up.
        beta3_warmup: Number of steps over which $\beta_3$ rises from $\beta_1$, >= 0 (`half_life_schedule`); None for
            no warm-up.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_slow`, `exp_avg_sq`.

    Example:
        >>> # the slow average holds half of the first gradient
        >>> tx = gradtx.ademamix(lr=0.1, betas=(0.9, 0.999, 0.5))
        >>> tx.update({"w": torch.tensor([1e-3, -4.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([-0.2000,  0.2000])

    Source: Pagliardini et al. 2024, arXiv:2409.03137. Departures: none from the authors' code. The default in optax and
    pytorch_optimizer is alpha = 5, and pytorch_optimizer has a single length for both warm-ups.
    """
    beta1, beta2, beta3 = betas
    if alpha_warmup is not None:
        alpha = ademamix_alpha_schedule(alpha, alpha_warmup)
    if beta3_warmup is not None:
        beta3 = half_life_schedule(beta3, beta3_warmup, beta1)
    return with_decay(
        scale_by_ademamix((beta1, beta2, beta3), alpha, eps), weight_decay, True, lr
    )


@alias(class_name="SimplifiedAdEMAMix")
def simplified_ademamix(
    lr=1e-3,
    betas=(0.99, 0.95),
    alpha: NonNegative = 0.0,
    eps=1e-8,
    weight_decay=0.0,
    min_beta1: Decay = 0.9,
    beta1_warmup: NonNegativeInt | None = None,
    bias_correction1=False,
    bias_correction2=True,
):
    r"""Simplified AdEMAMix: AdamW with one long sum of gradients, and extra weight on the newest.

    $m \leftarrow \beta_1 m + g$,
    $p \leftarrow p (1 - \eta \lambda) - \eta (\alpha g + m) / (\sqrt{\hat v} + \epsilon)$.

    When to use: AdEMAMix with AdamW's memory; the paper reports equal results for small batches with $\alpha$ up to
    100, and for large ones with 0. Use a learning rate about $1/(1-\beta_1)$ times smaller than AdamW's.

    Args:
        lr: $\eta$ in [0, inf). Each weight changes by up to $\eta (\alpha + 1/(1-\beta_1))$ per step.
        betas: Decay rates of the sum and of the mean square, each in [0, 1).
        alpha: $\alpha \ge 0$, the extra weight of the newest gradient.
        eps: $\epsilon \ge 0$, added outside the square root.
        weight_decay: $\lambda \ge 0$, multiplied by the learning rate.
        min_beta1: Initial value of $\beta_1$, in [0, 1); read only with `beta1_warmup`.
        beta1_warmup: Number of steps over which $\beta_1$ rises, >= 0 (`half_life_schedule`); None keeps it constant.
        bias_correction1: Divide by the sum of the weights in $m$, which makes the steps as long as AdamW's.
        bias_correction2: If False, divide the direction by $\sqrt{1-\beta_2^t}$.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`, `num_sum`.

    Example:
        >>> tx = gradtx.simplified_ademamix(lr=0.01, alpha=9.0)
        >>> tx.update({"w": torch.tensor([1e-3, -4.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([-0.1000,  0.1000])

    Source: Morwani et al. 2025, arXiv:2502.02431. Departures: none from the authors' code, and none from optax at
    these defaults. pytorch_optimizer 4.1.0 has another rule, see `scale_by_simplified_ademamix`.
    """
    beta1, beta2 = betas
    if beta1_warmup is not None:
        beta1 = half_life_schedule(beta1, beta1_warmup, min_beta1)
    direction = scale_by_simplified_ademamix(
        (beta1, beta2), alpha, eps, bias_correction1, bias_correction2
    )
    return with_decay(direction, weight_decay, True, lr)
