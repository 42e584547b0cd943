"""The back end that compiles programs with torch's inductor."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gradtx import _torch
from gradtx._messages import close
from gradtx._narrowing import is_mapping
from gradtx.optim.engine.kept import keep, kept_program, place_of


def compile_with_inductor(
    graph: Any, examples: Sequence[Any], options: Mapping[str, Any]
) -> Callable[..., Any]:
    """Compile a graph, or load the program that an earlier process has saved."""
    if not _torch.asserts_bind_sizes():
        options = {"size_asserts": False, **options}
    place = place_of(graph, options)
    if place is None:
        return _torch.as_kernels(_compiled(graph, examples, options))
    assumptions = _torch.Assumptions(examples)
    program = kept_program(place, assumptions)
    if program is None:
        program = _compiled_to_keep(graph, examples, options)
        keep(place, program, assumptions)
    return _torch.as_kernels(program)


def _compiled_to_keep(
    graph: Any, examples: Sequence[Any], options: Mapping[str, Any]
) -> Callable[..., Any]:
    """Compile a graph; if it came from inductor's cache, which omits the assumptions about sizes, compile it again.

    Leaves of other sizes have the same graph in that cache. Programs that cannot be saved are loaded from it.
    """
    program = _compiled(graph, examples, options)
    if _torch.was_loaded(program) and _torch.kernels_of(program) is not None:
        with _torch.without_cached_graphs():
            return _compiled(graph, examples, options)
    return program


def _compiled(
    graph: Any, examples: Sequence[Any], options: Mapping[str, Any]
) -> Callable[..., Any]:
    """Compile a graph; if that fails, try again without fusing unlike loops."""
    with warnings.catch_warnings():
        # Of the compiler, such as a deprecation warning at its first import.
        warnings.simplefilter("ignore")
        try:
            with _torch.named_instructions():
                return _torch.compile_graph(graph, examples, options)
        except _torch.compile_error():
            with _torch.separate_loops():
                return _torch.compile_graph(graph, examples, options)


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
    if is_mapping(compile):
        return _checked_options(compile)
    if isinstance(compile, str):
        modes = _torch.compiler_modes()
        if compile not in modes:
            raise ValueError(
                f"compile: unknown mode {compile!r}; modes: {', '.join(modes)}, background"
            )
        return dict(modes[compile])
    raise TypeError(
        f'compile must be True, False, "background", a mode of torch.compile or a dict of its options, got {compile!r}'
    )


def _checked_options(options: Mapping[Any, Any]) -> dict[str, Any]:
    known = _torch.compiler_option_names()
    for name in options:
        if not isinstance(name, str):
            raise TypeError(f"compile: option names must be strings, got {name!r}")
        # As torch.compile reads them.
        if known is not None and name.replace("-", "_") not in known:
            meant = close(name, known)
            hint = "" if meant is None else f"; did you mean {meant!r}?"
            raise ValueError(f"compile: torch's compiler has no option {name!r}{hint}")
    return dict(options)
