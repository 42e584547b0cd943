"""A step of the adapter as a `Run`: old state is flat and per parameter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradtx import _tree
from gradtx._program import Leaf, Path, Run


class Layout(NamedTuple):
    """Where a parameter's flat state keeps what the stages keep: path -> {slot: key}."""

    slots: dict[Path, dict[str, str]]
    shared: dict[Path, dict[str, str]]

    def keys(self) -> set[str]:
        return {key for part in self for names in part.values() for key in names.values()}


def layout_of(run: Run, leaf: Leaf) -> Layout:
    """Keys for what `init` made: the first owner of a name keeps it bare, later ones are `stage.name`."""
    layout, taken = Layout({}, {}), {"step"}
    for path in run.stages:
        for part, names in zip(layout, (leaf.new.get(path, {}), _shared(run, path, leaf)), strict=True):
            for name in names:
                key = ".".join([*path, name]) if name in taken else name
                taken.add(key)
                part.setdefault(path, {})[name] = key
    return layout


def _shared(run: Run, path: Path, leaf: Leaf) -> dict[str, Any]:
    passes = any(operation.path == path for operation in leaf.program)
    return run.new_shared.get(path, {}) if passes else {}


def part(value: Tensor, leaf: Leaf) -> Tensor:
    """The part of a slot that goes with a part of a leaf; the whole of a slot that is shaped otherwise."""
    return value.view(-1)[leaf.window] if value.shape == leaf.key.shape else value


class OptimizerRun(Run):
    """A run over the parameters of an optimizer.

    Args:
        state: Per parameter, flat.
        layouts: Per parameter.
        choices: Per parameter, what selectors said of it; filled in where it is missing.
        initial: Whether slots are made or read.
    """

    def __init__(
        self,
        state: dict[Any, dict[str, Any]],
        layouts: dict[Any, Layout],
        choices: dict[Any, dict[Path, Any]],
        device: torch.device,
        initial: bool,
    ):
        super().__init__()
        self.initial, self.device = initial, device
        self._state, self._layouts, self._choices = state, layouts, choices
        self.grad_fn: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None

    def kept(self, param: Any) -> tuple[dict[str, Any], Any]:
        """Where a parameter's state is, and its layout."""
        return self._state.get(param, {}), self._layouts.get(param)

    def scalars(self, path: Path) -> dict[str, Tensor]:
        for param, layout in self._layouts.items():
            if path in layout.shared:
                return {name: self._state[param][key] for name, key in layout.shared[path].items()}
        return {}

    def slots(self, path: Path, leaf: Leaf) -> dict[str, Tensor]:
        if self.initial:
            return {}
        keys, state = leaf.layout.slots.get(path), leaf.state
        if keys is None:
            return {}
        if leaf.window is None:
            return {slot: state[key] for slot, key in keys.items()}
        return {slot: part(state[key], leaf) for slot, key in keys.items()}

    def choice(self, path: Path, leaf: Leaf, selector: Any) -> Any:
        known = self._choices.setdefault(leaf.key, {})
        if path not in known:
            known[path] = selector.choose(leaf.name, leaf.key)
        return known[path]

    def whole(self, values: dict[str, Any]) -> Any:
        return values

    def by_name(self, tree: Any) -> dict[str, Any]:
        return _tree.flatten(tree, "updates returned by a plain function")[0]

    def gradients_at(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        assert self.grad_fn is not None
        return self.grad_fn(values)
