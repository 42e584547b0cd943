"""Scion: linear minimization oracles, the steps of steepest descent for a given size in a norm that fits the layer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradtx.base.exact import Scalar
from gradtx.base.messages import describe
from gradtx.rules import per_tensor
from gradtx.transforms._math import rms, safe_sqrt
from gradtx.transforms._matrix import newton_schulz, polar_factor
from gradtx.transforms._polynomials import polynomials

__all__ = ["init_for_lmo", "lmo"]

KINDS = ("auto", "spectral", "conv", "sign", "column", "row", "bias")
_DIMS = {
    "spectral": (2, 2),
    "conv": (3, math.inf),
    "column": (2, math.inf),
    "row": (2, math.inf),
}


def _dims(arguments: dict[str, Any]) -> Any:
    return _DIMS.get(arguments["kind"])


def _mixes_rows(arguments: dict[str, Any]) -> bool:
    """Whether the owner of a divided leaf must compute it; signs, rows and columns need no exchange of entries."""
    return arguments["kind"] not in ("sign", "row", "column")


@per_tensor(
    whole=_mixes_rows, dims=_dims, ranges={"steps": "[0, 100)"}, static=("coefs",)
)
def lmo(
    kind: str = "auto",
    *,
    normalized: bool | None = None,
    transpose: bool = False,
    maximum: bool = False,
    steps: int | None = None,
    coefs: str | tuple[float, ...] | tuple[tuple[float, ...], ...] = "simple",
    eps: Scalar = 1e-8,
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
    if kind not in KINDS:
        raise ValueError(f"lmo: kind must be one of {', '.join(KINDS)}, got {kind!r}")
    iteration = polynomials("lmo", coefs, steps, None)
    oracle = Oracle(
        normalized, transpose, maximum, eps, lambda x: newton_schulz(x, iteration, eps)
    )

    def update(update, state, param, ctx):
        return oracle.of(kind, update), state

    return update


def init_for_lmo(
    param: Tensor,
    kind: str = "auto",
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
    start = scale * Oracle(normalized, transpose, maximum, 0.0, polar_factor).of(
        kind, noise
    )
    return start.to(param.device, param.dtype)


def _check_start(param: Any, kind: Any, scale: Any) -> None:
    if not (isinstance(param, Tensor) and param.is_floating_point()):
        raise TypeError(
            f"init_for_lmo: param must be a tensor of a floating-point dtype, got {describe(param)}"
        )
    if kind not in KINDS:
        raise ValueError(
            f"init_for_lmo: kind must be one of {', '.join(KINDS)}, got {kind!r}"
        )
    if isinstance(scale, bool) or not isinstance(scale, float | int):
        raise TypeError(f"init_for_lmo: scale must be a number, got {describe(scale)}")
    if not 0 <= scale < math.inf:
        raise ValueError(f"init_for_lmo: scale must be in [0, inf), got {scale!r}")
    if param.ndim < 2 and kind not in ("auto", "bias", "sign"):
        shape = tuple(param.shape)
        raise ValueError(
            f"init_for_lmo: kind {kind!r} needs at least 2 dimensions, got a tensor of shape {shape}"
        )


# A named tuple, because dynamo cannot trace a closure over a dataclass.
class Oracle(NamedTuple):
    """Compute the oracles of all kinds with the given options.

    Attributes:
        normalized, transpose, maximum, eps: As in `lmo`.
        orthogonal: Function that maps a matrix to an orthogonal one.
    """

    normalized: bool | None
    transpose: bool
    maximum: bool
    eps: Any
    orthogonal: Callable[[Tensor], Tensor]

    def of(self, kind: str, x: Tensor) -> Tensor:
        kind = _kind_for(x.ndim) if kind == "auto" else kind
        transposed = self.transpose and kind in ("column", "row")
        result = getattr(self, f"by_{kind}")(x.transpose(0, 1) if transposed else x)
        return result.transpose(0, 1) if transposed else result

    def by_spectral(self, x: Tensor) -> Tensor:
        outputs, inputs = x.shape[:2]
        result = self.orthogonal(x.flatten(1)).reshape(x.shape)
        size = math.sqrt(
            outputs if self.normalized is False else outputs / max(inputs, 1)
        )
        return max(1.0, size) * result if self.maximum else size * result

    def by_conv(self, x: Tensor) -> Tensor:
        return self.by_spectral(x) / max(math.prod(x.shape[2:]), 1)

    def by_sign(self, x: Tensor) -> Tensor:
        inputs = x.shape[1] if x.ndim > 1 else 1
        return x.sign() / (1 if self.normalized is False else max(inputs, 1))

    def by_column(self, x: Tensor) -> Tensor:
        size = safe_sqrt(x.square().sum(dim=0, keepdim=True) / max(x.shape[0], 1))
        return x / ((size * x.shape[1] if self.normalized else size) + self.eps)

    def by_row(self, x: Tensor) -> Tensor:
        size = safe_sqrt(x.square().sum(dim=-1, keepdim=True))
        if self.normalized is not False:
            size = size * math.sqrt(x.shape[-1])
        return x / (size + self.eps)

    def by_bias(self, x: Tensor) -> Tensor:
        return x / (rms(x) + self.eps)


def _kind_for(ndim: int) -> str:
    if ndim <= 1:
        return "bias"
    return "spectral" if ndim == 2 else "conv"
