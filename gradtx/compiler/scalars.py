"""The scalars of a program: a function that computes them from those of a step, for any back end."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from gradtx.compiler.graph import is_scalar
from gradtx.compiler.lower import Program, mark_on_device
from gradtx.compiler.text import Text, function_text, tuple_of

PYTHON_NUMBERS = frozenset((float, int, bool))


class ScalarProgram:
    """The function of a program's scalars: Python scalars, or 0-d tensors where the host would have to wait.

    Args:
        program: The program.
        text: Writes its operations; knows which scalars the program needs as 0-d tensors as well.

    Attributes:
        names: The names of the scalars that the rest of the program reads, in the order of the result, then those of
            the tensors.
        text: The code of the function.
    """

    def __init__(self, program: Program, text: Text):
        self.names = [node.name for node in program.scalars()]
        self.names += text.tensors.values()
        self._namespace = text.namespace
        scalars = [node for node in program.nodes if is_scalar(node)]
        calls = [node for node in scalars if node.op == "call_function"]
        code = {node: text.scalar(node) for node in calls}
        lines: list[str] = []
        if program.arguments:
            arguments = tuple_of([node.name for node in program.arguments])
            lines.append(f"{arguments} = scalars")
        for node in [*program.arguments, *calls]:
            if node in code:
                lines += code[node]
            for (scalar, dtype), name in text.tensors.items():
                if scalar is node:
                    lines += text.as_tensor_lines(name, node, dtype)
        lines.append(f"return {tuple_of(self.names)}")
        self.text = function_text("prepare(scalars)", lines)

    @functools.cached_property
    def function(self) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
        """The function alone, for back ends that write no Python."""
        exec(compile(self.text, "<gradtx scalars>", "exec"), self._namespace)
        return self._namespace["prepare"]


class Scalars:
    """The scalars of a program, for back ends that write no Python.

    Args:
        program: The program.
        device: The device of its leaves.
    """

    def __init__(self, program: Program, device: torch.device):
        self._program = program
        self._device = device
        self._known: dict[frozenset[int], ScalarProgram] = {}

    def given(self, on_device: frozenset[int]) -> ScalarProgram:
        """Return their program, given which of the shared arguments the host does not know."""
        if on_device not in self._known:
            scalars = [self._program.arguments[i] for i in on_device]
            mark_on_device(self._program.graph, scalars)
            text = Text(self._device)
            self._known[on_device] = ScalarProgram(self._program, text)
        return self._known[on_device]
