"""A step of the adapter as a `Run`: old state is flat and per parameter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradtx import _tree
from gradtx._errors import Path
from gradtx._execution import Block, Leaf
from gradtx._runs import Run
from gradtx._sharding import local
from gradtx.optim._scaling import Count

# Entries of a part of a large leaf: temporaries of a rule stay in a core's cache, and few enough calls remain.
# Measured with benchmarks/step_time.py: smaller parts are slower, from 2**18 to 2**24 all take the same time.
PART = 2**18


class Layout(NamedTuple):
    """Where a parameter's flat state keeps what the stages keep: path -> {slot: key}."""

    slots: dict[Path, dict[str, str]]
    shared: dict[Path, dict[str, str]]
    keys: frozenset[str]  # of all, with that of the step

    @classmethod
    def of(cls, run: Run, leaf: Leaf) -> Layout:
        """Keys for what `init` made: the first owner of a name keeps it bare, later ones are `stage.name`."""
        slots: dict[Path, dict[str, str]] = {}
        shared: dict[Path, dict[str, str]] = {}
        taken = ["step"]
        passes = {operation.path for operation in leaf.program}
        for path in run.stages:
            values = run.new_shared.get(path, {}) if path in passes else {}
            for part, names in ((slots, leaf.new.get(path, {})), (shared, values)):
                for name in names:
                    key = ".".join([*path, name]) if name in taken else name
                    taken.append(key)
                    part.setdefault(path, {})[name] = key
        return cls(slots, shared, frozenset(taken))

    @property
    def slot_keys(self) -> list[str]:
        """The keys of slots, stage by stage."""
        return [key for names in self.slots.values() for key in names.values()]

    def owners(self) -> dict[tuple[Path, str], str]:
        """(path, slot) -> key."""
        return {(path, slot): key for part in self[:2] for path, names in part.items() for slot, key in names.items()}


class Record:
    """What the adapter knows of one parameter: its name, what selectors said of it, where its state is.

    `made` holds the tensors that the library made and nobody has used yet, each with its version.
    """

    __slots__ = ("_counted", "choices", "count", "group", "layout", "made", "name", "param", "state", "waiting")

    def __init__(self, name: str, param: Tensor):
        self.name, self.param = name, param
        self.choices: dict[Path, Any] = {}
        self.layout: Layout | None = None
        self.made: dict[str, tuple[Tensor, int]] | None = None
        self.waiting: dict[str, Any] | None = None  # what a checkpoint has for a parameter that is still lazy
        # As looked up for the present step: the state, how many steps it has made, the position of the group.
        self.state: dict[str, Any] = {}
        self.count: int | Count = 0
        self.group = 0
        self._counted: tuple[Tensor, int] | None = None  # the tensor of which `count` is known on a device, its version

    def look(self, state: dict[str, Any]) -> None:
        self.state, self.count = state, self.counted(state)

    def counted(self, state: Mapping[str, Any]) -> int | Count:
        """How many steps the parameter has made, without waiting for a device that counts by itself."""
        step, known = state.get("step", 0), self._counted
        return self.count if known is not None and known[0] is step and known[1] == _version(step) else int(step)

    def count_as(self, count: int | Count) -> None:
        """Take over what the tensor `step` of the state counts, known by other means."""
        self.count = count
        self._counted = (self.state["step"], _version(self.state["step"])) if isinstance(count, Count) else None

    def untouched(self, state: Mapping[str, Any]) -> bool:
        """Whether the state is as the library made it, before any step."""
        return self.made is not None and {key: (id(v), _version(v)) for key, v in state.items()} == {
            key: (id(v), version) for key, (v, version) in self.made.items()
        }

    def note(self, state: Mapping[str, Tensor]) -> None:
        self.made = {key: (value, _version(value)) for key, value in state.items()}


def _version(tensor: Tensor) -> int:
    tensor = local(tensor)
    return 0 if tensor.is_inference() else tensor._version  # inference tensors don't count theirs


def part(value: Tensor, leaf: Leaf) -> Tensor:
    """The part of a slot that goes with a part of a leaf; the whole of a slot that is shaped otherwise."""
    return value.view(-1)[leaf.window] if value.shape == leaf.key.shape else value


class OptimizerRun(Run):
    """A run over the parameters of an optimizer, whose state is flat, by parameter."""

    def __init__(
        self,
        state: Mapping[Any, dict[str, Any]],
        records: Mapping[Any, Record],
        device: torch.device,
        initial: bool,
    ):
        super().__init__()
        self.initial, self.device = initial, device
        self._state, self._records = state, records
        self.grad_fn: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None
        self.tick: Any = 1  # what this step adds to counts
        self.watch()

    def scalars(self, path: Path) -> dict[str, Tensor]:
        for param, record in self._records.items():
            state = self._state.get(param)
            if state and record.layout is not None and path in record.layout.shared:
                return {name: state[key] for name, key in record.layout.shared[path].items()}
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
        known = self._records[leaf.key].choices
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


def parts_of(leaf: Leaf) -> list[Leaf]:
    """A large leaf whose links are all elementwise, in parts that stay in cache; else the leaf itself."""
    param, grad = leaf.key, leaf.key.grad
    if grad is None or param.numel() <= PART or not all(operation.elementwise for operation in leaf.program):
        return [leaf]
    slots = [leaf.state[key] for key in leaf.layout.slot_keys]
    flat = [param, grad, *(value for value in slots if value.shape == param.shape)]
    if type(grad) is not Tensor or not all(value.is_contiguous() for value in flat):
        return [leaf]
    flat_param, flat_grad, parts = param.detach().view(-1), grad.detach().view(-1), []
    for start in range(0, param.numel(), PART):
        window = slice(start, min(start + PART, param.numel()))
        extras = {
            key: value.reshape(-1)[window] if key in leaf.run.leaf_extras and value is not None else value
            for key, value in leaf.extras.items()
        }
        one = Leaf(leaf.run, leaf.name, flat_grad[window], flat_param[window], extras, leaf.clock)
        one.key, one.state, one.layout = param, leaf.state, leaf.layout
        one.window, one.program = window, leaf.program
        parts.append(one)
    return parts


def number(value: Any) -> float:
    return value.item() if isinstance(value, Tensor) else value


def check_agreement(blocks: list[Block]) -> None:
    """Hyperparameters that belong to all leaves together must agree across groups."""
    seen: dict[Any, Any] = {}
    for operation in (operation for block in blocks for operation in block.walk()):
        for name, value in operation.agree.items():
            value = tuple(map(number, value)) if isinstance(value, tuple) else number(value)
            first = seen.setdefault((operation.path, name), value)
            if first is not value and first != value:
                where = ".".join(operation.path)
                raise ValueError(f"{where}: {name} must agree across groups, got {first!r} and {value!r}")
