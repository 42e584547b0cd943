"""CAME: momentum weighted by how well updates agree with it."""

from __future__ import annotations

import torch

from gradtx.base.exact import Scalar
from gradtx.rules import per_tensor
from gradtx.transforms._math import mean, running_mean
from gradtx.transforms.factored import over_root

__all__ = ["scale_by_confidence"]


@per_tensor(ranges={"beta1": "[0, 1)", "beta3": "[0, 1)", "eps": "(0, inf)"})
def scale_by_confidence(
    beta1: Scalar = 0.9, beta3: Scalar = 0.9999, eps: Scalar = 1e-16
):
    r"""Average updates and divide by their deviation from the average: CAME's confidence.

    $m_t = \beta_1 m_{t-1} + (1-\beta_1) u_t$, $s = (u_t - m_t)^2 + \epsilon$. The state averages the row means,
    $R \leftarrow \beta_3 R + (1-\beta_3) \, \mathrm{mean}_{-1}(s)$, and likewise the column means $C$. The result is
    $m_t / \sqrt{R_i C_j / \mathrm{mean}(R)}$. There is no bias correction, so updates are large in the first
    $1/(1-\beta_3)$ steps. Leaves with fewer than two dimensions return $m_t$.

    Args:
        beta1: $\beta_1$ in [0, 1).
        beta3: $\beta_3$ in [0, 1).
        eps: $\epsilon > 0$, in the units of a squared update.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, shaped as the parameter, and for leaves with
        two or more dimensions `exp_avg_res_row` (the parameter's shape without the last dimension) and
        `exp_avg_res_col` (without the second to last).

    Raises:
        ValueError: If `beta1` or `beta3` is outside [0, 1), or if `eps` is not above 0.

    Example:
        >>> tx = gradtx.scale_by_confidence(beta1=0.5, beta3=0.0)
        >>> state = tx.init({"w": torch.zeros(2, 1)})
        >>> # the second row's updates disagree
        >>> for update in ([[1.0], [1.0]], [[1.0], [-1.0]]):
        ...     updates, state = tx.update({"w": torch.tensor(update)}, state)
        ...     print(updates["w"].T)
        tensor([[1., 1.]])
        tensor([[ 3.0000, -0.3333]])

    Source: Luo et al. 2023, arXiv:2307.02047. Departures: none.
    """

    def init(param):
        slots = {"exp_avg": torch.zeros_like(param)}
        if param.ndim >= 2:
            slots["exp_avg_res_row"] = param.new_zeros(param.shape[:-1])
            slots["exp_avg_res_col"] = param.new_zeros(
                (*param.shape[:-2], param.shape[-1])
            )
        return slots

    def update(update, state, param, ctx):
        average = running_mean(state["exp_avg"], update, beta1)
        if update.ndim < 2:
            return average, {"exp_avg": average}
        residual = (update - average).square() + eps
        rows = running_mean(state["exp_avg_res_row"], mean(residual, -1), beta3)
        columns = running_mean(state["exp_avg_res_col"], mean(residual, -2), beta3)
        new = {"exp_avg": average, "exp_avg_res_row": rows, "exp_avg_res_col": columns}
        return over_root(average, rows, columns), new

    return init, update
