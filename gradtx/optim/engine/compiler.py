"""The seam between programs and the ways of running them."""

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
    """A backend with its options.

    Attributes:
        backend: The way of running programs.
        options: Its options.
    """

    backend: Backend
    options: Mapping[str, Any]

    def compiled(self, graph: Any, examples: Sequence[Any]) -> Callable[..., Any]:
        return self.backend(graph, examples, self.options)
