"""Operations that round weights to 16 bits. They come last in a chain."""

from __future__ import annotations

import torch
from torch import Tensor

from gradtx import _torch
from gradtx._execution import Leaf, Operation
from gradtx._random import bits16, name_key
from gradtx._runs import Scope
from gradtx._sharding import from_local_like, local, placed_as
from gradtx.codes import CODES, bits_to_round

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
        update = placed_as(leaf.update, param)
        old = leaf.run.slots(self.path, leaf)
        if not old:
            raise ValueError(
                f"{self.name}: leaf {leaf.name!r} has dtype {param.dtype}, but had one that is not rounded when its "
                "state was created; create the optimizer or the state again after changing dtypes"
            )
        before = local(param).to(torch.float32)
        after, slots = self.rounded(leaf, before, local(update).to(torch.float32), old)
        leaf.update = from_local_like((after - before).to(leaf.update.dtype), update)
        new = {
            slot: from_local_like(value, old[slot]) if value.ndim else value
            for slot, value in slots.items()
        }
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
        noise = bits16(local(old["key"]), leaf.moment().step, leaf.places(stored))
        return stochastically_rounded(param + update, noise, stored.dtype), {
            "key": old["key"]
        }


class Compensation(Rounding):
    name = "compensate_rounding"

    def __init__(self, scope: Scope, bits: int):
        super().__init__(scope)
        self._bits = bits

    def first(self, leaf: Leaf, param: Tensor) -> dict[str, Tensor]:
        dtype = torch.int8 if self._bits == 8 else param.dtype
        return {
            "compensation": torch.zeros_like(param, dtype=dtype, requires_grad=False)
        }

    def rounded(
        self, leaf: Leaf, param: Tensor, update: Tensor, old: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        stored = leaf.inputs[1].dtype
        compensation = local(old["compensation"])
        if self._bits == 8:
            after, compensation = _with_int8(param, update, compensation, stored)
        else:
            exact = param + (update + compensation.to(torch.float32))
            after = rounded_to_nearest(exact, stored)
            compensation = (exact - after).to(stored)
        return after, {"compensation": compensation}


def _with_int8(
    param: Tensor, update: Tensor, error: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the rounded new weight, and the rounding error as int8 fractions of half a unit in the last place."""
    if dtype == torch.bfloat16:
        codec = CODES["bfloat16+8"]
        upper, error = codec.encode(codec.decode(param.to(dtype), error) + update)
        return upper.to(torch.float32), error
    exact = param + (update + error.to(torch.float32) * (unit_of_half(param) / 254))
    after = rounded_to_nearest(exact, dtype)
    return after, ((exact - after) * (254 / unit_of_half(after))).round().clamp(
        -127, 127
    ).to(torch.int8)


def unit_of_half(values: Tensor) -> Tensor:
    """Return the float16 unit in the last place of float32 values, a power of two."""
    power = (values.view(torch.int32) & 0x7F800000).view(torch.float32)
    return (power * 2.0**-10).clamp(min=2.0**-24)


def rounded_to_nearest(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Round float32 values to a 16-bit dtype. Inductor would remove a cast and the cast back, so this avoids casts."""
    if dtype == torch.bfloat16:
        bits = bits_to_round(values)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).view(torch.float32)
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
    return (values / unit + noise.to(torch.float32) * 2.0**-16).floor() * unit
