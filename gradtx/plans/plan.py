"""The plan of a call: its leaves in bundles, each with a program, sorted by families of leaves that may share one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar

import torch
from torch import Tensor

from gradtx.base.errors import StateKey
from gradtx.execution.execute import Leaf, Operation
from gradtx.plans.bundle import ListBundle, VariantOf
from gradtx.plans.function import LeafFunction, Signature
from gradtx.plans.hyperparameters import ChainOf
from gradtx.plans.phases import RecordedPhase
from gradtx.plans.planner import ListPrograms
from gradtx.state.layout import Layout

B = TypeVar("B", bound=ListBundle)
M = TypeVar("M")  # what stands for a leaf: a member of an optimizer, or a row of a tree


@dataclass(frozen=True)
class LeafKind:
    """The common properties of the leaves of one program, apart from the structure of their chain.

    Attributes:
        layout: What tells the positions of slots and shared values in the state apart.
        written: The dtype and device of the parameter, if there is one, and of each slot.
        read: The dtype and device of the gradient and of each per-leaf extra.
        choices: The decisions of selectors.
        has_param: Whether there are parameters.
        flat: Whether they are passed as flat aliases of their memory.
        strided: Whether they would be, but for memory that has gaps or another order than that of other tensors.
        by_leaf: The names of per-leaf extras.
        sharded: Whether they are shards.
    """

    layout: Any
    written: tuple[Any, ...]
    read: tuple[Any, ...]
    choices: tuple[Any, ...]
    has_param: bool = True
    flat: bool = False
    strided: bool = False
    by_leaf: tuple[str, ...] = ()
    sharded: bool = False


@dataclass(frozen=True)
class Family(Generic[M]):
    """Leaves with chains of the same structure, and of the same kind; their counts and numbers may differ.

    Attributes:
        kind: Their common properties.
        signature: The arguments of their programs.
        operations: The operations of each.
        chain: Builds their chain from its hyperparameters.
        on_host: Whether the host knows the scalars.
        members: The leaves.
        scaling: As in `LeafFunction`.
    """

    kind: LeafKind
    signature: Signature
    operations: list[Operation]
    chain: ChainOf
    on_host: bool
    members: list[M] = dataclasses.field(default_factory=list)
    scaling: Any = None

    def some(self, members: list[M]) -> Self:
        """Return a family of some of the leaves."""
        return dataclasses.replace(self, members=members)

    def signed(self, **changes: Any) -> Self:
        """Return the same leaves for programs with other arguments."""
        signature = dataclasses.replace(self.signature, **changes)
        return dataclasses.replace(self, signature=signature)

    @property
    def key(self) -> tuple[Any, ...]:
        """The key of the family's programs, among those of the same chain."""
        return self.chain.structure, self.kind, *self.signature.key()

    @property
    def ignores_sizes(self) -> bool:
        """Whether all rules are the library's own and look at entries, so that none decides by the shape of a leaf."""
        has_codes = bool(self.signature.layout.codes)
        if has_codes or self.signature.positional or self.signature.has_owners:
            return False
        return all(operation.ignores_sizes for operation in self.operations)

    def function(self) -> LeafFunction:
        """Return the step of leaves as a function of flat arguments."""
        return LeafFunction(self.signature, self.chain, self.scaling)

    def programs(self, variant_of: VariantOf, kept: dict[Any, Any]) -> ListPrograms:
        """Return the programs of the family; see `ListPrograms`."""
        record = self.function().record
        return ListPrograms(
            record, variant_of, self.on_host, self.key, kept, self.ignores_sizes
        )

    def recorded(self, tensors: list[Tensor]) -> list[RecordedPhase]:
        """Record the list program for these arguments; return an empty list if that is impossible."""
        try:
            return self.function().record(tensors)
        except Exception:
            # Where a program is required, recording it again raises the error.
            return []


F = TypeVar("F", bound=Family[Any])


def signature_of(
    leaf: Leaf,
    kind: LeafKind,
    *,
    layout: Layout,
    hyperparameters: int,
    shared: Mapping[StateKey, torch.dtype],
    scalars: Mapping[str, torch.dtype],
    absent: Mapping[str, Any],
    **options: Any,
) -> Signature:
    """Return the arguments of the program of a leaf, which is that of all leaves of its family."""
    return Signature(
        layout=layout,
        choices=dict(kind.choices),
        hyperparameters=hyperparameters,
        shared=shared,
        scalars=scalars,
        absent=absent,
        known_extras=leaf.run.known_extras,
        by_leaf=kind.by_leaf,
        has_param=kind.has_param,
        sharded=kind.sharded,
        **options,
    )


def dtypes_and_devices(tensors: Iterable[Tensor]) -> tuple[Any, ...]:
    """Return the dtypes and devices of tensors."""
    return tuple((tensor.dtype, tensor.device) for tensor in tensors)


class Plan(Generic[B]):
    """The leaves of a call in bundles, each of which a program runs.

    An optimizer or a pure update adds when the plan is valid, and which leaves run alone: `TreePlan` compares the
    layouts of all tensors of a call, whose results are new tensors; `StepPlan` also compares where parameters and slots
    are, which it writes.

    Attributes:
        bundles: The bundles.
    """

    bundles: list[B]


def planned(
    leaves: Iterable[tuple[Any, LeafKind, M]],
    first: Callable[[LeafKind, M], F],
    bundles_of: Callable[[F], Iterable[B]],
) -> list[B]:
    """Return the bundles of leaves, each given with the structure of its chain and its kind.

    Args:
        leaves: The leaves; the structure may be any key.
        first: Returns the family of a first leaf, still without members.
        bundles_of: Returns the bundles of a family; it may leave out leaves.
    """
    families: dict[Any, F] = {}
    for structure, kind, leaf in leaves:
        if (structure, kind) not in families:
            families[structure, kind] = first(kind, leaf)
        families[structure, kind].members.append(leaf)
    bundles: list[B] = []
    for family in families.values():
        bundles += bundles_of(family)
    return bundles
