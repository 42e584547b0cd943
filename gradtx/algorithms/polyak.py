"""Rates from the loss or from measured smoothness: ALI-G, MoMo, adaptive gradient descent."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from gradtx.algorithms.clipping import shrink
from gradtx.algorithms.momentum import trace
from gradtx.arguments import Decay, NonNegative, Positive, PositiveOrInf, Scalar, is_off
from gradtx.base.exact import exact
from gradtx.maths.entries import (
    adam_moments,
    at_least,
    at_most,
    corrected_root,
    quotient,
    running_mean,
    safe_sqrt,
)
from gradtx.rules import alias, per_tensor
from gradtx.slots import linear, start
from gradtx.transform import chain

__all__ = [
    "adaptive_gd",
    "alig",
    "momo",
    "momo_adam",
    "project_l2_ball",
    "scale_by_local_smoothness",
    "scale_by_momo",
    "scale_by_momo_adam",
    "scale_by_polyak",
]


@per_tensor(elementwise=True, needs="value", owns_lr=True, agree="eps")
def scale_by_polyak(max_lr: Annotated[Scalar, "[0, inf]"] | None = None, eps=1e-5):
    r"""Step to the point where the loss would be 0 if its slope were constant: Polyak's step size.

    $u \mapsto -\gamma u$ with $\gamma = \min(f / (\lVert g \rVert^2 + \epsilon), \eta)$, where $f$ is the extra `value`
    and $g$ the gradient as passed to the clock, before any link; its norm is over the whole tree.

    Args:
        max_lr: $\eta \ge 0$, the largest step size; None for no bound. A parameter group stores it as `lr`.
        eps: $\epsilon \ge 0$, in the units of a squared gradient.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Raises:
        ValueError: If an argument is negative, if `value` is missing, or if a later link scales by a learning rate or
            decays.

    Example:
        >>> tx = gradtx.scale_by_polyak(eps=0.0)
        >>> # loss: the norm of w, which becomes 0 in one step
        >>> params = {"w": torch.tensor([3.0, 4.0])}
        >>> updates, _ = tx.update({"w": params["w"] / 5}, tx.init(params), value=5.0)
        >>> updates["w"]
        tensor([-3., -4.])

    Source: Polyak 1969; Berrada et al. 2019, arXiv:1906.05661. Departures: the step is 0 where both the gradient and
    eps are 0.
    """

    def update(update, state, param, ctx):
        total = yield {"square": ctx.grad.square().sum()}
        step = quotient(exact(ctx.value, update.device), total["square"] + eps)
        if max_lr is not None:
            step = torch.minimum(step, exact(max_lr, update.device))
        yield -step * update, state

    return update


@per_tensor(elementwise=True, needs="params", agree="max_norm")
def project_l2_ball(max_norm: PositiveOrInf):
    r"""Constrain all weights together to a ball: after the step, $p \leftarrow p \min(1, r / \lVert p \rVert)$.

    Last link of a chain: it changes the update so that $p + u$ is in the ball. The norm is over the whole tree; leaves
    without a gradient are neither counted nor moved. An infinite norm gives the factor 0, a NaN makes every update NaN.

    Args:
        max_norm: $r > 0$.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Raises:
        ValueError: If `max_norm` is not above 0, or if `params` is missing.

    Example:
        >>> tx = gradtx.chain(gradtx.scale(-1.0), gradtx.project_l2_ball(10.0))
        >>> params = {"a": torch.tensor([6.0]), "b": torch.tensor([16.0])}
        >>> updates, _ = tx.update(
        ...     {"a": torch.tensor([-6.0]), "b": torch.tensor([0.0])}, tx.init(params), params
        ... )
        >>> gradtx.apply_updates(params, updates)  # the step leads to 12 and 16, of norm 20
        {'a': tensor([6.]), 'b': tensor([8.])}

    Source: Berrada et al. 2019, arXiv:1906.05661. Departures: the initial weights are not projected (the authors' code
    projects these as well).
    """

    def update(u, state, p, ctx):
        moved = p + u
        total = yield {"square": moved.square().sum()}
        size = safe_sqrt(total["square"])
        projected = shrink(size, max_norm) * moved - p
        yield torch.where(size <= exact(max_norm, size.device), u, projected), state

    return update


def _shared(arguments: dict[str, Any]) -> dict[str, Any]:
    averages = {"loss_avg": 0.0, "dot_avg": 0.0}
    return {**averages, "lb": arguments["lb"]} if arguments["use_fstar"] else averages


def _sums(g: Tensor, p: Tensor, d: Tensor, direction: Tensor) -> dict[str, Tensor]:
    return {
        "product": (g * p).sum(),
        "slope": (d * p).sum(),
        "square": (d * direction).sum(),
    }


def _followed(
    state: dict[str, Tensor],
    total: dict[str, Tensor],
    ctx,
    keep,
    rho,
    lr,
    shrinkage,
    lb,
    use_fstar: bool,
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""Return $\tau$, at which the averaged model of the loss reaches its lower bound, and the next shared values."""
    slope, square = total["slope"], total["square"]
    value = exact(ctx.value, slope.device)
    loss = running_mean(state["loss_avg"], value, keep)  # F
    product = running_mean(state["dot_avg"], total["product"], keep)  # Gamma
    new = {"loss_avg": loss, "dot_avg": product}
    bound = lb
    if use_fstar:
        # Lower the bound if the model is already below it.
        bound, cap = state["lb"], shrinkage * (loss - product) + slope
        again = at_least(cap / (2 * shrinkage * rho), lb)
        bound = torch.where(cap < shrinkage * rho * bound, again, bound)
    height = shrinkage * (loss - rho * bound - product) + slope
    tau = at_most(quotient(at_least(height, 0.0), square), lr / rho)
    if use_fstar:
        decrease = loss + slope - product - tau * square / 2
        new["lb"] = at_least(decrease / rho, lb)
    return tau, new


@per_tensor(
    elementwise=True,
    needs=("params", "value"),
    owns_lr=True,
    shared=_shared,
    agree=("beta", "lb", "bias_correction", "use_fstar"),
)
def scale_by_momo(
    lr=1.0,
    beta: Decay = 0.9,
    weight_decay=0.0,
    lb: Scalar = 0.0,
    bias_correction=False,
    use_fstar=False,
):
    r"""Step along the mean gradient until the averaged model of the loss reaches a lower bound: MoMo.

    With averages over the steps, $F$ of the loss, $d$ of the gradient, $\Gamma$ of $\langle g, p \rangle$, each with
    weight $\beta$ of the old value (0 at $t = 1$, $\rho = 1$; with `bias_correction` from 0, $\rho = 1 - \beta^t$), and
    $s = 1 + \eta \lambda$:
    $\tau = \min(\eta / \rho, \max(0, s (F - \rho b - \Gamma) + \langle d, p \rangle) / \lVert d \rVert^2)$,
    $p \leftarrow (p - \tau d) / s$. Products and norms are over all leaves.

    Args:
        lr: $\eta \ge 0$, the maximum rate.
        beta: $\beta$ in [0, 1).
        weight_decay: $\lambda \ge 0$, as a proximal step.
        lb: $b$, a lower bound of the loss; with `use_fstar`, its initial value and its lower limit.
        bias_correction: Start the averages from 0 and divide by $1 - \beta^t$.
        use_fstar: Learn $b$: it becomes $\frac{s (F - \Gamma) + \langle d, p \rangle}{2 s \rho}$ where the model is
            below it, and after the step
            $(F + \langle d, p \rangle - \Gamma - \tau \lVert d \rVert^2 / 2) / \rho$. All groups of an optimizer must
            then have the same rate and decay, because they share $b$.

    Returns:
        A transformation that keeps shapes and dtypes; its updates are added to the parameters. State: `exp_avg`
        ($d$), shaped as the parameter; shared by all leaves, `loss_avg`, `dot_avg` and, with `use_fstar`, `lb`,
        0-d.

    Raises:
        ValueError: If an argument is out of range, if `params` or `value` is missing, or if a later link scales by a
            learning rate or decays.

    Example:
        >>> tx = gradtx.scale_by_momo(lr=10.0)
        >>> # the loss is the norm of w, and 0 is its lower bound
        >>> params = {"w": torch.tensor([3.0, 4.0])}
        >>> tx.update({"w": params["w"] / 5}, tx.init(params), params, value=5.0)[0]["w"]
        tensor([-3., -4.])

    Source: Schaipp et al. 2023, arXiv:2305.07583. Departures: the step is 0 where the mean gradient is 0.
    """

    def update(g, state, p, ctx):
        keep, rho = beta, 1.0
        if bias_correction:
            rho = ctx.bias_correction(beta)
        else:
            keep = torch.where(ctx.seen, exact(beta, g.device), 0.0)
        d = running_mean(state["exp_avg"], g, keep)
        total = yield _sums(g, p, d, d)
        decay = lr * weight_decay
        tau, shared = _followed(
            state, total, ctx, keep, rho, lr, 1 + decay, lb, use_fstar
        )
        yield -(tau * d + decay * p) / (1 + decay), {"exp_avg": d, **shared}

    return {"exp_avg": linear()}, update


@per_tensor(
    elementwise=True,
    needs=("params", "value"),
    owns_lr=True,
    shared=_shared,
    agree=("betas", "lb", "use_fstar"),
)
def scale_by_momo_adam(
    lr=1e-2,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0.0,
    lb: Scalar = 0.0,
    proximal_decay=True,
    use_fstar=False,
):
    r"""Step along Adam's direction until the averaged model of the loss reaches a lower bound: MoMo-Adam.

    $F$, $d$, $\Gamma$ are averages of the loss, of the gradient and of $\langle g, p \rangle$ from 0 with weight
    $\beta_1$ of the old value, $v$ is Adam's; $c_i = 1-\beta_i^t$, $D = \sqrt{v / c_2} + \epsilon$,
    $N = \langle d, d/D \rangle$, $s = 1 + \eta \lambda$:
    $\tau = \min(\eta / c_1, \max(0, s (F - c_1 b - \Gamma) + \langle d, p \rangle) / N)$,
    $p \leftarrow (p - \tau d / D) / s$. Products are over all leaves.

    Args:
        lr: $\eta \ge 0$, the maximum rate.
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$.
        weight_decay: $\lambda \ge 0$.
        lb: $b$, a lower bound of the loss; with `use_fstar`, its initial value and its lower limit.
        proximal_decay: False uses $p \leftarrow p (1 - \eta \lambda) - \tau d / D$.
        use_fstar: Learn $b$, as in `scale_by_momo`.

    Returns:
        A transformation that keeps shapes and dtypes; its updates are added to the parameters. State: `exp_avg`
        ($d$), `exp_avg_sq`, shaped as the parameter; shared by all leaves, `loss_avg`, `dot_avg` and, with
        `use_fstar`, `lb`, 0-d.

    Raises:
        ValueError: If an argument is out of range, if `params` or `value` is missing, or if a later link scales by a
            learning rate or decays.

    Example:
        >>> params = {"w": torch.tensor([3.0, 4.0])}
        >>> for value in (0.7, -0.1):  # Adam's step far above the lower bound, no step below it
        ...     tx = gradtx.scale_by_momo_adam(lr=0.01)
        ...     tx.update({"w": params["w"] / 5}, tx.init(params), params, value=value)[0]["w"]
        tensor([-0.0100, -0.0100])
        tensor([-0., -0.])

    Source: Schaipp et al. 2023, arXiv:2305.07583. Departures: the step is 0 where the mean gradient is 0; the authors
    call `proximal_decay` `divide`.
    """
    beta1, beta2 = betas
    moments, average = adam_moments(betas)

    def update(g, state, p, ctx):
        d, v, new = average(g, state)
        direction = quotient(d, corrected_root(v, ctx, beta2) + eps, floor=eps)
        total = yield _sums(g, p, d, direction)
        decay, rho = lr * weight_decay, ctx.bias_correction(beta1)
        tau, shared = _followed(
            state, total, ctx, beta1, rho, lr, 1 + decay, lb, use_fstar
        )
        moved = -(tau * direction + decay * p)
        yield moved / (1 + decay) if proximal_decay else moved, {**new, **shared}

    return moments, update


@per_tensor(
    elementwise=True,
    needs="params",
    extras={"prev_grad": "leaf?"},
    shared={
        "step_size": lambda arguments: arguments["lr"],
        "theta": lambda arguments: arguments["theta"],
    },
    agree=("lr", "amplifier", "damping", "theta", "eps"),
    owns_lr=True,
)
def scale_by_local_smoothness(
    lr=0.2,
    amplifier: NonNegative = 0.02,
    damping: Positive = 1.0,
    theta: PositiveOrInf = 1.0,
    eps=1e-5,
    weight_decay=0.0,
):
    r"""Descend with a step size that follows the local smoothness of the loss, without a line search.

    With $D = \lVert p_t - p_{t-1} \rVert$ and $G = \lVert g_t - g_{t-1} \rVert$ over all leaves together:
    $\lambda_t = \min(\lambda_{t-1} \sqrt{1 + a \theta_{t-1}}, D / (b G)) + \epsilon$, or
    $\lambda_{t-1} \sqrt{1 + a \theta_{t-1}}$ where D or G is 0, as at $t = 1$;
    $\theta_t = \lambda_t / \lambda_{t-1}$; update $-\lambda_t (g_t + w p_t)$. It owns the learning rate: no decay or
    learning rate may follow.

    Args:
        lr: $\lambda_0$, the first value above 0. Of later values, only 0 has an effect: all step sizes derive from the
            previous one, so a step with a rate of 0 leaves weights and state as they are. Must be the same for all
            groups, as must the next four.
        amplifier: $a \ge 0$, how fast the step size may grow.
        damping: $b > 0$; the step size stays below 1 / b of the inverse smoothness.
        theta: $\theta_0 > 0$. With inf, the first measured step size has no upper limit.
        eps: $\epsilon \ge 0$, in the units of a step size.
        weight_decay: $w \ge 0$, coupled, but not included in G.

    Returns:
        A transformation whose updates are added to the parameters. It accepts the extra `prev_grad`, the gradients at
        the previous parameters on the current batch. If given, G is computed from them, as the authors do for noisy
        gradients. State: `prev_param`, `previous_grad`, shaped as the parameter; `step_size`, `theta`, 0-d float64
        shared by all leaves.

    Raises:
        ValueError: If an argument is out of range, if `params` is missing, or if a later link scales by a learning rate
            or decays.

    Example:
        >>> tx = gradtx.scale_by_local_smoothness(
        ...     lr=1e-6, amplifier=1.0, damping=2.0, theta=torch.inf, eps=0.0
        ... )
        >>> params = {"w": torch.tensor([1.0, -3.0])}
        >>> state = tx.init(params)
        >>> for _ in range(2):  # the loss is 5 / 2 |w|^2, whose smoothness is 5
        ...     updates, state = tx.update({"w": 5 * params["w"]}, state, params)
        ...     params = gradtx.apply_updates(params, updates)
        >>> f"{state['scale_by_local_smoothness']['step_size']:.3f}"  # 1 / (2 * 5)
        '0.100'

    Source: Malitsky and Mishchenko 2019, arXiv:1910.09529; the form with amplifier and eps is the authors' code.
    Departures: while nothing can be measured, an infinite theta remains infinite and the step size does not grow.
    """

    def update(g, state, p, ctx):
        rate = exact(lr, g.device)
        before = state["previous_grad"] if ctx.prev_grad is None else ctx.prev_grad
        moved = (p - state["prev_param"]).square().sum()
        changed = (ctx.grad - before).square().sum()
        total = yield {
            "moved": torch.where(ctx.seen, moved, 0.0),
            "changed": torch.where(ctx.seen, changed, 0.0),
        }
        old, growth = state["step_size"], state["theta"]
        old = torch.where(old == 0, rate, old)  # the first rate above 0
        free = growth.isinf()
        grown = old * (1 + amplifier * torch.where(free, 0.0, growth)).sqrt()
        # Of a NaN, too, so that it does not switch off the bound.
        known = ~((total["moved"] <= 0) | (total["changed"] <= 0))
        measured = quotient(
            safe_sqrt(total["moved"]), damping * safe_sqrt(total["changed"]), known
        )
        limited = torch.where(free, measured, torch.minimum(grown, measured)) + eps
        size = torch.where(known, limited, grown)
        new = {
            "prev_param": p,
            "previous_grad": ctx.grad,
            "step_size": size,
            "theta": torch.where(free & ~known, growth, quotient(size, old)),
        }
        moves = (
            rate != 0
        )  # otherwise the next measurement would be of a step of length 0
        new = {name: torch.where(moves, new[name], state[name]) for name in new}
        yield torch.where(moves, -size * (g + weight_decay * p), 0.0), new

    return {"prev_param": start(), "previous_grad": linear()}, update


@alias(class_name="AliG")
def alig(
    max_lr: Annotated[Scalar, "[0, inf]"] | None = None,
    momentum: Decay = 0.0,
    adjusted_momentum=False,
    eps=1e-5,
    max_norm: PositiveOrInf | None = None,
):
    r"""ALI-G: SGD whose rate is computed from the loss, for models that can reach a loss of 0.

    $\gamma = \min(f / (\lVert g \rVert^2 + \epsilon), \eta)$ with the loss $f$ at the parameters and batch of $g$, and
    the norm over the whole tree; $b \leftarrow \mu b - \gamma g$, $p \leftarrow p - \gamma g + \mu b$, then
    $p \leftarrow p \min(1, r / \lVert p \rVert)$.

    When to use: models that can fit their training data (loss 0), with one hyperparameter to tune, the largest rate.

    Args:
        max_lr: $\eta \ge 0$, the largest rate; None for no bound. A parameter group shows it as `lr`.
        momentum: $\mu$ in [0, 1). With a literal 0.0, no buffer is kept.
        adjusted_momentum: Use $b \leftarrow \mu b - g$, $p \leftarrow p + \gamma (-g + \mu b)$: the rate of the step
            then multiplies the whole momentum.
        eps: $\epsilon \ge 0$, in units of the squared gradient.
        max_norm: $r > 0$, instead of weight decay; None for no bound.

    Returns:
        A transformation whose updates are added to the parameters. State: [`momentum_buffer`].

    Raises:
        ValueError: If a hyperparameter is out of range, if `value` is missing, or if `max_norm` is set and `params` is
            missing.

    Example:
        >>> tx = gradtx.alig(eps=0.0)
        >>> # loss: half the square, which falls to a quarter in a step
        >>> params = {"w": torch.tensor([3.0, 4.0])}
        >>> updates, _ = tx.update({"w": params["w"]}, tx.init(params), value=12.5)
        >>> updates["w"]
        tensor([-1.5000, -2.0000])

    Source: Berrada et al. 2019, arXiv:1906.05661. Departures: the initial weights are not projected (the authors' code
    does). pytorch_optimizer's class has a fixed eps of 1e-6.
    """
    step = scale_by_polyak(max_lr, eps)
    average = trace(momentum, nesterov=not is_off(momentum))
    links = (average, step) if adjusted_momentum else (step, average)
    return chain(*links, chain() if max_norm is None else project_l2_ball(max_norm))


@alias(class_name="MoMo")
def momo(**arguments: Annotated[Any, scale_by_momo]):
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
    return scale_by_momo(**arguments)


@alias(class_name="MoMoAdam")
def momo_adam(**arguments: Annotated[Any, scale_by_momo_adam]):
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
    return scale_by_momo_adam(**arguments)


@alias(class_name="AdaptiveGD")
def adaptive_gd(**arguments: Annotated[Any, scale_by_local_smoothness]):
    r"""Adaptive gradient descent without descent: the step size follows the local smoothness of the loss.

    $\lambda_t = \min(\lambda_{t-1} \sqrt{1 + a \theta}, \lVert \Delta p \rVert / (b \lVert \Delta g \rVert)) +
    \epsilon$, $\theta = \lambda_t / \lambda_{t-1}$, $p \leftarrow p - \lambda_t (g + w p)$, one $\lambda$ for all
    weights.

    When to use: full or large batches, if the loss is smooth and no step size should have to be chosen; with noisy
    small batches, its estimate of the smoothness is noisy as well.

    Args:
        lr: $\lambda_0$, the initial step size: the first value above 0. Of later values, only 0 has an effect: such a
            step leaves weights and state as they are.
        amplifier: $a \ge 0$, how fast the step size may grow. The paper uses 1.
        damping: $b > 0$. The paper uses 2.
        theta: Initial $\theta > 0$. The paper uses inf.
        eps: $\epsilon \ge 0$, in units of a step size. The paper uses 0.
        weight_decay: $w \ge 0$, coupled, but excluded from the measurement.

    Returns:
        A transformation whose updates are added to the parameters; it accepts the extra `prev_grad` (see
        `scale_by_local_smoothness`). State: `prev_param`, `previous_grad`; shared by all leaves, 0-d: `step_size`,
        `theta`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing.

    Example:
        >>> tx = gradtx.adaptive_gd(
        ...     lr=0.001, amplifier=1.0, damping=2.0, theta=torch.inf, eps=0.0
        ... )
        >>> params = {"w": torch.tensor([1.0, -3.0])}
        >>> state = tx.init(params)
        >>> for _ in range(30):  # the loss is 5 / 2 |w|^2
        ...     updates, state = tx.update({"w": 5 * params["w"]}, state, params)
        ...     params = gradtx.apply_updates(params, updates)
        >>> bool(params["w"].norm() < 1e-6)
        True

    Source: Malitsky and Mishchenko 2019, arXiv:1910.09529; the defaults are those of the authors' `Adsgd`. Departures:
    without the extra, noisy gradients shrink the step size, because their noise counts as curvature.
    pytorch_optimizer's ASGD uses the difference of norms instead of the norm of the difference.
    """
    return scale_by_local_smoothness(**arguments)
