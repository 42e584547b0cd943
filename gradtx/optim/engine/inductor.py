"""The back end that compiles programs with torch's inductor."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from gradtx.base.messages import close
from gradtx.optim.engine import torch_names

# Creates a callable from a traced graph, example arguments and the user's options. The callable accepts tensors like
# the examples (their symbolic sizes may differ), writes in place to the same arguments as the graph, and returns the
# graph's results.
Backend: TypeAlias = Callable[
    [Any, Sequence[Any], Mapping[str, Any]], Callable[..., Any]
]


def compile_with_inductor(
    graph: Any, examples: Sequence[Any], options: Mapping[str, Any]
) -> Callable[..., Any]:
    """Compile a graph; if that fails, try again without fusing unlike loops."""
    if not torch_names.asserts_bind_sizes():
        options = {"size_asserts": False, **options}
    with warnings.catch_warnings():
        # Of the compiler, such as a deprecation warning at its first import.
        warnings.simplefilter("ignore")
        try:
            with torch_names.named_instructions():
                return torch_names.compile_graph(graph, examples, options)
        except torch_names.compile_error():
            with torch_names.separate_loops():
                return torch_names.compile_graph(graph, examples, options)


def compiler_options(compile: Any) -> dict[str, Any]:
    """Translate the argument `compile=` into options of torch's compiler.

    Args:
        compile: True, a mode of `torch.compile`, or a dict of its options.

    Raises:
        TypeError: If `compile` is none of these.
        ValueError: If the mode or an option is unknown.
    """
    if compile is True:
        return {}
    if isinstance(compile, Mapping):
        return _checked_options(compile)
    if isinstance(compile, str):
        modes = torch_names.compiler_modes()
        if compile not in modes:
            raise ValueError(
                f"compile: unknown mode {compile!r}; modes: {', '.join(modes)}"
            )
        return dict(modes[compile])
    raise TypeError(
        f"compile must be True, False, a mode of torch.compile, a dict of its options or an Engine, got {compile!r}"
    )


def _checked_options(options: Mapping[Any, Any]) -> dict[str, Any]:
    known = torch_names.compiler_option_names()
    for name in options:
        if not isinstance(name, str):
            raise TypeError(f"compile: option names must be strings, got {name!r}")
        # As torch.compile reads them.
        if name.replace("-", "_") not in known:
            meant = close(name, known)
            hint = "" if meant is None else f"; did you mean {meant!r}?"
            raise ValueError(f"compile: torch's compiler has no option {name!r}{hint}")
    return dict(options)
