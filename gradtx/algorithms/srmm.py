"""SRMM: stochastic regularized majorization-minimization, a step from averaged weights along averaged gradients."""

from __future__ import annotations

from typing import Annotated, Any

from gradtx.arguments import Count, NonNegative
from gradtx.execution.traits import RESTARTS
from gradtx.rules import alias, per_tensor
from gradtx.slots import linear, start

__all__ = ["scale_by_srmm", "srmm"]


@per_tensor(
    elementwise=True,
    by_rows=lambda arguments: arguments["memory_length"] is None or RESTARTS,
    needs="params",
    owns_lr=True,
)
def scale_by_srmm(
    lr=0.01,
    beta: NonNegative = 0.5,
    memory_length: Count | None = 100,
    proximal: NonNegative = 0.0,
):
    r"""Step from an average of the weights along an average of the gradients computed there: SRMM.

    With $w = (n+1)^{-\beta}$, $n = t \bmod$ `memory_length`: $\bar g \leftarrow (1-w) \bar g + w g$,
    $\bar p \leftarrow (1-w) \bar p + w p$, $p \leftarrow (1 - \eta\lambda) \bar p + \eta\lambda p - \eta \bar g$.

    Args:
        lr: $\eta \ge 0$, or $1 / (L + \lambda)$ in the paper's notation.
        beta: $\beta \ge 0$: how fast the weight of new gradients decreases; 0 keeps no memory.
        memory_length: Steps after which the averages restart, >= 1; None for never.
        proximal: $\lambda \ge 0$, the pull toward the current weights; $\eta \lambda \le 1$.

    Returns:
        A transformation that keeps shapes and dtypes; its updates are added to the parameters. State:
        `mov_avg_grad` and `mov_avg_param` (initialized to the parameter), shaped as the parameter.

    Raises:
        ValueError: If `lr * proximal` is above 1.

    Example:
        >>> tx = gradtx.scale_by_srmm(lr=1.0, beta=1.0)
        >>> params = {"w": torch.tensor([0.0])}
        >>> state = tx.init(params)
        >>> # 1/2 of the gradient, then the mean of 1/2, 1/2 * 2/3 + 1/3, from the mean weight
        >>> for _ in range(2):
        ...     updates, state = tx.update({"w": torch.tensor([1.0])}, state, params)
        ...     params = gradtx.apply_updates(params, updates)
        ...     print(params["w"])
        tensor([-0.5000])
        tensor([-0.8333])

    Source: Lyu 2022, arXiv:2201.01652, eq. 23. Departures from the authors' code: $\bar p$ starts at the parameters
    (theirs at 0), and the memory is refreshed (theirs never is, due to an operator precedence error).
    """
    if isinstance(lr, float) and isinstance(proximal, float) and lr * proximal > 1:
        raise ValueError(
            f"scale_by_srmm: lr * proximal must be in [0, 1], got {lr!r} * {proximal!r}; lower one of them"
        )

    def update(g, state, p, ctx):
        n = ctx.time if memory_length is None else ctx.time % memory_length
        weight = (n + 1) ** -beta
        grad = (1 - weight) * state["mov_avg_grad"] + weight * g
        mean = (1 - weight) * state["mov_avg_param"] + weight * p
        step = (1 - lr * proximal) * (mean - p) - lr * grad
        return step, {"mov_avg_grad": grad, "mov_avg_param": mean}

    return {"mov_avg_grad": linear(), "mov_avg_param": start(slow=True)}, update


@alias(class_name="SRMM")
def srmm(**arguments: Annotated[Any, scale_by_srmm]):
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
        ValueError: If `lr * proximal` is above 1.

    Example:
        >>> tx = gradtx.srmm(lr=1.0, beta=0.0)  # no memory: gradient descent
        >>> params = {"w": torch.tensor([2.0])}
        >>> tx.update({"w": torch.tensor([0.5])}, tx.init(params), params)[0]["w"]
        tensor([-0.5000])

    Source: Lyu 2022, arXiv:2201.01652, eq. 23. Departures from the authors' code: see `scale_by_srmm`.
    (pytorch_optimizer's class overwrites $\bar p$ with the weights, so that it averages gradients only.)
    """
    return scale_by_srmm(**arguments)
