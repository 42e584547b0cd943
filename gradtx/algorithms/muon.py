"""Muon, equivalent to torch.optim.Muon: the orthogonalized momentum of matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from gradtx.arguments import Decay, is_off
from gradtx.combinators.selection import partition
from gradtx.links.decay import add_decayed_weights
from gradtx.links.momentum import trace, trace_ema
from gradtx.links.orthogonal import Adjustment, View, orthogonalize, scale_by_shape
from gradtx.links.scaling import scale_by_learning_rate
from gradtx.maths.polynomials import NEWTON_SCHULZ, Coefficients, Steps
from gradtx.rules import alias
from gradtx.transform import GradientTransformation, chain, check_transformation

__all__ = ["muon"]


# Module-level functions, not created at each call: a group identifies its branch by its selector.
def is_matrix(name: str, tensor) -> bool:
    return tensor.ndim == 2


def has_a_matrix(name: str, tensor) -> bool:
    return tensor.ndim >= 2


def with_fallback(
    name: str,
    matrices: GradientTransformation,
    fallback: GradientTransformation | None,
    takes: Callable[[str, Any], bool] = is_matrix,
) -> GradientTransformation:
    """Use one transformation for matrices and, if there is a fallback, that one for all other leaves."""
    if fallback is None:
        return matrices
    check_transformation(name, "fallback", fallback)
    return by_matrix(matrices, fallback, takes, (name, "fallback"))


def by_matrix(
    matrix: GradientTransformation,
    rest: GradientTransformation,
    takes: Callable[[str, Any], bool] = is_matrix,
    labels: tuple[str, str] = ("matrix", "rest"),
) -> GradientTransformation:
    """Use one transformation for matrices, and another one for the rest."""
    first, second = labels
    return partition({first: matrix, second: rest}, {first: takes, second: "*"})


def muon_like(
    name: str,
    adjust_lr_fn: Adjustment | None,
    lr,
    weight_decay,
    fallback: GradientTransformation | None,
    *direction: GradientTransformation,
    view: View = "matrix",
) -> GradientTransformation:
    """Complete a direction for matrices with Muon's scale, decay and rate, and add the fallback for other leaves."""
    matrices = chain(
        *direction,
        scale_by_shape(adjust_lr_fn, view=view),
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(lr),
    )
    takes = is_matrix if view == "matrix" else has_a_matrix
    return with_fallback(name, matrices, fallback, takes)


def summed_momentum(momentum, nesterov: bool) -> GradientTransformation:
    """Return a sum of gradients with decaying weights; with a literal momentum of 0, the gradient itself."""
    return trace(momentum, nesterov=nesterov and not is_off(momentum))


@alias
def muon(
    lr=1e-3,
    weight_decay=0.1,
    momentum: Decay = 0.95,
    nesterov=True,
    ns_coefficients: Coefficients = NEWTON_SCHULZ,
    eps=1e-7,
    ns_steps: Steps | None = None,
    adjust_lr_fn: Adjustment | None = None,
    ns_dtype: torch.dtype | None = torch.bfloat16,
    flatten=False,
    fallback: GradientTransformation | None = None,
    view: View = "matrix",
):
    r"""Muon, equivalent to torch.optim.Muon: the orthogonalized momentum of matrices.

    $B \leftarrow \mu B + (1-\mu) g$, $U = B$ or $\mu B + (1-\mu) g$ with `nesterov`, $X$ = `orthogonalize`$(U)$,
    $p \leftarrow p (1 - \eta \lambda) - \eta r X$ with $r$ of `scale_by_shape`.

    When to use: the hidden matrices of transformers. For a whole model call `muon_for`, which assigns embeddings, the
    head, norms and biases to AdamW; `fallback` takes only leaves that are not matrices, and embeddings and the head are
    matrices.

    Args:
        lr: $\eta$ in [0, inf).
        weight_decay: $\lambda \ge 0$, decoupled; multiplied by $\eta$ but not by $r$.
        momentum: $\mu$ in [0, 1).
        nesterov: Use Nesterov momentum.
        ns_coefficients: $(a, b, c)$ of the iteration as plain numbers, a tuple of such triples, or the name of a set,
            as in `orthogonalize`.
        eps: Lower bound of the norm in the denominator, >= 0.
        ns_steps: Number of iterations, in [0, 100); None for 5, or for the number of a named set.
        adjust_lr_fn: Name of the factor $r$ (see `scale_by_shape`): None or "original" is
            $\sqrt{\max(1, \mathrm{rows}/\mathrm{columns})}$, "match_rms_adamw" is
            $0.2 \sqrt{\max(\mathrm{rows}, \mathrm{columns})}$.
        ns_dtype: Dtype of the iteration; None for the dtype of the leaf. bfloat16 is accurate to about 1e-2, and for
            nearly rank-one gradients to no digit: updates inside `torch.compile` then differ by as much as a step. To
            differentiate through training, use None: a gradient computed in bfloat16 can have the wrong sign.
        flatten: Equivalent to `view="flatten"`.
        fallback: A complete transformation, such as `adamw(...)`, for all leaves that are not matrices. Embeddings and
            heads are matrices: assign them elsewhere with `muon_for` or `partition`.
        view: As in `orthogonalize`: "flatten" and "batch" also accept leaves with three or more dimensions.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer`; with a fallback, that and
        the fallback's entries, under `partition`. An optimizer puts the leaves of the fallback into a group whose `lr`
        and other hyperparameters are the fallback's: a scheduler drives both rates, each from its own initial value. In
        groups that you pass, `lr` is Muon's and `adamw.lr` the fallback's; without `adamw.lr`, `lr` multiplies both
        rates by the same factor, and `weight_decay` is that of both, unless the fallback has none.

    Raises:
        ValueError: If `flatten` is combined with another `view`, or if a leaf is not a matrix and there is no
            `fallback`.

    Example:
        >>> tx = gradtx.muon(lr=1.0, weight_decay=0.0, fallback=gradtx.sgd(lr=0.1))
        >>> params = {"w": torch.zeros(1, 2), "b": torch.zeros(1)}
        >>> updates, _ = tx.update(
        ...     {"w": torch.tensor([[3e-4, 4e-4]]), "b": torch.ones(1)}, tx.init(params), params
        ... )
        >>> updates["b"]
        tensor([-0.1000])

    Source: Jordan et al. 2024, Muon; Liu et al. 2025, arXiv:2502.16982. Departures: none from torch.optim.Muon;
    named sets, `ns_dtype`, `flatten`, `fallback` and `view` are added.
    """
    if flatten and view != "matrix":
        raise ValueError(
            f"muon: flatten=True is equivalent to view='flatten', but view={view!r} was also given; omit flatten"
        )
    view = "flatten" if flatten else view
    return muon_like(
        "muon",
        adjust_lr_fn,
        lr,
        weight_decay,
        fallback,
        trace_ema(momentum, nesterov),
        orthogonalize(ns_coefficients, ns_steps, eps, ns_dtype, view),
        view=view,
    )
