"""The scalars of a lowered graph: a function that computes them from those of a step, for any back end."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.fx import Node

from gradtx.compiler.graph import following, is_scalar
from gradtx.compiler.lower import LoweredGraph, mark_on_device
from gradtx.compiler.text import Text, function_text, tuple_of

PYTHON_NUMBERS = frozenset((float, int, bool))


class ScalarFunction:
    """The function of a graph's scalars: Python scalars, or 0-d tensors where the host would have to wait.

    Args:
        lowered: The lowered graph.
        text: Writes its operations; knows which scalars the graph needs as 0-d tensors as well.
        more: What the function returns beside them: the code of each value by its name.

    Attributes:
        names: The names of the scalars that the rest of the graph reads, in the order of the result, then those of
            the tensors, and of the other values.
        text: The code of the function.
    """

    def __init__(
        self, lowered: LoweredGraph, text: Text, more: Mapping[str, str] | None = None
    ):
        more = more or {}
        self.names = [node.name for node in lowered.scalars()]
        self.names += [*text.tensors.values(), *more]
        self._namespace = text.namespace
        scalars = [node for node in lowered.nodes if is_scalar(node)]
        calls = [node for node in scalars if node.op == "call_function"]
        code = {node: text.scalar(node) for node in calls}
        self._graph = lowered.graph
        self._arguments = lowered.arguments
        self._functions_of_sets: dict[frozenset[int], Any] = {}
        self._lines: dict[Node, list[str]] = {}
        for node in [*lowered.arguments, *calls]:
            lines = self._lines[node] = code.get(node, [])
            for (scalar, dtype), name in text.tensors.items():
                if scalar is node:
                    lines += text.as_tensor_lines(name, node, dtype)
        lines = [*self._head("scalars"), *self._lines_of(self._lines)]
        lines += [f"{name} = {value}" for name, value in more.items()]
        lines.append(f"return {tuple_of(self.names)}")
        self.text = function_text("prepare(scalars)", lines)

    def _head(self, scalars: str) -> list[str]:
        """Return the line that takes the arguments, if there are some."""
        names = tuple_of([node.name for node in self._arguments])
        return [f"{names} = {scalars}"] if self._arguments else []

    def _lines_of(self, nodes: Iterable[Node]) -> Iterable[str]:
        return itertools.chain.from_iterable(map(self._lines.__getitem__, nodes))

    def text_of_sets(
        self, varying: Collection[Node], shared: Sequence[str], by_set: Sequence[str]
    ) -> str:
        """Return the code of a function of several sets of scalars: what these share, and lists of the others' values.

        Args:
            varying: The scalars that sets may not share.
            shared: The names of the values that they share.
            by_set: Those of other values, some of them twice.
        """
        columns = ", ".join(f"of_{name}" for name in by_set)
        once = dict.fromkeys(by_set)
        appended = [f"of_{name}.append({name})" for name in once]
        return function_text(
            "prepare_sets(sets)",
            [
                *(f"of_{name} = []" for name in once),
                *self._lines_by_set(varying, appended),
                f"return {tuple_of(shared)}, [{columns}]",
            ],
        )

    def _lines_by_set(
        self, varying: Collection[Node], ending: list[str]
    ) -> Iterator[str]:
        """Yield lines that compute what sets share, then what they may not, followed by others for each set."""
        names = [x.name if x in varying else "_" for x in self._arguments]
        common = [node for node in self._lines if node not in varying]
        own = [node for node in self._lines if node in varying]
        yield from self._head("sets[0]")
        yield from self._lines_of(common)
        yield f"for {tuple_of(names)} in sets:"
        for line in [*self._lines_of(own), *ending] or ["pass"]:
            yield f"    {line}"

    @functools.cached_property
    def function(self) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
        """The function alone, for back ends that write no Python."""
        exec(compile(self.text, "<gradtx scalars>", "exec"), self._namespace)
        return self._namespace["prepare"]

    def function_of_sets(
        self, varying: frozenset[int]
    ) -> Callable[[Sequence[Sequence[Any]]], list[tuple[Any, ...]]]:
        """Return the function of several sets, whose results are those of `function` for each of them.

        What follows from no argument with these indices is computed once.
        """
        if varying not in self._functions_of_sets:
            own = following(self._graph, [self._arguments[i] for i in varying])
            lines = self._lines_by_set(own, [f"append({tuple_of(self.names)})"])
            head = ["values = []", "append = values.append"]
            text = function_text("prepare_sets(sets)", [*head, *lines, "return values"])
            exec(compile(text, "<gradtx scalars>", "exec"), self._namespace)
            self._functions_of_sets[varying] = self._namespace["prepare_sets"]
        return self._functions_of_sets[varying]


class Scalars:
    """The scalars of a lowered graph, for back ends that write no Python.

    Args:
        lowered: The lowered graph.
        device: The device of its leaves.
    """

    def __init__(self, lowered: LoweredGraph, device: torch.device):
        self._lowered = lowered
        self._device = device
        self._functions: dict[frozenset[int], ScalarFunction] = {}

    def where_on_device(self, on_device: frozenset[int]) -> ScalarFunction:
        """Return their function where the host does not know these of the shared arguments."""
        if on_device not in self._functions:
            scalars = [self._lowered.arguments[i] for i in on_device]
            mark_on_device(self._lowered.graph, scalars)
            text = Text(self._device)
            self._functions[on_device] = ScalarFunction(self._lowered, text)
        return self._functions[on_device]
