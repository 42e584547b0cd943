"""Storage of slots: the argument `state_dtype`, and the conversion of a stage's slots that it specifies."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Generator, Mapping, Sequence, Set
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeAlias, TypeGuard

import torch
from torch import Tensor

from gradtx.base import torch_names as _torch
from gradtx.base.dtensor import from_local_like, is_sharded, local
from gradtx.base.errors import Path, StateKey
from gradtx.base.forward import Leaf, Run
from gradtx.base.inputs import named_dtype
from gradtx.base.messages import check_device, close, describe, note_rule
from gradtx.distributed.layouts import splits_rows
from gradtx.distributed.redistribution import distributed_like
from gradtx.slots import Slot
from gradtx.state.codes import BUILT_IN, CODES, KEY, Codec
from gradtx.state.random import bits16, name_key
from gradtx.state.slots import first_value, kind_of, value_for, widened, wrong_shape

# In smaller leaves, codes save too little memory for the time that they cost.
MIN_SIZE = 4096

_KEEPS_OLD_CODES: ContextVar[bool] = ContextVar("keeps_old_codes", default=False)


@contextmanager
def keeping_old_codes() -> Generator[None, None, None]:
    """Let new states have the old codes, so that updates have derivatives: for callers that drop the new states."""
    token = _KEEPS_OLD_CODES.set(True)
    try:
        yield
    finally:
        _KEEPS_OLD_CODES.reset(token)


Choice: TypeAlias = torch.dtype | Codec
Slots: TypeAlias = dict[str, Tensor]
# Returns the slots that a rule creates for a tensor.
Probe = Callable[[Tensor], Mapping[str, Tensor]]
StateDtype = torch.dtype | str | Codec | Mapping[str, Any]


class DtypeRule(NamedTuple):
    """One entry of a `state_dtype`: a pattern, and the dtype or code of the slots that it matches.

    Attributes:
        pattern, choice: The entry.
        min_size: The smallest number of entries of a leaf whose slots are coded.
    """

    pattern: str
    choice: Choice
    min_size: int

    @property
    def is_named(self) -> bool:
        """Whether the pattern has no wildcard, so that it names one slot of any shape."""
        return not any(character in self.pattern for character in "*?[")

    def matches(self, path: Path, slot: str) -> bool:
        """Whether the pattern matches a slot's name or path."""
        names = (slot, ".".join([*path, slot]))
        return any(_name_matches(name, self.pattern) for name in names)

    def may_code(self, value: Any, like: Tensor) -> bool:
        """Whether a slot is of a kind that is coded: named, or of the parameter's shape and large enough."""
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return False
        has_shape = value.ndim > 0 and value.shape == like.shape
        return self.is_named or (has_shape and like.numel() >= self.min_size)


class Storage:
    """A checked `state_dtype`: a dtype or a code for each slot.

    Args:
        who: The name of the factory, for errors.
        choice: A dtype, the name of a code, a `Codec`, or a dict slot pattern -> one of these.
        min_size: The smallest number of entries of a leaf whose slots are coded.

    Attributes:
        rules: Its entries.
        has_patterns: Whether these were given with patterns, each of which must match a slot.
        has_codes: Whether any slot may be coded.
        draws: Whether a code rounds at random.
    """

    def __init__(self, who: str, choice: Any, min_size: int = MIN_SIZE):
        if isinstance(choice, Mapping) and not choice:
            raise ValueError(
                f"{who}: state_dtype is empty; pass a dict slot -> dtype, such as {{'*': 'int8'}}"
            )
        if type(min_size) is not int or min_size < 0:
            raise ValueError(
                f"{who}: min_size must be a non-negative int, got {describe(min_size)}"
            )
        self.has_patterns = isinstance(choice, Mapping)
        by_pattern = choice if self.has_patterns else {"*": choice}
        rules: list[DtypeRule] = []
        for pattern, value in by_pattern.items():
            if not isinstance(pattern, str):
                raise TypeError(
                    f"{who}: state_dtype has the key {pattern!r}, needs a slot pattern such as 'exp_avg'"
                )
            rules.append(DtypeRule(pattern, _choice_of(who, value), min_size))
        self.rules = rules
        self._rule_of_slot: dict[StateKey, DtypeRule | None] = {}
        codecs = [rule.choice for rule in rules if isinstance(rule.choice, Codec)]
        self.has_codes = bool(codecs)
        self.draws = any(codec.random for codec in codecs)

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Storage) and self.rules == other.rules

    def __hash__(self) -> int:
        return hash(len(self.rules))

    def compute_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Return the dtype that rules compute in, given the one that they would use without this storage."""
        for rule in self.rules:
            if isinstance(rule.choice, torch.dtype):
                dtype = torch.promote_types(dtype, rule.choice)
        return dtype

    def rule_for(self, path: Path, slot: str) -> DtypeRule | None:
        """Return the first rule that matches a slot, or None."""
        key = (path, slot)
        if key not in self._rule_of_slot:
            matching = (rule for rule in self.rules if rule.matches(path, slot))
            self._rule_of_slot[key] = next(matching, None)
        return self._rule_of_slot[key]


@_torch.assume_constant
def _name_matches(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name, pattern)


def check_patterns(seen: Mapping[Storage, set[StateKey]]) -> None:
    """Raise an error for a pattern of a `state_dtype` that matches none of the slots that it applies to."""
    for storage, slots in seen.items():
        for rule in storage.rules if storage.has_patterns else ():
            if not any(rule.matches(path, slot) for path, slot in slots):
                known = ", ".join(sorted({slot for _, slot in slots})) or "none"
                raise ValueError(
                    f"state_dtype: pattern {rule.pattern!r} matches no slot of the chain; its slots: {known}"
                )


def _choice_of(who: str, value: Any) -> Choice:
    """Check a value of `state_dtype` and return its dtype or code."""
    if isinstance(value, Codec):
        if BUILT_IN.get(value.name, value).encode is not value.encode:
            raise ValueError(
                f"{who}: {value.name!r} is a built-in code; give your Codec another name"
            )
        return value
    if isinstance(value, str) and value in CODES:
        return CODES[value]
    dtype = named_dtype(value) if isinstance(value, str) else value
    if _is_of_slots(dtype):
        return dtype
    suggestion = _meant_by(value)
    hint = "" if suggestion is None else f"did you mean {suggestion}? "
    raise TypeError(
        f"{who}: state_dtype must be a floating-point torch.dtype of 16 bits or more, got {describe(value)}; {hint}"
        f"or a code, {', '.join(map(repr, CODES))}, a Codec, or a dict slot pattern -> one of these"
    )


def _is_of_slots(value: Any) -> TypeGuard[torch.dtype]:
    """Whether a value is a dtype that slots may have; torch does not compute with smaller ones."""
    is_floating = isinstance(value, torch.dtype) and value.is_floating_point
    return is_floating and value.itemsize > 1


def _meant_by(value: Any) -> str | None:
    """Return what a wrong `state_dtype` means: the dtype of that name or a similar code, or None."""
    is_small = isinstance(value, torch.dtype) and value.itemsize == 1
    if not is_small and not isinstance(value, str):
        return None
    name = str(value).removeprefix("torch.")
    suggestion = close(name.partition("_")[0], CODES)
    return None if suggestion is None else repr(suggestion)


class Store:
    """Convert the slots of one stage: encode the values that a rule returns, decode and widen those that it reads.

    Args:
        path: The stage's path.
        who: The name of the rule, for errors.
        storage: The `state_dtype` of the stage, if any.
        slot_of: Returns what the rule declares of a slot.
        run: The call of `init` or `update`.
        is_amplified: Whether small errors in the slots can become as large as an update.
    """

    def __init__(
        self,
        path: Path,
        who: str,
        storage: Storage | None,
        slot_of: Callable[[str], Slot],
        run: Run,
        is_amplified: bool = False,
    ):
        self.path = path
        self.storage = storage
        self._who = who
        self._slot_of = slot_of
        self._is_amplified = is_amplified
        # Do not store `run` itself: a reference cycle would keep its tensors until the garbage collector runs.
        self._seen_slots: set[StateKey] | None = None
        if run.initial and storage is not None:
            self._seen_slots = run.seen_slots[storage]
        run.stores[path] = self

    @property
    def draws(self) -> bool:
        return self.storage is not None and self.storage.draws

    def compute_dtype(self, leaf: Leaf) -> torch.dtype:
        """Return the dtype that the rule computes in."""
        return (
            leaf.compute_dtype
            if self.storage is None
            else self.storage.compute_dtype(leaf.compute_dtype)
        )

    def _codec(self, slot: str) -> Codec | None:
        """Return the code that `state_dtype` specifies for a slot, or None."""
        rule = self._rule(slot)
        if rule is None or not isinstance(rule.choice, Codec):
            return None
        return rule.choice.for_sign(self._slot_of(slot).kind == "square")

    def _rule(self, slot: str) -> DtypeRule | None:
        """Return the rule of `state_dtype` for a slot, or None."""
        return None if self.storage is None else self.storage.rule_for(self.path, slot)

    def codecs_of(self, stored: Mapping[str, Any], leaf: Leaf) -> Mapping[str, Codec]:
        """Return the code of each coded slot of a leaf."""
        storage = self.storage
        if storage is None or not storage.has_codes:
            return {}
        if leaf.layout is not None:
            return leaf.layout.codes.get(self.path, {})
        codecs: dict[str, Codec] = {}
        size = math.prod(leaf.shape)
        for slot, tensor in stored.items():
            rule, codec = self._rule(slot), self._codec(slot)
            if rule is None or codec is None:
                continue
            keys = [f"{slot}.{suffix}" for suffix in codec.suffixes]
            is_coded = all(key in stored for key in keys)
            if not keys:  # judged by its dtype and shape
                has_shape = tensor.shape == codec.shapes(leaf.shape)[""]
                is_large = size >= rule.min_size
                is_coded = rule.is_named or (is_large and has_shape)
                if tensor.dtype in (leaf.param_dtype, torch.int64, torch.bool):
                    is_coded = False
            if is_coded:
                codecs[slot] = codec
        return codecs

    # Initial slots.

    def first(
        self,
        slots: dict[str, Any],
        like: Tensor,
        leaf: Leaf,
        old: Mapping[str, Any] | None,
        probe: Probe | None = None,
        has_coordinates: bool = False,
    ) -> dict[str, Any]:
        """Convert slots that `init` returned to their stored form.

        Args:
            slots: The slots.
            like: The parameter in the dtype that rules compute in.
            leaf: The leaf.
            old: Existing slots, which determine the slots to code; None at init, where sizes determine them.
            probe: Returns the slots of another parameter, to distinguish a square factor from a slot of leaf shape.
            has_coordinates: Whether a combinator keeps these slots in coordinates of its own.

        Raises:
            ValueError: If a slot cannot be in its code.
        """
        codecs: Mapping[str, Codec] = {}
        if old is not None:
            codecs = self.codecs_of(old, leaf)
        elif self.storage is not None and self.storage.has_codes:
            codecs = self._codecs_for(slots, like, probe)
            self._check_mixed(codecs, slots, like, leaf, has_coordinates)
        if self._seen_slots is not None:
            self._seen_slots.update((self.path, slot) for slot in slots)
            for slot, codec in codecs.items():
                leaf.codecs[self.path, slot] = codec
        stored: Slots = {}
        for slot, value in slots.items():
            codec = codecs.get(slot)
            dtype = like.dtype  # of a slot that is coded below
            if codec is None:
                dtype = self._dtype(slot, value, like, leaf)
            value = first_value(slot, value, like, dtype, self._who)
            if codec is None:
                stored[slot] = value
            else:
                stored.update(self._packed(slot, codec, value, old, leaf, initial=True))
        return stored

    def _dtype(self, slot: str, value: Any, like: Tensor, leaf: Leaf) -> torch.dtype:
        """Return the dtype to store a slot in that is not coded."""
        declared, rule = self._slot_of(slot), self._rule(slot)
        # Errors of squares stay relative to each of them; those of others spread over entries.
        is_wide = declared.slow or (self._is_amplified and declared.kind != "square")
        is_wide |= (
            isinstance(value, Tensor) and value.ndim == 0 < like.ndim
        )  # it costs no memory
        if leaf.param_dtype == torch.float16:
            # Squares of gradients below 2.4e-4 would be 0 there. Slots of unknown kind may be factors of squares.
            is_wide |= declared.kind != "linear"
        if rule is not None:
            if isinstance(rule.choice, torch.dtype):
                return rule.choice
            # Not coded, because sharding splits a block, or because codes would not determine the slot's shape.
            is_wide |= rule.may_code(value, like)
        wide = torch.promote_types(leaf.param_dtype, torch.float32)
        return wide if is_wide else leaf.param_dtype

    def _codecs_for(
        self, slots: dict[str, Any], like: Tensor, probe: Probe | None
    ) -> dict[str, Codec]:
        """Return the code of each slot to code."""
        codecs = {}
        by_shape: list[str] = []
        for slot, value in slots.items():
            rule, codec = self._rule(slot), self._codec(slot)
            if rule is None or codec is None:
                continue
            if codec.mixes_entries and self._is_weight(slot, value, like):
                if rule.is_named:
                    raise ValueError(
                        f"{self._who}: slot {slot!r} holds weights, which {codec.name!r} would move far; "
                        "remove it from state_dtype, or choose a dtype or 'bfloat16+8' for it"
                    )
                continue
            if (
                rule.may_code(value, like)
                and not _is_split(like, codec)
                and codec.restores(value.shape, like.shape)
            ):
                codecs[slot] = codec
                if not rule.is_named:
                    by_shape.append(slot)
        if by_shape and probe is not None and like.ndim > 1:
            # A slot that only happens to have the parameter's shape has another one for a longer parameter.
            longer = _with_other_sizes(like)
            try:
                slots_of_longer = probe(longer)
            except (RuntimeError, ValueError):  # a rule that accepts only some shapes
                return codecs
            for slot in by_shape:
                other = slots_of_longer.get(slot)
                if other is None or other.shape != longer.shape:
                    del codecs[slot]
        return codecs

    def _is_weight(self, slot: str, value: Any, like: Tensor) -> bool:
        """Whether a slot holds weights: it says so, or it is the parameter."""
        return self._slot_of(slot).is_weight or value is like

    def _check_mixed(
        self,
        codecs: Mapping[str, Codec],
        slots: Mapping[str, Any],
        like: Tensor,
        leaf: Leaf,
        has_coordinates: bool,
    ) -> None:
        """Refuse a vector in a code that mixes entries beside squares that are 0 where the decoded vector is not.

        The code gives an entry the share of its row and of its column, although all of its gradients may have been 0
        or tiny. Its quotient by the root of its own square, which is exact, would be as large as 1 / eps. A square of
        the same shape in such a code has a share as well.
        """
        vectors = [
            slot
            for slot, codec in codecs.items()
            if codec.mixes_entries and self._slot_of(slot).kind == "linear"
        ]
        if not vectors:
            return
        for slot, value in slots.items():
            if self._slot_of(slot).kind != "square":
                continue
            codec = codecs.get(slot)
            has_shares = codec is not None and codec.mixes_entries
            if has_shares and not has_coordinates:
                continue
            vector, code = vectors[0], codecs[vectors[0]].name
            remedy = f"choose another code for it, such as {{{vector!r}: 'int8'}}"
            if value.shape == like.shape and not has_coordinates:
                remedy += f", or {code!r} for both"
            raise ValueError(
                f"{self._who}: state_dtype cannot store {vector!r} of leaf {leaf.name!r} as {code!r} beside "
                f"{slot!r}: it is not 0 where all gradients were, but {slot!r} is, and the rule divides by it; {remedy}"
            )

    # Reading and writing.

    def decode_slots(
        self, stored: Slots, compute_dtype: torch.dtype, leaf: Leaf
    ) -> Slots:
        """Return the slots as rules see them."""
        codecs = self.codecs_of(stored, leaf)
        auxiliary = auxiliary_tensors(codecs)
        values = {}
        for slot, value in stored.items():
            if slot in codecs:
                value = self._decoded(slot, codecs[slot], stored, leaf)
                values[slot] = value.to(compute_dtype)
            elif slot not in auxiliary:
                values[slot] = widened(value, compute_dtype)
        return values

    def slots_of(self, stored: Mapping[str, Tensor], leaf: Leaf) -> Set[str]:
        """Return the names of the slots that these tensors store."""
        return stored.keys() - auxiliary_tensors(self.codecs_of(stored, leaf))

    def shared_dtype(self, name: str) -> torch.dtype | None:
        """Return the dtype of a shared value if a pattern without wildcards names it; record its name."""
        if self._seen_slots is not None:
            self._seen_slots.add((self.path, name))
        rule = self._rule(name)
        if rule is None or not rule.is_named:
            return None
        if isinstance(rule.choice, Codec):
            raise ValueError(
                f"{self._who}: {name!r} is a shared scalar and cannot be coded; choose a floating-point dtype"
            )
        return rule.choice

    def encode_slots(self, values: Mapping[str, Any], old: Slots, leaf: Leaf) -> Slots:
        """Convert new values of the slots to the form in which the old ones are stored."""
        codecs = self.codecs_of(old, leaf)
        stored = dict(old)
        for slot, value in values.items():
            if slot in codecs and _KEEPS_OLD_CODES.get():
                continue
            if slot in codecs:
                stored.update(self._packed(slot, codecs[slot], value, old, leaf))
            else:
                stored[slot] = value_for(value, old[slot], self.path, slot, leaf.name)
        return stored

    def _packed(
        self,
        slot: str,
        codec: Codec,
        value: Any,
        old: Mapping[str, Tensor] | None,
        leaf: Leaf,
        initial: bool = False,
    ) -> Slots:
        """Return the tensors that store a value, with the old random key if there is one.

        The key depends on the leaf's name only, so a restart keeps it: a program that several leaves share cannot
        contain a new one.

        Args:
            slot: The slot.
            codec: Its code.
            value: The value.
            old: The tensors that store the old value, if any.
            leaf: The leaf.
            initial: Whether the value is the initial one, which replaces the old one at a restart.
        """
        dotted = ".".join([*self.path, slot])
        if not isinstance(value, Tensor):
            raise TypeError(
                f"{dotted}: the new value of leaf {leaf.name!r} must be a tensor, got {value!r}"
            )
        if _torch.has_derivative(value):
            raise ValueError(
                f"{dotted}: cannot differentiate through the code of this slot; keep it in "
                f"floating point, state_dtype={{{slot!r}: torch.float32, ...}}, or detach the input"
            )
        if old is not None and not initial:
            shape = codec.shape_of(old[slot].shape, leaf.shape)
            if value.shape != shape:
                raise wrong_shape(
                    self.path, slot, leaf.name, torch.Size(shape), value.shape
                )
            value = distributed_like(value, old[slot])
        if not codec.random:
            return self._encoded(slot, codec, value, leaf)
        key = None if old is None else old.get(f"{slot}.{KEY}")
        if key is None:
            key = _first_key(dotted, leaf, local(value).device)
        step = (
            torch.zeros((), dtype=torch.int64, device=value.device)
            if initial
            else leaf.clock.on(leaf.device).step
        )
        noise = bits16(local(key), step, leaf.positions(value))
        tensors = self._encoded(slot, codec, value, leaf, noise)
        return {**tensors, f"{slot}.{KEY}": key}

    def _encoded(
        self,
        slot: str,
        codec: Codec,
        value: Tensor,
        leaf: Leaf,
        noise: Tensor | None = None,
    ) -> Slots:
        """Encode a value; an error in the function of a user names slot, leaf and line."""
        who = f"{'.'.join([*self.path, slot])}: encode of {codec.name!r}"
        try:
            tensors = packed(slot, codec, value, noise)
        except Exception as error:
            note_rule(error, who, [leaf])
            raise
        for tensor in tensors.values():
            check_device(who, f"its result for leaf {leaf.name!r}", tensor, value)
        return tensors

    def _decoded(
        self, slot: str, codec: Codec, stored: Mapping[str, Tensor], leaf: Leaf
    ) -> Tensor:
        """Decode a slot; an error in the function of a user names slot, leaf and line."""
        who = f"{'.'.join([*self.path, slot])}: decode of {codec.name!r}"
        try:
            value = unpacked(slot, codec, stored, leaf.shape)
        except Exception as error:
            note_rule(error, who, [leaf])
            raise
        check_device(who, f"its result for leaf {leaf.name!r}", value, stored[slot])
        return value

    def value_of(self, slot: str, stored: Mapping[str, Tensor], leaf: Leaf) -> Tensor:
        """Return the value of one slot in its stored dtype, or in float32 if it is coded."""
        codec = self.codecs_of(stored, leaf).get(slot)
        if codec is None:
            return stored[slot]
        return self._decoded(slot, codec, stored, leaf)

    def template(self, slot: str, codes: Tensor) -> Tensor:
        """Return a stored slot, or an uninitialized float32 tensor with the shape of a coded one."""
        if kind_of(codes.dtype) in ("float", "complex"):
            return codes
        codec = self._codec(slot)
        if codec is not None and (codec.packs > 1 or codec.shapes_of is not None):
            raise ValueError(
                f"{self._who}: the shape of a leaf without a gradient cannot be derived from the packed codes of "
                f"{slot!r}: call update(updates, state, params)"
            )
        return torch.empty(codes.shape, device=codes.device)


def _first_key(slot: str, leaf: Leaf, device: torch.device) -> Tensor:
    """Return the random key of a slot, given its path."""
    stream = leaf.stream_name
    if isinstance(stream, Tensor):  # a block: its position tells it from others
        return stream.to(device) ^ name_key(slot)
    return torch.full((), name_key(f"{slot}.{stream}"), device=device)


def packed(
    slot: str,
    codec: Codec,
    value: Tensor,
    noise: Tensor | None = None,
    in_parts: bool = False,
) -> Slots:
    """Encode the value of a slot: return its tensors by name, with the placements of the value.

    With `in_parts`, it takes little memory beyond the result; rules are recorded without.
    """
    tensors = {}
    shapes = codec.shapes(value.shape)
    pack = codec.pack_in_parts if in_parts else codec.pack
    for suffix, tensor in pack(local(value), noise).items():
        name = f"{slot}.{suffix}" if suffix else slot
        tensors[name] = from_local_like(tensor, value, shapes[suffix])
    return tensors


def unpacked(
    slot: str,
    codec: Codec,
    stored: Mapping[str, Tensor],
    shape: torch.Size,
    in_parts: bool = False,
) -> Tensor:
    """Decode the tensors of a slot, for a leaf with the given shape; `in_parts` is as for `packed`."""
    codes = stored[slot]
    whole = codec.shape_of(codes.shape, shape)
    local_shape: Sequence[int] = whole
    if is_sharded(codes) and codec.packs > 1:
        local_shape = (*local(codes).shape[:-1], whole[-1])
    elif is_sharded(codes):
        local_shape = local(codes).shape
    tensors = {"": local(codes)}
    for suffix in codec.suffixes:
        tensors[suffix] = local(stored[f"{slot}.{suffix}"])
    unpack = codec.unpack_in_parts if in_parts else codec.unpack
    return from_local_like(unpack(tensors, local_shape), codes, whole)


def _is_split(like: Tensor, codec: Codec) -> bool:
    """Whether sharding splits what a code sees at once: a block, or the whole slot."""
    if codec.sees_whole_leaf:
        return is_sharded(like)
    return splits_rows(like, codec.block)


def _with_other_sizes(like: Tensor) -> Tensor:
    """Return a tensor whose sizes are slightly larger and all different, without memory except under transforms."""
    sizes: list[int] = []
    for size in like.shape:
        size += 1
        while size in sizes:
            size += 1
        sizes.append(size)
    # Numbers that vmap has batched cannot meet tensors on another device.
    device = like.device if _torch.inside_transform() else "meta"
    return torch.ones(sizes, dtype=like.dtype, device=device)


def auxiliary_tensors(codecs: Mapping[str, Codec]) -> set[str]:
    """Return the names of the auxiliary tensors of coded slots, such as scales, without the codes."""
    return {
        f"{slot}.{suffix}"
        for slot, codec in codecs.items()
        for suffix in codec.suffixes
    }
