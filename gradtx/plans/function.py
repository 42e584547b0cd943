"""The step of a leaf as a function of flat arguments: what back ends record, and the order of its arguments."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor

from gradtx.base.errors import Path, StateKey
from gradtx.base.forward import Transformation
from gradtx.compiler.record import (
    PhaseResult,
    UnrecordableError,
    as_written,
    owned,
    record_as_written,
)
from gradtx.execution.context import Clock
from gradtx.execution.execute import Leaf, Operation, Route, execute
from gradtx.execution.leaf_rule import OfLeaf
from gradtx.execution.owners import regions_of
from gradtx.execution.runs import LateTerm, Run, memory_of
from gradtx.plans.phases import (
    AwaitedSumError,
    LeafSum,
    RecordedPhase,
    TotalNames,
    record_phases,
)
from gradtx.state.layout import Layout

Take: TypeAlias = Callable[[], Tensor]  # returns the next argument
MakeChain: TypeAlias = Callable[[list[Tensor]], Transformation]


@dataclass(frozen=True)
class Signature:
    """The arguments of a program, and the decisions of selectors for its leaves.

    The flat arguments are: the number of this step; the count passed to schedules; under a GradScaler, the inverse
    scale and whether to proceed; hyperparameters; shared values; equal slots; 0-d extras; totals of earlier phases. For
    the leaf they continue with: the parameter if there is one, slots, gradient, extras, the index of its first entry,
    and its own totals of earlier phases.

    Attributes:
        layout: The positions of a leaf's slots in its state.
        choices: The decision of each selector.
        hyperparameters: How many hyperparameters are among the arguments.
        shared: The dtype of each shared value.
        scalars: The dtype of each 0-d extra.
        by_leaf: The names of per-leaf extras.
        absent: The extras that are not arguments: None, or `UNREAD`.
        known_extras: The extras that some link declares.
        has_param: Whether each leaf has a parameter among the arguments.
        writes: Whether the program writes new values into its arguments; otherwise it returns them.
        scaled: Whether a GradScaler is active.
        positional: Whether leaves are parts of parameters, so that each has the index of its first entry.
        has_owners: Whether owners compute the operations that need whole leaves.
        sharded: Whether leaves are shards.
        equal: The dtype of each 0-d slot that is equal in all leaves and is passed once, by key.
        ordered: Whether entries have to be in the order of their indices in memory, since the program adds up some.
    """

    layout: Layout
    choices: Mapping[Path, Any]
    hyperparameters: int
    shared: Mapping[StateKey, torch.dtype]
    scalars: Mapping[str, torch.dtype]
    absent: Mapping[str, Any]
    known_extras: Any
    by_leaf: tuple[str, ...] = ()
    has_param: bool = True
    writes: bool = True
    scaled: bool = False
    has_owners: bool = False
    sharded: bool = False
    positional: bool = False
    ordered: bool = False
    equal: Mapping[str, torch.dtype] = field(default_factory=dict[str, torch.dtype])

    @property
    def slots(self) -> list[str]:
        """The keys of slots that programs write."""
        return self.layout.program_keys

    @property
    def slots_by_leaf(self) -> list[str]:
        """The keys of slots that are passed for each leaf, in order."""
        return [key for key in self.slots if key not in self.equal]

    def shared_dtypes(self) -> list[torch.dtype]:
        """Return the dtypes of the arguments that all leaves share, in order."""
        dtypes = [torch.int64, torch.int64]
        if self.scaled:
            dtypes += [torch.float64, torch.bool]
        dtypes += [torch.float64] * self.hyperparameters
        dtypes += self.shared.values()
        dtypes += self.equal.values()
        dtypes += self.scalars.values()
        return dtypes

    def varying(self, has_groups: bool) -> frozenset[int]:
        """Return the indices of the shared arguments that leaves may have of their own.

        These are the number of the step and the equal slots and, of leaves in several groups, the hyperparameters.
        """
        first = 4 if self.scaled else 2
        stop = first + self.hyperparameters
        start = stop + len(self.shared)
        indices = {0, *range(start, start + len(self.equal))}
        return frozenset(indices.union(range(first, stop) if has_groups else ()))

    def key(self) -> tuple[Any, ...]:
        """Return the part of a program's cache key that `LeafKind` does not cover."""
        return (
            tuple(self.shared.items()),
            tuple(self.scalars.items()),
            tuple(self.absent),
            self.scaled,
            self.has_owners,
            self.positional,
            tuple(self.equal.items()),
        )


class EqualSlot(NamedTuple):
    """The name of a result that is the new value of a slot in all leaves."""

    key: str


class RecordedRun(Run):
    """A run over the arguments of a program.

    Attributes:
        old: The old shared values, by stage.
        equal: The old values of the slots that are equal in all leaves.
        totals: The totals of earlier phases, in order; those of `LeafSum`s by leaf.
        clock: The clock outside of all combinators.
    """

    is_recorded = True

    def __init__(self, signature: Signature, device: torch.device):
        super().__init__()
        self.device = device
        self.known_extras = signature.known_extras
        self.leaf_extras = signature.by_leaf
        self.old: dict[Path, dict[str, Tensor]] = {}
        self.equal: dict[str, Tensor] = {}
        self.totals: list[dict[Any, Any]] = []
        self.clock: Clock | None = None
        self.has_shards = signature.sharded
        self._choices = signature.choices

    def scalars(self, path: Path) -> dict[str, Tensor]:
        return self.old.get(path, {})

    def choice(self, path: Path, leaf: Leaf, selector: Any) -> Any:
        return self._choices[path]

    def recorded_owner(
        self, operation: Any, leaf: Leaf, payload: Mapping[str, Tensor]
    ) -> Tensor | None:
        if operation.traits.keeps_slots and self._is_decided(leaf):
            raise UnrecordableError(
                "a combinator decides whether slots stored by an owner change"
            )
        return owned(payload, operation)

    def as_written(self, operation: Any, leaf: Leaf) -> AbstractContextManager[None]:
        is_decided = operation.traits.keeps_slots and self._is_decided(leaf)
        if is_decided or not operation.traits.compiles:
            # No program runs a sharded leaf, which must not round differently before or after.
            record_as_written()
        return as_written()

    def _is_decided(self, leaf: Leaf) -> bool:
        """Whether a combinator decides if slots change, or when."""
        return (
            leaf.active is not None
            or leaf.restarts is not False
            or leaf.clock is not self.clock
        )

    def fusion_barrier(self, update: Tensor) -> Tensor:
        return torch.ops.aten.alias.default(update)

    def combined(self, operation: Operation, waiting: list[tuple[Leaf, Any]]) -> Any:
        if self.totals:
            return self.totals.pop(0)
        _, terms = waiting[0]
        if isinstance(terms, OfLeaf):
            sums = {LeafSum(name): term for name, term in terms.sums.items()}
            raise AwaitedSumError(operation, sums)
        raise AwaitedSumError(operation, operation.combine(waiting))


@dataclass
class LeafFunction:
    """The step of a leaf as a function of flat arguments, in the order of `Signature`.

    Attributes:
        signature: The arguments.
        make_chain: Builds the transformation from the hyperparameters.
        scaling: Takes the arguments of a GradScaler and returns the frame around the chain that applies them.
    """

    signature: Signature
    make_chain: MakeChain
    scaling: Callable[[Run, Take], Any] | None = None

    def __call__(self, arguments: list[Tensor], total_names: TotalNames) -> PhaseResult:
        """Run up to the first sum whose total is not an argument; `total_names` are those of the totals that are."""
        arguments_left = deque(arguments)
        run = RecordedRun(self.signature, arguments[-1].device)
        leaf = self._leaf(run, arguments_left, total_names)
        taken = self._memory_of(leaf)
        try:
            execute([leaf])
        except AwaitedSumError as awaited:
            return awaited.result()
        late_sums = list(run.late_sums.values())
        run.late_sums.clear()  # the step completes these sums
        run.end()
        outputs = self._shared_outputs(run, leaf, late_sums)
        if not self.signature.writes:
            outputs = {**self._leaf_outputs(leaf), **outputs}
            return PhaseResult(list(outputs.values()), tuple(outputs), None)
        write = functools.partial(self._write, leaf, taken)
        # In memory that no argument shares.
        copies = [value.clone() for value in outputs.values()]
        return PhaseResult(copies, tuple(outputs), None, write)

    def record(self, leaves: list[Tensor]) -> list[RecordedPhase]:
        """Record the list program for leaves with these arguments."""
        dtypes = self.signature.shared_dtypes()
        *sums, last = record_phases(self, dtypes, leaves)
        if not self.signature.has_owners:
            return [*sums, last]
        if any(phase.recording.owned for phase in sums):
            raise UnrecordableError("a sum needs what owners compute")
        return [*sums, *last.segments()]

    def _leaf_outputs(self, leaf: Leaf) -> dict[Any, Tensor]:
        """Return the update and the slots of a leaf by their position among the results."""
        written = dict(_slots_by_key(leaf))
        for key in self.signature.slots:
            # A selector's mark is empty and remains.
            if key not in written and leaf.state[key].numel():
                raise UnrecordableError(f"no link of the chain writes {key!r}")
        slots = {**leaf.state, **written}
        results = [cast("Tensor", leaf.result())]
        results.extend(slots[key] for key in self.signature.slots)
        return dict(enumerate(results))

    def _memory_of(self, leaf: Leaf) -> set[Any]:
        """Return the memory of the leaf's arguments, which results must not share when they are written."""
        extras = [leaf.extras[name] for name in self.signature.by_leaf]
        tensors = (*leaf.inputs, *leaf.state.values(), *extras)
        return {memory_of(tensor) for tensor in tensors if tensor is not None}

    def _leaf(
        self, run: RecordedRun, arguments_left: deque[Tensor], total_names: TotalNames
    ) -> Leaf:
        """Create the leaf from the arguments, with its operations."""
        signature, take = self.signature, arguments_left.popleft
        step, count = take(), take()
        unscale = None
        if signature.scaled:
            assert self.scaling is not None
            unscale = self.scaling(run, take)
        chain = self.make_chain([take() for _ in range(signature.hyperparameters)])
        for path, name in signature.shared:
            run.old.setdefault(path, {})[name] = take()
        run.equal = {key: take() for key in signature.equal}
        scalars = {name: take() for name in signature.scalars}
        scalars.update(signature.absent)
        for names in total_names:
            run.totals.append(
                {name: take() for name in names if not isinstance(name, LeafSum)}
            )
        route = Route.of(chain, run, count, unscale)
        run.clock = Clock(step)
        param = take() if signature.has_param else None
        state = {key: take() for key in signature.slots_by_leaf}
        leaf = Leaf(run, "0", take(), param, scalars, run.clock)
        leaf.layout = signature.layout
        leaf.state = {**state, **run.equal}
        for extra in signature.by_leaf:
            leaf.extras[extra] = take().to(leaf.compute_dtype)
        if signature.positional:
            leaf.first_entry = take()
        for names, totals in zip(total_names, run.totals, strict=True):
            of_leaf = [total.name for total in names if isinstance(total, LeafSum)]
            if of_leaf:
                totals[leaf.name] = {name: take() for name in of_leaf}
        leaf.operations = route.for_leaf(leaf)
        if signature.has_owners:
            leaf.operations = regions_of(leaf.operations)
        return leaf

    def _shared_outputs(
        self,
        run: RecordedRun,
        leaf: Leaf,
        late_sums: Iterable[tuple[LateTerm, dict[str, Any]]],
    ) -> dict[Any, Tensor]:
        """Return new shared values and slots that are equal in all leaves, and the leaf's terms of late sums."""
        outputs = {}
        for path, values in run.new_shared.items():
            for name, value in values.items():
                if (path, name) in self.signature.shared:
                    outputs[path, name] = value
        for key, value in _slots_by_key(leaf):
            if key in self.signature.equal:
                outputs[EqualSlot(key)] = value
        for key, terms in late_sums:
            outputs[key] = terms[leaf.name]
        return outputs

    def _write(self, leaf: Leaf, taken: set[Any]) -> None:
        """Write new slots and the parameter in place, after all of them have been computed.

        Values in the memory of the arguments, `taken`, are copied first, or writing could change them. They are written
        before others, into the last slots first, so that programs need no copies of the values of a queue.
        """
        pairs: deque[tuple[Tensor, Tensor]] = deque()
        for key, value in _slots_by_key(leaf):
            if key in self.signature.equal:
                continue
            if memory_of(value) in taken:
                pairs.appendleft((leaf.state[key], value.clone()))
            else:
                pairs.append((leaf.state[key], value))
        update: Any = leaf.result()
        if memory_of(update) in taken:
            update = update.clone()
        for old, value in pairs:
            old.copy_(value)
        param: Any = leaf.inputs[1]
        param.copy_(param + update)


def _slots_by_key(leaf: Leaf) -> Iterator[tuple[str, Tensor]]:
    """Yield the new slots of a leaf with their keys in its state."""
    for path, slots in leaf.new.items():
        keys = leaf.layout.slots[path]
        for slot, value in slots.items():
            yield keys[slot], value
