"""The state of an optimizer's parameters: its contents, and when it is created."""

from __future__ import annotations

import contextlib
from collections.abc import (
    Callable,
    Container,
    Generator,
    Iterable,
    Mapping,
    MutableMapping,
)
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from gradtx.base.errors import Path
from gradtx.distributed.owners import with_regions
from gradtx.execution.context import Clock
from gradtx.execution.execute import Block, Leaf, initialize
from gradtx.execution.runs import memory_of
from gradtx.optim._groups import GroupView
from gradtx.optim._match_saved import matched
from gradtx.optim._member import (
    Count,
    FirstState,
    Layout,
    Member,
    ParameterKind,
    State,
)
from gradtx.optim._ownership import assign_owners
from gradtx.optim._parameters import CPU, Members, first_clock, leaf_of, never_trains
from gradtx.optim._run import OptimizerRun
from gradtx.state.storage import Storage, check_patterns
from gradtx.transform import Entry


class Initial(NamedTuple):
    """The layout of a parameter's state, and the state before any step; empty if the parameter has none yet."""

    layout: Layout
    state: State


class States:
    """The states of an optimizer's parameters.

    As in torch, the slots of a parameter come with its first gradient. Before, the state of a parameter that requires a
    gradient has only a count and shared values; `state_dict` adds the slots, because a checkpoint is loaded into them.
    The optimizer's constructor computes slots without memory, so that errors are raised there. State that no step has
    used and no user has written is created again at the first gradient, from the weights at that time.

    Args:
        members: The optimizer's parameters.

    Attributes:
        by_param: The optimizer's `state`.
        seen_slots: The slots to which each `state_dtype` of the chain applies.
    """

    def __init__(self, members: Members):
        self.members = members
        self.by_param: MutableMapping[Tensor, State] = {}
        self.seen_slots: dict[Storage, set[tuple[Path, str]]] = {}
        # Whether the patterns of `state_dtype` are known to match slots.
        self._matches_patterns = False
        # Parameters whose slots were created for the present step, their state before, and these slots.
        self._created: list[tuple[Member, State, FirstState | None, FirstState]] = []

    def check_patterns(self) -> None:
        """Check the patterns of `state_dtype`, as soon as no parameter is lazy, so that all slots are known.

        Raises:
            ValueError: If a pattern matches no slot.
        """
        members = self.members.by_param.values()
        if not self._matches_patterns and all(each.layout for each in members):
            check_patterns(self.seen_slots)
            self._matches_patterns = True

    def of(self, param: Tensor) -> State:
        """Return the state of a parameter; empty if it has none."""
        return self.by_param.get(param, {})

    def run(self) -> OptimizerRun:
        """Create a run of `update` over all members."""
        return OptimizerRun(self.by_param, self.members.by_param, initial=False)

    def leaf(
        self,
        run: OptimizerRun,
        member: Member,
        clock: Clock,
        gradient: Tensor | None = None,
        extras: dict[str, Any] | None = None,
    ) -> Leaf:
        """Create the leaf of a parameter, with its state."""
        return leaf_of(run, member, clock, gradient, extras, self.of(member.param))

    def count(self, entry: Entry | None = None) -> int:
        """Return the largest count of the parameters, or the count of the clock that a hyperparameter follows.

        If the device counts, the result is the upper bound that the host knows.
        """
        path = self.members.clock_path(entry)
        if path is not None:
            return self.members.inner_count(path, self.by_param, self.count())
        largest = 0
        for param, member in self.members.by_param.items():
            count = member.count_in(self.of(param))
            largest = max(largest, count.most if isinstance(count, Count) else count)
        return largest

    def show_exactly(self) -> None:
        """Show schedule values for the counts on the device, which synchronizes.

        If the device counts, a GradScaler may have skipped steps, and a CUDA graph may have replayed steps.
        """
        members = self.members.by_param.values()
        if any(isinstance(member.count, Count) for member in members):
            for view in self.members.views:
                view.show_exactly(self.exact_count)

    def exact_count(self, entry: Entry | None = None) -> int:
        """Return the exact `count`, synchronizing if the device counts."""
        if self.members.clock_path(entry) is not None:
            return self.count(entry)
        steps = (self.of(param).get("step", 0) for param in self.members.by_param)
        return max(map(int, steps), default=0)

    # First states.

    def outline(
        self, view: GroupView, members: Mapping[Tensor, Member]
    ) -> dict[Tensor, Initial]:
        """Return first states without slots, for the parameters of a new group that require a gradient and lack state.

        The slots are computed from stand-ins without memory, or from the parameters if an `init` reads values.
        """
        params = [param for param in view.group["params"] if not self.of(param)]
        try:
            outline = self._outlined(view, params, members, _without_memory)
        except Exception:
            return self._outlined(view, params, members, Tensor.detach)
        values = [value for each in outline.values() for value in each.state.values()]
        if any(value.is_meta for value in values):
            # A shared value depends on parameters.
            return self._outlined(view, params, members, Tensor.detach)
        return outline

    def _outlined(
        self,
        view: GroupView,
        params: list[Tensor],
        members: Mapping[Tensor, Member],
        shown: Callable[[Tensor], Tensor],
    ) -> dict[Tensor, Initial]:
        outlines: dict[Tensor, Initial] = {}
        first = self.first(view, params, members, shown=shown)
        for param, (layout, state) in first.items():
            state = layout.without_slots(state) if param.requires_grad else {}
            outlines[param] = Initial(layout, state)
        return outlines

    @torch.no_grad()
    def first(
        self,
        view: GroupView,
        params: Iterable[Tensor],
        members: Mapping[Tensor, Member] | None = None,
        alone: bool = False,
        shown: Callable[[Tensor], Tensor] = Tensor.detach,
    ) -> dict[Tensor, Initial]:
        """Create the first states of parameters.

        Args:
            view: Their group.
            params: The parameters. Lazy parameters and parameters on the meta device have no state yet; integer
                parameters never do.
            members: All members, if some have not joined yet.
            alone: Whether shared values start over as well; otherwise new parameters adopt those of the others.
            shown: Returns the tensor that stands for a parameter.
        """
        params = list(params)
        if not params:
            return {}
        members = self.members.by_param if members is None else members
        run = OptimizerRun(self.by_param, members, initial=True)
        block = Block.of(view.first_chain(), run, 0)
        clock = first_clock(run.device)
        leaves: list[Leaf] = []
        for param in params:
            if not (is_lazy(param) or param.is_meta or never_trains(param)):
                leaf = leaf_of(run, members[param], clock, shown=shown(param))
                leaf.program = with_regions(
                    block.for_leaf(leaf), param, self.members.replicas
                )
                leaves.append(leaf)
        assign_owners(leaves, members, self.members.replicas)
        initialize(leaves)
        # Copies: an initial value may be a hyperparameter's tensor.
        for path, values in run.new_shared.items():
            run.new_shared[path] = {
                name: value.clone() for name, value in values.items()
            }
        first: dict[Tensor, Initial] = {}
        for leaf in leaves:
            layout = Layout.of(run, leaf)
            state = _first_state(run, leaf, layout, alone)
            first[leaf.key] = Initial(layout, state)
        run.commits.clear()  # breaks a reference cycle with the run
        for storage, slots in run.seen_slots.items():
            self.seen_slots.setdefault(storage, set()).update(slots)
        return first

    def keep(self, view: GroupView, first: Mapping[Tensor, Initial]) -> None:
        """Install first states, marked as unused."""
        for param, (layout, state) in first.items():
            member = self.members.by_param[param]
            member.made_for = view.structure
            member.layout = layout
            if state:
                self.by_param[param] = state
                member.waits = _lacks_slots(layout, state)
                member.made_on = ParameterKind.of(param)
                member.first_state = FirstState(state)

    def create(self, view: GroupView, params: Iterable[Tensor]) -> None:
        """Create the state of parameters that have none, or only an unused one, from their present values."""
        unused: list[Tensor] = []
        for param in params:
            member = self.members.by_param[param]
            self.accept_moved(view, member)
            if self.is_unused(member) and member.saved is None:
                unused.append(param)
        if unused:
            members = self.members.by_param.values()
            is_first_step = all(map(self.is_unused, members))
            first = self.first(view, unused, alone=is_first_step)
            self.keep(view, first)
            if not is_first_step:
                return
            # The shared values of a first step are also those of parameters whose first gradient comes later.
            shared: dict[Path, State] = {}
            for layout, state in first.values():
                for (path, name), key in layout.shared_places():
                    shared.setdefault(path, {})[name] = state[key]
            self._set_shared(shared, first)

    def is_unused(self, member: Member) -> bool:
        """Whether a member has no state, or one that no step has used and no user has written."""
        state = self.of(member.param)
        return not state or member.is_unused(state)

    def create_all(self, matches_groups: bool) -> None:
        """Create the slots of all parameters that require a gradient.

        Args:
            matches_groups: Whether to add the slots of links that a value written to a group has switched on; otherwise
                the next step adds them.
        """
        rows = self.members.rows(self.by_param)
        for view, row in zip(self.members.views, rows, strict=True):
            if matches_groups:
                # The next step raises the error of a wrong value.
                with contextlib.suppress(TypeError, ValueError):
                    view.settle(view.values())
            self.create(view, [each.param for each in row if each.param.requires_grad])
            incomplete: list[Tensor] = []
            for member in row:
                if member.waits and not member.param.requires_grad:
                    continue
                if self.of(member.param) and self._is_incomplete(member, view):
                    incomplete.append(member.param)
            self._match(view, incomplete)

    def accept_moved(self, view: GroupView, member: Member) -> None:
        """Check and accept a state that the user moved from another parameter to this one."""
        state = self.of(member.param)
        if member.layout is not None or not state or member.saved is not None:
            return
        layout, first = self.first(view, [member.param])[member.param]
        matched(member.name, member.param, state, first, True, layout.labels, layout)
        member.layout = layout

    # Before a step.

    def prepare(self, view: GroupView, row: list[Member], takes_none: bool) -> None:
        """Create or update the slots of the parameters that are about to step, to match their group's links.

        Args:
            view: The group.
            row: The group's members.
            takes_none: Whether a link also processes parameters without a gradient.
        """
        stepping = [
            member
            for member in row
            if member.param.grad is not None
            or (takes_none and member.param.requires_grad)
        ]
        if _are_prepared(stepping, view):
            return
        before = [(each, self.of(each.param), each.first_state) for each in stepping]
        self.create(view, [member.param for member in stepping])
        self._match(
            view,
            [each.param for each in stepping if self._is_incomplete(each, view)],
        )
        for member, state, first_state in before:
            if member.layout is not None and _lacks_slots(member.layout, state):
                slots = FirstState(member.layout.slots_in(self.of(member.param)))
                self._created.append((member, state, first_state, slots))
            member.first_state = None
        for member in row:
            member.state = self.of(member.param)
            member.count = member.count_in(member.state)

    def _is_incomplete(self, member: Member, view: GroupView) -> bool:
        """Whether a member lacks slots, or has those of other links."""
        return (
            member.waits
            or member.layout is None
            or member.made_for is not view.structure
            or not self.of(member.param)
        )

    @contextlib.contextmanager
    def undone_on_failure(self) -> Generator[None, None, None]:
        """Remove the slots that a step creates, if it fails, unless it has written them."""
        try:
            yield
        except Exception:
            self._undo_creations()
            raise
        finally:
            self._created.clear()

    def _undo_creations(self) -> None:
        for member, before, first_state, slots in self._created:
            state, layout = self.of(member.param), member.layout
            if layout is None or not slots.is_unchanged(layout.slots_in(state)):
                continue
            member.first_state = first_state
            member.waits = bool(before)
            if before:
                self.by_param[member.param] = before
            else:
                self.by_param.pop(member.param, None)

    def _match(self, view: GroupView, params: list[Tensor]) -> None:
        """Match the slots of parameters to the links of their group."""
        for param, (layout, state) in self.first(view, params).items():
            member = self.members.by_param[param]
            self._complete(member, layout, state)
            member.made_for = view.structure

    def _complete(self, member: Member, layout: Layout, first: State) -> None:
        """Change a parameter's layout: existing values are kept, missing values come from a first state."""
        old = self.of(member.param)
        old_keys = (member.layout or layout).owners()
        if member.saved is not None:
            old = matched(
                member.name,
                member.param,
                member.saved,
                first,
                True,
                layout.labels,
                layout,
            )
            member.saved = None
        state: State = {"step": old.get("step", first["step"])}
        # Matched by stage, not by key: the slot of a newly enabled link may now have a key that another slot had.
        for owner, key in layout.owners().items():
            state[key] = old.get(old_keys.get(owner, ""), first[key])
        for key in old.keys() - old_keys.values():  # the keys of wrappers
            state.setdefault(key, old[key])
        self.by_param[member.param] = state
        member.layout = layout
        member.waits = False
        member.made_on = ParameterKind.of(member.param)

    # After a step.

    def write_shared(self, run: OptimizerRun, stays: bool = False) -> None:
        """Write the new shared values of a run into the state of every parameter that keeps them.

        Args:
            run: The run.
            stays: Whether to write them into the tensors of the old values, where device and dtype are the same.
        """
        new: dict[Path, State] = {}
        for path, values in run.new_shared.items():
            old = run.scalars(path) if stays else {}
            new[path] = _unshared(run, values, old)
        if new:
            self._set_shared(new)

    def _set_shared(
        self, new: Mapping[Path, State], but: Container[Tensor] = ()
    ) -> None:
        """Set shared values in the state of every parameter that keeps them, except those in `but`."""
        for param, member in self.members.by_param.items():
            state, layout = self.of(param), member.layout
            if not state or layout is None or param in but:
                continue
            for path, keys in layout.shared.items():
                for name, key in keys.items() if path in new else ():
                    state[key] = new[path][name]

    # Loading a checkpoint.

    def replace(
        self, states: Mapping[Any, State], layouts: Mapping[Tensor, Layout]
    ) -> None:
        """Replace all states, of the current members and of other keys."""
        self.by_param.clear()
        self.by_param.update(states)
        for param, member in self.members.by_param.items():
            layout = member.layout = layouts.get(param)
            member.first_state = None
            member.waits = layout is not None and _lacks_slots(layout, self.of(param))
            member.made_on = None if layout is None else ParameterKind.of(param)

    def forget_used(self) -> None:
        """Record which states are no longer as the library created them, before a copy is made."""
        for param, member in self.members.by_param.items():
            if not member.is_unused(self.of(param)):
                member.first_state = None

    def note_copies(self) -> None:
        """Record the tensors of unused states in a copy, because version counters restart there."""
        members = self.members.by_param
        self.mark_unused(
            [
                param
                for param, member in members.items()
                if member.first_state is not None
            ]
        )

    def mark_unused(self, params: Iterable[Tensor]) -> None:
        """Mark the current states of parameters as unused."""
        for param in params:
            self.members.by_param[param].first_state = FirstState(self.of(param))


def _unshared(run: OptimizerRun, values: State, old: State) -> State:
    """Return shared values in memory of their own: that of the old value, where device and dtype are the same."""
    taken = set(map(memory_of, old.values()))
    new = {name: run.memory.unshared(value, taken) for name, value in values.items()}
    for name, tensor in old.items():  # now: no value shares memory with another old one
        value = new.get(name)
        if (
            value is not None
            and value.device == tensor.device
            and value.dtype == tensor.dtype
        ):
            new[name] = tensor.copy_(value)
    return new


def _are_prepared(members: list[Member], view: GroupView) -> bool:
    """Whether all these members have state that was created for their present group and is in use."""
    structure = view.structure
    for member in members:
        if (
            not member.state
            or member.layout is None
            or member.first_state is not None
            or member.waits
            or member.made_for is not structure
        ):
            return False
    return True


def _lacks_slots(layout: Layout, state: State) -> bool:
    return not layout.keys <= state.keys()


def _without_memory(param: Tensor) -> Tensor:
    """Return a tensor without memory in place of a parameter; the parameter itself if it is not a plain tensor."""
    if type(param.data) is not Tensor:
        return param.detach()
    return torch.empty_like(param, device="meta", requires_grad=False)


def _first_state(run: OptimizerRun, leaf: Leaf, layout: Layout, alone: bool) -> State:
    """Return the flat state of a leaf after `initialize`."""
    run.memory.register([leaf.inputs[1]])
    state = {"step": torch.tensor(0.0, dtype=_step_dtype(), device=CPU)}
    for path, keys in layout.slots.items():
        for slot, key in keys.items():
            state[key] = leaf.in_callers_form(run.memory.unshared(leaf.new[path][slot]))
    for path, keys in layout.shared.items():
        of_others = {} if alone else run.scalars(path)
        values = of_others or run.new_shared[path]
        for name, key in keys.items():
            state[key] = values[name]
    return state


def _step_dtype() -> torch.dtype:
    # As in torch.optim.
    return (
        torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32
    )
