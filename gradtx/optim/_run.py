"""A run over the parameters of an optimizer, whose state is flat and per parameter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from gradtx import _tree
from gradtx._errors import Path
from gradtx._execution import Block, Leaf, takes_none
from gradtx._runs import Run
from gradtx.optim._member import Layout, Member

# Entries of a part of a large leaf: temporaries of a rule stay in a core's cache, and few enough calls remain.
# Measured with benchmarks/step_time.py: smaller parts are slower, from 2**18 to 2**24 all take the same time.
PART = 2**18

Record = Member  # its name in pickles of version 0.1

__all__ = ["ChainTraits", "Layout", "OptimizerRun", "Record", "check_agreement", "parts_of"]


class OptimizerRun(Run):
    """A call of `init` or `update` for the parameters of an optimizer.

    Args:
        state: The optimizer's state, by parameter.
        members: The optimizer's parameters.
        initial: Whether this is a call of `init`.
    """

    grad_fn: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None
    tick: int | Tensor = 1  # what this step adds to counts

    def __init__(
        self,
        state: Mapping[Any, dict[str, Any]],
        members: Mapping[Tensor, Member],
        initial: bool,
    ):
        super().__init__()
        self.initial = initial
        self.device = next(iter(members)).device if members else torch.device("cpu")
        self._state = state
        self._members = members
        self.watch()

    def scalars(self, path: Path) -> dict[str, Tensor]:
        for param, member in self._members.items():
            state = self._state.get(param)
            if state and member.layout is not None and path in member.layout.shared:
                keys = member.layout.shared[path]
                return {name: state[key] for name, key in keys.items()}
        return {}

    def shared(self, path: Path, start: Mapping[str, Callable[[], Tensor]]) -> dict[str, Tensor]:
        """The shared values of a stage; their start for a branch that no parameter takes, which keeps no state."""
        if self.initial or any(member.keeps(path) for member in self._members.values()):
            return super().shared(path, start)
        return {name: make() for name, make in start.items()}

    def slots(self, path: Path, leaf: Leaf) -> dict[str, Tensor]:
        if self.initial:
            return {}
        slots: dict[str, Tensor] = {}
        for slot, key in leaf.layout.slots.get(path, {}).items():
            value = leaf.state[key]
            slots[slot] = value if leaf.window is None else part_of(value, leaf, key)
        return slots

    def choice(self, path: Path, leaf: Leaf, selector: Any) -> Any:
        choices = self._members[leaf.key].choices
        if path not in choices:
            choices[path] = selector.choose(leaf.name, leaf.key)
        return choices[path]

    def whole(self, values: dict[str, Any]) -> Any:
        return values

    def by_name(self, tree: Any) -> dict[str, Any]:
        leaves, _ = _tree.flatten(tree, "updates returned by a plain function")
        return leaves

    def gradients_at(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        assert self.grad_fn is not None
        return self.grad_fn(values)


@dataclass(frozen=True)
class ChainTraits:
    """Properties of a chain that decide how all its steps go.

    Attributes:
        takes_none: Whether a link also processes parameters without a gradient.
        agrees: Whether hyperparameters of a link must be the same in all groups.
        needs_host_counts: Whether the host must know the counts of steps: rules that branch on the count, and user
            functions, already synchronize with the host.
    """

    takes_none: bool
    agrees: bool
    needs_host_counts: bool

    @classmethod
    def of(cls, block: Block, estimates_hessian: bool) -> ChainTraits:
        operations = list(block.walk())
        return cls(
            takes_none=takes_none(block.operations),
            agrees=any(operation.agree for operation in operations),
            needs_host_counts=estimates_hessian or not all(operation.compiles for operation in operations),
        )


# Large leaves.


def part_of(value: Tensor, leaf: Leaf, key: str) -> Tensor:
    """The entries of a slot for a part of a leaf; all of a slot that is not shaped as the leaf."""
    assert leaf.window is not None
    if value.shape == leaf.key.shape:
        return value.view(-1)[leaf.window]
    if not is_divided(value, leaf, key):
        return value
    per_entry = leaf.key.numel() // value.numel()
    return value.view(-1)[leaf.window.start // per_entry : leaf.window.stop // per_entry]


def is_divided(value: Tensor, leaf: Leaf, key: str) -> bool:
    """Whether each part of a leaf has its part of a tensor: slots of its shape, codes and their scales."""
    if value.shape == leaf.key.shape:
        return True
    return value.ndim > 0 and key in leaf.layout.coded_tensors


def parts_of(leaf: Leaf) -> list[Leaf]:
    """Split a large leaf into parts that stay in cache, if all its operations are elementwise."""
    param, gradient = leaf.key, leaf.key.grad
    if gradient is None or param.numel() <= PART or not _is_divisible(leaf):
        return [leaf]
    parts: list[Leaf] = []
    for start in range(0, param.numel(), PART):
        window = slice(start, min(start + PART, param.numel()))
        parts.append(_part(leaf, gradient, window))
    return parts


def _is_divisible(leaf: Leaf) -> bool:
    param, gradient = leaf.key, leaf.key.grad
    if type(gradient) is not Tensor or not param.is_contiguous() or not gradient.is_contiguous():
        return False
    for operation in leaf.program:
        if not operation.elementwise:
            return False
    for key in leaf.layout.slot_keys:
        value = leaf.state[key]
        if is_divided(value, leaf, key) and not value.is_contiguous():
            return False
    return leaf.layout.is_flat(param.shape)


def _part(leaf: Leaf, gradient: Tensor, window: slice) -> Leaf:
    flat_gradient = gradient.detach().view(-1)
    flat_param = leaf.key.detach().view(-1)
    extras = dict(leaf.extras)
    for name, value in leaf.extras.items():
        if name in leaf.run.leaf_extras and value is not None:
            extras[name] = value.reshape(-1)[window]
    part = Leaf(leaf.run, leaf.name, flat_gradient[window], flat_param[window], extras, leaf.clock)
    part.key = leaf.key
    part.state = leaf.state
    part.layout = leaf.layout
    part.program = leaf.program
    part.window = window
    return part


# Several groups.


def check_agreement(blocks: list[Block], rows: list[list[Member]]) -> None:
    """Check that hyperparameters that belong to all leaves together agree across groups.

    Args:
        blocks: The chain with each group's numbers.
        rows: The members of each group.
    """
    first: dict[Any, Any] = {}
    for block, row in zip(blocks, rows, strict=True):
        for operation in block.walk(_common_choices(row)):
            for name, value in operation.agree.items():
                value = _as_numbers(value)
                expected = first.setdefault((operation.path, name), value)
                if expected is not value and expected != value:
                    stage = ".".join(operation.path)
                    raise ValueError(f"{stage}: {name} must agree across groups, got {expected!r} and {value!r}")


def _common_choices(row: list[Member]) -> dict[Path, Any]:
    """The selectors' decisions on which the members of a group agree."""
    labels: dict[Path, set[Any]] = {}
    for member in row:
        for path, label in member.choices.items():
            labels.setdefault(path, set()).add(label)
    return {path: next(iter(of_path)) for path, of_path in labels.items() if len(of_path) == 1}


def _as_numbers(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_as_numbers, cast("tuple[Any, ...]", value)))
    return value.item() if isinstance(value, Tensor) else value
