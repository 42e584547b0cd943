r"""ADOPT; also `adopt_atan2`.

Adam that divides by the size of earlier gradients only, and therefore converges with any $\beta_2$.
"""

from __future__ import annotations

import torch

from gradtx.arguments import FractionOffAtOne, NonNegative, Positive, is_off
from gradtx.links.caution import is_without_caution
from gradtx.links.decay import decay_or_regenerate, with_decay
from gradtx.links.scaling import hold_until, scale_by_learning_rate
from gradtx.maths.entries import (
    at_least,
    atan2,
    caution,
    fading_moments,
    running_mean,
    safe_sqrt,
)
from gradtx.rules import alias, per_tensor
from gradtx.transform import chain

__all__ = [
    "adopt",
    "adopt_atan2",
    "scale_by_adopt",
    "scale_by_adopt_atan2",
]


def _after_first(normal, g, state, betas, ctx):
    """Return the averages of normalized gradients, from the second on, and of squares, which start at the first."""
    m, v, square, seen = state["exp_avg"], state["exp_avg_sq"], g.square(), ctx.seen
    return {
        "exp_avg": torch.where(seen, running_mean(m, normal, betas[0]), m),
        "exp_avg_sq": torch.where(seen, running_mean(v, square, betas[1]), square),
    }


@per_tensor(elementwise=True, length="sets")
def scale_by_adopt(
    betas=(0.9, 0.9999),
    eps=1e-6,
    clip_exponent: NonNegative | None = 0.25,
):
    r"""Average gradients that are divided by the size of earlier gradients: ADOPT's direction.

    $n_t = g_t / \max(\sqrt{v_{t-1}}, \epsilon)$ clamped to $\pm (t-1)^{c}$, $m_t = \beta_1 m_{t-1} + (1-\beta_1) n_t$,
    then $v_t = \beta_2 v_{t-1} + (1-\beta_2) g_t^2$. The first step only sets $v_1 = g_1^2$ and returns 0.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: Lower bound of the denominator, >= 0.
        clip_exponent: $c \ge 0$; None disables clamping.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_sq`, shaped as the parameter.

    Example:
        >>> tx = gradtx.scale_by_adopt()
        >>> updates, state = tx.update(
        ...     {"w": torch.tensor([2.0])}, tx.init({"w": torch.zeros(1)})
        ... )
        >>> updates["w"], state["scale_by_adopt"]["exp_avg_sq"]["w"]
        (tensor([0.]), tensor([4.]))

    Source: Taniguchi et al. 2024, arXiv:2411.02853. Departures: none (the clamp counts earlier calls, as in the paper).
    """

    def update(g, state, p, ctx):
        root = torch.where(ctx.seen, safe_sqrt(state["exp_avg_sq"]), 1.0)
        normal = g / at_least(root, eps)
        if clip_exponent is not None:
            bound = (ctx.time - 1) ** clip_exponent
            normal = normal.clamp(-bound, bound)
        new_state = _after_first(normal, g, state, betas, ctx)
        return new_state["exp_avg"], new_state

    return fading_moments(betas), update


@per_tensor(elementwise=is_without_caution, length="sets")
def scale_by_adopt_atan2(
    betas=(0.9, 0.99),
    a: Positive = 1.27,
    b: Positive = 1.0,
    cautious_factor: FractionOffAtOne = 1.0,
):
    r"""Replace the division and clamp of ADOPT's direction by the arc tangent.

    $m_t = \beta_1 m_{t-1} + (1-\beta_1) \mathrm{atan2}(g_t, b \sqrt{v_{t-1}})$, $u_t = a m_t$, then
    $v_t = \beta_2 v_{t-1} + (1-\beta_2) g_t^2$. The first step only sets $v_1 = g_1^2$ and returns 0. Caution compares
    $g_t$ with the old $m_{t-1}$.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        a: Scale of the result, > 0.
        b: Scale of the denominator, > 0.
        cautious_factor: As in `scale_by_atan2`.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_sq`, shaped as the parameter.

    Example:
        >>> tx = gradtx.scale_by_adopt_atan2(betas=(0.0, 0.5), a=1.0)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for _ in range(2):
        ...     updates, state = tx.update({"w": torch.tensor([-3.0])}, state)
        ...     print(updates["w"])
        tensor([0.])
        tensor([-0.7854])

    Source: adam-atan2-pytorch 0.4.1, after Taniguchi et al. 2024, arXiv:2411.02853. Departures: none from the former.
    """

    def update(g, state, p, ctx):
        old, v = state["exp_avg"], state["exp_avg_sq"]
        new_state = _after_first(atan2(g, b * safe_sqrt(v)), g, state, betas, ctx)
        direction = new_state["exp_avg"]
        if not is_off(cautious_factor, 1.0):
            direction = direction * caution(old, g, cautious_factor)
        return a * direction, new_state

    return fading_moments(betas), update


@alias(class_name="ADOPT")
def adopt(
    lr=1e-3,
    betas=(0.9, 0.9999),
    eps=1e-6,
    weight_decay=0.0,
    decoupled_weight_decay=False,
    clip_exponent: NonNegative | None = 0.25,
):
    r"""ADOPT: Adam that divides by the size of earlier gradients only, and therefore converges with any $\beta_2$.

    $n_t = g_t / \max(\sqrt{v_{t-1}}, \epsilon)$ clamped to $\pm (t-1)^c$, $m_t = \beta_1 m_{t-1} + (1-\beta_1) n_t$,
    $p \leftarrow p - \eta m_t$; the first step only sets $v_1 = g_1^2$.

    When to use: when Adam diverges, or needs a beta2 tuned for each problem; in that case a drop-in replacement for
    `adam`.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step.
        betas: Decay rates of the two averages, each in [0, 1).
        eps: Lower bound of the denominator, >= 0.
        weight_decay: $\lambda \ge 0$, added to the gradient unless decoupled.
        decoupled_weight_decay: Apply the decay to the weights instead of the gradient.
        clip_exponent: $c \ge 0$; None disables clamping.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`.

    Example:
        >>> tx = gradtx.adopt(lr=0.1, betas=(0.0, 0.99))
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for _ in range(2):
        ...     updates, state = tx.update({"w": torch.tensor([5.0])}, state)
        ...     print(updates["w"])
        tensor([0.])
        tensor([-0.1000])

    Source: Taniguchi et al. 2024, arXiv:2411.02853. Departures: none from the authors' code, except that their function
    `clip_lambda` is replaced by its exponent.
    """
    return chain(
        with_decay(
            scale_by_adopt(betas, eps, clip_exponent),
            weight_decay,
            decoupled_weight_decay,
            lr,
        ),
        hold_until(2),  # neither the update nor the decay acts in the first step
    )


@alias
def adopt_atan2(
    lr=1e-4,
    betas=(0.9, 0.99),
    weight_decay=0.0,
    regen_reg_rate: NonNegative = 0.0,
    decoupled_wd=True,
    cautious_factor: FractionOffAtOne = 1.0,
    a: Positive = 1.27,
    b: Positive = 1.0,
):
    r"""ADOPT-atan2: ADOPT with the arc tangent instead of its division and clamp.

    $m_t = \beta_1 m_{t-1} + (1-\beta_1) \mathrm{atan2}(g_t, b \sqrt{v_{t-1}})$,
    $p \leftarrow p (1 - \eta \lambda) - \eta a m_t$; the first step only decays and sets $v_1 = g_1^2$.

    When to use: like `adopt`, if gradients also vary widely in scale, so that neither eps nor the clamp should need
    tuning.

    Args:
        lr: $\eta$ in [0, inf).
        betas: Decay rates of the two averages, each in [0, 1).
        weight_decay: $\lambda \ge 0$.
        regen_reg_rate: Strength of the pull toward the initial weights, >= 0, which replaces the decay toward 0.
        decoupled_wd: Divide both rates by the initial learning rate.
        cautious_factor: Factor in [0, 1] for entries whose old momentum opposes the gradient; 1.0 disables it.
        a: Scale of the update, > 0.
        b: Scale of the denominator, > 0.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq` and, depending on the
        options, `param_init`, `initial_lr`.

    Raises:
        ValueError: If both rates are above 0, or if an option needs `params` and it is missing.

    Example:
        >>> tx = gradtx.adopt_atan2(lr=0.1, betas=(0.0, 0.99), a=4 / torch.pi)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for _ in range(2):
        ...     updates, state = tx.update({"w": torch.tensor([1e-12])}, state)
        ...     print(updates["w"])
        tensor([-0.])
        tensor([-0.1000])

    Source: adam-atan2-pytorch 0.4.1, after Taniguchi et al. 2024, arXiv:2411.02853. Departures: `decoupled_wd` also
    applies to the pull toward the initial weights, which that package always divides by the initial rate.
    """
    return chain(
        scale_by_adopt_atan2(betas, a, b, cautious_factor),
        decay_or_regenerate(weight_decay, regen_reg_rate, lr, decoupled_wd),
        scale_by_learning_rate(lr),
    )
