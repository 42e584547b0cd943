"""Other estimates of per-weight rates: ACProp, KATE, BCOS, FAdam."""

from __future__ import annotations

from typing import Annotated

from gradtx.arguments import Decay, Decays, NonNegative
from gradtx.base.exact import Scalar
from gradtx.optimizers.adam import with_decay
from gradtx.rules import alias
from gradtx.transform import chain
from gradtx.transforms.adagrad import scale_by_acprop, scale_by_bcos, scale_by_kate
from gradtx.transforms.adam import scale_by_fadam
from gradtx.transforms.scaling import scale_by_learning_rate

__all__ = ["acprop", "bcos", "fadam", "kate"]


@alias(class_name="ACProp")
def acprop(
    lr: NonNegative = 1e-3,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-16,
    weight_decay: NonNegative = 0.0,
    decoupled_weight_decay: bool = True,
    amsgrad: bool = False,
    momentum_update: bool = False,
):
    r"""ACProp: the gradient divided by the deviation of earlier gradients from their mean.

    $p \leftarrow p - \eta g_t / (\sqrt{s_{t-1} / (1-\beta_2^{t-1})} + \epsilon)$ with the average $s$ of $(g - m)^2$;
    the first step is an SGD step. See `scale_by_acprop`.

    When to use: as an alternative to AdaBelief; the denominator excludes the current gradient, so rare large gradients
    keep their weight.

    Args:
        lr: $\eta$ in [0, inf).
        betas: $(\beta_1, \beta_2)$, the decay rates of $m$ and of $s$, each in [0, 1).
        eps: $\epsilon \ge 0$, added to $s$, where it accumulates, and to its square root.
        weight_decay: $\lambda \ge 0$.
        decoupled_weight_decay: Subtract $\eta \lambda p$ from the weights; if False, add $\lambda p$ to the gradient.
        amsgrad: Use the running maximum of $s$.
        momentum_update: Step along $m_t / (1-\beta_1^t)$ instead of $g_t$.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_var`; with `amsgrad`,
        also `max_exp_avg_var`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.acprop(lr=1.0, betas=(0.5, 0.5), eps=0.0)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for grad in (4.0, 8.0):  # the deviation of 4 from its mean of 2 divides 8
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     print(updates["w"])
        tensor([-4.])
        tensor([-4.])

    Source: Zhuang et al. 2021, arXiv:2110.05454. Departures: see `scale_by_acprop`.
    """
    direction = scale_by_acprop(betas, eps, amsgrad, momentum_update)
    return with_decay(direction, weight_decay, decoupled_weight_decay, lr)


@alias
def kate(
    lr: NonNegative = 1e-3,
    delta: NonNegative = 0.0,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
):
    r"""KATE: AdaGrad without the square root, with steps that do not depend on the scale of the data.

    $p \leftarrow p - \eta (m_t g_t / b_t^2 + \lambda p)$, $b_t^2 = \sum (g^2 + \epsilon)$,
    $m_t^2 = \sum (\delta g_i^2 + g_i^2 / b_i^2)$; see `scale_by_kate`.

    When to use: as an alternative to AdaGrad, for features of very different scales.

    Args:
        lr: $\eta$ in [0, inf).
        delta: $\delta \ge 0$; values above 0 enlarge the first steps.
        eps: $\epsilon \ge 0$, in units of the squared gradient.
        weight_decay: $\lambda \ge 0$, decoupled.

    Returns:
        A transformation whose updates are added to the parameters. State: `b_sq`, `m_sq`.

    Raises:
        ValueError: If a hyperparameter is negative, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.kate(lr=1.0)
        >>> # -1 / g
        >>> tx.update({"w": torch.tensor([0.5, 4.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([-2.0000, -0.2500])

    Source: Choudhury et al. 2024, arXiv:2403.02648. Departures: see `scale_by_kate`.
    """
    return with_decay(scale_by_kate(delta, eps), weight_decay, True, lr)


@alias(class_name="BCOS")
def bcos(
    lr: NonNegative = 1e-3,
    beta: Decay = 0.9,
    beta2: Decay | None = None,
    eps: NonNegative = 1e-6,
    weight_decay: NonNegative = 0.1,
    mode: str = "c",
    simple_cond: bool = False,
    decoupled_weight_decay: bool = True,
):
    r"""BCOS: a momentum divided by an estimate of its root mean square, with one slot less than Adam.

    $p \leftarrow p - \eta (d_t / (\sqrt{v_t} + \epsilon) + \lambda p)$; in mode "c", $d$ is the momentum $m$, and $v_t$
    is the mean square of $m_t$ given $m_{t-1}$. See `scale_by_bcos`.

    When to use: instead of AdamW, at half the memory with the same rate and decay (the paper's claim).

    Args:
        lr: $\eta$ in [0, inf).
        beta: $\beta$ in [0, 1), the decay rate of the momentum.
        beta2: $\beta_2$ in [0, 1), the decay rate of the mean square. None: $\beta$, or $1 - (1-\beta)^2$ with
            `simple_cond`.
        eps: $\epsilon \ge 0$, in units of the gradient.
        weight_decay: $\lambda \ge 0$.
        mode: "c" (conditional), "m" (averaged squares of the momentum) or "g" (of the gradient, without momentum).
        simple_cond: In mode "c", use the simpler estimate $\beta_2 m_{t-1}^2 + (1-\beta_2) g_t^2$.
        decoupled_weight_decay: Subtract $\eta \lambda p$ from the weights; if False, add $\lambda p$ to the gradient.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg` (modes "c" and "m") and
        `exp_avg_sq` (modes "m" and "g"), both initialized from the first gradient.

    Raises:
        ValueError: If a hyperparameter is out of range, if `mode` is unknown, or if `params` is missing and
            `weight_decay` is not 0.0.

    Example:
        >>> # the first step is the sign of the gradient
        >>> tx = gradtx.bcos(lr=0.1, weight_decay=0.0)
        >>> tx.update({"w": torch.tensor([7.0, -0.2])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([-0.1000,  0.1000])

    Source: Jiang et al. 2025, arXiv:2507.08963. Departures: see `scale_by_bcos`.
    """
    direction = scale_by_bcos(beta, beta2, eps, mode, simple_cond)
    return with_decay(direction, weight_decay, decoupled_weight_decay, lr)


@alias(class_name="FAdam")
def fadam(
    lr: NonNegative = 1e-3,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.1,
    clip: Annotated[Scalar, "(0, inf]"] = 1.0,
    p: NonNegative = 0.5,
    eps2: NonNegative = 0.01,
):
    r"""FAdam: Adam as natural gradient descent, with gradients and decay divided by the root of the Fisher information.

    $p \leftarrow p - \eta (m_t + \lambda w)$, with the average $m$ of $u = g / B$ and $w = p / B$, each clipped to a
    root mean square of $c$; $B$ is the root of the average of $g^2$, enlarged where that is small. See
    `scale_by_fadam`.

    When to use: instead of AdamW, if the decay should be weaker on weights with a large effect on the loss.

    Args:
        lr: $\eta$ in [0, inf).
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$, in units of the gradient.
        weight_decay: $\lambda \ge 0$.
        clip: $c > 0$, the largest root mean square of $u$ and of $w$.
        p: $k \ge 0$, the power of the Fisher information; 0.5 is the root.
        eps2: $\epsilon_2 \ge 0$, relative to the gradient.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum`, `fim`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing.

    Example:
        >>> tx = gradtx.fadam(lr=0.1, betas=(0.0, 0.9), weight_decay=0.0)
        >>> params = {"w": torch.zeros(2)}
        >>> tx.update({"w": torch.tensor([7.0, -0.2])}, tx.init(params), params)[0]["w"]
        tensor([-0.1000,  0.1000])

    Source: Hwang 2024, arXiv:2405.12807. Departures: see `scale_by_fadam`. (pytorch_optimizer spells `eps2` as
    `eps_2`.)
    """
    return chain(
        scale_by_fadam(betas, eps, weight_decay, clip, p, eps2),
        scale_by_learning_rate(lr),
    )
