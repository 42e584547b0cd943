"""torch's compiler, as the engine calls it."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping
from typing import Any
from unittest import mock

import torch


def compiled(graph: Any, examples: list[Any], options: Mapping[str, Any]) -> Any:
    """A graph as a program. What fails is tried once more with care."""
    from torch._inductor.exc import InductorError

    options = {"size_asserts": False, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own, such as a deprecation at its first import
        try:
            with _plain_instructions():
                return torch._inductor.compile(graph, examples, options=options)
        except InductorError:
            with _separate_loops():
                return torch._inductor.compile(graph, examples, options=options)


def _plain_instructions() -> contextlib.AbstractContextManager[Any]:
    """Have the compiler take the vector instructions that the processor names.

    Otherwise torch builds and loads a C++ program or two for each set of them, those for matrices too, 6 to 9 s in all,
    to learn whether all tools know them; an error tells that as well.
    """
    from torch._inductor import config, cpu_vec_isa

    named = cpu_vec_isa.x86_isa_checker() if config.cpp.vec_isa_ok is None else []
    plain = {"avx512": cpu_vec_isa.VecAVX512, "avx2": cpu_vec_isa.VecAVX2}
    # What runs torch's tests is the question whether a set is true.
    sets = [type(kind.__name__, (kind,), {"__bool__": _true})() for name, kind in plain.items() if name in named]
    return mock.patch.object(cpu_vec_isa, "valid_vec_isa_list", return_value=sets) if sets else contextlib.nullcontext()


def _true(self: Any) -> bool:
    return True


def _separate_loops() -> contextlib.AbstractContextManager[Any]:
    """Keeps the compiler from fusing loops of unlike depth, where it fails over what is written in place.

    https://github.com/pytorch/pytorch/issues/196570, open as of torch 2.14.
    """
    from torch._inductor.codegen.cpp import CppScheduling

    return mock.patch.object(CppScheduling, "can_fuse_vertical_outer_loop", return_value=False)
