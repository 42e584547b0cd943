"""The scalars of a program: a function that computes them from those of a step, for any back end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.fx import Node

from gradtx.programs.contract import is_number
from gradtx.programs.lower import Program
from gradtx.programs.text import Text, function_text, tuple_of


class ScalarProgram:
    """The function of a program's scalars: Python scalars, or 0-d tensors if the host would have to wait.

    Args:
        program: The program.
        text: Writes its operations.
        tensors: The names of scalars that are needed as 0-d tensors as well.

    Attributes:
        nodes: The scalars that the rest of the program reads, in the order of the result.
        names: Their names, then those of the tensors.
        text: The code of the function.
    """

    def __init__(
        self, program: Program, text: Text, tensors: Mapping[Node, str] | None = None
    ):
        tensors = tensors or {}
        self.nodes = program.scalars()
        self.names = [*(node.name for node in self.nodes), *tensors.values()]
        self._namespace = text.namespace
        lines: list[str] = []
        if program.numbers:
            given = tuple_of([node.name for node in program.numbers])
            lines.append(f"{given} = numbers")
        for node in program.nodes:
            if node.op == "call_function" and is_number(node):
                lines.append(f"{node.name} = {text.number(node)}")
        for number, name in tensors.items():
            dtype = number.meta["val"].dtype
            lines.append(
                f"{name} = torch.full((), {number.name}, dtype={dtype}, device=device)"
            )
        lines.append(f"return {tuple_of(self.names)}")
        self.text = function_text("prepare(numbers)", lines)

    def function(self) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
        """Return the function alone, for back ends that write no Python."""
        exec(compile(self.text, "<gradtx scalars>", "exec"), self._namespace)
        return self._namespace["prepare"]
