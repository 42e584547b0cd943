"""Variants of Muon: NorMuon, AdaMuon, NAMO, Contra-Muon, hybrids with AdamAtan2."""

from __future__ import annotations

import functools
import math
from typing import Annotated, Literal

import torch

from gradtx.algorithms.adam import scale_by_caution
from gradtx.algorithms.adam_variants import adam_atan2
from gradtx.algorithms.momentum import trace_ema
from gradtx.algorithms.muon import (
    Adjustment,
    by_matrix,
    matrix_norms,
    muon_like,
    normalize_neurons,
    orthogonalize,
    scale_by_shape,
)
from gradtx.algorithms.scaling import scale_by_learning_rate
from gradtx.algorithms.sign import scale_by_sign
from gradtx.algorithms.weight_decay import add_decayed_weights
from gradtx.arguments import (
    Count,
    Decay,
    Fraction,
    FractionOffAtOne,
    NonNegative,
    NonNegativeInt,
    Positive,
    Scalar,
    Static,
)
from gradtx.base.dtensor import full_tensor, gathered
from gradtx.base.selectors import listed
from gradtx.combinators.agreement import scale_by_norm_ratio
from gradtx.maths.entries import (
    identity,
    mean,
    running_mean,
    safe_sqrt,
)
from gradtx.maths.polynomials import (
    NEWTON_SCHULZ,
    POLAR_EXPRESS,
    Coefficients,
    Steps,
)
from gradtx.rules import alias, per_tensor, whole_tree
from gradtx.slots import square
from gradtx.transform import GradientTransformation, chain

__all__ = [
    "adamuon",
    "aurora",
    "contra_muon",
    "muon_adam_atan2",
    "namo",
    "normalize_entries",
    "normuon",
    "polar_adam_atan2",
    "precondition_inputs",
]


@per_tensor(whole=True, dims=(2, math.inf))
def normalize_entries(
    beta: Decay = 0.999,
    eps=1e-8,
    correct_bias=True,
    rescale: Literal["sqrt_min", "rms"] | None = "sqrt_min",
):
    r"""Divide each entry of a matrix by its running root mean square, and set the norm of the matrix.

    $v_t = \beta v_{t-1} + (1-\beta) u^2$ from 0, $d = u / (\sqrt{v_t / (1 - \beta^t)} + \epsilon)$; returns $d$, or
    $d\, s / (\lVert d \rVert + \epsilon)$ with $s$ set by `rescale`. The last two dimensions, $r \times c$, form the
    matrix.

    Args:
        beta: $\beta$, in [0, 1).
        eps: $\epsilon \ge 0$.
        correct_bias: Whether to bias-correct the average.
        rescale: "sqrt_min" for $s = \sqrt{\min(r, c)}$, the norm of an orthogonal matrix; "rms" for
            $s = 0.2 \sqrt{r c}$; None returns $d$.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg_sq`, shaped as the parameter.

    Raises:
        ValueError: If an argument is out of range, if `rescale` is unknown, or if a leaf has fewer than two dimensions.

    Example:
        >>> tx = gradtx.normalize_entries()
        >>> params = {"w": torch.zeros(2, 2)}
        >>> # with norm sqrt(2)
        >>> tx.update({"w": torch.tensor([[3.0, -4.0], [0.1, 8.0]])}, tx.init(params))[0]["w"]
        tensor([[ 0.7071, -0.7071],
                [ 0.7071,  0.7071]])

    Source: Si et al. 2025, AdaMuon, arXiv:2507.11005, and the authors' code. Departures: none.
    """

    def update(u, state, p, ctx):
        v = running_mean(state["exp_avg_sq"], u.square(), beta)
        corrected = v / ctx.bias_correction(beta) if correct_bias else v
        d = u / (safe_sqrt(corrected) + eps)
        if rescale is not None:
            rows, columns = u.shape[-2:]
            size = (
                math.sqrt(min(rows, columns))
                if rescale == "sqrt_min"
                else 0.2 * math.sqrt(rows * columns)
            )
            d = d * (size / (matrix_norms(d) + eps))
        return d, {"exp_avg_sq": v}

    return {"exp_avg_sq": square()}, update


@whole_tree(extras={"input_gram": "tensors?"}, capturable=True)
def precondition_inputs(
    every: Count = 64,
    rate: Fraction = 0.05,
    *,
    start: Positive = 0.001,
    ridge: NonNegative = 0.2,
    blocks: Static[Count] = 1,
):
    r"""Multiply the gradient of a matrix by the inverse second moment of its layer's inputs: Newton-Muon's first link.

    Where $t$ is a multiple of `every` and the extra `input_gram` has an entry for the matrix, the mean of $x x^\top$
    over the tokens of this step: $C \leftarrow C + \eta\, (\mathrm{gram} - C)$ from $s I$, and
    $K = (C + (\rho\, \mathrm{tr}(C) / n + 10^{-8}) I)^{-1}$. At every step, $g \leftarrow g K$, with $K = I$ before the
    first entry. `trace_ema` and `orthogonalize` follow.

    Pass `input_gram`, a dict by leaf name, to `update` or `step` where it is due; `collect_input_grams` measures it. In
    a distributed run, average it over the ranks first.

    Args:
        every: Number of steps between two entries, >= 1. Only the batch of such a step counts.
        rate: $\eta$ in [0, 1].
        start: $s > 0$.
        ridge: $\rho \ge 0$.
        blocks: Number k of equal runs of columns, >= 1. If above 1, entries have the shape (k, c/k, c/k): the diagonal
            blocks for these runs, which save memory and time for wide layers. Otherwise their shape is (c, c).

    Returns:
        A transformation that keeps shapes and dtypes. State: `covariance` ($C$) and `inverse` ($K$),
        k x c/k x c/k for a matrix with c columns; leaves that are not matrices have none and pass unchanged. Select the
        matrices with `masked`, to save the state of those that never get an entry. It processes whole trees, so it
        cannot be inside combinators that divide or rotate leaves.

    Raises:
        TypeError: If `input_gram` is not a dict of tensors.
        ValueError: If an argument is out of range, if `blocks` does not divide the columns of a matrix, if an entry
            has another shape, or if there are entries, but none for a matrix with a gradient.

    Example:
        >>> tx = gradtx.precondition_inputs(every=1, rate=1.0, ridge=0.0)
        >>> grads = {"w": torch.tensor([[4.0, 1.0]])}
        >>> gram = {"w": torch.tensor([[4.0, 0.0], [0.0, 0.25]])}
        >>> tx.update(grads, tx.init(grads), input_gram=gram)[0]["w"]
        tensor([[1., 4.]])

    Source: Newton-Muon, arXiv:2604.01472, and record 15 of track 3 of modded-nanogpt. Departures: the number of blocks
    is an option, because it determines the state.
    """

    def init(params):
        covariances, inverses = {}, {}
        for name, param in params.items():
            if param.ndim != 2:
                continue
            n, rest = divmod(param.shape[1], blocks)
            if rest:
                raise ValueError(
                    f"precondition_inputs: {blocks} blocks do not divide the columns of {name!r}, {param.shape[1]}"
                )
            inverses[name] = identity(n, param).repeat(blocks, 1, 1)
            covariances[name] = start * inverses[name]
        return {"covariance": covariances, "inverse": inverses}

    def refreshed(name, C, gram):
        if gram.shape not in (C.shape, C.shape[blocks == 1 :]):
            raise ValueError(
                f"precondition_inputs: input_gram[{name!r}] has shape {tuple(gram.shape)}, needs {tuple(C.shape)}"
            )
        C = running_mean(C, gram.to(C), 1 - rate)
        size = mean(C.diagonal(dim1=-2, dim2=-1), -1)[:, None, None]
        shift = (ridge * size + 1e-8) * identity(C.shape[-1], C)
        return [C, torch.linalg.inv_ex(C + shift)[0]]

    def update(updates, state, params, ctx):
        grams = ctx.input_gram or {}
        matrices = {name: g for name, g in updates.items() if g.ndim == 2}
        if grams and matrices and grams.keys().isdisjoint(matrices):
            raise ValueError(
                f"precondition_inputs: no matrix has a name of input_gram, {listed(grams)}; "
                f"matrices: {listed(matrices)}"
            )
        new = {"covariance": {}, "inverse": {}}
        result = dict(updates)
        for name, g in matrices.items():
            old = C, K = [full_tensor(state[slot][name]) for slot in new]
            if name in grams:
                compute = functools.partial(refreshed, name, C, grams[name])
                C, K = ctx.every(every, 0, compute, lambda old=old: old)
            new["covariance"][name], new["inverse"][name] = C, K
            runs = g.unflatten(1, (blocks, -1)).movedim(1, 0)
            result[name] = (runs @ gathered(K, g)).movedim(0, 1).flatten(1)
        return result, new

    return init, update


@alias(class_name="NorMuon")
def normuon(
    lr=1e-2,
    weight_decay=0.01,
    momentum: Decay = 0.95,
    beta2: Decay = 0.95,
    nesterov=True,
    eps=1e-10,
    axis: Literal["rows", "long"] = "rows",
    rms: NonNegative | None = None,
    ns_coefficients: Coefficients = "simple",
    ns_steps: Steps | None = None,
    adjust_lr_fn: Adjustment | None = "original",
    ns_dtype: torch.dtype | None = None,
    fallback: GradientTransformation | None = None,
):
    r"""NorMuon: Muon whose rows are normalized to the same size over time.

    $o$ = `orthogonalize` of the momentum, $n$ = `normalize_neurons`$(o)$, which has the norm of $o$,
    $p \leftarrow p (1 - \eta \lambda) - \eta r n$ with $r$ of `scale_by_shape`. With `rms`, $n$ has that root mean
    square, and $r = 1$.

    When to use: like `muon`, in whose updates some rows are much larger than others, which reduces stability.

    Args:
        lr: $\eta$ in [0, inf).
        weight_decay: $\lambda \ge 0$, decoupled; multiplied by $\eta$ but not by $r$.
        momentum: Decay rate of the gradient average, in [0, 1).
        beta2: Decay rate of the rows' mean squares, in [0, 1).
        nesterov: Use Nesterov momentum.
        eps: Added to the square roots of these, >= 0.
        axis: "rows", or "long" for the longer side.
        rms: Root mean square of updates divided by `lr`, >= 0; None keeps the norm of $o$.
        ns_coefficients: Coefficients of the iteration, as in `orthogonalize`.
        ns_steps: Number of iterations, in [0, 100); None for 5, or for the number that belongs to a named set.
        adjust_lr_fn: Name of the factor $r$; see `scale_by_shape`.
        ns_dtype: Dtype of the iteration; None for the dtype of the leaf.
        fallback: A complete transformation, such as `adamw(...)`, for all leaves that are not matrices.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer`, and `exp_avg_sq`, one
        number per row or column; with a fallback, these and the fallback's entries, under `partition`.

    Raises:
        TypeError: If `fallback` is not a transformation.
        ValueError: If a hyperparameter is out of range, if `params` is missing, or if a leaf is not a matrix and there
            is no `fallback`.

    Example:
        >>> tx = gradtx.normuon(lr=1.0, weight_decay=0.0, rms=0.5)
        >>> params = {"w": torch.zeros(2, 2)}
        >>> updates, _ = tx.update(
        ...     {"w": torch.tensor([[3.0, 0.0], [0.0, 0.1]])}, tx.init(params), params
        ... )
        >>> updates["w"].norm()
        tensor(1.0000)

    Source: Li et al. 2025, arXiv:2510.05491; zichongli5/NorMuon, microsoft/dion. Departures: none; three rules have
    this name: dion's is adjust_lr_fn="spectral", nesterov=False, eps=1e-8; axis="long" is that of NVIDIA
    Emerging-Optimizers, which omits the norm; rms=0.2 is a later one.
    """
    return muon_like(
        "normuon",
        adjust_lr_fn if rms is None else "none",
        lr,
        weight_decay,
        fallback,
        trace_ema(momentum, nesterov),
        orthogonalize(ns_coefficients, ns_steps, dtype=ns_dtype),
        normalize_neurons(beta2, eps, axis, rms),
    )


@alias(class_name="AdaMuon")
def adamuon(
    lr=0.02,
    weight_decay=0.01,
    betas=(0.95, 0.999),
    nesterov=True,
    eps=1e-8,
    sign=False,
    rescale: Literal["sqrt_min", "rms"] | None = "sqrt_min",
    correct_bias=True,
    ns_coefficients: Coefficients = "simple",
    ns_steps: Steps | None = None,
    adjust_lr_fn: Adjustment | None = "match_rms_adamw",
    ns_dtype: torch.dtype | None = None,
    fallback: GradientTransformation | None = None,
):
    r"""AdaMuon: Muon with a second moment for every entry of its direction.

    $o$ = `orthogonalize` of the momentum, or of its signs; $d$ = `normalize_entries`$(o)$,
    $p \leftarrow p (1 - \eta \lambda) - \eta r d$ with $r$ of `scale_by_shape`.

    When to use: like `muon`, if its rate must be as large as AdamW's.

    Args:
        lr: $\eta$ in [0, inf).
        weight_decay: $\lambda \ge 0$, decoupled; multiplied by $\eta$ but not by $r$.
        betas: Decay rates of the momentum and of the second moment, each in [0, 1).
        nesterov: Use Nesterov momentum.
        eps: $\epsilon \ge 0$ of `normalize_entries`.
        sign: Orthogonalize the signs of the momentum.
        rescale: Norm of $d$: "sqrt_min", "rms" or None, as in `normalize_entries`.
        correct_bias: Whether to correct the bias of the second moment.
        ns_coefficients: Coefficients of the iteration, as in `orthogonalize`.
        ns_steps: Number of iterations, in [0, 100); None for 5, or for the number that belongs to a named set.
        adjust_lr_fn: Name of the factor $r$; see `scale_by_shape`.
        ns_dtype: Dtype of the iteration; None for the dtype of the leaf.
        fallback: A complete transformation, such as `adamw(...)`, for all leaves that are not matrices.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer`, `exp_avg_sq`; with a
        fallback, these and the fallback's entries, under `partition`.

    Raises:
        TypeError: If `fallback` is not a transformation.
        ValueError: If a hyperparameter is out of range, if `rescale` is unknown, if `params` is missing, or if a leaf
            is not a matrix and there is no `fallback`.

    Example:
        >>> tx = gradtx.adamuon(lr=1.0, weight_decay=0.0)
        >>> params = {"w": torch.zeros(2, 2)}
        >>> updates, _ = tx.update(
        ...     {"w": torch.tensor([[3.0, 0.1], [-0.1, 2.0]])}, tx.init(params), params
        ... )
        >>> updates["w"]
        tensor([[-0.2000, -0.2000],
                [ 0.2000, -0.2000]])

    Source: Si et al. 2025, arXiv:2507.11005; Chongjie-Si/AdaMuon. Departures: the defaults are those of the authors'
    first version. Their code of August 2025 corresponds to sign=True, rescale="rms", correct_bias=False,
    adjust_lr_fn="none", with equal betas.
    """
    beta1, beta2 = betas
    return muon_like(
        "adamuon",
        adjust_lr_fn,
        lr,
        weight_decay,
        fallback,
        trace_ema(beta1, nesterov),
        scale_by_sign() if sign else chain(),
        orthogonalize(ns_coefficients, ns_steps, dtype=ns_dtype),
        normalize_entries(beta2, eps, correct_bias, rescale),
    )


@alias(class_name="NAMO")
def namo(
    lr=3e-4,
    weight_decay=0.01,
    betas=(0.95, 0.95),
    nesterov=False,
    eps=1e-8,
    correct_bias=False,
    ns_coefficients: Coefficients = "quintic",
    ns_steps: Steps | None = None,
    adjust_lr_fn: Adjustment | None = "max_dim",
    ns_dtype: torch.dtype | None = None,
    fallback: GradientTransformation | None = None,
):
    r"""NAMO: Muon's direction with one adaptive step size for each matrix.

    $d = O(u)\, \lVert u \rVert / (\sqrt{v} + \epsilon)$ with the momentum $u$, $O$ of `orthogonalize` and $v$ of
    `scale_by_norm_ratio`, $p \leftarrow p (1 - \eta \lambda) - \eta r d$ with $r$ of `scale_by_shape`.

    When to use: like `muon`, for noisy gradients: steps shrink where gradients disagree (the paper's claim).

    Args:
        lr: $\eta$ in [0, inf).
        weight_decay: $\lambda \ge 0$, decoupled; multiplied by $\eta$ but not by $r$.
        betas: Decay rates of the momentum and of the mean square norm, each in [0, 1).
        nesterov: Use Nesterov momentum.
        eps: $\epsilon \ge 0$.
        correct_bias: Correct the bias of both norms.
        ns_coefficients: Coefficients of the iteration, as in `orthogonalize`.
        ns_steps: Number of iterations, in [0, 100); None for 5, or for the number that belongs to a named set.
        adjust_lr_fn: Name of the factor $r$; see `scale_by_shape`.
        ns_dtype: Dtype of the iteration; None for the dtype of the leaf.
        fallback: A complete transformation, such as `adamw(...)`, for all leaves that are not matrices.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer`, and `exp_avg_sq`, 0-d;
        with a fallback, these and the fallback's entries, under `partition`.

    Raises:
        TypeError: If `fallback` is not a transformation.
        ValueError: If a hyperparameter is out of range, if `params` is missing, or if a leaf is not a matrix and there
            is no `fallback`.

    Example:
        >>> tx = gradtx.namo(
        ...     lr=1.0, weight_decay=0.0, betas=(0.0, 0.75), ns_coefficients="newton_schulz"
        ... )
        >>> params = {"w": torch.zeros(1, 1)}
        >>> # 3 / sqrt(9 / 4)
        >>> tx.update({"w": torch.tensor([[3.0]])}, tx.init(params), params)[0]["w"]
        tensor([[-2.]])

    Source: NAMO, arXiv:2602.17080. Departures: none.
    """
    beta1, _ = betas
    return muon_like(
        "namo",
        adjust_lr_fn,
        lr,
        weight_decay,
        fallback,
        trace_ema(beta1, nesterov),
        scale_by_norm_ratio(
            orthogonalize(ns_coefficients, ns_steps, dtype=ns_dtype),
            betas,
            eps,
            correct_bias,
        ),
    )


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
        TypeError: If `fallback` is not a transformation.
        ValueError: If a hyperparameter is out of range, if `params` is missing, or if a leaf is not a matrix and there
            is no `fallback`.

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


@alias
def contra_muon(
    lr=0.0375,
    weight_decay=0.0,
    momentum: Decay = 0.95,
    nesterov=True,
    contra: Scalar = 0.4,
    power_steps: Count = 5,
    ns_coefficients: Coefficients = "newton_schulz",
    ns_steps: Steps | None = None,
    adjust_lr_fn: Adjustment | None = "original",
    ns_dtype: torch.dtype | None = None,
    fallback: GradientTransformation | None = None,
):
    r"""Contra-Muon: Muon's direction minus a share of the momentum, so that small singular values weigh more.

    $d = O(u) - k u / (2 \sigma)$, rescaled to the norm of $O(u)$, for the momentum $u$, $O$ of `orthogonalize` and an
    estimate $\sigma$ of the largest singular value of $u$; $p \leftarrow p (1 - \eta \lambda) - \eta r d$ with $r$ of
    `scale_by_shape`.

    When to use: like `muon`, for the final gains in accuracy; with a negative share, the method lies between Muon and
    SGD.

    Args:
        lr: $\eta$ in [0, inf).
        weight_decay: $\lambda \ge 0$, decoupled; multiplied by $\eta$ but not by $r$.
        momentum: Decay rate of the gradient average, in [0, 1).
        nesterov: Use Nesterov momentum.
        contra: $k$, often a schedule.
        power_steps: Number of power iterations for $\sigma$, >= 1.
        ns_coefficients: Coefficients of the iteration, as in `orthogonalize`.
        ns_steps: Number of iterations, in [0, 100); None for 5, or for the number that belongs to a named set.
        adjust_lr_fn: Name of the factor $r$; see `scale_by_shape`.
        ns_dtype: Dtype of the iteration; None for the dtype of the leaf.
        fallback: A complete transformation, such as `adamw(...)`, for all leaves that are not matrices.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer`; with a fallback, that and
        the fallback's entries, under `partition`.

    Raises:
        TypeError: If `fallback` is not a transformation.
        ValueError: If a hyperparameter is out of range, if `params` is missing, or if a leaf is not a matrix and there
            is no `fallback`.

    Example:
        >>> tx = gradtx.contra_muon(lr=1.0, contra=1.0)
        >>> params = {"w": torch.zeros(2, 2)}
        >>> updates, _ = tx.update(
        ...     {"w": torch.diag(torch.tensor([4.0, 2.0]))}, tx.init(params), params
        ... )
        >>> updates["w"].diag()
        tensor([-0.7845, -1.1767])

    Source: nilin/contra-muon; modded-nanogpt, track 3. Departures: the norm of the direction is preserved, as in the
    published runs; the README has no rescaling.
    """
    return muon_like(
        "contra_muon",
        adjust_lr_fn,
        lr,
        weight_decay,
        fallback,
        trace_ema(momentum, nesterov),
        orthogonalize(
            ns_coefficients,
            ns_steps,
            dtype=ns_dtype,
            contra=contra,
            power_steps=power_steps,
        ),
    )


def _beside_adam_atan2(
    matrices, matrix_ndims, lr, matrix_lr, betas, a, b, wd, decoupled_wd, caution
):
    """Use a direction for leaves with these numbers of dimensions, and Adam-atan2 for the others."""
    rate = lr if matrix_lr is None else matrix_lr
    matrices = chain(
        matrices,
        scale_by_caution(caution),
        add_decayed_weights(wd, relative_to=rate if decoupled_wd else None),
        scale_by_learning_rate(rate),
    )
    rest = adam_atan2(
        lr, betas, wd, decoupled_wd=decoupled_wd, cautious_factor=caution, a=a, b=b
    )
    takes = functools.partial(_has_dimensions, matrix_ndims)  # a lambda has no pickle
    return by_matrix(matrices, rest, takes)


def _has_dimensions(numbers, name, leaf):
    return leaf.ndim in numbers


@alias
def muon_adam_atan2(
    lr=1e-4,
    betas=(0.9, 0.99),
    muon_lr: NonNegative | None = None,
    weight_decay=0.0,
    decoupled_wd=False,
    cautious_factor: FractionOffAtOne = 1.0,
    a: Positive = 1.27,
    b: Positive = 1.0,
    muon_beta1: Decay = 0.95,
    muon_beta2: Decay = 0.95,
    muon_steps: Steps = 5,
    muon_rms_factor: NonNegative = 0.2,
    use_normuon=False,
    normuon_eps: NonNegative = 1e-10,
    matrix_ndims: tuple[Annotated[int, "[2, inf)"], ...] = (2, 3),
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
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.muon_adam_atan2(lr=0.1, a=4 / torch.pi)
        >>> params = {"w": torch.zeros(2, 2), "b": torch.zeros(1)}
        >>> state = tx.init(params)["partition"]
        >>> [sorted(k for k in state[label] if k != "members") for label in ("matrix", "rest")]
        [['trace_ema'], ['scale_by_atan2']]

    Source: adam-atan2-pytorch 0.4.1, after Jordan et al. 2024 (Muon), Liu et al. 2025, arXiv:2502.16982, and Li et al.
    2025, arXiv:2510.05491. Departures: the iteration runs in the leaf's dtype; no regenerative regularization.
    """
    matrices = chain(
        trace_ema(muon_beta1),
        orthogonalize(NEWTON_SCHULZ, muon_steps, view="batch"),
        normalize_neurons(muon_beta2, normuon_eps) if use_normuon else chain(),
        scale_by_shape("match_rms_adamw", muon_rms_factor, "batch"),
    )
    return _beside_adam_atan2(
        matrices,
        matrix_ndims,
        lr,
        muon_lr,
        betas,
        a,
        b,
        weight_decay,
        decoupled_wd,
        cautious_factor,
    )


@alias
def polar_adam_atan2(
    lr=1e-4,
    betas=(0.9, 0.99),
    polar_lr: NonNegative | None = None,
    weight_decay=0.0,
    decoupled_wd=False,
    cautious_factor: FractionOffAtOne = 1.0,
    a: Positive = 1.27,
    b: Positive = 1.0,
    polar_beta1: Decay = 0.95,
    polar_steps: Steps = 5,
    polar_rms_factor: NonNegative = 0.2,
    matrix_ndims: tuple[Annotated[int, "[2, inf)"], ...] = (2, 3),
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
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

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
    matrices = chain(
        trace_ema(polar_beta1),
        orthogonalize(POLAR_EXPRESS, polar_steps, view="batch"),
        scale_by_shape("match_rms_adamw", polar_rms_factor, "batch"),
    )
    return _beside_adam_atan2(
        matrices,
        matrix_ndims,
        lr,
        polar_lr,
        betas,
        a,
        b,
        weight_decay,
        decoupled_wd,
        cautious_factor,
    )
