"""SRMM: minimize an average of majorizing surrogates of the loss."""

from __future__ import annotations

import torch

from gradtx.base.exact import Scalar
from gradtx.rules import per_tensor

__all__ = ["scale_by_srmm"]


@per_tensor(
    elementwise=True,
    needs=("params",),
    owns_lr=True,
    ranges={"memory_length": "[1, inf)", "proximal": "[0, inf)", "beta": "[0, inf)"},
)
def scale_by_srmm(
    lr: Scalar = 0.01,
    beta: Scalar = 0.5,
    memory_length: int | None = 100,
    proximal: Scalar = 0.0,
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
        ValueError: If an argument is out of range, if `lr * proximal` is above 1, if `params` is missing, or if a later
            link scales by a learning rate or decays.

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

    def init(param):
        return {"mov_avg_grad": torch.zeros_like(param), "mov_avg_param": param}

    def update(update, state, param, ctx):
        n = ctx.time if memory_length is None else ctx.time % memory_length
        weight = (n + 1) ** -beta
        grad = (1 - weight) * state["mov_avg_grad"] + weight * update
        mean = (1 - weight) * state["mov_avg_param"] + weight * param
        step = (1 - lr * proximal) * (mean - param) - lr * grad
        return step, {"mov_avg_grad": grad, "mov_avg_param": mean}

    return init, update
