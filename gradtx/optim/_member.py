"""One parameter of an optimizer: its name, its branch of the chain, and its state."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from gradtx.base import torch_names as _torch
from gradtx.base.dtensor import local
from gradtx.base.errors import Path
from gradtx.distributed.owners import owned_paths
from gradtx.execution.execute import Leaf
from gradtx.execution.runs import Run
from gradtx.state.codes import Codec
from gradtx.state.storage import auxiliary_tensors

State: TypeAlias = dict[str, Any]  # the slots of one parameter, and its count


@dataclass(eq=False)
class Count:
    """A step count on the device; parameters with the same count share one object.

    Attributes:
        made: The number of steps made, 0-d int64.
        bound: An upper bound known to the host, which includes skipped steps.
    """

    made: Tensor
    bound: int

    @property
    def most(self) -> int:
        """The number of steps as far as the host knows it without synchronizing."""
        return int(self.made) if self.made.device.type == "cpu" else self.bound

    def after(self, tick: int | Tensor) -> Count:
        """Return the count after a step that adds `tick`."""
        return Count(self.made + tick, self.most + 1)

    def copy_from(self, other: Count) -> None:
        """Copy another count into this one's tensor."""
        self.made.copy_(other.made)
        self.bound = other.bound


class Layout(NamedTuple):
    """The keys in a parameter's flat state of the slots and shared values of each stage: path -> {slot: key}."""

    slots: dict[Path, dict[str, str]]
    shared: dict[Path, dict[str, str]]
    keys: frozenset[str]  # all keys, including "step"
    codes: Mapping[Path, Mapping[str, Codec]] = {}  # the code of each coded slot
    # The keys of slots that only the leaf's owner keeps.
    owned: frozenset[str] = frozenset()

    @classmethod
    def of(cls, run: Run, leaf: Leaf) -> Layout:
        """Assign the keys after `init`: the first stage with a name uses it as the key, later stages `stage.name`.

        The key of an auxiliary tensor of a coded slot is the slot's key with a suffix.
        """
        codes: dict[Path, dict[str, Codec]] = defaultdict(dict)
        for (path, slot), codec in leaf.codecs.items():
            codes[path][slot] = codec
        slots: dict[Path, dict[str, str]] = {}
        shared: dict[Path, dict[str, str]] = {}
        keys = {"step"}
        passed = {part.path for operation in leaf.program for part in operation.parts}
        for path in run.stages:
            values = run.new_shared.get(path, {}) if path in passed else {}
            for names, places in ((leaf.new.get(path, {}), slots), (values, shared)):
                auxiliary = auxiliary_tensors(codes[path])
                # A slot before its auxiliary tensors.
                for name in sorted(names, key=auxiliary.__contains__):
                    if name in auxiliary:
                        slot, _, suffix = name.rpartition(".")
                        key = f"{places[path][slot]}.{suffix}"
                    else:
                        key = ".".join([*path, name]) if name in keys else name
                    keys.add(key)
                    places.setdefault(path, {})[name] = key
        owned: set[str] = set()
        for path in owned_paths(leaf.program):
            owned.update(slots.get(path, {}).values())
        coded = {path: codecs for path, codecs in codes.items() if codecs}
        return cls(slots, shared, frozenset(keys), coded, frozenset(owned))

    @property
    def slot_keys(self) -> list[str]:
        """The keys of all slots, stage by stage."""
        return [key for _, key in _places(self.slots)]

    def shared_places(self) -> list[tuple[tuple[Path, str], str]]:
        """Return the (path, name) and the key of each shared value."""
        return _places(self.shared)

    def slots_in(self, state: State) -> State:
        """Return the slots of a state."""
        return {key: state[key] for key in self.slot_keys if key in state}

    def without_slots(self, state: State) -> State:
        """Return the count and the shared values of a state."""
        slots = set(self.slot_keys)
        return {key: value for key, value in state.items() if key not in slots}

    @property
    def program_keys(self) -> list[str]:
        """The keys of the slots that programs read: all except those that only the leaf's owner keeps."""
        return [key for key in self.slot_keys if key not in self.owned]

    @property
    def coded_keys(self) -> dict[str, Codec]:
        """The key and code of each coded slot; the keys of its auxiliary tensors are `<key>.<suffix>`."""
        return {
            self.slots[path][slot]: codec
            for path, codecs in self.codes.items()
            for slot, codec in codecs.items()
        }

    @property
    def labels(self) -> dict[str, str]:
        """The key of each coded slot, and the label of its code."""
        return {key: codec.label for key, codec in self.coded_keys.items()}

    @property
    def coded_tensors(self) -> set[str]:
        """The keys of all tensors of coded slots, including auxiliary tensors."""
        coded = self.coded_keys
        return coded.keys() | auxiliary_tensors(coded)

    @property
    def label(self) -> str:
        """A label; layouts of one chain with the same label are equal, because path and slot determine a code."""
        parts = (self.slots, self.shared, sorted(self.coded_keys), sorted(self.owned))
        return repr(parts)

    def is_flat(self, shape: torch.Size) -> bool:
        """Whether coding the concatenated rows of a parameter as one long row has the same result."""
        return all(codec.fills_rows(shape) for codec in self.coded_keys.values())

    def owners(self) -> dict[tuple[Path, str], str]:
        """Return the key of each (path, slot)."""
        return dict([*_places(self.slots), *_places(self.shared)])


def _places(
    keys_of_stages: Mapping[Path, Mapping[str, str]],
) -> list[tuple[tuple[Path, str], str]]:
    """Return the (path, name) and the key of each slot, stage by stage."""
    return [
        ((path, name), key)
        for path, keys in keys_of_stages.items()
        for name, key in keys.items()
    ]


class ParameterKind(NamedTuple):
    """The properties of a parameter that its slots depend on."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, param: Tensor) -> ParameterKind:
        return cls(param.shape, param.dtype, param.device)

    def suits(self, param: Tensor) -> bool:
        """Whether slots for this kind can serve a parameter: their dtype may be wider than the parameter's."""
        return (
            self.shape == param.shape
            and self.device == param.device
            and torch.promote_types(self.dtype, param.dtype) == self.dtype
        )


class FirstState:
    """The tensors of a state as the library created them, with their versions; its slots may be still to come."""

    def __init__(self, state: Mapping[str, Tensor]):
        self._tensors = dict(state)
        self._versions = {key: version(tensor) for key, tensor in state.items()}

    def is_unchanged(self, state: State) -> bool:
        """Whether the state consists of exactly these tensors, and none of them was written."""
        if state.keys() != self._tensors.keys():
            return False
        for key, tensor in self._tensors.items():
            if state[key] is not tensor or version(tensor) != self._versions[key]:
                return False
        return True


@dataclass(slots=True, eq=False)
class Member:
    """One parameter of an optimizer.

    Attributes:
        name: The name used by selectors, extras and error messages; unique in the optimizer.
        param: The parameter.
        choices: Each selector's decision for the parameter.
        layout: The layout of its state; None before the state is created.
        made_for: The view of the group for which the state was created.
        first_state: Its state as the library created it; None after its first use.
        waits: Whether its slots are created with its first gradient.
        owner: The rank that keeps the slots of rules that need the whole parameter, if it is divided; see `Leaf`.
        saved: Its entry of a checkpoint, if the parameter is lazy and has no shape yet.
        state: Its state, looked up for the current step.
        count: The number of steps it has made, looked up for the current step.
        group: The index of its group, looked up for the current step.
        made_on: The kind of the parameter when its slots were created or loaded; None if the user moved them here.
        device_count: A tensor `step` whose value is known to be `count` without a read, and that tensor's version.
    """

    name: str
    param: Tensor
    choices: dict[Path, Any] = field(default_factory=dict[Path, Any])
    layout: Layout | None = None
    made_for: Any = None
    first_state: FirstState | None = None
    waits: bool = False
    saved: State | None = None
    owner: int | None = None
    state: State = field(default_factory=dict[str, Any])
    count: int | Count = 0
    group: int = 0
    device_count: tuple[Tensor, int] | None = None
    made_on: ParameterKind | None = None

    def count_in(self, state: State) -> int | Count:
        """Return the number of steps the parameter has made, without synchronizing if the device counts."""
        step = state.get("step", 0)
        if self.device_count is not None:
            tensor, counted_at = self.device_count
            if tensor is step and version(tensor) == counted_at:
                return self.count
        try:
            return int(step)
        except RuntimeError as error:
            if not _torch.is_intercepted():
                raise
            raise RuntimeError(
                f"state of parameter {self.name!r}: step() reads the count on the host, but a trace (make_fx) has "
                "replaced it by a tensor without a value; trace tx.update, whose state is an argument, or exclude the "
                "optimizer's state from the arguments"
            ) from error

    def set_count(self, count: int | Count) -> None:
        """Record the value of the state's tensor `step`, which the caller knows without reading it."""
        self.count = count
        if isinstance(count, Count):
            step = self.state["step"]
            self.device_count = step, version(step)
        else:
            self.device_count = None

    def is_unused(self, state: State) -> bool:
        """Whether the state is as the library created it, and no step has used it."""
        return self.first_state is not None and self.first_state.is_unchanged(state)

    def __setstate__(self, state: tuple[None, dict[str, Any]]) -> None:
        _, slots = state
        for name, value in slots.items():
            setattr(self, name, value)
        # The copied tensor counts its writes from 0, and would later have the recorded version with another value.
        self.device_count = None


def version(tensor: Tensor) -> int:
    """Return the version counter of a tensor's local part, which counts in-place writes."""
    return _torch.version_of(local(tensor))
