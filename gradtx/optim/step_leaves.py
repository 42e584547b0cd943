"""The parameters of one step as leaves, with the operations of the chain at the step's values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gradtx.base.plain import is_plain
from gradtx.base.random_streams import RandomStreams
from gradtx.distributed.redistribution import gradient_like
from gradtx.execution.context import Clock
from gradtx.execution.execute import FROZEN, Leaf, Operation, Route
from gradtx.execution.extras import add_extras
from gradtx.execution.owners import with_regions
from gradtx.optim.core import Core
from gradtx.optim.device_counts import Scaling, unscaling
from gradtx.optim.groups import Values
from gradtx.optim.run import DeviceCount, Member, OptimizerRun, clock_after, leaf_of


@dataclass(eq=False)
class StepLeaves:
    """The leaves of one step.

    Args:
        run: Its run, or another one, for leaves that have no effect.
        core: The core of the optimizer.
        values: The values of each group.
        count: The number of finished updates.
        scaling: What a GradScaler asks for.
        device: The device of the first parameter.
    """

    run: OptimizerRun
    core: Core
    values: list[Values]
    count: int | Tensor
    scaling: Scaling | None
    device: torch.device
    # On first use: the expanded chain for each group and device, and the clock of each count.
    _routes: dict[tuple[int, torch.device], Route] | None = None
    _clocks: dict[int | DeviceCount, Clock] = field(
        default_factory=dict[int | DeviceCount, Clock]
    )

    def rehearsal(self, run: OptimizerRun) -> StepLeaves:
        """Return the leaves of another run, which can run without any effect."""
        rehearsal = copy(self)
        rehearsal.run, rehearsal._routes, rehearsal._clocks = run, None, {}
        if self.core.traits.prepares:
            run.estimates = self.run.estimates
        streams = RandomStreams()  # clocks of users may draw
        rehearsal.expanded()
        streams.restore()
        return rehearsal

    def expanded(self) -> dict[tuple[int, torch.device], Route]:
        """Return the chain as the operations of each group and device, expanded on first use."""
        if self._routes is not None:
            return self._routes
        members, scaling = self.core.members, self.scaling
        routes: dict[tuple[int, torch.device], Route] = {}
        groups = zip(members.groups, self.values, members.rows(), strict=True)
        around = None if scaling is None else unscaling(self.run, scaling)
        for group, (settings, values, row) in enumerate(groups):
            devices = {member.param.device for member in row}
            for device in devices or {self.device}:
                chain = settings.chain(values, device)
                route = Route.of(chain, self.run, self.count, around)
                routes[group, device] = route
        self._routes = routes
        return routes

    def _route(self, member: Member) -> Route:
        """Return the operations of this step."""
        routes = self.expanded()
        return routes[member.group, member.param.device]

    def without_values(self, members: list[Member]) -> list[Leaf]:
        """Return leaves without values: these could be float32 copies of all weights and gradients."""
        gradients = [member.param.grad for member in members]
        return self._released(members, gradients, self._route)

    def outlines(self, members: Sequence[Member]) -> list[Leaf]:
        """Like `without_values`, for plans: as if all had gradients.

        Their operations need not be those of this step, if they tell as much.
        """
        core, all_members = self.core, self.core.members
        route_of = self._route
        if not (
            self.scaling is not None
            or core.traits.exchanges
            or all_members.traits.restarts_inner
        ):

            def route_of(member: Member) -> Route:
                return all_members.outline(all_members.groups[member.group]).route

        gradients = [member.likely_gradient() for member in members]
        return self._released(members, gradients, route_of)

    def _released(
        self,
        members: Sequence[Member],
        gradients: list[Any],
        route_of: Callable[[Member], Route],
    ) -> list[Leaf]:
        check_fits(self.core, members)
        leaves: list[Leaf] = []
        for member, gradient in zip(members, gradients, strict=True):
            if _is_widened(member.param, gradient):
                leaf = self._leaf(member, gradient.to("meta"), route_of, "meta")
            else:
                leaf = self._leaf(member, gradient, route_of)
            leaf.release()
            leaves.append(leaf)
        return leaves

    def in_turn(self, members: list[Member]) -> Iterator[Leaf]:
        """Yield the leaves of some members, each created when the previous leaves have finished or are suspended."""
        if self.run.leaf_extras:
            self.without_values(members)  # checks the extras of all leaves first
        for member in members:
            leaf = self._leaf(member, member.param.grad, self._route)
            if leaf.operations != [FROZEN]:
                yield leaf

    def joint(self, members: Sequence[Member], operations: list[Operation]) -> Leaf:
        """Return one leaf with the entries of alike members, one after another, and their slots of some operations."""
        first = members[0]
        keys = [
            key
            for operation in operations
            for key in first.layout.slots.get(operation.path, {}).values()
        ]

        def joined(tensors: list[Any]) -> Tensor:
            return torch.cat(tensors).detach()

        leaf = leaf_of(
            self.run,
            first,
            self._clock_of(first),
            joined([member.param.grad for member in members]),
            dict(self.run.call_extras),
            joined([member.param for member in members]),
        )
        states = [self.run.state[member.param] for member in members]
        leaf.state = {key: joined([state[key] for state in states]) for key in keys}
        leaf.operations = operations
        return leaf

    def _clock_of(self, member: Member) -> Clock:
        clock = self._clocks.get(member.count)
        if clock is None:
            clock = self._clocks[member.count] = clock_after(member.count)
        return clock

    def _leaf(
        self,
        member: Member,
        gradient: Any,
        route_of: Callable[[Member], Route],
        shown_on: str | None = None,
    ) -> Leaf:
        """Return the leaf of a member; its values are on another device, such as "meta", if one is named."""
        route = route_of(member)
        trees: Any = self.run.leaf_extras
        scalars: Any = self.run.call_extras
        clock = self._clock_of(member)
        # Not written to the parameter: its gradient may have a graph, from which the Hessian is estimated.
        gradient = gradient_like(gradient, member.param)
        if shown_on is None:
            leaf = leaf_of(self.run, member, clock, gradient, scalars)
        else:
            shown = member.param.detach().to(shown_on)
            leaf = leaf_of(self.run, member, clock, gradient, scalars, shown)
            leaf.device = member.param.device
        if trees:
            add_extras(leaf, trees)
        operations = route.for_leaf(leaf)
        leaf.operations = with_regions(
            operations, member.param, self.core.members.replicas
        )
        return leaf


def check_fits(core: Core, members: Sequence[Member]) -> None:
    """Check that parameters, gradients and slots fit. A valid plan implies this without a look at them."""
    for member in members:
        param, gradient = member.param, member.param.grad
        what = f"{core.members.who}: parameter {member.name!r}"
        if gradient is not None and gradient.shape != param.shape:
            raise ValueError(
                f"{what} has shape {tuple(param.shape)}, but its gradient has shape {tuple(gradient.shape)}, as "
                "from before a change of the parameter; call zero_grad() and backward() again"
            )
        if 0 in param.stride() and _has_shared_entries(param):
            raise ValueError(
                f"{what} has several entries in the same memory, as after expand(), so a step cannot write them; "
                "copy it: param.data = param.data.clone(memory_format=torch.contiguous_format)"
            )
        has_kinds = member.present_kinds() == member.kinds
        if not (has_kinds and isinstance(member.state["step"], Tensor)):
            core.states.refit(member)


def _is_widened(param: Tensor, gradient: Any) -> bool:
    """Whether a leaf has copies of weights or gradient, which are as large, since rules compute in more bits."""
    are_plain = is_plain(param) and is_plain(gradient)
    return are_plain and min(param.itemsize, gradient.itemsize) < 4


def _has_shared_entries(tensor: Tensor) -> bool:
    """Whether entries of a tensor have the same memory, as after `expand`."""
    return any(
        stride == 0 and size > 1
        for stride, size in zip(tensor.stride(), tensor.shape, strict=True)
    )
