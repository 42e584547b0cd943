"""More methods without a learning rate to choose: distance (DoG, L-DoG, DoWG), bets (COCOB), loss (MoMo, MoMo-Adam)."""

from __future__ import annotations

from gradtx.arguments import Decay, Decays, NonNegative, Positive
from gradtx.base.exact import Scalar
from gradtx.rules import alias
from gradtx.transform import chain
from gradtx.transforms.parameter_free import (
    scale_by_cocob,
    scale_by_dog,
    scale_by_dowg,
    scale_by_ldog,
    scale_by_momo,
    scale_by_momo_adam,
)
from gradtx.transforms.scaling import scale_by_learning_rate
from gradtx.transforms.weight_decay import add_decayed_weights

__all__ = ["cocob", "dog", "dowg", "ldog", "momo", "momo_adam"]


@alias(class_name="DoG")
def dog(
    lr: NonNegative = 1.0,
    reps_rel: Positive = 1e-6,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    init_eta: NonNegative | None = None,
):
    r"""DoG: SGD whose rate is the distance from the initial weights over the norm of all gradients.

    $p \leftarrow p - \eta g r / \sqrt G$ with the largest distance $r$ from the initial weights and the sum $G$ of all
    squared gradients, over the whole tree; see `scale_by_dog`.

    When to use: SGD when no rate is known. As the authors do, evaluate an average of the weights (with `average` after
    it).

    Args:
        lr: $\eta \ge 0$, a multiplier of the estimated rate; usually 1.
        reps_rel: Length of the first step relative to the weights, > 0.
        eps: $\epsilon \ge 0$, the initial value of $G$.
        weight_decay: $\lambda \ge 0$, added to the gradient.
        init_eta: Initial rate, >= 0, instead of an initial step length.

    Returns:
        A transformation whose updates are added to the parameters. State: `param_init`; shared by all leaves, 0-d:
        `max_dist`, `sum_sq`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing.

    Example:
        >>> tx = gradtx.dog(reps_rel=0.1)
        >>> params = {"w": torch.tensor([9.0, 0.0])}
        >>> # 0.1 (1 + 9) long
        >>> tx.update({"w": torch.tensor([0.3, -0.4])}, tx.init(params), params)[0]["w"]
        tensor([-0.6000,  0.8000])

    Source: Ivgi, Hinder and Carmon 2023, arXiv:2302.12022. Departures: see `scale_by_dog`.
    """
    return chain(
        add_decayed_weights(weight_decay),
        scale_by_dog(reps_rel, eps, init_eta),
        scale_by_learning_rate(lr),
    )


@alias(class_name="LDoG")
def ldog(
    lr: NonNegative = 1.0,
    reps_rel: Positive = 1e-6,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    init_eta: NonNegative | None = None,
):
    r"""L-DoG: DoG with a separate rate for every leaf.

    $p \leftarrow p - \eta g r / \sqrt G$ with the largest distance $r$ from the initial weights and the sum $G$ of all
    squared gradients, leaf by leaf; see `scale_by_ldog`.

    When to use: like `dog`, if leaves differ widely in scale; the authors prefer it for fine-tuning transformers.

    Args:
        lr: $\eta \ge 0$, a multiplier of the estimated rate; usually 1.
        reps_rel: Length of the first step of a leaf relative to its weights, > 0.
        eps: $\epsilon \ge 0$, the initial value of $G$.
        weight_decay: $\lambda \ge 0$, added to the gradient.
        init_eta: Initial rate, >= 0, instead of an initial step length.

    Returns:
        A transformation whose updates are added to the parameters. State: `param_init`, and per leaf `max_dist` and
        `sum_sq`, 0-d float64.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing.

    Example:
        >>> tx = gradtx.ldog(reps_rel=0.1)
        >>> params = {"a": torch.tensor([9.0]), "b": torch.tensor([0.0])}
        >>> updates, _ = tx.update(
        ...     {"a": torch.tensor([3.0]), "b": torch.tensor([-3.0])}, tx.init(params), params
        ... )
        >>> updates
        {'a': tensor([-1.]), 'b': tensor([0.1000])}

    Source: Ivgi, Hinder and Carmon 2023, arXiv:2302.12022. Departures: see `scale_by_ldog`.
    """
    return chain(
        add_decayed_weights(weight_decay),
        scale_by_ldog(reps_rel, eps, init_eta),
        scale_by_learning_rate(lr),
    )


@alias(class_name="DoWG")
def dowg(
    lr: NonNegative = 1.0,
    eps: Positive = 1e-4,
    init_estim_sq_dist: Positive | None = None,
    weight_decay: NonNegative = 0.0,
):
    r"""DoWG: SGD whose rate is the squared distance from the initial weights over a weighted norm of gradients.

    $p \leftarrow p - \eta g r^2 / (\sqrt w + \epsilon)$ with the largest distance $r$ from the initial weights and
    $w = \sum r^2 \lVert g \rVert^2$, over the whole tree; see `scale_by_dowg`.

    When to use: like `dog`; its final weights need no average (the paper's claim).

    Args:
        lr: $\eta \ge 0$, a multiplier of the estimated rate; usually 1.
        eps: $\epsilon > 0$, added to the square root, and the initial value of $r^2$.
        init_estim_sq_dist: Initial value of $r^2$, > 0; None for $\epsilon$.
        weight_decay: $\lambda \ge 0$, added to the gradient.

    Returns:
        A transformation whose updates are added to the parameters. State: `param_init`; shared by all leaves, 0-d:
        `estim_sq_dist`, `weighted_sq_norm`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing.

    Example:
        >>> tx = gradtx.dowg(init_estim_sq_dist=4.0)  # a first step of about 2
        >>> params = {"w": torch.tensor([0.0, 0.0])}
        >>> tx.update({"w": torch.tensor([30.0, 40.0])}, tx.init(params), params)[0]["w"]
        tensor([-1.2000, -1.6000])

    Source: Khaled, Mishchenko and Jin 2023, arXiv:2305.16284. Departures: none. (The package `dowg` is a different
    method.)
    """
    return chain(
        add_decayed_weights(weight_decay),
        scale_by_dowg(eps, init_estim_sq_dist),
        scale_by_learning_rate(lr),
    )


@alias(class_name="COCOB")
def cocob(
    alpha: NonNegative = 100.0, eps: NonNegative = 1e-8, weight_decay: NonNegative = 0.0
):
    r"""COCOB-Backprop: a step size per weight from bets on its gradients, without a learning rate.

    $p \leftarrow p_0 + \theta (L + R) / (L \max(A + L, \alpha L))$, entry by entry, with the sum $-\theta$ of the
    gradients, the largest of their magnitudes $L$, the sum $A$ of their magnitudes and the reward $R$ won so far; see
    `scale_by_cocob`.

    When to use: when no rate is known and gradients are noisy; weights move away from their initial values only slowly.

    Args:
        alpha: $\alpha \ge 0$: the length of the first steps is about $1 / \alpha$.
        eps: $\epsilon \ge 0$, the initial value of the largest gradient of each weight.
        weight_decay: $\lambda \ge 0$, added to the gradient.

    Returns:
        A transformation whose updates are added to the parameters. State: `param_init`, `scale`, `abs_sum`, `reward`,
        `grad_sum`.

    Raises:
        ValueError: If a hyperparameter is negative, or if `params` is missing.

    Example:
        >>> tx = gradtx.cocob(alpha=10.0)
        >>> params = {"w": torch.tensor([1.0])}
        >>> state = tx.init(params)
        >>> for _ in range(4):  # a constant gradient: steps grow with the reward
        ...     updates, state = tx.update({"w": torch.tensor([1.0])}, state, params)
        ...     params = gradtx.apply_updates(params, updates)
        ...     print(updates["w"])
        tensor([-0.1000])
        tensor([-0.1200])
        tensor([-0.1760])
        tensor([-0.2904])

    Source: Orabona and Tommasi 2017, arXiv:1705.07795. Departures: none; optax puts a learning rate before it.
    """
    return chain(add_decayed_weights(weight_decay), scale_by_cocob(alpha, eps))


@alias(class_name="MoMo")
def momo(
    lr: NonNegative = 1.0,
    beta: Decay = 0.9,
    weight_decay: NonNegative = 0.0,
    lb: Scalar = 0.0,
    bias_correction: bool = False,
    use_fstar: bool = False,
):
    r"""MoMo: SGD with momentum whose rate follows the value of the loss.

    $p \leftarrow (p - \tau d) / (1 + \eta \lambda)$ along the mean gradient $d$, where $\tau$ is at most $\eta$ and
    takes an averaged linear model of the loss no further than to its lower bound; see `scale_by_momo`.

    When to use: SGD with momentum at a rate that may be too large, if the loss has a known lower bound such as 0.
    Updates need the extra `value`; an optimizer takes it from the closure.

    Args:
        lr: $\eta \ge 0$, the largest rate.
        beta: $\beta$ in [0, 1), the decay rate of all averages.
        weight_decay: $\lambda \ge 0$, applied as a proximal step.
        lb: A lower bound of the loss.
        bias_correction: Start the averages at 0 and divide by $1 - \beta^t$.
        use_fstar: Learn the lower bound, starting from `lb`.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`; shared by all leaves, 0-d:
        `loss_avg`, `dot_avg` and, with `use_fstar`, `lb`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` or `value` is missing.

    Example:
        >>> tx = gradtx.momo(lr=100.0)
        >>> params = {"w": torch.tensor([8.0])}
        >>> # the loss is w^2: a rate of 0.25, and less for a higher bound
        >>> for lb in (0.0, 16.0):
        ...     tx = gradtx.momo(lr=100.0, lb=lb)
        ...     tx.update({"w": 2 * params["w"]}, tx.init(params), params, value=64.0)[0]["w"]
        tensor([-4.])
        tensor([-3.])

    Source: Schaipp et al. 2023, arXiv:2305.07583. Departures: see `scale_by_momo`. (optax divides only the decay by
    $1 + \eta\lambda$.)
    """
    return scale_by_momo(lr, beta, weight_decay, lb, bias_correction, use_fstar)


@alias(class_name="MoMoAdam")
def momo_adam(
    lr: NonNegative = 1e-2,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    lb: Scalar = 0.0,
    proximal_decay: bool = True,
    use_fstar: bool = False,
):
    r"""MoMo-Adam: Adam whose rate follows the value of the loss.

    $p \leftarrow (p - \tau d / D) / (1 + \eta \lambda)$ with Adam's mean gradient $d$ and denominator $D$, where $\tau$
    is at most $\eta / (1-\beta_1^t)$ and takes an averaged linear model of the loss no further than to its lower bound;
    see `scale_by_momo_adam`.

    When to use: Adam at a rate that may be too large, if the loss has a known lower bound such as 0. Updates need the
    extra `value`; an optimizer takes it from the closure.

    Args:
        lr: $\eta \ge 0$, the largest rate.
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$.
        weight_decay: $\lambda \ge 0$.
        lb: A lower bound of the loss.
        proximal_decay: If False, use a decay of $p (1 - \eta \lambda)$, as AdamW does.
        use_fstar: Learn the lower bound, starting from `lb`.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`; shared by all
        leaves, 0-d: `loss_avg`, `dot_avg` and, with `use_fstar`, `lb`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` or `value` is missing.

    Example:
        >>> tx = gradtx.momo_adam(lr=100.0)
        >>> params = {"w": torch.tensor([8.0])}
        >>> # the loss is w^2
        >>> tx.update({"w": 2 * params["w"]}, tx.init(params), params, value=64.0)[0]["w"]
        tensor([-4.])

    Source: Schaipp et al. 2023, arXiv:2305.07583. Departures: see `scale_by_momo_adam`.
    """
    return scale_by_momo_adam(
        lr, betas, eps, weight_decay, lb, proximal_decay, use_fstar
    )
