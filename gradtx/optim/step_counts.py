"""The counts of one step: of each parameter, and of the updates that schedules follow; what the next step compares."""

from __future__ import annotations

import contextlib
import itertools
import operator
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from gradtx.base import torch_names as _torch
from gradtx.base.exact import CPU
from gradtx.execution.execute import Leaf
from gradtx.execution.runs import Place
from gradtx.optim.device_counts import Scaling, keep_counts_in_place, move_counts
from gradtx.optim.missed import MissedUpdates
from gradtx.optim.run import (
    COUNT,
    FLOAT32_COUNTS,
    MISSED,
    STATE,
    STEP,
    DeviceCount,
    Member,
    as_step,
    missed_in,
)
from gradtx.state.layout import State

DICTS = frozenset((dict,))
IN_MISSED = operator.itemgetter(MISSED)


class LastCounts:
    """The counts of all parameters after a step, in states that the next step need not look up again.

    Counts on the host are compared by value: collectives, `.data`, NumPy arrays and other processes write them without
    a version. Those on an accelerator, which the host would have to wait for, are compared by version and address here;
    `DeviceCount.follow` reads them there. A parameter without a count has not stepped so far.

    Args:
        members: The parameters, in states.
        states: The states of the optimizer's parameters.

    Attributes:
        missed: The updates that the parameter with the most updates has missed, to be read at each step; None if none.
        all_have_missed: Whether the states of all parameters with slots have this tensor.
        largest: The largest count when `hold` was true; None if it is on an accelerator.
    """

    largest: int | None = None

    def __init__(self, members: list[Member], states: Mapping[Tensor, State]):
        self._members = members
        self._counted = [member for member in members if "step" in member.state]
        self._params, self._states = list(states), list(states.values())
        self._sizes = list(map(len, self._states))
        self._keys = list(itertools.chain.from_iterable(self._states))
        self._steps = [member.state["step"] for member in self._counted]
        self._have_steps = ["step" in state for state in self._states]
        self._have_missed = [MISSED in state for state in self._states]
        steps = map(STEP, itertools.compress(self._states, self._have_steps))
        self._steps_in_states = list(steps)
        self.missed = missed_in(member.state for member in members)
        all_missed = map(IN_MISSED, itertools.compress(self._states, self._have_missed))
        self._missed_in_states = list(all_missed)
        # Those with slots; `hold` notices changes.
        self.all_have_missed = self.missed is not None and all(
            member.state.get(MISSED) is self.missed
            for member in members
            if member.layout.keys
        )
        self._on_host = all(isinstance(member.count, int) for member in self._counted)
        self._writes = self._writes_so_far()
        # Those with slots, and which have all that their groups need, while these have these structures.
        self._rows: list[Member] = []
        self._structures: list[Any] = []
        self._are_complete: list[bool] = [False] * len(members)

    @classmethod
    def of(
        cls, members: list[Member], states: Mapping[Tensor, State]
    ) -> LastCounts | None:
        """Return what holds the counts of members, if writes to it are noticed."""
        # Entries that belong to no parameter may be anything.
        if not DICTS.issuperset(map(type, states.values())):
            return None
        counted = [member for member in members if "step" in member.state]
        steps: list[Any] = [member.state["step"] for member in counted]
        if not all(isinstance(step, Tensor) for step in steps):
            return None
        # Each count is read where it is, without waiting. Inference tensors have no versions.
        on_host = [isinstance(member.count, int) for member in counted]
        if on_host != [step.device == CPU for step in steps]:
            return None
        if not all(on_host) and (any(on_host) or any(map(Tensor.is_inference, steps))):
            return None
        with contextlib.suppress(RuntimeError):  # a stand-in without memory
            counts = cls(members, states)
            return counts if counts.hold(members, states) else None
        return None

    def hold(self, members: list[Member], states: Mapping[Tensor, State]) -> bool:
        """Whether these are the members of the last step, in unchanged states."""
        if members is not self._members or len(states) != len(self._states):
            return False
        # In their order: a look-up would call a function of Python for each parameter.
        present = list(states.values())
        if not (
            all(map(operator.is_, states, self._params))
            and all(map(operator.is_, present, self._states))
            and list(map(len, present)) == self._sizes
            and list(itertools.chain.from_iterable(present)) == self._keys
        ):
            return False
        steps = map(STEP, itertools.compress(present, self._have_steps))
        if not all(map(operator.is_, steps, self._steps_in_states)):
            return False
        if self._missed_in_states:
            all_missed = map(IN_MISSED, itertools.compress(present, self._have_missed))
            if not all(map(operator.is_, all_missed, self._missed_in_states)):
                return False
        if not self._on_host:
            return self._writes_so_far() == self._writes
        # Steps under a GradScaler have left counts of the device, which equal no number.
        counts = list(map(COUNT, self._counted))
        if list(map(Tensor.tolist, self._steps)) != counts:
            return False
        self.largest = max(counts, default=0)
        return True

    def complete_rows(self, step: Any) -> list[Member] | None:
        """Return the parameters with slots, if all that have gradients have the slots that their groups need."""
        if self._structures != step.structures:
            return None
        # A parameter may have its first gradient.
        if any(map(operator.gt, step.have_gradients, self._are_complete)):
            return None
        return self._rows

    def note(self, step: Any) -> None:
        """Note the rows of the step that ends now, which has written the counts."""
        self._rows = step.rows
        if self._structures != step.structures:
            self._are_complete = step.have_gradients
        elif not step.repeats_last:
            are_complete = map(operator.or_, self._are_complete, step.have_gradients)
            self._are_complete = list(are_complete)
        self._structures = step.structures
        # Gradients have arrived since it began, or parameters without one may need slots in the next step.
        if not step.begins_with_all or (
            step.core.traits.takes_none and step.rows is not self._members
        ):
            self._structures = []
        if not self._on_host:
            self._writes = self._writes_so_far()

    def _writes_so_far(self) -> Any:
        """Return how often counts on an accelerator were written, as far as it is known, and where they are."""
        if self._on_host:
            return None
        versions = list(map(_torch.version_of, self._steps))
        return versions, list(map(Tensor.data_ptr, self._steps))


class StepCounts:
    """The counts of one step, before it and after it.

    Args:
        core: The `Core` of the optimizer.
        members: All parameters, with the state and count before the step.
        device: The device of the step.
        scaling: What a GradScaler asks for.

    Attributes:
        on_host: Whether the host may read counts and numbers; otherwise the device counts.
        increment: What the step adds to counts.
        are_replaced: Whether states have new tensors, as after leaves have run one at a time.
        updates: The number of finished updates, in which any parameter had a gradient: schedules follow it.
    """

    updates: int | Tensor

    def __init__(
        self,
        core: Any,
        members: list[Member],
        device: torch.device,
        scaling: Scaling | None,
    ):
        last_counts = core.last_counts
        may_count_on_device = scaling is not None or core.capturable
        on_device = may_count_on_device and not core.counts_on_host()
        self._core = core
        self._members = members
        self._device = device
        self.on_host = not on_device and scaling is None
        self.increment: int | Tensor = 1
        # For each count on the device, the count after the step.
        self._after: dict[Any, DeviceCount] = {}
        self.are_replaced = False
        self._has_counted = False
        largest = None
        if on_device:
            if scaling is not None:
                _, self.increment = scaling.on(device)
            move_counts(members, device)
            largest = self._largest_on_device()
        elif last_counts is not None:
            largest = last_counts.largest
        if largest is None:
            if DeviceCount in map(type, map(COUNT, members)):
                move_counts(members, None)
            largest = max(map(COUNT, members), default=0)
        if not on_device and largest >= FLOAT32_COUNTS:
            self._keep_exact()
        self._largest: int | Tensor = largest
        missed = (
            missed_in(map(STATE, members))
            if last_counts is None
            else last_counts.missed
        )
        # Schedules follow the updates before this step.
        self.updates = largest
        self._missed: MissedUpdates | None = None
        if on_device or missed is not None:
            is_stored = last_counts is not None and last_counts.all_have_missed
            counting_device = device if on_device else CPU
            self._missed = MissedUpdates(
                members, missed, counting_device, largest, is_stored
            )
            self.updates = self._missed.before

    def _largest_on_device(self) -> Tensor:
        """Compute the counts after the step, and return the largest count before it."""
        # Parameters without state have a count on the host.
        counts = self._counts_on_device()
        self._after = {count: count.after(self.increment) for count in counts}
        if not counts:
            return torch.zeros((), dtype=torch.int64, device=self._device)
        if max(count.bound for count in counts) >= FLOAT32_COUNTS:
            self._keep_exact()
        return torch.stack([count.made for count in counts]).amax()

    def _counts_on_device(self) -> list[DeviceCount]:
        """Return the counts on the device, as they are in the states."""
        steps: dict[DeviceCount, Any] = {}
        for member in self._members:
            if isinstance(member.count, DeviceCount):
                steps.setdefault(member.count, member.state["step"])
        for count, step in steps.items():
            count.follow(step)
        return list(steps)

    def _keep_exact(self) -> None:
        """Store counts that float32 may not hold after this step in float64."""
        if _torch.is_captured(self._device):  # state keeps its memory
            return
        for member in self._members:
            step = member.state.get("step")
            if isinstance(step, Tensor) and step.dtype != torch.float64:
                member.state["step"] = as_step(member.count, torch.float64)
                member.set_count(member.count)
                self._core.last_counts = None

    def count_up(self, bundles: Iterable[Any]) -> None:
        """Write the counts after the step into the states of the members of bundles that are done."""
        after = self._after
        self._has_counted = True
        counted: list[Member] = []  # on the host
        on_device: list[Member] = []
        for bundle in bundles:
            if after:
                for member in bundle.stepping:
                    (counted if isinstance(member.count, int) else on_device).append(
                        member
                    )
            else:
                counted += bundle.stepping
        for member in counted:
            member.count += 1  # type: ignore[operator]
        try:
            _torch.count_up_(list(map(STEP, map(STATE, counted))))
        except (RuntimeError, TypeError):  # the user has written an integer
            for member in counted:
                step = torch.as_tensor(member.state["step"])
                member.state["step"] = step.fill_(member.count)  # type: ignore[arg-type]
        if on_device:
            later = [after[member.count] for member in on_device]
            steps = [member.state["step"] for member in on_device]
            _torch.copy_each_(steps, list(map(as_step, later)))
            for member, count in zip(on_device, later, strict=True):
                member.set_count(count)

    def count_up_leaf(self, leaf: Leaf) -> None:
        """Count the step of a leaf that has finished."""
        self._has_counted = True
        member, step = leaf.key, leaf.state["step"]
        if not self._after:
            leaf.state["step"] = step + self.increment
            member.count += 1
            return
        after = self._after[member.count]
        if self._core.capturable:
            step.copy_(after.made)
        else:
            leaf.state["step"] = as_step(after, step.dtype)
        member.set_count(after)

    def end(self) -> None:
        """Write the missed updates, and keep counts of the device where graphs find them."""
        core, missed = self._core, self._missed
        after = list(map(COUNT, self._members))
        if missed is None and self._has_counted and max(after) == self._largest:
            # The parameter with the most updates has missed this one.
            missed = MissedUpdates(self._members, None, CPU, self._largest)
            self._missed = missed
        if missed is not None and missed.end(
            after, self.increment, core.capturable, self._has_counted
        ):
            core.last_counts = None
        if core.capturable:
            keep_counts_in_place(core.members.by_param.values(), self._after)

    def shown(self, place: Place) -> int | None:
        """Return the count that a schedule follows after the step; None if a captured step would wait for it."""
        core = self._core
        has_own_clock = (
            bool(core.traits.clocks) and core.members.clock_path(place) is not None
        )
        if core.capturable and has_own_clock:
            return None
        if self.on_host and not (has_own_clock or self.are_replaced):
            largest = max(map(COUNT, self._members), default=0)
            return largest if self._missed is None else self._missed.updates(largest)
        return core.states.count(place)
