"""Adam with a long memory of gradients: AdEMAMix, its simplified form, Grokfast."""

from __future__ import annotations

from gradtx.arguments import Decay, Decays, NonNegative, NonNegativeInt
from gradtx.optimizers.adam import with_decay
from gradtx.rules import alias
from gradtx.schedules.half_life import ademamix_alpha_schedule, half_life_schedule
from gradtx.transform import chain
from gradtx.transforms.adam import scale_by_adam
from gradtx.transforms.adam_variants import (
    scale_by_ademamix,
    scale_by_simplified_ademamix,
)
from gradtx.transforms.momentum import amplify_slow_gradients

__all__ = ["ademamix", "grokfast_adamw", "simplified_ademamix"]


@alias(class_name="AdEMAMix")
def ademamix(
    lr: NonNegative = 1e-3,
    betas: Decays = (0.9, 0.999, 0.9999),
    alpha: NonNegative = 2.0,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
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

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

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
    lr: NonNegative = 1e-3,
    betas: Decays = (0.99, 0.95),
    alpha: NonNegative = 0.0,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    min_beta1: Decay = 0.9,
    beta1_warmup: NonNegativeInt | None = None,
    bias_correction1: bool = False,
    bias_correction2: bool = True,
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

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

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


@alias(class_name="GrokFastAdamW")
def grokfast_adamw(
    lr: NonNegative = 1e-3,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 1e-2,
    alpha: Decay = 0.98,
    lamb: NonNegative = 2.0,
):
    r"""Grokfast: AdamW on gradients with an amplified slow component.

    $e \leftarrow \alpha e + (1-\alpha) g$, then AdamW with $g + \lambda e$ instead of $g$.

    When to use: small models on algorithmic data, where the test loss falls long after the training loss (grokking);
    the paper reports up to 50 times fewer steps there. For a filter other than the EMA, use
    `amplify_slow_gradients_window` in a chain before any optimizer.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step.
        betas: Decay rates of the two averages, each in [0, 1).
        eps: $\epsilon \ge 0$, added outside the square root.
        weight_decay: Decoupled weight decay, >= 0, multiplied by the learning rate.
        alpha: $\alpha$ in [0, 1), the decay rate of the average of gradients.
        lamb: $\lambda \ge 0$, the weight of that average.

    Returns:
        A transformation whose updates are added to the parameters. State: `grad_ema`, `exp_avg`, `exp_avg_sq`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.grokfast_adamw(lr=0.1, eps=3.0)  # the first gradient counts three times
        >>> params = {"w": torch.zeros(1)}
        >>> tx.update({"w": torch.tensor([1.0])}, tx.init(params), params)[0]["w"]
        tensor([-0.0500])

    Source: Lee et al. 2024, arXiv:2405.20233. Departures: none from the authors' filter before AdamW.
    pytorch_optimizer's GrokFastAdamW divides the rate by $1 + \lambda$.
    """
    return chain(
        amplify_slow_gradients(alpha, lamb),
        with_decay(scale_by_adam(betas, eps), weight_decay, True, lr),
    )
