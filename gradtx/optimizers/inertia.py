"""Sign, Nesterov and inertia methods: Lion, Adan, Adai."""

from __future__ import annotations

from typing import Annotated

from gradtx.arguments import Decays, Fraction, NonNegative, is_off
from gradtx.base.exact import Scalar
from gradtx.optimizers.adam import with_decay
from gradtx.rules import alias
from gradtx.transform import chain
from gradtx.transforms.adaptive_momentum import scale_by_adai, scale_by_adan
from gradtx.transforms.clipping import clip_by_global_norm
from gradtx.transforms.scaling import scale_by_learning_rate
from gradtx.transforms.sign import scale_by_lion
from gradtx.transforms.weight_decay import add_decayed_weights

__all__ = ["adai", "adan", "lion"]


@alias
def lion(
    lr: NonNegative = 1e-4, betas: Decays = (0.9, 0.99), weight_decay: NonNegative = 0.0
):
    r"""Lion: the sign of an interpolated momentum, with decoupled weight decay.

    $p \leftarrow p (1 - \eta \lambda) - \eta \, \mathrm{sign}(\beta_1 m + (1-\beta_1) g)$, then
    $m \leftarrow \beta_2 m + (1-\beta_2) g$.

    When to use: large batches and little memory (half of AdamW's); use a learning rate 3 to 10 times smaller than
    AdamW's, and a decay larger by the same factor.

    Args:
        lr: $\eta$ in [0, inf), the change of each weight per step; a third to a tenth of Adam's.
        betas: Weights of the old momentum in the direction and in the next momentum, each in [0, 1).
        weight_decay: $\lambda \ge 0$, multiplied by the learning rate.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.lion(lr=0.1, weight_decay=1.0)
        >>> params = {"w": torch.tensor([0.0, 2.0])}
        >>> tx.update({"w": torch.tensor([1e-9, -7.0])}, tx.init(params), params)[0]["w"]
        tensor([-0.1000, -0.1000])

    Source: Chen et al. 2023, arXiv:2302.06675. Departures: none.
    """
    return with_decay(scale_by_lion(betas), weight_decay, True, lr)


@alias
def adan(
    lr: NonNegative = 1e-3,
    betas: Decays = (0.98, 0.92, 0.99),
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    max_grad_norm: Annotated[Scalar, "[0, inf]"] = 0.0,
    no_prox: bool = False,
):
    r"""Adan: Adam with Nesterov momentum, estimated from the change of the gradient, and a proximal decay.

    $p \leftarrow (p - \eta u) / (1 + \eta \lambda)$ with $u$ the direction of `scale_by_adan`.

    When to use: large vision or language models trained from scratch, with memory for four floats per weight; it
    tolerates larger learning rates than `adamw`.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step.
        betas: Decay rates of the averages of gradients, of their changes and of squares, each in [0, 1). The betas in
            the paper are one minus these.
        eps: $\epsilon \ge 0$, added outside the square root; with `max_grad_norm`, also added to the norm.
        weight_decay: $\lambda \ge 0$, multiplied by the learning rate.
        max_grad_norm: Clip the gradient norm over all leaves to this value, >= 0; a literal 0.0 disables clipping.
        no_prox: Apply the decay as AdamW does, $p \leftarrow p (1 - \eta \lambda) - \eta u$.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_diff`, `exp_avg_sq`,
        `previous_grad`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

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
        scale_by_adan(betas, eps),
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(rate),
    )


@alias
def adai(
    lr: NonNegative,
    betas: Decays = (0.1, 0.99),
    eps: Annotated[Scalar, "(0, 1)"] = 1e-3,
    weight_decay: NonNegative = 0.0,
    decoupled_weight_decay: bool = False,
    dampening: Fraction = 1.0,
):
    r"""Adai: momentum SGD whose inertia, not its rate, adapts to the gradients of each entry.

    $\beta_1 = \mathrm{clip}(1 - \beta_0 (\hat v / M)^{1/(3 - 2\tau)}, 0, 1 - \epsilon)$ with $M$ the mean of $\hat v$
    over all weights, $m \leftarrow \beta_1 m + (1-\beta_1)^\tau g$,
    $p \leftarrow p - \eta \beta_0^{1-\tau} m / (1 - \prod \beta_1)$.

    When to use: networks for which SGD generalizes better than Adam, but escapes from flat regions too slowly.

    Args:
        lr: $\eta$ in [0, inf), the change of a weight per unit of gradient; 1 to 10 times the rate of SGD without
            momentum.
        betas: $(\beta_0, \beta_2)$, each in [0, 1).
        eps: $\epsilon$ in (0, 1): the inertia stays below $1 - \epsilon$.
        weight_decay: $\lambda \ge 0$, added to the gradient unless decoupled.
        decoupled_weight_decay: Apply the decay to the weights instead, multiplied by the learning rate (AdaiS).
        dampening: $\tau$ in [0, 1]. Values below 1 give AdaiV2.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`, `beta1_prod`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.adai(lr=0.1)
        >>> # like SGD
        >>> tx.update({"w": torch.tensor([1.0, -3.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([-0.1000,  0.3000])

    Source: Xie et al. 2020, arXiv:2006.15815; AdaiS: Xie et al. 2020, arXiv:2011.11152. Departures: none from the
    authors' code, except for a ratio of 0 where all gradients are 0.
    """
    return with_decay(
        scale_by_adai(betas, eps, dampening), weight_decay, decoupled_weight_decay, lr
    )
