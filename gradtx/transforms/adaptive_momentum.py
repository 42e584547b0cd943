"""Momentum with a rate for every weight: Adan, Adai, PNM, TAM and others that change both halves of Adam."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from gradtx.arguments import Decay, Decays, Fraction, NonNegative, Positive
from gradtx.base.exact import Scalar
from gradtx.rules import per_tensor
from gradtx.slots import linear, square
from gradtx.transforms._math import (
    adam_moments,
    at_least,
    change_of,
    corrected_root,
    hat_rate,
    peak,
    quotient,
    running_mean,
    safe_sqrt,
    softplus,
    unit_norm,
)
from gradtx.transforms.adam_variants import stable_decay

__all__ = [
    "scale_by_adai",
    "scale_by_adan",
    "scale_by_adapnm",
    "scale_by_adatam",
    "scale_by_pnm",
    "scale_by_ranger21",
    "scale_by_swats",
    "scale_by_tam",
]


@per_tensor(elementwise=True)
def scale_by_adan(betas: Decays = (0.98, 0.92, 0.99), eps: NonNegative = 1e-8):
    r"""Extrapolate the mean gradient by its mean change, and divide by their combined root mean square: Adan.

    With $\Delta_t = g_t - g_{t-1}$ (0 at $t = 1$): $m_t = \beta_1 m_{t-1} + (1-\beta_1) g_t$,
    $d_t = \beta_2 d_{t-1} + (1-\beta_2) \Delta_t$, $n_t = \beta_3 n_{t-1} + (1-\beta_3) (g_t + \beta_2 \Delta_t)^2$;
    direction $(\hat m_t + \beta_2 \hat d_t) / (\sqrt{\hat n_t} + \epsilon)$, where $\hat x_t = x_t / (1 - \beta^t)$
    with the beta of x.

    Args:
        betas: $(\beta_1, \beta_2, \beta_3)$, each in [0, 1): weights of the old averages. The paper's betas are one
            minus these.
        eps: $\epsilon \ge 0$, in the units of a gradient.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_diff`, `exp_avg_sq`,
        `previous_grad`, shaped as the parameter.

    Raises:
        ValueError: If a beta is outside [0, 1) or `eps` is negative.

    Example:
        >>> tx = gradtx.scale_by_adan(betas=(0.0, 0.5, 0.0))
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> _, state = tx.update({"w": torch.tensor([1.0])}, state)
        >>> # (4 + 0.5 * (1.5 / 0.75)) / (4 + 0.5 * 3)
        >>> tx.update({"w": torch.tensor([4.0])}, state)[0]["w"]
        tensor([0.9091])

    Source: Xie et al. 2022, arXiv:2208.06677. Departures: bias corrections, as in the authors' code.
    """
    beta1, beta2, beta3 = betas

    def update(update, state, param, ctx):
        change = change_of(update, state, ctx)
        mean = running_mean(state["exp_avg"], update, beta1)
        mean_change = running_mean(state["exp_avg_diff"], change, beta2)
        moved = update + beta2 * change
        square = running_mean(state["exp_avg_sq"], moved.square(), beta3)
        share = beta2 / ctx.bias_correction(beta2)
        ahead = mean / ctx.bias_correction(beta1) + share * mean_change
        root = corrected_root(square, ctx, beta3)
        new = {
            "exp_avg": mean,
            "exp_avg_diff": mean_change,
            "exp_avg_sq": square,
            "previous_grad": update,
        }
        return ahead / (root + eps), new

    return {
        "exp_avg": linear(),
        "exp_avg_diff": linear(),
        "exp_avg_sq": square(),
        "previous_grad": linear(),
    }, update


@per_tensor(elementwise=True)
def scale_by_adai(
    betas: Decays = (0.1, 0.99),
    eps: Annotated[Scalar, "(0, 1)"] = 1e-3,
    dampening: Fraction = 1.0,
):
    r"""Average gradients with a separate inertia per entry, lower where gradients are large: Adai.

    $v_t = \beta_2 v_{t-1} + (1-\beta_2) g_t^2$, $\hat v_t = v_t / (1 - \beta_2^t)$, $M$ the mean of $\hat v_t$ over all
    leaves; $\beta_{1,t} = \mathrm{clip}(1 - \beta_0 (\hat v_t / M)^{1/(3 - 2\tau)}, 0, 1 - \epsilon)$;
    $m_t = \beta_{1,t} m_{t-1} + (1 - \beta_{1,t})^\tau g_t$; direction
    $\beta_0^{1-\tau} m_t / (1 - \prod_s \beta_{1,s})$.

    Args:
        betas: $(\beta_0, \beta_2)$, each in [0, 1): the distance of an average entry's inertia from 1, and the weight
            of the old average of squares.
        eps: $\epsilon$ in (0, 1): the inertia is at most $1 - \epsilon$. It does not guard a division.
        dampening: $\tau$ in [0, 1]. 1 is Adai; smaller values are AdaiV2.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_sq`, `beta1_prod` (initially 1),
        shaped as the parameter. bfloat16 is too coarse for the product: pass `state_dtype`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> tx = gradtx.scale_by_adai(betas=(0.1, 0.0))
        >>> grads = {"a": torch.tensor([1.0, 3.0]), "b": torch.tensor([0.0, 0.0])}
        >>> _, state = tx.update(grads, tx.init(grads))
        >>> state["scale_by_adai"]["beta1_prod"]  # the mean of the squares is 2.5
        {'a': tensor([0.9600, 0.6400]), 'b': tensor([0.9990, 0.9990])}

    Source: Xie et al. 2020, arXiv:2006.15815. Departures: none; the ratio is 0 where all gradients are 0.
    """
    beta0, beta2 = betas
    exponent, factor = 1 / (3 - 2 * dampening), beta0 ** (1 - dampening)

    def update(update, state, param, ctx):
        square = running_mean(state["exp_avg_sq"], update.square(), beta2)
        unbiased = square / ctx.bias_correction(beta2)
        total = yield {"square": unbiased.sum(), "entries": update.numel()}
        share = unbiased * quotient(
            total["entries"], total["square"], total["square"] > 0
        )
        none = share == 0  # a power has no finite derivative there
        share = torch.where(none, 0.0, torch.where(none, 1.0, share) ** exponent)
        inertia = (1 - beta0 * share).clamp(min=0).clamp(max=1 - eps)
        product = state["beta1_prod"] * inertia
        mean = inertia * state["exp_avg"] + (1 - inertia) ** dampening * update
        yield (
            factor * mean / (1 - product),
            {"exp_avg": mean, "exp_avg_sq": square, "beta1_prod": product},
        )

    return {
        "exp_avg": linear(),
        "exp_avg_sq": square(),
        "beta1_prod": square(torch.ones_like),
    }, update


def positive_negative(
    positive: Tensor, negative: Tensor, gradient: Tensor, beta, weight
) -> tuple[Tensor, Tensor]:
    """Return the direction and the positive momentum updated with the gradient; the negative one is unchanged.

    The decay is the square of beta, because each momentum is written at every second step. The direction is normalized
    so that two momenta with independent noise yield noise of the size of one.
    """
    positive = running_mean(positive, gradient, beta**2)
    size = ((1 + weight) ** 2 + weight**2) ** 0.5
    return ((1 + weight) / size) * positive - (weight / size) * negative, positive


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

    def update(update, state, param, ctx):
        negative = state["neg_momentum"]
        direction, positive = positive_negative(
            state["pos_momentum"], negative, update, beta1, beta2
        )
        return direction, {"pos_momentum": negative, "neg_momentum": positive}

    return {"pos_momentum": linear(), "neg_momentum": linear()}, update


@per_tensor(elementwise=True)
def scale_by_adapnm(
    betas: tuple[Decay, Decay, Fraction] = (0.9, 0.999, 1.0),
    eps: NonNegative = 1e-8,
    amsgrad: bool = True,
):
    r"""Divide positive-negative momentum by the root mean square of the gradient: AdaPNM's direction.

    With $n_t$ the direction of `scale_by_pnm` for $(\beta_1, \beta_3)$ and
    $v_t = \beta_2 v_{t-1} + (1-\beta_2) g_t^2$: $n_t / (1-\beta_1^t) / (\sqrt{v_t / (1-\beta_2^t)} + \epsilon)$.

    Args:
        betas: $(\beta_1, \beta_2, \beta_3)$: decay of the momenta and of $v$, in [0, 1); weight of the negative
            part, in [0, 1].
        eps: $\epsilon \ge 0$, in the units of a gradient.
        amsgrad: Use the running maximum of $v$ instead of $v$.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, which the next step updates, and
        `neg_exp_avg`, swapped at every step, `exp_avg_sq` and, with `amsgrad`, `max_exp_avg_sq`, shaped as the
        parameter.

    Raises:
        ValueError: If one of the first two betas is outside [0, 1), if the third is outside [0, 1], or if `eps` is
            negative.

    Example:
        >>> tx = gradtx.scale_by_adapnm((0.0, 0.9, 1.0))
        >>> # 2 / sqrt(5)
        >>> tx.update({"w": torch.tensor([1e-3, -4.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([ 0.8944, -0.8944])

    Source: Xie et al. 2021, arXiv:2103.17182. Departures: none from the authors' code, which corrects by
    $1-\beta_1^t$ although each momentum decays by $\beta_1^2$ at every second step.
    """
    beta1, beta2, beta3 = betas

    def update(update, state, param, ctx):
        negative = state["neg_exp_avg"]
        direction, positive = positive_negative(
            state["exp_avg"], negative, update, beta1, beta3
        )
        square = running_mean(state["exp_avg_sq"], update.square(), beta2)
        new = {"exp_avg": negative, "neg_exp_avg": positive, "exp_avg_sq": square}
        square = peak(new, state, "exp_avg_sq", amsgrad)
        root = corrected_root(square, ctx, beta2)
        return direction / ctx.bias_correction(beta1) / (root + eps), new

    slots = {
        "exp_avg": linear(),
        "neg_exp_avg": linear(),
        "exp_avg_sq": square(),
        "max_exp_avg_sq": square() if amsgrad else None,
    }
    return slots, update


def _directed(x: Tensor) -> Tensor:
    """Divide by the norms along dimension 0, or by the absolute value of a 0-d tensor."""
    square = x.square().sum(dim=0, keepdim=True) if x.ndim else x.square()
    return x / at_least(safe_sqrt(square), 1e-12)


def _damped(
    update: Tensor, momentum: Tensor, smooth: Tensor, decay_rate, eps
) -> tuple[Tensor, Tensor]:
    """Return the gradient weighted by its agreement with the momentum, and the average of that agreement."""
    along = (1 - decay_rate) * _directed(momentum) * _directed(update)
    smooth = decay_rate * smooth + along
    return ((1 + smooth) / 2 + eps) * update, smooth


@per_tensor
def scale_by_tam(
    momentum: Decay = 0.9, decay_rate: Decay = 0.9, eps: NonNegative = 1e-8
):
    r"""Add gradients to a momentum, damping those that turn away from it: torque-aware momentum.

    $n(x) = x / \lVert x \rVert$ with norms along dimension 0,
    $s_t = \gamma s_{t-1} + (1-\gamma)\, n(m_{t-1})\, n(g_t)$ entry by entry,
    $m_t = \mu m_{t-1} + (\frac{1 + s_t}{2} + \epsilon) g_t$, direction $m_t$.

    Args:
        momentum: $\mu$ in [0, 1).
        decay_rate: $\gamma$ in [0, 1), decay of the average agreement.
        eps: $\epsilon \ge 0$, which gives an opposite gradient some weight.

    Returns:
        A transformation that keeps shapes and dtypes. State: `s`, `momentum_buffer` ($m$), shaped as the parameter.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> tx = gradtx.scale_by_tam(momentum=0.5, decay_rate=0.0, eps=0.0)
        >>> state = tx.init({"w": torch.zeros(())})
        >>> # half of the gradient at first, then all of it, then nothing
        >>> for grad in (2.0, 2.0, -8.0):
        ...     updates, state = tx.update({"w": torch.tensor(grad)}, state)
        ...     print(updates["w"])
        tensor(1.)
        tensor(2.5000)
        tensor(1.2500)

    Source: Malviya et al. 2024, arXiv:2412.18790. Departures: as in the public code, norms are along dimension 0 (the
    paper's cosine is over the whole leaf). pytorch_optimizer starts $m$ at $g_1$.
    """

    def update(update, state, param, ctx):
        buffer = state["momentum_buffer"]
        damped, smooth = _damped(update, buffer, state["s"], decay_rate, eps)
        buffer = momentum * buffer + damped
        return buffer, {"s": smooth, "momentum_buffer": buffer}

    return {"s": torch.zeros_like, "momentum_buffer": linear()}, update


@per_tensor
def scale_by_adatam(
    betas: Decays = (0.9, 0.999), decay_rate: Decay = 0.9, eps: NonNegative = 1e-8
):
    r"""Divide a torque-aware momentum by the root mean square of the gradients: AdaTAM's direction.

    $s_t$ as in `scale_by_tam`, $m_t = \beta_1 m_{t-1} + (\frac{1 + s_t}{2} + \epsilon) g_t$,
    $v_t = \beta_2 v_{t-1} + (1-\beta_2) g_t^2$, direction $m_t / (\sqrt{v_t} + \epsilon)$, without bias correction.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        decay_rate: $\gamma$ in [0, 1), decay of the average agreement.
        eps: $\epsilon \ge 0$.

    Returns:
        A transformation that keeps shapes and dtypes. State: `s`, `exp_avg`, `exp_avg_sq`, shaped as the parameter.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> tx = gradtx.scale_by_adatam(betas=(0.0, 0.75), decay_rate=0.0, eps=0.0)
        >>> state = tx.init({"w": torch.zeros(())})
        >>> for grad in (2.0, 2.0):  # half of the gradient at first
        ...     updates, state = tx.update({"w": torch.tensor(grad)}, state)
        ...     print(updates["w"])
        tensor(1.)
        tensor(1.5119)

    Source: Malviya et al. 2024, arXiv:2412.18790. Departures: as for `scale_by_tam`; the public code has neither the
    factor $1-\beta_1$ nor bias correction.
    """
    beta1, beta2 = betas

    def update(update, state, param, ctx):
        mean = state["exp_avg"]
        damped, smooth = _damped(update, mean, state["s"], decay_rate, eps)
        mean = beta1 * mean + damped
        square = running_mean(state["exp_avg_sq"], update.square(), beta2)
        return quotient(mean, safe_sqrt(square) + eps, floor=eps), {
            "s": smooth,
            "exp_avg": mean,
            "exp_avg_sq": square,
        }

    return {"s": torch.zeros_like, "exp_avg": linear(), "exp_avg_sq": square()}, update


@per_tensor(
    elementwise=True,
    owns_lr=True,
    shared={"count": 0.0, "rate_avg": 0.0, "sgd_rate": 0.0, "switched": 0.0},
    agree=("betas", "eps", "switch_tol"),
)
def scale_by_swats(
    lr: NonNegative = 1e-3,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-9,
    amsgrad: bool = False,
    switch_tol: NonNegative | None = None,
):
    r"""Step as Adam until the equivalent SGD rate has settled, then as SGD with momentum at that rate: SWATS.

    Adam's phase: $s_t = -\eta_t \frac{\sqrt{c_2}}{c_1 (\sqrt{v_t} + \epsilon)} m_t$, and with all leaves as one vector
    $\gamma_t = \langle s, s \rangle / -\langle s, g \rangle$,
    $\lambda_t = \beta_2 \lambda_{t-1} + (1-\beta_2) \gamma_t$, $\Lambda_t = \lambda_t / c_2$. Where $t > 1$,
    $\Lambda_t > 0$ and $|\Lambda_t - \gamma_t| <$ `switch_tol`, all following steps are SGD steps, and $\Lambda$ and
    Adam's averages are frozen: $b \leftarrow \beta_1 b + g$ from 0, $u = -(1-\beta_1) \Lambda b$. Where
    $\langle s, g \rangle = 0$, $\lambda$ is unchanged and there is no switch.

    Args:
        lr: $\eta$ in [0, inf), used in Adam's phase only.
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$, in the units of a gradient.
        amsgrad: Use the running maximum of $v$ instead of $v$.
        switch_tol: Tolerance >= 0, in the units of a learning rate; None for `eps`, as in the paper.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`,
        [`max_exp_avg_sq`], `momentum_buffer`, shaped as the parameter; shared by all leaves, 0-d float64: `count`
        ($t$), `rate_avg` ($\lambda$), `sgd_rate` ($\Lambda$) and `switched` (1.0 in SGD's phase).

    Raises:
        ValueError: If an argument is out of range, or if a later link scales by a learning rate or decays.

    Example:
        >>> tx = gradtx.scale_by_swats(lr=0.1, betas=(0.5, 0.5), switch_tol=1e-3)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> # Adam's steps of 0.1 match SGD's at 0.05 twice: then it switches to SGD
        >>> for grad in (2.0, 2.0, 4.0):
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     print(updates["w"])
        tensor([-0.1000])
        tensor([-0.1000])
        tensor([-0.1000])

    Source: Keskar and Socher 2017, arXiv:1712.07628. Departures: none from the paper. Published implementations,
    including torch_optimizer's and pytorch_optimizer's, compute $\gamma$ leaf by leaf with a relative tolerance.
    """
    beta1, beta2 = betas
    moments, average = adam_moments(betas, amsgrad)
    tolerance = eps if switch_tol is None else switch_tol

    def update(update, state, param, ctx):
        mean, square, new = average(update, state)
        step = -lr * hat_rate(safe_sqrt(square) + eps, ctx, betas) * mean
        total = yield {"square": step.square().sum(), "slope": (step * update).sum()}

        # The step count shared by all leaves, because a leaf may have had its first gradient later.
        count, sgd, slope = state["count"] + 1, state["switched"] > 0, total["slope"]
        # This step has an estimate, and the estimate is still needed.
        seen = (slope != 0) & ~sgd
        estimate = total["square"] / -torch.where(seen, slope, -1.0)
        rate_avg = torch.where(
            seen, running_mean(state["rate_avg"], estimate, beta2), state["rate_avg"]
        )
        sgd_rate = torch.where(
            seen, rate_avg / ctx.bias_correction(beta2, count), state["sgd_rate"]
        )
        has_settled = (
            seen
            & (count > 1)
            & (sgd_rate > 0)
            & ((sgd_rate - estimate).abs() < tolerance)
        )

        buffer = torch.where(sgd, beta1 * state["momentum_buffer"] + update, 0.0)
        new = {
            slot: torch.where(sgd, state[slot], value) for slot, value in new.items()
        }
        new |= {
            "momentum_buffer": buffer,
            "count": count,
            "rate_avg": rate_avg,
            "sgd_rate": sgd_rate,
        }
        new["switched"] = (sgd | has_settled).to(rate_avg.dtype)
        yield torch.where(sgd, -(1 - beta1) * state["sgd_rate"] * buffer, step), new

    return {**moments, "momentum_buffer": linear()}, update


@per_tensor(needs=("params",), owns_lr=True)
def scale_by_ranger21(
    lr: NonNegative,
    beta0: Fraction = 0.9,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-8,
    use_softplus: bool = True,
    beta_softplus: Positive = 50.0,
    weight_decay: NonNegative = 1e-4,
    norm_loss_factor: NonNegative = 1e-4,
    amsgrad: bool = True,
):
    r"""Step along positive-negative momentum over a smoothed denominator, after two decays: Ranger21's update.

    With $v_t = \beta_2 v_{t-1} + (1-\beta_2) g_t^2$ and $c_i = 1 - \beta_i^t$: first stable decay,
    $q = p (1 - \eta \lambda / \ell)$, where $\ell^2$ is the mean of $v_t / c_2$ over all entries of all leaves (no
    decay while it is 0); then the norm loss, $r = q (1 - 2 \eta \kappa (1 - 1 / (\lVert q_i \rVert + \epsilon)))$ for
    each output unit; then $p \leftarrow r - \frac{\eta}{c_1} n_t / D_t$. $n_t$ is the direction of `scale_by_pnm` for
    $(\beta_1, \beta_0)$; $D_t$ is $\sqrt{v_t / c_2} + \epsilon$ or its softplus.

    Args:
        lr: $\eta$ in [0, inf). The stage owns it: its update is the full step.
        beta0: $\beta_0$ in [0, 1], the weight of the negative momentum.
        betas: $(\beta_1, \beta_2)$, each in [0, 1): decay of the momenta per step, and of $v$.
        eps: $\epsilon \ge 0$; use a positive value.
        use_softplus: Whether to keep the denominator away from 0 smoothly.
        beta_softplus: $b > 0$: the denominator is $\log(1 + \exp(b D)) / b$.
        weight_decay: $\lambda \ge 0$, in the units of a gradient over a weight.
        norm_loss_factor: $\kappa \ge 0$.
        amsgrad: Use the running maximum of $v$ in $D_t$.

    Returns:
        A transformation whose updates are added to the parameters. State: `grad_ma`, which the next step updates, and
        `neg_grad_ma`, swapped at every step, `exp_avg_sq` and, with `amsgrad`, `max_exp_avg_sq`, shaped as the
        parameter.

    Raises:
        ValueError: If an argument is out of range, if `params` is missing, or if a later link scales by a learning rate
            or decays.

    Example:
        >>> tx = gradtx.scale_by_ranger21(
        ...     lr=0.1, beta0=0.0, use_softplus=False, weight_decay=1.0, norm_loss_factor=0.5
        ... )
        >>> params = {"w": torch.tensor([2.0, 0.0])}
        >>> state = tx.init(params)
        >>> # a tenth of the way from norm 2 to 1
        >>> tx.update({"w": torch.zeros(2)}, state, params)[0]["w"] + params["w"]
        tensor([1.9000, 0.0000])

    Source: Wright and Demeure 2021, arXiv:2106.13731. Departures from the authors' code: the decay uses all leaves,
    the mean of $v$ starts at 0, the maximum is stored, and `beta0` is the weight of the noise (theirs is 1).
    """
    beta1, beta2 = betas

    def update(update, state, param, ctx):
        correction = ctx.bias_correction(beta2)
        square = running_mean(state["exp_avg_sq"], update.square(), beta2)
        total = yield {"square": square.sum() / correction, "count": square.numel()}
        # p becomes p (1 - a) (1 - b); computed as a sum, because 1 - a would round to 1 in half precision.
        stable = stable_decay(lr * weight_decay, total)
        size = unit_norm((1 - stable) * param)
        pull = 2 * lr * norm_loss_factor * (1 - 1 / (size + eps))
        decay = stable + pull - stable * pull

        negative = state["neg_grad_ma"]
        direction, positive = positive_negative(
            state["grad_ma"], negative, update, beta1, beta0
        )
        new = {"grad_ma": negative, "neg_grad_ma": positive, "exp_avg_sq": square}
        square = peak(new, state, "exp_avg_sq", amsgrad)
        root = safe_sqrt(square / correction) + eps
        if use_softplus:
            root = softplus(root, beta_softplus)
        yield -(lr / ctx.bias_correction(beta1)) * direction / root - decay * param, new

    slots = {
        "grad_ma": linear(),
        "neg_grad_ma": linear(),
        "exp_avg_sq": square(),
        "max_exp_avg_sq": square() if amsgrad else None,
    }
    return slots, update
