"""Operations that process the blocks of a leaf with the operations of an inner transformation, as if they were leaves.

Blocks of one shape are processed together, under vmap. A rule that waits for a sum cannot be suspended there, so the
operations run again from the start with the sums known so far.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from gradtx.base.dtensor import from_local_like, local
from gradtx.base.errors import Path
from gradtx.base.tree import map_tensors
from gradtx.combinators._division import Division, LocalBlocks, local_blocks
from gradtx.combinators._spaces import run_at_owner
from gradtx.distributed.layouts import placements_by_rows
from gradtx.distributed.redistribution import distributed_like, full_tensor
from gradtx.execution.execute import (
    Leaf,
    Operation,
    Route,
    Steps,
    complex_error,
    resumed,
)
from gradtx.execution.runs import LateTerm, Run
from gradtx.execution.traits import Traits
from gradtx.state.random import name_key
from gradtx.transform import GradientTransformation

Slots: TypeAlias = dict[Path, dict[str, Tensor]]


class BlockRun:
    """The run of a leaf as one of its blocks sees it: with the slots of the block."""

    def __init__(self, outer: Run, slots: Slots):
        self._outer = outer
        self._slots = slots

    def __getattr__(self, name: str) -> Any:
        return getattr(self._outer, name)

    def slots(self, path: Path, leaf: Leaf) -> dict[str, Tensor]:
        return self._slots.get(path, {})

    def add_late(self, place: LateTerm, leaf: str, term) -> None:
        raise ValueError(
            f"{'.'.join(place.path)}: {place.name!r} cannot be summed over blocks; move it outside blocks"
        )


class BlockLeaf(Leaf):
    """A block of a leaf, treated as a leaf.

    Args:
        whole: The leaf.
        operations: The operations of the inner transformation.
        inputs: The tensors of the block; see `Batch`.
    """

    def __init__(self, whole: Leaf, operations: list[Any], inputs: Mapping[str, Any]):
        run: Any = BlockRun(whole.run, inputs["slots"])
        extras = {**whole.extras, **inputs["extras"]}
        update, param = inputs.get("update"), inputs.get("param")
        super().__init__(run, whole.name, update, param, extras, whole.clock)
        self.stand_for(whole)
        self.device = whole.device
        self.operations = operations
        # The same object if the leaf's are, since contexts are created once per object.
        self.grad = inputs.get("grad", self.update)
        self.stream_name = inputs.get("stream", whole.name)


class Choosing:
    """A leaf as inner selectors see it: with the leaf's name and its first block as the tensor."""

    is_complex = False  # complex leaves cannot be divided
    is_stored_only = False  # leaves with other operations than those of a frozen one
    inputs = (None, None)

    def __init__(self, leaf, division: Division):
        self.name: str = leaf.name
        self._leaf = leaf
        self._division = division

    @property
    def run(self) -> Choosing:
        return self

    def choice(self, path: Path, leaf, selector) -> Any:
        selector_of_block = OfBlock(selector, self._division)
        return self._leaf.run.choice(path, self._leaf, selector_of_block)


class OfBlock:
    """A selector that is applied to the first block of a leaf."""

    def __init__(self, selector, division: Division):
        self.who = selector.who
        self.key = selector.key
        self.by_name = selector.by_name
        self.needs_tree = selector.needs_tree
        self.mark = selector.mark
        self.recall = selector.recall
        self._selector = selector
        self._division = division

    def resolved(self, params: Any) -> OfBlock:
        """Return the same for the selector that a function of the whole tree determines for these parameters."""
        return OfBlock(self._selector.resolved(params), self._division)

    def choose(self, name: str, tensor) -> Any:
        if tensor is not None and not is_lazy(tensor):
            self._division.check(name, tensor.shape)
            blocks = self._division.batch(0, full_tensor(tensor.detach()))
            no_blocks = not len(blocks)
            tensor = blocks.new_zeros(blocks.shape[1:]) if no_blocks else blocks[0]
        return self._selector.choose(name, tensor)


class DividedRoute(Route):
    """The operations of an inner transformation, applied to leaves block by block.

    Args:
        tx: The inner transformation.
        operations: Its operations.
        division: Defines the blocks.
        alone: Whether blocks are independent of one another and of other leaves.
    """

    def __init__(
        self,
        tx: GradientTransformation,
        operations: list[Any],
        division: Division,
        alone: bool,
    ):
        super().__init__(operations, [])
        self._tx = tx
        self._division = division
        self._alone = alone

    def for_leaf(self, leaf) -> list[Any]:
        if leaf.is_complex:
            raise complex_error("blocks", leaf)
        inner = super().for_leaf(Choosing(leaf, self._division))  # type: ignore[arg-type]
        blockwise = Blockwise(inner, self._division)
        operations = [InBlocks(blockwise, position) for position in range(len(inner))]
        if self._alone and operations:
            update, param = leaf.inputs
            blockwise.local = local_blocks(
                self._division, update if param is None else param
            )
            # The owner of a sharded leaf computes all blocks.
            if blockwise.local is None:
                run_at_owner(operations, self._tx)
        return operations

    def labels(self, leaf) -> list[tuple[Any, Any]]:
        return super().labels(Choosing(leaf, self._division))  # type: ignore[arg-type]


@dataclasses.dataclass(eq=False)
class Blockwise:
    """How the blocks of a leaf are processed.

    Attributes:
        operations: The operations of the inner transformation.
        division: Divides the leaf.
        local: The blocks of a sharded leaf on each rank, if no block is split across ranks.
    """

    operations: list[Any]
    division: Division
    local: LocalBlocks | None = None


class InBlocks(Operation):
    """An operation of the inner transformation, applied to all blocks of a leaf.

    The first one divides the leaf and runs all inner operations as far as possible, and the last one assembles the
    update of the leaf from those of its blocks; of a leaf that is watched, each does so.
    """

    def __init__(self, blockwise: Blockwise, position: int):
        operation: Operation = blockwise.operations[position]
        self.path = operation.path
        self.role = operation.role
        self.traits = Traits(
            elementwise=False,
            refusal="it processes the blocks of a leaf side by side",
            capturable=operation.traits.capturable,
            waits_at_first=operation.traits.waits_at_first,
            hessian_period=operation.traits.hessian_period,
            keeps_slots=operation.traits.keeps_slots,
            waits=operation.traits.waits,
            needs_all_rows="it processes the blocks of a leaf side by side",
        )
        self._operation = operation
        self._position = position
        self._blockwise = blockwise

    def compute_dtype(self, leaf: Leaf) -> torch.dtype:
        return self._operation.compute_dtype(leaf)

    def init(self, leaf: Leaf) -> None:
        if self._position == 0:
            self._blockwise.division.check(leaf.name, leaf.shape)
            leaf.new.update(Pieces(self._blockwise, leaf).first_slots())

    def start(self, leaf: Leaf) -> Steps:
        if self._position == 0:
            leaf.saved[self._blockwise] = Pieces(self._blockwise, leaf)
            leaf.saved[self._blockwise].run()
        pieces: Pieces = leaf.saved[self._blockwise]
        while (payload := pieces.payload(self._position)) is not None:
            total = yield payload
            pieces.resume(self._position, total)
        if leaf.probe is not None:
            pieces.show(self._position)
        if self._operation is self._blockwise.operations[-1]:
            pieces.finish()
            del leaf.saved[self._blockwise]

    def combine(self, waiting: list[tuple[Leaf, Any]]) -> Any:
        return self._operation.combine(waiting)


@dataclasses.dataclass
class Batch:
    """Blocks of one shape, and their progress through the inner operations.

    Attributes:
        indices: The index of each block in its leaf.
        inputs: The tensors of the blocks, stacked: "update", "param", "grad", "stream", "extras" by name, and "slots"
            by path and name.
        totals: The sums that the operations have requested so far.
        stop: The position of the operation that waits for another sum; None if the blocks have finished.
        results: The terms of that sum; or the results of the blocks: "update", "active", and by path and name the new
            "slots" and the initial slots in "starts".
        passed: The "update" after each operation that the blocks have passed, and what was "probed" of it, if the leaf
            is watched.
    """

    indices: list[int]
    inputs: dict[str, Any]
    totals: list[Any]
    stop: int | None = None
    results: Any = None
    passed: list[dict[str, Tensor]] = dataclasses.field(default_factory=list)


class Pieces:
    """The blocks of one leaf in one call."""

    def __init__(self, blockwise: Blockwise, leaf: Leaf):
        self._operations = blockwise.operations
        self._leaf = leaf
        self._local = blockwise.local
        self._division = blockwise.division
        if blockwise.local is not None:
            self._division, self._count = blockwise.local
        self._template = leaf.param if leaf.param is not None else leaf.update
        self._like = self._plain(self._template)
        self._divided = leaf.update
        groups = self._division.groups(self._like)
        self._batches = [Batch(indices, {}, []) for indices in groups]
        self._stack()

    def _plain(self, tensor) -> Tensor:
        """Return the tensor to divide into blocks: the whole tensor, or this rank's local shard."""
        return full_tensor(tensor) if self._local is None else local(tensor)

    def _placed(self, tensor: Tensor, like) -> Any:
        """Invert `_plain`, for a tensor sharded like `like`."""
        if self._local is None:
            return distributed_like(tensor, like)
        return from_local_like(tensor, like)

    # Inputs.

    def _stack(self) -> None:
        """Stack the tensors of the blocks."""
        leaf = self._leaf
        tensors = {"update": leaf.update, "param": leaf.param}
        if leaf.grad is not leaf.update:
            tensors["grad"] = leaf.grad
        tensors["extras"] = {
            name: value
            for name, value in leaf.extras.items()
            if isinstance(value, Tensor) and value.shape == self._like.shape
        }
        tensors = {name: value for name, value in tensors.items() if value is not None}
        tensors = map_tensors(self._plain, tensors)
        # At init also for the keys of codes that round at random.
        draws = leaf.run.initial or any(
            operation.traits.random for operation in self._operations
        )
        for i, batch in enumerate(self._batches):
            division = functools.partial(self._division.batch, i)
            batch.inputs = map_tensors(division, tensors)
            batch.inputs["slots"] = self._slots_of(batch)
            if draws:
                batch.inputs["stream"] = self._stream_keys(batch)

    def _slots_of(self, batch: Batch) -> Slots:
        """Return the slots of a batch; those of a single batch are stored that way."""
        leaf = self._leaf
        # A dict, because a set has no order.
        paths = dict.fromkeys(
            operation.path for operation in self._operations if operation.path
        )
        slots_of_path = {}
        for path in paths:
            slots = leaf.run.slots(path, leaf)
            if len(self._batches) == 1:
                slots_of_path[path] = {
                    slot: self._plain(value) for slot, value in slots.items()
                }
                continue
            stacked = slots_of_path[path] = {}
            # Batches may differ in slots: `min_size` of `state_dtype` may lie between the sizes of their blocks.
            for slot in slots:
                name, _, number = slot.rpartition("_")
                if number == str(batch.indices[0]):
                    values = [full_tensor(slots[f"{name}_{i}"]) for i in batch.indices]
                    stacked[name] = torch.stack(values)
        return slots_of_path

    def _stream_keys(self, batch: Batch) -> Tensor:
        """Return the key of each block's own stream of random numbers."""
        leaf = self._leaf
        stream = leaf.stream_name
        is_nested = isinstance(stream, Tensor)  # a block of a block
        prefix = "" if is_nested else leaf.name
        names = [name_key(f"{prefix}#{i}") for i in batch.indices]
        # Not float32, even without blocks.
        keys = torch.tensor(names, dtype=torch.int64, device=leaf.device)
        return stream ^ keys if is_nested else keys

    # Running.

    def run(self) -> None:
        """Run the inner operations as far as possible."""
        for batch in self._batches:
            self._advance(batch)

    def payload(self, position: int) -> Any:
        """Return the terms that the blocks add to the sums of an operation; None if no block waits for it."""
        waiting = [batch.results for batch in self._batches if batch.stop == position]
        if not waiting:
            return None
        return {
            name: sum(terms[name].sum() for terms in waiting) for name in waiting[0]
        }

    def resume(self, position: int, total) -> None:
        """Continue with the blocks that wait for the sums of an operation."""
        for batch in self._batches:
            if batch.stop == position:
                batch.totals.append(total)
                self._advance(batch)

    def _advance(self, batch: Batch) -> None:
        def run_block(block: BlockLeaf) -> Mapping[str, Any]:
            """Return the results of a block, or its terms of the next sum, if an operation waits for one."""
            totals_left = list(batch.totals)
            passed: list[dict[str, Tensor]] = []
            for position, operation in enumerate(self._operations):
                block.probed = None
                steps = operation.start(block)
                payload = resumed(steps)
                while payload is not None:
                    if not totals_left:
                        batch.stop = position
                        return {"results": payload, "passed": passed}
                    payload = resumed(steps, totals_left.pop(0))
                if block.probe is not None:
                    passed.append(_shown(block))
            batch.stop = None
            return {"results": _results(block, self._leaf), "passed": passed}

        mapped = self._mapped(batch, run_block)
        batch.results, batch.passed = mapped["results"], mapped["passed"]

    def _mapped(
        self, batch: Batch, function: Callable[[BlockLeaf], Mapping[str, Any]]
    ) -> Mapping[str, Any]:
        """Apply `function` to every block as a leaf; return its results, stacked."""

        def apply_to_block(inputs: dict[str, Any]) -> Mapping[str, Any]:
            return function(BlockLeaf(self._leaf, self._operations, inputs))

        count = len(batch.indices)
        inputs = batch.inputs
        # Vmap rejects empty dimensions: one block of zeros determines the results' keys and shapes.
        if not count:
            inputs = map_tensors(lambda x: x.new_zeros((1, *x.shape[1:])), inputs)
        results = torch.vmap(apply_to_block)(inputs)
        return results if count else map_tensors(lambda x: x[:0], results)

    # Results.

    def show(self, position: int) -> None:
        """Set the leaf's update to that after an operation, and what was probed of it."""
        passed = [batch.passed[position] for batch in self._batches]
        self._leaf.update = self._shown_of(passed, "update")
        self._leaf.probed = None
        if all("probed" in shown for shown in passed):
            self._leaf.probed = self._shown_of(passed, "probed")

    def _shown_of(self, passed: list[dict[str, Tensor]], name: str) -> Tensor:
        """Return what is shown of all blocks as one tensor; inside fewer dimensions, it has not the leaf's shape."""
        tensors = [shown[name] for shown in passed]
        shapes = [batch.inputs["update"].shape for batch in self._batches]
        if [tensor.shape for tensor in tensors] == shapes:
            return self._united_update(tensors)
        return torch.cat([tensor.flatten() for tensor in tensors])

    def first_slots(self) -> Slots:
        """Return the initial slots of all inner stages."""

        def initialized(block: BlockLeaf) -> dict[str, Any]:
            for operation in self._operations:
                operation.init(block)
            return {"slots": block.new}

        for batch in self._batches:
            batch.results = self._mapped(batch, initialized)
        return self._united("slots")

    def finish(self) -> None:
        """Set the leaf's update, slots and shared values."""
        leaf = self._leaf
        results = [batch.results for batch in self._batches]
        leaf.new.update(self._united("slots"))
        leaf.starts.update(self._united("starts"))
        if "active" in results[0]:
            leaf.active = torch.cat([result["active"] for result in results]).any()
        leaf.update = self._united_update([result["update"] for result in results])

    def _united_update(self, updates: list[Tensor]) -> Any:
        """Return the leaf's update of those of its blocks, stacked for each batch."""
        whole = self._division.whole(updates, self._like)
        return self._placed(whole, self._divided)

    def _united(self, kind: str) -> Slots:
        """Return the slots of the leaf from those of its blocks."""
        joined = {}
        for batch in self._batches:
            for path, slots in batch.results[kind].items():
                old = self._leaf.run.slots(path, self._leaf)
                united = joined.setdefault(path, {})
                for name, value in self._named(batch, slots):
                    united[name] = self._stored(value.contiguous(), old.get(name))
        return joined

    def _named(
        self, batch: Batch, slots: Mapping[str, Tensor]
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield the slots of a batch by their stored names: stacked, or numbered if blocks differ in shape."""
        for slot, value in slots.items():
            if len(self._batches) == 1:
                yield slot, value
                continue
            for i, block in zip(batch.indices, value.unbind(), strict=True):
                yield f"{slot}_{i}", block

    def _stored(self, value: Tensor, old) -> Any:
        """Return a slot with the placements of its old value; a new one is sharded if the blocks are."""
        if old is not None:
            return self._placed(value, old)
        if self._local is None:
            return value
        shape = (self._count, *value.shape[1:])
        placements = placements_by_rows(self._template, shape)
        return from_local_like(value, self._template, shape, placements)


def _shown(block: Leaf) -> dict[str, Tensor]:
    """Return the update of a block after an operation, and what was probed of it, if anything."""
    shown = {"update": block.update}
    if block.probed is not None:
        shown["probed"] = block.probed
    return shown


def _results(block: Leaf, whole: Leaf) -> dict[str, Any]:
    """Return the results of a block that has finished."""
    results = {
        "update": block.update,
        "slots": block.new,
        "starts": block.starts,
    }
    if block.active is not None and block.active is not whole.active:
        results["active"] = block.active
        results["update"] = torch.where(block.active, block.update, 0.0)
    return results
