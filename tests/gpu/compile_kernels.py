"""Compile kernels for GPUs, without one: `python -m tests.gpu.compile_kernels 90 adamw adamw:int8 ...`.

Prints a line per kernel: its name, instances of 16-byte loads and stores, registers' spills, and bytes of the binary.
"""

from __future__ import annotations

import re
import sys

import pytest
import torch

import gradtx
from gradtx.optim.engine import kernels
from gradtx.optim.engine import triton as engine_triton

triton = pytest.importorskip("triton", reason="needs Triton, a package of its own on machines without a GPU")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from tests.examples import example_of  # noqa: E402

KINDS = {
    **dict.fromkeys(("table", "sizes", "blocks", "chunk_leaf", "chunk_start", "leaf_chunks", "words"), "*i64"),
    **dict.fromkeys(("partials", "sums", "results"), "*fp64"),
    **dict.fromkeys(("n_leaves", "n_chunks"), "i32"),
    "w": "i64",
}
CONSTANTS = {
    **{"ON_DEVICE": 0, "BLOCK": kernels.BLOCK, "ALIGNED": True, "WIDTH": kernels.WIDTH},
    **{"LANES": kernels.LANES, "STEPS": kernels.STEPS},
}


def sources_of(tx: gradtx.GradientTransformation, dtype: torch.dtype = torch.float32) -> list[str]:
    """Return the texts of an optimizer's kernels, without a step of theirs."""
    found: dict[str, None] = {}

    class Noted(kernels.KernelBundle):
        def process(self, phase):
            found[kernels.PhaseKernels.of(phase, self.device, 0).text.source] = None
            return kernels.MemberBundle.process(self, phase)

    class Writing(kernels.KernelEngine):
        bundle_type = Noted

    params = [torch.nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in ((128, 64), (128,))]
    before, kernels.language_of = kernels.language_of, lambda device: kernels.TritonKernels
    try:
        optimizer = gradtx.as_optimizer(tx, params, compile=Writing())
        for _ in range(2):
            for param in params:
                param.grad = torch.randn_like(param)
            optimizer.step()
    finally:
        kernels.language_of = before
    return list(found)


def compiled(source: str, capability: int):
    """Yield the name and the compiled form of each kernel."""
    for name, kernel in engine_triton.compiled(source).items():
        if not isinstance(kernel, triton.JITFunction):
            continue
        names = kernel.arg_names
        signature = {each: KINDS.get(each.rstrip("0123456789"), "constexpr") for each in names}
        constants = {each: CONSTANTS[each] for each in names if each in CONSTANTS}
        text = ASTSource(fn=kernel, signature=signature, constexprs=constants)
        target = GPUTarget("cuda", capability, 32)
        yield name, triton.compile(text, target=target, options={"num_warps": kernels.WARPS})


def main() -> None:
    capability, *names = sys.argv[1:]
    for name in names:
        alias, _, code = name.partition(":")
        factory = getattr(gradtx, alias)
        options = {"state_dtype": code} if code else {}
        tx = factory(**example_of(factory), **options)
        for source in sources_of(tx):
            for kernel, binary in compiled(source, int(capability)):
                ptx = binary.asm["ptx"]
                wide = [
                    len(re.findall(rf"{each}\.global[.\w:]*\.v4\.b32|{each}\.global[.\w:]*\.v2\.b64", ptx))
                    for each in ("ld", "st")
                ]
                spills = len(re.findall(r"\.local ", ptx))
                size = len(binary.asm["cubin"])
                print(f"{name} {kernel}: {wide[0]} wide loads, {wide[1]} wide stores, {spills} local, {size} bytes")


if __name__ == "__main__":
    main()
