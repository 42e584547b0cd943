"""One parameter of an optimizer: its name, its branch of the chain, and its state."""

from __future__ import annotations

from collections.abc import Mapping
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

    def suits(self, param: Tensor) -> bool:
        """Whether slots for this kind can serve a parameter: their dtype may be wider than the parameter's."""
        return (
            self.shape == param.shape
            and self.device == param.device
            and torch.promote_types(self.dtype, param.dtype) == self.dtype
        )


class FirstState:
    """The tensors of a state as the library created them, with their versions; its slots may be still to come."""

    def __init__(self, state: Mapping[str, Tensor]):
        self._tensors = dict(state)
        self._versions = {key: version(tensor) for key, tensor in state.items()}

    def is_unchanged(self, state: State) -> bool:
        """Whether the state consists of exactly these tensors, and none of them was written."""
        if state.keys() != self._tensors.keys():
            return False
        for key, tensor in self._tensors.items():
            if state[key] is not tensor or version(tensor) != self._versions[key]:
                return False
        return True


@dataclass(slots=True, eq=False)
class Member:
    """One parameter of an optimizer.

    Attributes:
        name: The name used by selectors, extras and error messages; unique in the optimizer.
        param: The parameter.
        choices: Each selector's decision for the parameter.
        layout: The layout of its state; None before the state is created.
        made_for: The view of the group for which the state was created.
        first_state: Its state as the library created it; None after its first use.
        waits: Whether its slots are created with its first gradient.
        owner: The rank that keeps the slots of rules that need the whole parameter, if it is divided; see `Leaf`.
        saved: Its entry of a checkpoint, if the parameter is lazy and has no shape yet.
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
    made_for: Any = None
    first_state: FirstState | None = None
    waits: bool = False
    saved: State | None = None
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
        try:
            return int(step)
        except RuntimeError as error:
            if not _torch.is_intercepted():
                raise
            raise RuntimeError(
                f"state of parameter {self.name!r}: step() reads the count on the host, but a trace (make_fx) has "
                "replaced it by a tensor without a value; trace tx.update, whose state is an argument, or exclude the "
                "optimizer's state from the arguments"
            ) from error

    def set_count(self, count: int | Count) -> None:
        """Record the value of the state's tensor `step`, which the caller knows without reading it."""
        self.count = count
        if isinstance(count, Count):
            step = self.state["step"]
            self.device_count = step, version(step)
        else:
            self.device_count = None

    def is_unused(self, state: State) -> bool:
        """Whether the state is as the library created it, and no step has used it."""
        return self.first_state is not None and self.first_state.is_unchanged(state)

    def __setstate__(self, state: tuple[None, dict[str, Any]]) -> None:
        _, slots = state
        for name, value in slots.items():
            setattr(self, name, value)
        # The copied tensor counts its writes from 0, and would later have the recorded version with another value.
        self.device_count = None


def version(tensor: Tensor) -> int:
    """Return the version counter of a tensor's local part, which counts in-place writes."""
    return _torch.version_of(local(tensor))
