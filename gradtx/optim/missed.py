"""The updates that the parameter with the most updates has missed, which schedules count as well.

A schedule follows the updates in which any parameter had a gradient. These are the largest count, and the updates in
which it did not rise: their number is in the state of each parameter, as `missed_updates`, once it may not be 0. It
does not change in a step of all parameters, and counts that a user writes move the schedule by as much.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradtx.optim.run import COUNT, MISSED, DeviceCount, Member, most_of


class MissedUpdates:
    """The missed updates before and after one step.

    Args:
        members: All parameters, with the state and count before the step.
        value: The missed updates in their states; None for 0.
        device: The device that counts.
        largest: The largest of these counts.
        is_stored: Whether the states of all parameters with slots are known to have `value` itself.

    Attributes:
        before: The number of updates before the step.
    """

    def __init__(
        self,
        members: list[Member],
        value: Any,
        device: torch.device,
        largest: int | Tensor,
        is_stored: bool = False,
    ):
        self._members = members
        self._counts: list[Any] = []
        if not isinstance(largest, int):
            self._counts = list(map(COUNT, members))
        self._largest = largest
        is_usable = isinstance(value, Tensor) and value.device == device
        if not (value is None or is_usable):  # the other one counted before
            value = torch.full((), int(value), dtype=torch.int64, device=device)
        self._value: Tensor | None = value
        self._stored = value if is_stored else None
        self.before = largest if value is None else self.updates(largest)

    def updates(self, largest: int | Tensor) -> Any:
        """Return the number of updates when the largest count is this one."""
        if self._value is None:
            return largest
        return largest + (int(self._value) if isinstance(largest, int) else self._value)

    def end(
        self, after: list[Any], increment: int | Tensor, stays: bool, has_counted: bool
    ) -> bool:
        """Write the missed updates after the step; return whether states have another tensor now.

        Args:
            after: The counts of the parameters after the step.
            increment: The increment of the step.
            stays: Whether a graph may repeat the step when the host knows other counts.
            has_counted: Whether a count has risen.
        """
        if isinstance(self._largest, int):
            change: int | Tensor = int(has_counted and max(after) == self._largest)
        else:
            change = self._change_on_device(after, increment, stays)
        if isinstance(change, Tensor) or change:
            self._add(change)
        if self._value is None or self._value is self._stored:
            return False
        return self._store(self._value)

    def _change_on_device(
        self, after: list[Any], increment: int | Tensor, stays: bool
    ) -> int | Tensor:
        """Return by how much the missed updates rise; 0 if the host knows that they do not."""
        pairs = list(zip(self._counts, after, strict=True))
        rising = {before for before, now in pairs if now is not before}
        others = {now for before, now in pairs if now is before}
        if not rising:
            return 0
        has_largest = any(count.behind == 0 for count in rising)
        for count in others:
            if isinstance(count, DeviceCount):
                count.behind += 1
        may_repeat = stays and any(map(most_of, others))
        if has_largest and self._value is None and not may_repeat:
            return 0
        counts = {count for count in after if isinstance(count, DeviceCount)}
        largest = torch.stack([count.made for count in counts]).amax()
        return self._largest + increment - largest

    def _add(self, change: int | Tensor) -> None:
        if self._value is None:
            device = (
                change.device if isinstance(change, Tensor) else torch.device("cpu")
            )
            self._value = torch.zeros((), dtype=torch.int64, device=device)
        elif self._value.is_inference() and not torch.is_inference_mode_enabled():
            self._value = self._value.clone()
        self._value += change

    def _store(self, value: Tensor) -> bool:
        """Write the tensor into the states of all parameters with slots; return whether one lacked it."""
        has_changed = False
        for member in self._members:
            has_slots = member.layout.keys and member.state  # or they were removed
            if has_slots and member.state.get(MISSED) is not value:
                member.state[MISSED] = value
                has_changed = True
        return has_changed
