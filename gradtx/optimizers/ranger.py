"""Combined methods: Ranger, Ranger21 (RAdam's or Ranger21's step, with centralized gradients and lookahead)."""

from __future__ import annotations

from typing import Annotated

from gradtx.arguments import (
    Count,
    Decays,
    Fraction,
    NonNegative,
    NonNegativeInt,
    Positive,
)
from gradtx.base.exact import Scalar
from gradtx.optimizers.adam import with_decay
from gradtx.rules import alias
from gradtx.schedules import ranger21_schedule
from gradtx.transform import chain
from gradtx.transforms.adam_variants import scale_by_radam
from gradtx.transforms.adaptive_momentum import scale_by_ranger21
from gradtx.transforms.averaging import lookahead
from gradtx.transforms.clipping import clip_adaptive
from gradtx.transforms.projection import centralize, normalize_by_std

__all__ = ["ranger", "ranger21"]


@alias
def ranger(
    lr: NonNegative = 1e-3,
    betas: Decays = (0.95, 0.999),
    eps: NonNegative = 1e-5,
    weight_decay: NonNegative = 0.0,
    alpha: Fraction = 0.5,
    k: Count = 6,
    n_sma_threshold: Annotated[Scalar, "[4, inf)"] = 5.0,
    use_gc: bool = True,
    gc_conv_only: bool = False,
):
    r"""Ranger: RAdam on centralized gradients, with lookahead.

    $p \leftarrow p (1 - \eta \lambda) - \eta d_t$ with $d_t$ the direction of `scale_by_radam` ($\hat m_t$ in the first
    steps), and at every k-th step the weights are reset to $s \leftarrow s + \alpha (p - s)$.

    When to use: vision models with little time for tuning: no warm-up, and steadier steps through lookahead.

    Args:
        lr: $\eta$ in [0, inf).
        betas: Decay rates of the two averages, each in [0, 1).
        eps: $\epsilon \ge 0$, added to the square root before its bias correction.
        weight_decay: $\lambda \ge 0$, decoupled.
        alpha: $\alpha$ in [0, 1], how far the slow weights follow.
        k: Number of steps between synchronizations, >= 1.
        n_sma_threshold: Threshold of $\rho_t$ for a rectified step, >= 4.
        use_gc: Centralize gradients.
        gc_conv_only: Centralize only leaves with at least 4 dimensions.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`, `slow`;
        `eval_params` returns `slow`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing.

    Example:
        >>> tx = gradtx.ranger(lr=1.0, k=2)
        >>> params = {"w": torch.zeros(1)}
        >>> state = tx.init(params)
        >>> for _ in range(2):
        ...     updates, state = tx.update({"w": torch.ones(1)}, state, params)
        ...     params = gradtx.apply_updates(params, updates)
        ...     print(params["w"])
        tensor([-1.])
        tensor([-1.])

    Source: Wright's Ranger 20.4.11, after Liu et al. 2019, arXiv:1908.03265, Zhang et al. 2019, arXiv:1907.08610 and
    Yong et al. 2020, arXiv:2004.01461. Departures from that code: `use_gc=False` is respected.
    """
    return chain(
        centralize(gc_conv_only) if use_gc else chain(),
        with_decay(scale_by_radam(betas, eps, n_sma_threshold), weight_decay, True, lr),
        lookahead(k, alpha),
    )


@alias
def ranger21(
    num_iterations: Count,
    lr: NonNegative = 1e-3,
    beta0: Fraction = 0.9,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-8,
    use_softplus: bool = True,
    beta_softplus: Positive = 50.0,
    num_warm_up_iterations: NonNegativeInt | None = None,
    num_warm_down_iterations: NonNegativeInt | None = None,
    warm_down_min_lr: NonNegative = 3e-5,
    agc_clipping_value: Positive = 1e-2,
    agc_eps: NonNegative = 1e-3,
    centralize_gradients: bool = True,
    normalize_gradients: bool = True,
    lookahead_merge_time: Count = 5,
    lookahead_blending_alpha: Fraction = 0.5,
    weight_decay: NonNegative = 1e-4,
    norm_loss_factor: NonNegative = 1e-4,
    amsgrad: bool = True,
    chebyshev_epochs: Annotated[int, "[3, inf)"] | None = None,
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

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing.

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
            weight_decay=weight_decay,
            norm_loss_factor=norm_loss_factor,
            amsgrad=amsgrad,
        ),
        lookahead(lookahead_merge_time, lookahead_blending_alpha),
    )
