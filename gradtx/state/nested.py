"""The nested state of functional use; only this module knows its layout.

`{"step": 0-d, "<stage>": {"<slot>": {"<leaf>": tensor}, "<shared>": 0-d, "<inner stage>": {...}}}`. The paths of stages
come from the chain; an entry at a path is a stage, a slot (a dict by leaf name), or a shared value (a tensor).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from gradtx.base.errors import OWN_STATE, Path, foreign, lacking

State: TypeAlias = dict[str, Any]
LEAF_STEPS = "leaf_steps"  # the updates of each leaf on a clock: one whose gradient is missing has fewer
Slots = list[tuple[str, dict[str, Tensor]]]


class NestedState:
    """Reads a nested state along the paths of a chain's stages.

    Attributes:
        stages: The stage paths of the chain, which distinguish stages from slots.
    """

    def __init__(self, state: State, stages: Mapping[Path, str]):
        self.stages = stages
        self._state = state
        self._slots: dict[Path, Slots] = {}

    def scalars(self, path: Path) -> dict[str, Tensor]:
        """Return the shared values of a stage."""
        return {
            key: value
            for key, value in self._entry(path).items()
            if isinstance(value, Tensor)
        }

    def slots(self, path: Path) -> Slots:
        """Return the slots of a stage as (slot, tensors by leaf)."""
        if path not in self._slots:
            self._slots[path] = []
            for key, value in self._entry(path).items():
                if isinstance(value, dict) and (*path, key) not in self.stages:
                    self._slots[path].append((key, value))
        return self._slots[path]

    def slots_of(self, path: Path, leaf: str) -> dict[str, Tensor]:
        """Return the slots of one leaf at a stage."""
        return {
            slot: values[leaf] for slot, values in self.slots(path) if leaf in values
        }

    def tree(self, path: Path) -> Any:
        """Return the state of a pair of plain functions, in the form that they returned."""
        entry = self._state
        for key in path:
            if not isinstance(entry, dict) or key not in entry:
                raise lacking(path)
            entry = entry[key]
        return entry

    def marks(self, path: Path, leaf: str) -> bool:
        """Whether a selector has marked a leaf at this path."""
        return leaf in self._entry(path)

    def _entry(self, path: Path) -> State:
        entry = self._state
        for key in path:
            entry = entry.get(key) if isinstance(entry, dict) else None
        return entry if isinstance(entry, dict) else {}

    def check(
        self,
        names: Collection[str],
        opaque: Collection[Path],
        has_shared_value: Callable[[Path, str], bool],
        may_be_complex: Collection[str],
    ) -> None:
        """Raise an error unless this is a state of the chain for these leaves."""
        for key in self._state:
            _check_key((), key)
            if key not in ("step", LEAF_STEPS) and (key,) not in self.stages:
                raise foreign((key,))
        for path in self.stages:
            if path in opaque:
                continue
            for name, value in self.scalars(path).items():
                check_plain((*path, name), value)
                if (*path, name) not in opaque and not has_shared_value(path, name):
                    raise foreign((*path, name))
            for slot, values in self.slots(path):
                _check_slot((*path, slot), values, names, may_be_complex)

    def rebuilt(
        self,
        new_value: Callable[[Path, str, Any], Any],
        trees: Mapping[Path, Any],
        opaque: Collection[Path],
    ) -> State:
        """Return a state in the same order, with values from `new_value` and states of plain functions from `trees`."""
        return self._rebuilt(self._state, (), new_value, trees, opaque)

    # No function inside of `rebuilt`, which would refer to itself and keep all tensors until garbage is collected.
    def _rebuilt(
        self,
        entry: State,
        path: Path,
        new_value: Callable[[Path, str, Any], Any],
        trees: Mapping[Path, Any],
        opaque: Collection[Path],
    ) -> State:
        result = {}
        for key, value in entry.items():
            below = (*path, key)
            if below in opaque:
                result[key] = trees.get(below, value)
            elif below in self.stages:
                result[key] = self._rebuilt(value, below, new_value, trees, opaque)
            else:
                result[key] = new_value(path, key, value)
        return result


def _check_key(path: Path, key: Any) -> None:
    """Raise an error for a key that is not a string."""
    if not isinstance(key, str):
        raise foreign((*path, repr(key)))


def _check_slot(
    path: Path,
    values: State,
    names: Collection[str],
    may_be_complex: Collection[str],
) -> None:
    where = ".".join(path)
    for name, value in values.items():
        _check_key(path, name)
        if isinstance(value, dict):
            raise foreign(path)
        if name not in names:
            raise ValueError(
                f"updates lack leaf {name!r}, which the state has at {where!r}; pass None for a leaf without a gradient"
            )
        if not isinstance(value, Tensor):
            raise ValueError(
                f"state at {where!r} must be a tensor for leaf {name!r}, got {value!r}; {OWN_STATE}"
            )
        if not can_be_kept(value) and not (
            value.is_complex() and name in may_be_complex
        ):
            raise ValueError(
                f"state at {where!r} must be a dense real tensor for leaf {name!r}; {OWN_STATE}"
            )


def check_plain(path: Path, value: Tensor) -> None:
    """Raise an error unless a tensor can be a shared value."""
    if not can_be_kept(value):
        raise ValueError(
            f"state at {'.'.join(path)!r} must be a dense real tensor; {OWN_STATE}"
        )


def can_be_kept(value: Tensor) -> bool:
    """Whether a tensor can be a slot or a shared value."""
    return (
        value.layout is torch.strided and not value.is_nested and not value.is_complex()
    )


def enter(state: State, path: Path) -> State:
    """Return the entry at a path, and create it if it does not exist."""
    for key in path:
        state = state.setdefault(key, {})
    return state
