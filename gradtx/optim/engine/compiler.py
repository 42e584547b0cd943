"""Compiles the functions of programs, and remembers those that programs share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

# A way of running programs: makes a callable of a traced graph, example arguments and the user's options. The callable
# takes tensors like the examples, of other sizes where theirs are symbolic, writes in place to the same arguments, and
# returns what it returns.
Backend: TypeAlias = Callable[[Any, Sequence[Any], Mapping[str, Any]], Callable[..., Any]]


@dataclass
class Compiler:
    """Compiles the functions of programs.

    Attributes:
        backend: The way of running programs.
        options: Its options.
        by_code: Compiled functions that programs share, by their code.
    """

    backend: Backend
    options: Mapping[str, Any]
    by_code: dict[str, Callable[..., Any]]

    def compiled(self, graph: Any, examples: Sequence[Any]) -> Callable[..., Any]:
        return self.backend(graph, examples, self.options)

    def shared(self, graph: Any, examples: Sequence[Any]) -> Callable[..., Any]:
        """A function that programs with the same code share."""
        function = self.by_code.get(graph.code)
        if function is None:
            function = self.compiled(graph, examples)
            if not graph.graph.find_nodes(op="get_attr"):  # constants are not in the code
                self.by_code[graph.code] = function
        return function
