"""Odd polynomials of degree 5 for Newton-Schulz iterations, under the names used in papers and other libraries."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, NamedTuple, TypeAlias

import torch
from torch import Tensor

from gradtx.arguments import AnyLength, Static
from gradtx.base.inputs import as_tuples
from gradtx.base.messages import describe
from gradtx.maths.matrices import newton_schulz

Triple: TypeAlias = tuple[float, float, float]
# A name, the coefficients of every step, or those of each step.
Coefficients: TypeAlias = str | Triple | tuple[Triple, ...]
StaticCoefficients: TypeAlias = Static[
    str | tuple[float, ...] | tuple[tuple[float, ...], ...]
]
Steps: TypeAlias = Annotated[int, "[0, 100)"]
# Multiples of the start and of all iterates, or the name of such a list.
Mixture: TypeAlias = Static[str | AnyLength[tuple[float, ...]]]

NEWTON_SCHULZ: Triple = (3.4445, -4.7750, 2.0315)


def _polar_express() -> tuple[Triple, ...]:
    """Return the polynomials of Polar Express (Amsel et al. 2025, arXiv:2505.16932) with a safety factor of 1.01."""
    published = (
        (8.28721201814563, -23.595886519098837, 17.300387312530933),
        (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
        (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
        (3.3184196573706015, -2.488488024314874, 0.51004894012372),
        (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
        (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
        (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
        (1.875, -1.25, 0.375),
    )
    shrunk = [_of_smaller(polynomial, 1.01) for polynomial in published[:-1]]
    # The matrix itself is also divided by 1.01, which an odd polynomial can absorb.
    return (_of_smaller(shrunk[0], 1.01), *shrunk[1:], published[-1])


def _of_smaller(polynomial: Triple, by: float) -> Triple:
    """Return the odd polynomial of x / by."""
    a, b, c = polynomial
    return a / by, b / by**3, c / by**5


POLAR_EXPRESS = _polar_express()


class CoefficientSet(NamedTuple):
    """Define a named iteration.

    Attributes:
        triples: (a, b, c) of each step; the last is repeated.
        steps: The number of steps for which the set was designed.
        fixed: Whether the set requires that number of steps.
        in_half: Whether rounding errors in half precision stay inside the range of convergence.
    """

    triples: tuple[Triple, ...]
    steps: int = 5
    fixed: bool = False
    in_half: bool = True


SETS = {
    "simple": CoefficientSet((NEWTON_SCHULZ,)),
    "quintic": CoefficientSet(
        (
            (4.0848, -6.8946, 2.9270),
            (3.9505, -6.3029, 2.6377),
            (3.7418, -5.5913, 2.3037),
            (2.8769, -3.1427, 1.2046),
            (2.8366, -3.0525, 1.2012),
        )
    ),
    "polar_express": CoefficientSet(POLAR_EXPRESS),
    "cans": CoefficientSet(
        (
            (8.4703, -25.1081, 18.6293),
            (4.1828, -3.1087, 0.5806),
            (3.9619, -2.9541, 0.5630),
            (3.2866, -2.4647, 0.5074),
            (2.2737, -1.6447, 0.4162),
        ),
        # The polynomial is 8e57 at a singular value of 1.004, which 1 can become in bfloat16.
        in_half=False,
    ),
    "deepseekv4": CoefficientSet((*8 * [NEWTON_SCHULZ], (2.0, -1.5, 0.5)), steps=10),
    "cubic5": CoefficientSet(
        (
            (3.3656576, -3.3420992, 0.0),
            (2.5744352, -1.4957376, 0.0),
            (2.5368962, -1.4312570, 0.0),
            (2.4418906, -1.2764040, 0.0),
            (2.2230472, -0.9630650, 0.0),
        ),
        fixed=True,
    ),
    "newton_schulz": CoefficientSet(((2.0, -1.5, 0.5),), steps=12),
}


MIXTURES = {
    # For "newton_schulz" with start="schatten4": singular values s become about s^0.1.
    "soft": (
        *(0.1091613623, 0.07085664498, 0.05210528973, 0.05457295795),
        *(0.05011334061, 0.03334622198, 0.05022104481, 0.1053727358),
        *(0.1187323776, 0.1185061091, 0.1185059576, 0.1185059576, 0.0),
    )
}


def default_steps(coefs) -> int:
    """Return the number of steps for which the coefficients were designed."""
    return SETS[coefs].steps if isinstance(coefs, str) and coefs in SETS else 5


def orthogonalizer(
    who: str,
    coefs,
    steps: int | None,
    dtype: torch.dtype | None = None,
    eps=1e-7,
    start: str = "fro",
    mixture=None,
) -> Callable[[Tensor], Tensor]:
    """Return the function that brings the singular values of a matrix near 1; the last polynomial is repeated.

    Raises:
        TypeError: If `dtype` is not a floating-point dtype.
        ValueError: If a name is unknown, if the coefficients are not triples of finite numbers, or if a named set does
            not support the steps or the dtype.
    """
    weights = MIXTURES.get(mixture, ()) if isinstance(mixture, str) else mixture
    if weights is not None and not weights:
        raise ValueError(
            f"{who}: mixture must be 'soft' or a tuple of numbers, got {mixture!r}"
        )
    if weights is not None:
        if steps not in (None, len(weights) - 1):
            raise ValueError(
                f"{who}: a mixture of {len(weights)} requires steps={len(weights) - 1}, got {steps}"
            )
        steps = len(weights) - 1
    if dtype is not None and not (
        isinstance(dtype, torch.dtype) and dtype.is_floating_point
    ):
        raise TypeError(
            f"{who}: dtype must be a floating-point torch.dtype or None, got {describe(dtype)}"
        )
    triples = (
        _named(who, coefs, steps, dtype).triples
        if isinstance(coefs, str)
        else _listed(who, coefs)
    )
    count = default_steps(coefs) if steps is None else steps
    of_steps = [triples[min(i, len(triples) - 1)] for i in range(count)]

    def orthogonalize(x: Tensor) -> Tensor:
        return newton_schulz(x, of_steps, eps, start, dtype, weights)

    return orthogonalize


def _named(
    who: str, name: str, steps: int | None, dtype: torch.dtype | None
) -> CoefficientSet:
    if name not in SETS:
        raise ValueError(
            f"{who}: coefs must be one of {', '.join(SETS)}, or triples of numbers, got {name!r}"
        )
    chosen = SETS[name]
    if chosen.fixed and steps not in (None, chosen.steps):
        raise ValueError(
            f"{who}: coefs={name!r} requires steps={chosen.steps}, got {steps}"
        )
    if not (chosen.in_half or dtype is None or torch.finfo(dtype).bits >= 32):
        raise ValueError(
            f"{who}: coefs={name!r} overflows in {dtype}; iterate in float32"
        )
    return chosen


def _listed(who: str, coefs) -> Sequence[Triple]:
    """Validate explicit coefficients and return them as triples."""
    coefs = as_tuples(coefs)
    is_nested = isinstance(coefs, tuple) and coefs
    if not is_nested or not all(isinstance(item, tuple) for item in coefs):
        coefs = [coefs]
    for item in coefs:
        is_triple = isinstance(item, tuple) and len(item) == 3
        if not is_triple or not all(isinstance(x, float | int) for x in item):
            raise ValueError(
                f"{who}: coefs must be three plain numbers, a tuple of such triples, or a name, got {describe(item)}"
            )
        if not all(map(math.isfinite, item)):
            raise ValueError(f"{who}: coefs must be finite, got {describe(item)}")
    return [(float(a), float(b), float(c)) for a, b, c in coefs]
