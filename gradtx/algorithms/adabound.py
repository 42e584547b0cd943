"""AdaBound, with amsgrad AMSBound: Adam whose rates are clipped ever more tightly to one SGD rate."""

from __future__ import annotations

from gradtx.arguments import NonNegative, Positive
from gradtx.links.decay import initial_lr, reference_lr, with_decay
from gradtx.maths.entries import adam_moments, hat_rate, quotient, safe_sqrt
from gradtx.rules import alias, per_tensor

__all__ = ["adabound", "scale_by_adabound"]


@per_tensor(elementwise=True, length="sets")
def scale_by_adabound(
    lr,
    final_lr: NonNegative = 0.1,
    betas=(0.9, 0.999),
    eps=1e-8,
    gamma: Positive = 1e-3,
    amsgrad=False,
):
    r"""Clip Adam's rates to a band that narrows to a single rate: from Adam to SGD with momentum.

    With Adam's $m_t$, $v_t$ and $c_i = 1-\beta_i^t$, the direction is $r_t m_t$, where
    $r_t = \frac{\sqrt{c_2}}{c_1 (\sqrt{v_t} + \epsilon)}$ is clipped to
    $[f (1 - \frac{1}{\gamma t + 1}), f (1 + \frac{1}{\gamma t})]$. $f$ is `final_lr` over the initial learning rate, so
    that after `scale_by_learning_rate` the band surrounds `final_lr` and follows a schedule.

    Args:
        lr: The rate of the `scale_by_learning_rate` that follows. Only its first value is used, or
            if that is 0 the largest so far.
        final_lr: The limit of each weight's rate, >= 0.
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$, in the units of a gradient.
        gamma: Speed at which the band narrows, > 0: its width is halved after about $1/\gamma$ steps.
        amsgrad: Use the running maximum of $v$ instead of $v$ (AMSBound).

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_sq` and, with `amsgrad`,
        `max_exp_avg_sq`, shaped as the parameter; `initial_lr`, 0-d float64 for each leaf.

    Example:
        >>> # a narrow band from the start
        >>> tx = gradtx.scale_by_adabound(lr=0.01, final_lr=0.1, gamma=1e6)
        >>> # 10 m
        >>> tx.update({"w": torch.tensor([0.5, -4.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([ 0.5000, -4.0000])

    Source: Luo et al. 2019, "Adaptive Gradient Methods with Dynamic Bound of Learning Rate" (ICLR). Departures: none
    from the authors' code, which clips after the learning rate.
    """
    moments, average = adam_moments(betas, amsgrad)

    def update(update, state, param, ctx):
        mean, square, new_state = average(update, state)
        reference, slot = reference_lr(state, lr)
        final, narrowing = quotient(final_lr, reference), gamma * ctx.time
        lowest, highest = final * (1 - 1 / (narrowing + 1)), final * (1 + 1 / narrowing)
        rates = hat_rate(safe_sqrt(square) + eps, ctx, betas).clamp(lowest, highest)
        return rates * mean, {**new_state, **slot}

    return {**moments, "initial_lr": initial_lr(lr)}, update


@alias(class_name="AdaBound")
def adabound(
    lr=1e-3,
    betas=(0.9, 0.999),
    final_lr: NonNegative = 0.1,
    gamma: Positive = 1e-3,
    eps=1e-8,
    weight_decay=0.0,
    decoupled_weight_decay=False,
    fixed_decay=False,
    amsgrad=False,
):
    r"""AdaBound, with amsgrad AMSBound: Adam whose rates are clipped ever more tightly to one SGD rate.

    $p \leftarrow p - \mathrm{clip}(\frac{\eta_t \sqrt{c_2}}{c_1 (\sqrt{v_t} + \epsilon)},
    f_t (1 - \frac{1}{\gamma t + 1}), f_t (1 + \frac{1}{\gamma t})) \, m_t$ with Adam's averages, $c_i = 1-\beta_i^t$
    and $f_t$ = `final_lr` times $\eta_t/\eta_1$.

    When to use: Adam's fast start and SGD's final phase in one run, if the final SGD rate is roughly known.

    Args:
        lr: $\eta$, initially in (0, inf): approximately the change of each weight per step at the beginning.
        betas: Decay rates of the two averages, each in [0, 1).
        final_lr: Final SGD rate, >= 0.
        gamma: Speed at which the bounds converge, > 0: they are within a factor of 2 after $1/\gamma$ steps.
        eps: $\epsilon \ge 0$, added outside the square root, before its bias correction.
        weight_decay: $\lambda \ge 0$, added to the gradient.
        decoupled_weight_decay: Apply the decay to the weights instead, $p (1 - \eta \lambda)$.
        fixed_decay: Use $p (1 - \lambda)$ instead of that; read only if decoupled.
        amsgrad: Use the running maximum of $v$.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`,
        [`max_exp_avg_sq`] and the 0-d `initial_lr`.

    Example:
        >>> tx = gradtx.adabound(lr=1e-3, final_lr=0.1, gamma=1e6)  # SGD from the start
        >>> # 0.1 (1 - beta1) g
        >>> tx.update({"w": torch.tensor([1.0, -2.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([-0.0100,  0.0200])

    Source: Luo et al. 2019, "Adaptive Gradient Methods with Dynamic Bound of Learning Rate" (ICLR). Departures: none.
    The authors' AdaBoundW is decoupled with a fixed decay; pytorch_optimizer's AdaBound is decoupled by default.
    """
    direction = scale_by_adabound(lr, final_lr, betas, eps, gamma, amsgrad)
    return with_decay(direction, weight_decay, decoupled_weight_decay, lr, fixed_decay)
