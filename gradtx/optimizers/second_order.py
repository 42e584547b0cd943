"""Methods with the diagonal of the Hessian: AdaHessian and Sophia."""

from __future__ import annotations

from gradtx.arguments import Count, Decays, Fraction, NonNegative
from gradtx.optimizers.adam import with_decay
from gradtx.rules import alias
from gradtx.transforms.hessian import scale_by_hessian, scale_by_sophia

__all__ = ["adahessian", "sophia"]


@alias(class_name="AdaHessian")
def adahessian(
    lr: NonNegative = 0.15,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-4,
    weight_decay: NonNegative = 0.0,
    hessian_power: Fraction = 1.0,
    update_period: Count = 1,
    spatial_average: bool = True,
):
    r"""AdaHessian: Adam with the diagonal of the Hessian instead of the gradient in the denominator.

    $p \leftarrow p (1 - \eta \lambda) - \eta \hat m_t / (\hat v_t^{k/2} + \epsilon)$ with the bias-corrected averages
    $\hat m$ of $g$ and $\hat v$ of $D^2$. $D$ is the extra `hessian_diag`, as computed by `hutchinson_hessian_diag`;
    the torch optimizer obtains it from `loss.backward(create_graph=True)` or from a closure.

    When to use: when curvature differs widely between weights, and a second backward pass at every step is affordable.

    Args:
        lr: $\eta$ in [0, inf): 1 is a Newton step, so rates are larger than Adam's.
        betas: Decay rates of the two averages, each in [0, 1).
        eps: $\epsilon \ge 0$, added outside the power, in units of the Hessian.
        weight_decay: $\lambda \ge 0$, decoupled.
        hessian_power: $k$ in [0, 1]; 0 is momentum SGD.
        update_period: Number of steps between Hessian estimates, >= 1.
        spatial_average: Average $|D|$ over dimensions 2 and up of leaves that have them.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_hessian_diag_sq`,
        [`hessian_diag`].

    Raises:
        ValueError: If a hyperparameter is out of range, if `hessian_diag` is missing, or if `params` is missing and
            `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.adahessian(lr=1.0, eps=0.0)
        >>> # the loss 2 a^2 + 5 b^2, minimized in one step
        >>> params = {"w": torch.tensor([3.0, -1.0])}
        >>> grads = {"w": params["w"] * torch.tensor([4.0, 10.0])}
        >>> diag = {"w": torch.tensor([4.0, 10.0])}
        >>> updates, _ = tx.update(grads, tx.init(params), params, hessian_diag=diag)
        >>> gradtx.apply_updates(params, updates)["w"].abs().max() < 1e-6
        tensor(True)

    Source: Yao et al. 2020, arXiv:2006.00719. Departures: those of `scale_by_hessian`; the decay is decoupled, as in
    the authors' code.
    """
    direction = scale_by_hessian(
        betas, eps, hessian_power, update_period, spatial_average
    )
    return with_decay(direction, weight_decay, True, lr)


@alias(class_name="SophiaH")
def sophia(
    lr: NonNegative = 6e-4,
    betas: Decays = (0.96, 0.99),
    gamma: NonNegative = 0.01,
    eps: NonNegative = 1e-12,
    weight_decay: NonNegative = 0.1,
    update_period: Count = 10,
):
    r"""Sophia-H: the mean gradient over the mean of the Hessian's diagonal, clipped entry by entry.

    $p \leftarrow p (1 - \eta \lambda) - \eta \, \mathrm{clip}(m_t / \max(\gamma h, \epsilon), -1, 1)$ with averages $m$
    of $g$ and $h$ of the extra `hessian_diag`, needed every `update_period` steps; the torch optimizer obtains it from
    `loss.backward(create_graph=True)` or from a closure.

    When to use: pre-training of language models: the Hessian is estimated about every ten steps, and clipping bounds
    the error of the estimate.

    Args:
        lr: $\eta$ in [0, inf), the largest change of a weight per step.
        betas: Decay rates of the two averages, each in [0, 1).
        gamma: $\gamma \ge 0$: the smaller it is, the more entries are clipped.
        eps: $\epsilon \ge 0$, the lower bound of the denominator.
        weight_decay: $\lambda \ge 0$, decoupled.
        update_period: Number of steps between Hessian estimates, >= 1.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `hessian`.

    Raises:
        ValueError: If a hyperparameter is out of range, if `hessian_diag` is missing, or if `params` is missing and
            `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.sophia(lr=0.1, weight_decay=0.0)
        >>> params = {"w": torch.zeros(2)}
        >>> diag = {"w": torch.tensor([1e6, -1.0])}  # steep, and a saddle
        >>> updates, _ = tx.update(
        ...     {"w": torch.tensor([1.0, 1.0])}, tx.init(params), params, hessian_diag=diag
        ... )
        >>> updates["w"]
        tensor([-4.0000e-05, -1.0000e-01])

    Source: Liu et al. 2023, arXiv:2305.14342. Departures: none from its last version; the authors' code contains only
    Sophia-G.
    """
    return with_decay(
        scale_by_sophia(betas, gamma, eps, update_period), weight_decay, True, lr
    )
