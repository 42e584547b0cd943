"""AdaGrad and its kin: links that divide by sums, maxima or delayed averages of squares."""

from __future__ import annotations

from typing import Annotated

import torch

from gradtx.arguments import (
    Count,
    Decay,
    Decays,
    Fraction,
    NonNegative,
    Positive,
    is_off,
)
from gradtx.base.exact import Scalar
from gradtx.rules import per_tensor
from gradtx.slots import ema, linear, scalar, square, start
from gradtx.transforms._math import (
    adam_moments,
    corrected_root,
    filled_like,
    largest,
    norm,
    peak,
    quotient,
    running_mean,
    safe_pow,
    safe_sqrt,
    scalar_zero,
)

__all__ = [
    "scale_by_acprop",
    "scale_by_adadelta",
    "scale_by_adamax",
    "scale_by_adanorm",
    "scale_by_adashift",
    "scale_by_adasmooth",
    "scale_by_avagrad",
    "scale_by_bcos",
    "scale_by_ftrl",
    "scale_by_kate",
    "scale_by_rss",
]


@per_tensor(elementwise=True)
def scale_by_rss(
    eps: NonNegative = 1e-10, initial_accumulator_value: NonNegative = 0.0
):
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

    return {"sum": square(lambda p: filled_like(p, initial_accumulator_value))}, update


@per_tensor(elementwise=True)
def scale_by_adadelta(rho: Fraction = 0.9, eps: NonNegative = 1e-6):
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

    def update(update, state, param, ctx):
        square = running_mean(state["square_avg"], update.square(), rho)
        delta = safe_sqrt((state["acc_delta"] + eps) / (square + eps)) * update
        return delta, {
            "square_avg": square,
            "acc_delta": running_mean(state["acc_delta"], delta.square(), rho),
        }

    return {"square_avg": square(), "acc_delta": square()}, update


@per_tensor(elementwise=True)
def scale_by_adamax(betas: Decays = (0.9, 0.999), eps: NonNegative = 1e-8):
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

    def update(update, state, param, ctx):
        mean = running_mean(state["exp_avg"], update, beta1)
        largest = torch.maximum(beta2 * state["exp_inf"], update.abs() + eps)
        return mean / (ctx.bias_correction(beta1) * largest), {
            "exp_avg": mean,
            "exp_inf": largest,
        }

    return {"exp_avg": ema(beta1), "exp_inf": square()}, update


@per_tensor(
    elementwise=True,
    shared=lambda arguments: {"gamma": 0.0} if arguments["lagged_norm"] else {},
    agree=("lagged_norm",),
)
def scale_by_avagrad(
    betas: Decays = (0.9, 0.999), eps: NonNegative = 0.1, lagged_norm: bool = False
):
    r"""Divide the mean gradient by the size of earlier gradients, rescaled to a fixed overall scale: AvaGrad.

    With Adam's $m_t$, $v_t$: $\eta_t = 1/(\sqrt{v_{t-1}/(1-\beta_2^{t-1})} + \epsilon)$ and
    $\gamma_t = 1/\sqrt{\overline{\eta_t^2}}$, the mean over all entries of all leaves; direction
    $\gamma_t \eta_t m_t / (1-\beta_1^t)$. The first step, without earlier gradients, updates the state and returns 0.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$, in the units of a gradient; controls how adaptive the method is (large: SGD). With 0, an
            entry without earlier gradients becomes NaN.
        lagged_norm: Compute $\gamma$ as in the authors' code, one step earlier, from $v_{t-2}$ corrected by
            $1-\beta_2^{t-1}$.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_sq`, shaped as the parameter; with
        `lagged_norm` also `gamma`, one 0-d float64 shared by all leaves.

    Raises:
        ValueError: If a beta is outside [0, 1) or `eps` is negative.

    Example:
        >>> tx = gradtx.scale_by_avagrad(betas=(0.0, 0.999), eps=0.0)
        >>> state = tx.init({"w": torch.zeros(2)})
        >>> for _ in range(2):  # 1/eta is (3, 4); gamma makes the mean square of gamma * eta 1
        ...     updates, state = tx.update({"w": torch.tensor([3.0, 4.0])}, state)
        ...     print(updates["w"])
        tensor([0., 0.])
        tensor([3.3941, 3.3941])

    Source: Savarese et al. 2019, arXiv:1912.01823. Departures: none from the paper; the authors' code corresponds to
    `lagged_norm=True`.
    """
    beta1, beta2 = betas
    moments, average = adam_moments(betas)

    def update(update, state, param, ctx):
        mean, _, new = average(update, state)
        # V and its correction are then 0: replace both by arbitrary values.
        first = (~ctx.seen).to(ctx.time.dtype)
        earlier = state["exp_avg_sq"]
        correction = ctx.bias_correction(beta2, ctx.step - 1) + first
        eta = 1 / (safe_sqrt(earlier / correction) + (eps + first))
        late = 1 / (corrected_root(earlier, ctx, beta2) + eps) if lagged_norm else eta
        # A leaf has no size to contribute at its first step.
        left_out = 0.0 if lagged_norm else first
        total = yield {
            "square": (1 - left_out) * late.square().sum(),
            "count": (1 - left_out) * late.numel(),
        }
        gamma = ((total["count"] + left_out) / (total["square"] + left_out)).sqrt()
        if lagged_norm:
            gamma, new = state["gamma"], new | {"gamma": gamma}
        yield (1 - first) * gamma / ctx.bias_correction(beta1) * eta * mean, new

    return moments, update


_REDUCTIONS = {
    "max": largest,
    "mean": lambda x: x.sum() / max(x.numel(), 1),
    "none": lambda x: x,
}


@per_tensor(elementwise=lambda arguments: arguments["reduce"] == "none")
def scale_by_adashift(
    betas: Decays = (0.9, 0.999),
    keep_num: Count = 10,
    eps: NonNegative = 1e-10,
    reduce: str = "max",
):
    r"""Divide the mean of the last $n$ gradients by the size of the gradients before them: AdaShift.

    $v_t = \beta_2 v_{t-1} + (1-\beta_2) \phi(g_{t-n}^2)$ from 0,
    $m_t = \sum_{i<n} \beta_1^i g_{t-i} / \sum_{i<n} \beta_1^i$, direction
    $m_t / (\sqrt{v_t/(1-\beta_2^{t-n})} + \epsilon)$: numerator and denominator share no gradient. The first $n$ steps
    return 0, as do entries whose $v$ is still 0.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        keep_num: $n \ge 1$, the number of gradients to keep.
        eps: $\epsilon \ge 0$, in the units of a gradient.
        reduce: $\phi$: "max" or "mean" over the leaf for a single rate, or "none" for one rate per weight.

    Returns:
        A transformation that keeps shapes and dtypes. State: `grad_0` ... `grad_{n-1}`, the last gradients, newest
        first, shaped as the parameter; `exp_avg_sq`, 0-d float64 for each leaf, or shaped as the parameter with "none".

    Raises:
        ValueError: If an argument is out of range, or if `reduce` is unknown.

    Example:
        >>> tx = gradtx.scale_by_adashift(betas=(0.0, 0.9), keep_num=1)
        >>> state = tx.init({"w": torch.zeros(2)})
        >>> # the second is divided by the largest entry of the first
        >>> for grad in ([2.0, -4.0], [3.0, 1.0]):
        ...     updates, state = tx.update({"w": torch.tensor(grad)}, state)
        ...     print(updates["w"])
        tensor([0., 0.])
        tensor([0.7500, 0.2500])

    Source: Zhou et al. 2018, arXiv:1810.00143. Departures: none from the paper; the PyTorch port in the authors'
    repository starts $m$ only after the first $n$ steps.
    """
    if reduce not in _REDUCTIONS:
        raise ValueError(
            f"scale_by_adashift: reduce must be 'max', 'mean' or 'none', got {reduce!r}"
        )
    (beta1, beta2), phi = betas, _REDUCTIONS[reduce]

    def update(update, state, param, ctx):
        *recent, oldest = state["grad"]
        window = [update, *recent]
        square = beta2 * state["exp_avg_sq"] + (1 - beta2) * phi(oldest.square())
        mean, weight = window[-1], 1.0
        for grad in reversed(window[:-1]):  # both sums over the window by Horner's rule
            mean, weight = grad + beta1 * mean, 1 + beta1 * weight
        is_zero = square == 0  # includes the first n steps
        correction = ctx.bias_correction(beta2, (ctx.step - keep_num).clamp(min=1))
        size = safe_sqrt(torch.where(is_zero, 1.0, square) / correction) + eps
        return torch.where(is_zero, 0.0, mean / (weight * size)), {
            "grad": window,
            "exp_avg_sq": square,
        }

    slots = {
        "grad": linear(lambda p: [torch.zeros_like(p) for _ in range(keep_num)]),
        "exp_avg_sq": square(torch.zeros_like if reduce == "none" else scalar_zero),
    }
    return slots, update


@per_tensor(elementwise=True)
def scale_by_kate(delta: NonNegative = 0.0, eps: NonNegative = 1e-8):
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

    def update(update, state, param, ctx):
        update_square = update.square()
        total = state["b_sq"] + update_square + eps
        scale = state["m_sq"] + quotient(update_square, total, floor=eps)
        if not is_off(delta):
            scale = scale + delta * update_square
        return quotient(safe_sqrt(scale) * update, total, floor=eps), {
            "b_sq": total,
            "m_sq": scale,
        }

    return {"b_sq": square(), "m_sq": square()}, update


@per_tensor(takes_complex=True)
def scale_by_adanorm(
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-8,
    r: Decay = 0.95,
    amsgrad: bool = False,
    accumulate_eps: bool = False,
):
    r"""Lengthen gradients that are shorter than usual to their usual norm before Adam averages them: AdaNorm.

    For each leaf, $e_t = r e_{t-1} + (1-r) \lVert g_t \rVert$ from 0 and without bias correction,
    $s_t = g_t \max(1, e_t / \lVert g_t \rVert)$, $m_t = \beta_1 m_{t-1} + (1-\beta_1) s_t$,
    $v_t = \beta_2 v_{t-1} + (1-\beta_2) g_t^2$ with the original gradient, direction
    $\hat m_t / (\sqrt{\hat v_t} + \epsilon)$. A zero gradient remains 0.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$, in the units of a gradient.
        r: Decay of the average norm, in [0, 1).
        amsgrad: Use the running maximum of $v$ instead of $v$.
        accumulate_eps: Also add $\epsilon$ to the stored $v$ at every step, as in the authors' code.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_sq` and, with `amsgrad`,
        `max_exp_avg_sq`, shaped as the parameter; `exp_grad_norm`, 0-d float64 for each leaf.

    Raises:
        ValueError: If a beta or `r` is outside [0, 1), or if `eps` is negative.

    Example:
        >>> tx = gradtx.scale_by_adanorm(betas=(0.0, 0.5), r=0.5)
        >>> state = tx.init({"w": torch.zeros(2)})
        >>> # e = 2, then 1.5: the second gradient is lengthened by half
        >>> for size in (4.0, 1.0):
        ...     _, state = tx.update({"w": torch.tensor([0.6, 0.8]) * size}, state)
        ...     print(state["scale_by_adanorm"]["exp_avg"]["w"])
        tensor([2.4000, 3.2000])
        tensor([0.9000, 1.2000])

    Source: Dubey et al. 2022, arXiv:2210.06364. Departures: none from the paper.
    """
    beta1, beta2 = betas
    moments, _ = adam_moments(betas, amsgrad)

    def update(update, state, param, ctx):
        length = norm(update)
        usual = running_mean(state["exp_grad_norm"], length, r)
        short = (length < usual) & (length > 0)
        lifted = quotient(usual, length, short, 1.0) * update
        mean = running_mean(state["exp_avg"], lifted, beta1)
        square = running_mean(state["exp_avg_sq"], update.square(), beta2)
        if accumulate_eps:
            square = square + eps
        new = {"exp_avg": mean, "exp_avg_sq": square, "exp_grad_norm": usual}
        square = peak(new, state, "exp_avg_sq", amsgrad)
        root = corrected_root(square, ctx, beta2)
        return mean / ctx.bias_correction(beta1) / (root + eps), new

    return {**moments, "exp_avg": linear(), "exp_grad_norm": scalar()}, update


@per_tensor(elementwise=True, needs=("params",))
def scale_by_adasmooth(
    betas: Decays = (0.5, 0.99),
    eps: NonNegative = 1e-6,
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

    def update(update, state, param, ctx):
        moved = torch.where(ctx.seen, param - state["prev_param"], 0.0)
        total, path = state["sum"] + moved, state["abs_sum"] + moved.abs()
        if reset_every is not None:
            again = (ctx.step - 1) % reset_every == 0
            total, path = torch.where(again, 0.0, total), torch.where(again, 0.0, path)
        straightness = quotient(total.abs(), path)
        squared_rate = ((slow - fast) * straightness + (1 - slow)).square()
        square = (
            squared_rate * update.square() + (1 - squared_rate) * state["exp_avg_sq"]
        )
        new = {"exp_avg_sq": square, "prev_param": param, "sum": total, "abs_sum": path}
        return update / safe_sqrt(square + eps), new

    return {
        "prev_param": start(),
        "exp_avg_sq": square(),
        "sum": linear(),
        "abs_sum": square(),
    }, update


@per_tensor(elementwise=True, needs=("params",), owns_lr=True)
def scale_by_ftrl(
    lr: Positive = 1e-3,
    lr_power: Annotated[Scalar, "(-inf, 0]"] = -0.5,
    beta: NonNegative = 0.0,
    l1: NonNegative = 0.0,
    l2: NonNegative = 0.0,
    initial_accumulator_value: NonNegative = 0.0,
):
    r"""Move to the minimizer of the sum of gradients plus regularization terms: FTRL-Proximal.

    With $q = -$`lr_power`, $n' = n + g^2$, $z \leftarrow z + g - (n'^q - n^q)/\eta \, p$: $p$ becomes 0 where
    $|z| \le \lambda_1$, and $(\mathrm{sign}(z) \lambda_1 - z) / ((\beta + n'^q)/\eta + \lambda_2)$ elsewhere.

    Args:
        lr: $\eta > 0$.
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

    def update(update, state, param, ctx):
        squares = state["n"] + update.square()
        size = safe_pow(squares, power)
        gradients = (
            state["z"] + update - (size - safe_pow(state["n"], power)) / lr * param
        )
        pull = gradients.sign() * l1 - gradients
        curvature = (beta + size) / lr + l2
        # The curvature is 0 if the squares underflow.
        moved = (gradients.abs() > l1) & (curvature != 0)
        weight = quotient(pull, curvature, moved)
        return weight - param, {"z": gradients, "n": squares}

    return {
        "z": linear(),
        "n": square(lambda p: filled_like(p, initial_accumulator_value)),
    }, update


@per_tensor(elementwise=True)
def scale_by_acprop(
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-16,
    amsgrad: bool = False,
    momentum_update: bool = False,
):
    r"""Divide the gradient by the deviation of earlier gradients from their mean: ACProp's direction.

    $m_t = \beta_1 m_{t-1} + (1-\beta_1) g_t$, direction $g_t / (\sqrt{s_{t-1} / (1-\beta_2^{t-1})} + \epsilon)$, or
    the gradient itself at $t = 1$; then $s_t = \beta_2 s_{t-1} + (1-\beta_2) (g_t - m_t)^2 + \epsilon$.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$. Added twice: to $s$, where it accumulates, and to its root.
        amsgrad: Use the running maximum of $s$ instead of $s$.
        momentum_update: Divide $m_t / (1-\beta_1^t)$ instead of $g_t$.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_var` and, with `amsgrad`,
        `max_exp_avg_var`, shaped as the parameter.

    Raises:
        ValueError: If a beta is outside [0, 1) or `eps` is negative.

    Example:
        >>> tx = gradtx.scale_by_acprop(betas=(0.5, 0.5), eps=0.0)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for grad in (4.0, 4.0, 100.0):  # the last one is divided by the earlier deviation
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     print(updates["w"])
        tensor([4.])
        tensor([2.])
        tensor([70.7107])

    Source: Zhuang et al. 2021, arXiv:2110.05454. Departures: the authors' class rectifies by default, which the paper
    does not, and with amsgrad it adds $\epsilon$ once more at $t = 1$. optax uses the old $m$ in $g - m$.
    """
    beta1, beta2 = betas

    def update(update, state, param, ctx):
        first = (state["exp_avg"] == 0) & (state["exp_avg_var"] == 0)
        mean = running_mean(state["exp_avg"], update, beta1)
        above = mean / ctx.bias_correction(beta1) if momentum_update else update
        correction = torch.where(
            ctx.seen, ctx.bias_correction(beta2, ctx.step - 1), 1.0
        )
        old = state["max_exp_avg_var" if amsgrad else "exp_avg_var"]
        root = safe_sqrt(old / correction) + eps
        variance = running_mean(state["exp_avg_var"], (update - mean).square(), beta2)
        new = {"exp_avg": mean, "exp_avg_var": variance + eps}
        peak(new, state, "exp_avg_var", amsgrad)
        return torch.where(first, above, quotient(above, root, floor=eps)), new

    return {
        "exp_avg": linear(),
        "exp_avg_var": square(),
        **({"max_exp_avg_var": square()} if amsgrad else {}),
    }, update


MODES = ("c", "m", "g")


@per_tensor(elementwise=True)
def scale_by_bcos(
    beta: Decay = 0.9,
    beta2: Decay | None = None,
    eps: NonNegative = 1e-6,
    mode: str = "c",
    simple_cond: bool = False,
):
    r"""Divide a momentum by the root of its mean square without an additional slot: BCOS.

    $m_t = \beta m_{t-1} + (1-\beta) g_t$ from $m_0 = g_1$. Mode "c": direction $m_t / (\sqrt{v_t} + \epsilon)$ with the
    conditional mean square
    $v_t = (3\beta^2 - 2\beta^3) m_{t-1}^2 + (1-\beta)^2 g_t^2 + 2\beta (1-\beta)^2 m_{t-1} g_t$. Modes "m" and "g":
    direction $d_t / (\sqrt{v_t} + \epsilon)$ with $d = m$ or $d = g$,
    $v_t = \beta_2 v_{t-1} + (1-\beta_2) d_t^2$ from $v_0 = g_1^2$.

    Args:
        beta: $\beta$ in [0, 1).
        beta2: $\beta_2$ in [0, 1). None: $\beta$, or $1 - (1-\beta)^2$ with `simple_cond`.
        eps: $\epsilon \ge 0$, in the units of a gradient.
        mode: "c", "m" or "g".
        simple_cond: In mode "c", use $v_t = \beta_2 m_{t-1}^2 + (1-\beta_2) g_t^2$.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg` (modes "c" and "m") and `exp_avg_sq` (modes
        "m" and "g"), shaped as the parameter and initialized from the first gradient passed to the chain.

    Raises:
        ValueError: If an argument is out of range, or if `mode` is unknown.

    Example:
        >>> tx = gradtx.scale_by_bcos(beta=0.5, eps=0.0)
        >>> state = tx.init({"w": torch.zeros(2)})
        >>> # a steady gradient, and one that changes sign
        >>> for grads in ([1.0, 1.0], [1.0, -1.0]):
        ...     updates, state = tx.update({"w": torch.tensor(grads)}, state)
        >>> updates["w"]
        tensor([1., 0.])

    Source: Jiang et al. 2025, arXiv:2507.08963. Departures: none from the authors' code. (pytorch_optimizer's class
    uses $m_t$ instead of $m_{t-1}$ in mode "c".)
    """
    if mode not in MODES:
        raise ValueError(
            f"scale_by_bcos: mode must be one of {', '.join(map(repr, MODES))}, got {mode!r}"
        )
    rest = 1 - beta
    keep = (1 - rest * rest if mode == "c" else beta) if beta2 is None else beta2

    def conditional(mean, update):
        if simple_cond:
            return running_mean(mean.square(), update.square(), keep)
        # The docstring's three terms as two squares: rounded, their sum could be negative.
        return (
            beta**2 * (2 - beta**2) * mean.square()
            + rest**2 * (update + beta * mean).square()
        )

    def update(update, state, param, ctx):
        new, old, direction = {}, update, update
        if mode != "g":
            old = torch.where(ctx.seen, state["exp_avg"], ctx.grad)
            direction = new["exp_avg"] = running_mean(old, update, beta)
        if mode == "c":
            square = conditional(old, update)
        else:
            before = torch.where(ctx.seen, state["exp_avg_sq"], ctx.grad.square())
            square = new["exp_avg_sq"] = running_mean(before, direction.square(), keep)
        return quotient(direction, safe_sqrt(square) + eps, floor=eps), new

    slots = {
        "exp_avg": linear() if mode != "g" else None,
        "exp_avg_sq": square() if mode != "c" else None,
    }
    return slots, update
