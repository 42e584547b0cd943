"""Compile the C++ text of kernels and run it, on CPUs."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import shlex
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from gradtx.base.recent import MOST

# The instruction sets of torch's own kernels.
INSTRUCTIONS = {
    "AVX512": ("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl"),
    "AVX2": ("-mavx2",),
}
MISSING = "there is no C++ compiler; install g++ or clang"
FLAGS = (
    *("-x", "c++", "-std=c++17", "-shared", "-fPIC"),
    # As fast as with -O3, and compiled in a quarter of the time.
    *("-O2", "-ftree-vectorize", "-fvect-cost-model=dynamic"),
    # As torch's kernels compute: errors are values, integers wrap around, and each operation rounds.
    *("-fno-math-errno", "-fno-trapping-math", "-fwrapv", "-ffp-contract=off"),
)
# With threads, which some compilers lack the library for, or without them.
PARALLEL = ("-fopenmp", "-fopenmp-simd")


ADDRESSES = (
    *("words", "table", "sizes", "blocks", "chunk_leaf", "chunk_start", "leaf_chunks"),
    *("sums", "results"),
)
COUNTS = ("n_leaves", "threads")


# Packs the arguments of a phase, addresses and counts; see `gradtx.compiler.write_cpp`. A structure of ctypes takes
# several times as long.
ARGUMENTS = struct.Struct(f"={len(ADDRESSES) + len(COUNTS)}q")
# Those of a text by row: the address of the sets of leaves comes last.
ARGUMENTS_OF_ROWS = struct.Struct(f"={len(ADDRESSES) + len(COUNTS) + 1}q")


class CompilerError(Exception):
    """A C++ compiler is missing or fails."""


@functools.cache
def compiler_or_none() -> tuple[str, ...] | None:
    """Return the path of a C++ compiler, and the arguments that it always has."""
    for command in (os.environ.get("CXX", ""), "g++", "c++", "clang++"):
        path = shutil.which(command)  # it may contain spaces
        if path:
            return (path,)
        with contextlib.suppress(ValueError):
            program, *arguments = shlex.split(command, posix=os.name != "nt")
            path = shutil.which(program)
            if path:
                return path, *arguments
    return None


def compiled(source: str) -> Callable[[bytes], None]:
    """Return the function of a text; equal texts share it.

    Raises:
        CompilerError: If the text cannot be compiled.
    """
    result = outcome(source)
    if isinstance(result, str):
        raise CompilerError(result)
    return result


def compile_all(sources: Iterable[str]) -> None:
    """Compile several texts side by side; `compiled` says what has failed."""
    texts = list(dict.fromkeys(sources))
    if len(texts) > 1:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(outcome, texts))


@functools.lru_cache(maxsize=MOST)
def outcome(source: str) -> Callable[[bytes], None] | str:
    """Return the function of a text, or the reason why there is none: a compiler that fails is not asked again."""
    compiler = compiler_or_none()
    if compiler is None:
        return MISSING
    capability = torch.backends.cpu.get_cpu_capability()
    flags: list[str] = [*FLAGS]
    if capability in INSTRUCTIONS:
        flags += [*INSTRUCTIONS[capability], "-mfma", "-mf16c"]
    # Where a library is in use, as on Windows, the folder stays.
    with tempfile.TemporaryDirectory(
        prefix="gradtx", ignore_cleanup_errors=True
    ) as folder:
        reason = ""
        for i, parallel in enumerate(PARALLEL):
            library = str(Path(folder, f"kernels{i}.so"))
            command = [*compiler, *flags, parallel, "-", "-o", library, "-lm"]
            try:
                return _built(command, source, library)
            except CompilerError as error:
                reason = str(error)
        return reason


def _built(command: list[str], source: str, library: str) -> Callable[[bytes], None]:
    """Return the function of a text, compiled by a command.

    Raises:
        CompilerError: If the command fails, or makes a library that cannot be loaded: one of threads may be missing, or
            programs may not run in the folder.
    """
    try:
        done = subprocess.run(command, input=source, capture_output=True, text=True)
        if done.returncode:
            raise CompilerError(f"{command[0]}: {done.stderr.strip()}")
        run: Any = ctypes.CDLL(library).run
    except OSError as error:
        raise CompilerError(f"{command[0]}: {error}") from error
    run.argtypes, run.restype = [ctypes.c_char_p], None
    return run
