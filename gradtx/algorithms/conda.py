"""Conda: Adam along the singular vectors of the momentum, on the shorter side of a matrix."""

from __future__ import annotations

from gradtx.algorithms.adam import scale_by_adam_hat
from gradtx.algorithms.muon import by_matrix
from gradtx.algorithms.soap import decayed
from gradtx.arguments import Count, NonNegative, Static
from gradtx.combinators.coordinates import rotated
from gradtx.links.momentum import trace_ema
from gradtx.links.scaling import scale as scaled
from gradtx.links.scaling import scale_by_gradient_rms
from gradtx.rules import alias
from gradtx.transform import chain

__all__ = ["conda"]


@alias
def conda(
    lr=1e-3,
    betas=(0.9, 0.999),
    weight_decay=0.0,
    eps=1e-8,
    update_proj_gap: Count = 2000,
    scale: NonNegative = 1.0,
    *,
    stagger: Static[bool] = False,
):
    r"""Conda: Adam along the singular vectors of the momentum, on the shorter side of a matrix.

    $m \leftarrow \beta_1 m + (1-\beta_1) g$; $Q$: the singular vectors of $m$;
    $v \leftarrow \beta_2 v + (1-\beta_2) (g Q)^2$; $p \leftarrow (p - \eta\, c\, \frac{\sqrt{1-\beta_2^t}}{1-\beta_1^t}
    \frac{m Q}{\sqrt v + \epsilon} Q^\top) (1-\eta\lambda)$; a matrix with fewer rows than columns is projected from the
    other side. Other leaves use Adam.

    When to use: transformers, with Adam's state plus one rarely computed basis per matrix.

    Args:
        lr: $\eta$ in [0, inf).
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        weight_decay: $\lambda \ge 0$, applied to the weights after the step.
        eps: $\epsilon \ge 0$.
        update_proj_gap: $Q$ is computed at the first step and at every step that is a multiple of this, >= 1.
        scale: $c \ge 0$, for matrices.
        stagger: Update the bases of each leaf at a separate step within the period, derived from the name of the leaf,
            so that only the first step updates the bases of all leaves.

    Returns:
        A transformation whose updates are added to the parameters. State of matrices: `momentum_buffer`, `exp_avg_sq`
        (in the basis), `Q_0`; of other leaves: `exp_avg`, `exp_avg_sq`; all under `partition`.

    Example:
        >>> tx = gradtx.conda(lr=0.1)
        >>> params = {"w": torch.zeros(2, 2)}
        >>> grads = {"w": torch.tensor([[3.0, 0.0], [4.0, 0.0]])}
        >>> tx.update(grads, tx.init(params), params)[0]["w"]  # m Q has one nonzero column
        tensor([[-0.1000,  0.0000],
                [-0.1000,  0.0000]])

    Source: Wang et al. 2025, arXiv:2509.24218. Departures: none.
    """
    along = rotated(
        scale_by_gradient_rms(betas, eps),
        sides="short",
        max_precondition_dim=2**62,  # larger than any dimension
        start="identity",
        refresh="svd",
        precondition_frequency=update_proj_gap,
        offset=0,
        stagger=stagger,
    )
    matrices = chain(trace_ema(betas[0]), along, scaled(scale))
    direction = by_matrix(matrices, scale_by_adam_hat(betas, eps))
    return decayed(direction, lr, weight_decay)
