"""Second moments stored as the means of rows and columns."""

from __future__ import annotations

import torch
from torch import Tensor

from gradtx.arguments import Decay, NonPositive, Positive
from gradtx.execution.leaf_rule import OfLeaf
from gradtx.maths.entries import mean, running_mean
from gradtx.rules import per_tensor
from gradtx.slots import Slot, square

__all__ = ["scale_by_factored_rms"]


def vector_slot(param):
    """Return the slot of a leaf that has no rows and columns."""
    return torch.zeros_like(param) if param.ndim < 2 else None


def means_over(dim: int, keepdim: bool = False) -> Slot:
    """Declare means over the columns (-1) or the rows (-2) of leaves that have both."""

    def first(param):
        if param.ndim < 2:
            return None
        shape = list(param.shape)
        del shape[dim]
        means = param.new_zeros(shape)
        return means.unsqueeze(dim) if keepdim else means

    return square(first)


@per_tensor(whole="sums", length="sets")
def scale_by_factored_rms(
    decay_rate: NonPositive = -0.8,
    eps: Positive = 1e-30,
    beta: Decay | None = None,
):
    r"""Divide by the root of a second moment of which only row and column means are stored.

    With $s = g_t^2 + \epsilon$ and $\beta = 1 - t^{c}$: $R_t = \beta R_{t-1} + (1-\beta)\, \mathrm{mean}_{-1}(s)$,
    $C_t = \beta C_{t-1} + (1-\beta)\, \mathrm{mean}_{-2}(s)$, $V_{ij} = R_i C_j / \mathrm{mean}(R)$; the result is
    $g_t / \sqrt{V}$. Leaves with fewer than two dimensions store the whole
    $V_t = \beta V_{t-1} + (1-\beta) s$.

    Args:
        decay_rate: $c \le 0$. The first step has $\beta = 0$.
        eps: $\epsilon > 0$, in the units of a squared gradient; prevents a division by 0 for rows of zeros.
        beta: A constant $\beta$ in [0, 1) instead of $1 - t^c$, starting from 0 without bias correction (CAME).

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg_sq_row` (the parameter's shape without the last
        dimension) and `exp_avg_sq_col` (without the second to last), or `exp_avg_sq`, shaped as the parameter.

    Raises:
        ValueError: If `decay_rate` is positive.

    Example:
        >>> tx = gradtx.scale_by_factored_rms()
        >>> state = tx.init({"w": torch.zeros(2, 3)})
        >>> {
        ...     slot: tuple(by_leaf["w"].shape)
        ...     for slot, by_leaf in state["scale_by_factored_rms"].items()
        ... }
        {'exp_avg_sq_row': (2,), 'exp_avg_sq_col': (3,)}
        >>> tx.update({"w": torch.tensor([[1.0, -2.0, 4.0], [3.0, 4.0, 6.0]])}, state)[0]["w"]
        tensor([[ 0.6249, -0.8837,  1.0961],
                [ 1.0999,  1.0370,  0.9647]])

    Source: Shazeer and Stern 2018, arXiv:1804.04235. Departures: means instead of sums, which is equivalent; the last
    two dimensions are factored for any rank, as in tensor2tensor and fairseq.
    """

    def update(g, state, p, ctx):
        beta2 = 1 - ctx.time**decay_rate if beta is None else beta
        square = g.square() + eps
        if g.ndim < 2:
            v = running_mean(state["exp_avg_sq"], square, beta2)
            yield g / v.sqrt(), {"exp_avg_sq": v}
            return
        sums = yield OfLeaf(rows=square.sum(dim=-1), columns=square.sum(dim=-2))
        old = state["exp_avg_sq_row"], state["exp_avg_sq_col"]
        rows, columns = averaged_means(*old, sums, g, beta2)
        new_state = {"exp_avg_sq_row": rows, "exp_avg_sq_col": columns}
        yield over_root(g, rows, columns), new_state

    slots = {
        "exp_avg_sq": square(vector_slot),
        "exp_avg_sq_row": means_over(-1),
        "exp_avg_sq_col": means_over(-2),
    }
    return slots, update


def averaged_means(
    rows: Tensor, columns: Tensor, sums, x: Tensor, beta
) -> tuple[Tensor, Tensor]:
    """Average the mean squares of rows and columns over time."""
    of_rows = sums["rows"] / max(x.shape[-1], 1)
    of_columns = sums["columns"] / max(x.shape[-2], 1)
    return running_mean(rows, of_rows, beta), running_mean(columns, of_columns, beta)


def over_root(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Divide by the root of the outer product of rows and columns, over the mean of the rows."""
    # Two roots, because the product of two eps underflows to 0 in float32.
    share = (rows / mean(rows, -1, keepdim=True)).sqrt()
    return x / share.unsqueeze(-1) / columns.sqrt().unsqueeze(-2)
