"""Matrix methods: Muon and its combinations with Adam-atan2, Shampoo, SOAP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import torch

from gradtx.arguments import (
    Count,
    Decay,
    Decays,
    Fraction,
    NonNegative,
    NonNegativeInt,
    Positive,
    Static,
)
from gradtx.combinators.selection import partition
from gradtx.optimizers.adam import adam_atan2, split_decay
from gradtx.rules import alias
from gradtx.transform import GradientTransformation, chain, check_transformation
from gradtx.transforms._polynomials import NEWTON_SCHULZ, POLAR_EXPRESS, Coefficients
from gradtx.transforms.adam import scale_by_caution
from gradtx.transforms.momentum import trace_ema
from gradtx.transforms.muon import (
    normalize_neurons,
    orthogonalize,
    scale_by_shape,
)
from gradtx.transforms.projection import decay_after_step
from gradtx.transforms.scaling import hold_until, scale_by_learning_rate
from gradtx.transforms.shampoo import (
    scale_by_scalable_shampoo,
    scale_by_shampoo,
    scale_by_soap,
)
from gradtx.transforms.weight_decay import add_decayed_weights

__all__ = [
    "muon",
    "muon_adam_atan2",
    "polar_adam_atan2",
    "scalable_shampoo",
    "shampoo",
    "soap",
]


@alias
def muon(
    lr: NonNegative = 1e-3,
    weight_decay: NonNegative = 0.1,
    momentum: Decay = 0.95,
    nesterov: bool = True,
    ns_coefficients: Coefficients = NEWTON_SCHULZ,
    eps: NonNegative = 1e-7,
    ns_steps: Annotated[int, "[0, 100)"] | None = None,
    adjust_lr_fn: str | None = None,
    ns_dtype: torch.dtype | None = torch.bfloat16,
    flatten: bool = False,
    fallback: GradientTransformation | None = None,
    view: str = "matrix",
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
            nearly rank-one gradients to no digit: eager and compiled steps then differ by as much as a step. To
            differentiate through training, use None: a gradient computed in bfloat16 can have the wrong sign.
        flatten: Equivalent to `view="flatten"`.
        fallback: A complete transformation, such as `adamw(...)`, for all leaves that are not matrices. Embeddings and
            heads are matrices: assign them elsewhere with `muon_for` or `partition`.
        view: As in `orthogonalize`: "flatten" and "batch" also accept leaves with three or more dimensions.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer`; with a fallback, that and
        the fallback's entries, under `partition`. An optimizer puts the leaves of the fallback into a group whose `lr`
        and other hyperparameters are the fallback's: a scheduler drives both rates, each from its own initial value. In
        groups that you pass, `lr` is Muon's and `adamw.lr` the fallback's.

    Raises:
        TypeError: If `fallback` is not a transformation.
        ValueError: If a hyperparameter is out of range, if `flatten` is combined with another `view`, if `params` is
            missing, or if a leaf is not a matrix and there is no `fallback`.

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


def muon_like(
    name: str,
    adjust_lr_fn: str | None,
    lr: Any,
    weight_decay: Any,
    fallback: GradientTransformation | None,
    *direction: GradientTransformation,
    view: str = "matrix",
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


# Module-level functions, not created at each call: a group identifies its branch by its selector.
def is_matrix(name: str, tensor: Any) -> bool:
    return tensor.ndim == 2


def has_a_matrix(name: str, tensor: Any) -> bool:
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
    return partition(
        {name: matrices, "fallback": fallback}, {name: takes, "fallback": "*"}
    )


def _with_decay(matrix, rate, weight_decay, decoupled_wd, cautious_factor):
    """Complete a direction for matrices with caution, decay and rate."""
    return chain(
        matrix,
        scale_by_caution(cautious_factor),
        add_decayed_weights(weight_decay, relative_to=rate if decoupled_wd else None),
        scale_by_learning_rate(rate),
    )


def _atan2(lr, betas, a, b, weight_decay, decoupled_wd, cautious_factor):
    """Return Adam-atan2 for the other leaves."""
    return adam_atan2(
        lr,
        betas,
        weight_decay,
        decoupled_wd=decoupled_wd,
        cautious_factor=cautious_factor,
        a=a,
        b=b,
    )


def by_matrix(
    matrix: GradientTransformation,
    rest: GradientTransformation,
    takes: Callable[[str, Any], bool] = is_matrix,
) -> GradientTransformation:
    """Use one transformation for matrices, and another one for the rest."""
    return partition({"matrix": matrix, "rest": rest}, {"matrix": takes, "rest": "*"})


def _check_ndims(matrix_ndims: Any) -> None:
    if not (
        isinstance(matrix_ndims, tuple)
        and all(isinstance(n, int) and n >= 2 for n in matrix_ndims)
    ):
        raise ValueError(
            f"matrix_ndims must be a tuple of integers >= 2, got {matrix_ndims!r}"
        )


@alias
def muon_adam_atan2(
    lr: NonNegative = 1e-4,
    betas: Decays = (0.9, 0.99),
    muon_lr: NonNegative | None = None,
    weight_decay: NonNegative = 0.0,
    decoupled_wd: bool = False,
    cautious_factor: Fraction = 1.0,
    a: Positive = 1.27,
    b: Positive = 1.0,
    muon_beta1: Decay = 0.95,
    muon_beta2: Decay = 0.95,
    muon_steps: Annotated[int, "[0, 100)"] = 5,
    muon_rms_factor: NonNegative = 0.2,
    use_normuon: bool = False,
    normuon_eps: NonNegative = 1e-10,
    matrix_ndims: tuple[int, ...] = (2, 3),
):
    r"""Muon with Adam-atan2: Muon for matrices, Adam-atan2 for all other leaves.

    Matrices: $m \leftarrow \beta_1' m + (1-\beta_1') g$, $u$ = `orthogonalize`$(m)$, with `use_normuon`
    `normalize_neurons`$(u)$, $p \leftarrow p (1 - L \lambda) - L f \sqrt{\max(\mathrm{rows}, \mathrm{columns})}\, u$.

    When to use: Muon for a whole model, with a rule without eps for the other leaves.

    Args:
        lr: Learning rate of the other leaves, in [0, inf).
        betas: Decay rates of their two averages, each in [0, 1).
        muon_lr: $L$, the learning rate of matrices; None for `lr`.
        weight_decay: $\lambda \ge 0$, decoupled, for both.
        decoupled_wd: Divide $\lambda$ by the initial learning rate.
        cautious_factor: Factor in [0, 1] for entries whose update opposes the gradient; 1.0 disables it.
        a: Scale of Adam-atan2's update, > 0.
        b: Scale of its denominator, > 0.
        muon_beta1: $\beta_1'$ in [0, 1).
        muon_beta2: Decay rate of the rows' mean squares, in [0, 1).
        muon_steps: Number of iterations, in [0, 100).
        muon_rms_factor: $f \ge 0$, the root mean square of matrix updates.
        use_normuon: Normalize the rows of updates to equal size over time.
        normuon_eps: $\epsilon \ge 0$ of that normalization.
        matrix_ndims: Values of `ndim` for which a leaf is treated as a matrix, or as a batch of matrices in its last
            two dimensions.

    Returns:
        A transformation whose updates are added to the parameters. State, under `partition`: `momentum_buffer`, with
        `use_normuon` also `exp_avg_sq` (one entry per row), and Adam-atan2's; with `decoupled_wd`, `initial_lr`.

    Raises:
        ValueError: If a hyperparameter is out of range, if `params` is missing and `weight_decay` is not 0.0, or if
            `decoupled_wd` is set and the initial rate is 0.

    Example:
        >>> tx = gradtx.muon_adam_atan2(lr=0.1, a=4 / torch.pi)
        >>> params = {"w": torch.zeros(2, 2), "b": torch.zeros(1)}
        >>> state = tx.init(params)["partition"]
        >>> [sorted(k for k in state[label] if k != "members") for label in ("matrix", "rest")]
        [['trace_ema'], ['scale_by_atan2']]

    Source: adam-atan2-pytorch 0.4.1, after Jordan et al. 2024 (Muon), Liu et al. 2025, arXiv:2502.16982, and Li et al.
    2025, arXiv:2510.05491. Departures: the iteration runs in the leaf's dtype; no regenerative regularization.
    """
    _check_ndims(matrix_ndims)
    matrix = chain(
        trace_ema(muon_beta1),
        orthogonalize(NEWTON_SCHULZ, muon_steps, view="batch"),
        normalize_neurons(muon_beta2, normuon_eps) if use_normuon else chain(),
        scale_by_shape("match_rms_adamw", muon_rms_factor, "batch"),
    )
    decay = (weight_decay, decoupled_wd, cautious_factor)
    rest = _atan2(lr, betas, a, b, *decay)
    branch = _with_decay(matrix, lr if muon_lr is None else muon_lr, *decay)
    return by_matrix(branch, rest, lambda _, tensor: tensor.ndim in matrix_ndims)


@alias
def polar_adam_atan2(
    lr: NonNegative = 1e-4,
    betas: Decays = (0.9, 0.99),
    polar_lr: NonNegative | None = None,
    weight_decay: NonNegative = 0.0,
    decoupled_wd: bool = False,
    cautious_factor: Fraction = 1.0,
    a: Positive = 1.27,
    b: Positive = 1.0,
    polar_beta1: Decay = 0.95,
    polar_steps: Annotated[int, "[0, 100)"] = 5,
    polar_rms_factor: NonNegative = 0.2,
    matrix_ndims: tuple[int, ...] = (2, 3),
):
    r"""Polar Express with Adam-atan2: orthogonalized momentum for matrices, Adam-atan2 for all other leaves.

    Like `muon_adam_atan2`, with a different polynomial at every step of the iteration, which brings singular values to
    1 itself rather than close to it.

    When to use: like `muon_adam_atan2`, if the iteration should come closer to an orthogonal matrix with the same
    number of products.

    Args:
        lr: Learning rate of the other leaves, in [0, inf).
        betas: Decay rates of their two averages, each in [0, 1).
        polar_lr: Learning rate of matrices; None for `lr`.
        weight_decay: $\lambda \ge 0$, decoupled, for both.
        decoupled_wd: Divide $\lambda$ by the initial learning rate.
        cautious_factor: Factor in [0, 1] for entries whose update opposes the gradient; 1.0 disables it.
        a: Scale of Adam-atan2's update, > 0.
        b: Scale of its denominator, > 0.
        polar_beta1: Decay rate of the momentum of matrices, in [0, 1).
        polar_steps: Number of iterations, in [0, 100); after the seventh the polynomial stays the same.
        polar_rms_factor: Root mean square of matrix updates, >= 0.
        matrix_ndims: Values of `ndim` for which a leaf is treated as a matrix, or as a batch of matrices in its last
            two dimensions.

    Returns:
        A transformation whose updates are added to the parameters. State, under `partition`: `momentum_buffer`, and
        Adam-atan2's; with `decoupled_wd`, `initial_lr`.

    Raises:
        ValueError: If a hyperparameter is out of range, if `params` is missing and `weight_decay` is not 0.0, or if
            `decoupled_wd` is set and the initial rate is 0.

    Example:
        >>> tx = gradtx.polar_adam_atan2(lr=0.1, polar_rms_factor=0.5**0.5, polar_steps=9)
        >>> params = {"w": torch.zeros(2, 2)}
        >>> updates, _ = tx.update(
        ...     {"w": torch.tensor([[2.0, 0.0], [0.0, 1e-3]])}, tx.init(params), params
        ... )
        >>> updates["w"]
        tensor([[-0.1000, -0.0000],
                [-0.0000, -0.1000]])

    Source: adam-atan2-pytorch 0.4.1, after Amsel et al. 2025, arXiv:2505.16932. Departures: the iteration runs in the
    leaf's dtype; no regenerative regularization.
    """
    _check_ndims(matrix_ndims)
    matrix = chain(
        trace_ema(polar_beta1),
        orthogonalize(POLAR_EXPRESS, polar_steps, view="batch"),
        scale_by_shape("match_rms_adamw", polar_rms_factor, "batch"),
    )
    decay = (weight_decay, decoupled_wd, cautious_factor)
    rest = _atan2(lr, betas, a, b, *decay)
    branch = _with_decay(matrix, lr if polar_lr is None else polar_lr, *decay)
    return by_matrix(branch, rest, lambda _, tensor: tensor.ndim in matrix_ndims)


@alias
def shampoo(
    lr: NonNegative = 1e-1,
    momentum: Decay = 0.0,
    weight_decay: NonNegative = 0.0,
    decoupled_weight_decay: bool = False,
    matrix_eps: Positive = 1e-4,
    preconditioning_compute_steps: Count = 1,
    variant: str = "paper",
    *,
    stagger: Static[bool] = False,
):
    r"""Shampoo: a full-matrix preconditioner for every dimension of a leaf.

    $p \leftarrow p - \eta\, u \times_1 H_1^{-e} \cdots \times_k H_k^{-e}$; see `scale_by_shampoo`.

    When to use: small and medium-sized layers, where a full preconditioner for every dimension is affordable.

    Args:
        lr: $\eta$ in [0, inf).
        momentum: $\mu$ in [0, 1), the share of the previous direction.
        weight_decay: $\lambda \ge 0$.
        decoupled_weight_decay: Apply the decay to the weights instead of the gradient.
        matrix_eps: $\epsilon > 0$: $H_i$ starts at $\epsilon I$.
        preconditioning_compute_steps: Number of steps between computations of the roots, >= 1.
        variant: "paper" ($e = 1/(2k)$, statistics of the gradient), or "moskomule" ($e = 1/k$, statistics of the
            gradient as preconditioned along the preceding dimensions).
        stagger: Compute the roots of each leaf at the first step, and then at a separate step within the period,
            derived from the name of the leaf, so that no later step computes the roots of all leaves.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer`, and `pre_cond_i` and
        `inv_pre_cond_i`, n x n, for every dimension i of size n.

    Raises:
        ValueError: If a hyperparameter is out of range, if `variant` is unknown, or if `params` is missing.

    Example:
        >>> tx = gradtx.shampoo(lr=1.0, matrix_eps=1e-3)
        >>> params = {"w": torch.zeros(3)}
        >>> # of norm 1
        >>> tx.update({"w": torch.tensor([30.0, 0.0, -40.0])}, tx.init(params), params)[0]["w"]
        tensor([-0.6000, -0.0000,  0.8000])

    Source: Gupta et al. 2018, arXiv:1802.09568; momentum and "moskomule": moskomule/shampoo.pytorch. Departures: none.
    """
    coupled, decoupled = split_decay(weight_decay, decoupled_weight_decay)
    return chain(
        scale_by_shampoo(
            momentum,
            coupled,
            matrix_eps,
            preconditioning_compute_steps,
            variant,
            stagger=stagger,
        ),
        add_decayed_weights(decoupled),
        scale_by_learning_rate(lr),
    )


@alias
def scalable_shampoo(
    lr: NonNegative = 1e-3,
    betas: tuple[Fraction, Fraction] = (0.9, 0.999),
    moving_average_for_momentum: bool = False,
    weight_decay: NonNegative = 0.0,
    decoupled_weight_decay: bool = False,
    inverse_exponent_override: NonNegativeInt = 0,
    start_preconditioning_step: NonNegativeInt = 25,
    preconditioning_compute_steps: Count = 1000,
    statistics_compute_steps: Count = 1,
    block_size: Count = 512,
    skip_preconditioning_rank_lt: NonNegativeInt = 1,
    no_preconditioning_for_layers_with_dim_gt: NonNegativeInt = 8192,
    shape_interpretation: bool = True,
    graft_type: str = "sgd",
    pre_conditioner_type: str = "all",
    nesterov: bool = True,
    diagonal_eps: NonNegative = 1e-10,
    matrix_eps: Positive = 1e-6,
):
    r"""Scalable Shampoo: blocks, averaged statistics, rare roots, and step lengths grafted from a simpler method.

    $p \leftarrow p - \eta\, d$ with the direction $d$ of `scale_by_scalable_shampoo`.

    When to use: large models and batches, where second-order steps pay off and roots may be computed rarely and in
    blocks.

    Args:
        lr: $\eta$ in [0, inf).
        betas: Decay rates of the momenta and of the statistics, each in [0, 1]; with a second one of 1, statistics are
            summed.
        moving_average_for_momentum: Multiply the input of the momenta by $1 - \beta_1$ instead of 1.
        weight_decay: $\lambda \ge 0$.
        decoupled_weight_decay: Apply the decay to the weights; if False, it is added before the momenta.
        inverse_exponent_override: $e > 0$ of the roots $-1/e$; 0 for twice the number of preconditioned dimensions.
        start_preconditioning_step: The first step with a preconditioned direction, >= 0.
        preconditioning_compute_steps: Roots are computed at steps $t$ that are multiples of this, >= 1.
        statistics_compute_steps: Statistics are updated at steps $t$ that are multiples of this, >= 1.
        block_size: Largest side of a block, >= 1.
        skip_preconditioning_rank_lt: Leaves with fewer dimensions than this (>= 0) are not preconditioned.
        no_preconditioning_for_layers_with_dim_gt: Leaves with a dimension larger than this (>= 0) are not
            preconditioned either.
        shape_interpretation: Whether to merge adjacent dimensions.
        graft_type: Method that determines the step length: "sgd", "adagrad", "rmsprop", "sqrtn", or "none".
        pre_conditioner_type: Preconditioned dimensions: "all", "input" or "output".
        nesterov: Use Nesterov momentum.
        diagonal_eps: $\ge 0$, the eps of the grafted method.
        matrix_eps: > 0, relative to the largest eigenvalue.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum`, `graft_momentum`,
        [`graft_statistics`], `statistics_i`, `preconditioners_i`.

    Raises:
        ValueError: If a hyperparameter is out of range, if `graft_type` or `pre_conditioner_type` is unknown, or if
            `params` is missing.

    Example:
        >>> tx = gradtx.scalable_shampoo(lr=1.0, betas=(0.0, 0.9))
        >>> params = {"w": torch.zeros(2)}
        >>> # a vector uses SGD
        >>> tx.update({"w": torch.tensor([3.0, 4.0])}, tx.init(params), params)[0]["w"]
        tensor([-3., -4.])

    Source: Anil et al. 2020, arXiv:2002.09018. Departures: exact roots from eigenvalues, where the authors iterate.
    """
    coupled, decoupled = split_decay(weight_decay, decoupled_weight_decay)
    return chain(
        scale_by_scalable_shampoo(
            betas,
            moving_average_for_momentum=moving_average_for_momentum,
            weight_decay=coupled,
            inverse_exponent_override=inverse_exponent_override,
            start_preconditioning_step=start_preconditioning_step,
            preconditioning_compute_steps=preconditioning_compute_steps,
            statistics_compute_steps=statistics_compute_steps,
            block_size=block_size,
            skip_preconditioning_rank_lt=skip_preconditioning_rank_lt,
            no_preconditioning_for_layers_with_dim_gt=no_preconditioning_for_layers_with_dim_gt,
            shape_interpretation=shape_interpretation,
            graft_type=graft_type,
            pre_conditioner_type=pre_conditioner_type,
            nesterov=nesterov,
            diagonal_eps=diagonal_eps,
            matrix_eps=matrix_eps,
        ),
        add_decayed_weights(decoupled),
        scale_by_learning_rate(lr),
    )


@alias(class_name="SOAP")
def soap(
    lr: NonNegative = 3e-3,
    betas: Decays = (0.95, 0.95),
    shampoo_beta: Decay | None = None,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.01,
    precondition_frequency: Count = 10,
    max_precondition_dim: Count = 10000,
    merge_dims: bool = False,
    precondition_1d: bool = False,
    normalize_gradient: bool = False,
    correct_bias: bool = True,
    *,
    stagger: Static[bool] = False,
):
    r"""SOAP: Adam in the eigenbasis of Shampoo's statistics.

    $p \leftarrow (p - \eta\, d)(1 - \eta \lambda)$ with the direction $d$ of `scale_by_soap`; the first step only
    initializes the bases.

    When to use: fewest steps at moderate batch sizes, mainly for transformers, with memory for two bases per matrix.

    Args:
        lr: $\eta$ in [0, inf).
        betas: $(\beta_1, \beta_2)$ of Adam's averages, each in [0, 1).
        shampoo_beta: Decay rate of the statistics, in [0, 1); None for $\beta_2$.
        eps: $\epsilon \ge 0$.
        weight_decay: $\lambda \ge 0$, applied to the weights after the step.
        precondition_frequency: Number of steps between updates of the bases, >= 1.
        max_precondition_dim: Dimensions larger than this (>= 1) are not rotated.
        merge_dims: Merge adjacent dimensions as long as their product does not exceed `max_precondition_dim`.
        precondition_1d: Also rotate one-dimensional leaves.
        normalize_gradient: Divide the direction by its root mean square.
        correct_bias: Whether to correct the bias of Adam's averages.
        stagger: Update the bases of each leaf at a separate step within the period, derived from the name of the leaf,
            so that only the first step updates the bases of all leaves.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq` (in the rotated
        basis), `GG_i` and `Q_i` for every rotated dimension.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing.

    Example:
        >>> tx = gradtx.soap(lr=0.1, weight_decay=0.5)
        >>> params = {"w": torch.ones(2, 2)}
        >>> # nothing moves in the first step
        >>> tx.update({"w": torch.eye(2)}, tx.init(params), params)[0]["w"]
        tensor([[0., 0.],
                [0., 0.]])

    Source: Vyas et al. 2024, arXiv:2409.11321. Departures: none from the authors' code, except that its casts to
    float32 are omitted.
    """
    direction = scale_by_soap(
        betas,
        shampoo_beta,
        eps,
        precondition_frequency=precondition_frequency,
        max_precondition_dim=max_precondition_dim,
        merge_dims=merge_dims,
        precondition_1d=precondition_1d,
        normalize_gradient=normalize_gradient,
        correct_bias=correct_bias,
        stagger=stagger,
    )
    return decayed_from_second_step(direction, lr, weight_decay)


def decayed_from_second_step(
    direction: GradientTransformation, lr: Any, weight_decay: Any
) -> GradientTransformation:
    """Chain a direction, its rate, decay after the step, and a first step that only initializes the bases."""
    return chain(
        direction,
        scale_by_learning_rate(lr),
        decay_after_step(lr, weight_decay),
        hold_until(2),  # the decay does not act in the first step either
    )
