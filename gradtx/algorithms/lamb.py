"""LAMB: Adam's direction plus decay, rescaled to the norm of each leaf's weights."""

from __future__ import annotations

from gradtx.arguments import PositiveOrInf
from gradtx.links.clipping import clip_by_global_norm
from gradtx.links.decay import add_decayed_weights
from gradtx.links.scaling import scale_by_learning_rate, scale_by_trust_ratio
from gradtx.maths.entries import fading_moments, running_mean, safe_sqrt
from gradtx.rules import alias, per_tensor
from gradtx.transform import chain

__all__ = ["lamb", "scale_by_lamb"]


@per_tensor(elementwise=True, length="sets")
def scale_by_lamb(
    betas=(0.9, 0.999),
    eps=1e-6,
    bias_correction=True,
    grad_averaging=True,
):
    r"""Divide the mean gradient by its root mean square as in Adam, with optional corrections: LAMB's direction.

    $m_t = \beta_1 m_{t-1} + (1-\beta_1) g_t$, $v_t = \beta_2 v_{t-1} + (1-\beta_2) g_t^2$, direction
    $\hat m_t / (\sqrt{\hat v_t} + \epsilon)$.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$, in the units of a gradient.
        bias_correction: If False, use $m_t / (\sqrt{v_t} + \epsilon)$.
        grad_averaging: If False, use $m_t = \beta_1 m_{t-1} + g_t$.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_sq`, shaped as the parameter.

    Example:
        >>> tx = gradtx.scale_by_lamb(betas=(0.9, 0.99), grad_averaging=False)
        >>> tx.update({"w": torch.tensor([1e-2, -4.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([  9.9990, -10.0000])

    Source: You et al. 2019, arXiv:1904.00962. Departures: `grad_averaging` is from NVIDIA's apex.
    """
    beta1, beta2 = betas
    share = 1 - beta1 if grad_averaging else 1.0

    def update(update, state, param, ctx):
        mean = beta1 * state["exp_avg"] + share * update
        square = running_mean(state["exp_avg_sq"], update.square(), beta2)
        new_state = {"exp_avg": mean, "exp_avg_sq": square}
        if bias_correction:
            mean = mean / ctx.bias_correction(beta1)
            square = square / ctx.bias_correction(beta2)
        return mean / (safe_sqrt(square) + eps), new_state

    return fading_moments(betas), update


@alias
def lamb(
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-6,
    weight_decay=0.0,
    bias_correction=True,
    grad_averaging=True,
    max_grad_norm: PositiveOrInf | None = None,
    trust_clip=False,
    always_adapt=True,
):
    r"""LAMB: Adam's direction plus decay, rescaled to the norm of each leaf's weights.

    $r = \hat m / (\sqrt{\hat v} + \epsilon) + \lambda p$,
    $p \leftarrow p - \eta \, r \lVert p \rVert / \lVert r \rVert$; the ratio of norms is 1 where either is 0.

    When to use: batches of thousands of examples, mainly for transformers.

    Args:
        lr: $\eta$ in [0, inf), the change of a leaf per step relative to its norm.
        betas: Decay rates of the two averages, each in [0, 1).
        eps: $\epsilon \ge 0$, added outside the square root.
        weight_decay: $\lambda \ge 0$; included in the ratio.
        bias_correction: If False, use $m$ and $v$ instead of $\hat m$ and $\hat v$.
        grad_averaging: If False, $m = \beta_1 m + g$.
        max_grad_norm: Clip the gradient norm over all leaves to this value, > 0, as `clip_by_global_norm` does: a NaN
            makes every update NaN. None disables clipping.
        trust_clip: Limit the ratio to at most 1 (LAMBC).
        always_adapt: If False, the ratio is 1 where `weight_decay` is 0.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`.

    Example:
        >>> tx = gradtx.lamb(lr=0.1)
        >>> params = {"w": torch.tensor([3.0, 4.0])}
        >>> updates, _ = tx.update({"w": torch.tensor([1e-2, 7.0])}, tx.init(params), params)
        >>> updates["w"].norm()  # lr times the norm of w
        tensor(0.5000)

    Source: You et al. 2019, arXiv:1904.00962. Departures: NVIDIA's and timm's versions clip at `max_grad_norm=1.0` and
    set `always_adapt=False` by default; pytorch_optimizer's version has no bias correction, bounds the norm of the
    weights by 10 and by default excludes the decay from the ratio.
    """
    return chain(
        chain()
        if max_grad_norm is None
        else clip_by_global_norm(max_grad_norm, eps=0.0),
        scale_by_lamb(betas, eps, bias_correction, grad_averaging),
        # Before the ratio, which is computed from the whole direction.
        add_decayed_weights(weight_decay),
        scale_by_trust_ratio(trust_clip, weight_decay, always_adapt),
        scale_by_learning_rate(lr),
    )
