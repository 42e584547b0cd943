"""SGD: with momentum, decoupled decay, averages, noise, rates from the first gradients; Rose."""

from __future__ import annotations

from typing import Annotated, Any

import torch

from gradtx.algorithms.averaging import scale_by_asgd
from gradtx.algorithms.momentum import trace, trace_ema
from gradtx.algorithms.scaling import scale_by_learning_rate
from gradtx.algorithms.weight_decay import (
    add_decayed_weights,
    with_decay,
)
from gradtx.arguments import Decay, Fraction, NonNegative, Scalar, is_off
from gradtx.base.exact import exact
from gradtx.maths.entries import (
    largest,
    norm,
    quotient,
    running_mean,
    safe_sqrt,
    unit_centered,
)
from gradtx.rules import alias, per_tensor
from gradtx.slots import scalar
from gradtx.transform import chain

__all__ = [
    "add_noise",
    "asgd",
    "gravity",
    "noisy_sgd",
    "rose",
    "scale_by_gravity",
    "scale_by_gsnr",
    "scale_by_range",
    "sgd",
    "sgd_sai",
    "sgds",
    "sgdw",
]


@per_tensor(random=True)
def add_noise(eta: NonNegative, gamma: NonNegative, seed: int):
    r"""Add Gaussian noise whose variance decreases with time: $u_t = g_t + N(0, \eta / t^\gamma)$.

    The noise depends only on the seed, the leaf's name and the step, not on torch's generator.

    Args:
        eta: $\eta \ge 0$, the variance at $t = 1$. 0 leaves updates unchanged.
        gamma: $\gamma \ge 0$, how fast the variance decreases; 0.55 in the paper.
        seed: Seed of the noise.

    Returns:
        A transformation that keeps shapes and dtypes. State: `seed` and `counter`, shared by the whole stage.

    Raises:
        ValueError: If an argument is negative.

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


@per_tensor
def scale_by_gsnr(eps=1e-8):
    r"""Multiply each leaf by the fixed signal-to-noise ratio of its first gradient: SGD-SaI.

    $q = \lVert g_1 \rVert / (\sigma(g_1) + \epsilon)$ for leaves with two or more dimensions whose first dimension is
    not of size 1, with the standard deviation $\sigma$ over the leaf. Where $\sigma = 0$, and for all other leaves,
    $q = \lVert g_1 \rVert$. Direction $q u$; $g_1$ is the first gradient passed to the chain, before any link.

    Args:
        eps: $\epsilon \ge 0$, in the units of a gradient.

    Returns:
        A transformation that keeps shapes and dtypes. State: `gsnr` ($q$; -1 before the first gradient), 0-d float64
        for each leaf.

    Raises:
        ValueError: If `eps` is negative.

    Example:
        >>> tx = gradtx.scale_by_gsnr(eps=0.0)
        >>> state = tx.init({"w": torch.zeros(2, 1)})
        >>> for grads in ([[1.0], [3.0]], [[9.0], [9.0]]):  # norm 3.1623, deviation 1.4142
        ...     updates, state = tx.update({"w": torch.tensor(grads)}, state)
        ...     print(updates["w"].flatten())
        tensor([2.2361, 6.7082])
        tensor([20.1246, 20.1246])

    Source: Xu et al. 2024, arXiv:2412.11768. Departures: none from the authors' code.
    """

    def ratio(grad):
        size = norm(grad)
        if grad.ndim < 2 or grad.shape[0] == 1 or grad.numel() < 2:
            return size
        deviation = safe_sqrt((grad - grad.mean()).square().sum() / (grad.numel() - 1))
        even = deviation == 0
        return size / torch.where(even, 1.0, deviation + eps)

    def update(update, state, param, ctx):
        old = state["gsnr"]
        ratio_now = ctx.first(lambda: ratio(ctx.grad).to(old.dtype), lambda: old)
        return ratio_now * update, {"gsnr": ratio_now}

    return {"gsnr": scalar()}, update


@per_tensor(whole=True)
def scale_by_range(centralize=True, stabilize=True):
    r"""Divide each index of the first dimension by the range of its entries: Rose's direction.

    For each index, with two or more dimensions: $u \leftarrow u - \mathrm{mean}(u)$ (`centralize`),
    $D = |\max u| - \min u$, and with the mean M and the standard deviation S of D over the leaf,
    $D \leftarrow M + (D - M) \frac{M}{S + M}$ (`stabilize`); direction $u / D$, with D = 1 in place of 0. A vector has
    one range; a number becomes its sign.

    Args:
        centralize: Subtract the means.
        stabilize: Move the ranges towards their mean, the more the more they differ.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Example:
        >>> tx = gradtx.scale_by_range(stabilize=False)
        >>> tx.update({"w": torch.tensor([[1.0, 3.0], [0.0, 20.0]])}, tx.init({}))[0]["w"]
        tensor([[-0.5000,  0.5000],
                [-0.5000,  0.5000]])

    Source: MatthewK78/Rose. Departures: none; the range of negative entries only, where nothing is centered, is
    $|\max u| + |\min u|$, as there.
    """

    def update(u, state, p, ctx):
        if u.ndim == 0:
            return u.sign(), state
        if not u.numel():
            return u, state
        dims = tuple(range(1, u.ndim)) or (0,)
        if centralize and u.ndim > 1:
            u = unit_centered(u)
        D = u.amax(dims, keepdim=True).abs() - u.amin(dims, keepdim=True)
        if stabilize and u.ndim > 1:
            M = D.mean()
            S = safe_sqrt((D - M).square().mean())
            D = M + (D - M) * quotient(M, S + M)
        return u / torch.where(D == 0, 1.0, D), state

    return update


@alias(class_name="SGD")
def sgd(
    lr=1e-3,
    momentum=0.0,
    dampening: Scalar = 0.0,
    weight_decay=0.0,
    nesterov=False,
):
    r"""SGD, equivalent to torch.optim.SGD: stochastic gradient descent with optional momentum.

    $g \leftarrow g + \lambda p$, $b_t = \mu b_{t-1} + (1-\tau) g$ ($b_1 = g$), $p \leftarrow p - \eta b_t$, or
    $p - \eta (g + \mu b_t)$ with `nesterov`.

    When to use: convolutional networks with a tuned schedule, tight memory, or a well-known baseline.

    Args:
        lr: $\eta$ in [0, inf), the change of a weight per unit of gradient.
        momentum: $\mu$ in [0, inf). With a literal 0.0, no buffer is kept.
        dampening: $\tau$, usually in [0, 1); not applied to the first step.
        weight_decay: $\lambda \ge 0$, coupled: included in the momentum.
        nesterov: Use Nesterov momentum; requires a nonzero momentum and zero dampening.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer`.

    Raises:
        ValueError: If a hyperparameter is out of range, if `nesterov` is used without momentum or with dampening, or if
            `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.sgd(lr=0.1, weight_decay=1.0)
        >>> params = {"w": torch.tensor([2.0])}
        >>> tx.update({"w": torch.tensor([1.0])}, tx.init(params), params)[0]["w"]
        tensor([-0.3000])

    Source: Robbins and Monro 1951; Sutskever et al. 2013. Departures: none from torch.optim.SGD.
    """
    return with_decay(trace(momentum, dampening, nesterov), weight_decay, False, lr)


@alias(class_name="SGDW")
def sgdw(
    lr=1e-3,
    momentum=0.0,
    dampening: Scalar = 0.0,
    weight_decay=0.0,
    nesterov=False,
):
    r"""SGDW: SGD with decoupled weight decay.

    $p \leftarrow p (1 - \eta \lambda)$, then `sgd` without decay on the same gradient.

    When to use: SGD with independently tuned learning rate and decay.

    Args:
        lr: $\eta$ in [0, inf).
        momentum: $\mu$ in [0, inf).
        dampening: $\tau$, usually in [0, 1); not applied to the first step.
        weight_decay: $\lambda \ge 0$, multiplied by the learning rate; never included in the momentum.
        nesterov: Use Nesterov momentum; requires a nonzero momentum and zero dampening.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer`.

    Raises:
        ValueError: If a hyperparameter is out of range, if `nesterov` is used without momentum or with dampening, or if
            `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.sgdw(lr=0.1, momentum=0.9, weight_decay=1.0)
        >>> params = {"w": torch.tensor([2.0])}
        >>> _, state = tx.update({"w": torch.tensor([1.0])}, tx.init(params), params)
        >>> state["trace"]["momentum_buffer"]["w"]  # the decay is not in it
        tensor([1.])

    Source: Loshchilov and Hutter 2017, arXiv:1711.05101. Departures: the paper's schedule multiplier is `lr` itself.
    """
    # After the momentum, before the rate: lr * weight_decay.
    return with_decay(trace(momentum, dampening, nesterov), weight_decay, True, lr)


@alias(class_name="SGDS")
def sgds(
    lr=1e-3,
    momentum: Decay = 0.0,
    dampening: Fraction = 0.0,
    weight_decay=0.0,
    nesterov=False,
):
    r"""SGDS: SGD whose decoupled decay grows with the momentum, as its steps do (stable weight decay).

    $p \leftarrow p (1 - \eta \lambda (1-\tau)/(1-\mu))$, then `sgd` without decay on the same gradient.

    When to use: SGD with momentum and a varying learning rate, if the strength of the decay should not depend on the
    momentum.

    Args:
        lr: $\eta$ in [0, inf).
        momentum: $\mu$ in [0, 1).
        dampening: $\tau$ in [0, 1]; not applied to the first step, and without momentum applied only to the decay.
        weight_decay: $\lambda \ge 0$, multiplied by the learning rate.
        nesterov: Use Nesterov momentum; requires a nonzero momentum and zero dampening.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer`.

    Raises:
        ValueError: If a hyperparameter is out of range, if `nesterov` is used without momentum or with dampening, or if
            `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> params = {"w": torch.tensor([2.0])}
        >>> for momentum in (0.0, 0.5):
        ...     tx = gradtx.sgds(lr=0.1, momentum=momentum, weight_decay=1.0)
        ...     print(tx.update({"w": torch.tensor([1.0])}, tx.init(params), params)[0]["w"])
        tensor([-0.3000])
        tensor([-0.5000])

    Source: Xie et al. 2020, arXiv:2011.11152. Departures: a default for `lr`, which the authors require.
    """
    decay = (
        0.0 if is_off(weight_decay) else weight_decay * (1 - dampening) / (1 - momentum)
    )
    return with_decay(trace(momentum, dampening, nesterov), decay, True, lr)


@alias(class_name="ASGD")
def asgd(*, weight_decay=0.0, **options: Annotated[Any, scale_by_asgd]):
    r"""ASGD, equivalent to torch.optim.ASGD: SGD with a decaying rate that also averages its weights.

    $p \leftarrow p (1 - \lambda \eta_t) - \eta_t (g + w p)$ with $\eta_t = \eta / (1 + \lambda \eta (t - 1))^\alpha$,
    and the mean of $p$ since step $t_0$.

    When to use: when you need the average of plain SGD's weights on a convex or nearly convex problem.

    Args:
        lr: $\eta$ in [0, inf), the change of a weight per unit of gradient; a change of $\eta$ takes effect one step
            later.
        lambd: $\lambda \ge 0$, the decay of the weights and of the rate.
        alpha: $\alpha \ge 0$, the exponent of the decay of the rate.
        t0: $t_0 \ge 0$, the step at which the average begins.
        weight_decay: $w \ge 0$, added to the gradient.

    Returns:
        A transformation whose updates are added to the parameters. State: `ax`, the average, which `eval_params`
        returns; per leaf, `eta` and `mu`, 0-d.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing.

    Example:
        >>> tx = gradtx.asgd(lr=1.0, lambd=0.0, t0=0.0)
        >>> params = {"w": torch.tensor([0.0])}
        >>> state = tx.init(params)
        >>> for _ in range(3):
        ...     updates, state = tx.update({"w": torch.tensor([-2.0])}, state, params)
        ...     params = gradtx.apply_updates(params, updates)
        >>> params["w"], tx.eval_params(state, params)["w"]
        (tensor([6.]), tensor([5.]))

    Source: Polyak and Juditsky 1992. Departures: none from torch.optim.ASGD, except that `eta` and `mu` are float64.
    pytorch_optimizer's ASGD is a different method: see `adaptive_gd`.
    """
    return chain(add_decayed_weights(weight_decay), scale_by_asgd(**options))


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

    Raises:
        ValueError: If a hyperparameter is negative.

    Example:
        >>> tx = gradtx.noisy_sgd(lr=0.5, eta=4.0)
        >>> params = {"w": torch.zeros(10_000)}
        >>> updates, _ = tx.update(params, tx.init(params))
        >>> f"{updates['w'].std():.1f}"  # 0.5 times the root of 4
        '1.0'

    Source: Neelakantan et al. 2015, arXiv:1511.06807. Departures: the paper writes $(1 + t)^\gamma$ with $t$ from 0.
    """
    return chain(add_noise(eta, gamma, seed), scale_by_learning_rate(lr))


@alias(class_name="SGDSaI")
def sgd_sai(
    lr=1e-2,
    momentum: Decay = 0.9,
    eps=1e-8,
    weight_decay=1e-2,
):
    r"""SGD-SaI: SGD with momentum and one rate per leaf, the signal-to-noise ratio of its first gradient.

    $p \leftarrow p - \eta (q m_t + \lambda p)$ with the average $m$ of the gradients and
    $q = \lVert g_1 \rVert / (\sigma(g_1) + \epsilon)$, fixed at the first step; see `scale_by_gsnr`.

    When to use: instead of AdamW, at half the memory, for transformers (the paper's claim). The first gradient should
    be typical.

    Args:
        lr: $\eta$ in [0, inf).
        momentum: $\mu$ in [0, 1).
        eps: $\epsilon \ge 0$, in units of the gradient.
        weight_decay: $\lambda \ge 0$, decoupled.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer`, and per leaf `gsnr`, 0-d
        float64.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.sgd_sai(lr=1.0, momentum=0.0, eps=0.0, weight_decay=0.0)
        >>> params = {"w": torch.zeros(2, 1), "b": torch.zeros(1)}
        >>> updates, _ = tx.update(
        ...     {"w": torch.tensor([[4.0], [3.0]]), "b": torch.tensor([3.0])},
        ...     tx.init(params),
        ...     params,
        ... )
        >>> updates
        {'w': tensor([[-28.2843],
                [-21.2132]]), 'b': tensor([-9.])}

    Source: Xu et al. 2024, arXiv:2412.11768. Departures: none from the authors' code.
    """
    direction = chain(trace_ema(momentum), scale_by_gsnr(eps))
    return with_decay(direction, weight_decay, True, lr)


@per_tensor(random=True, compiles=True)
def scale_by_gravity(lr, alpha: NonNegative = 0.01, beta: Decay = 0.9, seed: int = 0):
    r"""Average gradients after damping their large entries toward zero: Gravity's direction.

    $v_0 \sim N(0, (\alpha / \eta)^2)$, $\hat\beta = \frac{\beta t + 1}{t + 2}$,
    $\zeta = g / (1 + (g \max |g|)^2)$, $v_t = \hat\beta v_{t-1} + (1-\hat\beta) \zeta$, direction $v_t$. The maximum
    is taken over the leaf.

    Args:
        lr: $\eta \ge 0$, read only when the state is initialized; a later link applies the learning rate. 0 starts from
            $v_0 = 0$.
        alpha: $\alpha \ge 0$, standard deviation of the first change of the weights. 0 starts from $v_0 = 0$.
        beta: $\beta$ in [0, 1), the limit of $\hat\beta$.
        seed: Seed of $v_0$, which also depends on the leaf's name.

    Returns:
        A transformation that keeps shapes and dtypes. State: `v`, shaped as the parameter; `seed` and `counter`, shared
        by the whole stage.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> # 2/3 of zeta at the first step
        >>> tx = gradtx.scale_by_gravity(lr=0.1, alpha=0.0, beta=0.0)
        >>> updates, _ = tx.update(
        ...     {"w": torch.tensor([0.5, 1.0, 3.0])}, tx.init({"w": torch.zeros(3)})
        ... )
        >>> updates["w"]
        tensor([0.1026, 0.0667, 0.0244])

    Source: Bahrami and Pouriyan Zadeh 2021, arXiv:2101.09192. Departures: none in value from the authors' PyTorch
    code, which divides by $1 / \max |g|$ and therefore fails for a zero gradient.
    """

    def init(param, rng):
        # Without a rate, no velocity moves the weights by alpha.
        size = quotient(exact(alpha, param.device), exact(lr, param.device))
        return {"v": (size * rng.normal(param)).to(param.dtype)}

    def update(update, state, param, ctx):
        bounded_update = update / (1 + (update * largest(update.abs())).square())
        beta_t = (beta * ctx.time + 1) / (ctx.time + 2)
        velocity = running_mean(state["v"], bounded_update, beta_t)
        return velocity, {"v": velocity}

    return init, update


@alias
def gravity(lr=0.1, **options: Annotated[Any, scale_by_gravity]):
    r"""Gravity: a moving average of gradients whose large entries are pushed back toward zero.

    $v \leftarrow \hat\beta v + (1-\hat\beta) g / (1 + (g \max|g|)^2)$ with $\hat\beta = \frac{\beta t + 1}{t + 2}$ and
    $v_0 \sim N(0, (\alpha/\eta)^2)$, $p \leftarrow p - \eta v$; the maximum is over each tensor.

    When to use: to try a bound on large entries of the gradient; the evidence is limited to small networks, so compare
    it with `sgd`.

    Args:
        lr: $\eta$ in [0, inf).
        alpha: $\alpha \ge 0$, the standard deviation of the initial movement of the weights; 0, or an $\eta$ that is
            initially 0, starts from $v_0 = 0$.
        beta: $\beta$ in [0, 1), the limit of $\hat\beta$.
        seed: Seed of $v_0$, which also depends on the name of the parameter.

    Returns:
        A transformation whose updates are added to the parameters. State: `v`; shared by all leaves, `seed` and
        `counter`.

    Raises:
        ValueError: If a hyperparameter is out of range.

    Example:
        >>> tx = gradtx.gravity(lr=0.1, alpha=0.0, beta=0.0)
        >>> tx.update({"w": torch.tensor([1.0, 30.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([-7.3992e-05, -2.4691e-06])

    Source: Bahrami and Pouriyan Zadeh 2021, arXiv:2101.09192. Departures: $v_0$ comes from gradtx's own random stream,
    not from torch's global generator.
    """
    return chain(scale_by_gravity(lr, **options), scale_by_learning_rate(lr))


@alias(class_name="ROSE")
def rose(lr=1e-3, weight_decay=1e-4, centralize=True, stabilize=True):
    r"""Rose: gradient descent where each row of a gradient is divided by its range.

    $p \leftarrow p - \eta\, d(g + \lambda p)$ with the direction $d$ of `scale_by_range`.

    When to use: if there is no memory for any state, and the sizes of gradients differ between rows and layers.

    Args:
        lr: $\eta$ in [0, inf).
        weight_decay: $\lambda \ge 0$, coupled: added to the gradient.
        centralize: Subtract the mean of each row.
        stabilize: Move the ranges of rows towards their mean.

    Returns:
        A transformation whose updates are added to the parameters; no state.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.rose(lr=0.1, weight_decay=0.0)
        >>> params = {"w": torch.zeros(3)}
        >>> tx.update({"w": torch.tensor([30.0, 10.0, -20.0])}, tx.init(params), params)[0]["w"]
        tensor([-0.0600, -0.0200,  0.0400])

    Source: MatthewK78/Rose. Departures: computes in the dtype of the state, at least float32, rather than in float64.
    """
    return with_decay(scale_by_range(centralize, stabilize), weight_decay, False, lr)
