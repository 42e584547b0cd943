"""Scalar arguments of kernels, such as bias corrections, computed from the scalars of a step."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from gradtx.programs.bundle import numbers_for
from gradtx.programs.code import ListFunction, list_function
from gradtx.programs.record import Recording, add_constant


class KnownScalar(NamedTuple):
    """A scalar of the previous step; a pair that is replaced as one, because threads share programs.

    Attributes:
        value: Its value.
        tensor: The same as a tensor; None before the first step.
    """

    value: Any = None
    tensor: Tensor | None = None


class StepNumbers:
    """Compute the scalar arguments of a kernel: in Python, or on the device if the host would have to synchronize.

    Args:
        of_step: The operations that compute them from the scalars of a step.
        kept: The nodes of the scalars of a step that the kernel also receives unchanged.
        owner: The module that contains the constants.
    """

    def __init__(self, of_step: Recording, kept: list[Node], owner: GraphModule):
        results = [*kept, *of_step.outputs]
        recording = dataclasses.replace(of_step, outputs=results)
        self._recording = recording
        self._argument_dtypes = _dtypes_of(recording.numbers)
        self._dtypes = _dtypes_of(recording.outputs)
        self._functions: dict[tuple[torch.device, bool], ListFunction] = {}
        self._known: dict[torch.device, list[KnownScalar]] = {}
        _write_constants(recording.graph, owner)

    def compute(
        self, given: Sequence[Any], device: torch.device, on_host: bool
    ) -> list[Tensor]:
        """Return the kernel's scalars as 0-d tensors; `on_host` is whether the host may read the given ones."""
        numbers, on_host = numbers_for(given, self._argument_dtypes, device, on_host)
        function = self._function(device, on_host)
        # `prepare` alone orders its values by the graph, and returns two equal results once.
        prepared = function.prepare(numbers)
        values = function.run(prepared, ())
        if not on_host:
            return values
        return self._tensors(values, device)

    def _tensors(self, values: Sequence[Any], device: torch.device) -> list[Tensor]:
        """Return 0-d tensors, those of the previous step where values are the same: creating them takes longer."""
        known = self._known.setdefault(device, [KnownScalar()] * len(values))
        tensors: list[Tensor] = []
        for i, (value, dtype) in enumerate(zip(values, self._dtypes, strict=True)):
            tensor = known[i].tensor
            # The signs of equal zeros may differ.
            if tensor is None or value != known[i].value or value == 0:
                tensor = torch.full((), value, dtype=dtype, device=device)
                # Tensors of a trace may be fake.
                if type(tensor) is Tensor:
                    known[i] = KnownScalar(value, tensor)
            tensors.append(tensor)
        return tensors

    def _function(self, device: torch.device, on_host: bool) -> ListFunction:
        """Return the function for a device and for Python scalars or tensors, created at the first call."""
        key = device, on_host
        if key not in self._functions:
            self._functions[key] = list_function(self._recording, device, on_host)
        return self._functions[key]


def _dtypes_of(nodes: Sequence[Node]) -> list[torch.dtype]:
    return [node.meta["val"].dtype for node in nodes]


def _write_constants(graph: Graph, owner: GraphModule) -> None:
    """Replace references to constants with their values."""
    for node in graph.find_nodes(op="get_attr"):
        tensor: Tensor = getattr(owner, node.target)
        with graph.inserting_before(node):
            constant = add_constant(graph, tensor)
        constant.meta["val"] = tensor
        node.replace_all_uses_with(constant)
        graph.erase_node(node)
