"""Momentum: averages of updates, several of them, and corrections by their changes."""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
from torch import Tensor

from gradtx.algorithms.weight_decay import add_decayed_weights, with_decay
from gradtx.arguments import (
    AnyLength,
    AtLeastOne,
    Decay,
    Decays,
    Fraction,
    NonNegative,
    NonNegativeInt,
    Scalar,
    is_off,
)
from gradtx.base.exact import exact
from gradtx.maths.entries import change_of, running_mean
from gradtx.rules import alias, per_tensor
from gradtx.slots import ema as average_of
from gradtx.slots import linear, scalar, start, window
from gradtx.transform import chain

__all__ = [
    "accsgd",
    "aggmo",
    "ema",
    "ema_nesterov",
    "pid",
    "pnm",
    "qhm",
    "scale_by_accsgd",
    "scale_by_aggmo",
    "scale_by_pid",
    "scale_by_pnm",
    "scale_by_qhm",
    "trace",
    "trace_ema",
]


@per_tensor(elementwise=True)
def trace(
    momentum,
    dampening: Scalar = 0.0,
    nesterov=False,
    dampen_first=False,
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
def trace_ema(beta: Decay, nesterov=False):
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
def ema(decay: Decay, debias=False):
    r"""Replace updates by their exponential moving average.

    $m_t = \beta m_{t-1} + (1 - \beta) g_t$ from $m_0 = 0$; returns $m_t$, or $m_t / (1 - \beta^t)$ with `debias`.
    For a moving average of the weights, use `average`.

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


@per_tensor(elementwise=True, needs="params", owns_lr=True)
def scale_by_accsgd(
    lr,
    kappa: AtLeastOne = 1000.0,
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

    return {"avg": start(slow=True)}, update


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

    def update(g, state, p, ctx):
        pairs = zip(betas, state["momentum_buffer"], strict=True)
        buffers = [beta * old + g for beta, old in pairs]
        return sum(buffers[1:], buffers[0]) / len(buffers), {"momentum_buffer": buffers}

    return {"momentum_buffer": window(len(betas))}, update


@per_tensor(elementwise=True)
def scale_by_pid(
    momentum,
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


@per_tensor(elementwise=True, compiles=False, capturable=True, ahead="step_size")
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

    def update(update, state, param, ctx):
        average, reach = state["ema"], state["reach"]
        average = running_mean(average, update + reach * average, decay)
        ahead = ctx.step >= start
        if stop is not None:
            ahead = ahead & (ctx.step < stop)
        reach = torch.where(ahead, exact(step_size, update.device), 0.0)
        return update + reach * average, {"ema": average, "reach": reach}

    def evaluate(state, param):
        return param - state["reach"] * state["ema"]

    return {"ema": linear(slow=True), "reach": scalar()}, update, evaluate


def positive_negative(
    first: str, second: str, beta, weight
) -> tuple[dict[str, Any], Any]:
    """Return two slots that are updated in turn, and `average(gradient, state) -> (direction, new state)`.

    The decay is the square of beta, because each momentum is written at every second step. The direction is normalized
    so that two momenta with independent noise yield noise of the size of one.
    """

    def average(gradient, state):
        positive = running_mean(state[first], gradient, beta**2)
        negative = state[second]
        size = ((1 + weight) ** 2 + weight**2) ** 0.5
        direction = ((1 + weight) / size) * positive - (weight / size) * negative
        return direction, {first: negative, second: positive}

    return {first: linear(), second: linear()}, average


@per_tensor(elementwise=True)
def scale_by_pnm(betas: tuple[Decay, Fraction] = (0.9, 1.0)):
    r"""Subtract an older momentum from a newer one: positive-negative momentum.

    Two averages, starting from 0, are updated alternately: $m_t = \beta_1^2 m_{t-2} + (1-\beta_1^2) g_t$; direction
    $((1+\beta_2) m_t - \beta_2 m_{t-1}) / \sqrt{(1+\beta_2)^2 + \beta_2^2}$.

    Args:
        betas: $(\beta_1, \beta_2)$: the decay per step, in [0, 1), and the weight of the negative part, in [0, 1].

    Returns:
        A transformation that keeps shapes and dtypes. State: `pos_momentum`, which the next step updates, and
        `neg_momentum`, shaped as the parameter; they are swapped at every step.

    Raises:
        ValueError: If the first beta is outside [0, 1) or the second is outside [0, 1].

    Example:
        >>> tx = gradtx.scale_by_pnm((0.0, 1.0))
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for _ in range(3):  # without decay: (2 g_t - g_{t-1}) / sqrt(5)
        ...     updates, state = tx.update({"w": torch.tensor([5**0.5])}, state)
        ...     print(updates["w"])
        tensor([2.])
        tensor([1.])
        tensor([1.])

    Source: Xie et al. 2021, arXiv:2103.17182. Departures: none from the authors' code.
    """
    beta1, beta2 = betas

    momenta, average = positive_negative("pos_momentum", "neg_momentum", beta1, beta2)

    def update(update, state, param, ctx):
        return average(update, state)

    return momenta, update


@alias(class_name="AccSGD")
def accsgd(*, weight_decay=0.0, **options: Annotated[Any, scale_by_accsgd]):
    r"""AccSGD: accelerated SGD, a short step pulled toward an average of long steps.

    $\bar p \leftarrow \alpha \bar p + (1-\alpha)(p - \frac{\eta \kappa}{c} g)$,
    $p \leftarrow \zeta (p - \eta g) + (1-\zeta) \bar p$ with $\alpha = 1 - c^2 \xi / \kappa$,
    $\zeta = c / (c + 1 - \alpha)$.

    When to use: small batches on smooth, ill-conditioned problems whose condition number you can estimate (kappa, xi);
    otherwise use `qhm`.

    Args:
        lr: $\eta$ in [0, inf), the short step; the authors give no default.
        kappa: $\kappa \ge 1$, the ratio of the long step to the short one (apart from $c$).
        xi: $\xi$ in $[0, \sqrt{\kappa}]$, the statistical advantage.
        small_const: $c$ in (0, 1].
        weight_decay: $\lambda \ge 0$, added to the gradient.

    Returns:
        A transformation whose updates are added to the parameters. State: `avg`, initialized with the parameter.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing.

    Example:
        >>> tx = gradtx.accsgd(lr=0.1, kappa=4.0, xi=0.0)  # without advantage it is SGD
        >>> params = {"w": torch.tensor([1.0])}
        >>> tx.update({"w": torch.tensor([2.0])}, tx.init(params), params)[0]["w"]
        tensor([-0.2000])

    Source: Jain et al. 2017, arXiv:1704.08227; Kidambi et al. 2018, arXiv:1803.05591. Departures: none in value. The
    steps are those of `qhm(lr * c * (1 + xi) / (1 + c), (kappa - c * c * xi) / (kappa + c * xi), (c * xi - 1) / (c *
    (1 + xi)))`.
    """
    return chain(add_decayed_weights(weight_decay), scale_by_accsgd(**options))


@alias(class_name="AggMo")
def aggmo(
    lr,
    betas: AnyLength[Decays] = (0.0, 0.9, 0.99),
    weight_decay=0.0,
):
    r"""AggMo: SGD with the average of several momenta.

    $b^{(i)} \leftarrow \beta_i b^{(i)} + g$, $p \leftarrow p - \frac{\eta}{K} \sum_i b^{(i)}$.

    When to use: when momentum as large as 0.99 pays off but makes the loss oscillate: the faster buffers damp the
    slower ones.

    Args:
        lr: $\eta$ in [0, inf); the authors give no default.
        betas: $(\beta_1, \ldots, \beta_K)$, one or more, each in [0, 1). The paper uses $1 - 0.1^i$, i = 0, 1, ...
        weight_decay: $\lambda \ge 0$, added to the gradient.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer_0`,
        `momentum_buffer_1`, ..., in the order of `betas`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.aggmo(lr=0.1, betas=(0.0, 0.5))
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for _ in range(2):
        ...     updates, state = tx.update({"w": torch.tensor([4.0])}, state)
        >>> updates["w"]  # buffers of 4 and 6
        tensor([-0.5000])

    Source: Lucas et al. 2018, arXiv:1804.00325. Departures: equal betas each have their own buffer.
    """
    return with_decay(scale_by_aggmo(betas), weight_decay, False, lr)


@alias(class_name="QHM")
def qhm(
    lr,
    momentum: Decay = 0.999,
    nu: Scalar = 0.7,
    weight_decay=0.0,
    decoupled_weight_decay=False,
):
    r"""QHM, quasi-hyperbolic momentum: SGD with a mix of the gradient and its average.

    $b \leftarrow \beta b + (1-\beta) g$, $p \leftarrow p - \eta ((1-\nu) g + \nu b)$.

    When to use: instead of SGD with momentum: the paper's defaults tolerate a long memory, and the current gradient
    takes effect immediately.

    Args:
        lr: $\eta$ in [0, inf); about $1/(1-\beta)$ times the rate of `sgd`, whose momentum is a sum. The authors give
            no default.
        momentum: $\beta$ in [0, 1).
        nu: $\nu$, usually in [0, 1]: 0 is SGD, $\beta$ is Nesterov's momentum.
        weight_decay: $\lambda \ge 0$, added to the gradient unless decoupled.
        decoupled_weight_decay: Apply the decay to the weights instead of the gradient.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.qhm(lr=1.0, momentum=0.75, nu=0.5)
        >>> # half of 8, half of 8 / 4
        >>> tx.update({"w": torch.tensor([8.0])}, tx.init({"w": torch.zeros(1)}))[0]["w"]
        tensor([-5.])

    Source: Ma and Yarats 2018, arXiv:1810.06801. Departures: the defaults of momentum and nu are the paper's rule of
    thumb.
    """
    return with_decay(
        scale_by_qhm(momentum, nu), weight_decay, decoupled_weight_decay, lr
    )


@alias(class_name="PID")
def pid(lr, momentum=0.0, *, weight_decay=0.0, **options: Annotated[Any, scale_by_pid]):
    r"""PID: SGD as a PID controller, along the gradient, its sum with momentum, and its change.

    $p \leftarrow p - \eta (g_t + K_I I_t + K_D D_t)$ with $I_t = \mu I_{t-1} + (1-\tau) g_t$,
    $D_t = \mu D_{t-1} + (1-\mu)(g_t - g_{t-1})$; $I_1 = g_1$, $D_1 = 0$.

    When to use: when momentum overshoots: the derivative term slows down where gradients change. It adds two gains to
    tune.

    Args:
        lr: $\eta$ in [0, inf); the authors give no default.
        momentum: $\mu$ in [0, inf), below 1 in practice. With a literal 0.0, this is plain SGD, without the other
            terms.
        dampening: $\tau$, usually in [0, 1); not applied to the first step.
        integral: $K_I$, the weight of the sum, any number.
        derivative: $K_D$, the weight of the change, any number.
        weight_decay: $\lambda \ge 0$, added to the gradient.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer`, `d_buffer`,
        `previous_grad` (including the decay).

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.pid(lr=0.1, momentum=0.5)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for grad in (1.0, 0.0):  # 1 + 5, then 5 / 2 - 10 / 2
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     print(updates["w"])
        tensor([-0.6000])
        tensor([0.2500])

    Source: An et al. 2018, "A PID controller approach for stochastic optimization of deep networks", CVPR. Departures:
    none from the paper; the authors' code starts $D$ from $g_2 - 0$. Their `nesterov` had no effect.
    """
    return with_decay(scale_by_pid(momentum, **options), weight_decay, False, lr)


@alias(class_name="PNM")
def pnm(
    lr,
    betas: tuple[Decay, Fraction] = (0.9, 1.0),
    weight_decay=0.0,
    decoupled_weight_decay=True,
):
    r"""PNM, positive-negative momentum: SGD whose gradient noise is amplified by subtracting an older momentum.

    Two averages, initialized to 0, are updated alternately, $m_t = \beta_1^2 m_{t-2} + (1-\beta_1^2) g_t$;
    $p \leftarrow p - \eta ((1+\beta_2) m_t - \beta_2 m_{t-1}) / \sqrt{(1+\beta_2)^2 + \beta_2^2}$.

    When to use: small datasets or noisy labels (the paper's claim), where SGD fits the training set and more gradient
    noise would help.

    Args:
        lr: $\eta$ in [0, inf); the authors give no default.
        betas: $(\beta_1, \beta_2)$: the decay rate per step, in [0, 1), and the weight of the negative part, in [0, 1].
        weight_decay: $\lambda \ge 0$.
        decoupled_weight_decay: Apply the decay to the weights, $p (1 - \eta \lambda)$; if False, add it to the
            gradient.

    Returns:
        A transformation whose updates are added to the parameters. State: `pos_momentum` and `neg_momentum`, which swap
        at every step.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.pnm(lr=1.0, betas=(0.0, 0.75))  # (7 g_t - 3 g_{t-1}) / sqrt(58)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for _ in range(2):
        ...     updates, state = tx.update({"w": torch.tensor([58**0.5])}, state)
        ...     print(updates["w"])
        tensor([-7.])
        tensor([-4.])

    Source: Xie et al. 2021, arXiv:2103.17182. Departures: none from the authors' code.
    """
    return with_decay(scale_by_pnm(betas), weight_decay, decoupled_weight_decay, lr)
