"""PNM; also `adapnm`.

PNM, positive-negative momentum: SGD whose gradient noise is amplified by subtracting an older momentum.
"""

from __future__ import annotations

from typing import Any

from gradtx.arguments import Decay, Fraction
from gradtx.links.decay import with_decay
from gradtx.maths.entries import corrected_root, peak, running_mean
from gradtx.rules import alias, per_tensor
from gradtx.slots import linear, square

__all__ = [
    "adapnm",
    "pnm",
    "scale_by_adapnm",
    "scale_by_pnm",
]


@per_tensor(elementwise=True, length="sets")
def scale_by_adapnm(
    betas: tuple[Decay, Decay, Fraction] = (0.9, 0.999, 1.0),
    eps=1e-8,
    amsgrad=True,
):
    r"""Divide positive-negative momentum by the root mean square of the gradient: AdaPNM's direction.

    With $n_t$ the direction of `scale_by_pnm` for $(\beta_1, \beta_3)$ and
    $v_t = \beta_2 v_{t-1} + (1-\beta_2) g_t^2$: $n_t / (1-\beta_1^t) / (\sqrt{v_t / (1-\beta_2^t)} + \epsilon)$.

    Args:
        betas: $(\beta_1, \beta_2, \beta_3)$: decay of the momenta and of $v$, in [0, 1); weight of the negative
            part, in [0, 1].
        eps: $\epsilon \ge 0$, in the units of a gradient.
        amsgrad: Use the running maximum of $v$ instead of $v$.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, which the next step updates, and
        `neg_exp_avg`, swapped at every step, `exp_avg_sq` and, with `amsgrad`, `max_exp_avg_sq`, shaped as the
        parameter.

    Raises:
        ValueError: If one of the first two betas is outside [0, 1), or if the third is outside [0, 1].

    Example:
        >>> tx = gradtx.scale_by_adapnm((0.0, 0.9, 1.0))
        >>> # 2 / sqrt(5)
        >>> tx.update({"w": torch.tensor([1e-3, -4.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([ 0.8944, -0.8944])

    Source: Xie et al. 2021, arXiv:2103.17182. Departures: none from the authors' code, which corrects by
    $1-\beta_1^t$ although each momentum decays by $\beta_1^2$ at every second step.
    """
    beta1, beta2, beta3 = betas
    momenta, average = positive_negative("exp_avg", "neg_exp_avg", beta1, beta3)

    def update(g, state, p, ctx):
        direction, new_state = average(g, state)
        new_state["exp_avg_sq"] = running_mean(state["exp_avg_sq"], g.square(), beta2)
        v = peak(new_state, state, "exp_avg_sq", amsgrad)
        root = corrected_root(v, ctx, beta2)
        return direction / ctx.bias_correction(beta1) / (root + eps), new_state

    slots = {
        **momenta,
        "exp_avg_sq": square(),
        "max_exp_avg_sq": square() if amsgrad else None,
    }
    return slots, update


def positive_negative(
    first: str, second: str, beta, weight
) -> tuple[dict[str, Any], Any]:
    """Return two slots that are updated in turn, and `average(gradient, state) -> (direction, new state)`.

    The decay is the square of beta, because each momentum is written at every second step. The direction is normalized
    so that two momenta with independent noise yield noise of the size of one.
    """

    def average(gradient, state):
        positive = running_mean(state[first], gradient, beta**2)
        negative = state[second]
        size = ((1 + weight) ** 2 + weight**2) ** 0.5
        direction = ((1 + weight) / size) * positive - (weight / size) * negative
        return direction, {first: negative, second: positive}

    return {first: linear(), second: linear()}, average


@per_tensor(elementwise=True)
def scale_by_pnm(betas: tuple[Decay, Fraction] = (0.9, 1.0)):
    r"""Subtract an older momentum from a newer one: positive-negative momentum.

    Two averages, starting from 0, are updated alternately: $m_t = \beta_1^2 m_{t-2} + (1-\beta_1^2) g_t$; direction
    $((1+\beta_2) m_t - \beta_2 m_{t-1}) / \sqrt{(1+\beta_2)^2 + \beta_2^2}$.

    Args:
        betas: $(\beta_1, \beta_2)$: the decay per step, in [0, 1), and the weight of the negative part, in [0, 1].

    Returns:
        A transformation that keeps shapes and dtypes. State: `pos_momentum`, which the next step updates, and
        `neg_momentum`, shaped as the parameter; they are swapped at every step.

    Raises:
        ValueError: If the first beta is outside [0, 1) or the second is outside [0, 1].

    Example:
        >>> tx = gradtx.scale_by_pnm((0.0, 1.0))
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for _ in range(3):  # without decay: (2 g_t - g_{t-1}) / sqrt(5)
        ...     updates, state = tx.update({"w": torch.tensor([5**0.5])}, state)
        ...     print(updates["w"])
        tensor([2.])
        tensor([1.])
        tensor([1.])

    Source: Xie et al. 2021, arXiv:2103.17182. Departures: none from the authors' code.
    """
    beta1, beta2 = betas

    momenta, average = positive_negative("pos_momentum", "neg_momentum", beta1, beta2)

    def update(update, state, param, ctx):
        return average(update, state)

    return momenta, update


@alias(class_name="AdaPNM")
def adapnm(
    lr=1e-3,
    betas: tuple[Decay, Decay, Fraction] = (0.9, 0.999, 1.0),
    eps=1e-8,
    weight_decay=0.0,
    amsgrad=True,
    decoupled_weight_decay=True,
):
    r"""AdaPNM: positive-negative momentum over Adam's denominator.

    $p \leftarrow p - \eta n_t / (1-\beta_1^t) / (\sqrt{v_t / (1-\beta_2^t)} + \epsilon)$ with $n_t$ the direction of
    `pnm` for $(\beta_1, \beta_3)$ and $v$ the average of $g^2$.

    When to use: small datasets or noisy labels (the paper's claim), where Adam fits the training set but does not
    generalize.

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


@alias(class_name="PNM")
def pnm(
    lr,
    betas: tuple[Decay, Fraction] = (0.9, 1.0),
    weight_decay=0.0,
    decoupled_weight_decay=True,
):
    r"""PNM, positive-negative momentum: SGD whose gradient noise is amplified by subtracting an older momentum.

    Two averages, initialized to 0, are updated alternately, $m_t = \beta_1^2 m_{t-2} + (1-\beta_1^2) g_t$;
    $p \leftarrow p - \eta ((1+\beta_2) m_t - \beta_2 m_{t-1}) / \sqrt{(1+\beta_2)^2 + \beta_2^2}$.

    When to use: small datasets or noisy labels (the paper's claim), where SGD fits the training set and more gradient
    noise would help.

    Args:
        lr: $\eta$ in [0, inf); the authors give no default.
        betas: $(\beta_1, \beta_2)$: the decay rate per step, in [0, 1), and the weight of the negative part, in [0, 1].
        weight_decay: $\lambda \ge 0$.
        decoupled_weight_decay: Apply the decay to the weights, $p (1 - \eta \lambda)$; if False, add it to the
            gradient.

    Returns:
        A transformation whose updates are added to the parameters. State: `pos_momentum` and `neg_momentum`, which swap
        at every step.

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
