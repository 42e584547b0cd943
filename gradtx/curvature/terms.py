"""Residuals: terms by name, their weights, and the vector whose squares are the loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from gradtx.base.exact import exact_dtype
from gradtx.base.messages import describe

Reduction: TypeAlias = Literal["sum", "mean"]
Weights: TypeAlias = Mapping[str, float]


@dataclass(eq=False)
class Terms:
    """How residuals make a loss: half of the weighted sum over terms of the sum, or mean, of squares.

    Attributes:
        who: The link, for messages.
        reduction: "sum" or "mean", of the squares of each term.
        weights: The weight of each term by name; None for 1.
        takes_means, is_loss: As in `Vectorizer`.
    """

    who: str
    reduction: Reduction = "sum"
    weights: Weights | None = None
    is_loss: bool = True

    def __post_init__(self) -> None:
        _check_weights(self.who, self.weights)

    @property
    def takes_means(self) -> bool:
        return self.reduction == "mean"

    def __call__(self, result: Any) -> Tensor:
        """Return the vector r whose loss is half the sum of its squares, from a tensor or a dict of named terms."""
        return torch.cat(self.parts(result))

    def parts(self, result: Any) -> list[Tensor]:
        """Return the parts of r that come from each term."""
        terms = self._terms(result)
        self._check_names(result, terms)
        if not any(term.numel() for term in terms.values()):
            raise ValueError(f"{self.who}: has no residuals; skip the step")
        dtype = torch.float32
        for term in terms.values():
            dtype = torch.promote_types(dtype, term.dtype)
        device = next(iter(terms.values())).device
        parts: list[Tensor] = []
        for name, term in terms.items():
            factor = 1.0 if self.weights is None else float(self.weights[name])
            if self.takes_means and term.numel():
                factor /= term.numel()
            part = term.reshape(-1)
            if factor != 1.0:
                part = math.sqrt(factor) * part
            parts.append(part.to(device, dtype))
        return parts

    def _terms(self, residuals: Any) -> dict[str, Tensor]:
        """Check what the function returned, and return its terms by name."""
        terms = residuals if isinstance(residuals, Mapping) else {"": residuals}
        for name, term in terms.items():
            where = f"{self.who}: residual_fn" + (f": term {name!r}" if name else "")
            if not isinstance(term, Tensor):
                raise TypeError(
                    f"{where} must return a tensor of residuals, or a dict of such tensors, got {describe(term)}"
                )
            if term.is_complex():
                raise ValueError(
                    f"{where} returns complex residuals; return torch.view_as_real(residuals)"
                )
            if not term.is_floating_point():
                raise ValueError(
                    f"{where} must return floating-point residuals, got {term.dtype}"
                )
            if not term.ndim and len(terms) == 1:
                raise ValueError(
                    f"{where} returns a 0-d tensor, as a loss is; return the residuals themselves, whose squares are "
                    "summed here (a single residual has the shape [1])"
                )
        return dict(terms)

    def _check_names(self, residuals: Any, terms: Mapping[str, Tensor]) -> None:
        """Check that weights and terms have the same names."""
        if self.weights is None:
            return
        if not isinstance(residuals, Mapping):
            raise ValueError(
                f"{self.who}: weights name the terms {sorted(self.weights)}, but residual_fn returns one tensor; "
                "return a dict of named terms"
            )
        unknown = sorted(self.weights.keys() - terms.keys())
        unweighted = sorted(terms.keys() - self.weights.keys())
        if unknown:
            raise ValueError(
                f"{self.who}: weights name {unknown}, which residual_fn does not return; its terms are {sorted(terms)}"
            )
        if unweighted:
            raise ValueError(
                f"{self.who}: terms {unweighted} have no weight; weights names {sorted(self.weights)}"
            )


def _check_weights(who: str, weights: Any) -> None:
    """Check the weights of terms at construction.

    Raises:
        TypeError: If they are no dict of numbers by name.
        ValueError: If one is negative.
    """
    if weights is None:
        return
    if not isinstance(weights, Mapping):
        raise TypeError(
            f"{who}: weights must be a dict of numbers by name of a term, got {describe(weights)}"
        )
    for name, weight in weights.items():
        if not isinstance(name, str) or not isinstance(weight, int | float):
            raise TypeError(
                f"{who}: weights must be a dict of numbers by name of a term, got {describe(weights)}"
            )
        if not 0 <= weight < math.inf:
            raise ValueError(
                f"{who}: weights[{name!r}] must be in [0, inf), got {weight}"
            )


def half_square(vector: Tensor) -> Tensor:
    """Return half the sum of squares, in float64: losses are compared."""
    return vector.to(exact_dtype(vector)).square().sum() / 2
