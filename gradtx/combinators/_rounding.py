"""Operations that round weights to 16 bits. They come last in a chain."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gradtx.base import torch_names as _torch
from gradtx.base.dtensor import from_local_like, local, placed_as
from gradtx.base.errors import Path
from gradtx.execution.execute import Leaf, Operation
from gradtx.execution.runs import Scope
from gradtx.rules import Combinator
from gradtx.state.codes import CODES, bits_to_round

HALVES = (torch.bfloat16, torch.float16)


@dataclasses.dataclass(frozen=True)
class Rounded(Combinator):
    """Round the weights of 16-bit leaves after the last link.

    Attributes:
        first: `leaf -> slots`, the initial slots.
        rounded: `(leaf, param, update, slots) -> (new_param, slots)` for weights and updates in float32.
        positional: As in `Operation`.
    """

    first: Callable[[Leaf], dict[str, Tensor]]
    rounded: Callable[..., tuple[Tensor, dict[str, Tensor]]]
    positional: bool = False

    def expand(self, scope: Scope, name: str) -> list[Any]:
        return [Rounding(self, scope.claim(name), name)]


class Rounding(Operation):
    """Replace the update so that the new weight is representable in the parameter's dtype; skip float32 leaves."""

    constants = ("key",)

    def __init__(self, rounding: Rounded, path: Path, name: str):
        self.path = path
        self.positional = rounding.positional
        self._rounding = rounding
        self._name = name

    def init(self, leaf: Leaf) -> None:
        if leaf.inputs[1].dtype in HALVES:
            leaf.new[self.path] = self._rounding.first(leaf)

    def start(self, leaf: Leaf) -> None:
        param = leaf.inputs[1]
        if param.dtype not in HALVES:
            return
        if _torch.has_derivative(leaf.update):
            raise ValueError(
                f"{self._name}: cannot differentiate through the rounding of leaf {leaf.name!r}; train in float32, "
                "or detach the input"
            )
        old = leaf.run.slots(self.path, leaf)
        if not old:
            raise ValueError(
                f"{self._name}: leaf {leaf.name!r} has dtype {param.dtype}, but had one that is not rounded when its "
                "state was created; create the optimizer or the state again after changing dtypes"
            )
        update = placed_as(leaf.update, param)
        old_weights = local(param).to(torch.float32)
        change = local(update).to(torch.float32)
        new_weights, slots = self._rounding.rounded(leaf, old_weights, change, old)
        change = (new_weights - old_weights).to(leaf.update.dtype)
        leaf.update = from_local_like(change, update)
        new = {
            slot: from_local_like(value, old[slot]) if value.ndim else value
            for slot, value in slots.items()
        }
        leaf.new[self.path] = leaf.unless_skipped(new, old)


def compensated(
    param: Tensor, update: Tensor, error: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the new weights in a 16-bit dtype, as float32, and their rounding error in the dtype of the old one."""
    if error.dtype == dtype:  # Kahan summation
        exact = param + (update + error.to(torch.float32))
        rounded = rounded_to_nearest(exact, dtype)
        return rounded, (exact - rounded).to(dtype)
    if dtype == torch.bfloat16:
        # The error is the lower 8 of the upper 24 bits of a float32.
        codec = CODES["bfloat16+8"]
        exact = codec.decode(param.to(torch.bfloat16), error) + update
        rounded, error = codec.encode(exact)
        return rounded.to(torch.float32), error
    # The error is in 1/127 of half a unit in the last place.
    exact = param + (update + error.to(torch.float32) * (unit_of_half(param) / 254))
    rounded = rounded_to_nearest(exact, torch.float16)
    error = (exact - rounded) * (254 / unit_of_half(rounded))
    return rounded, error.round().clamp(-127, 127).to(torch.int8)


def unit_of_half(values: Tensor) -> Tensor:
    """Return the float16 unit in the last place of float32 values, a power of two."""
    exponent_bits = values.view(torch.int32) & 0x7F800000
    power = exponent_bits.view(torch.float32)
    return (power * 2.0**-10).clamp(min=2.0**-24)


def rounded_to_nearest(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Round float32 values to a 16-bit dtype. Inductor would remove a cast and the cast back, so this avoids casts."""
    if dtype == torch.bfloat16:
        bits = bits_to_round(values)
        is_odd = (bits >> 16) & 1  # the last kept bit: ties round to even
        upper = (bits + 0x7FFF + is_odd) >> 16 << 16
        return upper.view(torch.float32)
    unit = unit_of_half(values)
    return (values / unit).round() * unit


def stochastically_rounded(values: Tensor, noise: Tensor, dtype: torch.dtype) -> Tensor:
    """Round each value to one of its two neighbors in a 16-bit dtype, so that the expected result is the value.

    Args:
        values: In float32.
        noise: Random nonnegative integers below 2^16.
        dtype: bfloat16 or float16.
    """
    if dtype == torch.bfloat16:
        bits = bits_to_round(values) + noise.to(torch.int32)
        return (bits >> 16 << 16).view(torch.float32)
    unit = unit_of_half(values)
    fraction = noise.to(torch.float32) * 2.0**-16
    return (values / unit + fraction).floor() * unit
