"""Adan: Adam with Nesterov momentum, estimated from the change of the gradient, and a proximal decay."""

from __future__ import annotations

from typing import Annotated

from gradtx.arguments import Scalar, is_off
from gradtx.links.clipping import clip_by_global_norm
from gradtx.links.decay import with_decay
from gradtx.maths.entries import change_of, corrected_root, running_mean
from gradtx.rules import alias, per_tensor
from gradtx.slots import linear, square
from gradtx.transform import chain

__all__ = ["adan", "scale_by_adan"]


@per_tensor(elementwise=True, length="sets")
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
        new_state = {
            "exp_avg": running_mean(state["exp_avg"], g, beta1),
            "exp_avg_diff": running_mean(state["exp_avg_diff"], change, beta2),
            "exp_avg_sq": running_mean(
                state["exp_avg_sq"], (g + beta2 * change).square(), beta3
            ),
            "previous_grad": g,
        }
        share = beta2 / ctx.bias_correction(beta2)
        m = new_state["exp_avg"] / ctx.bias_correction(beta1)
        root = corrected_root(new_state["exp_avg_sq"], ctx, beta3)
        return (m + share * new_state["exp_avg_diff"]) / (root + eps), new_state

    return {
        "exp_avg": linear(),
        "exp_avg_diff": linear(),
        "exp_avg_sq": square(),
        "previous_grad": linear(),
    }, update


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
