"""StableAdamW: AdamW with shorter steps where its second moment lags behind the gradient."""

from __future__ import annotations

from gradtx.arguments import is_off
from gradtx.links.scaling import scale_by_learning_rate
from gradtx.maths.entries import adam_moments, at_least, plus_decay, quotient, safe_sqrt
from gradtx.rules import alias, per_tensor
from gradtx.transform import chain

__all__ = ["scale_by_stable_adam", "stable_adamw"]


@per_tensor(
    needs=lambda arguments: () if is_off(arguments["weight_decay"]) else ("params",),
    length="sets",
)
def scale_by_stable_adam(
    betas=(0.9, 0.99),
    eps=1e-8,
    weight_decay=0.0,
):
    r"""Shorten Adam's direction, including its decay, where gradients outgrow $v$: StableAdamW's direction.

    With Adam's $\hat m_t$, $\hat v_t$ and $r_t = \sqrt{\mathrm{mean}(g_t^2 / \max(\hat v_t, \epsilon^2))}$ over the
    leaf: $(\hat m_t / (\sqrt{\hat v_t} + \epsilon) + \lambda p) / \max(1, r_t)$. This is Adafactor's clipping with
    Adam's squares.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$, outside the root.
        weight_decay: $\lambda \ge 0$.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_sq`, shaped as the parameter.

    Example:
        >>> tx = gradtx.scale_by_stable_adam(betas=(0.0, 0.5))
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for grad in (1.0, 1.0, 10.0):  # Adam's last direction is 1.3179
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     print(updates["w"])
        tensor([1.])
        tensor([1.])
        tensor([1.])

    Source: Wortsman et al. 2023, arXiv:2304.13013. Departures: none from torch-optimi.
    """
    beta1, beta2 = betas
    moments, average = adam_moments(betas)

    def update(update, state, param, ctx):
        mean, square, new_state = average(update, state)
        square = square / ctx.bias_correction(beta2)
        direction = mean / ctx.bias_correction(beta1) / (safe_sqrt(square) + eps)
        direction = plus_decay(direction, weight_decay, param)
        ratio = quotient(update.square(), at_least(square, eps * eps), floor=eps * eps)
        excess = safe_sqrt(ratio.sum() / max(update.numel(), 1))
        return direction / at_least(excess, 1.0), new_state

    return moments, update


@alias(class_name="StableAdamW")
def stable_adamw(
    lr=1e-3,
    betas=(0.9, 0.99),
    eps=1e-8,
    weight_decay=1e-2,
):
    r"""StableAdamW: AdamW with shorter steps where its second moment lags behind the gradient.

    $p \leftarrow p - \frac{\eta}{\max(1, r)} (\hat m / (\sqrt{\hat v} + \epsilon) + \lambda p)$ with
    $r = \sqrt{\mathrm{mean}(g^2 / \max(\hat v, \epsilon^2))}$ of each leaf.

    When to use: AdamW whose loss spikes, without gradient clipping; the paper reports no spikes in CLIP training.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step.
        betas: Decay rates of the two averages, each in [0, 1).
        eps: $\epsilon \ge 0$, added outside the square root.
        weight_decay: $\lambda \ge 0$, multiplied by the shortened rate.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`.

    Example:
        >>> tx = gradtx.stable_adamw(lr=0.1, betas=(0.0, 0.99), weight_decay=0.0)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for grad in (1.0, 1.0, 100.0):  # Adam's last step would be -0.1723
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        >>> updates["w"]
        tensor([-0.1000])

    Source: Wortsman et al. 2023, arXiv:2304.13013. Departures: none from torch-optimi, whose default eps is 1e-6.
    """
    return chain(
        scale_by_stable_adam(betas, eps, weight_decay), scale_by_learning_rate(lr)
    )
