"""Owner computes: a rule that needs a whole matrix runs on one rank, which receives all shards and returns results.

A sharded leaf waits before such rules, as it does at a sum over leaves. When all leaves have arrived, every rank sends
its shards to the owners in one all_to_all per bucket of bounded size, the owners compute, and a second all_to_all
returns the results. Results do not depend on the number of ranks.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from gradtx.base.chunks import slices_within
from gradtx.base.dtensor import from_local_like, is_sharded, local
from gradtx.base.errors import Path
from gradtx.distributed.collectives import BUCKET, OtherRankError, Relay, Transfer
from gradtx.distributed.layouts import (
    Piece,
    Team,
    can_be_owned,
    pieces_of,
    team_for,
    whole_piece,
)
from gradtx.distributed.redistribution import distributed_like, full_tensor
from gradtx.execution.execute import (
    Leaf,
    Operation,
    Steps,
    execute,
    name_of_leaf,
    resumed,
)
from gradtx.execution.traits import DRAWS, READS_LEAF, Traits

Operations: TypeAlias = list[Any]
Tensors: TypeAlias = dict[str, Tensor]


def cost(shape: Sequence[int]) -> float:
    """Estimate the work of a matrix method such as Newton-Schulz: n^2 (2 m + n) for sides n <= m."""
    if len(shape) < 2:
        return float(max(torch.Size(shape).numel(), 1))
    short, long = sorted(shape[-2:])
    matrices = torch.Size(shape[:-2]).numel()
    return float(matrices * short * short * (2 * long + short))


def assigned(
    shapes: Mapping[str, Sequence[int]], size: int, assigned_owners: Mapping[str, int]
) -> dict[str, int]:
    """Assign each leaf to a rank: the costliest leaf first, to the rank with the least work; ties by name.

    Args:
        shapes: The shape of each leaf.
        size: The number of ranks.
        assigned_owners: The owners of leaves that are already assigned, which do not change.
    """
    loads = [0.0] * size
    owners = dict(assigned_owners)
    for name, owner in assigned_owners.items():
        loads[owner] += cost(shapes[name])

    def costliest_first(name: str) -> tuple[float, str]:
        return -cost(shapes[name]), name

    for name in sorted(shapes.keys() - assigned_owners.keys(), key=costliest_first):
        owner = loads.index(min(loads))
        loads[owner] += cost(shapes[name])
        owners[name] = owner
    return owners


# Regions of programs.


def with_regions(
    operations: Operations, like: Any, replicas: Team | None
) -> Operations:
    """Return a leaf's operations, with its whole-tensor operations in regions if ranks divide the leaf or the work.

    Args:
        operations: The operations.
        like: The parameter.
        replicas: The ranks that hold equal whole parameters and divide the work among them; None if there are none.
    """
    if is_sharded(like):
        return regions_of(operations) if can_be_owned(like) else operations
    return operations if replicas is None else regions_of(operations, replicas)


def regions_of(operations: Operations, replicas: Team | None = None) -> Operations:
    """Return operations of which adjacent operations that need a whole tensor form one region."""
    grouped = []
    i = 0
    while i < len(operations):
        owned = list(itertools.takewhile(lambda op: op.traits.at_owner, operations[i:]))
        if not owned:
            grouped.append(operations[i])
            i += 1
            continue
        i += len(owned)
        following = list(itertools.takewhile(_runs_on_shards, operations[i:]))
        i += len(following)
        grouped.append(OwnedRegion(owned, following, replicas))
    return grouped


def _runs_on_shards(operation: Any) -> bool:
    """Whether an operation can follow the owner's on the same message: it needs the whole shape, but no other leaf."""
    return operation.traits.needs_shape and not operation.traits.waits


def has_regions(operations: Operations) -> bool:
    return OwnedRegion in map(type, operations)


def _refusal_at_owner(link: Traits) -> str:
    """Return why programs may not run an operation in a region; empty if they may."""
    if link.random:
        return DRAWS
    return "programs skip no work of an owner" if link.skippable else link.refusal


class OwnedRegion(Operation):
    """Operations that run on whole tensors, on the owner of each leaf.

    Args:
        operations: The operations that need whole tensors.
        following: The operations after them that need only the shape of the whole tensor and run on shards.
        replicas: The ranks, if each holds the whole leaf; else None.
    """

    def __init__(
        self, operations: list[Any], following: list[Any], replicas: Team | None = None
    ):
        self.operations = operations
        self.replicas = replicas
        self.path, self.role = operations[0].barrier
        self._following = following
        traits = [operation.traits for operation in self.represents]
        self.traits = Traits(
            refusal=next(filter(None, map(_refusal_at_owner, traits)), ""),
            keeps_slots=any(operation.traits.keeps_slots for operation in operations),
            of_leaf=True,
            needs_all_rows=READS_LEAF,
        )

    @property
    def represents(self) -> list[Operation]:
        return [*self.operations, *self._following]

    @property
    def owned_paths(self) -> list[Path]:
        if not self.traits.keeps_slots:
            return []
        return [operation.path for operation in self.operations]

    def init(self, leaf: Leaf) -> None:
        operations = self.represents
        if self.traits.keeps_slots:
            self._init_at_owner(leaf)
            operations = self._following
        for operation in operations:
            operation.init(leaf)

    def _init_at_owner(self, leaf: Leaf) -> None:
        """Create the initial slots of the whole leaf; ranks other than the owner keep only their shapes."""
        param = leaf.inputs[1]
        whole = Leaf(leaf.run, leaf.name, None, _whole(param), leaf.extras, leaf.clock)
        for operation in self.operations:
            operation.init(whole)
        is_owner = team_for(param, self.replicas).rank == leaf.key.owner
        for path, slots in whole.new.items():
            if not is_owner:
                slots = {slot: value.to("meta") for slot, value in slots.items()}
            leaf.new[path] = slots
        leaf.codecs.update(whole.codecs)

    def start(self, leaf: Leaf) -> Steps:
        """Send the tensors that the owner needs: the update, and any others that the operations read."""
        for operation in self.operations:
            if operation.traits.random:
                # Advances the counter of draws on every rank.
                operation.stage.stream(leaf)
        payload = {"update": leaf.update}
        if self._reads("param") and leaf.param is not None:
            payload["param"] = leaf.param
        if self._reads("grad") and leaf.grad is not leaf.update:
            payload["grad"] = leaf.grad
        result = leaf.run.recorded_owner(self, leaf, payload)
        if result is None:
            results = yield payload
            result = results[leaf.name]
        leaf.update = result

    def _reads(self, name: str) -> bool:
        """Whether any operation reads this tensor of the leaf in addition to the update."""
        return any(
            name in operation.traits.owner_reads for operation in self.operations
        )

    def combine(self, waiting: list[tuple[Leaf, dict[str, Any]]]) -> Tensors:
        """Return the local shard of every leaf's update after the region."""
        jobs_of_kind: dict[Any, list[Job]] = {}
        for leaf, payload in sorted(waiting, key=name_of_leaf):
            # The same region with the hyperparameters of the leaf's group.
            region = next(op for op in leaf.operations if op.barrier == self.barrier)
            job = Job.of(leaf, region, payload)
            jobs_of_kind.setdefault(job.kind(), []).append(job)
        results = {}
        # Small teams first: later messages report a failure to the ranks of larger ones.
        for jobs in sorted(jobs_of_kind.values(), key=size_of_team):
            Exchange(jobs).run()
            for job in jobs:
                results[job.leaf.name] = job.region.after(job)
        return results

    def after(self, job: Job) -> Any:
        """Return a leaf's update after the operations that run on shards."""
        leaf = job.leaf
        update_of_region = leaf.update
        leaf.update = from_local_like(job.result, job.template)
        for operation in self._following:
            resumed(operation.start(leaf))
        result = leaf.update
        leaf.update = update_of_region
        return result

    # Computation on the owner.

    def computed(self, job: Job, whole_tensors: Tensors) -> Tensor:
        """Return a whole leaf's update after the region, and store its new slots in the leaf."""
        leaf = job.leaf
        update = whole_tensors["update"].to(job.dtype)
        param = whole_tensors.get("param")
        # The same leaf with whole tensors in place of shards.
        whole = Leaf(leaf.run, leaf.name, update, param, leaf.extras, leaf.clock)
        whole.stand_for(leaf)
        whole.grad = whole_tensors.get("grad", whole.update)
        whole.key = leaf.key
        whole.state = leaf.state
        whole.layout = leaf.layout
        whole.operations = self.operations
        execute([whole])
        leaf.new.update(whole.new)
        leaf.starts.update(whole.starts)
        return whole.update


def _whole(param: Any) -> Tensor:
    """Return the whole parameter, which ranks gather; without memory if it has none."""
    if local(param).is_meta:
        return torch.empty(param.shape, dtype=param.dtype, device="meta")
    return full_tensor(param)


def _narrower_dtype(wire: torch.dtype | None, dtype: torch.dtype) -> torch.dtype:
    if wire is None or wire.itemsize >= dtype.itemsize:
        return dtype
    return wire


# The exchange.


@dataclass
class Job:
    """A leaf on its way to its owner and back.

    Attributes:
        leaf: The leaf.
        region: The operations.
        template: A tensor with the leaf's sharding.
        shards: The local shard of each tensor that the owner needs.
        dtype, dtype_back: The dtypes of the update before and after the region.
        wire, wire_back: The dtypes in which tensors are sent to the owner and back.
        result: The local shard of the result.
    """

    leaf: Leaf
    region: OwnedRegion
    template: Any
    shards: Tensors
    dtype: torch.dtype
    wire: torch.dtype
    wire_back: torch.dtype
    dtype_back: torch.dtype
    result: Any = None

    @classmethod
    def of(cls, leaf: Leaf, region: OwnedRegion, payload: Mapping[str, Any]) -> Job:
        update, param = leaf.inputs
        template = update if param is None else param
        dtype = payload["update"].dtype
        wire = _narrower_dtype(region.operations[0].traits.wire, dtype)
        shards: Tensors = {}
        for name, tensor in payload.items():
            if is_sharded(tensor):  # a program passes the local shard itself
                tensor = local(distributed_like(tensor, template))
            shards[name] = tensor.to(wire)
        dtype_back = dtype
        for operation in region.operations:
            dtype_back = torch.promote_types(dtype_back, operation.compute_dtype(leaf))
        wire_back = _narrower_dtype(region.operations[-1].traits.wire, dtype_back)
        return cls(leaf, region, template, shards, dtype, wire, wire_back, dtype_back)

    def kind(self) -> tuple[Any, ...]:
        """Return the kind of the job; jobs of one kind share their messages."""
        return self.team, self.is_whole, self.wire, self.wire_back, self.device

    @property
    def is_whole(self) -> bool:
        """Whether every rank has the whole leaf."""
        return self.region.replicas is not None

    @property
    def name(self) -> str:
        return self.leaf.name

    @property
    def device(self) -> torch.device:
        return self.shards["update"].device

    @functools.cached_property
    def team(self) -> Team:
        """The ranks that divide the work."""
        return team_for(self.template, self.region.replicas)

    @functools.cached_property
    def pieces(self) -> tuple[Piece, ...]:
        """The shard of each rank; if every rank has the whole leaf, no rank sends it to the owner."""
        if self.is_whole:
            return (whole_piece(self.template.shape),) * self.team.size
        return pieces_of(self.template)

    def sizes_from(self, rank: int) -> list[int]:
        """Return the number of entries of each tensor that a rank sends to the owner."""
        piece = self.pieces[rank]
        return [piece.numel] * len(self.shards) if piece.sends else []

    def bytes(self) -> int:
        return self.leaf.shape.numel() * len(self.shards) * self.wire.itemsize


def size_of_team(jobs: list[Job]) -> int:
    return jobs[0].team.size


class Exchange:
    """Sends leaves of one kind to their owners, computes, and sends the results back.

    A failure is raised on all ranks of the team when their messages have reported it. In an optimizer with several
    teams, the exchange ends as usual, with zeros for results, and the failure is left in the `Relay` of the run.
    """

    def __init__(self, jobs: list[Job]):
        self._jobs = jobs
        relay = jobs[0].leaf.run.relay
        self._raises = relay is None
        self._relay = Relay() if relay is None else relay
        self._team: Team = jobs[0].team
        self._are_whole = jobs[0].is_whole
        shapes: dict[str, torch.Size] = {}
        assigned_owners: dict[str, int] = {}
        for job in jobs:
            shapes[job.name] = job.template.shape
            owner = job.leaf.key.owner
            if owner is not None:
                assigned_owners[job.name] = owner
        self._owners = assigned(shapes, self._team.size, assigned_owners)

    def run(self) -> None:
        """Process all buckets; while the owners compute one bucket, the next one is in transit."""
        sizes = list(map(Job.bytes, self._jobs))
        buckets = [self._jobs[window] for window in slices_within(sizes, BUCKET)]
        arriving = self._to_owners(buckets[0])
        returning: list[tuple[list[Job], Transfer]] = []
        for i, bucket in enumerate(buckets):
            arrived = [] if arriving is None else self._received(arriving)
            if i + 1 < len(buckets):
                arriving = self._to_owners(buckets[i + 1])
            sent = self._from_owners(bucket, self._results(bucket, arrived))
            if self._raises and self._relay.error is not None:
                sent.wait()
                self._relay.end()
            returning.append((bucket, sent))
            if i > 0:
                self._receive(*returning.pop(0))
        self._receive(*returning.pop())

    def _received(self, transfer: Transfer) -> list[list[Tensor]]:
        """Return the tensors from each rank; none, if one of them has failed, and messages go on."""
        try:
            return transfer.received()
        except OtherRankError as error:
            if self._raises:
                raise
            self._relay.note(error)
            return []

    def _owned(self, bucket: list[Job], rank: int) -> list[Job]:
        return [job for job in bucket if self._owners[job.name] == rank]

    def _to_owners(self, bucket: list[Job]) -> Transfer | None:
        if self._are_whole:
            return None
        me = self._team.rank
        owned = self._owned(bucket, me)
        rows: list[list[Tensor]] = []
        sizes: list[list[int]] = []
        for rank in range(self._team.size):
            sent = [job for job in self._owned(bucket, rank) if job.pieces[me].sends]
            rows.append([shard for job in sent for shard in job.shards.values()])
            sizes.append([size for job in owned for size in job.sizes_from(rank)])
        report = self._relay.report()
        return Transfer(self._team, rows, sizes, bucket[0].wire, report)

    def _results(self, bucket: list[Job], arrived: list[list[Tensor]]) -> Tensors:
        """Return the whole results of the leaves that this rank owns; zeros if one of them fails."""
        results = {}
        owned = self._owned(bucket, self._team.rank)
        messages = list(map(iter, arrived))
        try:
            for job in owned if self._relay.error is None else ():
                whole = job.shards if self._are_whole else _assembled(job, messages)
                results[job.name] = job.region.computed(job, whole)
        except Exception as error:
            # The other ranks are waiting: report the failure to them first.
            self._relay.note(error)
        if self._relay.error is not None:
            for job in owned:
                results[job.name] = torch.zeros(job.template.shape, device=job.device)
        return results

    def _from_owners(self, bucket: list[Job], results: Tensors) -> Transfer:
        wire = bucket[0].wire_back
        me, size = self._team.rank, self._team.size
        rows: list[list[Tensor]] = []
        for rank in range(1 if self._are_whole else size):  # else all rows are equal
            row: list[Tensor] = []
            for job in self._owned(bucket, me):
                row.append(results[job.name][job.pieces[rank].window].to(wire))
            rows.append(row)
        sizes: list[list[int]] = []
        for rank in range(size):
            sizes.append([job.pieces[me].numel for job in self._owned(bucket, rank)])
        return Transfer(self._team, rows, sizes, wire, self._relay.report())

    def _receive(self, bucket: list[Job], transfer: Transfer) -> None:
        received = self._received(transfer)
        for rank, results in enumerate(received):
            for job, result in zip(self._owned(bucket, rank), results, strict=True):
                shape = job.pieces[self._team.rank].shape
                # A copy, because a view would keep the whole message in memory as long as any of its leaves.
                job.result = result.view(shape).to(job.dtype_back, copy=True)
        for job in () if received else bucket:
            shape = job.pieces[self._team.rank].shape
            job.result = torch.zeros(shape, dtype=job.dtype_back, device=job.device)


def _assembled(job: Job, messages: list[Iterator[Tensor]]) -> Tensors:
    """Assemble whole tensors from the pieces that the ranks have sent, the next ones in their messages."""
    whole_tensors = {
        name: torch.empty(job.template.shape, dtype=job.wire, device=job.device)
        for name in job.shards
    }
    for piece, message in zip(job.pieces, messages, strict=True):
        for whole in whole_tensors.values() if piece.sends else ():
            whole[piece.window] = next(message).view(piece.shape)
    return whole_tensors
