"""One parameter of an optimizer: its name, its branch of the chain, and its state."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradtx.base import torch_names as _torch
from gradtx.base.dtensor import local
from gradtx.base.errors import Path
from gradtx.programs.layout import Layout, State


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


class ParameterKind(NamedTuple):
    """The properties of a parameter that its slots depend on."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, param: Tensor) -> ParameterKind:
        return cls(param.shape, param.dtype, param.device)

    def __str__(self) -> str:
        return f"{self.dtype} of shape {tuple(self.shape)} on {self.device}"

    def suits(self, param: Tensor) -> bool:
        """Whether slots for this kind can serve a parameter: their dtype may be wider than the parameter's."""
        return (
            self.shape == param.shape
            and self.device == param.device
            and torch.promote_types(self.dtype, param.dtype) == self.dtype
        )


@dataclass(eq=False)
class Member:
    """One parameter of an optimizer.

    Attributes:
        name: The name used by selectors, extras and error messages; unique in the optimizer.
        param: The parameter.
        choices: Each selector's decision for the parameter.
        layout: The layout of its state; None before its slots are created.
        fresh: Tensors of its state that nothing has used so far, and that its first gradient creates again, with their
            versions; None if the version is that of the tensor from which this one was copied.
        made_for: The structure of its group for which the slots were created.
        owner: The rank that keeps the slots of rules that need the whole parameter, if it is divided; see `Leaf`.
        state: Its state, looked up for the current step.
        count: The number of steps it has made, looked up for the current step.
        group: The index of its group, looked up for the current step.
        made_on: The kind of the parameter when its slots were created or loaded; None if the user moved them here.
        device_count: A tensor `step` whose value is known to be `count` without a read, and that tensor's version.
    """

    name: str
    param: Tensor
    choices: dict[Path, Any] = field(default_factory=dict[Path, Any])
    layout: Layout | None = None
    fresh: dict[str, tuple[Tensor, int | None]] = field(
        default_factory=dict[str, tuple[Tensor, int | None]]
    )
    made_for: Any = None
    owner: int | None = None
    state: State = field(default_factory=dict[str, Any])
    count: int | Count = 0
    group: int = 0
    device_count: tuple[Tensor, int] | None = None
    made_on: ParameterKind | None = None

    def count_in(self, state: State) -> int | Count:
        """Return the number of steps the parameter has made, without synchronizing if the device counts."""
        step = state.get("step", 0)
        if self.device_count is not None:
            tensor, counted_at = self.device_count
            if tensor is step and version(tensor) == counted_at:
                return self.count
        return int(step)

    def set_count(self, count: int | Count) -> None:
        """Record the value of the state's tensor `step`, which the caller knows without reading it."""
        self.count = count
        if isinstance(count, Count):
            step = self.state["step"]
            self.device_count = step, version(step)
        else:
            self.device_count = None

    def mark_fresh(self, state: State) -> None:
        """Record that nothing has used the slots of a state so far."""
        self.fresh = {
            key: (tensor, version(tensor))
            for key, tensor in state.items()
            if key != "step"
        }

    def used(self, state: State) -> State:
        """Return the state without fresh slots, unless the user has written them."""
        untouched = {
            key
            for key, (tensor, made_at) in self.fresh.items()
            if state.get(key) is tensor and made_at in (None, version(tensor))
        }
        return {key: value for key, value in state.items() if key not in untouched}

    def __getstate__(self) -> dict[str, Any]:
        # A copied tensor counts its writes from 0, and would later have the recorded version with another value.
        fresh = {
            key: (tensor, None)
            for key, (tensor, made_at) in self.fresh.items()
            if made_at in (None, version(tensor))
        }
        return {**self.__dict__, "device_count": None, "fresh": fresh}


def version(tensor: Tensor) -> int:
    """Return the version counter of a tensor's local part, which counts in-place writes."""
    return _torch.version_of(local(tensor))
