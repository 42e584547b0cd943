"""Operations that process the blocks of a leaf with the operations of an inner transformation, as if they were leaves.

Blocks of one shape are processed together, under vmap. A rule that waits for a sum cannot be suspended there, so the
operations run again from the start with the sums known so far.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from gradtx.base.dtensor import (
    from_local_like,
    from_local_shard,
    full_tensor,
    local,
    placed_as,
)
from gradtx.base.errors import Path
from gradtx.combinators._division import Division, LocalBlocks, local_blocks
from gradtx.distributed.layouts import placements_by_rows
from gradtx.execution.execute import Block, Leaf, Operation, Position, takes_none
from gradtx.execution.rule import empty_dict
from gradtx.execution.runs import LateTerm, Run
from gradtx.state.random import name_key

Slots: TypeAlias = dict[Path, dict[str, Tensor]]


class BlockRun(Run):
    """A run for one block: it returns the block's slots and collects new shared values."""

    def __init__(self, outer: Run, slots: Slots):
        super().__init__()
        self.initial = outer.initial
        self.device = outer.device
        self.known_extras = outer.known_extras
        self.leaf_extras = outer.leaf_extras
        self.stages = outer.stages
        self._outer = outer
        self._slots = slots

    def slots(self, path: Path, leaf: Leaf) -> dict[str, Tensor]:
        return self._slots.get(path, {})

    def scalars(self, path: Path) -> dict[str, Tensor]:
        return self._outer.scalars(path)

    def add_late(self, place: LateTerm, leaf: str, term: Any) -> None:
        raise ValueError(
            f"{'.'.join(place.path)}: {place.name!r} cannot be summed over blocks; move it outside blocks"
        )


class BlockLeaf(Leaf):
    """A block of a leaf, treated as a leaf."""

    def __init__(self, whole: Leaf, run: BlockRun, tensors: Mapping[Any, Tensor]):
        update = tensors.get("update")
        param = tensors.get("param")
        extras = dict(whole.extras)
        for name in whole.extras:
            extras[name] = tensors.get(("extra", name), extras[name])
        super().__init__(run, whole.name, update, param, extras, whole.clock)
        self.stand_for(whole)
        self.device = whole.device
        # Preserve object identity, since contexts are created once per object.
        self.grad = self.update if whole.grad is whole.update else tensors.get("grad")
        self._stream_name = tensors.get("stream", whole.name)

    @property
    def stream_name(self) -> str | Tensor:
        return self._stream_name


class Choosing:
    """A leaf as inner selectors see it: with the leaf's name and its first block as the tensor."""

    is_complex = False  # complex leaves cannot be divided

    def __init__(self, leaf: Any, division: Division):
        self.name: str = leaf.name
        self.run = self
        self._leaf = leaf
        self._division = division

    def choice(self, path: Path, leaf: Any, selector: Any) -> Any:
        selector_of_block = OfBlock(selector, self._division)
        return self._leaf.run.choice(path, self._leaf, selector_of_block)


class OfBlock:
    """A selector that is applied to the first block of a leaf."""

    def __init__(self, selector: Any, division: Division):
        self.by_name: bool = selector.by_name
        self.mark: Callable[..., Any] = selector.mark
        self.recall: Callable[..., Any] = selector.recall
        self._selector = selector
        self._division = division

    def choose(self, name: str, tensor: Any) -> Any:
        if tensor is not None and not is_lazy(tensor):
            self._division.check("blocks", name, tensor.shape)
            tensor = self._division.first(full_tensor(tensor.detach()))
        return self._selector.choose(name, tensor)


class DividedBlock(Block):
    """The operations of an inner transformation, applied to leaves block by block.

    Args:
        path: The path of the combinator.
        operations: The operations of the inner transformation.
        division: Defines the blocks.
        alone: Whether blocks are independent of one another and of other leaves.
        reads_params: Whether operations read the parameter.
    """

    def __init__(
        self,
        path: Path,
        operations: list[Any],
        division: Division,
        alone: bool,
        reads_params: bool,
    ):
        super().__init__(operations, [])
        self._path = path
        self._division = division
        self._alone = alone
        self._owner_reads = ("param", "grad") if reads_params else ("grad",)

    def for_leaf(self, leaf: Any) -> list[Any]:
        inner = super().for_leaf(Choosing(leaf, self._division))  # type: ignore[arg-type]
        divide = Divide(self._path, inner, self._division)
        in_blocks: list[Operation] = []
        for position, operation in enumerate(inner):
            in_blocks.append(InBlocks(operation, position, divide))
        unite = Unite(divide)
        if self._alone:
            divide.local = local_blocks(self._division, _like(leaf))
        # The owner of a sharded leaf computes all blocks.
        if self._alone and divide.local is None:
            divide.whole_until = unite
            divide.owner_reads = self._owner_reads
        return [divide, *in_blocks, unite]

    def labels(self, leaf: Any) -> list[tuple[Any, Any]]:
        return super().labels(Choosing(leaf, self._division))  # type: ignore[arg-type]


def _like(leaf: Any) -> Any:
    """Return a tensor that is sharded like a leaf."""
    update, param = getattr(leaf, "inputs", (None, None))
    return update if param is None else param


class Divide(Operation):
    """The first operation: divide a leaf into blocks and run the inner operations as far as possible.

    Attributes:
        local: The blocks of a sharded leaf on each rank, if no block is split across ranks.
    """

    elementwise = False
    takes_complex = False
    compiles = False

    def __init__(self, path: Path, inner: list[Any], division: Division):
        self.path = path
        self.inner = inner
        self.division = division
        self.local: LocalBlocks | None = None
        self.keeps_slots = any(operation.keeps_slots for operation in inner)
        self.takes_none = takes_none(inner)

    def start(self, leaf: Leaf) -> None:
        leaf.saved[self] = Pieces(self, leaf)

    def init(self, leaf: Leaf) -> None:
        self._check(leaf)
        pieces = Pieces(self, leaf)
        leaf.new.update(pieces.first_slots())

    def _check(self, leaf: Leaf) -> None:
        tensor = leaf.param if leaf.param is not None else leaf.update
        self.division.check(self.path[-1], leaf.name, tensor.shape)

    def pieces(self, leaf: Leaf) -> Pieces:
        return leaf.saved[self]


class InBlocks(Operation):
    """An operation of the inner transformation, applied to all blocks of a leaf."""

    elementwise = False
    takes_complex = False
    compiles = False

    def __init__(self, operation: Operation, position: int, divide: Divide):
        self.path = operation.path
        self.takes_none = divide.takes_none
        self.template_slot = operation.template_slot
        self.agree = operation.agree
        self.random = operation.random
        self.hessian_period = operation.hessian_period
        self.keeps_slots = operation.keeps_slots
        self.waits = operation.waits
        self._operation = operation
        self._position = position
        self._divide = divide

    def compute_dtype(self, leaf: Leaf) -> torch.dtype:
        return self._operation.compute_dtype(leaf)

    def start(self, leaf: Leaf) -> Any:
        return self._divide.pieces(leaf).payload(self._position)

    def resume(self, leaf: Leaf, total: Any) -> Any:
        pieces = self._divide.pieces(leaf)
        pieces.resume(self._position, total)
        return pieces.payload(self._position)

    def combine(self, waiting: list[tuple[Leaf, Any]]) -> Any:
        return self._operation.combine(waiting)

    def evaluate(self, leaf: Leaf) -> Any:
        return Pieces(self._divide, leaf, runs=False).evaluated(self._operation)

    def follow(self, position: Position) -> None:
        self._operation.follow(position)


class Unite(Operation):
    """The last operation: assemble the update of the leaf from those of its blocks."""

    elementwise = False
    takes_complex = False
    compiles = False

    def __init__(self, divide: Divide):
        self.path = (*divide.path, "")
        self.takes_none = divide.takes_none
        self._divide = divide

    def start(self, leaf: Leaf) -> None:
        leaf.saved.pop(self._divide).finish()


def _empty_list() -> list[Any]:
    return []


@dataclasses.dataclass
class Batch:
    """Blocks of one shape, and their progress through the inner operations.

    Attributes:
        numbers: The index of each block in its leaf.
        inputs: The tensors of the blocks, stacked; slots under ("slot", path, name), extras under ("extra", name).
        totals: The sums that the operations have requested so far.
        stop: The position of the operation that waits for another sum; None if the blocks have finished.
        payload: The terms of its sums.
        outputs: The results of the blocks, keyed like `inputs`: new slots and shared values, "update" and "active".
    """

    numbers: list[int]
    inputs: dict[Any, Tensor]
    totals: list[Any] = dataclasses.field(default_factory=_empty_list)
    stop: int | None = None
    payload: dict[Any, Tensor] = dataclasses.field(default_factory=empty_dict)
    outputs: dict[Any, Tensor] = dataclasses.field(default_factory=empty_dict)


class Pieces:
    """The blocks of one leaf in one call.

    Args:
        divide: The operation that divides the leaf.
        leaf: The leaf.
        runs: Whether to start running the inner operations.
    """

    def __init__(self, divide: Divide, leaf: Leaf, runs: bool = True):
        self._path = divide.path
        self._local = divide.local
        self._division = divide.division
        if divide.local is not None:
            self._division = divide.local.division
        self._operations = divide.inner
        self._leaf = leaf
        self._like = self._tensor()
        self._groups = self._division.groups(self._like)
        self._batches = [Batch(numbers, {}) for numbers in self._groups]
        # A dict, because a set has no order.
        self._paths: dict[Path, None] = {}
        for operation in self._operations:
            # Not the end of a combinator, whose path ends in an empty name.
            if any(operation.path[-1:]):
                self._paths[operation.path] = None
        self._stack()
        if runs and not leaf.run.initial:
            for batch in self._batches:
                self._advance(batch)

    def _tensor(self) -> Tensor:
        """Return a tensor shaped like the leaf."""
        leaf = self._leaf
        for tensor in (leaf.param, leaf.update):
            if tensor is not None:
                return self._plain(tensor)
        raise ValueError(
            f"{self._path[-1]}: leaf {leaf.name!r} has neither a gradient nor a parameter; "
            "call update(updates, state, params)"
        )

    def _plain(self, tensor: Any) -> Tensor:
        """Return the tensor to divide into blocks: the whole tensor, or this rank's local shard."""
        return full_tensor(tensor) if self._local is None else local(tensor)

    def _placed(self, tensor: Tensor, like: Any) -> Any:
        """Invert `_plain`, for a tensor sharded like `like`."""
        if self._local is None:
            return placed_as(tensor, like)
        return from_local_like(tensor, like)

    # Inputs.

    def _stack(self) -> None:
        """Stack the tensors of the blocks."""
        for key, tensor in self._tensors_to_divide().items():
            stacks = self._division.batches(self._plain(tensor))
            for batch, stacked in zip(self._batches, stacks, strict=True):
                batch.inputs[key] = stacked
        for path in self._paths:
            self._stack_slots(path)
        # At init also for the keys of codes that round at random.
        is_first = self._leaf.run.initial
        if is_first or any(operation.random for operation in self._operations):
            self._stack_stream_keys()

    def _tensors_to_divide(self) -> dict[Any, Tensor]:
        """Return the tensors of the leaf that blocks have parts of, keyed like the inputs of a batch."""
        leaf = self._leaf
        tensors: dict[Any, Any] = {"update": leaf.update, "param": leaf.param}
        if leaf.grad is not leaf.update:
            tensors["grad"] = leaf.grad
        for name, value in leaf.extras.items():
            if isinstance(value, Tensor) and value.shape == self._like.shape:
                tensors["extra", name] = value
        return {key: tensor for key, tensor in tensors.items() if tensor is not None}

    def _stack_slots(self, path: Path) -> None:
        """Stack the slots of a stage; those of a single batch are stored that way."""
        slots = self._leaf.run.slots(path, self._leaf)
        if self._is_one_batch():
            for slot, value in slots.items():
                self._batches[0].inputs["slot", path, slot] = self._plain(value)
            return
        # Batches may differ in slots: `min_size` of `state_dtype` may lie between the sizes of their blocks.
        for batch in self._batches:
            first = str(batch.numbers[0])
            for slot in slots:
                name, _, number = slot.rpartition("_")
                if number == first:
                    values = [full_tensor(slots[f"{name}_{i}"]) for i in batch.numbers]
                    batch.inputs["slot", path, name] = torch.stack(values)

    def _stack_stream_keys(self) -> None:
        """Give each block its own stream of random numbers."""
        leaf = self._leaf
        stream = leaf.stream_name
        is_nested = isinstance(stream, Tensor)  # a block of a block
        prefix = "" if is_nested else leaf.name
        for batch in self._batches:
            numbers = [name_key(f"{prefix}#{i}") for i in batch.numbers]
            # Not float32, even without blocks.
            keys = torch.tensor(numbers, dtype=torch.int64, device=leaf.device)
            batch.inputs["stream"] = stream ^ keys if is_nested else keys

    def _is_one_batch(self) -> bool:
        return len(self._batches) == 1

    # Running.

    def payload(self, position: int) -> Any:
        """Return the terms that the blocks add to the sums of an operation; None if no block waits for it."""
        waiting = [batch for batch in self._batches if batch.stop == position]
        if not waiting:
            return None
        terms: dict[Any, Any] = {}
        for name in waiting[0].payload:
            terms[name] = sum(batch.payload[name].sum() for batch in waiting)
        return terms

    def resume(self, position: int, total: Any) -> None:
        """Continue with the blocks that wait for the sums of an operation."""
        for batch in self._batches:
            if batch.stop == position:
                batch.totals.append(total)
                self._advance(batch)

    def _advance(self, batch: Batch) -> None:
        def run_block(block: BlockLeaf) -> dict[Any, Tensor]:
            batch.stop, payload = _run(self._operations, block, batch.totals)
            if payload is not None:
                return dict(payload)
            return _outputs(block, self._leaf)

        results = self._mapped(batch, run_block)
        if batch.stop is None:
            batch.outputs = results
        else:
            batch.payload = results

    def _mapped(
        self, batch: Batch, function: Callable[[BlockLeaf], Mapping[Any, Tensor]]
    ) -> dict[Any, Tensor]:
        """Apply `function` to every block as a leaf; return its results, stacked."""
        keys: list[Any] = []

        def apply_to_block(tensors: list[Tensor]) -> list[Tensor]:
            values = dict(zip(batch.inputs, tensors, strict=True))
            slots: Slots = {}
            for key, value in values.items():
                if key[0] == "slot":
                    _, path, slot = key
                    slots.setdefault(path, {})[slot] = value
            run = BlockRun(self._leaf.run, slots)
            block = BlockLeaf(self._leaf, run, values)
            block.program = self._operations
            results = function(block)
            keys[:] = results
            return list(results.values())

        count = len(batch.numbers)
        inputs = list(batch.inputs.values())
        # Vmap rejects empty dimensions: one block of zeros determines the results' keys and shapes.
        if not count:
            inputs = [value.new_zeros((1, *value.shape[1:])) for value in inputs]
        results = torch.vmap(apply_to_block)(inputs)
        stacked: dict[Any, Tensor] = {}
        for key, result in zip(keys, results, strict=True):
            # Shared values do not depend on the block, so those of the block of zeros are valid.
            stacked[key] = result if key[0] == "shared" else result[:count]
        return stacked

    # Results.

    def first_slots(self) -> Slots:
        """Return the initial slots of all inner stages."""

        def initialized(block: BlockLeaf) -> dict[Any, Tensor]:
            for operation in self._operations:
                operation.init(block)
            return _new_slots(block)

        for batch in self._batches:
            batch.outputs = self._mapped(batch, initialized)
        return self._united_slots({})

    def finish(self) -> None:
        """Set the leaf's update, slots and shared values."""
        leaf = self._leaf
        old = {path: leaf.run.slots(path, leaf) for path in self._paths}
        leaf.new.update(self._united_slots(old))
        leaf.starts.update(self._united_slots(old, "start"))
        for key, value in self._batches[0].outputs.items():
            if key[0] == "shared":
                _, path, name = key
                leaf.run.new_shared.setdefault(path, {}).setdefault(name, value[0])
        if "active" in self._batches[0].outputs:
            active = [batch.outputs["active"] for batch in self._batches]
            leaf.active = torch.cat(active).any()
        if "update" in self._batches[0].outputs:
            self._set_update()

    def _set_update(self) -> None:
        leaf = self._leaf
        updates = [batch.outputs["update"] for batch in self._batches]
        update = self._division.whole(updates, self._like)
        like = leaf.update if leaf.update is not None else leaf.param
        leaf.update = self._placed(update, like)
        # An inner combinator created an update for a leaf without a gradient.
        if leaf.grad is None:
            leaf.grad = torch.zeros_like(leaf.update)

    def _united_slots(self, old: Slots, kind: str = "slot") -> Slots:
        """Return the slots of the leaf: those of its blocks, stacked, or numbered if blocks differ in shape."""
        new: Slots = {}
        for batch in self._batches:
            for key, value in batch.outputs.items():
                if key[0] != kind:
                    continue
                _, path, slot = key
                slots = new.setdefault(path, {})
                if self._is_one_batch():
                    slots[slot] = value.contiguous()
                    continue
                for i, block in zip(batch.numbers, value.unbind(), strict=True):
                    slots[f"{slot}_{i}"] = block.contiguous()
        for path, slots in new.items():
            for slot, value in slots.items():
                like = old.get(path, {}).get(slot)
                if like is None:
                    slots[slot] = self._first_slot(value)
                else:
                    slots[slot] = self._placed(value, like)
        return new

    def _first_slot(self, value: Tensor) -> Any:
        """Return a new slot of all blocks; if the blocks are distributed over ranks, it is sharded accordingly."""
        like = self._leaf.param if self._leaf.param is not None else self._leaf.update
        if self._local is None:
            return value
        shape = (self._local.count, *value.shape[1:])
        return from_local_shard(value, like, shape, placements_by_rows(like, shape))

    def evaluated(self, operation: Operation) -> Any:
        """Return the tensor to evaluate with, according to an inner operation, or None."""

        def weights(block: BlockLeaf) -> dict[Any, Tensor]:
            value = operation.evaluate(block)
            return {} if value is None else {"weights": value}

        results = [self._mapped(batch, weights) for batch in self._batches]
        if not results[0]:
            return None
        weights_of_batches = [result["weights"] for result in results]
        whole = self._division.whole(weights_of_batches, self._like)
        return self._placed(whole, self._leaf.param)


def _run(
    operations: Sequence[Any], block: Leaf, totals: Sequence[Any]
) -> tuple[int | None, Any]:
    """Run the operations on a block, with the sums known so far.

    Returns:
        The position of the operation that requests another sum, and its terms; `(None, None)` if there is none.
    """
    known = list(totals)
    for position, operation in enumerate(operations):
        if block.update is None and not operation.takes_none:
            continue
        payload = operation.start(block)
        while payload is not None:
            if not known:
                return position, payload
            payload = operation.resume(block, known.pop(0))
    return None, None


def _outputs(block: Leaf, whole: Leaf) -> dict[Any, Tensor]:
    """Return the results of a block."""
    outputs = _new_slots(block)
    for path, slots in block.starts.items():
        for slot, value in slots.items():
            outputs["start", path, slot] = value
    for path, values in block.run.new_shared.items():
        for name, value in values.items():
            outputs["shared", path, name] = value
    if block.update is not None:
        outputs["update"] = block.update
        if block.active is not None and block.active is not whole.active:
            outputs["active"] = block.active
            outputs["update"] = torch.where(block.active, block.update, 0.0)
    return outputs


def _new_slots(block: Leaf) -> dict[Any, Tensor]:
    """Return the new slots of a block, keyed like the outputs of a batch."""
    new: dict[Any, Tensor] = {}
    for path, slots in block.new.items():
        for slot, value in slots.items():
            new["slot", path, slot] = value
    return new
