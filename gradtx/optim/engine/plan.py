"""The plan of a step: which program runs each leaf. It is valid until something that it depends on changes."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradtx.base import torch_names as _torch
from gradtx.base.dtensor import local
from gradtx.optim.engine.bundle import Bundle
from gradtx.optim.member import Member
from gradtx.optim.step_input import StepInput


class Plan:
    """The bundles of a step, and the parameters that step eagerly.

    Args:
        fingerprint: Identifies the requests that the plan is for; see `fingerprint_of`.
        members: The parameters that step.
        bundles: Those that programs run.
        rest: The others.

    Attributes:
        gradients_are_as_planned: Whether the gradients of the present step have the types and layouts of those for
            which the plan was made; otherwise only the same dtypes and shapes.
    """

    def __init__(
        self,
        fingerprint: Any,
        members: list[Member],
        bundles: list[Bundle],
        rest: list[Member],
    ):
        self.fingerprint = fingerprint
        self.bundles = bundles
        self.rest = rest
        self.gradients_are_as_planned = True
        self._members = members
        self._states = [member.state for member in members]
        self._params = [member.param for member in members]
        gradients: list[Any] = [param.grad for param in self._params]
        self._gradient_traits = list(map(dtype_and_shape, gradients))
        # Links that process parameters without a gradient accept None, which the check does not.
        self._have_planned_layout: Callable[..., bool] | None = None
        if not _any_is_none(gradients):
            self._have_planned_layout = _torch.layout_check(gradients)
        # The slots that programs write; eager steps replace theirs.
        self._slot_states: list[dict[str, Any]] = []
        self._slot_keys: list[str] = []
        for bundle in bundles:
            for member in bundle.members:
                for key in bundle.signature.slots:
                    self._slot_states.append(member.state)
                    self._slot_keys.append(key)
        self._tensors = self._present_tensors()
        self._addresses = list(map(Tensor.data_ptr, self._tensors))
        self._have_same_layout = _torch.layout_check(self._tensors)

    def _present_tensors(self) -> list[Tensor]:
        return [
            *self._params,
            *map(operator.getitem, self._slot_states, self._slot_keys),
        ]

    def matches(self, fingerprint: Any) -> bool:
        """Whether the input is the same, and all parameters and slots have the same memory, sizes and strides."""
        if fingerprint != self.fingerprint or not self._accepts_gradients():
            return False
        states = map(operator.attrgetter("state"), self._members)
        if not all(map(operator.is_, states, self._states)):
            return False
        present = self._present_tensors()
        return (
            all(map(operator.is_, present, self._tensors))
            and list(map(Tensor.data_ptr, present)) == self._addresses
            and self._have_same_layout(*present)
        )

    def _accepts_gradients(self) -> bool:
        """Whether the gradients have the same dtypes and shapes as those for which the plan was made."""
        gradients: list[Any] = [member.param.grad for member in self._members]
        have_planned_layout = self._have_planned_layout
        self.gradients_are_as_planned = (
            have_planned_layout is not None
            and not _any_is_none(gradients)
            and have_planned_layout(*gradients)
        )
        return (
            self.gradients_are_as_planned
            or list(map(dtype_and_shape, gradients)) == self._gradient_traits
        )


def _any_is_none(gradients: list[Any]) -> bool:
    return any(map(operator.is_, gradients, itertools.repeat(None)))


def fingerprint_of(step_input: StepInput, members: list[Member]) -> tuple[Any, ...]:
    """Return everything that a plan depends on, except gradients and the addresses of tensors.

    For counts, this is only which members have equal ones.
    """
    counts = [member.count for member in members]
    ranks = {count: rank for rank, count in enumerate(dict.fromkeys(counts))}
    trees: dict[str, Any] = {}
    for name, tree in step_input.trees.items():
        trees[name] = {leaf: dtype_and_shape(value) for leaf, value in tree.items()}
    return (
        members,
        [member.group for member in members],
        [ranks[count] for count in counts],
        [member.layout for member in members],
        step_input.structures,
        {name: value.dtype for name, value in step_input.tensor_scalars().items()},
        trees,
        torch.is_inference_mode_enabled(),
        step_input.scaling is not None,
        step_input.on_host,
    )


def dtype_and_shape(tensor: Tensor | None) -> tuple[torch.dtype, torch.Size] | None:
    """Return the properties of a gradient or an extra that a plan depends on."""
    return None if tensor is None else (tensor.dtype, tensor.shape)


class Span(NamedTuple):
    """The memory of a tensor: device, address of the first byte, address after the last byte, id of its member."""

    device: str
    start: int
    end: int
    owner: int


def overlapping(members: Iterable[Member]) -> set[int]:
    """Return the ids of members with overlapping tensors, whose writes must be visible to one another."""
    shared: set[int] = set()
    reach: Span | None = None  # the span with the highest end so far
    for span in sorted(_spans(members)):
        if reach is not None and span.device == reach.device and span.start < reach.end:
            shared.update((reach.owner, span.owner))
        if reach is None or span.device != reach.device or span.end > reach.end:
            reach = span
    return shared


def _spans(members: Iterable[Member]) -> list[Span]:
    spans: list[Span] = []
    for member in members:
        assert member.layout is not None
        for tensor in (
            member.param,
            *map(member.state.__getitem__, member.layout.slot_keys),
        ):
            tensor = local(tensor)
            if not tensor.numel() or tensor.device.type == "meta":
                continue
            last = 0
            for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
                last += (size - 1) * stride
            start = tensor.data_ptr()
            end = start + (last + 1) * tensor.element_size()
            spans.append(Span(str(tensor.device), start, end, id(member)))
    return spans
