"""One rate for each layer: LAMB, LARS, NovoGrad, Nero, Fromage, Amos, Rose."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from gradtx.algorithms.clipping import bound_norm, clip_by_global_norm
from gradtx.algorithms.momentum import ema, trace
from gradtx.algorithms.projection import map_after_step
from gradtx.algorithms.scaling import scale_by_learning_rate
from gradtx.algorithms.weight_decay import add_decayed_weights
from gradtx.arguments import (
    Decay,
    NonNegative,
    NonNegativeInt,
    Positive,
    PositiveOrInf,
    Scalar,
    is_off,
)
from gradtx.base import tree as _tree
from gradtx.base.dtensor import full_tensor
from gradtx.base.exact import exact, exact_dtype
from gradtx.execution.leaf_rule import OfLeaf
from gradtx.maths.entries import (
    MOMENTS,
    at_least,
    at_most,
    corrected_root,
    peak,
    plus_decay,
    quotient,
    running_mean,
    safe_sqrt,
    unit_centered,
    unit_norm,
)
from gradtx.rules import alias, per_tensor
from gradtx.slots import scalar, square
from gradtx.transform import chain

__all__ = [
    "amos",
    "fromage",
    "lamb",
    "lars",
    "nero",
    "novograd",
    "project_neurons",
    "scale_by_amos",
    "scale_by_lamb",
    "scale_by_lars",
    "scale_by_layer_rms",
    "scale_by_neuron_norm",
    "scale_by_trust_ratio",
]


def _sums(p: Tensor, u: Tensor) -> OfLeaf:
    return OfLeaf(weights=p.square().sum(), size=u.square().sum())


@per_tensor(whole="sums", takes_complex=True, needs="params")
def scale_by_trust_ratio(clip=False, weight_decay=0.0, always_adapt=True):
    r"""Rescale each update to the norm of its leaf's weights: $u \mapsto u \lVert p \rVert / \lVert u \rVert$.

    The ratio is 1 where either norm is 0, 0 where the update's norm is infinite, and NaN where it is NaN.

    Args:
        clip: Limit the ratio to 1 (LAMBC).
        weight_decay: The decay already included in the update, >= 0; only read without `always_adapt`.
        always_adapt: If False, the ratio is 1 where `weight_decay` is 0.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Raises:
        ValueError: If `weight_decay` is negative, or if `params` is missing.

    Example:
        >>> tx = gradtx.scale_by_trust_ratio()
        >>> params = {"w": torch.tensor([6.0, 8.0]), "b": torch.zeros(1)}
        >>> updates, _ = tx.update(
        ...     {"w": torch.tensor([0.0, 1e-3]), "b": torch.ones(1)}, tx.init(params), params
        ... )
        >>> updates
        {'w': tensor([ 0., 10.]), 'b': tensor([1.])}

    Source: You et al. 2019, arXiv:1904.00962; without clip and decay: Bernstein et al. 2020, arXiv:2002.03432.
    Departures: the optional bounds on the norm of the weights in LAMB's paper are omitted.
    """

    def update(u, state, p, ctx):
        sums = yield _sums(p, u)
        weights, size = safe_sqrt(sums["weights"]), safe_sqrt(sums["size"])
        ratio = quotient(weights, size, (weights > 0) & (size > 0), 1.0)
        if clip:
            ratio = at_most(ratio, 1)
        if not always_adapt:
            ratio = torch.where(exact(weight_decay, p.device) == 0, 1.0, ratio)
        yield ratio * u, state

    return update


@per_tensor(
    whole="sums",
    takes_complex=lambda arguments: arguments["min_ndim"] == 0,
    needs="params",
)
def scale_by_lars(
    trust_coefficient: Positive = 0.001,
    weight_decay=0.0,
    eps=1e-8,
    trust_clip=False,
    min_ndim: NonNegativeInt = 0,
    lr: NonNegative | None = None,
):
    r"""Decay the weights and scale by one rate per leaf, from the norms of its weights and its gradient: LARS.

    $d = \gamma (g + \lambda p)$ with $\gamma = c \lVert p \rVert / (\lVert g \rVert + \lambda \lVert p \rVert +
    \epsilon)$, and $\gamma = 1$ where $\lVert p \rVert$ or $\lVert g \rVert$ is 0. An
    infinite norm of the gradient gives $\gamma = 0$, a NaN makes the whole leaf NaN.

    Args:
        trust_coefficient: $c > 0$, the change of a leaf relative to its size, per unit of the learning rate.
        weight_decay: $\lambda \ge 0$.
        eps: $\epsilon \ge 0$, in the units of a gradient.
        trust_clip: Use $\gamma \leftarrow \min(\gamma / \eta, 1)$, so that no leaf moves further than under plain
            gradient descent (LARC).
        min_ndim: Leaves with fewer dimensions, >= 0, pass unchanged and without decay; 2 excludes biases and scales.
        lr: $\eta \ge 0$, for `trust_clip` only; a later link applies it.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Raises:
        ValueError: If an argument is out of range, if `trust_clip` is set without `lr`, or if `params` is missing.

    Example:
        >>> tx = gradtx.scale_by_lars(trust_coefficient=0.1, eps=0.0, min_ndim=1)
        >>> params = {"w": torch.tensor([6.0, 8.0]), "scale": torch.tensor(2.0)}
        >>> updates, _ = tx.update(
        ...     {"w": torch.tensor([0.0, 1e-3]), "scale": torch.tensor(5.0)},
        ...     tx.init(params),
        ...     params,
        ... )
        >>> updates
        {'w': tensor([0., 1.]), 'scale': tensor(5.)}

    Source: You et al. 2017, arXiv:1708.03888; trust_clip: NVIDIA's apex LARC. Departures: the paper has no eps.
    """
    if trust_clip and lr is None:
        raise ValueError(
            "scale_by_lars: trust_clip needs lr; pass the rate used by scale_by_learning_rate"
        )

    def update(u, state, p, ctx):
        if p.ndim < min_ndim:
            yield u, state
            return
        sums = yield _sums(p, u)
        weights, size = safe_sqrt(sums["weights"]), safe_sqrt(sums["size"])
        top, total = trust_coefficient * weights, size + weight_decay * weights + eps
        ratio = quotient(top, total, (weights > 0) & (size > 0), 1.0)
        if trust_clip:
            # min(ratio / lr, 1), valid at lr 0.
            ratio = ratio / torch.maximum(ratio, exact(lr, p.device))
        yield ratio * plus_decay(u, weight_decay, p), state

    return update


@per_tensor(elementwise=True)
def scale_by_lamb(
    betas=(0.9, 0.999),
    eps=1e-6,
    bias_correction=True,
    grad_averaging=True,
):
    r"""Divide the mean gradient by its root mean square as in Adam, with optional corrections: LAMB's direction.

    $m_t = \beta_1 m_{t-1} + (1-\beta_1) g_t$, $v_t = \beta_2 v_{t-1} + (1-\beta_2) g_t^2$, direction
    $\hat m_t / (\sqrt{\hat v_t} + \epsilon)$.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$, in the units of a gradient.
        bias_correction: If False, use $m_t / (\sqrt{v_t} + \epsilon)$.
        grad_averaging: If False, use $m_t = \beta_1 m_{t-1} + g_t$.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_sq`, shaped as the parameter.

    Raises:
        ValueError: If a beta is outside [0, 1) or `eps` is negative.

    Example:
        >>> tx = gradtx.scale_by_lamb(betas=(0.9, 0.99), grad_averaging=False)
        >>> tx.update({"w": torch.tensor([1e-2, -4.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([  9.9990, -10.0000])

    Source: You et al. 2019, arXiv:1904.00962. Departures: `grad_averaging` is from NVIDIA's apex.
    """
    beta1, beta2 = betas
    share = 1 - beta1 if grad_averaging else 1.0

    def update(update, state, param, ctx):
        mean = beta1 * state["exp_avg"] + share * update
        square = running_mean(state["exp_avg_sq"], update.square(), beta2)
        new = {"exp_avg": mean, "exp_avg_sq": square}
        if bias_correction:
            mean = mean / ctx.bias_correction(beta1)
            square = square / ctx.bias_correction(beta2)
        return mean / (safe_sqrt(square) + eps), new

    return MOMENTS, update


@per_tensor(takes_complex=True)
def scale_by_layer_rms(beta: Decay = 0.98, eps=1e-8, amsgrad=False):
    r"""Divide the gradient of each leaf by a running average of its norm: NovoGrad's direction.

    $v_t = \beta v_{t-1} + (1-\beta) \lVert g_t \rVert^2$, with $v_t = \lVert g_t \rVert^2$ where $v_{t-1} = 0$;
    direction $g_t / (\sqrt{v_t} + \epsilon)$.

    Args:
        beta: $\beta$, in [0, 1).
        eps: $\epsilon \ge 0$, in the units of a gradient. Use a positive value if a gradient may be 0.
        amsgrad: Use the running maximum of $v$ instead of $v$.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg_sq` and, with `amsgrad`, `max_exp_avg_sq`, both
        0-d float64 for each leaf.

    Raises:
        ValueError: If `beta` is outside [0, 1) or `eps` is negative.

    Example:
        >>> tx = gradtx.scale_by_layer_rms()
        >>> updates, state = tx.update(
        ...     {"w": torch.tensor([3.0, 4.0])}, tx.init({"w": torch.zeros(2)})
        ... )
        >>> updates["w"], state["scale_by_layer_rms"]["exp_avg_sq"]["w"]
        (tensor([0.6000, 0.8000]), tensor(25., dtype=torch.float64))

    Source: Ginsburg et al. 2019, arXiv:1905.11286. Departures: none; the average restarts while it is
    exactly 0, as in the authors' code.
    """

    def update(g, state, p, ctx):
        old, square = state["exp_avg_sq"], g.square().sum()
        v = torch.where(old == 0, square, running_mean(old, square, beta))
        new = {"exp_avg_sq": v}
        return g / (safe_sqrt(peak(new, state, "exp_avg_sq", amsgrad)) + eps), new

    slots = {
        "exp_avg_sq": scalar(),
        "max_exp_avg_sq": scalar() if amsgrad else None,
    }
    return slots, update


@per_tensor(
    elementwise=lambda arguments: (
        arguments["slot"] == "full"
        and isinstance(arguments["eta"], float | int | Tensor)
    ),
    needs="params",
    owns_lr=True,
)
def scale_by_amos(
    lr=1e-3,
    beta: Decay = 0.999,
    extra_l2: NonNegative = 0.0,
    eta: Scalar | Callable[[torch.Size], float] | None = None,
    slot: Literal["scalar", "rows", "full"] = "scalar",
    c_coef: NonNegative = 0.25,
    d_coef: NonNegative = 0.25,
    eps: Positive = 2**-125,
):
    r"""Descend with a decay that adapts to the gradient, and a rate in the units of the weights: Amos.

    $v_t = \beta v_{t-1} + (1-\beta) s_t$ with $s_t$ the mean of $g_t^2$ over the entries that share a slot;
    $r_t = (1 - \beta^t) / \max(v_t, \epsilon)$; $\gamma_t = \xi^2 r_t s_t / \sqrt{1 + c \sqrt\xi\, b_{t-1}}$;
    $b_t = b_{t-1} + \gamma_t (1 + b_{t-1})$. With $d_t = 1 / (1 + d \sqrt{\xi \eta}\, b_{t-1})$ the update is
    $-d_t (\xi \eta \sqrt{r_t}\, g_t + (\gamma_t / 2 + l)\, p)$. It owns the learning rate: no decay or learning rate
    may follow.

    Args:
        lr: $\xi$ in [0, inf), relative to $\eta$; about 1 over the root of the number of batches in an epoch.
        beta: $\beta$, in [0, 1).
        extra_l2: $l \ge 0$, an additional decay.
        eta: $\eta > 0$, the expected size of an entry: a number or a function of the shape. None uses 0.5 for up to 1
            dimension, $\sqrt{2/n}$ for a matrix and $\sqrt{1/n}$ for more dimensions; n is the size of dimension 1.
        slot: The entries that share $v$ and $b$: "scalar" for the whole leaf, "rows" for each index of dimension 0
            (like "full" with fewer than two dimensions), "full" for none.
        c_coef: $c \ge 0$.
        d_coef: $d \ge 0$.
        eps: $\epsilon > 0$, in the units of a squared gradient.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg_sq` ($v$) and `decay` ($b$): 0-d
        float64 for each leaf, one entry per index of dimension 0, or shaped as the parameter.

    Raises:
        ValueError: If an argument is out of range, if `slot` is unknown, if `params` is missing, or if a later link
            scales by a learning rate or decays.

    Example:
        >>> tx = gradtx.scale_by_amos(lr=0.01, beta=0.0, eta=2.0)
        >>> params = {"w": torch.tensor([0.0, 100.0])}
        >>> # -lr * eta, and a decay
        >>> tx.update({"w": torch.tensor([5.0, 5.0])}, tx.init(params), params)[0]["w"]
        tensor([-0.0200, -0.0250])

    Source: Tian and Parikh 2022, arXiv:2210.11693. Departures: none from the authors' code, whose default for `slot`
    is "full".
    """
    if isinstance(eta, float | int) and not 0 < eta < math.inf:
        raise ValueError(f"scale_by_amos: eta must be in (0, inf), got {eta!r}")

    def mean(x):
        if slot == "scalar":
            # Use a plain tensor from here on: in torch 2.13, adding one to a pending sum raises an AttributeError.
            return full_tensor(x.sum(dtype=exact_dtype(x))) / max(x.numel(), 1)
        if slot == "full" or x.ndim < 2:
            return x
        return x.sum(dim=tuple(range(1, x.ndim)), keepdim=True) / max(
            math.prod(x.shape[1:]), 1
        )

    def first(p):
        return mean(torch.zeros_like(p))

    def update(g, state, p, ctx):
        rate = exact(lr, p.device)
        root, scale = safe_sqrt(rate), _expected_scale(eta, p.shape)
        mean_square, total = mean(g.square()), state["decay"]
        v = running_mean(state["exp_avg_sq"], mean_square, beta)
        inverse = ctx.bias_correction(beta) / at_least(v, eps)
        damp = (1 + c_coef * root * total).rsqrt()
        shrink = rate.square() * inverse * mean_square * damp
        damp = 1 / (1 + d_coef * root * scale**0.5 * total)
        step = (damp * rate * scale * inverse.sqrt()) * g
        step = step + (damp * (shrink / 2 + extra_l2)) * p
        return -step, {"exp_avg_sq": v, "decay": total + shrink * (1 + total)}

    return {"exp_avg_sq": first, "decay": first}, update


def _expected_scale(eta, shape: torch.Size) -> Any:
    if callable(eta):
        return eta(shape)
    if eta is not None:
        return eta
    if len(shape) < 2:
        return 0.5
    return math.sqrt((2 if len(shape) == 2 else 1) / max(shape[1], 1))


def project_neurons(params) -> Any:
    r"""Normalize each neuron's weights to mean 0 and norm 1: $w \mapsto (w - \bar w) / \lVert w - \bar w \rVert$.

    A neuron is an index of dimension 0; a neuron with equal weights becomes 0. Leaves with 0 or 1 dimensions are
    unchanged. `nero` keeps weights in this form. Apply it to them once before training, so that the first gradient is
    computed there.

    Args:
        params: A tree of tensors or a single tensor.

    Returns:
        A tree of the same structure.

    Raises:
        ValueError: If a neuron has a single weight, which would become 0.

    Example:
        >>> project_neurons(
        ...     {"weight": torch.tensor([[1.0, 3.0], [0.0, 8.0]]), "bias": torch.tensor([5.0])}
        ... )
        {'weight': tensor([[-0.7071,  0.7071],
                [-0.7071,  0.7071]]), 'bias': tensor([5.])}

    Source: Liu et al. 2021, arXiv:2102.07227. Departures: neurons with equal weights become 0.
    """
    return _tree.map_tensors(_projected, params)


def _projected(x: Tensor) -> Tensor:
    if x.ndim < 2:
        return x
    if math.prod(x.shape[1:]) == 1:
        raise ValueError(
            f"project_neurons: neurons of shape {tuple(x.shape)} have a single weight each, which would become 0; "
            "train them without constraints in another branch of partition(...)"
        )
    centered = unit_centered(x)
    size = unit_norm(centered)
    return centered * quotient(1.0, size, size > 0)


def _neuron_norm(x: Tensor) -> Tensor:
    """Return one norm per neuron; each entry of a bias or scale is a neuron."""
    return x.abs() if x.ndim < 2 else unit_norm(x)


@per_tensor
def scale_by_neuron_norm(beta: Decay = 0.999, constraints=True):
    r"""Divide the gradient of each neuron by its running norm, and restore the initial scale of the weights: Nero.

    $v_t = \beta v_{t-1} + (1-\beta) \lVert g_t \rVert^2$ for each neuron, which is an index of dimension 0 or an entry
    of a leaf with 0 or 1 dimensions; direction $\sigma g_t / \sqrt{v_t / (1 - \beta^t)}$, or 0 where $v_t = 0$.
    $\sigma$ is the mean norm of the leaf's neurons at `init`, or 0.01 if that is 0.

    Args:
        beta: $\beta$, in [0, 1).
        constraints: Compute $\sigma$ from the weights after `project_neurons`, where `nero` keeps them.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg_sq`, one entry per neuron (of size 1 in the other
        dimensions), and `scale` ($\sigma$), 0-d float64 for each leaf.

    Raises:
        ValueError: If `beta` is outside [0, 1), or if `constraints` is set and a neuron has a single weight.

    Example:
        >>> tx = gradtx.scale_by_neuron_norm()
        >>> state = tx.init({"w": torch.tensor([[1.0, 3.0], [0.0, 8.0]])})
        >>> tx.update({"w": torch.tensor([[30.0, 40.0], [0.0, -0.1]])}, state)[0]["w"]
        tensor([[ 0.6000,  0.8000],
                [ 0.0000, -1.0000]])

    Source: Liu et al. 2021, arXiv:2102.07227. Departures: none, except 0 where the paper divides by 0.
    """

    def sizes(param):
        return _neuron_norm(_projected(param) if constraints else param)

    def scale(param):
        of_units = sizes(param)
        mean = of_units.sum(dtype=exact_dtype(param)) / max(of_units.numel(), 1)
        return torch.where(mean == 0, 0.01, mean)

    def update(g, state, p, ctx):
        v = running_mean(state["exp_avg_sq"], _neuron_norm(g).square(), beta)
        size = corrected_root(v, ctx, beta)
        return g * quotient(state["scale"], size, size > 0), {"exp_avg_sq": v}

    slots = {
        "exp_avg_sq": square(lambda p: torch.zeros_like(sizes(p))),
        "scale": scalar(scale),
    }
    return slots, update


@alias
def lamb(
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-6,
    weight_decay=0.0,
    bias_correction=True,
    grad_averaging=True,
    max_grad_norm: PositiveOrInf | None = None,
    trust_clip=False,
    always_adapt=True,
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
        max_grad_norm: Clip the gradient norm over all leaves to this value, > 0, as `clip_by_global_norm` does: a NaN
            makes every update NaN. None disables clipping.
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
    lr=1.0,
    momentum=0.9,
    dampening: Scalar = 0.0,
    weight_decay=0.0,
    nesterov=False,
    **options: Annotated[Any, scale_by_lars],
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
        scale_by_lars(weight_decay=weight_decay, lr=lr, **options),
        trace(momentum, dampening, nesterov),
        scale_by_learning_rate(lr),
    )


@alias(class_name="NovoGrad")
def novograd(
    lr=1e-3,
    betas=(0.95, 0.98),
    eps=1e-8,
    weight_decay=0.0,
    grad_averaging=False,
    amsgrad=False,
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
def nero(lr=0.01, beta: Decay = 0.999, constraints=True):
    r"""Nero: one rate per neuron, with the weights of each neuron kept at mean 0 and norm 1.

    $v \leftarrow \beta v + (1-\beta) \lVert g \rVert^2$ for every neuron,
    $p \leftarrow N(N(p) - \eta \sigma g / \sqrt{v / (1 - \beta^t)})$, where $N$ is `project_neurons` and $\sigma$ the
    initial mean norm of the leaf's neurons (see `scale_by_neuron_norm`).

    When to use: when one untuned rate, 0.01, should work on many architectures, with almost no additional memory (the
    paper's claim).

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
def fromage(lr=0.01, p_bound: Positive | None = None):
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


@alias
def amos(
    lr=1e-3,
    beta: Decay = 0.999,
    momentum: Decay = 0.0,
    **options: Annotated[Any, scale_by_amos],
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
        scale_by_amos(lr, beta, **options),
        chain() if is_off(momentum) else ema(momentum),
    )
