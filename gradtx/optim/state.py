"""The state of an optimizer's parameters: its contents, when it is created, and how a saved one is matched to it."""

from __future__ import annotations

import contextlib
import functools
import itertools
import operator
from collections.abc import (
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
)
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from gradtx.base.complex_views import as_complex, as_real, real_views
from gradtx.base.dtensor import from_local_like, is_sharded, local
from gradtx.base.errors import Path, StateKey
from gradtx.base.exact import CPU
from gradtx.base.messages import describe
from gradtx.base.plain import DTYPE, SHAPE, TYPES, is_plain
from gradtx.distributed.layouts import pieces_at, team_of
from gradtx.distributed.redistribution import distributed_like
from gradtx.execution.execute import Leaf, Route, initialize
from gradtx.execution.owners import with_regions
from gradtx.execution.runs import OwnMemory, Place, memory_of
from gradtx.optim.groups import GroupSettings
from gradtx.optim.outline import FirstState
from gradtx.optim.parameters import Members
from gradtx.optim.ranks import assign_owners, divided_keys, states_of_owners
from gradtx.optim.run import (
    COUNT,
    FLOAT32_COUNTS,
    MISSED,
    DeviceCount,
    Kinds,
    Member,
    OptimizerRun,
    TensorKind,
    as_step,
    clock_after,
    kinds_of,
    leaf_of,
    missed_in,
    never_trains,
    zero_steps,
)
from gradtx.optim.slot_names import is_slot_name
from gradtx.state.conversion import Entry, converted
from gradtx.state.layout import Layout, State, by_state_key
from gradtx.state.nested import LEAF_STEPS
from gradtx.state.slots import kind_of
from gradtx.state.storage import Storage, Store
from gradtx.transform import GradientTransformation

# The memory of a storage, and the bytes of a tensor.
STORAGE, NBYTES = operator.attrgetter("_cdata"), operator.attrgetter("nbytes")


class Initial(NamedTuple):
    """The layout of a parameter's state, the state before any step, and the kinds of its tensors.

    Parameters that start alike share layout and kinds.
    """

    layout: Layout
    state: State
    kinds: Kinds


class States:
    """The states of an optimizer's parameters.

    As in torch, the state of a parameter comes with its first gradient, or earlier for torch.distributed.checkpoint, as
    fresh slots. The optimizer's constructor computes slots without memory, so that errors are raised there.

    Args:
        members: The optimizer's parameters.

    Attributes:
        by_param: The optimizer's `state`.
        seen_slots: The slots to which each `state_dtype` of the chain applies.
        created: Members whose slots the present step has created, with their attributes and state before.
    """

    _last_start: _Start | None = None

    def __init__(self, members: Members):
        self.members = members
        self.by_param: MutableMapping[Tensor, State] = {}
        self.seen_slots: dict[Storage, set[StateKey]] = {}
        self.created: list[tuple[Member, dict[str, Any], State]] = []

    def __getstate__(self) -> dict[str, Any]:
        # The expanded chain consists of functions.
        return {**vars(self), "_last_start": None}

    def of(self, param: Tensor) -> State:
        """Return the state of a parameter; empty if it has none."""
        return self.by_param.get(param, {})

    def run(self) -> OptimizerRun:
        """Create a run of `update` over all members."""
        return OptimizerRun(self.by_param, self.members.by_param, initial=False)

    def routes(self, count: int) -> Iterator[tuple[OptimizerRun, Route, list[Member]]]:
        """Yield a run, with the chain of each group, expanded with its present values, and the group's members."""
        run = self.run()
        rows = self.members.rows()
        for settings, row in zip(self.members.groups, rows, strict=True):
            chain = settings.chain(settings.values(), run.device)
            yield run, Route.of(chain, run, count), row
        run.release()

    def count(self, place: Place | None = None, exact: bool = False) -> int:
        """Return the number of updates, or the count of the clock that a node of the chain follows.

        If the device counts, the result is what the host knows of the largest count, an upper bound, or with `exact`,
        after synchronizing, the number itself.
        """
        path = self.members.clock_path(place)
        if path is not None:
            return self._inner_count(path)
        largest = 0
        for param, member in self.members.by_param.items():
            count = member.count_in(self.of(param))
            if isinstance(count, DeviceCount):
                count = int(count.made) if exact else count.most
            largest = max(largest, count)
        missed = missed_in(map(self.of, self.members.by_param))
        is_elsewhere = isinstance(missed, Tensor) and missed.device != CPU
        if missed is None or (is_elsewhere and not exact):
            return largest
        return largest + int(missed)

    def _inner_count(self, path: Path) -> int:
        """Return the number of finished updates on a combinator's clock, after any restart in the next step."""
        run = self.run()
        if not self.members.traits.restarts_inner:
            return int(run.scalars(path).get("step", 0))
        Route.of(self.members.tx, run, self.count())
        run.release()
        return int(run.inner_counts[path])

    def show_exactly(self) -> None:
        """Show schedule values for the counts on the device, which synchronizes.

        If the device counts, a GradScaler may have skipped steps, and a CUDA graph may have replayed steps.
        """
        if self._any_counts_on_device():
            for settings in self.members.groups:
                settings.show(functools.partial(self.count, exact=True))

    def _any_counts_on_device(self) -> bool:
        return DeviceCount in map(type, map(COUNT, self.members.by_param.values()))

    # First states.

    def check(self, settings: GroupSettings, members: Mapping[Tensor, Member]) -> None:
        """Create the first states of a new group's parameters without memory, so that errors are raised now.

        Args:
            settings: The group.
            members: All members, including those of the new group.
        """
        outline = self.members.outline(settings)
        if outline.knows(settings.params):
            return
        params = [
            param
            for param in settings.params
            if outline.first_state(param) is None and not self.of(param)
        ]
        if not self.are_divided(params):  # otherwise each is assigned to an owner
            params = _one_of_each_kind(params, members)
        try:
            self.first(settings, params, members, without_memory)
        except Exception:  # also if an `init` reads values
            self.first(settings, params, members)

    @torch.no_grad()
    def first(
        self,
        settings: GroupSettings,
        params: Iterable[Tensor],
        members: Mapping[Tensor, Member] | None = None,
        shown: Callable[[Tensor], Tensor] = Tensor.detach,
    ) -> dict[Tensor, Initial]:
        """Create the first states of parameters.

        Args:
            settings: Their group.
            params: The parameters. Lazy parameters and parameters on the meta device have no state yet; integer
                parameters never do.
            members: All members, if some have not joined yet.
            shown: Returns the tensor that stands for a parameter.
        """
        params = [
            param
            for param in params
            if not (is_lazy(param) or param.is_meta or never_trains(param))
        ]
        if not params:
            return {}
        known = self._known(
            settings, params, lambda first, param: first.of(param, shown(param))
        )
        others = [param for param in params if param not in known]
        if others:
            known |= self._computed(settings, others, members, shown)
        return {param: known[param] for param in params}

    def _known(
        self,
        settings: GroupSettings,
        params: Iterable[Tensor],
        made: Callable[[FirstState, Tensor], tuple[Layout, State, Kinds]],
    ) -> dict[Tensor, Initial]:
        """Return the first states that are known of the chain's structure, as `made` makes them."""
        outline = self.members.outline(settings)
        known: dict[Tensor, Initial] = {}
        for param in params:
            first_state = outline.first_state(param)
            if first_state is not None:
                known[param] = Initial(*made(first_state, param))
        return known

    def _computed(
        self,
        settings: GroupSettings,
        params: list[Tensor],
        members: Mapping[Tensor, Member] | None,
        shown: Callable[[Tensor], Tensor],
    ) -> dict[Tensor, Initial]:
        """Return first states as the chain computes them."""
        members = self.members.by_param if members is None else members
        outline = self.members.outline(settings)
        run, routes = self._started(settings, params, members)
        clock = clock_after(0)
        leaves: list[Leaf] = []
        # The leaf whose slots each parameter gets copies of: one of each kind, if leaves of the kind start alike.
        leaf_for: dict[Tensor, Leaf] = {}
        leaf_of_kind: dict[Any, Leaf] = {}
        for param in params:
            leaf = None
            kind = None  # what initial slots depend on, where leaves start alike
            if is_plain(param):
                kind = TensorKind.of(param), param.stride()
            if not run.selectors:
                leaf = leaf_of_kind.get(kind)
            if leaf is None:
                leaf = leaf_of(run, members[param], clock, shown=shown(param))
                operations = routes[param.device].for_leaf(leaf)
                leaf.operations = with_regions(operations, param, self.members.replicas)
                leaf = self._alike(leaf, kind, leaf_of_kind)
                if leaf.key.param is param:
                    leaves.append(leaf)
            leaf_for[param] = leaf
        replicas = self.members.replicas
        if replicas is not None or any(map(is_sharded, params)):
            assign_owners(leaves, members, replicas)
        initialize(leaves)
        # Copies: an initial value may be a hyperparameter's tensor.
        for path, values in run.new_shared.items():
            run.new_shared[path] = {
                name: value.clone() for name, value in values.items()
            }
        first: dict[Tensor, Initial] = {}
        copies: dict[Tensor, Copies] = {}
        for param, leaf in leaf_for.items():
            of_kind: Tensor = leaf.key.param
            if of_kind is param:
                layout = Layout.of(run, leaf)
                state = _first_state(run, leaf, layout)
                first[param] = Initial(layout, state, kinds_of(param, layout, state))
                if replicas is None:
                    outline.note(param, leaf, layout, state)
                continue
            initial = first[of_kind]
            if of_kind not in copies:
                copies[of_kind] = _copies_for(leaf, initial.layout)
            state = {**initial.state, "step": initial.state["step"].clone()}
            for key, copy in copies[of_kind].items():
                state[key] = copy(state[key])
            first[param] = initial._replace(state=state)
        run.release()
        run.show({})
        return first

    def _started(
        self,
        settings: GroupSettings,
        params: list[Tensor],
        members: Mapping[Tensor, Member],
    ) -> tuple[OptimizerRun, dict[torch.device, Route]]:
        """Return a run of `init`, and a group's chain, expanded for each device: those of the last call if they fit.

        The constructor and the first step mostly need the same ones.
        """
        chains: dict[torch.device, GradientTransformation] = {}
        for param in params:
            if param.device not in chains:
                chains[param.device] = settings.first_chain(
                    param.device, self.members.traits.compares_rates
                )
        run = OptimizerRun(self.by_param, members, initial=True)
        last = self._last_start
        if last is not None and not (
            last.run.device == run.device and chains.items() <= last.chains.items()
        ):
            last = None
        if last is None:
            run.seen_slots = self.seen_slots
            routes = {
                device: Route.of(chain, run, 0) for device, chain in chains.items()
            }
            last = self._last_start = _Start(
                *(chains, run, routes, run.new_shared, dict(run.stores))
            )
        run = last.run
        run.state = self.by_param
        run.show(members)
        run.memory = OwnMemory()
        run.new_shared = {path: dict(last.shared[path]) for path in last.shared}
        run.stores = dict(last.stores)
        return run, last.routes

    def _alike(self, leaf: Leaf, kind: Any, leaf_of_kind: dict[Any, Leaf]) -> Leaf:
        """Return an earlier leaf that starts as this one does, or the leaf itself, after noting it for later ones."""
        if kind is None or self.members.replicas is not None:
            return leaf
        if not all(operation.starts_alike for operation in leaf.operations):
            return leaf
        if not leaf.run.selectors:
            return leaf_of_kind.setdefault(kind, leaf)
        # Selectors may have sent leaves of a kind through other links.
        choices = tuple(leaf.key.choices.items())
        return leaf_of_kind.setdefault((kind, choices), leaf)

    def begin(self) -> None:
        """Create fresh slots for all trained parameters: torch.distributed.checkpoint loads into them."""
        for settings in self.members.groups:
            params = [param for param in settings.params if param.requires_grad]
            for param, initial in self.first(settings, params).items():
                self.by_param[param] = initial.state
                self.members.by_param[param].mark_fresh(initial.state)

    def clear(self) -> None:
        """Remove fresh slots, as before the first step."""
        self.by_param.clear()
        for member in self.members.by_param.values():
            member.fresh = {}

    def stand_ins(
        self, settings: GroupSettings, params: Iterable[Tensor]
    ) -> tuple[dict[Tensor, Initial], set[Tensor]]:
        """Return first states whose slots have no memory, and the parameters whose slots all start at zero."""
        params = list(params)
        known = self._known(settings, params, lambda first, _: first.without_memory())
        others = [param for param in params if param not in known]
        if not others:
            return known, set(known)
        return {**known, **self._other_stand_ins(settings, others)}, set(known)

    def _other_stand_ins(
        self, settings: GroupSettings, params: list[Tensor]
    ) -> dict[Tensor, Initial]:
        # Ranks load alone: structures need no values of sharded parameters.
        try:
            return self.first(settings, params, shown=without_memory)
        except Exception:  # also if an `init` reads values
            if self.are_divided(params):  # all at once: owners are assigned
                return self.first(settings, params, shown=without_messages)
        stand_ins: dict[Tensor, Initial] = {}
        for param in params:
            for initial in self.first(settings, [param]).values():
                stand_ins[param] = initial._replace(state=_on_meta(initial.state))
        return stand_ins

    def are_divided(self, params: Iterable[Tensor]) -> bool:
        """Whether ranks divide parameters, or the work on them."""
        return self.members.replicas is not None or any(map(is_sharded, params))

    # Slots.

    def adopt(self) -> None:
        """Check and accept states that the user has moved to other parameters, and complete loaded ones."""
        rows = self.members.rows()
        for settings, row in zip(self.members.groups, rows, strict=True):
            moved: list[Tensor] = []
            for member in row:
                state = member.state = self.of(member.param)
                lacking = member.layout.keys - state.keys() if state else ()
                if lacking and all(map(member.layout.follows, lacking)):
                    self.refit(member)
                if not member.layout.keys and len(member.used(state)) > 1:
                    moved.append(member.param)
            self.create(settings, moved)
        self.created.clear()

    def create(self, settings: GroupSettings, params: list[Tensor]) -> None:
        """Create or update the slots of a group's parameters, to match its links."""
        for param, initial in self.first(settings, params).items():
            member = self.members.by_param[param]
            old = self.of(param)
            self.created.append((member, dict(vars(member)), old))
            state = initial.state
            if old:
                state = self._completed(settings, member, initial)
            self.set(member, settings, initial, state)

    def refit(self, member: Member) -> None:
        """Check and accept a parameter and its state after the user has changed either.

        Raises:
            ValueError: If a slot does not fit the parameter.
        """
        settings = self.members.groups[member.group]
        old, kinds = member.state, member.present_kinds()
        for initial in self.first(settings, [member.param]).values():
            try:
                state = self._fitted(settings, member, initial, old)
            except ValueError as error:
                before = {**member.kinds, None: kinds[None]}
                if before != kinds or member.kinds[None] == kinds[None]:
                    raise
                raise ValueError(
                    f"{self.members.who}: parameter {member.name!r} is {kinds[None]}, but its state was created for "
                    f"{member.kinds[None]}; convert or resize the state as well ({EDITING}), by "
                    "optimizer.load_state_dict(optimizer.state_dict()) if only the dtype or the device differs, or "
                    "reset it: optimizer.state.pop(param)"
                ) from error
            self.created.append((member, dict(vars(member)), old))
            self.set(member, settings, initial, state)

    def _fitted(
        self, settings: GroupSettings, member: Member, initial: Initial, state: State
    ) -> State:
        """Return a state that the user has edited or moved, after checking that its slots fit the parameter."""
        who = f"{self.members.who}: state of parameter {member.name!r}"
        layout, first, _ = initial
        param, labels = member.param, {**settings.codes, **layout.labels}
        # Ranks have not compared, so they exchange nothing yet.
        rows = {key: state[key] for key in divided_keys(param, layout, state)}
        others = {key: value for key, value in state.items() if key not in rows}
        try:
            state = converted(others, first, param, labels, layout.coded_keys)
        except ValueError as error:
            raise ValueError(f"{who}: {error}") from None
        state.update(rows)
        for key in state.keys() - layout.keys:
            if layout.follows(key):
                del state[key]
        lacking = layout.keys - state.keys()
        following = set(filter(layout.follows, lacking))
        if lacking > following:
            missing = min(lacking - following)
            raise ValueError(f"{who} lacks {missing!r}; see {EDITING}")
        if following:
            state.update(self._following(settings, member, initial, state))
        if not isinstance(state["step"], Tensor):
            count = int(zero_steps().double() + state["step"])
            state["step"] = as_step(count, first["step"].dtype)
        for key in layout.program_keys:
            what = f"{who}: {key!r}"
            state[key] = _fitting(what, state[key], first[key], param.dtype)
        return state

    def _following(
        self, settings: GroupSettings, member: Member, initial: Initial, state: State
    ) -> State:
        """Return the slots of a state that follow from others, from a run whose weights were not rounded."""
        run, param = self.run(), member.param
        count = int(torch.as_tensor(state["step"]))
        chain = settings.chain(settings.values(), param.device)
        operations = Route.of(chain, run, count)
        leaf = leaf_of(run, member, clock_after(count))
        leaf.layout, leaf.state = initial.layout, {**initial.state, **state}
        for operation in operations.for_leaf(leaf):
            operation.follow(leaf)
        run.release()
        return {
            key: value
            for key, value in leaf.new_slots(leaf.memory()).items()
            if key not in state
        }

    def undo(self) -> None:
        """Remove the slots that a failed step has created, unless it has written them."""
        for member, before, state in self.created:
            if member.count_in(self.of(member.param)) == before["count"]:
                vars(member).update(before)
                self.by_param[member.param] = state
                if not state:
                    del self.by_param[member.param]

    def set(
        self, member: Member, settings: GroupSettings, initial: Initial, state: State
    ) -> None:
        """Install the state of a member, which matches the links of its group and has the layout of a first state."""
        self.by_param[member.param] = member.state = state
        member.count = member.count_in(state)
        member.layout = initial.layout
        settings.codes.update(initial.layout.labels)
        member.fresh = {}
        member.made_for = settings.structure
        member.kinds = initial.kinds
        if state is not initial.state:
            kinds = member.present_kinds()
            if kinds != initial.kinds:
                member.kinds = kinds

    def to_save(self, keeps: bool) -> tuple[dict[Any, State], dict[Tensor, Layout]]:
        """Return the states of all members and their layouts, with slots for every parameter that requires a gradient.

        They share no memory, which formats such as safetensors refuse; in the state, a shared value is one tensor.
        If ranks own matrices, all ranks must call it together.

        Args:
            keeps: Whether slots that are created here stay in the state, fresh.
        """
        members = self.members.by_param
        states: dict[Any, State] = {
            key: state
            for key, state in self.by_param.items()
            if not isinstance(key, Tensor) or key in members
        }
        layouts: dict[Tensor, Layout] = {}
        for settings in self.members.groups:
            # The slots of links that a value written to a group has switched on; the next step raises its errors.
            with contextlib.suppress(TypeError, ValueError):
                settings.settle(settings.values())
            incomplete: list[Tensor] = []
            for param in settings.params:
                member = members[param]
                layouts[param] = member.layout
                lacks_slots = param.requires_grad
                if self.by_param.get(param):  # they may be those of other links
                    lacks_slots = member.made_for is not settings.structure
                if lacks_slots:
                    incomplete.append(param)
            for param, initial in self.first(settings, incomplete).items():
                member = members[param]
                layouts[param] = initial.layout
                states[param] = self._completed(settings, member, initial)
                if keeps and not member.layout.keys:
                    # torch.distributed.checkpoint loads what the state has.
                    self.by_param[param] = states[param]
                    member.mark_fresh(initial.state)
        owned = states_of_owners(self.members, layouts, states)
        states.update(owned)
        self._count_exactly(states)
        return _with_memory_apart(states, members), layouts

    def keep_missed(self) -> None:
        """Keep the missed updates in the states of members whose numbers follow schedules, even if they are 0.

        `torch.distributed.checkpoint` loads only what a state has, and a new optimizer has missed no updates.
        """
        missed: Tensor | None = None
        for settings in self.members.groups:
            if not any(map(settings.follows_schedule, settings.sources)):
                continue
            for param in settings.params:
                state = self.by_param.get(param)
                if state and MISSED not in state:
                    missed = _NONE_MISSED.clone() if missed is None else missed
                    state[MISSED] = missed

    def _count_exactly(self, states: dict[Any, State]) -> None:
        """Replace counts that a CUDA graph has advanced beyond what float32 holds; this waits for the device."""
        if not self._any_counts_on_device():
            return
        for param, member in self.members.by_param.items():
            state, count = states.get(param), member.count
            if not state or not isinstance(count, DeviceCount):
                continue
            step = torch.as_tensor(state["step"])
            if step.dtype == torch.float32 and step >= FLOAT32_COUNTS:
                states[param] = {**state, "step": count.made.to(torch.float64)}

    def keys_of_wrappers(self, param: Tensor, unknown: Collection[str]) -> set[str]:
        """Return those unknown keys of a parameter's state that a wrapper has written, and which are names of slots."""
        own = self.members.by_param[param].layout.keys | {"step"}
        return {key for key in unknown if key not in own and is_slot_name(key)}

    def _completed(
        self, settings: GroupSettings, member: Member, initial: Initial
    ) -> State:
        """Return a parameter's state in another layout: existing values are kept, missing values are initial ones."""
        layout, first, _ = initial
        old = member.used(self.of(member.param))
        if old and not member.layout.keys:
            # Steps since it was written or moved here have not written its copies.
            old = {**old, **self._present_shared(layout)}
        if (
            not member.layout.keys
            and not member.fresh
            and layout.keys & (old.keys() - {"step"})
        ):
            # The user has moved it here, from another parameter.
            return self._fitted(
                settings, member, initial, _translated_entry(old, first)
            )
        old_layout = member.layout if member.layout.keys else layout
        old_keys = old_layout.owners()
        state = {"step": old.get("step", first["step"])}
        # Matched by stage, not by key: the slot of a newly enabled link may now have a key that another slot had.
        for owner, key in layout.owners().items():
            state[key] = old.get(old_keys.get(owner, ""), first[key])
        for key in old.keys() - old_keys.values():  # the keys of wrappers
            state.setdefault(key, old[key])
        return state

    def _present_shared(self, layout: Layout) -> State:
        """Return the shared values that other parameters have, by key; empty if there are none."""
        run, present = self.run(), {}
        for path, keys in layout.shared.items():
            for name, value in run.scalars(path).items():
                present[keys[name]] = value
        return present

    # After a step.

    def write_shared(self, run: OptimizerRun, stays: bool) -> None:
        """Write the new shared values of a run into the state of every parameter that keeps them.

        Args:
            run: The run.
            stays: Whether to write them into the tensors of the old values, where device and dtype are the same.
        """
        by_path: dict[Path, State] = {}
        for path, values in run.new_shared.items():
            old = run.scalars(path) if stays else {}
            by_path[path] = _unshared(run, values, old)
        for param, member in self.members.by_param.items():
            state, layout = self.of(param), member.layout
            if not state:
                continue
            for (path, name), key in by_state_key(layout.shared):
                if path in by_path:
                    state[key] = by_path[path][name]


class _Start(NamedTuple):
    """What first states are created with.

    Attributes:
        chains: The chain for each device.
        run: The run of `init`.
        routes: The chains, expanded in this run.
        shared: The initial shared values of its stages.
        stores: The store of each stage.
    """

    chains: dict[torch.device, GradientTransformation]
    run: OptimizerRun
    routes: dict[torch.device, Route]
    shared: dict[Path, dict[str, Any]]
    stores: dict[Path, Store]


def _unshared(run: OptimizerRun, values: State, old: State) -> State:
    """Return shared values in memory of their own: that of the old value, where device and dtype are the same."""
    taken = set(map(memory_of, old.values()))
    new_values = {
        name: run.memory.unshared(value, taken) for name, value in values.items()
    }
    for name, tensor in old.items():  # now: no value shares memory with another old one
        value = new_values.get(name)
        if (
            value is not None
            and value.device == tensor.device
            and value.dtype == tensor.dtype
        ):
            new_values[name] = tensor.copy_(value)
    return new_values


def _with_memory_apart(
    states: Mapping[Any, State], members: Collection[Tensor]
) -> dict[Any, State]:
    """Return states with copies of all tensors but the first of those that share memory."""
    slots = [states[param].values() for param in members if param in states]
    values = list(itertools.chain.from_iterable(slots))
    if _have_own_memory(values):
        return dict(states)
    memory = OwnMemory()
    apart = dict(states)
    for param in members:
        copies: State = {}
        for key, value in states.get(param, {}).items():
            if isinstance(value, Tensor):
                copy = memory.unshared(value)
                if copy is not value:
                    copies[key] = copy
        if copies:
            apart[param] = {**states[param], **copies}
    return apart


def _have_own_memory(values: list[Any]) -> bool:
    """Whether all values are plain tensors, none of which shares memory or is a part of what its memory holds."""
    if not TYPES.issuperset(map(type, values)):
        return False
    try:
        storages = list(map(Tensor.untyped_storage, values))
    except NotImplementedError:  # of a transform
        return False
    are_apart = len(set(map(STORAGE, storages))) == len(values)
    sizes = map(torch.UntypedStorage.nbytes, storages)
    return are_apart and list(sizes) == list(map(NBYTES, values))


def _one_of_each_kind(
    params: Iterable[Tensor], members: Mapping[Tensor, Member]
) -> list[Tensor]:
    """Return one of all parameters for which the rules do the same."""
    of_kind: dict[Any, Tensor] = {}
    for param in params:
        choices = tuple(members[param].choices.items())
        kind = None if is_lazy(param) else TensorKind.of(param)
        of_kind.setdefault((kind, choices), param)
    return list(of_kind.values())


# The functions that copy slots, by key.
Copies: TypeAlias = dict[str, Callable[[Tensor], Tensor]]


def _copies_for(leaf: Leaf, layout: Layout) -> Copies:
    """Return how to copy the initial slots of a leaf for others that start alike, in memory of their own."""
    copies: Copies = {}
    for operation in leaf.operations:
        for slot, key in layout.slots.get(operation.path, {}).items():
            is_zero = operation.starts_at_zero(slot)
            copies[key] = torch.zeros_like if is_zero else torch.clone
    return copies


def without_memory(param: Tensor) -> Tensor:
    """Return a tensor without memory in place of a parameter; the parameter itself if its class is a user's."""
    if is_sharded(param):
        return without_messages(param)
    if not is_plain(param.data):
        return param.detach()
    return torch.empty_like(param, device="meta", requires_grad=False)


def _on_meta(state: State) -> State:
    """Return a first state whose slots have no memory."""
    slots = {key: value.to("meta") for key, value in state.items() if key != "step"}
    return {"step": state["step"], **slots}


def without_messages(param: Tensor) -> Tensor:
    """Return a parameter, or for a sharded one a stand-in without memory, for which ranks exchange nothing."""
    if not is_sharded(param):
        return param.detach()
    return from_local_like(local(param.detach()).to("meta"), param)


def _first_state(run: OptimizerRun, leaf: Leaf, layout: Layout) -> State:
    """Return the flat state of a leaf after `initialize`; its shared values are those of leaves with state."""
    run.memory.register([leaf.inputs[1]])
    state = {"step": zero_steps()}
    for (path, slot), key in by_state_key(layout.slots):
        value = leaf.as_stored(leaf.new[path][slot])
        # Parameters that start later get theirs from the same expansion, whose numbers are tensors of its own.
        state[key] = value if value.ndim else value.clone()
    for path, keys in layout.shared.items():
        values = run.scalars(path) or run.new_shared[path]
        for name, key in keys.items():
            state[key] = values[name]
    return state


def _fitting(what: str, slot: Any, first: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a slot that fits a parameter of some dtype with this first slot: its dtype may be wider.

    A slot that was converted to the parameter's dtype is stored in the dtype of the first one.

    Raises:
        ValueError: If it does not fit.
    """
    if not isinstance(slot, Tensor):
        raise ValueError(f"{what} must be a tensor, got {describe(slot)}; {REFIT}")
    kind, needed = TensorKind.of(slot), TensorKind.of(first)
    if kind == needed:
        return slot
    if kind[::2] == needed[::2] and kind_of(kind.dtype) == kind_of(needed.dtype):
        if torch.promote_types(kind.dtype, needed.dtype) == kind.dtype:
            return slot
        if not first.ndim or slot.dtype == dtype:
            return slot.to(first.dtype)
    raise ValueError(f"{what} is {kind}, needs {needed}; {REFIT}")


REMEDY = (
    "load the state of an optimizer built from the same chain, or pass strict=False, which keeps fresh state for what "
    "is absent and carries unknown keys along"
)

# The page on states that users edit.
EDITING = "docs/howto/edit-an-optimizer.md"
REFIT = f"change it along with the parameter ({EDITING}), or reset the state: optimizer.state.pop(param)"

_NONE_MISSED = torch.zeros((), dtype=torch.int64, device="cpu")

# Slots that contain the counts of clocks and random rules.
COUNTS = ("step", LEAF_STEPS, MISSED, "mini_step", "skipped", "counter")


def matched(
    member: Member,
    saved: Entry,
    initial: Initial,
    strict: bool,
    saved_codes: Mapping[str, str],
    wrapper_keys: Collection[str],
    device_of: Callable[[str], torch.device],
) -> dict[str, Tensor]:
    """Convert a parameter's saved entry to the dtypes, codes and devices of its first state.

    Args:
        member: The parameter.
        saved: The entry, also in the formats of torch.optim and adam-atan2-pytorch.
        initial: The parameter's first state, whose slots may be stand-ins without memory.
        strict: Whether a missing or unknown slot is an error; otherwise unknown ones are kept unchanged.
        saved_codes: The label of each slot's code in the saved run.
        wrapper_keys: Keys that a wrapper has written into the present state. Other keys that are no slot of any link
            are also a wrapper's.
        device_of: Returns the device of a loaded slot.

    Returns:
        The state, including the keys of wrappers.

    Raises:
        ValueError: If a slot is missing, is unknown, belongs to another chain, or has another shape, kind or code.
    """
    layout, first, _ = initial
    if not (saved_codes or layout.codes or layout.shared or layout.owned):
        state = _as_it_is(saved, first, member.param, device_of)
        if state is not None:
            return state
    param, who = member.param, f"state of parameter {member.name!r}"
    complex_keys: set[str] = set()
    if param.is_complex():
        for key, value in {**saved, **first}.items():
            if isinstance(value, Tensor) and value.is_complex():
                complex_keys.add(key)
        param = as_real(param.detach())
        saved = real_views(saved)
        first = real_views(first)
    saved = _translated_entry(saved, first)
    try:
        saved = converted(saved, first, param, saved_codes, layout.coded_keys)
    except ValueError as error:
        raise ValueError(f"{who}: {error}") from None
    state = dict(first)
    for key, value in first.items():
        if key in saved:
            what = f"{who}: {key!r}"
            is_part = key in layout.coded_tensors
            state[key] = as_slot(what, key, saved[key], value, device_of(key), is_part)
        elif saved and layout.follows(key):
            del state[key]  # computed when the weights are known: at the next step
        elif strict and saved:
            raise ValueError(f"{who} lacks {key!r}; {REMEDY}")
    for key in sorted(saved.keys() - first.keys()):
        if layout.follows(key):
            continue
        value = saved[key]
        if key == MISSED:
            state[key] = as_slot(f"{who}: {key!r}", key, value, _NONE_MISSED)
            continue
        if strict and key not in wrapper_keys and is_slot_name(key):
            raise ValueError(
                f"{who} has {key!r}, which this chain does not use; {REMEDY}"
            )
        if isinstance(value, Tensor):
            # As torch.optim loads it.
            dtype = param.dtype if param.is_floating_point() else value.dtype
            value = value.detach().to(param.device, dtype)
        state[key] = value
    for key in complex_keys & state.keys():
        state[key] = as_complex(state[key])
    return state


def _as_it_is(
    saved: Entry,
    first: State,
    param: Tensor,
    device_of: Callable[[str], torch.device],
) -> State | None:
    """Return a saved entry that is like a first state, on its devices; None for others."""
    if saved.keys() != first.keys() or param.is_complex():
        return None
    likes, values = list(first.values()), list(map(saved.__getitem__, first))
    if not TYPES.issuperset(map(type, (*likes, *values))):
        return None
    for attribute in (DTYPE, SHAPE):
        if list(map(attribute, values)) != list(map(attribute, likes)):
            return None
    state: State = {}
    for key, value in zip(first, values, strict=True):
        if value.is_meta:
            return None
        if key.rpartition(".")[2] in COUNTS:
            count = float(value) if value.numel() == 1 else -1.0
            if not (count.is_integer() and 0 <= count <= FLOAT32_COUNTS):
                return None
        state[key] = value.detach().to(device_of(key))
    return state


def _translated_entry(saved: Entry, first: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return an entry without None values, with its count under "step"."""
    entry = {key: value for key, value in saved.items() if value is not None}
    # adam-atan2-pytorch's name of the count.
    if "steps" in entry and "steps" not in first:
        entry["step"] = entry.pop("steps")
        # Its rates are saved divided by the first learning rate.
        if "initial_lr" in first:
            entry.setdefault("initial_lr", 1.0)
    if "step" not in entry and entry.keys() & first.keys() == {"momentum_buffer"}:
        # torch's SGD keeps no count, but a buffer means that it has stepped.
        entry["step"] = 1.0
    return entry


def misfits_of(saved: Entry, first: Mapping[str, Tensor]) -> int:
    """Return the number of slots that only one of a saved entry and a first state has; 0 for an empty entry."""
    if not saved or saved.keys() == first.keys():
        return 0
    entry = _translated_entry(saved, first)
    return len(_slots_among(entry.keys() - {MISSED}) ^ _slots_among(first.keys()))


def _slots_among(keys: Collection[str]) -> set[str]:
    """Return the keys without those of auxiliary tensors, such as `exp_avg.scale` of `exp_avg`."""
    return {key for key in keys if str(key).rpartition(".")[0] not in keys}


def as_slot(
    what: str,
    key: str,
    saved: Any,
    first: Tensor,
    device: torch.device | None = None,
    is_part: bool = False,
) -> Tensor:
    """Return a saved value in the form of a first slot, after checking its shape, kind and value.

    It is a copy only if it has another dtype or device.

    Args:
        what: The slot, for error messages.
        key: Its key.
        saved: The saved value; a whole tensor is divided as the first slot is.
        first: The first slot.
        device: The device of the result; None for that of the first slot, which may be a stand-in. A stand-in for a
            saved value has no values to copy.
        is_part: Whether it is a part of a coded slot, which is no count, whatever its name.
    """
    is_count = key.rpartition(".")[2] in COUNTS and not is_part
    value = saved if isinstance(saved, Tensor) else torch.as_tensor(saved)
    if isinstance(saved, float):  # of which float32 may round a count
        value = torch.tensor(saved, dtype=torch.float64)
    if is_count and value.numel() == 1:  # torch also counts in tensors of shape (1,)
        value = value.reshape(first.shape)
    if value.shape != first.shape:
        shapes = f"{tuple(value.shape)}, needs {tuple(first.shape)}"
        raise ValueError(f"{what} has shape {shapes}")
    dtype = first.dtype
    if value.dtype != dtype:
        kinds = {kind_of(value.dtype), kind_of(dtype)}
        if len(kinds) > 1 and not (value.ndim == 0 and kinds == {"int", "float"}):
            raise ValueError(f"{what} has dtype {value.dtype}, needs {dtype}")
        if "int" in kinds and not dtype.is_floating_point and not _is_whole(value):
            raise ValueError(f"{what} must be an integer, got {value.item():g}")
    if is_count:
        largest = _largest_count(what, value)
        if dtype.is_floating_point and largest > FLOAT32_COUNTS:
            dtype = torch.float64
    value = _divided_like(what, value.detach(), first)
    if value.is_meta:
        device = value.device
    return value.to(first.device if device is None else device, dtype)


def _largest_count(what: str, value: Tensor) -> float:
    """Return the largest of some counts; one is read once from its device.

    Raises:
        ValueError: If one of them is no count.
    """
    if value.numel() == 1:
        count = float(value)
        is_whole, is_negative = count.is_integer(), count < 0
    else:
        is_whole, is_negative = _is_whole(value), not bool((value >= 0).all())
        count = float(value.max()) if value.numel() else 0.0
    if is_negative or not is_whole:
        raise ValueError(f"{what} must be a non-negative integer, got {count:g}")
    return count


def _divided_like(what: str, value: Any, first: Any) -> Any:
    """Return a saved tensor divided among ranks as a first slot is; only other divisions on its mesh need messages."""
    if not is_sharded(first) or (
        is_sharded(value) and value.placements == first.placements
    ):
        return value
    mesh = first.device_mesh
    if not is_sharded(value):
        pieces = pieces_at(tuple(first.shape), mesh, tuple(first.placements))
        piece = pieces[team_of(mesh).rank]
        return from_local_like(value[piece.window].contiguous(), first)
    if value.device_mesh != mesh:
        raise ValueError(
            f"{what} is divided on {value.device_mesh}, its parameter on {mesh}; load it by "
            "torch.distributed.checkpoint, or pass whole tensors"
        )
    return distributed_like(value, first)


def _is_whole(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(
        value.isfinite() & (value == value.round())
    )
