"""Positive-negative momentum: PNM, AdaPNM."""

from __future__ import annotations

from gradtx.arguments import Decay, Fraction, NonNegative
from gradtx.optimizers.adam import with_decay
from gradtx.rules import alias
from gradtx.transforms.adaptive_momentum import scale_by_adapnm, scale_by_pnm

__all__ = ["adapnm", "pnm"]


@alias(class_name="PNM")
def pnm(
    lr: NonNegative,
    betas: tuple[Decay, Fraction] = (0.9, 1.0),
    weight_decay: NonNegative = 0.0,
    decoupled_weight_decay: bool = True,
):
    r"""PNM, positive-negative momentum: SGD whose gradient noise is amplified by subtracting an older momentum.

    Two averages, initialized to 0, are updated alternately, $m_t = \beta_1^2 m_{t-2} + (1-\beta_1^2) g_t$;
    $p \leftarrow p - \eta ((1+\beta_2) m_t - \beta_2 m_{t-1}) / \sqrt{(1+\beta_2)^2 + \beta_2^2}$.

    When to use: small datasets or noisy labels, where SGD fits the training set and more gradient noise would help.

    Args:
        lr: $\eta$ in [0, inf); the authors give no default.
        betas: $(\beta_1, \beta_2)$: the decay rate per step, in [0, 1), and the weight of the negative part, in [0, 1].
        weight_decay: $\lambda \ge 0$.
        decoupled_weight_decay: Apply the decay to the weights, $p (1 - \eta \lambda)$; if False, add it to the
            gradient.

    Returns:
        A transformation whose updates are added to the parameters. State: `pos_momentum` and `neg_momentum`, which swap
        at every step.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.pnm(lr=1.0, betas=(0.0, 0.75))  # (7 g_t - 3 g_{t-1}) / sqrt(58)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for _ in range(2):
        ...     updates, state = tx.update({"w": torch.tensor([58**0.5])}, state)
        ...     print(updates["w"])
        tensor([-7.])
        tensor([-4.])

    Source: Xie et al. 2021, arXiv:2103.17182. Departures: none from the authors' code.
    """
    return with_decay(scale_by_pnm(betas), weight_decay, decoupled_weight_decay, lr)


@alias(class_name="AdaPNM")
def adapnm(
    lr: NonNegative = 1e-3,
    betas: tuple[Decay, Decay, Fraction] = (0.9, 0.999, 1.0),
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    amsgrad: bool = True,
    decoupled_weight_decay: bool = True,
):
    r"""AdaPNM: positive-negative momentum over Adam's denominator.

    $p \leftarrow p - \eta n_t / (1-\beta_1^t) / (\sqrt{v_t / (1-\beta_2^t)} + \epsilon)$ with $n_t$ the direction of
    `pnm` for $(\beta_1, \beta_3)$ and $v$ the average of $g^2$.

    When to use: small datasets or noisy labels, where Adam fits the training set but does not generalize.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step.
        betas: $(\beta_1, \beta_2, \beta_3)$: the decay rates of the momenta and of $v$, in [0, 1), and the weight of
            the negative part, in [0, 1].
        eps: $\epsilon \ge 0$, added outside the square root, in units of the gradient.
        weight_decay: $\lambda \ge 0$.
        amsgrad: Use the running maximum of $v$.
        decoupled_weight_decay: Apply the decay to the weights, $p (1 - \eta \lambda)$; if False, add it to the
            gradient.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg` and `neg_exp_avg`, which swap at
        every step, `exp_avg_sq`, [`max_exp_avg_sq`].

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.adapnm(lr=0.1, betas=(0.9, 0.999, 0.0))  # without a negative part
        >>> # lr (1 + beta1)
        >>> tx.update({"w": torch.tensor([1e-4, -7.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([-0.1900,  0.1900])

    Source: Xie et al. 2021, arXiv:2103.17182. Departures: none from the authors' code. (pytorch_optimizer's class
    divides eps by $\sqrt{1-\beta_2^t}$.)
    """
    return with_decay(
        scale_by_adapnm(betas, eps, amsgrad), weight_decay, decoupled_weight_decay, lr
    )
