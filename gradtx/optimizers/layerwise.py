"""Layer-wise rates: LAMB, LARS, NovoGrad, Nero, Fromage, SM3, Amos."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch

from gradtx.arguments import (
    Decay,
    Decays,
    NonNegative,
    NonNegativeInt,
    Positive,
    is_off,
)
from gradtx.base.exact import Scalar
from gradtx.rules import alias
from gradtx.transform import chain
from gradtx.transforms.clipping import bound_norm, clip_by_global_norm
from gradtx.transforms.layerwise import (
    project_neurons,
    scale_by_amos,
    scale_by_lamb,
    scale_by_lars,
    scale_by_layer_rms,
    scale_by_neuron_norm,
    scale_by_trust_ratio,
)
from gradtx.transforms.memory_efficient import scale_by_sm3
from gradtx.transforms.momentum import ema, trace
from gradtx.transforms.projection import map_after_step
from gradtx.transforms.scaling import scale_by_learning_rate
from gradtx.transforms.weight_decay import add_decayed_weights

__all__ = ["amos", "fromage", "lamb", "lars", "nero", "novograd", "sm3"]


@alias
def lamb(
    lr: NonNegative = 1e-3,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-6,
    weight_decay: NonNegative = 0.0,
    bias_correction: bool = True,
    grad_averaging: bool = True,
    max_grad_norm: Annotated[Scalar, "(0, inf]"] | None = None,
    trust_clip: bool = False,
    always_adapt: bool = True,
):
    r"""LAMB: Adam's direction plus decay, rescaled to the norm of each leaf's weights.

    $r = \hat m / (\sqrt{\hat v} + \epsilon) + \lambda p$,
    $p \leftarrow p - \eta \, r \lVert p \rVert / \lVert r \rVert$; the ratio of norms is 1 where either is 0.

    When to use: batches of thousands of examples, mainly for transformers.

    Args:
        lr: $\eta$ in [0, inf), the change of a leaf per step relative to its norm.
        betas: Decay rates of the two averages, each in [0, 1).
        eps: $\epsilon \ge 0$, added outside the square root.
        weight_decay: $\lambda \ge 0$; included in the ratio.
        bias_correction: If False, use $m$ and $v$ instead of $\hat m$ and $\hat v$.
        grad_averaging: If False, $m = \beta_1 m + g$.
        max_grad_norm: Clip the gradient norm over all leaves to this value, > 0; None disables clipping.
        trust_clip: Limit the ratio to at most 1 (LAMBC).
        always_adapt: If False, the ratio is 1 where `weight_decay` is 0.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing.

    Example:
        >>> tx = gradtx.lamb(lr=0.1)
        >>> params = {"w": torch.tensor([3.0, 4.0])}
        >>> updates, _ = tx.update({"w": torch.tensor([1e-2, 7.0])}, tx.init(params), params)
        >>> updates["w"].norm()  # lr times the norm of w
        tensor(0.5000)

    Source: You et al. 2019, arXiv:1904.00962. Departures: NVIDIA's and timm's versions clip at `max_grad_norm=1.0` and
    set `always_adapt=False` by default; pytorch_optimizer's version has no bias correction, bounds the norm of the
    weights by 10 and by default excludes the decay from the ratio.
    """
    return chain(
        chain()
        if max_grad_norm is None
        else clip_by_global_norm(max_grad_norm, eps=0.0),
        scale_by_lamb(betas, eps, bias_correction, grad_averaging),
        # Before the ratio, which is computed from the whole direction.
        add_decayed_weights(weight_decay),
        scale_by_trust_ratio(trust_clip, weight_decay, always_adapt),
        scale_by_learning_rate(lr),
    )


@alias(class_name="LARS")
def lars(
    lr: NonNegative = 1.0,
    momentum: NonNegative = 0.9,
    dampening: Scalar = 0.0,
    weight_decay: NonNegative = 0.0,
    nesterov: bool = False,
    trust_coefficient: Positive = 0.001,
    eps: NonNegative = 1e-8,
    trust_clip: bool = False,
    min_ndim: NonNegativeInt = 0,
):
    r"""LARS: SGD with momentum and one rate per leaf, from the norms of its weights and its gradient.

    $\gamma = c \lVert p \rVert / (\lVert g \rVert + \lambda \lVert p \rVert + \epsilon)$, 1 where $\lVert p \rVert$
    or $\lVert g \rVert$ is 0; then `sgd` without decay on $\gamma (g + \lambda p)$.

    When to use: batches of thousands of images, for convolutional networks.

    Args:
        lr: $\eta$ in [0, inf), a multiple of the rate of each leaf.
        momentum: $\mu$ in [0, inf). With a literal 0.0, no buffer is kept.
        dampening: $\tau$, usually in [0, 1); not applied to the first step.
        weight_decay: $\lambda \ge 0$; included in the momentum.
        nesterov: Use Nesterov momentum; requires a nonzero momentum and zero dampening.
        trust_coefficient: $c > 0$, the change of a leaf per step relative to its norm.
        eps: $\epsilon \ge 0$, in units of the gradient.
        trust_clip: Use $\min(\gamma / \eta, 1)$ instead of $\gamma$ (LARC).
        min_ndim: Leaves with fewer dimensions than this (>= 0) have $\gamma = 1$ and no decay.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer`.

    Raises:
        ValueError: If a hyperparameter is out of range, if `nesterov` is used without momentum or with dampening, or if
            `params` is missing.

    Example:
        >>> tx = gradtx.lars(trust_coefficient=0.1, min_ndim=1)
        >>> params = {"w": torch.tensor([6.0, 8.0]), "scale": torch.tensor(2.0)}
        >>> updates, _ = tx.update(
        ...     {"w": torch.tensor([30.0, 40.0]), "scale": torch.tensor(5.0)},
        ...     tx.init(params),
        ...     params,
        ... )
        >>> updates
        {'w': tensor([-0.6000, -0.8000]), 'scale': tensor(-5.)}

    Source: You et al. 2017, arXiv:1708.03888. Departures: the paper has no eps, and multiplies by $\eta$ before the
    momentum, which is equivalent as long as $\eta$ is constant. pytorch_optimizer's class has `min_ndim=2` and `eps=0`,
    and also dampens the first step.
    """
    return chain(
        scale_by_lars(trust_coefficient, weight_decay, eps, trust_clip, min_ndim, lr),
        trace(momentum, dampening, nesterov),
        scale_by_learning_rate(lr),
    )


@alias(class_name="NovoGrad")
def novograd(
    lr: NonNegative = 1e-3,
    betas: Decays = (0.95, 0.98),
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    grad_averaging: bool = False,
    amsgrad: bool = False,
):
    r"""NovoGrad: momentum of gradients divided by a running norm of their leaf.

    $v \leftarrow \beta_2 v + (1-\beta_2) \lVert g \rVert^2$ ($v = \lVert g \rVert^2$ in the first step),
    $m \leftarrow \beta_1 m + g / (\sqrt v + \epsilon) + \lambda p$, $p \leftarrow p - \eta m$.

    When to use: speech models and others whose layers have very different gradients, at the cost of one extra number
    per layer.

    Args:
        lr: $\eta$ in [0, inf); a leaf moves by about $\eta / (1 - \beta_1)$ in norm.
        betas: Decay rates of the momentum and of $v$, each in [0, 1).
        eps: $\epsilon \ge 0$, added outside the square root; should be above 0.
        weight_decay: $\lambda \ge 0$; added after the division, so it is included in the momentum.
        grad_averaging: Use $m \leftarrow \beta_1 m + (1-\beta_1) (\ldots)$.
        amsgrad: Use the running maximum of $v$.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg_sq` and, with `amsgrad`,
        `max_exp_avg_sq`, 0-d per leaf; `momentum_buffer`, or `exp_avg` with `grad_averaging`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.novograd(lr=0.1, weight_decay=1.0)
        >>> params = {"w": torch.tensor([0.0, 2.0])}
        >>> tx.update({"w": torch.tensor([30.0, 40.0])}, tx.init(params), params)[0]["w"]
        tensor([-0.0600, -0.2800])

    Source: Ginsburg et al. 2019, arXiv:1905.11286. Departures: none from the authors' code, except that its option
    `luc` is omitted. pytorch_optimizer's class does not average in the first step.
    """
    beta1, beta2 = betas
    return chain(
        scale_by_layer_rms(beta2, eps, amsgrad),
        add_decayed_weights(weight_decay),
        ema(beta1) if grad_averaging else trace(beta1),
        scale_by_learning_rate(lr),
    )


@alias
def nero(lr: NonNegative = 0.01, beta: Decay = 0.999, constraints: bool = True):
    r"""Nero: one rate per neuron, with the weights of each neuron kept at mean 0 and norm 1.

    $v \leftarrow \beta v + (1-\beta) \lVert g \rVert^2$ for every neuron,
    $p \leftarrow N(N(p) - \eta \sigma g / \sqrt{v / (1 - \beta^t)})$, where $N$ is `project_neurons` and $\sigma$ the
    initial mean norm of the leaf's neurons (see `scale_by_neuron_norm`).

    When to use: when one untuned rate, 0.01, should work on many architectures, with almost no additional memory.

    Args:
        lr: $\eta$ in [0, inf), the change of a neuron per step relative to its norm.
        beta: $\beta$ in [0, 1).
        constraints: If False, $N$ is omitted.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg_sq`, one entry per neuron, and
        `scale`, 0-d per leaf.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `constraints` is set and `params` is missing or neurons
            have a single weight.

    Example:
        >>> params = gradtx.project_neurons({"w": torch.tensor([[1.0, 3.0, 2.0]])})
        >>> tx = gradtx.nero(lr=0.1)
        >>> updates, _ = tx.update(
        ...     {"w": torch.tensor([[5.0, 5.0, -5.0]])}, tx.init(params), params
        ... )
        >>> after = gradtx.apply_updates(params, updates)["w"]
        >>> f"{after.norm():.4f}", bool(after.mean().abs() < 1e-6)
        ('1.0000', True)

    Source: Liu et al. 2021, arXiv:2102.07227. Departures: the authors project the weights when the optimizer is
    constructed; here, call `project_neurons` before training. Otherwise the first step projects them, with a gradient
    from before the projection.
    """
    return chain(
        scale_by_neuron_norm(beta, constraints),
        scale_by_learning_rate(lr),
        map_after_step(project_neurons, before=True) if constraints else chain(),
    )


@alias
def fromage(lr: NonNegative = 0.01, p_bound: Positive | None = None):
    r"""Fromage: every leaf rotates by a fixed angle, and keeps its norm if its gradient is orthogonal to it.

    $p \leftarrow (p - \eta \, g \lVert p \rVert / \lVert g \rVert) / \sqrt{1 + \eta^2}$; the ratio of norms is 1
    where either is 0.

    When to use: deep networks, including GANs, with one rate that has the same meaning for every layer; start at 0.01.

    Args:
        lr: $\eta$ in [0, inf), the change of a leaf per step relative to its norm.
        p_bound: Upper bound of the norm of every leaf, as a multiple (> 0) of its initial norm; None for no bound.

    Returns:
        A transformation whose updates are added to the parameters. State: none; with `p_bound`, `bound`, 0-d per leaf.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing.

    Example:
        >>> tx = gradtx.fromage(lr=0.75)
        >>> params = {"w": torch.tensor([5.0, 0.0])}
        >>> updates, _ = tx.update({"w": torch.tensor([0.0, 1e-3])}, tx.init(params), params)
        >>> gradtx.apply_updates(params, updates)["w"]
        tensor([ 4., -3.])

    Source: Bernstein et al. 2020, arXiv:2002.03432. Departures: none; weights also shrink where the gradient is 0.
    """
    shrink = (1 + lr * lr) ** -0.5
    return chain(
        scale_by_trust_ratio(),
        scale_by_learning_rate(lr),
        map_after_step(lambda x: shrink * x),
        chain() if p_bound is None else bound_norm(p_bound),
    )


@alias(class_name="SM3")
def sm3(
    lr: NonNegative = 0.1,
    momentum: Decay = 0.0,
    beta: Decay = 0.0,
    eps: Positive = 1e-30,
):
    r"""SM3: Adagrad whose state is one vector per dimension instead of one number per weight.

    $p \leftarrow p - \eta m$ with $m$ the average of $g / \sqrt{c + \epsilon}$, where $c$ is the smallest of the sums
    that cover an entry (see `scale_by_sm3`).

    When to use: embeddings and softmax layers so large that Adagrad's state does not fit.

    Args:
        lr: $\eta$ in [0, inf), the change of each weight in the first step.
        momentum: $\mu$ in [0, 1): $m \leftarrow \mu m + (1-\mu) (\ldots)$. With a literal 0.0, no average is kept.
        beta: In [0, 1); above 0, averages of squares replace the sums.
        eps: $\epsilon > 0$, in units of the squared gradient.

    Returns:
        A transformation whose updates are added to the parameters. State: `accumulator_0`, ..., one per dimension; with
        momentum, also `exp_avg`.

    Raises:
        ValueError: If a hyperparameter is out of range.

    Example:
        >>> tx = gradtx.sm3(lr=0.1, momentum=0.5)
        >>> state = tx.init({"w": torch.zeros(300, 200)})
        >>> [
        ...     tuple(state["scale_by_sm3"][slot]["w"].shape)
        ...     for slot in ("accumulator_0", "accumulator_1")
        ... ]
        [(300, 1), (1, 200)]

    Source: Anil et al. 2019, arXiv:1901.11150. Departures: beta > 0 follows Enealor/PyTorch-SM3. The momentum is an
    average, unlike the sum in torch's SGD.
    """
    return chain(
        scale_by_sm3(beta, eps),
        chain() if is_off(momentum) else ema(momentum),
        scale_by_learning_rate(lr),
    )


@alias
def amos(
    lr: NonNegative = 1e-3,
    beta: Decay = 0.999,
    momentum: Decay = 0.0,
    extra_l2: NonNegative = 0.0,
    eta: Scalar | Callable[[torch.Size], float] | None = None,
    slot: str = "scalar",
    c_coef: NonNegative = 0.25,
    d_coef: NonNegative = 0.25,
    eps: Positive = 2**-125,
):
    r"""Amos: Adam-like steps in units of the weights, with rate and decay that adapt to the progress of training.

    $p \leftarrow p - m$ with $m \leftarrow \mu m + (1-\mu) u$, $u$ the step of `scale_by_amos`.

    When to use: pre-training of transformers whose final weight scale is known in advance (`eta`), without a schedule
    to tune.

    Args:
        lr: $\xi$ in [0, inf), relative to $\eta$; about 1 over the square root of the number of batches per epoch. It
            needs no schedule.
        beta: Decay rate of the average of squares, in [0, 1).
        momentum: $\mu$ in [0, 1), for an average of steps. With a literal 0.0, none is kept.
        extra_l2: An additional decay, >= 0.
        eta: $\eta > 0$, the expected size of an entry: a number, a function of the shape, or None (see
            `scale_by_amos`).
        slot: Entries that share an average: "scalar", the whole leaf; "rows", each index of dimension 0; "full", none.
        c_coef: Speed at which the decay falls, >= 0.
        d_coef: Speed at which the rate falls, >= 0.
        eps: Lower bound of the average of squares, > 0.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg_sq`, `decay` (of the size selected
        by `slot`); with momentum, also `exp_avg`.

    Raises:
        ValueError: If a hyperparameter is out of range, if `slot` is unknown, if `params` is missing, or if a decay or
            learning rate follows.

    Example:
        >>> tx = gradtx.amos(lr=0.01, eta=lambda shape: 2.0)
        >>> params = {"w": torch.zeros(2, 3)}
        >>> tx.update({"w": 7 * torch.ones(2, 3)}, tx.init(params), params)[0]["w"][0]
        tensor([-0.0200, -0.0200, -0.0200])

    Source: Tian and Parikh 2022, arXiv:2210.11693. Departures: the authors have no defaults for `lr` and `eta`, and
    their default for `slot` is "full". pytorch_optimizer's class subtracts `extra_l2`, and adds eps where gradtx takes
    the maximum.
    """
    return chain(
        scale_by_amos(
            lr, beta, extra_l2, eta, slot, c_coef=c_coef, d_coef=d_coef, eps=eps
        ),
        chain() if is_off(momentum) else ema(momentum),
    )
