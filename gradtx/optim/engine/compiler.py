"""The interface between programs and the back ends that compile them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

# A back end creates a callable from a traced graph, example arguments and the user's options. The callable accepts
# tensors like the examples (their symbolic sizes may differ), writes in place to the same arguments as the graph, and
# returns the graph's results.
Backend: TypeAlias = Callable[
    [Any, Sequence[Any], Mapping[str, Any]], Callable[..., Any]
]


@dataclass
class Compiler:
    """A back end with its options.

    Attributes:
        backend: The function that compiles graphs.
        options: Its options.
    """

    backend: Backend
    options: Mapping[str, Any]

    def compiled(self, graph: Any, examples: Sequence[Any]) -> Callable[..., Any]:
        return self.backend(graph, examples, self.options)
