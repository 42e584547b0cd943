"""Operations that round weights to 16 bits. They come last in a chain."""

from __future__ import annotations

import torch
from torch import Tensor

from gradtx.base import torch_names as _torch
from gradtx.base.dtensor import from_local_like, local, placed_as
from gradtx.execution.execute import Leaf, Operation
from gradtx.execution.runs import Scope
from gradtx.state.codes import CODES, bits_to_round
from gradtx.state.random import bits16, name_key

HALVES = (torch.bfloat16, torch.float16)


class Rounding(Operation):
    """Replace the update so that the new weight is representable in the parameter's dtype; skip float32 leaves."""

    name: str

    def __init__(self, scope: Scope):
        self.path = scope.claim(self.name)

    def init(self, leaf: Leaf) -> None:
        param = leaf.inputs[1]
        if param.dtype in HALVES:
            leaf.new[self.path] = self.first(leaf, param)

    def start(self, leaf: Leaf) -> None:
        param = leaf.inputs[1]
        if param is None:
            raise ValueError(
                f"{self.name} needs params: call update(updates, state, params)"
            )
        if param.dtype not in HALVES:
            return
        if _torch.has_derivative(leaf.update):
            raise ValueError(
                f"{self.name}: cannot differentiate through the rounding of leaf {leaf.name!r}; train in float32, "
                "or detach the input"
            )
        old = leaf.run.slots(self.path, leaf)
        if not old:
            raise ValueError(
                f"{self.name}: leaf {leaf.name!r} has dtype {param.dtype}, but had one that is not rounded when its "
                "state was created; create the optimizer or the state again after changing dtypes"
            )
        update = placed_as(leaf.update, param)
        old_weights = local(param).to(torch.float32)
        change = local(update).to(torch.float32)
        new_weights, slots = self.rounded(leaf, old_weights, change, old)
        change = (new_weights - old_weights).to(leaf.update.dtype)
        leaf.update = from_local_like(change, update)
        new: dict[str, Tensor] = {}
        for slot, value in slots.items():
            new[slot] = from_local_like(value, old[slot]) if value.ndim else value
        leaf.new[self.path] = leaf.unless_skipped(new, old)

    def first(self, leaf: Leaf, param: Tensor) -> dict[str, Tensor]:
        """Return the initial slots of a leaf."""
        raise NotImplementedError

    def rounded(
        self, leaf: Leaf, param: Tensor, update: Tensor, old: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the rounded new weights, in float32, and the new slots."""
        raise NotImplementedError


class StochasticRounding(Rounding):
    """Round to one of the two neighbors at random, with noise that follows from a key, the step and the place."""

    name = "round_stochastically"
    positional = True
    constants = ("key",)

    def __init__(self, scope: Scope, seed: int):
        super().__init__(scope)
        self._seed = seed

    def first(self, leaf: Leaf, param: Tensor) -> dict[str, Tensor]:
        key = name_key(f"{self._seed} {leaf.name}")
        return {"key": torch.full((), key, dtype=torch.int64, device=leaf.device)}

    def rounded(
        self, leaf: Leaf, param: Tensor, update: Tensor, old: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        stored = leaf.inputs[1]
        key = old["key"]
        noise = bits16(local(key), leaf.clock_reading().step, leaf.places(stored))
        new_weights = stochastically_rounded(param + update, noise, stored.dtype)
        return new_weights, {"key": key}


class Compensation(Rounding):
    """Round to nearest, and add the rounding error of a step to the next update."""

    name = "compensate_rounding"

    def __init__(self, scope: Scope, bits: int):
        super().__init__(scope)
        self._bits = bits

    def first(self, leaf: Leaf, param: Tensor) -> dict[str, Tensor]:
        dtype = torch.int8 if self._bits == 8 else param.dtype
        zeros = torch.zeros_like(param, dtype=dtype, requires_grad=False)
        return {"compensation": zeros}

    def rounded(
        self, leaf: Leaf, param: Tensor, update: Tensor, old: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        dtype = leaf.inputs[1].dtype
        error = local(old["compensation"])
        if self._bits == 16:
            new_weights, error = _with_error_in_dtype(param, update, error, dtype)
        elif dtype == torch.bfloat16:
            new_weights, error = _bfloat16_with_int8(param, update, error)
        else:
            new_weights, error = _float16_with_int8(param, update, error)
        return new_weights, {"compensation": error}


# Each returns the rounded new weights, in float32, and the rounding error.


def _with_error_in_dtype(
    param: Tensor, update: Tensor, error: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Store the error in the weights' dtype: Kahan summation."""
    exact = param + (update + error.to(torch.float32))
    rounded = rounded_to_nearest(exact, dtype)
    return rounded, (exact - rounded).to(dtype)


def _bfloat16_with_int8(
    param: Tensor, update: Tensor, error: Tensor
) -> tuple[Tensor, Tensor]:
    """Store the error as the lower 8 of the upper 24 bits of a float32."""
    codec = CODES["bfloat16+8"]
    exact = codec.decode(param.to(torch.bfloat16), error) + update
    rounded, error = codec.encode(exact)
    return rounded.to(torch.float32), error


def _float16_with_int8(
    param: Tensor, update: Tensor, error: Tensor
) -> tuple[Tensor, Tensor]:
    """Store the error in 1/127 of half a unit in the last place."""
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
