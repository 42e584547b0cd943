"""MARS's variance reduction: correct gradients by their change since the last step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradtx.base.exact import Scalar
from gradtx.rules import per_tensor, whole_tree
from gradtx.transforms._math import at_least, norm

__all__ = ["correct_variance"]


def _corrected(grad: Tensor, last: Tensor, gamma: Any, beta: Any) -> Tensor:
    """Return g + gamma beta / (1 - beta) (g - g_last), clipped to a norm of at most 1."""
    change = grad + gamma * beta / (1 - beta) * (grad - last)
    return change / at_least(norm(change), 1.0)


@whole_tree(
    needs=("params", "grad_fn"),
    ranges={"gamma": "[0, inf)", "beta": "[0, 1)", "min_ndim": "[0, inf)"},
)
def correct_variance_exactly(gamma: Scalar, beta: Scalar, min_ndim: int):
    """Apply `correct_variance` with the gradient of the current batch at the previous parameters."""

    def init(params):
        # All leaves are stored, because the gradient is computed at the complete previous parameters.
        return {"prev_param": params}

    def update(updates, state, params, ctx):
        last = ctx.grad_fn(state["prev_param"])
        corrected = {}
        for name, grad in updates.items():
            corrected[name] = (
                grad
                if grad.ndim < min_ndim
                else _corrected(grad, last[name], gamma, beta)
            )
        return corrected, {"prev_param": params}

    return init, update


@per_tensor(ranges={"gamma": "[0, inf)", "beta": "[0, 1)", "min_ndim": "[0, inf)"})
def correct_variance(
    gamma: Scalar = 0.025, beta: Scalar = 0.95, exact: bool = False, min_ndim: int = 0
):
    r"""Add a fraction of the gradient's last change to reduce its variance: MARS's correction.

    $c_t = g_t + \gamma \frac{\beta}{1-\beta} (g_t - g')$, then $c_t / \max(1, \lVert c_t \rVert)$, leaf by leaf, with
    $g' = g_{t-1}$ and $g_0 = 0$; or, if exact, $g'$ is the gradient of the current batch at the previous parameters
    (STORM), which costs a second gradient per step. First link of a chain.

    Args:
        gamma: $\gamma \ge 0$, strength of the correction.
        beta: $\beta$ in [0, 1), that of the momentum that follows.
        exact: Use the extra `grad_fn` to compute the gradient at the previous parameters.
        min_ndim: Leaves with fewer dimensions, >= 0, pass unchanged.

    Returns:
        A transformation that keeps shapes and dtypes. State: `last_grad`, shaped as the parameter, for the leaves that
        are corrected; if exact, `prev_param` for all leaves, under `correct_variance_exactly`.

    Raises:
        ValueError: If an argument is out of range, or if `exact` is set and `params` or `grad_fn` is missing.

    Example:
        >>> tx = gradtx.correct_variance(gamma=0.5, beta=0.5)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for grad in (0.2, 0.2, 0.4):
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     print(updates["w"])
        tensor([0.3000])
        tensor([0.2000])
        tensor([0.5000])

    Source: Yuan et al. 2024, arXiv:2411.10438; exact: Cutkosky and Orabona 2019, arXiv:1905.10018. Departures: if
    exact, $g'$ is $g_1$ at the first step, as in the paper; the authors' code uses 0.
    """
    if exact:
        return correct_variance_exactly(gamma, beta, min_ndim)

    def init(param):
        return {} if param.ndim < min_ndim else {"last_grad": torch.zeros_like(param)}

    def update(update, state, param, ctx):
        if update.ndim < min_ndim:
            return update, state
        return _corrected(update, state["last_grad"], gamma, beta), {
            "last_grad": update
        }

    return init, update
