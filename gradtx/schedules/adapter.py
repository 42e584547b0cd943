"""Adapt schedules to torch schedulers, for any torch optimizer."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from gradtx.base.exact import Schedule
from gradtx.base.messages import describe, warn_user
from gradtx.schedules._factory import check_schedule

__all__ = ["as_lr_scheduler"]


class ScheduleLR(LRScheduler):
    """Set each group's learning rate to the value of its schedule; created by `as_lr_scheduler`."""

    def __init__(
        self, optimizer: Optimizer, schedules: Sequence[Schedule], last_epoch: int = -1
    ):
        self.schedules = tuple(schedules)
        seen: set[int] = set()
        for group in optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                # torch writes to the tensors in place, and groups may share one.
                if id(group["lr"]) in seen:
                    group["lr"] = group["lr"].clone()
                seen.add(id(group["lr"]))
            # torch requires this entry to resume; a schedule needs only the step.
            group.setdefault("initial_lr", copy.deepcopy(group["lr"]))
        wrapped: Any = optimizer
        while hasattr(wrapped, "optimizer"):  # accelerate wraps optimizers
            wrapped = wrapped.optimizer
        # A gradtx optimizer: these rates may override a schedule in its chain.
        if hasattr(wrapped, "expect_scheduler"):
            wrapped.expect_scheduler()
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        groups = len(self.optimizer.param_groups)
        schedules = self.schedules
        if len(schedules) == 1:
            schedules = schedules * groups
        _check_number(len(schedules), groups)
        return [float(schedule(self.last_epoch)) for schedule in schedules]

    def state_dict(self) -> dict[str, Any]:
        """Return the count and the last rates without the schedules, as torch's LambdaLR does."""
        return {
            name: value
            for name, value in super().state_dict().items()
            if name != "schedules"
        }


def as_lr_scheduler(
    optimizer: Optimizer, schedule: Schedule | Sequence[Schedule], last_epoch: int = -1
) -> LRScheduler:
    """Return a torch scheduler that sets `group["lr"] = schedule(step)`, for any torch optimizer.

    Call its `step()` after `optimizer.step()`, as with torch's schedulers. The previous rate of a group is ignored: a
    schedule returns rates, not factors.

    Args:
        optimizer: A torch.optim.Optimizer.
        schedule: One schedule for all groups, including groups added later, or a list with one schedule per group. A
            warning reports that one schedule replaces different rates.
        last_epoch: The last finished step, to resume; -1 to start. The next update uses `schedule(last_epoch + 1)`.

    Returns:
        A torch.optim.lr_scheduler.LRScheduler. Its state does not contain the schedules: create it with the same
        schedules before `load_state_dict`.

    Raises:
        TypeError: If `optimizer` is not a torch optimizer, or if a schedule is not a Schedule.
        ValueError: If the length of the list differs from the number of groups.

    Example:
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        >>> scheduler = gradtx.as_lr_scheduler(
        ...     optimizer, gradtx.linear_schedule(1.0, 0.5, total_iters=2)
        ... )
        >>> for _ in range(3):
        ...     print(scheduler.get_last_lr())
        ...     optimizer.step()
        ...     scheduler.step()
        [0.5]
        [0.75]
        [1.0]
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"as_lr_scheduler: optimizer must be a torch.optim.Optimizer, got {describe(optimizer)}"
        )
    if not isinstance(schedule, tuple | list):
        check_schedule("as_lr_scheduler: schedule", schedule)
        _warn_of_different_rates(optimizer)
        return ScheduleLR(optimizer, [cast("Schedule", schedule)], last_epoch)
    for i, schedule_of_group in enumerate(schedule):
        check_schedule(f"as_lr_scheduler: schedule[{i}]", schedule_of_group)
    _check_number(len(schedule), len(optimizer.param_groups))
    return ScheduleLR(optimizer, schedule, last_epoch)


def _warn_of_different_rates(optimizer: Optimizer) -> None:
    """Warn if one schedule is about to replace the rates of groups that differ, such as those of a fallback."""
    rates: list[float] = []
    for group in optimizer.param_groups:
        # 0.0 is a placeholder in groups whose chain has no rate; None is refused later.
        rate = float(group["lr"] or 0.0)
        if rate and rate not in rates:
            rates.append(rate)
    if len(rates) > 1:
        shown = ", ".join(f"{rate:g}" for rate in rates)
        warn_user(
            f"as_lr_scheduler: the groups have different learning rates ({shown}), and one schedule gives all of them "
            "the same; pass a list with one schedule per group"
        )


def _check_number(schedules: int, groups: int) -> None:
    if schedules != groups:
        raise ValueError(
            f"as_lr_scheduler: the number of schedules must equal the number of parameter groups, "
            f"got {schedules} and {groups}"
        )
