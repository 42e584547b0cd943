"""Denominators from earlier gradients: AvaGrad, AdaShift, ACProp; BCOS."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch

from gradtx.algorithms.scaling import hold_until, scale_by_learning_rate
from gradtx.algorithms.weight_decay import with_decay
from gradtx.arguments import Count, Decay
from gradtx.maths.entries import (
    adam_moments,
    at_least,
    corrected_root,
    largest,
    quotient,
    running_mean,
    safe_sqrt,
)
from gradtx.rules import alias, per_tensor
from gradtx.slots import linear, scalar, square, window
from gradtx.transform import chain

__all__ = [
    "acprop",
    "adashift",
    "avagrad",
    "bcos",
    "scale_by_acprop",
    "scale_by_adashift",
    "scale_by_avagrad",
    "scale_by_bcos",
]


@per_tensor(
    elementwise=True,
    shared=lambda arguments: {"gamma": 0.0} if arguments["lagged_norm"] else {},
    agree="lagged_norm",
)
def scale_by_avagrad(betas=(0.9, 0.999), eps=0.1, lagged_norm=False):
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

    def update(g, state, p, ctx):
        m, _, new = average(g, state)
        earlier, seen = state["exp_avg_sq"], ctx.seen
        correction = torch.where(seen, ctx.bias_correction(beta2, ctx.step - 1), 1.0)
        eta = quotient(1.0, safe_sqrt(earlier / correction) + eps, seen)
        # A leaf has no size to contribute at its first step.
        late, count = eta, torch.where(seen, float(g.numel()), 0.0)
        if lagged_norm:
            late, count = 1 / (corrected_root(earlier, ctx, beta2) + eps), g.numel()
        total = yield {"square": late.square().sum(), "count": count}
        gamma = safe_sqrt(quotient(total["count"], total["square"]))
        if lagged_norm:
            gamma, new = state["gamma"], new | {"gamma": gamma}
        yield gamma / ctx.bias_correction(beta1) * eta * m, new

    return moments, update


_REDUCTIONS = {
    "max": largest,
    "mean": lambda x: x.sum() / max(x.numel(), 1),
    "none": lambda x: x,
}


@per_tensor(elementwise=lambda arguments: arguments["reduce"] == "none")
def scale_by_adashift(
    betas=(0.9, 0.999),
    keep_num: Count = 10,
    eps=1e-10,
    reduce: Literal["max", "mean", "none"] = "max",
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
    (beta1, beta2), phi = betas, _REDUCTIONS[reduce]

    def update(g, state, p, ctx):
        *recent, oldest = state["grad"]
        window = [g, *recent]
        v = running_mean(state["exp_avg_sq"], phi(oldest.square()), beta2)
        m, weight = window[-1], 1.0
        for grad in reversed(window[:-1]):  # both sums over the window by Horner's rule
            m, weight = grad + beta1 * m, 1 + beta1 * weight
        is_zero = v == 0  # includes the first n steps
        correction = ctx.bias_correction(beta2, at_least(ctx.step - keep_num, 1))
        size = safe_sqrt(torch.where(is_zero, 1.0, v) / correction) + eps
        direction = torch.where(is_zero, 0.0, m / (weight * size))
        return direction, {"grad": window, "exp_avg_sq": v}

    slots = {
        "grad": window(keep_num),
        "exp_avg_sq": square() if reduce == "none" else scalar(),
    }
    return slots, update


@per_tensor(elementwise=True)
def scale_by_acprop(
    betas=(0.9, 0.999),
    eps=1e-16,
    amsgrad=False,
    momentum_update=False,
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
    moments, average = adam_moments(betas, amsgrad, belief_eps=eps)

    def update(g, state, p, ctx):
        first = (state["exp_avg"] == 0) & (state["exp_avg_var"] == 0)
        correction = ctx.bias_correction(beta2, ctx.step - 1)
        correction = torch.where(ctx.seen, correction, 1.0)
        old = state["max_exp_avg_var" if amsgrad else "exp_avg_var"]
        root = safe_sqrt(old / correction) + eps
        m, _, new = average(g, state)
        above = m / ctx.bias_correction(beta1) if momentum_update else g
        return torch.where(first, above, quotient(above, root, floor=eps)), new

    return {**moments, "exp_avg": linear()}, update


@per_tensor(elementwise=True)
def scale_by_bcos(
    beta: Decay = 0.9,
    beta2: Decay | None = None,
    eps=1e-6,
    mode: Literal["c", "m", "g"] = "c",
    simple_cond=False,
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

    def update(g, state, p, ctx):
        new, old, direction = {}, g, g
        if mode != "g":
            old = torch.where(ctx.seen, state["exp_avg"], ctx.grad)
            direction = new["exp_avg"] = running_mean(old, g, beta)
        if mode == "c":
            v = conditional(old, g)
        else:
            before = torch.where(ctx.seen, state["exp_avg_sq"], ctx.grad.square())
            v = new["exp_avg_sq"] = running_mean(before, direction.square(), keep)
        return quotient(direction, safe_sqrt(v) + eps, floor=eps), new

    slots = {
        "exp_avg": linear() if mode != "g" else None,
        "exp_avg_sq": square() if mode != "c" else None,
    }
    return slots, update


@alias(class_name="AvaGrad")
def avagrad(
    lr=0.1,
    betas=(0.9, 0.999),
    eps=0.1,
    weight_decay=0.0,
    decoupled_weight_decay=False,
    lagged_norm=False,
):
    r"""AvaGrad: Adam with rates from earlier gradients, normalized to an overall scale that eps does not change.

    $p \leftarrow p - \eta \gamma_t \eta_t m_t/(1-\beta_1^t)$; see `scale_by_avagrad`. The learning rate and eps can
    therefore be tuned separately. The first step moves nothing.

    When to use: when eps and the learning rate should be tuned independently, from SGD-like (large eps) to Adam-like
    (small eps).

    Args:
        lr: $\eta$ in [0, inf), on the scale of SGD's rates.
        betas: Decay rates of the two averages, each in [0, 1).
        eps: $\epsilon \ge 0$, added outside the square root: small values are adaptive, large ones approach SGD with
            momentum.
        weight_decay: $\lambda \ge 0$, added to the gradient.
        decoupled_weight_decay: Apply the decay to the weights instead, $p (1 - \eta \lambda)$.
        lagged_norm: Use $\gamma$ of the previous step, as in the authors' code.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`; with `lagged_norm`,
        `gamma`, shared by all leaves.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> params = {"w": torch.tensor([0.0, 0.0])}
        >>> for eps in (1.0, 1e6):  # the largest eps is SGD
        ...     tx = gradtx.avagrad(lr=1.0, betas=(0.0, 0.5), eps=eps)
        ...     state = tx.init(params)
        ...     for _ in range(2):
        ...         updates, state = tx.update({"w": torch.tensor([1.0, 3.0])}, state)
        ...     print(updates["w"])
        tensor([-1.2649, -1.8974])
        tensor([-1.0000, -3.0000])

    Source: Savarese et al. 2019, arXiv:1912.01823. Departures: none from the paper; the authors' code and
    pytorch_optimizer's class correspond to `lagged_norm=True`.
    """
    return chain(
        with_decay(
            scale_by_avagrad(betas, eps, lagged_norm),
            weight_decay,
            decoupled_weight_decay,
            lr,
        ),
        hold_until(2),  # neither the update nor the decay acts in the first step
    )


@alias(class_name="AdaShift")
def adashift(lr=1e-3, **direction: Annotated[Any, scale_by_adashift]):
    r"""AdaShift: the mean of the last n gradients, divided by the size of the gradients before those.

    $p \leftarrow p - \eta m_t / (\sqrt{v_t/(1-\beta_2^{t-n})} + \epsilon)$; see `scale_by_adashift`. Nothing moves in
    the first n steps.

    When to use: problems with rare, large gradients that send Adam in the wrong direction; needs memory for the last n
    gradients.

    Args:
        lr: $\eta$ in [0, inf), approximately the change per step of the weight with the largest gradients ("max").
        betas: Decay rates of the weights within the window and of the average, each in [0, 1).
        keep_num: $n \ge 1$, the number of gradients in the window; all of them are stored.
        eps: $\epsilon \ge 0$, added outside the square root.
        reduce: "max" or "mean" of the squares over a leaf, or "none" for a separate rate per weight.

    Returns:
        A transformation whose updates are added to the parameters. State: `grad_0` ... `grad_{n-1}`, `exp_avg_sq`
        (0-d unless reduce is "none").

    Raises:
        ValueError: If a hyperparameter is out of range, or if `reduce` is unknown.

    Example:
        >>> tx = gradtx.adashift(lr=0.1, keep_num=1)
        >>> state = tx.init({"w": torch.zeros(2)})
        >>> for _ in range(2):
        ...     updates, state = tx.update({"w": torch.tensor([4.0, 1.0])}, state)
        ...     print(updates["w"])
        tensor([-0., -0.])
        tensor([-0.1000, -0.0250])

    Source: Zhou et al. 2018, arXiv:1810.00143. Departures: none from the paper; pytorch_optimizer takes a function
    instead, `reduce_func`.
    """
    return chain(scale_by_adashift(**direction), scale_by_learning_rate(lr))


@alias(class_name="ACProp")
def acprop(
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-16,
    weight_decay=0.0,
    decoupled_weight_decay=True,
    amsgrad=False,
    momentum_update=False,
):
    r"""ACProp: the gradient divided by the deviation of earlier gradients from their mean.

    $p \leftarrow p - \eta g_t / (\sqrt{s_{t-1} / (1-\beta_2^{t-1})} + \epsilon)$ with the average $s$ of $(g - m)^2$;
    the first step is an SGD step. See `scale_by_acprop`.

    When to use: as an alternative to AdaBelief; the denominator excludes the current gradient, so rare large gradients
    keep their weight.

    Args:
        lr: $\eta$ in [0, inf).
        betas: $(\beta_1, \beta_2)$, the decay rates of $m$ and of $s$, each in [0, 1).
        eps: $\epsilon \ge 0$, added to $s$, where it accumulates, and to its square root.
        weight_decay: $\lambda \ge 0$.
        decoupled_weight_decay: Subtract $\eta \lambda p$ from the weights; if False, add $\lambda p$ to the gradient.
        amsgrad: Use the running maximum of $s$.
        momentum_update: Step along $m_t / (1-\beta_1^t)$ instead of $g_t$.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_var`; with `amsgrad`,
        also `max_exp_avg_var`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.acprop(lr=1.0, betas=(0.5, 0.5), eps=0.0)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for grad in (4.0, 8.0):  # the deviation of 4 from its mean of 2 divides 8
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     print(updates["w"])
        tensor([-4.])
        tensor([-4.])

    Source: Zhuang et al. 2021, arXiv:2110.05454. Departures: see `scale_by_acprop`.
    """
    direction = scale_by_acprop(betas, eps, amsgrad, momentum_update)
    return with_decay(direction, weight_decay, decoupled_weight_decay, lr)


@alias(class_name="BCOS")
def bcos(
    lr=1e-3,
    beta: Decay = 0.9,
    beta2: Decay | None = None,
    eps=1e-6,
    weight_decay=0.1,
    *,
    decoupled_weight_decay=True,
    **options: Annotated[Any, scale_by_bcos],
):
    r"""BCOS: a momentum divided by an estimate of its root mean square, with one slot less than Adam.

    $p \leftarrow p - \eta (d_t / (\sqrt{v_t} + \epsilon) + \lambda p)$; in mode "c", $d$ is the momentum $m$, and $v_t$
    is the mean square of $m_t$ given $m_{t-1}$. See `scale_by_bcos`.

    When to use: instead of AdamW, at half the memory with the same rate and decay (the paper's claim).

    Args:
        lr: $\eta$ in [0, inf).
        beta: $\beta$ in [0, 1), the decay rate of the momentum.
        beta2: $\beta_2$ in [0, 1), the decay rate of the mean square. None: $\beta$, or $1 - (1-\beta)^2$ with
            `simple_cond`.
        eps: $\epsilon \ge 0$, in units of the gradient.
        weight_decay: $\lambda \ge 0$.
        mode: "c" (conditional), "m" (averaged squares of the momentum) or "g" (of the gradient, without momentum).
        simple_cond: In mode "c", use the simpler estimate $\beta_2 m_{t-1}^2 + (1-\beta_2) g_t^2$.
        decoupled_weight_decay: Subtract $\eta \lambda p$ from the weights; if False, add $\lambda p$ to the gradient.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg` (modes "c" and "m") and
        `exp_avg_sq` (modes "m" and "g"), both initialized from the first gradient.

    Raises:
        ValueError: If a hyperparameter is out of range, if `mode` is unknown, or if `params` is missing and
            `weight_decay` is not 0.0.

    Example:
        >>> # the first step is the sign of the gradient
        >>> tx = gradtx.bcos(lr=0.1, weight_decay=0.0)
        >>> tx.update({"w": torch.tensor([7.0, -0.2])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([-0.1000,  0.1000])

    Source: Jiang et al. 2025, arXiv:2507.08963. Departures: see `scale_by_bcos`.
    """
    direction = scale_by_bcos(beta, beta2, eps, **options)
    return with_decay(direction, weight_decay, decoupled_weight_decay, lr)
