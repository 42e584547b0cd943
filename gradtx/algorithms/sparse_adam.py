"""SparseAdam, equivalent to torch.optim.SparseAdam: Adam on the rows of a table that have a gradient."""

from __future__ import annotations

from gradtx.algorithms.adam import scale_by_adam_hat
from gradtx.links.scaling import scale_by_learning_rate
from gradtx.rules import alias
from gradtx.transform import chain

__all__ = ["sparse_adam"]


@alias
def sparse_adam(lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
    r"""SparseAdam, equivalent to torch.optim.SparseAdam: Adam on the rows of a table that have a gradient.

    For each row that a sparse gradient lists, $p \leftarrow p - \eta \frac{\sqrt{1-\beta_2^t}}{1-\beta_1^t}
    \frac{m_t}{\sqrt{v_t} + \epsilon}$ with the averages $m$ of $g$ and $v$ of $g^2$. Weights and averages of other rows
    stand still, and $t$ counts the steps of the table.

    When to use: embeddings with `sparse=True`, of which a batch needs few rows. With weight decay, or for gradients
    that are dense but 0 in most rows, use `lazy_rows(adamw(...))`.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step.
        betas: Decay rates of the two averages, each in [0, 1).
        eps: $\epsilon \ge 0$, added before the correction of the root, in units of the gradient.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`.

    Example:
        >>> tx = gradtx.sparse_adam(lr=0.1)
        >>> params = {"table": torch.zeros(1000, 2)}
        >>> rows, values = torch.tensor([[7]]), torch.ones(1, 2)
        >>> grad = torch.sparse_coo_tensor(rows, values, (1000, 2), check_invariants=True)
        >>> updates, _ = tx.update({"table": grad}, tx.init(params), params)
        >>> gradtx.apply_updates(params, updates)["table"][6:9]
        tensor([[ 0.0000,  0.0000],
                [-0.1000, -0.1000],
                [ 0.0000,  0.0000]])

    Source: Kingma and Ba 2014, arXiv:1412.6980, the form at the end of section 2. Departures: none from
    torch.optim.SparseAdam for sparse gradients; it refuses dense ones, here a step of all rows.
    """
    direction = scale_by_adam_hat(betas, eps)
    return chain(direction, scale_by_learning_rate(lr))
