"""The counts of one step: of each parameter, and of the updates that schedules follow."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from gradtx.base import torch_names as _torch
from gradtx.base.exact import CPU
from gradtx.execution.execute import Leaf
from gradtx.execution.runs import Place
from gradtx.optim.core import Core
from gradtx.optim.device_counts import Scaling, keep_counts_in_place, move_counts
from gradtx.optim.missed import MissedUpdates
from gradtx.optim.run import (
    COUNT,
    FLOAT32_COUNTS,
    STATE,
    STEP,
    DeviceCount,
    Member,
    as_step,
    missed_in,
)


class StepCounts:
    """The counts of one step, before it and after it.

    Args:
        core: The core of the optimizer.
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
        core: Core,
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
