"""AdaGrad and other sums and maxima of squares: Adadelta, AdaMax, KATE, AdaSmooth, FTRL, SM3."""

from __future__ import annotations

import functools
from typing import Annotated, Any

import torch

from gradtx.algorithms.momentum import ema
from gradtx.algorithms.scaling import scale_by_inverse_time, scale_by_learning_rate
from gradtx.algorithms.weight_decay import decayed, with_decay
from gradtx.arguments import (
    Count,
    Decay,
    Fraction,
    NonNegative,
    NonPositive,
    Positive,
    is_off,
)
from gradtx.base.exact import exact
from gradtx.maths.entries import (
    quotient,
    running_mean,
    safe_pow,
    safe_sqrt,
)
from gradtx.rules import alias, per_tensor
from gradtx.slots import ema as average_of
from gradtx.slots import filled, linear, square, start
from gradtx.transform import chain

__all__ = [
    "adadelta",
    "adagrad",
    "adamax",
    "adasmooth",
    "ftrl",
    "kate",
    "scale_by_adadelta",
    "scale_by_adamax",
    "scale_by_adasmooth",
    "scale_by_ftrl",
    "scale_by_kate",
    "scale_by_rss",
    "scale_by_sm3",
    "sm3",
]


@per_tensor(elementwise=True)
def scale_by_rss(eps=1e-10, initial_accumulator_value: NonNegative = 0.0):
    r"""Divide by the root of the sum of all squared gradients so far: Adagrad's direction.

    $G_t = G_{t-1} + g_t^2$, direction $g_t / (\sqrt{G_t} + \epsilon)$.

    Args:
        eps: $\epsilon \ge 0$, outside the root, in the units of a gradient.
        initial_accumulator_value: $G_0 \ge 0$.

    Returns:
        A transformation that keeps shapes and dtypes. State: `sum`, shaped as the parameter.

    Raises:
        ValueError: If an argument is negative.

    Example:
        >>> tx = gradtx.scale_by_rss()
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for _ in range(4):
        ...     updates, state = tx.update({"w": torch.tensor([3.0])}, state)
        >>> updates["w"]  # 1 / sqrt(t)
        tensor([0.5000])

    Source: Duchi, Hazan and Singer 2011, JMLR 12. Departures: none from torch.optim.Adagrad; optax starts from 0.1
    and adds eps inside the root.
    """

    def update(update, state, param, ctx):
        total = state["sum"] + update.square()
        return update / (safe_sqrt(total) + eps), {"sum": total}

    return {"sum": square(filled(initial_accumulator_value), slow=True)}, update


@per_tensor(elementwise=True)
def scale_by_adadelta(rho: Fraction = 0.9, eps=1e-6):
    r"""Rescale gradients to the size of earlier steps: Adadelta's direction, in the units of a weight.

    $q_t = \rho q_{t-1} + (1-\rho) g_t^2$, direction $\delta_t = \sqrt{a_{t-1} + \epsilon} / \sqrt{q_t + \epsilon}
    \cdot g_t$, then $a_t = \rho a_{t-1} + (1-\rho) \delta_t^2$.

    Args:
        rho: Weight of the old averages, in [0, 1].
        eps: $\epsilon \ge 0$, inside both roots: the first steps have size about $\sqrt{\epsilon}$. With 0, all are 0.

    Returns:
        A transformation that keeps shapes and dtypes. State: `square_avg` ($q$), `acc_delta` ($a$), shaped as the
        parameter; $a$ averages directions before any learning rate is applied.

    Raises:
        ValueError: If `rho` is outside [0, 1] or `eps` is negative.

    Example:
        >>> # steps of 0.001 at first, then the same size again
        >>> tx = gradtx.scale_by_adadelta(rho=0.0, eps=1e-6)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for grad in (5.0, -300.0):
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     print(f"{updates['w'].item():.6f}")
        0.001000
        -0.001414

    Source: Zeiler 2012, arXiv:1212.5701. Departures: none.
    """

    def update(g, state, p, ctx):
        v = running_mean(state["square_avg"], g.square(), rho)
        u = safe_sqrt((state["acc_delta"] + eps) / (v + eps)) * g
        return u, {
            "square_avg": v,
            "acc_delta": running_mean(state["acc_delta"], u.square(), rho),
        }

    return {"square_avg": square(), "acc_delta": square()}, update


@per_tensor(elementwise=True)
def scale_by_adamax(betas=(0.9, 0.999), eps=1e-8):
    r"""Divide the mean gradient by a decaying maximum of its magnitude: AdaMax's direction.

    $m_t = \beta_1 m_{t-1} + (1-\beta_1) g_t$, $u_t = \max(\beta_2 u_{t-1}, |g_t| + \epsilon)$, direction
    $m_t / ((1-\beta_1^t) u_t)$.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$, in the units of a gradient, inside the maximum. Zero gradients require a positive value.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg` ($m$), `exp_inf` ($u$), shaped as the
        parameter.

    Raises:
        ValueError: If a beta is outside [0, 1) or `eps` is negative.

    Example:
        >>> tx = gradtx.scale_by_adamax(betas=(0.0, 0.5))
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for grad in (8.0, 1.0, 1.0):  # divided by 8, 4, 2
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     print(updates["w"])
        tensor([1.])
        tensor([0.2500])
        tensor([0.5000])

    Source: Kingma and Ba 2014, arXiv:1412.6980, section 7.1. Departures: eps, as in torch.optim.Adamax; the paper does
    not have it.
    """
    beta1, beta2 = betas

    def update(g, state, p, ctx):
        m = running_mean(state["exp_avg"], g, beta1)
        largest = torch.maximum(beta2 * state["exp_inf"], g.abs() + eps)
        new = {"exp_avg": m, "exp_inf": largest}
        return m / (ctx.bias_correction(beta1) * largest), new

    return {"exp_avg": average_of(beta1), "exp_inf": square()}, update


@per_tensor(elementwise=True)
def scale_by_kate(delta: NonNegative = 0.0, eps=1e-8):
    r"""Divide by the sum of squared gradients, not by its root, and correct for the difference: KATE.

    $b_t^2 = b_{t-1}^2 + g_t^2 + \epsilon$, $m_t^2 = m_{t-1}^2 + \delta g_t^2 + g_t^2 / b_t^2$, direction
    $m_t g_t / b_t^2$. With $\delta = 0$, the steps of a linear model do not depend on the unit of the data.

    Args:
        delta: $\delta \ge 0$; values above 0 make the first steps larger.
        eps: $\epsilon \ge 0$, in the units of a squared gradient; it accumulates.

    Returns:
        A transformation that keeps shapes and dtypes. State: `b_sq`, `m_sq`, shaped as the parameter.

    Raises:
        ValueError: If an argument is negative.

    Example:
        >>> tx = gradtx.scale_by_kate(eps=0.0)
        >>> state = tx.init({"w": torch.zeros(2)})
        >>> for _ in range(2):  # a larger gradient results in a smaller step
        ...     updates, state = tx.update({"w": torch.tensor([1.0, 10.0])}, state)
        ...     print(updates["w"])
        tensor([1.0000, 0.1000])
        tensor([0.6124, 0.0612])

    Source: Choudhury et al. 2024, arXiv:2403.02648. Departures: none; eps as in pytorch_optimizer's class.
    """

    def update(g, state, p, ctx):
        square = g.square()
        b = state["b_sq"] + square + eps
        m = state["m_sq"] + quotient(square, b, floor=eps)
        if not is_off(delta):
            m = m + delta * square
        return quotient(safe_sqrt(m) * g, b, floor=eps), {"b_sq": b, "m_sq": m}

    return {"b_sq": square(slow=True), "m_sq": square(slow=True)}, update


@per_tensor(elementwise=True, needs="params")
def scale_by_adasmooth(
    betas=(0.5, 0.99),
    eps=1e-6,
    reset_every: Count | None = None,
):
    r"""Divide by a root mean square with a short memory for straight paths and a long one for oscillation: AdaSmooth.

    With $\Delta_t = p_t - p_{t-1}$, the change of the weight since the previous call (0 at the first):
    $S \leftarrow S + \Delta$, $N \leftarrow N + |\Delta|$, $e_t = |S|/N$ (0 where N = 0),
    $c_t = ((\rho_2 - \rho_1) e_t + 1 - \rho_2)^2$, $v_t = c_t g_t^2 + (1 - c_t) v_{t-1}$, direction
    $g_t / \sqrt{v_t + \epsilon}$; no bias correction.

    Args:
        betas: $(\rho_1, \rho_2)$, the fast and the slow decay, $0 \le \rho_1 < \rho_2 < 1$.
        eps: $\epsilon \ge 0$ inside the root, in the units of a squared gradient.
        reset_every: Steps after which $S$ and $N$ restart from 0 (the paper's window: an epoch); None for never.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg_sq`, `prev_param`, `sum` ($S$) and `abs_sum`
        ($N$), shaped as the parameter.

    Raises:
        ValueError: If an argument is out of range, if `betas` is not increasing, or if `params` is missing.

    Example:
        >>> tx = gradtx.scale_by_adasmooth()
        >>> params = {"w": torch.tensor([0.0, 0.0])}
        >>> state = tx.init(params)
        >>> # one weight moves straight, the other moves back
        >>> for moved in ([0.0, 0.0], [1.0, 1.0], [2.0, 0.0]):
        ...     updates, state = tx.update(
        ...         {"w": torch.ones(2)}, state, {"w": torch.tensor(moved)}
        ...     )
        >>> updates["w"]
        tensor([1.5118, 1.9994])

    Source: Lu 2022, arXiv:2204.00825. Departures: none from the paper.
    """
    fast, slow = betas
    if isinstance(fast, float) and isinstance(slow, float) and fast >= slow:
        raise ValueError(
            f"scale_by_adasmooth: betas must be increasing (fast decay first), got ({fast!r}, {slow!r})"
        )

    def update(g, state, p, ctx):
        moved = torch.where(ctx.seen, p - state["prev_param"], 0.0)
        total, path = state["sum"] + moved, state["abs_sum"] + moved.abs()
        if reset_every is not None:
            again = (ctx.step - 1) % reset_every == 0
            total, path = torch.where(again, 0.0, total), torch.where(again, 0.0, path)
        straightness = quotient(total.abs(), path)
        rate = ((slow - fast) * straightness + (1 - slow)).square()
        v = rate * g.square() + (1 - rate) * state["exp_avg_sq"]
        new = {"exp_avg_sq": v, "prev_param": p, "sum": total, "abs_sum": path}
        return g / safe_sqrt(v + eps), new

    return {
        "prev_param": start(),
        "exp_avg_sq": square(),
        "sum": linear(slow=True),
        "abs_sum": square(slow=True),
    }, update


@per_tensor(elementwise=True, needs="params", owns_lr=True)
def scale_by_ftrl(
    lr=1e-3,
    lr_power: NonPositive = -0.5,
    beta: NonNegative = 0.0,
    l1: NonNegative = 0.0,
    l2: NonNegative = 0.0,
    initial_accumulator_value: NonNegative = 0.0,
):
    r"""Move to the minimizer of the sum of gradients plus regularization terms: FTRL-Proximal.

    With $q = -$`lr_power`, $n' = n + g^2$, $z \leftarrow z + g - (n'^q - n^q)/\eta \, p$: $p$ becomes 0 where
    $|z| \le \lambda_1$, and $(\mathrm{sign}(z) \lambda_1 - z) / ((\beta + n'^q)/\eta + \lambda_2)$ elsewhere.

    Args:
        lr: $\eta \ge 0$. The method divides by it; a step with a rate of 0 leaves weights and state as they are.
        lr_power: At most 0; rates decrease with this power of the sum of squares.
        beta: $\beta \ge 0$, smooths the first rates.
        l1: $\lambda_1 \ge 0$; sets weights to exactly 0.
        l2: $\lambda_2 \ge 0$.
        initial_accumulator_value: $n_0 \ge 0$. If above 0, the first step pulls nonzero initial weights toward 0.

    Returns:
        A transformation that keeps shapes and dtypes and owns the learning rate. State: `z`, `n`, shaped as the
        parameter. A weight whose gradient has always been 0 becomes 0.

    Raises:
        ValueError: If an argument is out of range, if `params` is missing, or if a later link scales by a learning rate
            or decays.

    Example:
        >>> tx = gradtx.scale_by_ftrl(lr=1.0, l1=1.0)
        >>> params = {"w": torch.zeros(2)}
        >>> tx.update({"w": torch.tensor([0.5, -3.0])}, tx.init(params), params)[0]["w"]
        tensor([0.0000, 0.6667])

    Source: McMahan et al. 2013, "Ad click prediction: a view from the trenches", KDD. Departures: none; Keras doubles
    `l2`, and pytorch_optimizer uses the root of $n$ for any `lr_power`.
    """
    power = -lr_power

    def update(g, state, p, ctx):
        rate = exact(lr, g.device)
        moves = rate != 0  # not part of the method, which divides by the rate
        rate = torch.where(moves, rate, 1.0)
        n = state["n"] + g.square()
        size = safe_pow(n, power)
        z = state["z"] + g - (size - safe_pow(state["n"], power)) / rate * p
        curvature = (beta + size) / rate + l2
        # The curvature is 0 if the squares underflow.
        solved = (z.abs() > l1) & (curvature != 0)
        change = quotient(z.sign() * l1 - z, curvature, solved) - p
        new = {
            "z": torch.where(moves, z, state["z"]),
            "n": torch.where(moves, n, state["n"]),
        }
        return torch.where(moves, change, 0.0), new

    return {
        "z": linear(slow=True),
        "n": square(filled(initial_accumulator_value), slow=True),
    }, update


@per_tensor
def scale_by_sm3(beta: Decay = 0.0, eps: Positive = 1e-30):
    r"""Divide by the root of the summed squared gradients, stored as maxima of slices.

    $A^i$ is a vector along dimension i. $c_t = \min_i A^i_{t-1} + g_t^2$ (broadcast), or with $\beta > 0$
    $c_t = \beta \min_i A^i_{t-1} + (1-\beta) g_t^2$; the result is $g_t / \sqrt{c_t + \epsilon}$. Then $A^i_t$ is the
    larger of $A^i_{t-1}$ and the maximum of $c_t$ over the other dimensions.

    Args:
        beta: $\beta$, in [0, 1). 0 sums squares as in Adagrad.
        eps: $\epsilon > 0$, in the units of a squared gradient.

    Returns:
        A transformation that keeps shapes and dtypes. State: `accumulator_0`, `accumulator_1`, ..., one per dimension,
        of size 1 in the others (a single one for a 0-d leaf).

    Raises:
        ValueError: If `beta` is outside [0, 1) or `eps` is not above 0.

    Example:
        >>> tx = gradtx.scale_by_sm3()
        >>> _, state = tx.update(
        ...     {"w": torch.tensor([[1.0, 2.0], [3.0, 0.0]])}, tx.init({"w": torch.zeros(2, 2)})
        ... )
        >>> (
        ...     state["scale_by_sm3"]["accumulator_0"]["w"],
        ...     state["scale_by_sm3"]["accumulator_1"]["w"],
        ... )
        (tensor([[4.],
                [9.]]), tensor([[9., 4.]]))

    Source: Anil et al. 2019, arXiv:1901.11150 (SM3-II). Departures: beta > 0 follows Enealor/PyTorch-SM3. With beta = 0
    the maxima never decrease, so taking the larger one has no effect.
    """
    old_weight = beta + (beta == 0)  # 1 at beta 0

    def covers(p):
        shapes = [[1] * p.ndim for _ in range(max(p.ndim, 1))]
        for i, size in enumerate(p.shape):
            shapes[i][i] = size
        return [p.new_zeros(shape) for shape in shapes]

    def update(g, state, p, ctx):
        if g.numel() == 0:
            return g, state
        old = state["accumulator"]
        least = functools.reduce(torch.minimum, old)
        cover = old_weight * least + (1 - beta) * g.square()
        maxima = [torch.maximum(x, _maxima(cover, i)) for i, x in enumerate(old)]
        return g / (cover + eps).sqrt(), {"accumulator": maxima}

    return {"accumulator": square(covers, slow=True)}, update


def _maxima(x, dim):
    """Return the maxima over all dimensions but one; reduced dimensions have size 1."""
    others = tuple(i for i in range(x.ndim) if i != dim)
    return x.amax(dim=others, keepdim=True) if others else x


@alias
def adagrad(
    lr=1e-2,
    lr_decay: NonNegative = 0.0,
    weight_decay=0.0,
    initial_accumulator_value: NonNegative = 0.0,
    eps=1e-10,
    *,
    decoupled_weight_decay=False,
):
    r"""Adagrad, equivalent to torch.optim.Adagrad: the gradient over the root of the sum of all squares so far.

    $G_t = G_{t-1} + g_t^2$, $p \leftarrow p - \frac{\eta}{1 + (t-1) \kappa} \cdot g_t / (\sqrt{G_t} + \epsilon)$.

    When to use: sparse features and convex problems, such as linear models and embeddings; rates never rise.

    Args:
        lr: $\eta$ in [0, inf), the change of each weight in the first step.
        lr_decay: $\kappa \ge 0$, an additional decay of the rate; the first step uses the full rate.
        weight_decay: $\lambda \ge 0$, added to the gradient unless decoupled.
        initial_accumulator_value: $G_0 \ge 0$.
        eps: $\epsilon \ge 0$, added outside the square root, in units of the gradient.
        decoupled_weight_decay: Apply the decay to the weights instead, at the decayed rate.

    Returns:
        A transformation whose updates are added to the parameters. State: `sum`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.adagrad(lr=0.1, lr_decay=1.0)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for _ in range(4):
        ...     updates, state = tx.update({"w": torch.tensor([3.0])}, state)
        >>> updates["w"]  # 0.1 / 4 from the decay, and / 2 from the sum
        tensor([-0.0125])

    Source: Duchi, Hazan and Singer 2011, JMLR 12. Departures: none from torch.optim.Adagrad, except that a parameter
    group can have its own `initial_accumulator_value`.
    """
    return chain(
        decayed(
            scale_by_rss(eps, initial_accumulator_value),
            weight_decay,
            decoupled_weight_decay,
        ),
        scale_by_inverse_time(lr_decay),
        scale_by_learning_rate(lr),
    )


@alias
def adadelta(
    lr=1.0,
    rho: Fraction = 0.9,
    eps=1e-6,
    weight_decay=0.0,
    *,
    decoupled_weight_decay=False,
):
    r"""Adadelta, equivalent to torch.optim.Adadelta: step sizes that follow those of earlier steps.

    $\delta_t = \sqrt{a_{t-1} + \epsilon} / \sqrt{q_t + \epsilon} \cdot g_t$, $p \leftarrow p - \eta \delta_t$ with the
    averages $q$ of $g^2$ and $a$ of $\delta^2$.

    When to use: existing recipes that use it. Its rate needs tuning, which learning-rate-free methods avoid.

    Args:
        lr: $\eta$ in [0, inf); 1 is the paper's rule.
        rho: Decay rate of the averages, in [0, 1].
        eps: $\epsilon \ge 0$, added inside both square roots; the length of the first steps is about $\sqrt{\epsilon}$.
        weight_decay: $\lambda \ge 0$, added to the gradient unless decoupled.
        decoupled_weight_decay: Apply the decay to the weights instead of the gradient.

    Returns:
        A transformation whose updates are added to the parameters. State: `square_avg`, `acc_delta`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.adadelta(rho=0.0)
        >>> # sqrt(eps)
        >>> tx.update({"w": torch.tensor([1e3, -5.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([-0.0010,  0.0010])

    Source: Zeiler 2012, arXiv:1212.5701. Departures: none from torch.optim.Adadelta.
    """
    return with_decay(
        scale_by_adadelta(rho, eps), weight_decay, decoupled_weight_decay, lr
    )


@alias
def adamax(
    lr=2e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0.0,
    *,
    decoupled_weight_decay=False,
):
    r"""AdaMax, equivalent to torch.optim.Adamax: Adam with a decaying maximum instead of the root mean square.

    $u_t = \max(\beta_2 u_{t-1}, |g_t| + \epsilon)$, $p \leftarrow p - \frac{\eta}{1-\beta_1^t} m_t / u_t$.

    When to use: embeddings and other sparse gradients, with spikes that should not be averaged into the denominator.

    Args:
        lr: $\eta$ in [0, inf), approximately the largest change of a weight per step.
        betas: Decay rates of the average and of the maximum, each in [0, 1).
        eps: $\epsilon \ge 0$, inside the maximum, in units of the gradient.
        weight_decay: $\lambda \ge 0$, added to the gradient unless decoupled.
        decoupled_weight_decay: Apply the decay to the weights instead of the gradient.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_inf`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.adamax(lr=0.1)
        >>> tx.update({"w": torch.tensor([1e-4, -7.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([-0.1000,  0.1000])

    Source: Kingma and Ba 2014, arXiv:1412.6980, section 7.1. Departures: none from torch.optim.Adamax.
    """
    return with_decay(
        scale_by_adamax(betas, eps), weight_decay, decoupled_weight_decay, lr
    )


@alias
def kate(
    lr=1e-3,
    delta: NonNegative = 0.0,
    eps=1e-8,
    weight_decay=0.0,
):
    r"""KATE: AdaGrad without the square root, with steps that do not depend on the scale of the data.

    $p \leftarrow p - \eta (m_t g_t / b_t^2 + \lambda p)$, $b_t^2 = \sum (g^2 + \epsilon)$,
    $m_t^2 = \sum (\delta g_i^2 + g_i^2 / b_i^2)$; see `scale_by_kate`.

    When to use: as an alternative to AdaGrad, for features of very different scales (the paper's claim).

    Args:
        lr: $\eta$ in [0, inf).
        delta: $\delta \ge 0$; values above 0 enlarge the first steps.
        eps: $\epsilon \ge 0$, in units of the squared gradient.
        weight_decay: $\lambda \ge 0$, decoupled.

    Returns:
        A transformation whose updates are added to the parameters. State: `b_sq`, `m_sq`.

    Raises:
        ValueError: If a hyperparameter is negative, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.kate(lr=1.0)
        >>> # -1 / g
        >>> tx.update({"w": torch.tensor([0.5, 4.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([-2.0000, -0.2500])

    Source: Choudhury et al. 2024, arXiv:2403.02648. Departures: see `scale_by_kate`.
    """
    return with_decay(scale_by_kate(delta, eps), weight_decay, True, lr)


@alias(class_name="AdaSmooth")
def adasmooth(
    lr=1e-3,
    betas=(0.5, 0.99),
    eps=1e-6,
    weight_decay=0.0,
    decoupled_weight_decay=False,
    reset_every: Count | None = None,
):
    r"""AdaSmooth: RMSprop with a short memory for weights that move straight, and a long one where they oscillate.

    $p \leftarrow p - \eta g_t / \sqrt{v_t + \epsilon}$ with $v_t = c_t g_t^2 + (1 - c_t) v_{t-1}$ and $c_t$ from
    $(1-\rho_2)^2$ (oscillating) to $(1-\rho_1)^2$ (straight); see `scale_by_adasmooth`.

    When to use: when RMSprop's decay rate should follow the movement of each weight instead of being tuned.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step; in the first step, $\eta/(1-\rho_2)$.
        betas: $(\rho_1, \rho_2)$, the fast and the slow decay rate, $0 \le \rho_1 < \rho_2 < 1$.
        eps: $\epsilon \ge 0$, added inside the square root, in units of the squared gradient.
        weight_decay: $\lambda \ge 0$, added to the gradient.
        decoupled_weight_decay: Apply the decay to the weights instead, $p (1 - \eta \lambda)$; it counts as movement.
        reset_every: Number of steps in a window of movement (one epoch in the paper); None for a window without end.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg_sq`, `prev_param`, `sum`,
        `abs_sum`.

    Raises:
        ValueError: If a hyperparameter is out of range, if `betas` is not increasing, or if `params` is missing.

    Example:
        >>> tx = gradtx.adasmooth(lr=1e-3)
        >>> params = {"w": torch.tensor([0.0])}
        >>> # lr / (1 - 0.99)
        >>> tx.update({"w": torch.tensor([7.0])}, tx.init(params), params)[0]["w"]
        tensor([-0.1000])

    Source: Lu 2022, arXiv:2204.00825. Departures: none from the paper. pytorch_optimizer's class adds eps to the length
    of the path, and counts the decoupled decay of the first step as earlier movement.
    """
    return with_decay(
        scale_by_adasmooth(betas, eps, reset_every),
        weight_decay,
        decoupled_weight_decay,
        lr,
    )


@alias(class_name="FTRL")
def ftrl(**arguments: Annotated[Any, scale_by_ftrl]):
    r"""FTRL-Proximal: one rate per weight, and weights that are exactly 0.

    Equivalent to `scale_by_ftrl`, whose updates are final: no learning rate may follow.

    When to use: sparse linear models and embeddings of rare features, trained online. Weights should start at 0: a
    weight whose gradient has always been 0 becomes 0.

    Args:
        lr: $\eta \ge 0$. The method divides by it; a step with a rate of 0 leaves weights and state as they are.
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
    return scale_by_ftrl(**arguments)


@alias(class_name="SM3")
def sm3(
    lr=0.1,
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
