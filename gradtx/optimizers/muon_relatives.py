"""Variants of Muon: other scalings of its direction, other norms, weights on a sphere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch

from gradtx.arguments import (
    Count,
    Decay,
    Decays,
    Fraction,
    NonNegative,
    Static,
    is_off,
)
from gradtx.base.exact import Scalar
from gradtx.base.messages import describe
from gradtx.combinators.hyperball import hyperball
from gradtx.combinators.norm_ratio import scale_by_norm_ratio
from gradtx.combinators.selection import partition
from gradtx.optimizers.matrix import muon_like, with_fallback
from gradtx.rules import alias
from gradtx.transform import GradientTransformation, chain
from gradtx.transforms._polynomials import Coefficients
from gradtx.transforms.adam import scale_by_adam
from gradtx.transforms.momentum import trace_ema
from gradtx.transforms.muon import (
    lmo,
    normalize_entries,
    normalize_neurons,
    orthogonalize,
    scale_by_muown,
    scale_by_nuclear_norm,
)
from gradtx.transforms.scaling import scale as multiply
from gradtx.transforms.scaling import scale_by_learning_rate
from gradtx.transforms.sign import scale_by_sign
from gradtx.transforms.weight_decay import add_decayed_weights

__all__ = [
    "adam_h",
    "adamuon",
    "contra_muon",
    "muon_h",
    "muown",
    "namo",
    "normuon",
    "polargrad",
    "scion",
]


@alias(class_name="NorMuon")
def normuon(
    lr: NonNegative = 1e-2,
    weight_decay: NonNegative = 0.01,
    momentum: Decay = 0.95,
    beta2: Decay = 0.95,
    nesterov: bool = True,
    eps: NonNegative = 1e-10,
    axis: str = "rows",
    rms: NonNegative | None = None,
    ns_coefficients: Coefficients = "simple",
    ns_steps: Annotated[int, "[0, 100)"] | None = None,
    adjust_lr_fn: str | None = "original",
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
    lr: NonNegative = 0.02,
    weight_decay: NonNegative = 0.01,
    betas: Decays = (0.95, 0.999),
    nesterov: bool = True,
    eps: NonNegative = 1e-8,
    sign: bool = False,
    rescale: str | None = "sqrt_min",
    correct_bias: bool = True,
    ns_coefficients: Coefficients = "simple",
    ns_steps: Annotated[int, "[0, 100)"] | None = None,
    adjust_lr_fn: str | None = "match_rms_adamw",
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
    lr: NonNegative = 3e-4,
    weight_decay: NonNegative = 0.01,
    betas: Decays = (0.95, 0.95),
    nesterov: bool = False,
    eps: NonNegative = 1e-8,
    correct_bias: bool = False,
    ns_coefficients: Coefficients = "quintic",
    ns_steps: Annotated[int, "[0, 100)"] | None = None,
    adjust_lr_fn: str | None = "max_dim",
    ns_dtype: torch.dtype | None = None,
    fallback: GradientTransformation | None = None,
):
    r"""NAMO: Muon's direction with one adaptive step size for each matrix.

    $d = O(u)\, \lVert u \rVert / (\sqrt{v} + \epsilon)$ with the momentum $u$, $O$ of `orthogonalize` and $v$ of
    `scale_by_norm_ratio`, $p \leftarrow p (1 - \eta \lambda) - \eta r d$ with $r$ of `scale_by_shape`.

    When to use: like `muon`, for noisy gradients: steps shrink where gradients disagree.

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
def contra_muon(
    lr: NonNegative = 0.0375,
    weight_decay: NonNegative = 0.0,
    momentum: Decay = 0.95,
    nesterov: bool = True,
    contra: Scalar = 0.4,
    power_steps: Count = 5,
    ns_coefficients: Coefficients = "newton_schulz",
    ns_steps: Annotated[int, "[0, 100)"] | None = None,
    adjust_lr_fn: str | None = "original",
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


@alias
def muown(
    lr: NonNegative = 3e-4,
    momentum: Decay = 0.95,
    weight_decay: NonNegative = 0.0,
    betas: Decays = (0.9, 0.95),
    eps: NonNegative = 1e-8,
    ns_coefficients: Coefficients = "quintic",
    ns_steps: Annotated[int, "[0, 100)"] | None = None,
    adjust_lr_fn: str | None = "max_dim",
    ns_dtype: torch.dtype | None = None,
    fallback: GradientTransformation | None = None,
):
    r"""Muown: Muon for the directions of rows, Adam for their lengths.

    See `scale_by_muown`.

    When to use: instead of `muon` with weight decay, if the norms of rows drift.

    Args:
        lr: Learning rate of both parts, in [0, inf).
        momentum: Decay rate of the average of gradients by directions, in [0, 1).
        weight_decay: Weight decay of the lengths, >= 0.
        betas: Adam's betas, each in [0, 1).
        eps: Adam's eps, >= 0.
        ns_coefficients: Coefficients of the iteration, as in `orthogonalize`.
        ns_steps: Number of iterations, in [0, 100); None for 5, or for the number that belongs to a named set.
        adjust_lr_fn: Name of the scale of Muon's step; see `scale_by_shape`.
        ns_dtype: Dtype of the iteration; None for the dtype of the leaf.
        fallback: A complete transformation, such as `adamw(...)`, for all leaves that are not matrices.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer`, and one number per row in
        `magnitude`, `length`, `exp_avg` and `exp_avg_sq`; with a fallback, these and the fallback's entries, under
        `partition`.

    Raises:
        TypeError: If `fallback` is not a transformation.
        ValueError: If a hyperparameter is out of range, if `params` is missing, or if a leaf is not a matrix and there
            is no `fallback`.

    Example:
        >>> tx = gradtx.muown(lr=0.1)
        >>> params = {"w": torch.tensor([[3.0, 4.0]])}
        >>> updates, state = tx.update(
        ...     {"w": torch.tensor([[-4.0, 3.0]])}, tx.init(params), params
        ... )
        >>> # a gradient orthogonal to the row keeps its length
        >>> gradtx.apply_updates(params, updates)["w"].norm()
        tensor(5.)

    Source: Muown, arXiv:2605.10797. Departures: none.
    """
    matrices = scale_by_muown(
        lr,
        momentum,
        weight_decay,
        betas,
        eps,
        ns_coefficients=ns_coefficients,
        ns_steps=ns_steps,
        adjust_lr_fn=adjust_lr_fn,
        ns_dtype=ns_dtype,
    )
    return with_fallback("muown", matrices, fallback)


@alias(class_name="PolarGrad")
def polargrad(
    lr: NonNegative = 3e-4,
    momentum: Decay = 0.95,
    nesterov: bool = False,
    weight_decay: NonNegative = 0.01,
    method: str = "newton_schulz",
    alpha: NonNegative = 1.0,
    center_rows: bool = False,
    ns_coefficients: Coefficients = "quintic",
    ns_steps: Annotated[int, "[0, 100)"] | None = None,
    ns_dtype: torch.dtype | None = None,
    fallback: GradientTransformation | None = None,
):
    r"""PolarGrad: Muon's direction scaled by the nuclear norm of the momentum.

    $p \leftarrow p (1 - \eta \lambda) - \eta\, d$ with $d$ = `scale_by_nuclear_norm` of the momentum: steepest descent
    in the spectral norm, whose steps shrink with the gradient.

    When to use: instead of `muon`, whose steps of constant size need a schedule that ends at 0.

    Args:
        lr: $\eta$ in [0, inf).
        momentum: Decay rate of the gradient average, in [0, 1).
        nesterov: Use Nesterov momentum.
        weight_decay: $\lambda \ge 0$, decoupled.
        method: "newton_schulz" or "exact", as in `scale_by_nuclear_norm`.
        alpha: Exponent of the nuclear norm, >= 0.
        center_rows: Subtract the mean over the rows, for weights whose outputs enter a softmax.
        ns_coefficients: Coefficients of the iteration, as in `orthogonalize`.
        ns_steps: Number of iterations, in [0, 100); None for 5, or for the number that belongs to a named set.
        ns_dtype: Dtype of the iteration; None for the dtype of the leaf.
        fallback: A complete transformation, such as `adamw(...)`, for all leaves that are not matrices.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer`; with a fallback, that and
        the fallback's entries, under `partition`.

    Raises:
        TypeError: If `fallback` is not a transformation.
        ValueError: If a hyperparameter is out of range, if `method` is unknown, if `params` is missing, or if a leaf is
            not a matrix and there is no `fallback`.

    Example:
        >>> tx = gradtx.polargrad(lr=0.1, momentum=0.0, weight_decay=0.0, method="exact")
        >>> params = {"w": torch.zeros(2, 2)}
        >>> updates, _ = tx.update(
        ...     {"w": torch.diag(torch.tensor([3.0, 2.0]))}, tx.init(params), params
        ... )
        >>> updates["w"].diag()
        tensor([-0.5000, -0.5000])

    Source: Lau et al. 2025, arXiv:2505.21799. Departures: none.
    """
    matrices = chain(
        trace_ema(momentum, nesterov),
        scale_by_nuclear_norm(
            method, alpha, center_rows, ns_coefficients, ns_steps, ns_dtype
        ),
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(lr),
    )
    return with_fallback("polargrad", matrices, fallback)


@alias
def scion(
    lr: NonNegative = 1e-3,
    momentum: Fraction = 0.1,
    scale: NonNegative = 1.0,
    unconstrained: bool = False,
    kinds: Static[Mapping[str, Any]] | None = None,
):
    r"""Scion: steps of a fixed size in a norm that suits the layer, with weights in a ball of that norm.

    $b \leftarrow (1 - \mu) b + \mu g$, $d = s\, \mathrm{lmo}(b)$, $p \leftarrow (1 - \eta) p - \eta d$, or
    $p \leftarrow p - \eta d$ if `unconstrained`.

    When to use: to use one rate for all widths; weights stay in the ball of radius $s$, so initialize them there
    (`init_for_lmo`). A head needs a large scale (3000 in the paper); set it with `partition`.

    Args:
        lr: $\eta$ in [0, inf).
        momentum: $\mu$ in [0, 1], one minus the usual value: a literal 1.0, the authors' default, means no momentum.
        scale: $s \ge 0$, the radius of the ball.
        unconstrained: Omit the shrinking of the weights.
        kinds: Mapping from patterns of leaf names to kinds of `lmo`, or to an `lmo(...)`, tried in order; None for
            "auto" everywhere.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer` (none for a literal
        momentum of 1.0).

    Raises:
        TypeError: If a value of `kinds` is neither a kind nor a transformation.
        ValueError: If a hyperparameter is out of range, if a kind is unknown, if `params` is missing, or if no pattern
            matches a leaf.

    Example:
        >>> tx = gradtx.scion(lr=0.5, momentum=1.0, scale=4.0, kinds={"*": "sign"})
        >>> params = {"w": torch.tensor([[2.0, 2.0]])}
        >>> # toward -2 and 2
        >>> tx.update({"w": torch.tensor([[3.0, -0.1]])}, tx.init(params), params)[0]["w"]
        tensor([[-2., -0.]])

    Source: Pethick et al. 2025, arXiv:2502.07529; LIONS-EPFL/scion. Departures: see `lmo`.
    """
    return chain(
        chain() if is_off(momentum, 1.0) else trace_ema(1 - momentum),
        _oracles({"*": "auto"} if kinds is None else kinds),
        multiply(scale),
        chain() if unconstrained else add_decayed_weights(1.0),
        scale_by_learning_rate(lr),
    )


def _oracles(kinds: Mapping[str, Any]) -> GradientTransformation:
    """Build the transformation that applies the oracle of every leaf."""
    oracles: dict[str, GradientTransformation] = {}
    if not (isinstance(kinds, Mapping) and kinds):
        raise TypeError(
            f"scion: kinds must be a dict of name pattern -> kind, such as {{'*': 'auto'}}, got {kinds!r}"
        )
    for pattern, kind in kinds.items():
        if not isinstance(kind, str | GradientTransformation):
            raise TypeError(
                f"scion: kinds[{pattern!r}] must be a kind of lmo or an lmo(...), got {describe(kind)}"
            )
        oracles[pattern] = lmo(kind) if isinstance(kind, str) else kind
    if list(oracles) == ["*"]:
        return oracles["*"]
    labels = {f"lmo_{i}": pattern for i, pattern in enumerate(oracles)}
    return partition(
        {label: oracles[pattern] for label, pattern in labels.items()}, labels
    )


@alias(class_name="AdamH")
def adam_h(
    lr: NonNegative = 1e-2,
    betas: Decays = (0.9, 0.95),
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
):
    r"""AdamH: Adam's direction in relative steps, with weights kept on their initial sphere.

    $p \leftarrow R\, N(p - \eta R\, N(u + \lambda p))$ with Adam's direction $u$, $R = \lVert p_0 \rVert$ and
    $N(x) = x / \lVert x \rVert$; see `hyperball`.

    When to use: matrices that are followed by normalization, with one rate for layers of all sizes. Exclude leaves that
    start at 0, such as biases, with `partition`.

    Args:
        lr: $\eta \ge 0$, the relative step.
        betas: Adam's betas, each in [0, 1).
        eps: Adam's eps, >= 0.
        weight_decay: $\lambda \ge 0$; it rotates the step, and the norm of the weights does not change.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`, and `radius` twice,
        0-d.

    Raises:
        ValueError: If a hyperparameter is out of range, if `params` is missing, or if the initial norm of a leaf is 0.

    Example:
        >>> tx = gradtx.adam_h(lr=0.1)
        >>> params = {"w": torch.tensor([3.0, 4.0])}
        >>> updates, _ = tx.update({"w": torch.tensor([1.0, -9.0])}, tx.init(params), params)
        >>> gradtx.apply_updates(params, updates)["w"].norm()
        tensor(5.)

    Source: Hyperball, blog of K. Wen 2025; HeavyBall. Departures: none.
    """
    return hyperball(
        chain(scale_by_adam(betas, eps), add_decayed_weights(weight_decay)), lr
    )


@alias(class_name="MuonH")
def muon_h(
    lr: NonNegative = 1e-2,
    momentum: Decay = 0.95,
    nesterov: bool = True,
    ns_coefficients: Coefficients = "simple",
    ns_steps: Annotated[int, "[0, 100)"] | None = None,
    fallback: GradientTransformation | None = None,
):
    r"""MuonH: Muon's direction in relative steps, with weights kept on their initial sphere.

    $p \leftarrow R\, N(p - \eta R\, N(O(u)))$ with the momentum $u$, $O$ of `orthogonalize`, $R = \lVert p_0 \rVert$
    and $N(x) = x / \lVert x \rVert$; see `hyperball`.

    When to use: the hidden matrices of transformers that are followed by normalization, without weight decay.

    Args:
        lr: $\eta \ge 0$, the relative step.
        momentum: Decay rate of the gradient average, in [0, 1).
        nesterov: Use Nesterov momentum.
        ns_coefficients: Coefficients of the iteration, as in `orthogonalize`.
        ns_steps: Number of iterations, in [0, 100); None for 5, or for the number that belongs to a named set.
        fallback: A complete transformation, such as `adamw(...)`, for all leaves that are not matrices.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer`, and `radius` twice, 0-d;
        with a fallback, these and the fallback's entries, under `partition`.

    Raises:
        TypeError: If `fallback` is not a transformation.
        ValueError: If a hyperparameter is out of range, if `params` is missing, if the initial norm of a matrix is 0,
            or if a leaf is not a matrix and there is no `fallback`.

    Example:
        >>> tx = gradtx.muon_h(lr=0.1)
        >>> params = {"w": torch.tensor([[3.0, 4.0]])}
        >>> updates, _ = tx.update({"w": torch.tensor([[1.0, -9.0]])}, tx.init(params), params)
        >>> gradtx.apply_updates(params, updates)["w"].norm()
        tensor(5.0000)

    Source: Hyperball, blog of K. Wen 2025; NVIDIA Emerging-Optimizers. Departures: every leaf has its own radius.
    """
    matrices = hyperball(
        chain(trace_ema(momentum, nesterov), orthogonalize(ns_coefficients, ns_steps)),
        lr,
    )
    return with_fallback("muon_h", matrices, fallback)
