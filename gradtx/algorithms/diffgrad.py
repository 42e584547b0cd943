"""diffGrad: Adam that shortens its steps, down to half, where the gradient barely changes."""

from __future__ import annotations

from gradtx.links.decay import with_decay
from gradtx.maths.entries import adam_moments, hat_rate, safe_sqrt
from gradtx.rules import alias, per_tensor
from gradtx.slots import linear

__all__ = ["diffgrad", "scale_by_diffgrad"]


@per_tensor(elementwise=True, length="sets")
def scale_by_diffgrad(betas=(0.9, 0.999), eps=1e-8):
    r"""Damp Adam's direction where the gradient barely changes: diffGrad's direction.

    $\xi_t = 1 / (1 + \exp(-|g_{t-1} - g_t|))$ with $g_0 = 0$, between 0.5 and 1, times the direction of
    `scale_by_adam_hat`, $\frac{m_t}{c_1} \frac{\sqrt{c_2}}{\sqrt{v_t} + \epsilon}$.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$, added to the root before bias correction, in the units of a gradient.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_sq`, `previous_grad`, shaped as the
        parameter.

    Example:
        >>> tx = gradtx.scale_by_diffgrad()
        >>> state = tx.init({"w": torch.zeros(2)})
        >>> # a constant gradient: xi is 0.5 at the second step
        >>> for grads in ([1.0, 9.0], [1.0, 9.0]):
        ...     updates, state = tx.update({"w": torch.tensor(grads)}, state)
        ...     print(updates["w"])
        tensor([0.7311, 0.9999])
        tensor([0.5000, 0.5000])

    Source: Dubey et al. 2019, arXiv:1909.11015. Departures: none.
    """
    moments, average = adam_moments(betas)

    def update(update, state, param, ctx):
        mean, square, new_state = average(update, state)
        friction = (state["previous_grad"] - update).abs().sigmoid()
        direction = hat_rate(safe_sqrt(square) + eps, ctx, betas) * mean
        return friction * direction, {**new_state, "previous_grad": update}

    return {**moments, "previous_grad": linear(decay=0.0)}, update


@alias(class_name="DiffGrad")
def diffgrad(
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0.0,
    decoupled_weight_decay=False,
):
    r"""diffGrad: Adam that shortens its steps, down to half, where the gradient barely changes.

    $p \leftarrow p - \eta \xi_t \hat m_t \sqrt{1-\beta_2^t} / (\sqrt{v_t} + \epsilon)$ with
    $\xi_t = 1 / (1 + \exp(-|g_{t-1} - g_t|))$, $g_0 = 0$.

    When to use: when Adam overshoots near the end, where gradients barely change; needs one more float per weight.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step.
        betas: Decay rates of the two averages, each in [0, 1).
        eps: $\epsilon \ge 0$, added outside the square root, before its bias correction, in units of the gradient.
        weight_decay: $\lambda \ge 0$, added to the gradient and therefore part of the comparison.
        decoupled_weight_decay: Apply the decay to the weights instead, $p (1 - \eta \lambda)$.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`, `previous_grad`.

    Example:
        >>> tx = gradtx.diffgrad(lr=0.1)
        >>> tx.update({"w": torch.tensor([1e-3, -4.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([-0.0500,  0.0982])

    Source: Dubey et al. 2019, arXiv:1909.11015. Departures: none from the authors' code.
    """
    return with_decay(
        scale_by_diffgrad(betas, eps), weight_decay, decoupled_weight_decay, lr
    )
