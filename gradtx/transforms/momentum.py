"""Momentum: links that add earlier gradients to the current one."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor

from gradtx.arguments import (
    AnyLength,
    Count,
    Decay,
    Decays,
    Fraction,
    NonNegative,
    NonNegativeInt,
    is_off,
)
from gradtx.base.exact import Scalar, exact
from gradtx.base.torch_names import readable
from gradtx.rules import per_tensor
from gradtx.slots import ema as average_of
from gradtx.slots import linear, scalar, square, start
from gradtx.transform import chain
from gradtx.transforms._math import change_of, largest, running_mean, safe_sqrt
from gradtx.transforms.weight_decay import check_initial_lr

__all__ = [
    "amplify_slow_gradients",
    "amplify_slow_gradients_window",
    "ema",
    "ema_nesterov",
    "scale_by_accsgd",
    "scale_by_aggmo",
    "scale_by_gravity",
    "scale_by_optimistic_gradient",
    "scale_by_pid",
    "scale_by_qhadam",
    "scale_by_qhm",
    "trace",
    "trace_ema",
]


@per_tensor(elementwise=True)
def trace(
    momentum: NonNegative,
    dampening: Scalar = 0.0,
    nesterov: bool = False,
    dampen_first: bool = False,
):
    r"""Accumulate earlier updates with geometric weights: the momentum of torch.optim.SGD.

    $b_t = \mu b_{t-1} + (1 - \tau) g_t$ with $b_1 = g_1$; returns $b_t$, or $g_t + \mu b_t$ with `nesterov`.

    Args:
        momentum: $\mu$, in [0, inf), below 1 in practice. A literal 0.0 omits the link.
        dampening: $\tau$, usually in [0, 1).
        nesterov: Look one step ahead.
        dampen_first: Start from $b_0 = 0$, so that the first step is dampened as well.

    Returns:
        A transformation that keeps shapes and dtypes. State: `momentum_buffer`, shaped as the parameter.

    Raises:
        ValueError: If `momentum` is negative, or if `nesterov` is used without momentum or, unless `dampen_first` is
            set, with dampening.

    Example:
        >>> tx = gradtx.trace(0.5)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for _ in range(3):
        ...     updates, state = tx.update({"w": torch.ones(1)}, state)
        ...     print(updates["w"].item())
        1.0
        1.5
        1.75

    Source: Polyak 1964; Sutskever et al. 2013, in the form of torch.optim.SGD. Departures: `dampen_first`.
    """
    # Only a plain number can be checked at construction; tensors and schedules are not checked.
    dampened = isinstance(dampening, float) and not is_off(dampening)
    if nesterov and (is_off(momentum) or (dampened and not dampen_first)):
        raise ValueError(
            "trace: nesterov needs a momentum above 0 and a dampening of 0"
        )
    if is_off(momentum):
        return chain()

    def update(update, state, param, ctx):
        buffer = accumulated(
            state["momentum_buffer"], update, momentum, dampening, ctx, dampen_first
        )
        return update + momentum * buffer if nesterov else buffer, {
            "momentum_buffer": buffer
        }

    return {"momentum_buffer": linear()}, update


def accumulated(
    buffer: Tensor, update: Tensor, momentum, dampening, ctx, dampen_first: bool = False
) -> Tensor:
    """Return the next momentum buffer of torch.optim.SGD, in which the first update is undampened."""
    if is_off(dampening):
        return momentum * buffer + update
    share = 1 - dampening
    if not dampen_first:
        share = torch.where(ctx.seen, share, torch.ones_like(ctx.time))
    return momentum * buffer + share * update


@per_tensor(elementwise=True)
def trace_ema(beta: Decay, nesterov: bool = False):
    r"""Replace updates by their exponential moving average, without bias correction, as a momentum.

    $b_t = \beta b_{t-1} + (1 - \beta) g_t$ from $b_0 = 0$; returns $b_t$, or $\beta b_t + (1 - \beta) g_t$ with
    `nesterov`.

    Args:
        beta: $\beta$, in [0, 1).
        nesterov: Look one step ahead.

    Returns:
        A transformation that keeps shapes and dtypes. State: `momentum_buffer`, shaped as the parameter.

    Raises:
        ValueError: If `beta` is outside [0, 1).

    Example:
        >>> tx = gradtx.trace_ema(0.5, nesterov=True)
        >>> updates, state = tx.update({"w": torch.ones(1)}, tx.init({"w": torch.zeros(1)}))
        >>> updates["w"], state["trace_ema"]["momentum_buffer"]["w"]
        (tensor([0.7500]), tensor([0.5000]))

    Source: Nesterov 1983, in the averaged form of Muon's code. Departures: none; `ema` is the same average with an
    optional bias correction, under another slot name.
    """

    def update(update, state, param, ctx):
        increment = (1 - beta) * update
        buffer = beta * state["momentum_buffer"] + increment
        return beta * buffer + increment if nesterov else buffer, {
            "momentum_buffer": buffer
        }

    return {"momentum_buffer": average_of(beta)}, update


@per_tensor(elementwise=True)
def ema(decay: Decay, debias: bool = False):
    r"""Replace updates by their exponential moving average.

    $m_t = \beta m_{t-1} + (1 - \beta) g_t$ from $m_0 = 0$; returns $m_t$, or $m_t / (1 - \beta^t)$ with `debias`.

    Args:
        decay: $\beta$, in [0, 1).
        debias: Divide by $1 - \beta^t$. This is the default of optax's `ema`.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, shaped as the parameter.

    Raises:
        ValueError: If `decay` is outside [0, 1).

    Example:
        >>> tx = gradtx.ema(0.5)
        >>> tx.update({"w": torch.ones(1)}, tx.init({"w": torch.zeros(1)}))[0]["w"]
        tensor([0.5000])
    """

    def update(update, state, param, ctx):
        mean = running_mean(state["exp_avg"], update, decay)
        return mean / ctx.bias_correction(decay) if debias else mean, {"exp_avg": mean}

    return {"exp_avg": average_of(decay)}, update


@per_tensor(elementwise=True, needs=("params",), owns_lr=True)
def scale_by_accsgd(
    lr: NonNegative,
    kappa: Annotated[Scalar, "[1, inf)"] = 1000.0,
    xi: NonNegative = 10.0,
    small_const: Annotated[Scalar, "(0, 1]"] = 0.7,
):
    r"""Combine a short step with an average of long steps: accelerated SGD.

    With $\alpha = 1 - c^2 \xi / \kappa$, $\zeta = c / (c + 1 - \alpha)$: $\bar p \leftarrow \alpha \bar p + (1-\alpha)
    (p - \frac{\eta \kappa}{c} g)$, then $p \leftarrow \zeta (p - \eta g) + (1 - \zeta) \bar p$.

    Args:
        lr: $\eta$ in [0, inf), the short step.
        kappa: $\kappa \ge 1$, ratio of the long step to the short step (apart from $c$).
        xi: $\xi$ in $[0, \sqrt{\kappa}]$, the statistical advantage parameter.
        small_const: $c$ in (0, 1].

    Returns:
        A transformation that owns the learning rate: its updates are added to the parameters. State: `avg`
        ($\bar p$), shaped as the parameter and initialized to it.

    Raises:
        ValueError: If an argument is out of range, if `params` is missing, or if a later link scales by a learning rate
            or decays.

    Example:
        >>> # alpha = 1/2, zeta = 2/3
        >>> tx = gradtx.scale_by_accsgd(lr=0.1, kappa=4.0, xi=2.0, small_const=1.0)
        >>> params = {"w": torch.tensor([1.0])}
        >>> updates, state = tx.update({"w": torch.tensor([1.0])}, tx.init(params), params)
        >>> updates["w"], state["scale_by_accsgd"]["avg"]["w"]  # -(0.1 * 2 + 0.2) / 3
        (tensor([-0.1333]), tensor([0.8000]))

    Source: Jain et al. 2017, arXiv:1704.08227; Kidambi et al. 2018, arXiv:1803.05591. Departures: none in value; the
    authors divide by $1 - \alpha$, which fails at $\xi = 0$.
    """
    if isinstance(kappa, float) and isinstance(xi, float) and xi > math.sqrt(kappa):
        raise ValueError(
            f"scale_by_accsgd: xi must be at most sqrt(kappa) = {math.sqrt(kappa):g}, got {xi!r}"
        )
    rest = small_const * small_const * xi / kappa  # 1 - alpha
    zeta = small_const / (small_const + rest)
    long_lr = lr * kappa / small_const

    def update(update, state, param, ctx):
        average = (1 - rest) * state["avg"] + rest * (param - long_lr * update)
        return (1 - zeta) * (average - param) - (zeta * lr) * update, {"avg": average}

    return {"avg": start()}, update


@per_tensor(elementwise=True)
def scale_by_aggmo(betas: AnyLength[Decays] = (0.0, 0.9, 0.99)):
    r"""Average momenta with different decay rates: aggregated momentum.

    $b^{(i)}_t = \beta_i b^{(i)}_{t-1} + g_t$, direction $\frac1K \sum_i b^{(i)}_t$.

    Args:
        betas: $(\beta_1, \ldots, \beta_K)$, one or more, each in [0, 1).

    Returns:
        A transformation that keeps shapes and dtypes. State: `momentum_buffer_0`, `momentum_buffer_1`, ..., one per
        beta in the given order, shaped as the parameter.

    Raises:
        ValueError: If there is no beta, or if one is outside [0, 1).

    Example:
        >>> tx = gradtx.scale_by_aggmo((0.0, 0.5))
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for _ in range(2):
        ...     updates, state = tx.update({"w": torch.tensor([4.0])}, state)
        >>> # the other one is 4
        >>> state["scale_by_aggmo"]["momentum_buffer_1"]["w"], updates["w"]
        (tensor([6.]), tensor([5.]))

    Source: Lucas et al. 2018, arXiv:1804.00325. Departures: buffers belong to positions, so equal betas have separate
    buffers (in the authors' code they share one, which is updated twice).
    """

    def update(update, state, param, ctx):
        buffers = [
            beta * old + update
            for beta, old in zip(betas, state["momentum_buffer"], strict=True)
        ]
        return sum(buffers[1:], buffers[0]) / len(buffers), {"momentum_buffer": buffers}

    return {
        "momentum_buffer": linear(lambda p: [torch.zeros_like(p) for _ in betas])
    }, update


@per_tensor(elementwise=True)
def scale_by_pid(
    momentum: NonNegative,
    dampening: Scalar = 0.0,
    integral: Scalar = 5.0,
    derivative: Scalar = 10.0,
):
    r"""Combine the gradient, its sum and its change: a PID controller.

    $I_1 = g_1$, $D_1 = 0$; then $I_t = \mu I_{t-1} + (1-\tau) g_t$, $D_t = \mu D_{t-1} + (1-\mu)(g_t - g_{t-1})$;
    direction $g_t + K_I I_t + K_D D_t$.

    Args:
        momentum: $\mu$, in [0, inf), below 1 in practice. A literal 0.0 omits the link: plain gradient descent.
        dampening: $\tau$, usually in [0, 1); not applied at the first step.
        integral: $K_I$, weight of the sum, any number.
        derivative: $K_D$, weight of the change, any number.

    Returns:
        A transformation that keeps shapes and dtypes. State: `momentum_buffer` ($I$), `d_buffer` ($D$),
        `previous_grad`, shaped as the parameter.

    Raises:
        ValueError: If `momentum` is negative.

    Example:
        >>> tx = gradtx.scale_by_pid(momentum=0.5, integral=0.0, derivative=1.0)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for grad in (4.0, 4.0, 6.0):  # the change of 2 adds half of it
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     print(updates["w"])
        tensor([4.])
        tensor([4.])
        tensor([7.])

    Source: An et al. 2018, "A PID controller approach for stochastic optimization of deep networks", CVPR.
    Departures: none from the paper; the authors' code does not store $g_1$, so its $D_2$ contains $g_2 - 0$.
    """
    if is_off(momentum):
        return chain()

    def update(update, state, param, ctx):
        total = accumulated(state["momentum_buffer"], update, momentum, dampening, ctx)
        change = change_of(update, state, ctx)
        trend = running_mean(state["d_buffer"], change, momentum)
        new = {"momentum_buffer": total, "d_buffer": trend, "previous_grad": update}
        return update + integral * total + derivative * trend, new

    return {
        "momentum_buffer": linear(),
        "d_buffer": linear(),
        "previous_grad": linear(),
    }, update


@per_tensor(random=True, compiles=True)
def scale_by_gravity(
    lr: NonNegative, alpha: NonNegative = 0.01, beta: Decay = 0.9, seed: int = 0
):
    r"""Average gradients after damping their large entries toward zero: Gravity's direction.

    $v_0 \sim N(0, (\alpha / \eta)^2)$, $\hat\beta = \frac{\beta t + 1}{t + 2}$,
    $\zeta = g / (1 + (g \max |g|)^2)$, $v_t = \hat\beta v_{t-1} + (1-\hat\beta) \zeta$, direction $v_t$. The maximum
    is taken over the leaf.

    Args:
        lr: $\eta > 0$, read only when the state is initialized; a later link applies the learning rate.
        alpha: $\alpha \ge 0$, standard deviation of the first change of the weights. 0 starts from $v_0 = 0$.
        beta: $\beta$ in [0, 1), the limit of $\hat\beta$.
        seed: Seed of $v_0$, which also depends on the leaf's name.

    Returns:
        A transformation that keeps shapes and dtypes. State: `v`, shaped as the parameter; `seed` and `counter`, shared
        by the whole stage.

    Raises:
        ValueError: If an argument is out of range, or if `lr` is initially 0 and `alpha` is not.

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
        rate, spread = exact(lr, param.device), exact(alpha, param.device)
        if readable(spread) and spread != 0:
            check_initial_lr(
                "scale_by_gravity",
                rate,
                "alpha",
                "use an initial value above 0, or set alpha to 0",
            )
        still = spread == 0
        size = torch.where(
            still, spread, spread / torch.where(still, torch.ones_like(rate), rate)
        )
        return {"v": (size * rng.normal(param)).to(param.dtype)}

    def update(update, state, param, ctx):
        bounded_update = update / (1 + (update * largest(update.abs())).square())
        beta_t = (beta * ctx.time + 1) / (ctx.time + 2)
        velocity = beta_t * state["v"] + (1 - beta_t) * bounded_update
        return velocity, {"v": velocity}

    return init, update


@per_tensor(elementwise=True)
def scale_by_qhm(momentum: Decay = 0.999, nu: Scalar = 0.7):
    r"""Mix the gradient with its average: quasi-hyperbolic momentum.

    $b_t = \beta b_{t-1} + (1-\beta) g_t$, direction $(1-\nu) g_t + \nu b_t$.

    Args:
        momentum: $\beta$, in [0, 1).
        nu: $\nu$, usually in [0, 1]: 0 is plain gradient descent, 1 an average, $\nu = \beta$ Nesterov momentum.

    Returns:
        A transformation that keeps shapes and dtypes. State: `momentum_buffer` ($b$), shaped as the parameter.

    Raises:
        ValueError: If `momentum` is outside [0, 1).

    Example:
        >>> tx = gradtx.scale_by_qhm(momentum=0.75, nu=0.5)
        >>> # half of 8, half of 8 / 4
        >>> tx.update({"w": torch.tensor([8.0])}, tx.init({"w": torch.zeros(1)}))[0]["w"]
        tensor([5.])

    Source: Ma and Yarats 2018, arXiv:1810.06801. Departures: none.
    """

    def update(update, state, param, ctx):
        buffer = running_mean(state["momentum_buffer"], update, momentum)
        return (1 - nu) * update + nu * buffer, {"momentum_buffer": buffer}

    return {"momentum_buffer": average_of(momentum)}, update


@per_tensor(elementwise=True)
def scale_by_qhadam(
    betas: Decays = (0.9, 0.999),
    nus: tuple[Scalar, Fraction] = (1.0, 1.0),
    eps: NonNegative = 1e-8,
):
    r"""Mix both of Adam's averages with the gradient and its square: QHAdam's direction.

    $\frac{(1-\nu_1) g_t + \nu_1 \hat m_t}{\sqrt{(1-\nu_2) g_t^2 + \nu_2 \hat v_t} + \epsilon}$ with Adam's
    bias-corrected averages $\hat m$ of $g$ and $\hat v$ of $g^2$.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        nus: $(\nu_1, \nu_2)$; the second in [0, 1], the first usually as well. (1, 1) is Adam.
        eps: $\epsilon \ge 0$, outside the root, in the units of a gradient.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_sq`, shaped as the parameter.

    Raises:
        ValueError: If a beta is outside [0, 1), if the second nu is outside [0, 1], or if `eps` is negative.

    Example:
        >>> tx = gradtx.scale_by_qhadam(nus=(0.0, 0.0))  # the sign of each gradient
        >>> tx.update({"w": torch.tensor([3.0, -0.1])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([ 1.0000, -1.0000])

    Source: Ma and Yarats 2018, arXiv:1810.06801. Departures: none in value; the authors store corrected averages.
    """
    beta1, beta2 = betas
    nu1, nu2 = nus

    def update(update, state, param, ctx):
        mean = running_mean(state["exp_avg"], update, beta1)
        square = running_mean(state["exp_avg_sq"], update.square(), beta2)
        top = (1 - nu1) * update + (nu1 / ctx.bias_correction(beta1)) * mean
        # The product from the left, so that an infinite square with the weight 0 is not NaN.
        root = safe_sqrt(
            (1 - nu2) * update * update + (nu2 / ctx.bias_correction(beta2)) * square
        )
        return top / (root + eps), {"exp_avg": mean, "exp_avg_sq": square}

    return {"exp_avg": average_of(beta1), "exp_avg_sq": square()}, update


@per_tensor(elementwise=True, compiles=False, ahead=("step_size",))
def ema_nesterov(
    decay: Decay = 0.99,
    step_size: Scalar = 0.3,
    start: NonNegativeInt = 0,
    stop: NonNegativeInt | None = None,
):
    r"""Keep the parameters ahead of the weights, along an average of the weights' steps.

    Last link of a chain. The parameters are $y = x + b_t e$ with the weights $x$, where $b_t$ = `step_size` at steps
    `start` $< t \le$ `stop` and 0 otherwise. With the final update $u$, computed at $y$,
    $e \leftarrow \gamma e + (1-\gamma)(u + b_t e)$, and the update becomes $u + b_{t+1} e$. Thus $e$ averages the steps
    $x_{t+1} - x_t$, and the parameters equal the weights once $b$ is 0.

    Intended for large batches, as an alternative to `lookahead`. The published runs use 0.3 times the relative learning
    rate.

    Args:
        decay: $\gamma$ in [0, 1).
        step_size: Distance ahead, in average steps; at step $t$ a schedule is evaluated for $b_{t+1}$.
        start: The number of initial steps without it, >= 0.
        stop: The last step with it, >= 0; None for no limit.

    Returns:
        A transformation that keeps shapes and dtypes. State: `ema`, shaped as the parameter, and `reach`, 0-d: the
        current $b$ of the parameters. `eval_params` returns $x$.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> tx = gradtx.chain(gradtx.scale(-1.0), gradtx.ema_nesterov(decay=0.5, step_size=1.0))
        >>> params = {"w": torch.tensor([0.0])}
        >>> updates, state = tx.update({"w": torch.tensor([-2.0])}, tx.init(params), params)
        >>> params = gradtx.apply_updates(params, updates)
        >>> params["w"], tx.eval_params(state, params)["w"]
        (tensor([3.]), tensor([2.]))

    Source: EMA-Nesterov, arXiv:2605.25395; modded-nanogpt, track 3. Departures: none.
    """
    _, following = step_size  # type: ignore[misc]

    def update(update, state, param, ctx):
        average, reach = state["ema"], state["reach"]
        average = running_mean(average, update + reach * average, decay)
        ahead = ctx.step >= start
        if stop is not None:
            ahead = ahead & (ctx.step < stop)
        reach = torch.where(ahead, exact(following, update.device), 0.0)
        return update + reach * average, {"ema": average, "reach": reach}

    def evaluate(state, param):
        return param - state["reach"] * state["ema"]

    return {"ema": linear(), "reach": scalar()}, update, evaluate


@per_tensor(elementwise=True)
def amplify_slow_gradients(alpha: Decay = 0.98, lamb: NonNegative = 2.0):
    r"""Add a multiple of the average gradient to each gradient: Grokfast's filter.

    $e_1 = g_1$, $e_t = \alpha e_{t-1} + (1-\alpha) g_t$; returns $g_t + \lambda e_t$. First link of a chain, before a
    coupled decay. A constant gradient is multiplied by $1 + \lambda$, which does not affect methods such as Adam.

    Args:
        alpha: $\alpha$ in [0, 1), decay of the average.
        lamb: $\lambda \ge 0$, weight of the average.

    Returns:
        A transformation that keeps shapes and dtypes. State: `grad_ema`, shaped as the parameter.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> tx = gradtx.amplify_slow_gradients(alpha=0.5, lamb=1.0)
        >>> state = tx.init({"w": torch.zeros(2)})
        >>> for grad in ([1.0, 1.0], [1.0, -1.0]):  # entries that keep their sign are amplified
        ...     updates, state = tx.update({"w": torch.tensor(grad)}, state)
        ...     print(updates["w"])
        tensor([2., 2.])
        tensor([ 2., -1.])

    Source: Lee et al. 2024, arXiv:2405.20233. Departures: none.
    """

    def update(update, state, param, ctx):
        average = running_mean(state["grad_ema"], update, alpha)
        average = torch.where(ctx.seen, average, update)
        return update + lamb * average, {"grad_ema": average}

    return {"grad_ema": linear()}, update


@per_tensor(elementwise=True)
def amplify_slow_gradients_window(
    window_size: Count = 100,
    lamb: NonNegative = 5.0,
    filter_type: str = "mean",
    warmup: bool = True,
):
    r"""Add a multiple of the mean of the last gradients to each gradient: Grokfast's filter with a window.

    Returns $g_t + \lambda \bar g_t$, where $\bar g_t$ is the mean or the sum of the last $n = \min(t, w)$ gradients,
    including the current one. `amplify_slow_gradients` is a close approximation with only one slot.

    Args:
        window_size: $w \ge 1$, the number of gradients to keep.
        lamb: $\lambda \ge 0$, weight of the mean.
        filter_type: "mean" or "sum".
        warmup: Pass gradients unchanged until the window is full, while t < w.

    Returns:
        A transformation that keeps shapes and dtypes. State: `grad_0` ... `grad_{w-1}`, the last gradients, newest
        first, shaped as the parameter.

    Raises:
        ValueError: If an argument is out of range, or if `filter_type` is unknown.

    Example:
        >>> tx = gradtx.amplify_slow_gradients_window(window_size=2, lamb=1.0)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for grad in (1.0, 3.0, -3.0):
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     print(updates["w"])
        tensor([1.])
        tensor([5.])
        tensor([-3.])

    Source: Lee et al. 2024, arXiv:2405.20233. Departures: none.
    """
    if filter_type not in ("mean", "sum"):
        raise ValueError(
            f"amplify_slow_gradients_window: filter_type must be 'mean' or 'sum', got {filter_type!r}"
        )

    def update(update, state, param, ctx):
        window = [update, *state["grad"][:-1]]
        slow = sum(window[1:], window[0])  # gradients before the first are zeros
        if filter_type == "mean":
            slow = slow / ctx.time.clamp(max=window_size)
        amplified = update + lamb * slow
        if warmup:
            amplified = torch.where(ctx.step < window_size, update, amplified)
        return amplified, {"grad": window}

    return {
        "grad": linear(lambda p: [torch.zeros_like(p) for _ in range(window_size)])
    }, update


@per_tensor(elementwise=True)
def scale_by_optimistic_gradient(alpha: Scalar = 1.0, beta: Scalar = 1.0):
    r"""Add the last change of the update to extrapolate the next one.

    $u_t = \alpha g_t + \beta (g_t - g_{t-1})$ with $g_0 = g_1$.

    Args:
        alpha: $\alpha$, any number.
        beta: $\beta$, any number; with 0, updates are only scaled.

    Returns:
        A transformation that keeps shapes and dtypes. State: `previous_grad`, the previous input of the link, shaped as
        the parameter.

    Example:
        >>> tx = gradtx.chain(
        ...     gradtx.scale_by_optimistic_gradient(), gradtx.scale_by_learning_rate(0.5)
        ... )
        >>> params = {"x": torch.tensor([1.0]), "y": torch.tensor([1.0])}
        >>> state = tx.init(params)
        >>> # the saddle x y: plain descent in x and ascent in y would spiral out
        >>> for _ in range(30):
        ...     grads = {"x": params["y"], "y": -params["x"]}
        ...     updates, state = tx.update(grads, state, params)
        ...     params = gradtx.apply_updates(params, updates)
        >>> bool(params["x"].abs() < 0.1), bool(params["y"].abs() < 0.1)
        (True, True)

    Source: Daskalakis et al. 2017, arXiv:1711.00141; with two rates: Mokhtari et al. 2019, arXiv:1901.08511.
    Departures: none.
    """

    def update(update, state, param, ctx):
        change = change_of(update, state, ctx)
        return alpha * update + beta * change, {"previous_grad": update}

    return {"previous_grad": linear()}, update
