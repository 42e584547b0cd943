"""The engine that needs no compiler: it runs programs over lists of leaves, with `gradtx.compiler`."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence
from copy import copy
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from gradtx.base.complex_views import as_real
from gradtx.base.dtensor import local, with_pending_sums
from gradtx.base.plain import TYPES
from gradtx.base.recent import ProgramsOfChains
from gradtx.base.torch_names import copy_each_
from gradtx.distributed.layouts import rows_are_whole
from gradtx.distributed.sums import PartialSum
from gradtx.execution.execute import Leaf, LeafTerms
from gradtx.execution.leaf_rule import OfLeaf
from gradtx.execution.owners import has_regions
from gradtx.optim.engine.base import (
    PARTS_OF_ROWS,
    READS_SHAPE,
    REDUCES_SHARD,
    Engine,
    slots_are_shaped_as,
)
from gradtx.optim.engine.family import (
    MemberFamily,
    first_entries,
    operations_of,
    whole_arguments,
)
from gradtx.optim.engine.views import (
    RefusedError,
    alias,
    are_in_order,
    can_be_split,
    cut,
    entries_of,
    in_order,
    is_positional,
    part_of,
    plain,
    put_back,
    view_or_copy,
)
from gradtx.optim.run import COUNT, GRAD, GRADIENT, Member
from gradtx.plans.bundle import (
    ListBundle,
    Selection,
    VariantOf,
    differ_by_leaf,
    entries_of_a_call,
    list_variant_of,
    sets_of_rows,
)
from gradtx.plans.function import EqualSlot, Signature
from gradtx.plans.phases import RecordedPhase
from gradtx.plans.planner import ListPrograms, may_be_scalar, slots_from_scalars


class MemberBundle(ListBundle):
    """Parameters with the same program, updated in place.

    Args:
        members: The parameters.
        signature: The arguments of the program.
        phases: The program.
        splits: Whether large leaves may be updated in parts.

    Attributes:
        splits: As above.
        stepping: The parameters that have a gradient in the present step.
        are_as_planned: Whether the gradients are like those of the plan.
    """

    are_as_planned = False

    def __init__(
        self,
        members: list[Member],
        signature: Signature,
        phases: list[RecordedPhase],
        splits: bool,
    ):
        device = local(members[0].param).device
        names = [member.name for member in members]
        parts = self._divided(members, signature, splits)
        rows, sizes, limit = parts.rows, parts.sizes, parts.limit
        super().__init__(members[0].name, device, names, rows, sizes, limit)
        self._columns = Columns(parts.pieces, signature)
        self.operations = phases
        self.splits = splits
        self.members = self.stepping = members
        self.signature = signature
        groups = [member.group for member in members]
        self._groups = groups if len(set(groups)) > 1 else []
        self.varying = signature.varying(bool(self._groups))
        self._leaves: dict[str, Leaf] = {}
        # The mesh and placements of terms of sums, by leaf name.
        self._placed_sums: dict[str, tuple[Any, Any]] = {}
        if signature.sharded:
            for member in members:
                param: Any = member.param
                placements = with_pending_sums(param.placements)
                self._placed_sums[member.name] = param.device_mesh, placements
        self.has_sharded_terms = bool(self._placed_sums)
        self._equal = self._equal_slots()
        # Whether scalars depend on more than counts.
        self._has_more = bool(self._groups or self._equal)

    def _equal_slots(self) -> dict[str, list[Tensor]]:
        return {
            key: [member.state[key] for member in self.members]
            for key in self.signature.equal
        }

    def release_states(self) -> None:
        """Let go of all slots."""
        self._equal = {}
        self._columns.release_states()

    def take_states(self) -> None:
        """Take the slots of the members' present states, which `locate` then finds."""
        self._equal = self._equal_slots()
        self._columns.take_states()

    def _divided(
        self, members: list[Member], signature: Signature, splits: bool
    ) -> Parts:
        """Return the leaves, of which large ones are divided."""
        return _parts_of(members, splits, signature)

    def of_others(self, members: list[Member]) -> Self:
        """Return the bundle of other members, of the same kinds; of none, it is kept for later ones."""
        bundle = copy(self)
        vars(bundle).pop("_named_leaves", None)
        bundle.names = [member.name for member in members]
        bundle.name = bundle.names[0] if members else ""
        bundle.members = bundle.stepping = members
        bundle.run, bundle._leaves, bundle._results = None, {}, []
        bundle._sets, bundle._set_of_row, bundle._calls = [], None, []
        pieces = list(map(members.__getitem__, self.rows)) if members else []
        bundle._columns = self._columns.of_others(pieces)
        bundle._equal = bundle._equal_slots()
        return bundle

    def resized(self, members: list[Member]) -> Self | None:
        """Return the bundle of rows like these, of other sizes; None if these may need another program.

        Their number is that of these, and no operation of theirs looks at sizes.
        """
        has_sums = len(self.operations) > 1
        if self.splits and has_sums and any(part_of(member) for member in members):
            return None
        return type(self)(members, self.signature, self.operations, self.splits)

    def needs_run(self) -> bool:
        signature = self.signature
        return bool(signature.shared or signature.by_leaf) or super().needs_run()

    def sets_of_rows(self, have_gradients: bool) -> tuple[list[int], list[int] | None]:
        """Return the first row of each set of scalars, and the set of each row, as for `begin`.

        Without any gradient, there are no sets.

        Args:
            have_gradients: Whether all parameters have gradients.
        """
        keys = (
            self._keys_of_sets() if self._has_more else list(map(COUNT, self.members))
        )
        if have_gradients and keys.count(keys[0]) == len(keys):
            self.stepping = self.members
            return [0], None
        gradients = map(GRADIENT, self.members)
        are_present = list(map(operator.is_not, gradients, itertools.repeat(None)))
        self.stepping = list(itertools.compress(self.members, are_present))
        return sets_of_rows(keys, are_present)

    def _keys_of_sets(self) -> list[Any]:
        """Return what the scalars of each row depend on: its count; where they differ, group and equal slots, too."""
        columns: list[Any] = [map(COUNT, self.members)]
        if self._groups:
            columns.append(self._groups)
        # Now: a bundle writes them at its end.
        columns += [map(Tensor.item, slots) for slots in self._equal.values()]
        return list(zip(*columns, strict=True))

    def locate(self) -> None:
        """Find parameters and slots whose memory has been replaced."""
        self._columns.locate()

    def set_leaves(self, leaves: list[Leaf]) -> None:
        """Receive the leaves of the current step whose links are computed by owners."""
        for leaf in leaves:
            leaf.inputs = (None, leaf.key.param)  # the program receives the rest
        self._leaves = {leaf.name: leaf for leaf in leaves}

    def columns(self, call: Selection) -> list[list[Tensor]]:
        columns = self._columns.of(call, self.signature.by_leaf, self.run)
        for results in self._results:
            columns.append([local(results[name]) for name in self.names_in(call)])
        return columns

    def free(self, call: Selection) -> None:
        self._columns.free_gradients(call)

    def terms_by_leaf(
        self, phase: RecordedPhase, results: list[list[Any]]
    ) -> LeafTerms:
        if not phase.ends_at_owner:
            return LeafTerms(
                (leaf, OfLeaf(**{key.name: term for key, term in sums.items()}))
                for leaf, sums in self.terms_of_calls(phase, results)
            )
        terms = LeafTerms()
        for call, columns in zip(self._calls, results, strict=True):
            for name, *tensors in zip(self.names_in(call), *columns, strict=True):
                payload = dict(zip(phase.names, tensors, strict=True))
                terms.append((self._leaves[name], payload))
        return terms

    def hand_over(
        self, phase: RecordedPhase, results: list[list[Any]], start: int = 0
    ) -> None:
        for i, name in enumerate(phase.names):
            if isinstance(name, EqualSlot):
                self._write_equal(name, [of_call[i] for of_call in results])
        super().hand_over(phase, results, start)

    def share(self, name: Any, value: Tensor) -> None:
        if not isinstance(name, EqualSlot):
            super().share(name, value)

    def _write_equal(self, name: EqualSlot, values: list[Any]) -> None:
        """Write the new values of a slot that is equal in all rows with one set of scalars."""
        slots = self._equal[name.key]
        dtype = slots[0].dtype
        value_of_row: dict[int, Tensor] = {}
        for call, value in zip(self._calls, values, strict=True):
            rows = call.some(self.rows)
            if not differ_by_leaf(value):
                value = [self.as_tensor(value, dtype)] * len(rows)
            value_of_row.update(zip(rows, value, strict=True))
        copy_each_([slots[row] for row in value_of_row], list(value_of_row.values()))

    def _by_leaf(
        self, values: Any, dtype: torch.dtype, leaves: list[str]
    ) -> Sequence[Any]:
        terms = super()._by_leaf(values, dtype, leaves)
        if not (self.has_sharded_terms and differ_by_leaf(values)):
            return terms
        return [
            PartialSum(term, *self._placed_sums[leaf])
            for leaf, term in zip(leaves, terms, strict=True)
        ]

    def receive_by_leaf(self, phase: Any, total: dict[str, Any]) -> None:
        if phase.ends_at_owner:
            self._add_results(total)
            return
        for key in phase.names:
            totals = {x.name: total[x.name][key.name] for x in self.stepping}
            self._results.append(totals)

    def _add_results(self, results: dict[str, Any]) -> None:
        """Add the local shards of the owners' results as another argument of each leaf."""
        self._results.append({name: results[name] for name in self._leaves})
        for leaf in self._leaves.values():
            if leaf.new:  # only on the owner of the leaf
                leaf.state.update(leaf.new_slots(leaf.memory()))
                leaf.new = {}

    def end(self, phase: RecordedPhase, results: list[list[Any]]) -> None:
        if self.signature.ordered:
            self._columns.put_back()
        if phase.names:
            self.hand_over(phase, results)
        self._results = []
        self._leaves = {}
        self.run, self._sets, self._calls = None, [], []
        for member in self.stepping if self.consumes else ():
            member.param.grad = None


# A range of entries of a parameter's flat alias, or None for the whole parameter.
Piece = tuple[Member, slice | None]


class Parts(NamedTuple):
    """Leaves, and parts of leaves, for calls of bounded size.

    Attributes:
        pieces: As above.
        rows: The row of each in its bundle.
        sizes: The entries of each.
        limit: The most entries of a call.
    """

    pieces: list[Piece]
    rows: list[int]
    sizes: list[int]
    limit: int


class Columns:
    """The lists of tensors that the calls of a program process, each of some.

    Args:
        pieces: The leaves or parts of leaves.
        signature: The arguments of the program.
    """

    def __init__(self, pieces: list[Piece], signature: Signature):
        self._pieces = pieces
        self._windows = [window for _, window in pieces]
        self._are_whole = [
            window is None and not member.param.is_complex()
            for member, window in pieces
        ]
        self._params = [member.param for member, _ in pieces]
        self._keys = signature.slots_by_leaf
        self.take_states()
        self.locate()
        # Whether programs run on copies, since some are transposed, ...; and what they are copies of.
        self._needs_order = signature.ordered and not are_in_order(self._columns)
        self._copies: list[tuple[list[Tensor], list[Tensor]]] = []
        # What parts are read from, by gradient or extra, until its last part has been read.
        self._divided: dict[Tensor, Tensor] = {}
        self._first_entries = (
            [_first_entry(*piece) for piece in pieces] if signature.positional else None
        )

    def of_others(self, members: list[Member]) -> Columns:
        """Return the columns of other leaves, which are divided alike: the member of each piece is given."""
        columns = copy(self)
        columns._pieces = list(zip(members, self._windows, strict=False))  # or of none
        columns._params = [member.param for member, _ in columns._pieces]
        columns._copies = []
        columns.take_states()
        columns.locate()
        return columns

    def release_states(self) -> None:
        """Let go of all slots."""
        self._written, self._columns = [], []

    def take_states(self) -> None:
        """Take the slots of the members' present states."""
        # The tensors that programs write: parameters, and the slots of each key.
        self._written = [self._params]
        for key in self._keys:
            self._written.append([member.state[key] for member, _ in self._pieces])
        self._columns: list[list[Tensor]] = [[] for _ in self._written]

    def locate(self) -> None:
        """Find the memory of the tensors that programs write."""
        self._divided = {}  # a step that failed may have left some
        for i, tensors in enumerate(self._written):
            column = list(map(Tensor.data_ptr, self._columns[i]))
            if not column or column != list(map(Tensor.data_ptr, tensors)):
                self._columns[i] = self._written_column(tensors)

    def _written_column(self, column: list[Tensor]) -> list[Tensor]:
        """Return the parameters, or a slot of each, as programs write them."""
        if all(self._are_whole) and TYPES.issuperset(map(type, column)):
            # A shortcut: the plan has looked at their memory.
            are_slots = column is not self._params
            return column if are_slots else list(map(Tensor.detach, column))
        pairs = zip(column, self._pieces, strict=True)
        return [self._written_part(tensor, piece) for tensor, piece in pairs]

    def _written_part(self, tensor: Tensor, piece: Piece) -> Tensor:
        member, window = piece
        if window is None:
            return plain(tensor)
        return cut(alias(tensor, member.param, True), window, entries_of(member.param))

    def of(
        self, call: Selection, by_leaf: Sequence[str], run: Any
    ) -> list[list[Tensor]]:
        """Return the arguments of a call, with the current gradients and extras."""
        columns, params, are_whole = self._columns, self._params, self._are_whole
        if call.at is not None:
            columns = list(map(call.some, columns))
            params, are_whole = call.some(params), call.some(are_whole)
        gradients = list(map(GRAD, params))
        are_plain = all(are_whole) and TYPES.issuperset(map(type, gradients))
        if self._needs_order:
            # They are plain already.
            copies = [list(map(Tensor.contiguous, column)) for column in columns]
            self._copies += zip(columns, copies, strict=True)
            columns = copies
        pieces = self._pieces
        if by_leaf or not are_plain:
            pieces = call.some(pieces)
        if not are_plain:
            gradients = list(map(self._read, gradients, pieces))
        elif self._needs_order:
            gradients = list(map(Tensor.contiguous, gradients))
        columns = [*columns, gradients]
        for name in by_leaf:
            tree = run.leaf_extras[name]
            column = [tree[member.name] for member, _ in pieces]
            columns.append(list(map(self._read, column, pieces)))
        if self._first_entries is not None:
            columns.append(call.some(self._first_entries))
        return columns

    def put_back(self) -> None:
        """Write into parameters and slots what the last calls have written into copies."""
        if self._copies:
            put_back(*zip(*self._copies, strict=True))
            self._copies = []

    def free_gradients(self, call: Selection) -> None:
        """Free the gradients of parameters of a call that no later one contains a part of."""
        for member, window in call.some(self._pieces):
            if window is None or window.stop == entries_of(member.param):
                member.param.grad = None

    def _read(self, tensor: Tensor, piece: Piece) -> Tensor:
        """Return a read-only tensor with the parameter's layout."""
        member, window = piece
        if window is None:
            view = view_or_copy(tensor, member.param, False)
            return in_order(view) if self._needs_order else view
        divided = self._divided
        view = divided.get(tensor)
        if view is None:
            view = divided[tensor] = view_or_copy(tensor, member.param, True)
        if window.stop == view.numel():
            del divided[tensor]
        return view[window]


def _first_entry(member: Member, window: slice | None) -> Tensor:
    """Return the index of the first entry of a part, on the part's device."""
    start = 0 if window is None else window.start
    return torch.full((), start, dtype=torch.int64, device=local(member.param).device)


def _parts_of(members: list[Member], splits: bool, signature: Signature) -> Parts:
    """Divide large leaves, for lists of bounded size: of the leaves, and of their largest slots."""
    has_codes = bool(signature.layout.codes)
    first = local(members[0].param)
    limit = entries_of_a_call(first.device, has_codes, first.dtype)
    pieces: list[Piece] = []
    rows: list[int] = []
    sizes: list[int] = []
    keys = signature.slots_by_leaf
    # The entries of a leaf, of its largest slot, and of its parts, by the kinds of its tensors.
    of_kinds: dict[int, tuple[int, int, int | None]] = {}
    for row, member in enumerate(members):
        sizes_of_kind = of_kinds.get(id(member.kinds))
        if sizes_of_kind is None:
            size = entries_of(member.param)
            largest = max(size, *(entries_of(member.state[key]) for key in keys), 0)
            part = part_of(member, signature.positional) if splits else None
            sizes_of_kind = of_kinds[id(member.kinds)] = size, largest, part
        size, largest, part = sizes_of_kind
        if part is None:
            is_vector = splits and has_codes
            pieces.append((member, slice(0, size) if is_vector else None))
            rows.append(row)
            sizes.append(largest)
            continue
        for start in range(0, size, part):
            pieces.append((member, slice(start, min(start + part, size))))
            rows.append(row)
            sizes.append(limit + 1)  # a chunk of its own
    return Parts(pieces, rows, sizes, limit)


_SHARED = ProgramsOfChains()


class ListEngine(Engine):
    """Run steps over lists of leaves.

    Attributes:
        bundle_type: Creates a bundle of parameters with one program.
        variant_of: As in `ListPrograms`.
        shares_slots: Whether programs compute with one number in place of 0-d slots that remain equal across leaves;
            leaves whose slots have other values belong to another bundle.
    """

    way = "lists"
    shares_slots = True
    skips_work = True
    bundle_type = MemberBundle
    variant_of: VariantOf = staticmethod(list_variant_of)
    consequence = "steps run leaf by leaf"
    _programs: dict[Any, Any] | None = None

    # Planning.

    def check_shard(self, leaf: Leaf, flat: bool) -> None:
        has_shapes = not leaf.layout.codes and slots_are_shaped_as(leaf)
        if not flat and (not has_shapes or has_regions(leaf.operations)):
            raise RefusedError(REDUCES_SHARD)

    def bundled(self, family: MemberFamily) -> list[MemberBundle]:
        has_owners = has_regions(family.operations)
        ordered = not (family.kind.flat or family.kind.strided)
        family = family.signed(has_owners=has_owners, ordered=ordered)
        equal = self._equal_slots(family) if self.shares_slots else ()
        first = family.members[0]
        dtypes = {key: first.state[key].dtype for key in equal}
        return self._bundles_of_signature(family.signed(equal=dtypes))

    def _equal_slots(self, family: MemberFamily) -> tuple[str, ...]:
        """Return the keys of 0-d slots that remain equal across the leaves of a program once they are equal.

        Their new values depend only on scalars and on each other.
        """
        slots = family.signature.slots
        if not family.on_host or family.signature.has_owners:
            return ()
        candidates: set[str] = set(slots)
        for member in family.members:
            candidates = {key for key in candidates if may_be_scalar(member.state[key])}
        if not candidates:
            return ()
        first, *others = (
            self._slots_from_scalars(family, member)
            for member in _one_of_each_shape(family)
        )
        # A rule may do something else for leaves of another shape.
        if any(other != first for other in others):
            return ()
        return tuple(key for key in slots if key in candidates & first)

    def _slots_from_scalars(self, family: MemberFamily, member: Member) -> set[str]:
        """Return the keys of a leaf's 0-d slots whose new values depend only on scalars and on each other."""
        tensors = family.arguments(member)
        shapes = tuple(tensor.shape for tensor in tensors)
        programs = self._programs_of(family)
        key = ("slots from scalars", family.key, shapes)
        if key not in programs:
            phases = family.recorded(tensors)
            scalars = slots_from_scalars(phases[-1].recording) if phases else []
            # The parameter is the first argument.
            slots = family.signature.slots
            programs[key] = {slots[i - 1] for i in scalars}
        return programs[key]

    def _runs_in_parts(self, family: MemberFamily) -> bool:
        """Whether the program may process large leaves in parts."""
        # Leaves with codes are vectors; parts that know their positions have programs of their own.
        is_coded = bool(family.signature.layout.codes)
        are_vectors = is_coded and not is_positional(family.operations)
        programs = self._programs_of(family)
        shapes = {as_real(member.param).shape: member for member in family.members}
        for member in shapes.values():
            part = part_of(member)
            if part is None and not are_vectors:
                continue
            tensors = family.arguments(member)
            key = ("in parts", family.key, tensors[0].shape)
            if key not in programs:
                programs[key] = self._parts_agree(family, tensors, part)
            if not programs[key]:
                return False
        return True

    def _parts_agree(
        self, family: MemberFamily, tensors: list[Tensor], part: int | None
    ) -> bool:
        """Whether the program of a leaf's parts, if it has any, computes what that of the leaf does."""
        programs, operations = self._list_programs(family), family.operations
        is_coded = bool(family.signature.layout.codes)
        are_positional = is_positional(operations)
        # Leaves without codes run this program, which is then kept.
        whole = family.recorded(tensors) if is_coded else programs.of(tensors)
        if isinstance(whole, str):
            return False
        # Whatever its rules promise: a norm of a part is not that of the leaf.
        trusts_rules = is_coded or are_positional
        if not (
            trusts_rules or all(operation.runs_on_shards(False) for operation in whole)
        ):
            return False
        if not is_coded and not any(
            operation.traits.has_sums for operation in operations
        ):
            return True
        as_vector = programs.of(first_entries(tensors, tensors[0].numel()))
        if isinstance(as_vector, str):
            return False
        if is_coded and not are_positional and part is not None:
            of_part = programs.of(first_entries(tensors, part))
            if of_part is not as_vector:
                return False
        adds_up = all(operation.parts_add_up() for operation in as_vector)
        return adds_up and operations_of(as_vector) == operations_of(whole)

    def _bundles_of_signature(self, family: MemberFamily) -> list[MemberBundle]:
        """Return bundles of leaves of one signature; parts of leaves that need their positions have another one."""
        signature, operations = family.signature, family.operations
        splits = (
            family.kind.flat
            and not signature.has_owners
            and can_be_split(family.members[0], operations, signature.equal)
            and self._runs_in_parts(family)
        )
        if not splits or not is_positional(operations):
            return self._bundles(family, splits)
        whole: list[Member] = []
        parts: list[Member] = []
        for member in family.members:
            param = local(member.param)
            is_whole = part_of(member, True) is None or not param.is_contiguous()
            (whole if is_whole else parts).append(member)
        bundles = []
        if whole:
            bundles += self._bundles(family.some(whole), False)
        if parts:
            bundles += self._bundles(family.some(parts).signed(positional=True), True)
        return bundles

    def _bundles(self, family: MemberFamily, splits: bool) -> list[MemberBundle]:
        """Return bundles of leaves of one kind, each with its program."""
        programs = self._list_programs(family)
        arguments: dict[Any, list[Tensor]] = {}
        leaves: list[tuple[Member, list[Tensor]]] = []
        for member in family.members:
            # Their shapes follow from the kinds of parameter and slots, unless there are extras or shards.
            has_more = family.signature.by_leaf or family.kind.sharded
            key = member if has_more else id(member.kinds)
            if key not in arguments:
                arguments[key] = _arguments(family, member, splits)
            leaves.append((member, arguments[key]))
        bundles = []
        for program, members in programs.by_program(leaves):
            if isinstance(program, str):
                self._refuse(members, program)
                continue
            if family.kind.sharded:
                members = self._accepted_shards(family, programs, program, members)
            if members:
                bundles.append(
                    self.bundle_type(members, family.signature, program, splits)
                )
        return bundles

    def _accepted_shards(
        self,
        family: MemberFamily,
        programs: ListPrograms,
        program: list[RecordedPhase],
        members: list[Member],
    ) -> list[Member]:
        """Return the shards that a program may run; refuse the others."""
        reason_of_rows = {
            rows: _against_shards(family, program, rows) for rows in (True, False)
        }
        have_any_shape = family.kind.flat and not family.signature.layout.codes
        accepted: list[Member] = []
        for member in members:
            reason = reason_of_rows[rows_are_whole(member.param)]
            if have_any_shape and program is not programs.of(
                whole_arguments(member, family.arguments(member))
            ):
                reason = READS_SHAPE
            if reason:
                self._refuse([member], reason)
            else:
                accepted.append(member)
        return accepted

    def _list_programs(self, family: MemberFamily) -> ListPrograms:
        return family.programs(self.variant_of, self._programs_of(family))

    def _programs_of(self, family: MemberFamily) -> dict[Any, Any]:
        if self._programs is None:
            self._programs = _SHARED.of_chain(family.chain.tx)
        return self._programs


def _against_shards(
    family: MemberFamily, program: list[RecordedPhase], whole_rows: bool
) -> str:
    """Return why shards may not run a program; empty if they may."""
    if family.kind.flat:
        add_up = all(phase.ends_at_owner or phase.parts_add_up() for phase in program)
        return "" if add_up else REDUCES_SHARD
    if all(phase.runs_on_shards(whole_rows) for phase in program):
        return ""
    by_rows = not whole_rows and all(phase.runs_on_shards(True) for phase in program)
    return PARTS_OF_ROWS if by_rows else REDUCES_SHARD


def _one_of_each_shape(family: MemberFamily) -> list[Member]:
    """Return one leaf of each shape; of leaves whose programs ignore sizes, two of different sizes."""
    shapes = {as_real(member.param).shape: member for member in family.members}
    if not family.ignores_sizes:
        return list(shapes.values())
    sizes = {shape.numel(): member for shape, member in shapes.items()}
    return list(sizes.values())[:2]


def _arguments(family: MemberFamily, member: Member, splits: bool) -> list[Tensor]:
    """Return the arguments of a program for a leaf: as vectors if it has codes, of a part that has its own program.

    Unless entries are independent, the program of a shard is that of the whole leaf.
    """
    signature = family.signature
    tensors = family.arguments(member)
    if family.kind.sharded and not family.kind.flat:
        return whole_arguments(member, tensors)
    if splits and (signature.positional or signature.layout.codes):
        part = part_of(member, True) if signature.positional else None
        tensors = first_entries(tensors, part or tensors[0].numel())
    if signature.positional:
        tensors.append(torch.zeros((), dtype=torch.int64, device=tensors[0].device))
    return tensors
