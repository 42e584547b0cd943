"""AdamS: Adam with a decoupled decay scaled like its average adaptive rate (stable weight decay)."""

from __future__ import annotations

from typing import Annotated, Any

from gradtx.links.decay import stable_decay
from gradtx.links.scaling import scale_by_learning_rate
from gradtx.maths.entries import adam_moments, safe_sqrt
from gradtx.rules import alias, per_tensor
from gradtx.transform import chain

__all__ = ["adams", "scale_by_adam_stable_decay"]


@per_tensor(elementwise=True, needs="params", length="sets")
def scale_by_adam_stable_decay(
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=1e-4,
    amsgrad=False,
):
    r"""Add to Adam's direction a decay in proportion to the average adaptive rate: AdamS's direction.

    $\hat m_t / (\sqrt{\hat v_t} + \epsilon) + \frac{\lambda}{\sqrt{\bar v_t}} p$ with $\hat m$ and $\hat v$ from
    `scale_by_adam` and $\bar v_t$ the mean of $\hat v_t$ over all entries of all leaves. No decay while $\bar v_t = 0$.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$, in the units of a gradient; not used in the decay.
        weight_decay: $\lambda \ge 0$, in the units of a gradient over a weight.
        amsgrad: Use the running maximum of $v$ instead of $v$, in the decay as well.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_sq` and, with `amsgrad`,
        `max_exp_avg_sq`, shaped as the parameter.

    Example:
        >>> tx = gradtx.scale_by_adam_stable_decay(weight_decay=1.0)
        >>> params = {"a": torch.tensor([2.0]), "b": torch.tensor([2.0])}
        >>> grads = {"a": torch.tensor([0.0]), "b": torch.tensor([10.0])}
        >>> # 2 / sqrt((0 + 100) / 2) each, and Adam's 1
        >>> tx.update(grads, tx.init(params), params)[0]
        {'a': tensor([0.2828]), 'b': tensor([1.2828])}

    Source: Xie et al. 2020, arXiv:2011.11152. Departures: none.
    """
    beta1, beta2 = betas
    moments, average = adam_moments(betas, amsgrad)

    def update(update, state, param, ctx):
        mean, square, new_state = average(update, state)
        square = square / ctx.bias_correction(beta2)
        total = yield {"square": square.sum(), "count": square.numel()}
        direction = mean / ctx.bias_correction(beta1) / (safe_sqrt(square) + eps)
        yield direction + stable_decay(weight_decay, total) * param, new_state

    return moments, update


@alias(class_name="AdamS")
def adams(lr=1e-3, **options: Annotated[Any, scale_by_adam_stable_decay]):
    r"""AdamS: Adam with a decoupled decay scaled like its average adaptive rate (stable weight decay).

    $p \leftarrow p (1 - \eta \lambda / \sqrt{\bar v_t}) - \eta \hat m_t / (\sqrt{\hat v_t} + \epsilon)$, with
    $\bar v_t$ the mean of $\hat v_t$ over all entries of all leaves.

    When to use: Adam with weight decay, if one value of the decay should fit a range of learning rates and gradient
    sizes.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step.
        betas: Decay rates of the two averages, each in [0, 1).
        eps: $\epsilon \ge 0$, added outside the square root; not part of the decay.
        weight_decay: $\lambda \ge 0$, as for SGD: in units of the gradient divided by the weight.
        amsgrad: Use the running maximum of $v$, in the decay as well.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`,
        [`max_exp_avg_sq`].

    Example:
        >>> tx = gradtx.adams(lr=0.1, weight_decay=1.0)
        >>> params = {"w": torch.tensor([4.0, 4.0])}
        >>> tx.update({"w": torch.tensor([0.0, 1.0])}, tx.init(params), params)[0]["w"]
        tensor([-0.5657, -0.6657])

    Source: Xie et al. 2020, arXiv:2011.11152. Departures: no decay as long as all gradients are zero, where the
    authors' code divides by 0. pytorch_optimizer's AdamS adds eps to $\sqrt{\bar v_t}$.
    """
    return chain(scale_by_adam_stable_decay(**options), scale_by_learning_rate(lr))
