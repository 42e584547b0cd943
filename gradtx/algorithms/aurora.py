"""Aurora: Muon whose update of a matrix that is not square also has rows, or columns, of equal norms."""

from __future__ import annotations

import torch

from gradtx.algorithms.muon import muon_like
from gradtx.arguments import Decay, NonNegative, NonNegativeInt
from gradtx.links.momentum import trace_ema
from gradtx.links.orthogonal import Adjustment, orthogonalize
from gradtx.maths.polynomials import Coefficients, Steps
from gradtx.rules import alias
from gradtx.transform import GradientTransformation

__all__ = ["aurora"]


@alias
def aurora(
    lr=0.05,
    momentum: Decay = 0.95,
    nesterov=True,
    weight_decay=0.025,
    balance: NonNegativeInt = 2,
    balance_power: NonNegative = 0.5,
    ns_coefficients: Coefficients = "newton_schulz",
    ns_steps: Steps | None = 12,
    adjust_lr_fn: Adjustment | None = "original",
    ns_dtype: torch.dtype | None = None,
    fallback: GradientTransformation | None = None,
):
    r"""Aurora: Muon whose update of a matrix that is not square also has rows, or columns, of equal norms.

    $d = O(\mathrm{diag}(D)\, u)$ for the momentum $u$, with $O$ and $D$ of `orthogonalize` (`balance`);
    $p \leftarrow p (1 - \eta \lambda) - \eta r d$ with $r$ of `scale_by_shape`.

    When to use: like `muon`, for MLPs, where neurons whose gradients are small would otherwise receive small updates.

    Args:
        lr: $\eta$ in [0, inf).
        momentum: Decay rate of the gradient average, in [0, 1).
        nesterov: Use Nesterov momentum.
        weight_decay: $\lambda \ge 0$, decoupled; multiplied by $\eta$ but not by $r$.
        balance: Number of iterations for $D$, >= 0; 0 is Muon, and 1 only normalizes the rows of $u$.
        balance_power: $b \ge 0$, of the changes of $D$.
        ns_coefficients: Coefficients of the iteration, as in `orthogonalize`; it must nearly converge.
        ns_steps: Number of iterations, in [0, 100); None for 5, or for the number that belongs to a named set.
        adjust_lr_fn: Name of the factor $r$; see `scale_by_shape`.
        ns_dtype: Dtype of the iteration; None for the dtype of the leaf.
        fallback: A complete transformation, such as `adamw(...)`, for all leaves that are not matrices.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer`; with a fallback, that and
        the fallback's entries, under `partition`.

    Raises:
        ValueError: If a leaf is not a matrix and there is no `fallback`.

    Example:
        >>> tx = gradtx.aurora(lr=1.0, adjust_lr_fn="none", balance=20)
        >>> params = {"w": torch.zeros(3, 1)}
        >>> grads = {"w": torch.tensor([[9.0], [-1.0], [1.0]])}
        >>> updates, _ = tx.update(grads, tx.init(params), params)
        >>> updates["w"].T
        tensor([[-0.5774,  0.5774, -0.5774]])

    Source: tilde-research/aurora-release; records 17, 30 and 38 of track 3 of modded-nanogpt. Departures: their
    iteration runs in bfloat16 and adds 1e-7 to the norm; their Riemannian version is not offered.
    """
    direction = orthogonalize(
        ns_coefficients,
        ns_steps,
        dtype=ns_dtype,
        balance=balance,
        balance_power=balance_power,
    )
    return muon_like(
        "aurora",
        adjust_lr_fn,
        lr,
        weight_decay,
        fallback,
        trace_ema(momentum, nesterov),
        direction,
    )
