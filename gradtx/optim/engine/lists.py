"""The engine that needs no compiler: programs run over lists of leaves, by `gradtx._lists`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from gradtx._arguments import varies
from gradtx._execution import Leaf, LeafTerms
from gradtx._lists import UnrecordableError
from gradtx._lists.bundle import ListBundle, ListPass, entries_of_a_call, passes_of_shards
from gradtx._lists.cache import SharedPrograms
from gradtx._owners import has_regions
from gradtx._passes import passes_of
from gradtx._sharding import is_sharded, local
from gradtx._torch import TracingUnavailableError
from gradtx.core import GradientTransformation
from gradtx.optim._member import Member
from gradtx.optim._request import StepRequest, Trees
from gradtx.optim._scaling import Count
from gradtx.optim.engine.alias import OddTensorError, alias
from gradtx.optim.engine.base import Engine, Pairs
from gradtx.optim.engine.plan import Plan
from gradtx.optim.engine.signature import LeafKind, Signature
from gradtx.optim.engine.trace import BundleFunction


class MemberBundle(ListBundle):
    """Parameters of one group, count and program, which are updated in place.

    Args:
        members: The parameters.
        signature: The arguments of the program.
        passes: The program.
        splits: Whether large leaves may be updated in parts.
    """

    def __init__(self, members: list[Member], signature: Signature, passes: list[ListPass], splits: bool):
        device = local(members[0].param).device
        super().__init__(members[0].name, device, passes)
        self.members = members
        self.signature = signature
        self._results: list[dict[str, Any]] = []  # of owners, by leaf
        self._leaves: dict[str, Leaf] = {}
        self._chunks = [Chunk(pieces, signature.slots, splits) for pieces in _chunks_of(members, device, splits)]
        self._trees: Trees = {}

    def read_from(self, trees: Trees) -> None:
        """Take the extras by leaf of the current step."""
        self._trees = trees

    def know(self, leaves: list[Leaf]) -> None:
        """Take the leaves of the current step, whose links owners compute."""
        for leaf in leaves:
            leaf.update = leaf.grad = leaf.param = None  # the program has them
        self._leaves = {leaf.name: leaf for leaf in leaves}

    def columns(self) -> Iterator[list[list[Tensor]]]:
        for chunk in self._chunks:
            columns = chunk.columns(self.signature.by_leaf, self._trees)
            for results in self._results:
                columns.append([local(results[name]) for name in chunk.names])
            yield columns

    def updates(self, results: list[list[Any]]) -> LeafTerms:
        terms = LeafTerms()
        for chunk, (updates,) in zip(self._chunks, results, strict=True):
            for name, update in zip(chunk.names, updates, strict=True):
                terms.append((self._leaves[name], {"update": update}))
        return terms

    def add_results(self, results: dict[str, Any]) -> None:
        self._results.append({name: results[name] for name in self._leaves})

    def leaf_names(self) -> Iterator[list[str]]:
        for chunk in self._chunks:
            yield chunk.names

    def end(self, compiled: ListPass, results: list[list[Any]]) -> None:
        """Hand over the new shared values."""
        for (path, name), dtype, value in zip(compiled.names, compiled.dtypes, results[0], strict=True):
            self.run.new_shared.setdefault(path, {}).setdefault(name, self.as_tensor(value, dtype))
        self._trees = {}
        self._results = []
        self._leaves = {}
        self.let_go()


# Chunks.

Piece = tuple[Member, slice | None]  # some entries of a parameter's flat alias, or all of it as it is


class Chunk:
    """The lists of one call.

    Args:
        pieces: The leaves, or parts of them.
        slots: The keys of their slots.
        splits: Whether they are elementwise, so that layouts need not agree.

    Attributes:
        names: The name of each leaf.
    """

    def __init__(self, pieces: list[Piece], slots: list[str], splits: bool):
        self._pieces = pieces
        self._splits = splits
        self._whole = all(window is None for _, window in pieces)
        self._params = [member.param for member, _ in pieces]
        self.names = [member.name for member, _ in pieces]
        self._columns = [[self._held(param, piece) for param, piece in zip(self._params, pieces, strict=True)]]
        for key in slots:
            self._columns.append([self._held(piece[0].state[key], piece) for piece in pieces])

    def _held(self, tensor: Tensor, piece: Piece) -> Tensor:
        """A tensor that programs write: a parameter or a slot."""
        member, window = piece
        if window is None:
            return tensor.detach() if type(tensor) in PLAIN else alias(tensor, member.param, self._splits)
        return alias(tensor, member.param, True)[window]

    def columns(self, by_leaf: Sequence[str], trees: Trees) -> list[list[Tensor]]:
        """The arguments of all leaves, with the present gradients and extras."""
        gradients: list[Any] = [param.grad for param in self._params]
        if not self._whole or not all(map(_is_plain, gradients)):
            gradients = list(map(self._read, gradients, self._pieces))
        columns = [*self._columns, gradients]
        for name in by_leaf:
            columns.append([self._read(trees[name][member.name], (member, window)) for member, window in self._pieces])
        return columns

    def _read(self, tensor: Tensor, piece: Piece) -> Tensor:
        """A tensor that programs only read, laid out as the parameter."""
        member, window = piece
        if window is None and _is_plain(tensor):
            return tensor
        flat = self._splits
        try:
            aliased = alias(tensor, member.param, flat)
        except OddTensorError:
            copy = torch.empty_like(member.param, dtype=tensor.dtype).copy_(tensor)
            aliased = alias(copy, member.param, flat)
        return aliased if window is None else aliased[window]


PLAIN = (Tensor, torch.nn.Parameter)


def _is_plain(tensor: Any) -> bool:
    return type(tensor) is Tensor


def _chunks_of(members: list[Member], device: torch.device, splits: bool) -> list[list[Piece]]:
    """Leaves in lists of a bounded number of entries; large leaves in parts."""
    most = entries_of_a_call(device)
    chunks: list[list[Piece]] = []
    room = 0
    for member in members:
        size = local(member.param).numel()
        if splits and size > most:
            chunks.extend([(member, slice(start, min(start + most, size)))] for start in range(0, size, most))
            room = 0
            continue
        if size > room or not chunks:
            chunks.append([])
            room = most
        chunks[-1].append((member, None))
        room -= size
    return chunks


_SHARED = SharedPrograms()


def _programs_of(tx: GradientTransformation) -> dict[Any, Any]:
    """The programs of a chain by structure, kind and shapes, and by what was recorded; or why there is none.

    Optimizers whose chains differ in numbers only share them.
    """
    skeleton = tx._skeleton()
    for entry in tx._entries():
        if varies(entry.value):  # a shared program would keep a tensor, or what a schedule holds, alive
            return {}
    return {} if skeleton is None else _SHARED.of(skeleton)


class ListEngine(Engine):
    """Runs steps over lists of leaves."""

    def __init__(self) -> None:
        super().__init__()
        self._programs: dict[Any, Any] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return ListEngine, ()

    def _consequence(self) -> str:
        return "steps run leaf by leaf"

    def _begin(self, plan: Plan, request: StepRequest) -> None:
        common: dict[Any, list[Any]] = {}
        bundles: Any = plan.bundles
        for bundle in bundles:
            member = bundle.members[0]
            key = member.group, id(bundle.signature)
            if key not in common:
                common[key] = _arguments(member, bundle.signature, request)
            bundle.begin(request.run, common[key], request.scaling is None)
            bundle.read_from(request.trees)
            if bundle.signature.divided:
                bundle.know(request.leaves_of(bundle.members))

    # Planning.

    def _takes(self, leaf: Leaf) -> bool:
        for operation in leaf.program:
            if not operation.compiles:
                self._refuse(leaf, f"{'.'.join(operation.path)} has no program")
                return False
        return True

    def _width(self, member: Member, flat: bool) -> int:
        return 1

    def _held(self, tensors: list[Tensor], flat: bool) -> tuple[Any, ...] | None:
        return tuple((tensor.dtype, tensor.device) for tensor in tensors)

    def _bundled(self, kind: LeafKind, pairs: Pairs, request: StepRequest) -> list[MemberBundle]:
        member, leaf = pairs[0]
        absent = tuple(name for name, value in leaf.extras.items() if value is None)
        of_kind = Signature.of(member, absent, kind, request)
        signature = dataclasses.replace(of_kind, width=1, padded=False, divided=has_regions(leaf.program))
        structure = request.structures[member.group]
        key = (structure, kind, *signature.key())
        view = request.views[member.group]
        function = BundleFunction(signature, view.chain_of(structure))
        if self._programs is None:
            self._programs = _programs_of(view.tx)
        alike: dict[int, tuple[list[ListPass], list[Member]]] = {}
        common = self._common_program(key, function, pairs, request) if kind.flat else None
        for member, leaf in pairs:
            program = common or self._program(key, function, member, leaf, request)
            if program is not None:
                _, members = alike.setdefault(id(program), (program, []))
                members.append(member)
        positional = any(operation.positional for operation in leaf.program)
        bundles: list[MemberBundle] = []
        for program, members in alike.values():
            splits = kind.flat and not positional and not signature.divided and _can_be_split(members[0])
            bundles.append(MemberBundle(members, signature, program, splits))
        return bundles

    def _common_program(
        self, key: Any, function: BundleFunction, pairs: Pairs, request: StepRequest
    ) -> list[ListPass] | None:
        """The program of all these elementwise leaves, if the smallest and the largest have the same."""
        by_size = sorted(pairs, key=_size)
        smallest = self._program(key, function, *by_size[0], request)
        largest = self._program(key, function, *by_size[-1], request)
        return largest if smallest is largest else None

    def _program(
        self, key: Any, function: BundleFunction, member: Member, leaf: Leaf, request: StepRequest
    ) -> list[ListPass] | None:
        """The program of a leaf; None if its operations can't be recorded."""
        tensors = _tensors_of(member, request, leaf)
        assert self._programs is not None
        of_shapes = (key, tuple(tensor.shape for tensor in tensors))
        program = self._programs.get(of_shapes)
        if isinstance(program, str):
            return self._refuse(leaf, program)
        if program is None:
            try:
                program = _passes(function, _stand_ins(function.signature), tensors)
            except (UnrecordableError, TracingUnavailableError) as error:
                self._programs[of_shapes] = str(error)
                return self._refuse(leaf, str(error))
            except Exception as error:  # anything may happen in a user's rule; without a program it shows its error
                reason = self._programs[of_shapes] = f"{type(error).__name__}: {error}"
                return self._refuse(leaf, reason)
            for each in program:  # now, since a fault in it is handled here
                each.function(local(member.param).device, not function.signature.scaled)
            text = tuple(each.text for each in program)
            program = self._programs.setdefault((key, text), program)
            self._programs[of_shapes] = program
        if len(program) > 1 and is_sharded(member.param) and not function.signature.divided:
            return self._refuse(leaf, "it is sharded, and a sum over leaves needs the sum over all shards")
        return program


def _passes(function: BundleFunction, common: list[Tensor], leaves: list[Tensor]) -> list[ListPass]:
    if function.signature.divided:
        return passes_of_shards(function, common, leaves)
    return passes_of(function, common, leaves, ListPass)


def _size(pair: tuple[Member, Leaf]) -> int:
    return pair[0].param.numel()


def _arguments(member: Member, signature: Signature, request: StepRequest) -> list[Any]:
    """The numbers that the leaves of a bundle share, in the order of `Signature`."""
    count = member.count
    numbers: list[Any] = [count.made + 1 if isinstance(count, Count) else count + 1, request.count]
    if request.scaling is not None:
        numbers.extend(request.scaling.on(local(member.param).device))
    numbers.extend(request.numbers[member.group])
    numbers.extend(request.run.scalars(path)[name] for path, name in signature.shared)
    numbers.extend(request.scalars[name] for name in signature.scalars)
    return numbers


def _stand_ins(signature: Signature) -> list[Tensor]:
    """0-d tensors of the dtypes that rules get, in the order of `_arguments`."""
    dtypes = [torch.int64, torch.int64]
    if signature.scaled:
        dtypes += [torch.float64, torch.bool]
    dtypes += [torch.float64] * signature.numbers
    dtypes += [*signature.shared.values(), *signature.scalars.values()]
    return [torch.empty((), dtype=dtype) for dtype in dtypes]


def _tensors_of(member: Member, request: StepRequest, leaf: Leaf) -> list[Tensor]:
    """The arguments of a leaf, for their dtypes and shapes."""
    assert member.layout is not None
    tensors: list[Any] = [member.param, *(member.state[key] for key in member.layout.slot_keys), member.param.grad]
    tensors.extend(tree[leaf.name] for tree in request.trees.values() if tree[leaf.name] is not None)
    return list(map(local, tensors))


def _can_be_split(member: Member) -> bool:
    """Whether parts of a leaf may be updated one after another.

    The parts would update a slot that is a number several times, and codes are laid out by the rows of the whole.
    """
    layout = member.layout
    assert layout is not None
    return not layout.codes and not any(member.state[key].ndim == 0 for key in layout.slot_keys)
