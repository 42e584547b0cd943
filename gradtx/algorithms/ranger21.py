"""Ranger21: eight ideas in one chain, from adaptive clipping to lookahead, with its own learning rate schedule."""

from __future__ import annotations

from typing import Annotated, Any

from gradtx.algorithms.pnm import positive_negative
from gradtx.arguments import Count, Fraction, NonNegative, NonNegativeInt, Positive
from gradtx.links.averaging import lookahead
from gradtx.links.clipping import clip_adaptive, normalize_by_std
from gradtx.links.decay import stable_decay
from gradtx.links.projection import centralize
from gradtx.maths.entries import peak, running_mean, safe_sqrt, softplus, unit_norm
from gradtx.rules import alias, per_tensor
from gradtx.schedules import ranger21_schedule
from gradtx.slots import square
from gradtx.transform import chain

__all__ = ["ranger21", "scale_by_ranger21"]


@per_tensor(needs="params", owns_lr=True)
def scale_by_ranger21(
    lr,
    beta0: Fraction = 0.9,
    betas=(0.9, 0.999),
    eps=1e-8,
    use_softplus=True,
    beta_softplus: Positive = 50.0,
    weight_decay=1e-4,
    norm_loss_factor: NonNegative = 1e-4,
    amsgrad=True,
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
    momenta, average = positive_negative("grad_ma", "neg_grad_ma", beta1, beta0)

    def update(g, state, p, ctx):
        correction = ctx.bias_correction(beta2)
        v = running_mean(state["exp_avg_sq"], g.square(), beta2)
        total = yield {"square": v.sum() / correction, "count": v.numel()}
        # p becomes p (1 - a) (1 - b); computed as a sum, because 1 - a would round to 1 in half precision.
        stable = stable_decay(lr * weight_decay, total)
        size = unit_norm((1 - stable) * p)
        pull = 2 * lr * norm_loss_factor * (1 - 1 / (size + eps))
        decay = stable + pull - stable * pull
        direction, new_state = average(g, state)
        new_state["exp_avg_sq"] = v
        root = (
            safe_sqrt(peak(new_state, state, "exp_avg_sq", amsgrad) / correction) + eps
        )
        if use_softplus:
            root = softplus(root, beta_softplus)
        yield (
            -(lr / ctx.bias_correction(beta1)) * direction / root - decay * p,
            new_state,
        )

    slots = {
        **momenta,
        "exp_avg_sq": square(),
        "max_exp_avg_sq": square() if amsgrad else None,
    }
    return slots, update


@alias
def ranger21(
    num_iterations: Count,
    lr=1e-3,
    beta0: Fraction = 0.9,
    betas=(0.9, 0.999),
    eps=1e-8,
    use_softplus=True,
    beta_softplus: Positive = 50.0,
    num_warm_up_iterations: NonNegativeInt | None = None,
    num_warm_down_iterations: NonNegativeInt | None = None,
    warm_down_min_lr: NonNegative = 3e-5,
    agc_clipping_value: Positive = 1e-2,
    agc_eps: NonNegative = 1e-3,
    centralize_gradients=True,
    normalize_gradients=True,
    lookahead_merge_time: Count = 5,
    lookahead_blending_alpha: Fraction = 0.5,
    *,
    chebyshev_epochs: Annotated[int, "[3, inf)"] | None = None,
    **options: Annotated[Any, scale_by_ranger21],
):
    r"""Ranger21: eight ideas in one chain, from adaptive clipping to lookahead, with its own learning rate schedule.

    Gradients are clipped by `clip_adaptive`, centralized, and normalized by `normalize_by_std`; `scale_by_ranger21`
    computes the step at the rate of `ranger21_schedule`; `lookahead` averages.

    When to use: vision models with the length of training known in advance: warm-up and cool-down are built in.

    Args:
        num_iterations: Total number of updates, >= 1; the rate depends on it.
        lr: Peak rate, in [0, inf).
        beta0: Weight of the negative momentum, in [0, 1]; the authors' code uses 1.
        betas: Decay rates of the momenta and of the squares, each in [0, 1).
        eps: $\epsilon \ge 0$; should be above 0.
        use_softplus: Smooth the denominator with a softplus.
        beta_softplus: Sharpness of the softplus, > 0.
        num_warm_up_iterations: Number of updates of the linear rise, >= 0; None: about $2/(1-\beta_2)$, or 22 % of all.
        num_warm_down_iterations: Number of updates of the linear fall at the end, >= 0; None: 28 % of all.
        warm_down_min_lr: Final rate of the fall, >= 0.
        agc_clipping_value: Largest norm of a unit's gradient, relative to its weights, > 0.
        agc_eps: Lower bound of the norm of the weights in that comparison, >= 0.
        centralize_gradients: Subtract the mean of every output unit's gradient.
        normalize_gradients: Divide every leaf's gradient by its standard deviation.
        lookahead_merge_time: Number of steps between synchronizations of lookahead, >= 1.
        lookahead_blending_alpha: How far the slow weights follow, in [0, 1].
        weight_decay: Stable decay, >= 0.
        norm_loss_factor: Strength of the pull of every unit's norm toward 1, >= 0.
        amsgrad: Use the running maximum of the average of squares.
        chebyshev_epochs: Number of epochs, >= 3, for Chebyshev factors between the rise and the fall; None for a
            constant rate there.

    Returns:
        A transformation whose updates are added to the parameters. State: `grad_ma`, `neg_grad_ma`, `exp_avg_sq`,
        [`max_exp_avg_sq`], `slow`; `eval_params` returns `slow`.

    Example:
        >>> tx = gradtx.ranger21(
        ...     num_iterations=100, lr=1.0, num_warm_up_iterations=10, weight_decay=0.0
        ... )
        >>> params = {"w": torch.ones(1)}
        >>> state, grads = tx.init(params), {"w": torch.ones(1)}
        >>> for _ in range(2):  # 0.1 and 0.2 of the rate
        ...     updates, state = tx.update(grads, state, params)
        ...     print(round(updates["w"].item(), 3))
        -0.088
        -0.049

    Source: Wright and Demeure 2021, arXiv:2106.13731. Departures: those of `scale_by_ranger21`; gradients are
    centralized and normalized once (the authors' code does it twice).
    """
    rate = ranger21_schedule(
        lr,
        num_iterations,
        betas[1],
        num_warm_up_iterations=num_warm_up_iterations,
        num_warm_down_iterations=num_warm_down_iterations,
        warm_down_min_lr=warm_down_min_lr,
        chebyshev_epochs=chebyshev_epochs,
    )
    return chain(
        clip_adaptive(agc_clipping_value, agc_eps),
        centralize() if centralize_gradients else chain(),
        normalize_by_std() if normalize_gradients else chain(),
        scale_by_ranger21(
            rate,
            beta0,
            betas,
            eps,
            use_softplus=use_softplus,
            beta_softplus=beta_softplus,
            **options,
        ),
        lookahead(lookahead_merge_time, lookahead_blending_alpha),
    )
