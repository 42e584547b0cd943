"""Run Triton's kernels on the CPU, through its interpreter, which follows tables of pointers."""

from __future__ import annotations

import contextlib
import functools
import linecache
import math
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from gradtx.base.recent import ProgramsOfChains, SharedPrograms
from gradtx.compiler import kernels
from gradtx.compiler import triton as engine_triton
from gradtx.optim import outline

triton = pytest.importorskip("triton", reason="needs Triton, a package of its own on machines without a GPU")
np = pytest.importorskip("numpy")

from triton.runtime.interpreter import InterpreterBuilder  # noqa: E402

CAST, SPLAT = InterpreterBuilder.cast_impl, InterpreterBuilder.create_splat
# Apart from those in C++ for the CPU.
KERNELS, OUTLINES = SharedPrograms(), ProgramsOfChains()

# Functions of CUDA's library, which the interpreter lacks.
FUNCTIONS = {
    **{name: getattr(np, name) for name in ["exp", "expm1", "log", "log1p", "sin", "cos", "tanh", "rint"]},
    "atan": np.arctan,
    "atan2": np.arctan2,
    "pow": np.power,
    "erf": np.vectorize(math.erf, otypes=[float]),
}


def _rounded(builder: Any, handle: Any, dtype: Any) -> Any:
    """Convert float32 to bfloat16 as GPUs do, to the nearest value; the interpreter truncates."""
    from triton import language as tl
    from triton.runtime.interpreter import TensorHandle

    if handle.dtype.scalar == tl.float32 and dtype.scalar == tl.bfloat16:
        values = torch.from_numpy(np.array(handle.data, dtype=np.float32)).to(torch.bfloat16)
        return TensorHandle(values.view(torch.int16).numpy().view(np.uint16), tl.bfloat16)
    return CAST(builder, handle, dtype)


def _of_bfloat16(builder: Any, value: float) -> Any:
    """Return a constant of bfloat16, which the interpreter lacks; it keeps the words."""
    from triton import language as tl
    from triton.runtime.interpreter import TensorHandle

    word = torch.tensor([value], dtype=torch.bfloat16).view(torch.int16)
    return TensorHandle(word.numpy().view(np.uint16), tl.bfloat16)


def _without_nan(function: Any) -> Any:
    """Return the operation of GPUs that passes over NaN, as Triton's does unless it is told otherwise."""
    return lambda builder, x, y: builder.binary_op(x, y, function)


def _splat(builder: Any, shape: Any, handle: Any) -> Any:
    """Repeat a number; the interpreter takes the result of a comparison for a number of the operands' dtype."""
    from triton import language as tl
    from triton.runtime.interpreter import TensorHandle

    if handle.data.dtype == np.bool_:
        handle = TensorHandle(handle.data, tl.int1)
    return SPLAT(builder, shape, handle)


class Libdevice:
    def __getattr__(self, name: str) -> Any:
        from triton import language as tl
        from triton.runtime.interpreter import TensorHandle

        def called(*operands: Any) -> Any:
            arrays = [operand.handle.data for operand in operands]
            with np.errstate(all="ignore"):
                result = np.asarray(FUNCTIONS[name](*arrays)).astype(arrays[0].dtype)
            dtype = operands[0].dtype.scalar
            is_block = any(operand.type.is_block() for operand in operands)
            kind = tl.block_type(dtype, list(result.shape)) if is_block else dtype
            return tl.tensor(TensorHandle(result, dtype), kind)

        return called


@functools.cache
def compiled(source: str, called: tuple[Any, ...] = ()) -> dict[str, Any]:
    from triton import language as tl
    from triton.runtime.interpreter import InterpretedFunction

    namespace = {"triton": triton, "tl": tl, "libdevice": Libdevice(), **engine_triton.numbered(called)}
    made: dict[str, Any] = {}
    file = f"<interpreted kernel {hash(source):x}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    plain = {**namespace, "triton": Plain}
    exec(compile(source, file, "exec"), plain)
    for name, function in plain.items():
        if isinstance(function, types.FunctionType):
            function.__globals__.update(namespace)
            made[name] = InterpretedFunction(function)
    return made


class Plain:
    """In place of Triton."""

    @staticmethod
    def jit(do_not_specialize: Any) -> Any:
        return lambda function: function


def launch(kernel: Any, instances: int, arguments: Any, **constants: Any) -> None:
    if not instances:
        return
    from tests.gpu import pretend

    given = [each.inner if isinstance(each, pretend.OnGpu) else each for each in arguments]
    pretend.GPU.launched(kernel.fn.__name__)
    constants.pop("num_warps", None)
    with np.errstate(all="ignore"):  # entries outside of a leaf may be divided by zero
        kernel[(instances,)](*given, **constants)


@contextlib.contextmanager
def interpreting() -> Iterator[None]:
    """Let engines run kernels in Triton, on the CPU and on the pretended GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(kernels.LANGUAGES, "cpu", kernels.TritonKernels)
        patch.setitem(kernels.LANGUAGES, "pretend", kernels.TritonKernels)
        patch.setattr(kernels, "_KERNELS", KERNELS)
        patch.setattr(outline, "_OUTLINES", OUTLINES)
        patch.setattr(engine_triton, "compiled", compiled)
        patch.setattr(engine_triton, "launch", launch)
        patch.setattr(InterpreterBuilder, "cast_impl", _rounded)
        patch.setattr(InterpreterBuilder, "create_splat", _splat)
        patch.setattr(InterpreterBuilder, "get_bf16", _of_bfloat16, raising=False)
        for name, function in (("create_maxnumf", np.fmax), ("create_minnumf", np.fmin)):
            patch.setattr(InterpreterBuilder, name, _without_nan(function))
        yield
