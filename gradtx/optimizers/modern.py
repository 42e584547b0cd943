"""AdamW with one link changed: LaProp, Grams, StableAdamW, AdamC, CAME, Adam-mini, AdaGC; and FTRL."""

from __future__ import annotations

from typing import Annotated

from gradtx.arguments import Decay, Decays, NonNegative, NonNegativeInt, Positive
from gradtx.base.exact import Scalar
from gradtx.optimizers.adam import with_decay
from gradtx.rules import alias
from gradtx.transform import chain
from gradtx.transforms.adagrad import scale_by_ftrl
from gradtx.transforms.adam import scale_by_adam, scale_by_adam_hat
from gradtx.transforms.adam_variants import scale_by_laprop, scale_by_stable_adam
from gradtx.transforms.clipping import clip_to_history
from gradtx.transforms.memory_efficient import (
    clip_by_block_rms,
    scale_by_block_adam,
    scale_by_confidence,
    scale_by_factored_rms,
)
from gradtx.transforms.scaling import scale_by_learning_rate
from gradtx.transforms.sign import take_signs_of_gradient
from gradtx.transforms.weight_decay import add_decayed_weights

__all__ = [
    "adagc",
    "adam_mini",
    "adamc",
    "came",
    "ftrl",
    "grams",
    "laprop",
    "stable_adamw",
]


@alias(class_name="LaProp")
def laprop(
    lr: NonNegative = 4e-4,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-15,
    weight_decay: NonNegative = 0.0,
    amsgrad: bool = False,
    centered: bool = False,
    fixed_decay: bool = False,
):
    r"""LaProp: the average of normalized gradients, where Adam normalizes the average.

    $m \leftarrow \beta_1 m + (1-\beta_1) g / (\sqrt{\hat v} + \epsilon)$,
    $p \leftarrow p (1 - \eta \lambda) - \eta \hat m$ with Adam's $\hat v$.

    When to use: instead of Adam if gradients vary widely in size or $\beta_2$ has to be small: steps stay bounded for
    any pair of betas, unlike Adam's.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step.
        betas: Decay rates of the two averages, each in [0, 1).
        eps: $\epsilon \ge 0$, added outside the square root.
        weight_decay: $\lambda \ge 0$, decoupled, multiplied by the learning rate.
        amsgrad: Use the running maximum of $v$.
        centered: From t = 11 on, subtract the square of the mean gradient from $v$.
        fixed_decay: Use $p (1 - \lambda)$, without the learning rate.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`,
        [`exp_mean_avg_beta2`], [`max_exp_avg_sq`].

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.laprop(lr=0.1)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for grad in (1.0, 1000.0):  # Adam's second step would be -0.0745
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        >>> updates["w"]
        tensor([-0.1218])

    Source: Ziyin et al. 2020, arXiv:2002.04839. Departures: see `scale_by_laprop`; the decay is subtracted from the
    weights before the step. pytorch_optimizer also adds eps to the root, and with amsgrad and centered takes the
    maximum of $v$ from the first step on.
    """
    return with_decay(
        scale_by_laprop(betas, eps, amsgrad, centered),
        weight_decay,
        True,
        lr,
        fixed_decay,
    )


@alias
def grams(
    lr: NonNegative = 1e-3,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-6,
    weight_decay: NonNegative = 0.0,
):
    r"""Grams: steps as long as Adam's, in the direction of the gradient's signs.

    $p \leftarrow p (1 - \eta \lambda) - \eta \, \mathrm{sign}(g) |\hat m| \sqrt{1-\beta_2^t} / (\sqrt v + \epsilon)$.

    When to use: instead of AdamW with caution (`scale_by_caution`), which it takes one step further; the paper reports
    faster convergence for language models. Use large batches, because the sign is that of a single batch.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step.
        betas: Decay rates of the two averages, each in [0, 1).
        eps: $\epsilon \ge 0$, added outside the square root, before its bias correction, in units of the gradient.
        weight_decay: $\lambda \ge 0$, decoupled, multiplied by the learning rate.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.grams(lr=0.1)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for grad in (1.0, -0.1):  # Adam would still move by -0.0593
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        >>> updates["w"]
        tensor([0.0593])

    Source: Cao et al. 2024, arXiv:2412.17107. Departures: none from the authors' code. pytorch_optimizer adds eps after
    the correction.
    """
    direction = chain(scale_by_adam_hat(betas, eps), take_signs_of_gradient())
    return with_decay(direction, weight_decay, True, lr)


@alias(class_name="StableAdamW")
def stable_adamw(
    lr: NonNegative = 1e-3,
    betas: Decays = (0.9, 0.99),
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 1e-2,
):
    r"""StableAdamW: AdamW with shorter steps where its second moment lags behind the gradient.

    $p \leftarrow p - \frac{\eta}{\max(1, r)} (\hat m / (\sqrt{\hat v} + \epsilon) + \lambda p)$ with
    $r = \sqrt{\mathrm{mean}(g^2 / \max(\hat v, \epsilon^2))}$ of each leaf.

    When to use: AdamW whose loss spikes, without gradient clipping; the paper reports no spikes in CLIP training.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step.
        betas: Decay rates of the two averages, each in [0, 1).
        eps: $\epsilon \ge 0$, added outside the square root.
        weight_decay: $\lambda \ge 0$, multiplied by the shortened rate.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.stable_adamw(lr=0.1, betas=(0.0, 0.99), weight_decay=0.0)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for grad in (1.0, 1.0, 100.0):  # Adam's last step would be -0.1723
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        >>> updates["w"]
        tensor([-0.1000])

    Source: Wortsman et al. 2023, arXiv:2304.13013. Departures: none from torch-optimi, whose default eps is 1e-6.
    """
    return chain(
        scale_by_stable_adam(betas, eps, weight_decay), scale_by_learning_rate(lr)
    )


@alias(class_name="AdamC")
def adamc(
    lr: NonNegative = 1e-3,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 1e-2,
    amsgrad: bool = False,
    max_lr: Positive | None = None,
):
    r"""AdamC: AdamW whose weight decay falls with the square of the learning rate.

    $p \leftarrow p (1 - \eta_t^2 \lambda / \eta_{max}) - \eta_t \hat m / (\sqrt{\hat v} + \epsilon)$. At a constant
    rate, it is AdamW.

    When to use: long runs with a decaying learning rate, in which the gradients of normalized layers grow toward the
    end; the paper corrects only the decay of these layers (`partition`).

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step.
        betas: Decay rates of the two averages, each in [0, 1).
        eps: $\epsilon \ge 0$, added outside the square root.
        weight_decay: $\lambda \ge 0$, multiplied by the learning rate and by its ratio to the largest rate.
        amsgrad: Use the running maximum of $v$.
        max_lr: $\eta_{max} > 0$, the peak of the schedule. None for the largest rate so far, which is the current one
            during a warm-up.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`, [`max_exp_avg_sq`];
        without `max_lr`, also `lr_max`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.adamc(
        ...     lr=gradtx.Schedule(lambda step: 0.1 * 0.5**step), weight_decay=1.0
        ... )
        >>> params = {"w": torch.ones(1)}
        >>> state = tx.init(params)
        >>> for _ in range(3):  # AdamW: 0.1, 0.05, 0.025
        ...     updates, state = tx.update({"w": torch.zeros(1)}, state, params)
        ...     print(updates["w"])
        tensor([-0.1000])
        tensor([-0.0250])
        tensor([-0.0063])

    Source: Defazio 2025, arXiv:2506.02285. Departures: without `max_lr`, the largest rate so far stands in for the
    peak. pytorch_optimizer uses the rate passed to the constructor, and corrects only groups that are marked
    `normalized`.
    """
    return chain(
        scale_by_adam(betas, eps, amsgrad),
        add_decayed_weights(weight_decay, corrected_by=lr, max_lr=max_lr),
        scale_by_learning_rate(lr),
    )


@alias(class_name="CAME")
def came(
    lr: NonNegative = 2e-4,
    betas: Decays = (0.9, 0.999, 0.9999),
    eps: tuple[Positive, Positive] = (1e-30, 1e-16),
    clip_threshold: Positive = 1.0,
    weight_decay: NonNegative = 0.0,
):
    r"""CAME: Adafactor with a momentum weighted by its agreement with updates.

    $x$ = `scale_by_factored_rms`$(g)$, clipped to a root mean square of `clip_threshold`,
    $p \leftarrow p (1 - \eta \lambda) - \eta u$ with $u$ = `scale_by_confidence`$(x)$.

    When to use: large models for which AdamW's second moment does not fit; the paper reports AdamW's quality with the
    memory of SGD with momentum.

    Args:
        lr: $\eta$ in [0, inf). The first $1/(1-\beta_3)$ steps are much longer than that.
        betas: Decay rates of the momentum, of the mean squares of gradients and of the residuals, each in [0, 1).
        eps: Added to the squares of gradients and of residuals, each above 0.
        clip_threshold: Largest root mean square of a leaf's $x$, > 0.
        weight_decay: $\lambda \ge 0$, decoupled, multiplied by the learning rate.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`; for leaves with two or more
        dimensions, `exp_avg_sq_row`, `exp_avg_sq_col`, `exp_avg_res_row`, `exp_avg_res_col`; for others, `exp_avg_sq`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.came(lr=0.1)  # a vector has a momentum only
        >>> tx.update({"w": torch.tensor([1e-3, -4.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([-0.0100,  0.0100])

    Source: Luo et al. 2023, arXiv:2307.02047. Departures: none from the authors' code.
    """
    beta1, beta2, beta3 = betas
    direction = chain(
        scale_by_factored_rms(eps=eps[0], beta=beta2),
        clip_by_block_rms(clip_threshold),
        scale_by_confidence(beta1, beta3, eps[1]),
    )
    return with_decay(direction, weight_decay, True, lr)


@alias
def adam_mini(
    lr: NonNegative = 1e-3,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    block: str | int = "row",
):
    r"""Adam-mini: AdamW with one second moment per block of weights.

    $v_b \leftarrow \beta_2 v_b + (1-\beta_2) \, \mathrm{mean}_b(g^2)$,
    $p \leftarrow p (1 - \eta \lambda) - \eta \hat m / (\sqrt{\hat v_b} + \epsilon)$.

    When to use: transformers, at half of AdamW's memory; the paper reports equal losses with AdamW's hyperparameters.
    Queries and keys need one block per head: use `partition`.

    Args:
        lr: $\eta$ in [0, inf), the root mean square change of the weights of a block per step.
        betas: Decay rates of the two averages, each in [0, 1).
        eps: $\epsilon \ge 0$, added outside the square root.
        weight_decay: $\lambda \ge 0$, decoupled, multiplied by the learning rate.
        block: "row": each index of dimension 0 (the leaf, if it has fewer than two dimensions); "tensor": the leaf; a
            number: that many equal blocks along dimension 0, such as heads.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `vmean`.

    Raises:
        TypeError: If `block` is neither a name nor a number.
        ValueError: If a hyperparameter is out of range, if the name of a block is unknown, if the number of blocks does
            not divide dimension 0 of a leaf, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.adam_mini(lr=0.1)
        >>> updates, _ = tx.update(
        ...     {"w": torch.tensor([[1.0, 7.0], [10.0, 70.0]])},
        ...     tx.init({"w": torch.zeros(2, 2)}),
        ... )
        >>> updates["w"]
        tensor([[-0.0200, -0.1400],
                [-0.0200, -0.1400]])

    Source: Zhang et al. 2024, arXiv:2406.16793. Departures: see `scale_by_block_adam`.
    """
    return with_decay(scale_by_block_adam(betas, eps, block), weight_decay, True, lr)


@alias(class_name="AdaGC")
def adagc(
    lr: NonNegative = 1e-3,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    beta: Decay = 0.98,
    lambda_abs: Positive = 1.0,
    lambda_rel: Positive = 1.05,
    warmup_steps: NonNegativeInt = 100,
):
    r"""AdaGC: AdamW on gradients whose norms are bounded by their history, leaf by leaf.

    AdamW after `clip_to_history`.

    When to use: language models whose loss spikes although the global norm is clipped; the paper reports no spikes.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step.
        betas: Decay rates of AdamW's two averages, each in [0, 1).
        eps: $\epsilon \ge 0$, added outside the square root, and in the clipping.
        weight_decay: $\lambda \ge 0$, decoupled, multiplied by the learning rate.
        beta: Decay rate of the average norm, in [0, 1).
        lambda_abs: Bound of the norm over all leaves during the warm-up, > 0.
        lambda_rel: Bound of a leaf's norm relative to its average, > 0.
        warmup_steps: Before this step, >= 0, the bound is absolute.

    Returns:
        A transformation whose updates are added to the parameters. State: `gamma`, `exp_avg`, `exp_avg_sq`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> # the first gradient is shortened to 1 over 1 + eps
        >>> tx = gradtx.adagc(lr=0.1, eps=1.0)
        >>> tx.update({"w": torch.tensor([1e6])}, tx.init({"w": torch.zeros(1)}))[0]["w"]
        tensor([-0.0500])

    Source: Wang et al. 2025, arXiv:2502.11034. Departures: none from pytorch_optimizer, which takes the norm over all
    leaves in float32.
    """
    clipping = clip_to_history(lambda_rel, lambda_abs, beta, warmup_steps, eps)
    return chain(
        clipping, with_decay(scale_by_adam(betas, eps), weight_decay, True, lr)
    )


@alias(class_name="FTRL")
def ftrl(
    lr: Positive = 1e-3,
    lr_power: Annotated[Scalar, "(-inf, 0]"] = -0.5,
    beta: NonNegative = 0.0,
    l1: NonNegative = 0.0,
    l2: NonNegative = 0.0,
    initial_accumulator_value: NonNegative = 0.0,
):
    r"""FTRL-Proximal: one rate per weight, and weights that are exactly 0.

    Equivalent to `scale_by_ftrl`, whose updates are final: no learning rate may follow.

    When to use: sparse linear models and embeddings of rare features, trained online. Weights should start at 0: a
    weight whose gradient has always been 0 becomes 0.

    Args:
        lr: $\eta > 0$.
        lr_power: At most 0; rates fall with this power of the sum of squares.
        beta: $\beta \ge 0$, smooths the first rates.
        l1: $\lambda_1 \ge 0$; makes weights exactly 0.
        l2: $\lambda_2 \ge 0$.
        initial_accumulator_value: Initial value of the sum of squares, >= 0.

    Returns:
        A transformation whose updates are added to the parameters. State: `z`, `n`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing.

    Example:
        >>> tx = gradtx.ftrl(lr=1.0, l1=1.0)
        >>> params = {"w": torch.zeros(2)}
        >>> tx.update({"w": torch.tensor([0.5, -3.0])}, tx.init(params), params)[0]["w"]
        tensor([0.0000, 0.6667])

    Source: McMahan et al. 2013, "Ad click prediction: a view from the trenches", KDD. Departures: none; Keras doubles
    `l2`, and pytorch_optimizer takes the square root of the sum for any `lr_power`.
    """
    return scale_by_ftrl(lr, lr_power, beta, l1, l2, initial_accumulator_value)
