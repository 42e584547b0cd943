"""Steps of fixed norm: Scion's linear minimization oracles; Hyperball, AdamH and MuonH on spheres; Muown."""

from __future__ import annotations

import math
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeAlias

import torch
from torch import Tensor

from gradtx.algorithms.adam import scale_by_adam
from gradtx.algorithms.momentum import trace_ema
from gradtx.algorithms.muon import (
    Adjustment,
    orthogonalize,
    shape_factor,
    with_fallback,
)
from gradtx.algorithms.projection import keep_norm, scale_to_radius
from gradtx.algorithms.scaling import scale as multiply
from gradtx.algorithms.scaling import scale_by_learning_rate
from gradtx.algorithms.weight_decay import add_decayed_weights
from gradtx.arguments import (
    Decay,
    FractionOffAtOne,
    NonNegative,
    Static,
    is_off,
    one_of,
)
from gradtx.base.messages import describe
from gradtx.combinators.selection import partition
from gradtx.maths.entries import (
    adam_moments,
    at_least,
    corrected_root,
    mean,
    norms,
    quotient,
    rms,
    running_mean,
    safe_sqrt,
)
from gradtx.maths.matrices import polar_factor
from gradtx.maths.polynomials import (
    Coefficients,
    StaticCoefficients,
    Steps,
    orthogonalizer,
)
from gradtx.rules import alias, combinator, per_tensor
from gradtx.slots import Slot, linear, square
from gradtx.transform import GradientTransformation, chain

__all__ = [
    "adam_h",
    "hyperball",
    "init_for_lmo",
    "lmo",
    "muon_h",
    "muown",
    "scale_by_muown",
    "scion",
]

Kind: TypeAlias = Literal["auto", "spectral", "conv", "sign", "column", "row", "bias"]


_DIMS = {
    "spectral": (2, 2),
    "conv": (3, math.inf),
    "column": (2, math.inf),
    "row": (2, math.inf),
}


@per_tensor(
    # Signs, rows and columns need no exchange of a divided leaf's entries.
    whole=lambda arguments: arguments["kind"] not in ("sign", "row", "column"),
    dims=lambda arguments: _DIMS.get(arguments["kind"]),
)
def lmo(
    kind: Kind = "auto",
    *,
    normalized: bool | None = None,
    transpose=False,
    maximum=False,
    steps: Steps | None = None,
    coefs: StaticCoefficients = "simple",
    eps=1e-8,
):
    r"""Replace an update by the element of a norm ball that is most aligned with it.

    With $O$ as in `orthogonalize`, a matrix with $r$ rows and $c$ columns (out, in), and $y$ the update or, with
    `transpose`, its transpose, which is transposed back at the end:

    | kind | result | `normalized=False` |
    |---|---|---|
    | "spectral" | $O(x) \sqrt{r/c}$ | $O(x) \sqrt r$ |
    | "conv" | $O(x) \sqrt{r/c} / k$ of (out, all others), $c$ input channels, $k$ kernel entries | $O(x) \sqrt r / k$ |
    | "sign" | $\mathrm{sign}(x) / \mathrm{in}$ | $\mathrm{sign}(x)$ |
    | "column" | $y / (n c + \epsilon)$, $n$ the root mean square of each column | $y / (n + \epsilon)$, the default |
    | "row" | $y / (\lVert \mathrm{row} \rVert \sqrt c + \epsilon)$ | $y / (\lVert \mathrm{row} \rVert + \epsilon)$ |
    | "bias" | $x / (\mathrm{rms}(x) + \epsilon)$ | the same |

    Args:
        kind: One of these, or "auto": "bias" for leaves with at most 1 dimension, "spectral" for 2, "conv" for more.
        normalized: Whether the norm is relative to the number of inputs; None for the default of the kind.
        transpose: Exchange rows and columns, for weights stored as (in, out), such as those of an embedding.
        maximum: Scale "spectral" and "conv" by at least 1, before the division by the kernel size.
        steps: Iterations of $O$, in [0, 100); None for 5, or for the number of a named set.
        coefs: Coefficients of $O$, as in `orthogonalize`.
        eps: $\epsilon \ge 0$.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Raises:
        ValueError: If an argument is out of range, if `kind` is unknown, or if a leaf has too few dimensions for it.

    Example:
        >>> tx = gradtx.lmo("row")
        >>> updates, _ = tx.update({"w": torch.tensor([[3.0, 4.0], [0.0, 2.0]])}, tx.init({}))
        >>> updates["w"]  # rows of root mean square 1/2
        tensor([[0.4243, 0.5657],
                [0.0000, 0.7071]])

    Source: Pethick et al. 2025, Scion, arXiv:2502.07529, and LIONS-EPFL/scion. Departures: the authors divide a
    convolution by the square of one side of its kernel.
    """
    orthogonal = orthogonalizer("lmo", coefs, steps, eps=eps)

    def update(u, state, p, ctx):
        return (
            oracle(kind, u, orthogonal, eps, normalized, transpose, maximum),
            state,
        )

    return update


def init_for_lmo(
    param: Tensor,
    kind: Kind = "auto",
    *,
    scale: float = 1.0,
    normalized: bool | None = None,
    transpose: bool = False,
    maximum: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw initial weights on the ball to which `scion` constrains them; biases are 0.

    Args:
        param: Tensor that specifies shape, dtype and device.
        kind: As in `lmo`.
        scale: The radius of the ball, >= 0.
        normalized: As in `lmo`.
        transpose: As in `lmo`.
        maximum: As in `lmo`.
        generator: The generator of the normal samples; None for torch's default.

    Returns:
        A new tensor: orthogonal ("spectral", "conv"), signs, or normal samples with columns or rows of equal size.

    Raises:
        TypeError: If `param` is not a tensor of a floating-point dtype, or if `scale` is not a number.
        ValueError: If `kind` is unknown, if it needs a matrix and `param` is a vector, or if `scale` is negative or not
            finite.

    Example:
        >>> weight = gradtx.init_for_lmo(
        ...     torch.empty(3, 3), scale=2.0, generator=torch.Generator().manual_seed(0)
        ... )
        >>> torch.linalg.svdvals(weight)
        tensor([2.0000, 2.0000, 2.0000])

    Source: LIONS-EPFL/scion. Departures: convolutions are orthogonal as (out, all others), as in `lmo`.
    """
    _check_start(param, kind, scale)
    kind = _kind_for(param.ndim) if kind == "auto" else kind
    if kind == "bias":
        return torch.zeros_like(param)
    noise = torch.randn(param.shape, generator=generator, dtype=torch.float64)
    start = oracle(kind, noise, polar_factor, 0.0, normalized, transpose, maximum)
    return (scale * start).to(param.device, param.dtype)


def _check_start(param, kind, scale) -> None:
    if not (isinstance(param, Tensor) and param.is_floating_point()):
        raise TypeError(
            f"init_for_lmo: param must be a tensor of a floating-point dtype, got {describe(param)}"
        )
    kinds = typing.get_args(Kind)
    if kind not in kinds:
        raise ValueError(f"init_for_lmo: kind must be {one_of(kinds)}, got {kind!r}")
    if isinstance(scale, bool) or not isinstance(scale, float | int):
        raise TypeError(f"init_for_lmo: scale must be a number, got {describe(scale)}")
    if not 0 <= scale < math.inf:
        raise ValueError(f"init_for_lmo: scale must be in [0, inf), got {scale!r}")
    if param.ndim < 2 and kind not in ("auto", "bias", "sign"):
        shape = tuple(param.shape)
        raise ValueError(
            f"init_for_lmo: kind {kind!r} needs at least 2 dimensions, got a tensor of shape {shape}"
        )


def oracle(
    kind: str,
    x: Tensor,
    orthogonal: Callable[[Tensor], Tensor],
    eps,
    normalized: bool | None,
    transpose: bool,
    maximum: bool,
) -> Tensor:
    """Return the result of `lmo` for a leaf; `orthogonal` replaces the singular values of a matrix by 1."""
    kind = _kind_for(x.ndim) if kind == "auto" else kind
    if kind == "bias":
        return x / (rms(x) + eps)
    if kind == "sign":
        inputs = x.shape[1] if x.ndim > 1 else 1
        return x.sign() / (1 if normalized is False else max(inputs, 1))
    if kind in ("spectral", "conv"):
        outputs, inputs = x.shape[:2]
        size = math.sqrt(outputs if normalized is False else outputs / max(inputs, 1))
        size = max(1.0, size) if maximum else size
        result = size * orthogonal(x.flatten(1)).reshape(x.shape)
        if kind == "spectral":
            return result
        return result / max(math.prod(x.shape[2:]), 1)
    y = x.transpose(0, 1) if transpose else x
    if kind == "column":
        size = safe_sqrt(mean(y.square(), 0, keepdim=True))
        size = size * y.shape[1] if normalized else size
    else:
        size = norms(y, -1)
        size = size if normalized is False else size * math.sqrt(y.shape[-1])
    y = y / (size + eps)
    return y.transpose(0, 1) if transpose else y


def _kind_for(ndim: int) -> Kind:
    if ndim <= 1:
        return "bias"
    return "spectral" if ndim == 2 else "conv"


@alias
def scion(
    lr=1e-3,
    momentum: FractionOffAtOne = 0.1,
    scale: NonNegative = 1.0,
    unconstrained=False,
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
    if not (isinstance(kinds, Mapping) and kinds):
        raise TypeError(
            f"scion: kinds must be a dict of name pattern -> kind, such as {{'*': 'auto'}}, got {kinds!r}"
        )
    oracles = [
        kind if isinstance(kind, GradientTransformation) else lmo(kind)
        for kind in kinds.values()
    ]
    if list(kinds) == ["*"]:
        return oracles[0]
    labels = {f"lmo_{i}": pattern for i, pattern in enumerate(kinds)}
    return partition(dict(zip(labels, oracles, strict=True)), labels)


@alias(class_name="AdamH")
def adam_h(
    lr=1e-2,
    betas=(0.9, 0.95),
    eps=1e-8,
    weight_decay=0.0,
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
    lr=1e-2,
    momentum: Decay = 0.95,
    nesterov=True,
    ns_coefficients: Coefficients = "simple",
    ns_steps: Steps | None = None,
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


LEAST = 1e-12  # lower bound of the lengths of rows


@per_tensor(whole=True, dims=(2, 2), needs="params", owns_lr=True)
def scale_by_muown(
    lr,
    momentum: Decay = 0.95,
    weight_decay=0.0,
    betas=(0.9, 0.95),
    eps=1e-8,
    ns_coefficients: Coefficients = "quintic",
    ns_steps: Steps | None = None,
    adjust_lr_fn: Adjustment | None = "max_dim",
    ns_dtype: torch.dtype | None = None,
):
    r"""Update the directions of a matrix's rows by Muon and their lengths by Adam: Muown.

    Rows are $p = \gamma \hat u$, and $v = \ell \hat u$ is the vector that defines their direction. Starting from the
    row norms of the initial weights, $\gamma = \ell = \lVert p_0 \rVert$:
    $d_\gamma = \langle g, \hat u \rangle$, $d_v = \frac{\gamma}{\ell} (g - d_\gamma \hat u)$,
    $v = \ell \hat u - \eta r\, O(\mathrm{EMA}(d_v))$ with $O$ of `orthogonalize` and $r$ of `scale_by_shape`,
    $\gamma \leftarrow (\gamma - \eta\, \mathrm{Adam}(d_\gamma)) (1 - \eta \lambda)$, $\ell \leftarrow \lVert v \rVert$,
    $p \leftarrow \gamma v / \ell$.

    Args:
        lr: $\eta$ in [0, inf).
        momentum: Decay of the average of $d_v$, in [0, 1).
        weight_decay: $\lambda \ge 0$, applied to the lengths.
        betas: Adam's betas, each in [0, 1).
        eps: Adam's eps, >= 0.
        ns_coefficients: Coefficients of $O$, as in `orthogonalize`.
        ns_steps: Iterations of $O$, in [0, 100); None for 5, or for the number of a named set.
        adjust_lr_fn: $r$, one of the names of `scale_by_shape`.
        ns_dtype: Dtype of the iteration; None for the leaf's own dtype.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer`, shaped as the parameter;
        `magnitude` ($\gamma$) and `length` ($\ell$), float32 for 16-bit weights, `exp_avg` and `exp_avg_sq`, one value
        per row.

    Raises:
        TypeError: If `ns_dtype` is not a floating-point dtype.
        ValueError: If an argument is out of range, if `ns_coefficients` or `adjust_lr_fn` is unknown, if `params` is
            missing, if a leaf is not a matrix, or if a later link scales by a learning rate or decays.

    Example:
        >>> tx = gradtx.scale_by_muown(lr=0.1)
        >>> params = {"w": torch.tensor([[3.0, 4.0]])}
        >>> updates, _ = tx.update({"w": torch.tensor([[3.0, 4.0]])}, tx.init(params), params)
        >>> # a gradient along the row changes only its length
        >>> gradtx.apply_updates(params, updates)["w"].norm()
        tensor(4.9000)

    Source: Muown, arXiv:2605.10797. Departures: none.
    """
    beta1, beta2 = betas
    iterate = orthogonalizer("scale_by_muown", ns_coefficients, ns_steps, ns_dtype)
    _, average_of_moments = adam_moments(betas)

    def lengths(param):
        return at_least(norms(param, 1), LEAST)

    def zeros(param):
        return torch.zeros_like(lengths(param))

    slow = Slot(lengths, slow=True)

    def update(g, state, p, ctx):
        gamma = state["magnitude"]
        # Half precision rounds this bound to 0.
        length = at_least(state["length"], LEAST)
        unit = quotient(p, gamma)
        along = (g * unit).sum(dim=1, keepdim=True)
        across = gamma / length * (g - unit * along)
        average = running_mean(state["momentum_buffer"], across, momentum)
        rate = lr * shape_factor(adjust_lr_fn, *g.shape)
        direction = unit * length - rate * iterate(average)
        m, v, moments = average_of_moments(along, state)
        root = corrected_root(v, ctx, beta2) + eps
        gamma = gamma - lr * m / ctx.bias_correction(beta1) / root
        gamma = gamma * (1 - lr * weight_decay)
        length = at_least(norms(direction, 1), LEAST)
        new = {
            "momentum_buffer": average,
            "magnitude": gamma,
            "length": length,
            **moments,
        }
        return gamma * direction / length - p, new

    slots = {
        "momentum_buffer": linear(),
        "magnitude": slow,
        "length": slow,
        "exp_avg": zeros,
        "exp_avg_sq": square(zeros),
    }
    return slots, update


@alias
def muown(
    lr=3e-4,
    *,
    fallback: GradientTransformation | None = None,
    **options: Annotated[Any, scale_by_muown],
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
    return with_fallback("muown", scale_by_muown(lr, **options), fallback)


@combinator
def hyperball(tx: GradientTransformation, lr, eps=1e-12):
    r"""Take steps of a fixed fraction of a leaf's norm, and preserve that norm.

    With $R = \lVert p_0 \rVert$, $N(x) = x / \max(\lVert x \rVert, \epsilon)$ and the direction $u$ of `tx`,
    $p \leftarrow R\, N(p - \eta R\, N(u))$.

    Suited to weights whose scale does not matter because a normalization layer follows: one learning rate then fits
    layers of all sizes, and weight decay is unnecessary.

    Args:
        tx: Computes the direction, without a learning rate.
        lr: $\eta \ge 0$, the relative step size.
        eps: $\epsilon \ge 0$. Keep it above 0 in case an update is 0.

    Returns:
        A transformation whose updates are added to the parameters. State: the entries of `tx`, and `radius`, 0-d, in
        each of `scale_to_radius` and `keep_norm`.

    Raises:
        TypeError: If `tx` is not a transformation.
        ValueError: If an argument is out of range, if `params` is missing, or if the initial norm of a leaf is 0.

    Example:
        >>> tx = gradtx.hyperball(gradtx.trace(0.9), lr=0.75)
        >>> params = {"w": torch.tensor([4.0, 0.0])}
        >>> updates, _ = tx.update({"w": torch.tensor([0.0, -1e-3])}, tx.init(params), params)
        >>> gradtx.apply_updates(params, updates)["w"]  # (4, 3), brought back to norm 4
        tensor([3.2000, 2.4000])

    Source: Hyperball, blog of K. Wen 2025; HeavyBall. Departures: none.
    """
    return chain(tx, scale_to_radius(eps), scale_by_learning_rate(lr), keep_norm(eps))
