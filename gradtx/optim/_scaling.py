"""Steps under a GradScaler: gradients are unscaled, and steps with infinite ones skipped, where the parameters are.

torch hands over two 0-d tensors, the attributes `grad_scale` and `found_inf`. The host reads neither, so it cannot know
how many steps were made: counts live on the device as well.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor

from gradtx._exact import exact
from gradtx._runs import Run, Scope
from gradtx._sharding import local, undivided
from gradtx.combinators.frame import Frame, FrameRun, InnerClock
from gradtx.core import chain


class Count:
    """How many steps some parameters have made, known on their device; those with the same object have made as many."""

    def __init__(self, made: Tensor, bound: int):
        self.made, self._bound = made, bound  # 0-d int64; the same with what was skipped

    @property
    def most(self) -> int:
        """What the host knows without waiting."""
        return int(self.made) if self.made.device.type == "cpu" else self._bound

    def after(self, counts: Any) -> Count:
        """One step later, where this one `counts`."""
        return Count(self.made + counts, self.most + 1)


def next_number(count: int | Count, device: torch.device) -> Tensor:
    """The 1-based number of the next step, 0-d int64."""
    return on_device(count.made + 1 if isinstance(count, Count) else count + 1, device)


def on_device(number: int | Tensor, device: torch.device) -> Tensor:
    """A whole number as a 0-d tensor; a copy from the host would wait, filling one in does not."""
    if isinstance(number, Tensor):
        return number.to(device)
    return torch.full((), number, dtype=torch.int64, device=device)


def highest(counts: Collection[int | Count]) -> int | Tensor:
    """The largest of counts that are all on one side; a tensor where the host doesn't know it."""
    made = [count.made for count in counts if isinstance(count, Count)]
    return torch.stack(made).amax() if made else max((count for count in counts if isinstance(count, int)), default=0)


class Scaling:
    """What a GradScaler asks of one step: gradients times `inverse`; and nothing changes unless `proceed`."""

    def __init__(self, inverse: Tensor, proceed: Tensor):
        self.inverse, self.proceed = inverse, proceed
        self._placed = {inverse.device: (inverse, proceed)}

    @classmethod
    def asked_of(cls, optimizer: Any) -> Scaling | None:
        found, scale = getattr(optimizer, "found_inf", None), getattr(optimizer, "grad_scale", None)
        if found is None:
            return None
        found = undivided(torch.as_tensor(found)).reshape(())
        inverse = torch.ones((), device=found.device) if scale is None else undivided(scale).to(found.device)
        return cls(exact(inverse, found.device).reshape(()).reciprocal(), found == 0)

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._placed:
            self._placed[device] = self.inverse.to(device), self.proceed.to(device)
        return self._placed[device]

    def unscale(self, params: Iterable[Tensor]) -> None:
        """Leave gradients behind as users of a scaler expect to find them."""
        alike: dict[Any, list[Tensor]] = {}
        for grad in (local(param.grad) for param in params if param.grad is not None):
            alike.setdefault((grad.device, grad.dtype), []).append(grad.detach())
        for (device, _), group in alike.items():
            inverse = self.on(device)[0].to(torch.float32)
            torch._amp_foreach_non_finite_check_and_unscale_(group, torch.zeros_like(inverse), inverse)


def unscaling(run: Run, scaling: Scaling) -> FrameRun:
    """A frame around the whole chain that does what a `Scaling` asks for; it keeps no state."""

    def enter(update: Tensor, state: Any, param: Any, ctx: Any) -> Any:
        return update * scaling.on(update.device)[0], state

    def ticks(values: Any, sums: Any) -> Any:
        return scaling.on(run.device)[1], values

    frame = Frame(chain(), enter=enter, clock=InnerClock(ticks, counts=False))
    return FrameRun(frame, Scope(run, (), 0, []), (), "GradScaler")


def place_counts(records: Iterable[Any], device: torch.device | None) -> None:
    """Keep the counts of parameters on a device or, where that is None, on the host, which waits for those it lacks."""
    places: dict[int | Count, int | Count] = {}
    for record in records:
        count = record.count
        if not record.state or isinstance(count, Count) == (device is not None):
            continue
        if count not in places:
            if isinstance(count, Count):
                places[count] = int(count.made)
            elif device is not None:
                places[count] = Count(on_device(count, device), count)
        new, step = places[count], record.state["step"]
        record.state["step"] = as_step(new, step.dtype)
        record.count_as(new)


def as_step(count: int | Count, dtype: torch.dtype = torch.float32) -> Tensor:
    """A count as a state keeps it: in floating point, as torch's optimizers do."""
    if isinstance(count, Count):
        return count.made.to(dtype)
    return torch.tensor(float(count), dtype=dtype, device="cpu")
