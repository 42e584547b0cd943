"""Ranger: RAdam on centralized gradients, with lookahead."""

from __future__ import annotations

from gradtx.algorithms.radam import scale_by_radam
from gradtx.arguments import AtLeastFour, Count, Fraction
from gradtx.links.averaging import lookahead
from gradtx.links.decay import with_decay
from gradtx.links.projection import centralize
from gradtx.rules import alias
from gradtx.transform import chain

__all__ = ["ranger"]


@alias
def ranger(
    lr=1e-3,
    betas=(0.95, 0.999),
    eps=1e-5,
    weight_decay=0.0,
    alpha: Fraction = 0.5,
    k: Count = 6,
    n_sma_threshold: AtLeastFour = 5.0,
    use_gc=True,
    gc_conv_only=False,
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
