"""The precision of state and of weights: `with_state_dtype`, `round_stochastically`, `compensate_rounding`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from gradtx.arguments import Static
from gradtx.base import torch_names as _torch
from gradtx.base.dtensor import from_local_like, local
from gradtx.base.errors import Path
from gradtx.distributed.redistribution import distributed_like
from gradtx.execution.execute import Leaf, Operation
from gradtx.execution.runs import Scope
from gradtx.execution.traits import Traits
from gradtx.rules import Combinator, combinator
from gradtx.state.codes import CODES, bits_to_round
from gradtx.state.random import bits16, name_key
from gradtx.state.storage import MIN_SIZE, StateDtype, Storage
from gradtx.transform import GradientTransformation

__all__ = [
    "compensate_rounding",
    "round_stochastically",
    "with_state_dtype",
]


@dataclasses.dataclass(frozen=True)
class Stored(Combinator):
    """Change the storage of a transformation's slots. The combinator itself has no state."""

    tx: GradientTransformation
    storage: Storage

    def expand(self, scope: Scope, name: str) -> list[Any]:
        return self.tx._expand(scope.stored_as(self.storage).child(0))

    def rejects(self) -> tuple[str, ...]:
        return ()


@combinator
def with_state_dtype(
    tx: GradientTransformation,
    state_dtype: Static[StateDtype],
    min_size: Static[int] = MIN_SIZE,
):
    r"""Store the state of a chain in fewer bits; every rule computes in at least float32.

    A slot `exp_avg` is stored as its codes, in the shape of the parameter, and `exp_avg.scale`, one float32 value per
    block of entries. Some slots are not coded: those of leaves with fewer than `min_size` entries, those not shaped
    like their parameter, and 0-d ones. A pattern without a wildcard codes its slot in any case. "int4" stores two
    entries of the last dimension in a byte, and does not code a slot in which that dimension has fewer. "factored"
    codes a slot as a whole, and not if ranks divide it: for $m$ as the matrix nearest to a square, `exp_avg.row` and
    `exp_avg.column` are the factors $r = |m| 1$ and $c = |m|^\top 1 / (1^\top |m| 1)$ of $|m| \approx r c^\top$, and
    `exp_avg` has the signs, eight in a byte; slots that are never negative need none. It takes no weights, and no
    average that a rule divides by the root of an exact square.

    Args:
        tx: The transformation.
        state_dtype: One of

            - a floating-point dtype, for all slots;
            - the name of a code: "int8" (1.06 bytes per entry), "int4" (0.63), "float8" (1.06), "bfloat16+8" (3, with a
              relative error of 2^-16), "bfloat16:stochastic" (2, stochastic rounding without bias), "factored" (0.13; 0
              without signs);
            - a `Codec`;
            - a dict slot pattern -> one of these; the first match counts, other slots remain unchanged.
        min_size: The minimum number of entries of a leaf whose slots are coded.

    Returns:
        A transformation with the state of `tx` in the new format. An inner link with its own `state_dtype` keeps it.

    Raises:
        TypeError: If `tx` is not a transformation, if `state_dtype` is not a dtype or a code, or if a code is unknown.
        ValueError: If `state_dtype` is an empty dict, if `min_size` is not a non-negative int, or if, at init, a
            pattern matches no slot, or if a slot cannot be "factored".

    Example:
        >>> tx = gradtx.with_state_dtype(
        ...     gradtx.adam(), {"exp_avg": "int8", "exp_avg_sq": torch.bfloat16}
        ... )
        >>> state = tx.init({"w": torch.zeros(64, 64)})
        >>> {slot: values["w"].dtype for slot, values in state["scale_by_adam"].items()}
        {'exp_avg': torch.int8, 'exp_avg.scale': torch.float32, 'exp_avg_sq': torch.bfloat16}

    Source: Dettmers et al. 2022, arXiv:2110.02861; of "factored" Park & Lee 2024, arXiv:2412.08894. Departures: codes
    are computed with softsign and square root instead of tables; blocks lie within rows, so that a shard of a parameter
    is a shard of its codes. The authors of SMMF keep a sign in a byte in their code, and in a bit in the paper.
    """
    return Stored(tx, Storage("with_state_dtype", state_dtype, min_size))


@combinator(needs="params", rounds=True)
def round_stochastically(seed: int = 0):
    """Round 16-bit weights at random to one of the two neighbors, so that small updates count on average.

    A weight p with the update u becomes one of the neighbors of p + u in its dtype, with the expected value p + u. With
    rounding to nearest, updates below half a unit in the last place are lost: in bfloat16 those below 2^-9 of the
    weight. The noise depends only on the seed, the leaf's name, the step and the entry's index in the whole tensor, so
    it is the same when compiled, on any number of processes, and after resuming. Leaves in float32 and float64 pass
    through unchanged. Must be last in a chain; only `record` may follow.

    Args:
        seed: Selects the noise.

    Returns:
        A transformation that returns the difference between the rounded and the old weight. State: `key`, a 0-d int64
        for each 16-bit leaf.

    Raises:
        TypeError: If it is inside a combinator whose updates change when they leave, such as `with_lookahead`.
        ValueError: If `params` is missing in `update`, if a link other than `record` follows in the same chain, or if a
            derivative is taken through the rounding.

    Example:
        >>> tx = gradtx.chain(gradtx.sgd(lr=1e-3), gradtx.round_stochastically())
        >>> params = {"w": torch.ones(10_000, dtype=torch.bfloat16)}
        >>> updates, _ = tx.update(
        ...     {"w": torch.full_like(params["w"], -1.0)}, tx.init(params), params
        ... )
        >>> sorted(set(updates["w"].tolist())), round(updates["w"].mean().item(), 4)
        ([0.0, 0.0078125], 0.001)

    Source: Gupta et al. 2015, arXiv:1502.02551. Departures: none.
    """

    def first(leaf):
        key = name_key(f"{seed} {leaf.name}")
        return {"key": torch.full((), key, dtype=torch.int64, device=leaf.device)}

    def rounded(leaf, param, update, slots):
        stored = leaf.inputs[1]
        step = leaf.clock.on(leaf.device).step
        noise = bits16(local(slots["key"]), step, leaf.positions(stored))
        return stochastically_rounded(param + update, noise, stored.dtype), slots

    return Rounded(first, rounded, positional=True)


@combinator(needs="params", rounds=True)
def compensate_rounding(bits: Literal[8, 16] = 16):
    """Store the rounding error of 16-bit weights and add it to the next update (Kahan summation).

    A weight plus its compensation equals p + u, up to 2^-16 of the weight (`bits=8`) or up to the rounding of the
    compensation (`bits=16`; 2^-8 of it in bfloat16). Leaves in float32 and float64 pass through unchanged. Must be last
    in a chain; only `record` may follow.

    Args:
        bits: 16 for a compensation in the parameter's dtype; 8 for one in 128 steps of half a unit in the last place.

    Returns:
        A transformation that returns the difference between the rounded and the old weight. State: `compensation`, in
        the shape of each 16-bit leaf. `eval_params` returns the weights without it.

    Raises:
        TypeError: If it is inside a combinator whose updates change when they leave, such as `with_lookahead`.
        ValueError: If `bits` is neither 8 nor 16, if `params` is missing in `update`, if a link other than `record`
            follows in the same chain, or if a derivative is taken through the rounding.

    Example:
        >>> tx = gradtx.chain(gradtx.sgd(lr=1e-3), gradtx.compensate_rounding())
        >>> params = {"w": torch.ones(1, dtype=torch.bfloat16)}
        >>> state = tx.init(params)
        >>> for _ in range(100):
        ...     updates, state = tx.update(
        ...         {"w": torch.full_like(params["w"], -1.0)}, state, params
        ...     )
        ...     params = gradtx.apply_updates(params, updates)
        >>> params["w"].item()
        1.1015625

    Source: Kahan 1965, doi:10.1145/363707.363723; Zamirai et al. 2020, arXiv:2010.06192. Departures: `bits=8` is
    an addition.
    """

    def first(leaf):
        param = leaf.inputs[1]
        dtype = torch.int8 if bits == 8 else param.dtype
        zeros = torch.zeros_like(param, dtype=dtype, requires_grad=False)
        return {"compensation": zeros}

    def rounded(leaf, param, update, slots):
        error = local(slots["compensation"])
        param, error = compensated(param, update, error, leaf.inputs[1].dtype)
        return param, {"compensation": error}

    return Rounded(first, rounded)


HALVES = (torch.bfloat16, torch.float16)


@dataclasses.dataclass(frozen=True)
class Rounded(Combinator):
    """Round the weights of 16-bit leaves after the last link.

    Attributes:
        first: `leaf -> slots`, the initial slots.
        rounded: `(leaf, param, update, slots) -> (new_param, slots)` for weights and updates in float32.
        positional: As in `Traits`.
    """

    first: Callable[[Leaf], dict[str, Tensor]]
    rounded: Callable[..., tuple[Tensor, dict[str, Tensor]]]
    positional: bool = False

    def expand(self, scope: Scope, name: str) -> list[Any]:
        return [Rounding(self, scope.claim(name), name)]


class Rounding(Operation):
    """Replace the update so that the new weight is representable in the parameter's dtype; skip float32 leaves."""

    def __init__(self, rounding: Rounded, path: Path, name: str):
        self.path = path
        self.traits = Traits(constants=("key",), positional=rounding.positional)
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
        update = distributed_like(leaf.update, param)
        old_weights = local(param).to(torch.float32)
        change = local(update).to(torch.float32)
        new_weights, slots = self._rounding.rounded(leaf, old_weights, change, old)
        change = (new_weights - old_weights).to(leaf.update.dtype)
        leaf.update = from_local_like(change, update)
        new_slots = {
            slot: from_local_like(value, old[slot]) if value.ndim else value
            for slot, value in slots.items()
        }
        leaf.new[self.path] = leaf.unless_skipped(new_slots, old)


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
    exponent_bits = _torch.same_bits(values, torch.int32) & 0x7F800000
    power = _torch.same_bits(exponent_bits, torch.float32)
    return (power * 2.0**-10).clamp(min=2.0**-24)


def rounded_to_nearest(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Round float32 values to a 16-bit dtype. Inductor would remove a cast and the cast back, so this avoids casts."""
    if dtype == torch.bfloat16:
        bits = bits_to_round(values)
        is_odd = (bits >> 16) & 1  # the last kept bit: ties round to even
        upper = (bits + 0x7FFF + is_odd) >> 16 << 16
        return _torch.same_bits(upper, torch.float32)
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
        return _torch.same_bits(bits >> 16 << 16, torch.float32)
    unit = unit_of_half(values)
    fraction = noise.to(torch.float32) * 2.0**-16
    return (values / unit + fraction).floor() * unit
