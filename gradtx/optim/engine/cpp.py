"""Compile the C++ text of kernels and run it, on CPUs."""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

# The instruction sets of torch's own kernels.
INSTRUCTIONS = {
    "AVX512": ("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl"),
    "AVX2": ("-mavx2",),
}
MISSING = "there is no C++ compiler; install g++ or clang"
FLAGS = (
    *("-x", "c++", "-std=c++17", "-O3", "-shared", "-fPIC"),
    # As torch's kernels compute: errors are values, integers wrap around, and each operation rounds.
    *("-fno-math-errno", "-fno-trapping-math", "-fwrapv", "-ffp-contract=off"),
)
# With threads, which some compilers lack the library for, or without them.
PARALLEL = ("-fopenmp", "-fopenmp-simd")


ADDRESSES = (
    *("words", "table", "sizes", "blocks", "chunk_leaf", "chunk_start", "leaf_chunks"),
    *("sums", "partials", "results"),
)
COUNTS = ("n_leaves", "n_chunks", "threads")


class Arguments(ctypes.Structure):
    """The arguments of a phase; see `gradtx.programs.write_cpp`."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ADDRESSES),
        *((name, ctypes.c_int64) for name in COUNTS),
    ]


class CompilerError(Exception):
    """A C++ compiler is missing or fails."""


@functools.cache
def compiler_or_none() -> str | None:
    """Return the path of a C++ compiler."""
    for name in (os.environ.get("CXX", ""), "g++", "c++", "clang++"):
        path = shutil.which(name)
        if path:
            return path
    return None


@functools.cache
def compiled(source: str) -> Callable[[Any], None]:
    """Return the function of a text; equal texts share it.

    Raises:
        CompilerError: If the text cannot be compiled.
    """
    compiler = compiler_or_none()
    if compiler is None:
        raise CompilerError(MISSING)
    flags: list[str] = [*FLAGS]
    capability = torch.backends.cpu.get_cpu_capability()
    if capability in INSTRUCTIONS:
        flags += [*INSTRUCTIONS[capability], "-mfma", "-mf16c"]
    with tempfile.TemporaryDirectory(prefix="gradtx") as folder:
        library = Path(folder, "kernels.so")
        errors: list[str] = []
        for parallel in PARALLEL:
            command = [compiler, *flags, parallel, "-", "-o", str(library), "-lm"]
            done = subprocess.run(command, input=source, capture_output=True, text=True)
            if not done.returncode:
                break
            errors.append(done.stderr.strip())
        else:
            raise CompilerError(f"{compiler}: {errors[-1]}")
        try:
            run: Any = ctypes.CDLL(str(library)).run
        except OSError as error:  # of the folder, where programs may not run
            raise CompilerError(str(error)) from error
    run.argtypes, run.restype = [ctypes.POINTER(Arguments)], None
    return run
