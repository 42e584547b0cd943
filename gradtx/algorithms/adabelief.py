"""AdaBelief: Adam that divides by the deviation of gradients from their mean."""

from __future__ import annotations

from gradtx.algorithms.radam import rectified_direction
from gradtx.links.decay import with_decay
from gradtx.maths.entries import adam_moments, corrected_root
from gradtx.rules import alias, per_tensor

__all__ = ["adabelief", "scale_by_belief"]


@per_tensor(elementwise=True, length="sets")
def scale_by_belief(
    betas=(0.9, 0.999),
    eps=1e-16,
    amsgrad=False,
    rectify=True,
    degenerated_to_sgd=True,
):
    r"""Divide the mean gradient by the deviation of gradients from it: AdaBelief's direction.

    $m_t = \beta_1 m_{t-1} + (1-\beta_1) g_t$, $s_t = \beta_2 s_{t-1} + (1-\beta_2) (g_t - m_t)^2 + \epsilon$,
    $c_i = 1-\beta_i^t$; direction $\frac{m_t}{c_1} / (\sqrt{s_t / c_2} + \epsilon)$. With `rectify`, it is
    $r_t \frac{m_t}{c_1} \frac{\sqrt{c_2}}{\sqrt{s_t} + \epsilon}$ where $\rho_t > 5$ (see `scale_by_radam`), and
    $m_t / c_1$ before that.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$. Added twice: to $s$, where it accumulates, and to its root.
        amsgrad: Use the running maximum of $s$ instead of $s$.
        rectify: Rectify the variance of the first steps, as in RAdam.
        degenerated_to_sgd: If False, return 0 before the first rectified step; a decay in another link still applies.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_var` and, with `amsgrad`,
        `max_exp_avg_var`, shaped as the parameter.

    Example:
        >>> tx = gradtx.scale_by_belief(betas=(0.5, 0.5), eps=0.0, rectify=False)
        >>> state = tx.init({"w": torch.zeros(2)})
        >>> # a steady gradient, and one that changes sign
        >>> for grads in ([1.0, 1.0], [1.0, -1.0]):
        ...     updates, state = tx.update({"w": torch.tensor(grads)}, state)
        >>> updates["w"]
        tensor([ 2.8284, -0.4924])

    Source: Zhuang et al. 2020, arXiv:2010.07468. Departures: the defaults are those of adabelief-pytorch 0.2; unlike
    there, amsgrad also applies to rectified steps.
    """
    beta1, beta2 = betas
    moments, average = adam_moments(betas, amsgrad, belief_eps=eps)

    def update(g, state, p, ctx):
        m, v, new_state = average(g, state)
        if rectify:
            return rectified_direction(
                m, v, ctx, betas, eps, 5.0, degenerated_to_sgd
            ), new_state
        root = corrected_root(v, ctx, beta2)
        return m / ctx.bias_correction(beta1) / (root + eps), new_state

    return moments, update


@alias(class_name="AdaBelief")
def adabelief(
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-16,
    weight_decay=0.0,
    decoupled_weight_decay=True,
    fixed_decay=False,
    rectify=True,
    degenerated_to_sgd=True,
    amsgrad=False,
):
    r"""AdaBelief: Adam that divides by the deviation of gradients from their mean.

    $p \leftarrow p - \eta r_t \hat m_t \sqrt{1-\beta_2^t} / (\sqrt{s_t} + \epsilon)$, with $s$ and $r_t$ of
    `scale_by_belief`.

    When to use: networks on which Adam is fast but SGD generalizes better, and training of GANs; eps matters more than
    in Adam.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step, more where gradients agree.
        betas: Decay rates of the two averages, each in [0, 1).
        eps: $\epsilon \ge 0$, added to $s$, where it accumulates, and to its square root.
        weight_decay: $\lambda \ge 0$.
        decoupled_weight_decay: Apply the decay to the weights, $p (1 - \eta \lambda)$; if False, add it to the
            gradient.
        fixed_decay: Use $p (1 - \lambda)$, without the learning rate; read only if decoupled.
        rectify: Rectify the variance of the first steps where $\rho_t > 5$, as `radam` does.
        degenerated_to_sgd: Move by $\eta \hat m_t$ before that; if False, only the decay acts.
        amsgrad: Use the running maximum of $s$.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_var`,
        [`max_exp_avg_var`].

    Example:
        >>> tx = gradtx.adabelief(lr=0.1, rectify=False)  # in the first step, g - m is 0.9 g
        >>> tx.update({"w": torch.tensor([1e-3, -4.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([-0.1111,  0.1111])

    Source: Zhuang et al. 2020, arXiv:2010.07468. Departures: amsgrad also acts when rectifying; adabelief-pytorch 0.2
    ignores it there. pytorch_optimizer's AdaBelief does not rectify by default.
    """
    direction = scale_by_belief(betas, eps, amsgrad, rectify, degenerated_to_sgd)
    return with_decay(direction, weight_decay, decoupled_weight_decay, lr, fixed_decay)
