"""Steps under a GradScaler: the device unscales gradients, and skips a step if a gradient is not finite.

torch passes two 0-d tensors, in the attributes `grad_scale` and `found_inf`. The host reads neither, so it does not
know how many steps were made, and counts are kept on the device as well.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gradtx import _torch
from gradtx._exact import exact
from gradtx._runs import Run, Scope
from gradtx._sharding import full_tensor, local
from gradtx.combinators.frame import Frame, FrameRun, InnerClock
from gradtx.core import chain

if TYPE_CHECKING:
    from gradtx.optim._member import Member


@dataclass(eq=False)
class Count:
    """A step count on the device; parameters with the same count share one object.

    Attributes:
        made: The number of steps made, 0-d int64.
        bound: An upper bound known to the host, which includes skipped steps.
    """

    made: Tensor
    bound: int

    @property
    def most(self) -> int:
        """The number of steps as far as the host knows it without synchronizing."""
        return int(self.made) if self.made.device.type == "cpu" else self.bound

    def after(self, tick: int | Tensor) -> Count:
        """Return the count after a step that adds `tick`."""
        return Count(self.made + tick, self.most + 1)

    def copy_from(self, other: Count) -> None:
        """Copy another count into this one's tensor."""
        self.made.copy_(other.made)
        self.bound = other.bound

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.made = state["made"]
        # The name in version 0.1.
        self.bound = state["bound"] if "bound" in state else state["_bound"]


def on_device(number: int | Tensor, device: torch.device) -> Tensor:
    """Return an integer as a 0-d tensor on the device; a fill, unlike a copy from the host, does not synchronize."""
    if isinstance(number, Tensor):
        return number.to(device)
    return torch.full((), number, dtype=torch.int64, device=device)


def highest(counts: Collection[int | Count]) -> int | Tensor:
    """Return the largest count: a tensor if the counts are on the device, an int if they are on the host."""
    on_devices = [count.made for count in counts if isinstance(count, Count)]
    if on_devices:
        return torch.stack(on_devices).amax()
    return max((count for count in counts if isinstance(count, int)), default=0)


@dataclass(eq=False)
class Scaling:
    """A GradScaler's request for one step: multiply gradients by `inverse`, and change nothing unless `proceed`."""

    inverse: Tensor
    proceed: Tensor
    _placed: dict[torch.device, tuple[Tensor, Tensor]] = field(
        default_factory=dict[torch.device, tuple[Tensor, Tensor]]
    )

    @classmethod
    def requested_by(cls, optimizer: torch.optim.Optimizer) -> Scaling | None:
        """Return the request that a scaler has set on the optimizer, if any."""
        flag: Any = getattr(optimizer, "found_inf", None)
        scale: Any = getattr(optimizer, "grad_scale", None)
        if flag is None:
            return None
        flag = full_tensor(torch.as_tensor(flag)).reshape(())
        scale = (
            torch.ones((), device=flag.device)
            if scale is None
            else full_tensor(scale).to(flag.device)
        )
        return cls(exact(scale, flag.device).reshape(()).reciprocal(), flag == 0)

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return `inverse` and `proceed` on a device."""
        if device not in self._placed:
            self._placed[device] = self.inverse.to(device), self.proceed.to(device)
        return self._placed[device]

    def unscale(self, params: Iterable[Tensor]) -> None:
        """Unscale the gradients of parameters in place, because users of a scaler expect that."""
        groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        for param in params:
            if param.grad is not None:
                gradient = local(param.grad).detach()
                groups.setdefault((gradient.device, gradient.dtype), []).append(
                    gradient
                )
        for (device, _), gradients in groups.items():
            inverse, _ = self.on(device)
            _torch.unscale_(gradients, inverse.to(torch.float32))


def unscaling(run: Run, scaling: Scaling) -> FrameRun:
    """Create a stateless frame around the whole chain that applies a `Scaling`."""

    def enter(update: Tensor, state: Any, param: Any, ctx: Any) -> Any:
        inverse, _ = scaling.on(update.device)
        return update * inverse, state

    def ticks(values: Any, sums: Any) -> Any:
        _, proceed = scaling.on(run.device)
        return proceed, values

    frame = Frame(chain(), enter=enter, clock=InnerClock(ticks, counts=False))
    return FrameRun(frame, Scope(run, (), 0, []), (), "GradScaler")


def place_counts(members: Iterable[Member], device: torch.device | None) -> None:
    """Move the counts of parameters to a device or, if that is None, to the host, synchronizing where necessary."""
    moved: dict[int | Count, int | Count] = {}
    for member in members:
        count = member.count
        if not member.state or isinstance(count, Count) == (device is not None):
            continue
        if count not in moved:
            if isinstance(count, Count):
                moved[count] = int(count.made)
            elif device is not None:
                moved[count] = Count(on_device(count, device), count)
        step = member.state["step"]
        member.state["step"] = as_step(moved[count], step.dtype)
        member.set_count(moved[count])


def keep_counts_in_place(
    members: Iterable[Member], after: Mapping[int | Count, int | Count]
) -> None:
    """Write new counts into the tensors of the old counts, unless a parameter that did not step needs the old count."""
    members = list(members)
    waiting = {member.count for member in members}
    kept: dict[int | Count, Count] = {}
    for before, count in after.items():
        if (
            isinstance(before, Count)
            and isinstance(count, Count)
            and before not in waiting
        ):
            before.copy_from(count)
            kept[count] = before
    for member in members:
        if member.count in kept:
            member.set_count(kept[member.count])


def as_step(count: int | Count, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a count as it is kept in a state: a floating-point tensor, as in torch.optim."""
    if isinstance(count, Count):
        return count.made.to(dtype)
    return torch.tensor(float(count), dtype=dtype, device="cpu")
