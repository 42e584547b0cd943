"""Sums and averages over the whole run: MADGRAD, SRMM."""

from __future__ import annotations

from gradtx.arguments import Count, Decay, NonNegative
from gradtx.optimizers.adam import split_decay
from gradtx.rules import alias
from gradtx.transform import chain
from gradtx.transforms.averaging import scale_by_madgrad, scale_by_srmm
from gradtx.transforms.weight_decay import add_decayed_weights

__all__ = ["madgrad", "srmm"]


@alias(class_name="MADGRAD")
def madgrad(
    lr: NonNegative = 1e-2,
    momentum: Decay = 0.9,
    eps: NonNegative = 1e-6,
    weight_decay: NonNegative = 0.0,
    decoupled_weight_decay: bool = False,
):
    r"""MADGRAD: dual averaging from the initial weights, divided by the cube root of the sum of squares.

    With $\lambda_t = r \sqrt t$, $r = \eta + \epsilon$: $s \leftarrow s + \lambda_t g$,
    $\nu \leftarrow \nu + \lambda_t g^2$, $p \leftarrow \mu p + (1-\mu) (x_0 - s / (\sqrt[3]\nu + \epsilon))$.

    When to use: sparse problems, and vision tasks on which SGD beats Adam; needs less weight decay than other methods,
    often none.

    Args:
        lr: $\eta$ in [0, inf). Good values differ from those of SGD and of Adam; try powers of 2.
        momentum: $\mu$ in [0, 1). With a literal 0.0, $x_0$ is computed from the weights instead of stored.
        eps: $\epsilon \ge 0$.
        weight_decay: $\lambda \ge 0$; smaller values than with other optimizers, often 0.
        decoupled_weight_decay: Subtract $r \lambda p$ from the weights; if False, add $\lambda p$ to the gradient.

    Returns:
        A transformation whose updates are added to the parameters. State: `grad_sum_sq`, `s`, [`x0`].

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing.

    Example:
        >>> tx = gradtx.madgrad(lr=0.125, momentum=0.5, eps=0.0)
        >>> params = {"w": torch.tensor([1.0])}
        >>> # half of 0.125 * 8 / cbrt(8)
        >>> tx.update({"w": torch.tensor([8.0])}, tx.init(params), params)[0]["w"]
        tensor([-0.2500])

    Source: Defazio and Jelassi 2021, arXiv:2101.11075. Departures: none from the authors' code. As there, later steps
    undo decoupled decay with momentum, because $x_0$ never decays.
    """
    coupled, decoupled = split_decay(weight_decay, decoupled_weight_decay)
    return chain(
        add_decayed_weights(coupled), scale_by_madgrad(lr, momentum, eps, decoupled)
    )


@alias(class_name="SRMM")
def srmm(
    lr: NonNegative = 0.01,
    beta: NonNegative = 0.5,
    memory_length: Count | None = 100,
    proximal: NonNegative = 0.0,
):
    r"""SRMM: stochastic regularized majorization-minimization, a step from averaged weights along averaged gradients.

    With $w = (n+1)^{-\beta}$, $n = t \bmod$ `memory_length`: $\bar g \leftarrow (1-w) \bar g + w g$,
    $\bar p \leftarrow (1-w) \bar p + w p$, $p \leftarrow (1 - \eta\lambda) \bar p + \eta\lambda p - \eta \bar g$.

    When to use: streams of dependent data, such as samples of a Markov chain, where a guarantee matters more than
    speed.

    Args:
        lr: $\eta \ge 0$, in the paper's terms $1 / (L + \lambda)$.
        beta: $\beta \ge 0$, the speed at which the weight of new gradients falls; with 0, nothing is remembered.
        memory_length: Number of steps after which the averages restart, >= 1; None for never.
        proximal: $\lambda \ge 0$, the pull toward the current weights; $\eta \lambda \le 1$.

    Returns:
        A transformation whose updates are added to the parameters. State: `mov_avg_grad`, `mov_avg_param`.

    Raises:
        ValueError: If a hyperparameter is out of range, if `lr * proximal` is above 1, or if `params` is missing.

    Example:
        >>> tx = gradtx.srmm(lr=1.0, beta=0.0)  # no memory: gradient descent
        >>> params = {"w": torch.tensor([2.0])}
        >>> tx.update({"w": torch.tensor([0.5])}, tx.init(params), params)[0]["w"]
        tensor([-0.5000])

    Source: Lyu 2022, arXiv:2201.01652, eq. 23. Departures from the authors' code: see `scale_by_srmm`.
    (pytorch_optimizer's class overwrites $\bar p$ with the weights, so that it averages gradients only.)
    """
    return scale_by_srmm(lr, beta, memory_length, proximal)
