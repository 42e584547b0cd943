"""Steps of a fixed size in the norm of each layer: linear minimization oracles."""

from __future__ import annotations

import math
import typing
from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from gradtx.arguments import one_of
from gradtx.base.messages import describe
from gradtx.maths.entries import mean, norms, rms, safe_sqrt
from gradtx.maths.matrices import polar_factor
from gradtx.maths.polynomials import StaticCoefficients, Steps, orthogonalizer
from gradtx.rules import per_tensor

__all__ = ["init_for_lmo", "lmo"]


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
    amplifies=lambda arguments: arguments["kind"] in ("auto", "spectral", "conv"),
    length="sets",
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
        ValueError: If a leaf has too few dimensions for it.

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
        ValueError: If it needs a matrix and `param` is a vector, or if `scale` is negative or not finite.

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
