"""Adam with another momentum: Adan, Adai, QHAdam, AdaPNM, AdaTAM; TAM."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from gradtx.algorithms.clipping import clip_by_global_norm
from gradtx.algorithms.momentum import positive_negative
from gradtx.algorithms.weight_decay import with_decay
from gradtx.arguments import Decay, Fraction, OpenFraction, Scalar, is_off
from gradtx.maths.entries import (
    MOMENTS,
    adam_moments,
    at_least,
    at_most,
    change_of,
    corrected_root,
    norms,
    peak,
    quotient,
    running_mean,
    safe_pow,
    safe_sqrt,
)
from gradtx.rules import alias, per_tensor
from gradtx.slots import linear, square
from gradtx.transform import chain

__all__ = [
    "adai",
    "adan",
    "adapnm",
    "adatam",
    "qhadam",
    "scale_by_adai",
    "scale_by_adan",
    "scale_by_adapnm",
    "scale_by_adatam",
    "scale_by_qhadam",
    "scale_by_tam",
    "tam",
]


@per_tensor(elementwise=True)
def scale_by_adan(betas=(0.98, 0.92, 0.99), eps=1e-8):
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

    def update(g, state, p, ctx):
        change = change_of(g, state, ctx)
        new = {
            "exp_avg": running_mean(state["exp_avg"], g, beta1),
            "exp_avg_diff": running_mean(state["exp_avg_diff"], change, beta2),
            "exp_avg_sq": running_mean(
                state["exp_avg_sq"], (g + beta2 * change).square(), beta3
            ),
            "previous_grad": g,
        }
        share = beta2 / ctx.bias_correction(beta2)
        m = new["exp_avg"] / ctx.bias_correction(beta1)
        root = corrected_root(new["exp_avg_sq"], ctx, beta3)
        return (m + share * new["exp_avg_diff"]) / (root + eps), new

    return {
        "exp_avg": linear(),
        "exp_avg_diff": linear(),
        "exp_avg_sq": square(),
        "previous_grad": linear(),
    }, update


@per_tensor(elementwise=True)
def scale_by_adai(
    betas=(0.1, 0.99),
    eps: OpenFraction = 1e-3,
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

    def update(g, state, p, ctx):
        v = running_mean(state["exp_avg_sq"], g.square(), beta2)
        unbiased = v / ctx.bias_correction(beta2)
        total = yield {"square": unbiased.sum(), "entries": g.numel()}
        scale = quotient(total["entries"], total["square"], total["square"] > 0)
        share = safe_pow(unbiased * scale, exponent)
        inertia = at_most(at_least(1 - beta0 * share, 0), 1 - eps)
        product = state["beta1_prod"] * inertia
        m = inertia * state["exp_avg"] + (1 - inertia) ** dampening * g
        new = {"exp_avg": m, "exp_avg_sq": v, "beta1_prod": product}
        yield factor * m / (1 - product), new

    return {
        **MOMENTS,
        "beta1_prod": square(torch.ones_like),
    }, update


@per_tensor(elementwise=True)
def scale_by_qhadam(
    betas=(0.9, 0.999),
    nus: tuple[Scalar, Fraction] = (1.0, 1.0),
    eps=1e-8,
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
    (beta1, beta2), (nu1, nu2) = betas, nus
    moments, average = adam_moments(betas)

    def update(g, state, p, ctx):
        m, v, new = average(g, state)
        top = (1 - nu1) * g + (nu1 / ctx.bias_correction(beta1)) * m
        # The product from the left, so that an infinite square with the weight 0 is not NaN.
        square = (1 - nu2) * g * g + (nu2 / ctx.bias_correction(beta2)) * v
        return top / (safe_sqrt(square) + eps), new

    return moments, update


@per_tensor(elementwise=True)
def scale_by_adapnm(
    betas: tuple[Decay, Decay, Fraction] = (0.9, 0.999, 1.0),
    eps=1e-8,
    amsgrad=True,
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
    momenta, average = positive_negative("exp_avg", "neg_exp_avg", beta1, beta3)

    def update(g, state, p, ctx):
        direction, new = average(g, state)
        new["exp_avg_sq"] = running_mean(state["exp_avg_sq"], g.square(), beta2)
        v = peak(new, state, "exp_avg_sq", amsgrad)
        root = corrected_root(v, ctx, beta2)
        return direction / ctx.bias_correction(beta1) / (root + eps), new

    slots = {
        **momenta,
        "exp_avg_sq": square(),
        "max_exp_avg_sq": square() if amsgrad else None,
    }
    return slots, update


@per_tensor
def scale_by_adatam(betas=(0.9, 0.999), decay_rate: Decay = 0.9, eps=1e-8):
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
        mean, smooth = _torque_aware(
            state["exp_avg"], update, state["s"], beta1, decay_rate, eps
        )
        square = running_mean(state["exp_avg_sq"], update.square(), beta2)
        return quotient(mean, safe_sqrt(square) + eps, floor=eps), {
            "s": smooth,
            "exp_avg": mean,
            "exp_avg_sq": square,
        }

    return {"s": torch.zeros_like, **MOMENTS}, update


@alias
def adan(
    lr=1e-3,
    betas=(0.98, 0.92, 0.99),
    eps=1e-8,
    weight_decay=0.0,
    max_grad_norm: Annotated[Scalar, "[0, inf]"] = 0.0,
    no_prox=False,
):
    r"""Adan: Adam with Nesterov momentum, estimated from the change of the gradient, and a proximal decay.

    $p \leftarrow (p - \eta u) / (1 + \eta \lambda)$ with $u$ the direction of `scale_by_adan`.

    When to use: large vision or language models trained from scratch, with memory for four floats per weight; it
    tolerates larger learning rates than `adamw` (the paper's claim).

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step.
        betas: Decay rates of the averages of gradients, of their changes and of squares, each in [0, 1). The betas in
            the paper are one minus these.
        eps: $\epsilon \ge 0$, added outside the square root; with `max_grad_norm`, also added to the norm.
        weight_decay: $\lambda \ge 0$, multiplied by the learning rate.
        max_grad_norm: Clip the gradient norm over all leaves to this value, >= 0, as `clip_by_global_norm` does: a NaN
            makes every update NaN. A literal 0.0 disables clipping.
        no_prox: Apply the decay as AdamW does, $p \leftarrow p (1 - \eta \lambda) - \eta u$.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_diff`, `exp_avg_sq`,
        `previous_grad`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.adan(lr=0.5, weight_decay=2.0)
        >>> params = {"w": torch.tensor([4.0])}
        >>> # (4 - 0.5) / 2 - 4
        >>> tx.update({"w": torch.tensor([7.0])}, tx.init(params), params)[0]["w"]
        tensor([-2.2500])

    Source: Xie et al. 2022, arXiv:2208.06677. Departures: none from the authors' code, which stores the negated
    previous gradient.
    """
    # The proximal step is a decoupled decay at a smaller rate: (p - lr u) / (1 + lr wd) = p - rate (u + wd p).
    rate = lr if no_prox else lr / (1 + lr * weight_decay)
    return chain(
        chain()
        if is_off(max_grad_norm)
        else clip_by_global_norm(max_grad_norm, eps=eps),
        with_decay(scale_by_adan(betas, eps), weight_decay, True, rate),
    )


@alias
def adai(
    lr,
    betas=(0.1, 0.99),
    eps: OpenFraction = 1e-3,
    weight_decay=0.0,
    decoupled_weight_decay=False,
    dampening: Fraction = 1.0,
):
    r"""Adai: momentum SGD whose inertia, not its rate, adapts to the gradients of each entry.

    $\beta_1 = \mathrm{clip}(1 - \beta_0 (\hat v / M)^{1/(3 - 2\tau)}, 0, 1 - \epsilon)$ with $M$ the mean of $\hat v$
    over all weights, $m \leftarrow \beta_1 m + (1-\beta_1)^\tau g$,
    $p \leftarrow p - \eta \beta_0^{1-\tau} m / (1 - \prod \beta_1)$.

    When to use: networks for which SGD generalizes better than Adam, but escapes from flat regions too slowly.

    Args:
        lr: $\eta$ in [0, inf), the change of a weight per unit of gradient; 1 to 10 times the rate of SGD without
            momentum.
        betas: $(\beta_0, \beta_2)$, each in [0, 1).
        eps: $\epsilon$ in (0, 1): the inertia stays below $1 - \epsilon$.
        weight_decay: $\lambda \ge 0$, added to the gradient unless decoupled.
        decoupled_weight_decay: Apply the decay to the weights instead, multiplied by the learning rate (AdaiS).
        dampening: $\tau$ in [0, 1]. Values below 1 give AdaiV2.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`, `beta1_prod`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.adai(lr=0.1)
        >>> # like SGD
        >>> tx.update({"w": torch.tensor([1.0, -3.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([-0.1000,  0.3000])

    Source: Xie et al. 2020, arXiv:2006.15815; AdaiS: Xie et al. 2020, arXiv:2011.11152. Departures: none from the
    authors' code, except for a ratio of 0 where all gradients are 0.
    """
    return with_decay(
        scale_by_adai(betas, eps, dampening), weight_decay, decoupled_weight_decay, lr
    )


@alias(class_name="QHAdam")
def qhadam(
    lr=1e-3,
    *,
    weight_decay=0.0,
    decoupled_weight_decay=False,
    **direction: Annotated[Any, scale_by_qhadam],
):
    r"""QHAdam: Adam whose averages are both mixed with the current gradient.

    $p \leftarrow p - \eta \frac{(1-\nu_1) g + \nu_1 \hat m}{\sqrt{(1-\nu_2) g^2 + \nu_2 \hat v} + \epsilon}$.

    When to use: when Adam is unstable or forgets too slowly: lower one of the nus slightly, without changing the betas.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step.
        betas: Decay rates of the two averages, each in [0, 1).
        nus: $(\nu_1, \nu_2)$; the second in [0, 1], usually the first as well. (1, 1) is Adam; the paper suggests (0.7,
            1).
        eps: $\epsilon \ge 0$, added outside the square root, in units of the gradient.
        weight_decay: $\lambda \ge 0$, added to the gradient unless decoupled.
        decoupled_weight_decay: Apply the decay to the weights instead of the gradient.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> # the gradient over Adam's root
        >>> tx, state = gradtx.qhadam(lr=0.1, nus=(0.0, 1.0)), {}
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for grad in (1.0, 0.0):
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     print(updates["w"].abs())
        tensor([0.1000])
        tensor([0.])

    Source: Ma and Yarats 2018, arXiv:1810.06801. Departures: none.
    """
    return with_decay(
        scale_by_qhadam(**direction), weight_decay, decoupled_weight_decay, lr
    )


@alias(class_name="AdaPNM")
def adapnm(
    lr=1e-3,
    betas: tuple[Decay, Decay, Fraction] = (0.9, 0.999, 1.0),
    eps=1e-8,
    weight_decay=0.0,
    amsgrad=True,
    decoupled_weight_decay=True,
):
    r"""AdaPNM: positive-negative momentum over Adam's denominator.

    $p \leftarrow p - \eta n_t / (1-\beta_1^t) / (\sqrt{v_t / (1-\beta_2^t)} + \epsilon)$ with $n_t$ the direction of
    `pnm` for $(\beta_1, \beta_3)$ and $v$ the average of $g^2$.

    When to use: small datasets or noisy labels (the paper's claim), where Adam fits the training set but does not
    generalize.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step.
        betas: $(\beta_1, \beta_2, \beta_3)$: the decay rates of the momenta and of $v$, in [0, 1), and the weight of
            the negative part, in [0, 1].
        eps: $\epsilon \ge 0$, added outside the square root, in units of the gradient.
        weight_decay: $\lambda \ge 0$.
        amsgrad: Use the running maximum of $v$.
        decoupled_weight_decay: Apply the decay to the weights, $p (1 - \eta \lambda)$; if False, add it to the
            gradient.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg` and `neg_exp_avg`, which swap at
        every step, `exp_avg_sq`, [`max_exp_avg_sq`].

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.adapnm(lr=0.1, betas=(0.9, 0.999, 0.0))  # without a negative part
        >>> # lr (1 + beta1)
        >>> tx.update({"w": torch.tensor([1e-4, -7.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([-0.1900,  0.1900])

    Source: Xie et al. 2021, arXiv:2103.17182. Departures: none from the authors' code. (pytorch_optimizer's class
    divides eps by $\sqrt{1-\beta_2^t}$.)
    """
    return with_decay(
        scale_by_adapnm(betas, eps, amsgrad), weight_decay, decoupled_weight_decay, lr
    )


@alias(class_name="AdaTAM")
def adatam(lr=1e-3, *, weight_decay=0.0, **direction: Annotated[Any, scale_by_adatam]):
    r"""AdaTAM: Adam whose momentum gives less weight to gradients that point away from it.

    $p \leftarrow p - \eta (m_t / (\sqrt{v_t} + \epsilon) + \lambda p)$ with the momentum of `scale_by_tam` and the
    average $v$ of $g^2$, without bias correction; see `scale_by_adatam`.

    When to use: instead of Adam if gradients are misaligned. The momentum is a sum, not an average: steps are up to
    $1 / (1-\beta_1)$ times as long as Adam's.

    Args:
        lr: $\eta$ in [0, inf).
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        decay_rate: $\gamma$ in [0, 1), the decay rate of the average agreement.
        eps: $\epsilon \ge 0$.
        weight_decay: $\lambda \ge 0$, decoupled.

    Returns:
        A transformation whose updates are added to the parameters. State: `s`, `exp_avg`, `exp_avg_sq`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.adatam(lr=0.1, betas=(0.9, 0.0))
        >>> # half a sign
        >>> tx.update({"w": torch.tensor([7.0, -0.2])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([-0.0500,  0.0500])

    Source: Malviya et al. 2024, arXiv:2412.18790. Departures: see `scale_by_adatam`.
    """
    return with_decay(scale_by_adatam(**direction), weight_decay, True, lr)


def _directed(x: Tensor) -> Tensor:
    """Divide by the norms along dimension 0, or by the absolute value of a 0-d tensor."""
    return x / at_least(norms(x, 0), 1e-12)


def _torque_aware(
    momentum: Tensor, update: Tensor, smooth: Tensor, beta, decay_rate, eps
) -> tuple[Tensor, Tensor]:
    """Return the next momentum, to which the gradient adds as much as both agree, and the average of that agreement."""
    along = (1 - decay_rate) * _directed(momentum) * _directed(update)
    smooth = decay_rate * smooth + along
    damped = ((1 + smooth) / 2 + eps) * update
    return beta * momentum + damped, smooth


@per_tensor
def scale_by_tam(momentum: Decay = 0.9, decay_rate: Decay = 0.9, eps=1e-8):
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
        buffer, smooth = _torque_aware(
            state["momentum_buffer"], update, state["s"], momentum, decay_rate, eps
        )
        return buffer, {"s": smooth, "momentum_buffer": buffer}

    return {"s": torch.zeros_like, "momentum_buffer": linear()}, update


@alias(class_name="TAM")
def tam(lr=1e-3, *, weight_decay=0.0, **direction: Annotated[Any, scale_by_tam]):
    r"""TAM: SGD whose momentum gives less weight to gradients that point away from it.

    $p \leftarrow p - \eta (m_t + \lambda p)$, $m_t = \mu m_{t-1} + (\frac{1 + s_t}{2} + \epsilon) g_t$ with the average
    agreement $s$ of $m$ and $g$; see `scale_by_tam`.

    When to use: instead of SGD with momentum if gradients are misaligned, at about twice the rate.

    Args:
        lr: $\eta$ in [0, inf).
        momentum: $\mu$ in [0, 1).
        decay_rate: $\gamma$ in [0, 1), the decay rate of the average agreement.
        eps: $\epsilon \ge 0$.
        weight_decay: $\lambda \ge 0$, decoupled.

    Returns:
        A transformation whose updates are added to the parameters. State: `s`, `momentum_buffer`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.tam(lr=1.0, momentum=0.0, decay_rate=0.0)
        >>> state = tx.init({"w": torch.zeros(2)})
        >>> # no momentum yet, then a right angle: half of each
        >>> for grads in ([1.0, 0.0], [0.0, 1.0]):
        ...     updates, state = tx.update({"w": torch.tensor(grads)}, state)
        ...     print(updates["w"])
        tensor([-0.5000, -0.0000])
        tensor([-0.0000, -0.5000])

    Source: Malviya et al. 2024, arXiv:2412.18790. Departures: see `scale_by_tam`.
    """
    return with_decay(scale_by_tam(**direction), weight_decay, True, lr)
