"""The layout of a leaf's flat state: the key of each slot and shared value of its stages."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from gradtx.base.errors import Path, StateKey
from gradtx.base.forward import Leaf, Run
from gradtx.state.codes import Codec
from gradtx.state.storage import auxiliary_tensors

State: TypeAlias = dict[str, Any]  # the slots of one leaf, and its count


@dataclasses.dataclass(frozen=True)
class Layout:
    """The keys in a parameter's flat state of the slots and shared values of each stage: path -> {slot: key}."""

    slots: dict[Path, dict[str, str]]
    shared: dict[Path, dict[str, str]]
    keys: frozenset[str] = frozenset()  # all keys of an optimizer, including "step"
    # The code of each coded slot.
    codes: Mapping[Path, Mapping[str, Codec]] = dataclasses.field(default_factory=dict)
    # The keys of slots that only the leaf's owner keeps.
    owned: frozenset[str] = frozenset()
    # The slots, of any stage, that leaves with 16-bit weights have in addition, and that follow from others.
    following: frozenset[str] = frozenset()

    @classmethod
    def of(cls, run: Run, leaf: Leaf) -> Layout:
        """Assign the keys after `init`: the first stage with a name uses it as the key, later stages `stage.name`.

        The key of an auxiliary tensor of a coded slot is the slot's key with a suffix.
        """
        codes: dict[Path, dict[str, Codec]] = {}
        for (path, slot), codec in leaf.codecs.items():
            codes.setdefault(path, {})[slot] = codec
        slots: dict[Path, dict[str, str]] = {}
        shared: dict[Path, dict[str, str]] = {}
        keys = {"step"}
        passed: set[Path] = set()
        following: set[str] = set()
        for operation in leaf.operations:
            for represented in operation.represents:
                passed.add(represented.path)
                following.update(represented.following_slots)
        for path in run.stages:
            values = run.new_shared.get(path, {}) if path in passed else {}
            for names, keys_of_stage in (
                (leaf.new.get(path, {}), slots),
                (values, shared),
            ):
                auxiliary = auxiliary_tensors(codes.get(path, {}))
                # A slot before its auxiliary tensors.
                for name in sorted(names, key=auxiliary.__contains__):
                    if name in auxiliary:
                        slot, _, suffix = name.rpartition(".")
                        key = f"{keys_of_stage[path][slot]}.{suffix}"
                    else:
                        key = ".".join([*path, name]) if name in keys else name
                    keys.add(key)
                    keys_of_stage.setdefault(path, {})[name] = key
        owned: set[str] = set()
        for operation in leaf.operations:
            for path in operation.owned_paths:
                owned.update(slots.get(path, {}).values())
        return cls(
            slots,
            shared,
            frozenset(keys),
            codes,
            frozenset(owned),
            frozenset(following),
        )

    @classmethod
    def keyed_by_path(
        cls,
        slots: Iterable[StateKey],
        shared: Iterable[StateKey],
        codes: Mapping[Path, Mapping[str, Codec]],
    ) -> Layout:
        """Return a layout of these slots and shared values, whose keys are their paths."""
        return cls(_keyed_by_path(slots), _keyed_by_path(shared), codes=codes)

    @functools.cached_property
    def slot_keys(self) -> list[str]:
        """The keys of all slots, stage by stage."""
        return [key for keys in self.slots.values() for key in keys.values()]

    @functools.cached_property
    def program_keys(self) -> list[str]:
        """The keys of the slots that programs read: all except those that only the leaf's owner keeps."""
        return [key for key in self.slot_keys if key not in self.owned]

    @functools.cached_property
    def coded_keys(self) -> dict[str, Codec]:
        """The key and code of each coded slot; the keys of its auxiliary tensors are `<key>.<suffix>`."""
        return {
            self.slots[path][slot]: codec
            for path, codecs in self.codes.items()
            for slot, codec in codecs.items()
        }

    def follows(self, key: Any) -> bool:
        """Whether a key, perhaps of a leaf with 16-bit weights, is that of a slot that follows from other slots."""
        # Keys of wrappers need not be text.
        return not self.following.isdisjoint(str(key).split("."))

    @functools.cached_property
    def has_whole_codes(self) -> bool:
        """Whether a code sees a slot as a whole, so that its tensors do not say which shape the slot has."""
        return any(codec.shapes_of is not None for codec in self.coded_keys.values())

    @functools.cached_property
    def labels(self) -> dict[str, str]:
        """The key of each coded slot, and the label of its code."""
        return {key: codec.label for key, codec in self.coded_keys.items()}

    @functools.cached_property
    def coded_tensors(self) -> set[str]:
        """The keys of all tensors of coded slots, including auxiliary tensors."""
        coded = self.coded_keys
        return coded.keys() | auxiliary_tensors(coded)

    @functools.cached_property
    def label(self) -> str:
        """A label; layouts of one chain with the same label are equal, because path and slot determine a code."""
        parts = (self.slots, self.shared, sorted(self.coded_keys), sorted(self.owned))
        return repr(parts)

    def owners(self) -> dict[StateKey, str]:
        """Return the key of each (path, slot)."""
        return dict([*by_state_key(self.slots), *by_state_key(self.shared)])


def _keyed_by_path(names: Iterable[StateKey]) -> dict[Path, dict[str, str]]:
    keys_of_stages: dict[Path, dict[str, str]] = {}
    for path, name in names:
        keys_of_stages.setdefault(path, {})[name] = ".".join((*path, name))
    return keys_of_stages


def by_state_key(
    keys_of_stages: Mapping[Path, Mapping[str, str]],
) -> list[tuple[StateKey, str]]:
    """Return the (path, name) and the key of each slot, stage by stage."""
    return [
        ((path, name), key)
        for path, keys in keys_of_stages.items()
        for name, key in keys.items()
    ]
