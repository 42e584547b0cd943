"""Compile kernels for GPUs, without one: `python -m tests.gpu.compile_kernels 90 adamw adamw:int8 ...`.

Prints a line per kernel: its name, instances of 16-byte loads and stores, registers' spills, and bytes of the binary.
With `--together`, matrices and vectors share launches; then the number of texts that a kernel comes from stands first.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import sys
from unittest import mock

import pytest
import torch

import gradtx
from gradtx.compiler import kernels
from gradtx.compiler import triton as engine_triton
from gradtx.optim.engine.kernels import KernelEngine

triton = pytest.importorskip("triton", reason="needs Triton, a package of its own on machines without a GPU")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from tests.examples import example_of  # noqa: E402

KINDS = {
    **dict.fromkeys(("table", "blocks", "chunk_leaf", "chunk_start", "leaf_chunks", "words"), "*i64"),
    **dict.fromkeys(("stored", "sets"), "*i64"),  # by row
    **dict.fromkeys(("sums", "results"), "*fp64"),
    **dict.fromkeys(("n_leaves", "first_instance", "stop"), "i32"),
    "w": "i64",
}
SHAPES = ((128, 64), (128,), (64, 32, 3, 3))
CONSTANTS = {**kernels.CONSTANTS, "ON_DEVICE": 0, "ALIGNED": True}


class TextsKnownError(BaseException):
    """Raised before anything runs; an engine that fails with an `Exception` would say so and go on over lists."""


def sources_of(tx: gradtx.GradientTransformation, dtype: torch.dtype = torch.float32) -> list[str]:
    """Return the texts of an optimizer's kernels in its first two steps, which run over lists."""
    found: dict[str, None] = {}

    class Writing(KernelEngine):
        def tasks(self, bundles):
            found.update(dict.fromkeys(phase.text.source for bundle in bundles for phase in bundle.kernels))
            raise TextsKnownError

    params = [torch.nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in SHAPES]
    over_lists = gradtx.as_optimizer(tx, params)
    for step in range(2):
        for param in params:
            param.grad = torch.randn_like(param)
        with mock.patch.dict(kernels.LANGUAGES, cpu=kernels.TritonKernels), contextlib.suppress(TextsKnownError):
            optimizer = gradtx.as_optimizer(tx, params, compile=Writing())
            if step > 0:
                optimizer.load_state_dict(over_lists.state_dict())
            optimizer.step()
        over_lists.step()
    return list(found)


def functions_of(source: str) -> list[triton.JITFunction]:
    """Return the kernels of a text in order."""
    return [item for item in engine_triton.compiled(source).values() if isinstance(item, triton.JITFunction)]


def together(sources: list[str]) -> list[triton.JITFunction]:
    """Return the kernels that share launches."""
    rows = itertools.zip_longest(*map(functions_of, sources))
    present = [tuple(filter(None, row)) for row in rows]
    return [engine_triton.shared(row) if len(row) > 1 else row[0] for row in present]


def compiled(kernel: triton.JITFunction, capability: int):
    """Return the compiled form of a kernel."""
    kinds = {name: name.rstrip("_0123456789") for name in kernel.arg_names}
    signature = {name: KINDS.get(kind, "constexpr") for name, kind in kinds.items()}
    constants = {name: CONSTANTS[kind] for name, kind in kinds.items() if kind in CONSTANTS}
    text = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(text, target=target, options={"num_warps": engine_triton.WARPS})


def main() -> None:
    is_together = "--together" in sys.argv
    capability, *names = [argument for argument in sys.argv[1:] if argument != "--together"]
    for name in names:
        alias, _, code = name.partition(":")
        factory = getattr(gradtx, alias)
        options = {"state_dtype": code} if code else {}
        tx = factory(**example_of(factory), **options)
        sources = sources_of(tx)
        found = together(sources) if is_together else itertools.chain(*map(functions_of, sources))
        for kernel in found:
            binary = compiled(kernel, int(capability))
            ptx = binary.asm["ptx"]
            wide = [
                len(re.findall(rf"{each}\.global[.\w:]*\.v4\.b32|{each}\.global[.\w:]*\.v2\.b64", ptx))
                for each in ("ld", "st")
            ]
            spills = len(re.findall(r"\.local ", ptx))
            size = len(binary.asm["cubin"])
            moved = f"{wide[0]} wide loads, {wide[1]} wide stores, {spills} local, {size} bytes"
            # The last text calls those of the others.
            texts = len(set(re.findall(r"gradtx_kernel_\w+", binary.asm["ttir"]))) - is_together
            print(f"{f'{texts} texts, ' if is_together else ''}{name} {kernel.__name__}: {moved}")


if __name__ == "__main__":
    main()
