"""Steps that the device counts: under a GradScaler, and in a CUDA graph.

A GradScaler has the device unscale gradients, and skip a step if a gradient is not finite. torch passes two 0-d
tensors, in the attributes `grad_scale` and `found_inf`. The host reads neither, so it does not know how many steps were
made.

A CUDA graph (`capturable=True`) replays the kernels of a captured step without Python, on the same memory and with the
host's numbers at the time of capture. So counts are tensors that the step itself advances, and new state is written
into the old tensors.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gradtx.base import torch_names as _torch
from gradtx.base.dtensor import local
from gradtx.base.exact import exact
from gradtx.combinators.frame import Enter, Frame, InnerClock
from gradtx.distributed.redistribution import full_tensor
from gradtx.execution.runs import Run, Scope
from gradtx.optim.core import Core
from gradtx.optim.parameters import Members
from gradtx.optim.run import DeviceCount, Member, as_step, most_of
from gradtx.transform import chain


@dataclass(eq=False)
class Scaling:
    """A GradScaler's request for one step: multiply gradients by `inverse`, and change nothing unless `proceed`."""

    inverse: Tensor
    proceed: Tensor
    _by_device: dict[torch.device, tuple[Tensor, Tensor]] = field(
        default_factory=dict[torch.device, tuple[Tensor, Tensor]]
    )

    @classmethod
    def requested_by(cls, optimizer: Any) -> Scaling:
        """Return the request that a scaler has set on the optimizer."""
        scale = getattr(optimizer, "grad_scale", None)
        found_inf = full_tensor(torch.as_tensor(optimizer.found_inf)).reshape(())
        device = found_inf.device
        if scale is None:
            scale = torch.ones((), device=device)
        scale = full_tensor(scale).to(device)
        inverse = exact(scale, device).reshape(()).reciprocal()
        return cls(inverse, proceed=found_inf == 0)

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return `inverse` and `proceed` on a device."""
        if device not in self._by_device:
            self._by_device[device] = self.inverse.to(device), self.proceed.to(device)
        return self._by_device[device]

    def unscale(self, params: Iterable[Tensor]) -> None:
        """Unscale the gradients of parameters in place, because users of a scaler expect that."""
        # torch unscales a list of tensors of one device and dtype at once.
        gradients_of_kind: dict[Any, list[Tensor]] = defaultdict(list)
        for param in params:
            if param.grad is not None:
                gradient = local(param.grad).detach()
                if gradient.is_sparse:  # its own memory
                    gradient = gradient._values()
                gradients_of_kind[gradient.device, gradient.dtype].append(gradient)
        for (device, _), gradients in gradients_of_kind.items():
            inverse, _ = self.on(device)
            _torch.unscale_(gradients, inverse.to(torch.float32))


def unscaling(run: Run, scaling: Scaling) -> Enter:
    """Create a stateless frame around the whole chain that applies a `Scaling`."""

    def enter(update: Tensor, state: Any, param: Any, ctx: Any) -> Any:
        inverse, _ = scaling.on(update.device)
        return update * inverse, state

    def ticks(values: Any, sums: Any) -> Any:
        _, proceed = scaling.on(run.device)
        return proceed, values

    frame = Frame(chain(), enter=enter, clock=InnerClock(ticks, counts=False))
    return Enter(frame, Scope(run, (), 0, []), (), "GradScaler")


def scaling_from(run: Run, take: Callable[[], Tensor]) -> Enter:
    """Create the frame of `unscaling` from the next arguments of a program."""
    return unscaling(run, Scaling(inverse=take(), proceed=take()))


def _put_behind(members: Iterable[Member], count: int) -> None:
    """Note that the counts on the device are no longer near the largest, if a user has written this one."""
    for member in members:
        other = member.count
        if isinstance(other, DeviceCount):
            other.behind = max(other.behind, count - other.fewest)


def move_counts(members: Iterable[Member], device: torch.device | None) -> None:
    """Move the counts of parameters to a device or, if that is None, to the host, synchronizing where necessary."""
    members = list(members)
    moved: dict[int | DeviceCount, int | DeviceCount] = {}
    most = 0
    arriving = [m.count for m in members if m.state and isinstance(m.count, int)]
    if device is not None and arriving:
        most = max(most_of(member.count) for member in members)
        _put_behind(members, max(arriving))
    for member in members:
        count = member.count
        if not member.state or isinstance(count, DeviceCount) == (device is not None):
            continue
        if isinstance(count, DeviceCount):
            if count not in moved:
                moved[count] = int(count.made)
        elif count not in moved:
            # A fill, unlike a copy from the host, does not synchronize.
            made = torch.full((), count, dtype=torch.int64, device=device)
            moved[count] = DeviceCount(made, count, count, most - count)
        step = torch.as_tensor(member.state["step"])
        # One that a user has written on the device keeps its memory, which a graph may read.
        if device is None or step.device != device:
            member.state["step"] = as_step(moved[count], step.dtype)
        member.set_count(moved[count])


def keep_counts_in_place(
    members: Iterable[Member], after: Mapping[DeviceCount, DeviceCount]
) -> None:
    """Write new counts into the tensors of the old counts, unless a parameter that did not step needs the old count."""
    members = list(members)
    counts_in_use = {member.count for member in members}
    kept_counts: dict[int | DeviceCount, DeviceCount] = {}
    for old, new in after.items():
        if old not in counts_in_use:
            old.made.copy_(new.made)
            old.bound = new.bound
            old.least = new.least
            old.behind = new.behind
            kept_counts[new] = old
    for member in members:
        if member.count in kept_counts:
            member.set_count(kept_counts[member.count])


# CUDA graphs.


def check_capturable(members: Members) -> None:
    """Check that steps of the chain can be captured.

    Raises:
        ValueError: If a link needs the host, or if there are several devices.
    """
    who = f"{members.who}: capturable"
    operations = list(members.expanded.route.walk())
    clocks = [
        operation.path
        for operation in operations
        if operation.traits.has_clock or operation.traits.restarts_inner
    ]
    for operation in operations:
        path, traits = operation.path, operation.traits
        around = [".".join(clock) for clock in clocks if clock == path[: len(clock)]]
        fault = None
        if not traits.capturable:
            fault = (
                "has the host wait, for a value or a factorization; use another link"
            )
        elif traits.waits_at_first and around:
            fault = f"has the host wait in first updates, which {around[0]} may begin in any step; move it outside"
        if fault is not None:
            raise ValueError(f"{who}: {'.'.join(path)} {fault}")
    if len({param.device for param in members.by_param}) > 1:
        raise ValueError(
            f"{who}: the parameters are on several devices; create one optimizer per device"
        )


def check_capture(core: Core, members: Iterable[Member]) -> None:
    """Check that a graph may replay the step of some members that is being captured.

    Raises:
        RuntimeError: If the step would count on the host, or if it is the first step with these gradients.
    """
    who, traits = core.members.who, core.traits
    if not core.capturable:
        raise RuntimeError(
            f"{who}: a CUDA graph would replay this step with its present count; pass capturable=True to {who}"
        )
    counts: set[int | DeviceCount] = set()
    waiting: set[int | DeviceCount] = set()
    for member in members:
        steps = traits.takes_none or member.param.grad is not None
        (counts if steps else waiting).add(member.count)
    if any(isinstance(count, int) for count in counts) or counts & waiting:
        raise RuntimeError(
            f"{who}: the first step with these gradients creates state, which a CUDA graph cannot replay; call "
            "step() once before the capture"
        )
    if traits.waits_at_first and min((count.least for count in counts), default=1) == 0:  # type: ignore[union-attr]
        raise RuntimeError(
            f"{who}: a GradScaler may have skipped all steps so far, so that the captured step might be the first, "
            "which has the host wait; call step() once without a scaler before the capture"
        )
