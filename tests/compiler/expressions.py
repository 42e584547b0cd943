"""Each operation that kernels and scalars can write, beside torch's function, and which of them differ from it.

All operations run in one kernel for each language and dtype.
"""

import contextlib
import functools
import inspect
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch

from gradtx.compiler import cpp, record, scalar_operations, write_expressions
from gradtx.compiler.kernels import AS_RECORDED, Inputs, PhaseKernels
from gradtx.compiler.record import PhaseResult
from gradtx.compiler.tables import Table

CPU = torch.device("cpu")
F64, F32, BF16 = DTYPES = (torch.float64, torch.float32, torch.bfloat16)
LANGUAGES = ("C++", "Triton")


class Operation(NamedTuple):
    """An operation of a kernel.

    Attributes:
        function: Torch's.
        operands: The names of its operands; see `operands_of`.
        rounding: By how many units in the last place of the result its value may differ; 0 asks for the same bits.
        terms: Whether these are units of the largest operand: a sum of terms of opposite signs has their errors.
    """

    function: Callable[..., Any]
    operands: str = "x"
    rounding: float = 0.0
    terms: bool = False


# Processors and libraries round roots and transcendental functions differently, by 1 unit each.
ROUNDED = "exp expm1 log log1p sin cos tanh atan erf sqrt rsqrt sigmoid"
EXACT = "floor ceil round abs sign neg reciprocal isnan isinf logical_not nan_to_num"
OF_TWO = "add sub mul div maximum minimum gt ge lt le eq ne"
OF_FLAGS = "logical_and logical_or bitwise_and bitwise_or bitwise_xor mul eq ne"
OF_INTEGERS = "add sub mul maximum minimum bitwise_and bitwise_or bitwise_xor gt le eq"
# What follows the comma tells operations of one operator apart. Constants are such that bfloat16 holds them: torch
# rounds them to the dtype of entries.
OPERATIONS = {
    **{name: Operation(getattr(torch, name)) for name in EXACT.split()},
    **{name: Operation(getattr(torch, name), rounding=2) for name in ROUNDED.split()},
    **{name: Operation(getattr(torch, name), "xy") for name in OF_TWO.split()},
    **{f"{name}, of flags": Operation(getattr(torch, name), "ab") for name in OF_FLAGS.split()},
    **{f"{name}, of integers": Operation(getattr(torch, name), "ij") for name in OF_INTEGERS.split()},
    "abs, of integers": Operation(torch.abs, "i"),
    "bitwise_not, of integers": Operation(torch.bitwise_not, "i"),
    "bitwise_not, of flags": Operation(torch.bitwise_not, "a"),
    "__lshift__": Operation(lambda i: i << 3, "i"),
    "__rshift__": Operation(lambda i: i >> 3, "i"),
    "atan2": Operation(torch.atan2, "xy", rounding=2),
    "pow": Operation(torch.pow, "xy", rounding=2),
    "pow, by 1/2": Operation(lambda x: x**0.5, rounding=2),
    # In C++ a cube root: the error of 1/3 as a float, times the logarithm of the largest number, is in the power alone.
    "pow, by 1/3": Operation(lambda x: x ** (1 / 3), rounding=64),
    "pow, by 3": Operation(lambda x: x**3, rounding=2),
    "pow, by a scalar": Operation(torch.pow, "xs", rounding=2),
    "mul, by a scalar": Operation(torch.mul, "xs"),
    "mul, in a square": Operation(lambda x: x**2),
    "ne, in isfinite": Operation(torch.isfinite),
    "add, scaled": Operation(lambda x, y: torch.add(x, y, alpha=-0.375), "xy", rounding=2, terms=True),
    "sub, scaled": Operation(lambda x, y: torch.sub(x, y, alpha=-0.375), "xy", rounding=2, terms=True),
    "rsub": Operation(lambda x: 1.5 - x),
    "addcmul": Operation(lambda x, y, z: torch.addcmul(x, y, z, value=0.375), "xyz", rounding=2, terms=True),
    "addcdiv": Operation(lambda x, y: torch.addcdiv(x, x, y, value=0.375), "xy", rounding=2, terms=True),
    "lerp, from the first end": Operation(lambda x, y: torch.lerp(x, y, 0.375), "xy", rounding=2, terms=True),
    "lerp, from the second end": Operation(lambda x, y: torch.lerp(x, y, 0.625), "xy", rounding=2, terms=True),
    "where": Operation(torch.where, "axy"),
    "clamp": Operation(torch.clamp, "xyz"),
    "clamp, above": Operation(lambda x, y: torch.clamp(x, max=y), "xy"),
    "clamp_min, in clamp": Operation(lambda x: x.clamp(-0.5, 0.75)),
    "clamp_min": Operation(lambda x: torch.clamp_min(x, 0.25)),
    "clamp_max": Operation(lambda x: torch.clamp_max(x, 0.25)),
    "nan_to_num, with others": Operation(lambda x: x.nan_to_num(nan=0.5, posinf=2.0, neginf=-3.0)),
    "_to_copy, to float32": Operation(lambda x: x.to(torch.float32)),
    "_to_copy, to float64": Operation(lambda x: x.to(torch.float64)),
    "_to_copy, to bfloat16": Operation(lambda x: x.to(torch.bfloat16)),
    "_to_copy, to flags": Operation(lambda x: x.to(torch.bool)),
    "_to_copy, of flags": Operation(lambda a: a.to(torch.float32), "a"),
    "_to_copy, of integers": Operation(lambda i: i.to(torch.float64), "i"),
    "view, as integers": Operation(lambda w: w.view(torch.int32), "w"),
    "view, as floats": Operation(lambda i: i.view(torch.float32), "i"),
    "ones_like": Operation(torch.ones_like),
    "zeros_like": Operation(torch.zeros_like),
    "full_like": Operation(lambda x: torch.full_like(x, 0.75)),
    "new_ones": Operation(lambda x: x + x.new_ones(x.shape)),
    "new_zeros": Operation(lambda x: x + x.new_zeros(x.shape)),
    "full": Operation(lambda x: x + torch.full(x.shape, 0.75, dtype=x.dtype)),
    "arange": Operation(lambda i: i + torch.arange(i.numel()), "i"),
}
# Of rows, or of the whole leaf. Torch adds numbers up in another order.
REDUCTIONS = {
    "amax": Operation(lambda m: m.amax(-1, keepdim=True), "m"),
    "amin": Operation(lambda m: m.amin(-1, keepdim=True), "m"),
    "sum": Operation(lambda m: m.sum(-1, keepdim=True), "m", rounding=8, terms=True),
    "mean": Operation(lambda m: m.mean(-1, keepdim=True), "m", rounding=8, terms=True),
    "linalg_vector_norm": Operation(lambda m: torch.linalg.vector_norm(m, dim=-1, keepdim=True), "m", rounding=8),
    "max": Operation(torch.max, "n"),
    "min": Operation(torch.min, "n"),
    "max, of NaN": Operation(torch.max, "m"),
    "min, of NaN": Operation(torch.min, "m"),
    "sum, of the leaf": Operation(torch.sum, "n", rounding=8, terms=True),
    "mean, of the leaf": Operation(torch.mean, "n", rounding=8, terms=True),
    "linalg_vector_norm, of the leaf": Operation(torch.linalg.vector_norm, "n", rounding=8),
}
PROGRAMS = {"entries": OPERATIONS, "reductions": REDUCTIONS}


# Triton's -x is 0 - x, whose zero has no sign.
WITHOUT_SIGN_OF_ZERO = {("neg", "Triton")}


def reason_to_skip(name, dtype, language):
    """Why an operation is not compared; empty if it is."""
    if dtype is BF16 and name == "pow, by 1/3":
        return "torch rounds the exponent to bfloat16"
    is_of_words = name.partition(",")[0] in write_expressions.COMPARISONS or name in {*REDUCTIONS, "_to_copy, to flags"}
    if dtype is BF16 and language == "Triton" and is_of_words:
        return "Triton's interpreter takes words of bfloat16 for integers"
    return ""


# The program of all operations.


@functools.cache
def operands_of(dtype, language):
    """All pairs of values that differ in kind: floats x and y, and others as `Operation` names them; a scalar s.

    There are also entries that fill no vector. Beside the floats z is at most 1, w is float32, i and j are integers, a
    and b flags, m a matrix with NaN and infinities, and n one of finite numbers.
    """
    info = torch.finfo(dtype)
    values = [0.0, -0.0, 1.0, -1.0, 0.3, -0.7, 1.5, -2.5, 1.6, 1e-3, 1e3, 30.0, -90.0, math.inf, -math.inf, math.nan]
    values += [info.max, -info.max, info.max / 2, info.smallest_normal, -info.smallest_normal]
    if (dtype, language) != (BF16, "Triton"):  # the interpreter takes them for 0
        values += [info.smallest_normal / 4, -info.smallest_normal / 4]
    floats = torch.tensor(values, dtype=F64).to(dtype)
    integers = torch.tensor([*range(-7, 10), 2**31 - 1, -(2**31), 12345, -12345, 77, 99], dtype=torch.int32)
    integers = integers[: len(floats)]
    x, y = torch.cartesian_prod(floats, floats).unbind(1)
    i, j = torch.cartesian_prod(integers, integers).unbind(1)
    n = torch.linspace(-2, 3, 25 * 12, dtype=F64).view(25, 12).to(dtype)
    m = n.clone()
    m[3, 4], m[5, 0], m[7, 11] = math.nan, math.inf, -math.inf
    z = torch.linspace(-1, 1, len(x), dtype=F64).to(dtype)
    tensors = {"x": x, "y": y, "z": z, "w": x.float(), "i": i, "j": j, "a": i % 2 == 0, "b": j % 3 == 0, "m": m, "n": n}
    return {name: tensor.contiguous() for name, tensor in tensors.items()} | {"s": 0.75}


def expected_of(operation, operands):
    return operation.function(*map(operands.get, operation.operands))


def recording_of(operations, operands):
    """A recording that writes the results of operations, the tensors of its arguments, and those of its results."""
    taken = set().union(*(operation.operands for operation in operations)) - {"s"}
    results = [torch.empty_like(expected_of(operation, operands)) for operation in operations]
    arguments = [*map(operands.get, sorted(taken)), *results]

    def run(tensors):
        stand_ins = dict(zip(["s", *sorted(taken)], tensors, strict=False))
        values = [expected_of(operation, stand_ins) for operation in operations]

        def write():
            for target, value in zip(tensors[-len(values) :], values, strict=True):
                target.copy_(value)

        return PhaseResult([], (), None, write)

    return record(run, [F64], [(tensor.dtype, tensor.shape) for tensor in arguments]), arguments, results


class Phase(NamedTuple):
    recording: Any
    text: str
    names: tuple[Any, ...] = ()


def computed(language, dtype, operations):
    """What a kernel computes."""
    operands = operands_of(dtype, language)
    recording, arguments, results = recording_of(operations, operands)
    context = contextlib.nullcontext()
    if language == "Triton":
        context = pytest.importorskip("tests.gpu.interpreted", reason="needs Triton").interpreting()
    with context:
        kernels = PhaseKernels.of(Phase(recording, recording.text()), CPU, 0, AS_RECORDED)
        table = Table(1, [[tensor.data_ptr()] for tensor in arguments], CPU)
        layout = kernels.layout([kernels.text.groups.sizes(arguments[0].shape)], CPU)
        scalars = kernels.scalars.where_on_device(frozenset()).function([operands["s"]])
        kernels.run(Inputs(kernels, scalars, table, layout))
    return results


@functools.cache
def all_computed(language, dtype, program):
    """What one kernel computes; None if there is none of all operations together."""
    operations = {name: x for name, x in PROGRAMS[program].items() if not reason_to_skip(name, dtype, language)}
    try:
        return dict(zip(operations, computed(language, dtype, operations.values()), strict=True))
    except Exception:  # then each test runs its operation alone, and that at fault has the error
        return None


# Their results.


def differing(found, expected, operation, operands):
    """A flag for each entry: whether it differs, NaN and the signs of zeros included."""
    found, expected = found.double(), expected.double()
    is_same = (found == expected) & (found.signbit() == expected.signbit())
    is_same |= found.isnan() & expected.isnan()
    if operation.rounding:
        info = torch.finfo(operands[0].dtype)
        size = expected.abs()
        if operation.terms:
            for operand in operands:
                terms = operand.double().nan_to_num(0.0, 0.0, 0.0).abs()
                size = size.maximum(terms if terms.shape == size.shape else terms.amax())
        is_same |= (found - expected).abs() <= operation.rounding * info.eps * size + 2 * info.smallest_normal
    return ~is_same


def fault_of_kernels(program, name, dtype, language):
    """What a kernel computes in another way than torch; empty if nothing."""
    operation = PROGRAMS[program][name]
    together = all_computed(language, dtype, program)
    found = computed(language, dtype, [operation])[0] if together is None else together[name]
    operands = operands_of(dtype, language)
    expected = expected_of(operation, operands)
    if (name, language) in WITHOUT_SIGN_OF_ZERO:
        found, expected = found + 0.0, expected + 0.0
    tensors = [operands[operand] for operand in operation.operands if operand != "s"]
    wrong = differing(found, expected, operation, tensors)
    if not wrong.any():
        return ""
    at = tuple(wrong.nonzero()[0].tolist())
    entries = [tensor[at].item() if tensor.shape == wrong.shape else tensor[at[:1]].tolist() for tensor in tensors]
    message = f"{name} of {entries} in {language} is {found[at].item()!r}; torch has {expected[at].item()!r}"
    return f"{message} ({dtype}; {int(wrong.sum())} of {wrong.numel()} entries differ)"


# Scalars, in Python.

NUMBERS = (0.0, -0.0, 1.0, -1.0, 0.3, -2.5, 1e3, -90.0, 1e300, 5e-324, math.inf, -math.inf, math.nan)
FLAGS = (False, True)
# The operands of operations that take others than one or two numbers.
OTHERS = {
    **{f"bitwise_{name}": [FLAGS, FLAGS] for name in ("and", "or")},
    "bitwise_not": [FLAGS],
    "log": [NUMBERS],
    "where": [FLAGS, NUMBERS, NUMBERS[:4]],
}
SCALARS = {packet.__name__: (packet, function) for packet, function in scalar_operations.IN_PYTHON.items()}


def columns_of(name, function):
    return OTHERS.get(name) or [NUMBERS] * len(inspect.signature(function).parameters)


def in_torch(packet, operands):
    if packet is torch.ops.aten.scalar_tensor:
        return packet(*operands, dtype=F64)
    dtypes = (torch.bool if isinstance(operand, bool) else F64 for operand in operands)
    return packet(*(torch.tensor(operand, dtype=dtype) for operand, dtype in zip(operands, dtypes, strict=True)))


def fault_of_scalars(name):
    """What Python computes in another way than torch; empty if nothing."""
    packet, function = SCALARS[name]
    for operands in itertools.product(*columns_of(name, function)):
        expected = in_torch(packet, operands)
        try:
            found = torch.tensor(function(*operands), dtype=expected.dtype)
        except (ArithmeticError, ValueError) as error:  # then torch's operation runs
            if function not in scalar_operations.MAY_RAISE:
                return f"{name} of {operands} raises {error!r} in Python, which MAY_RAISE does not say"
            continue
        if not torch.allclose(found, expected, rtol=4e-16, atol=0.0, equal_nan=True):
            return f"{name} of {operands} is {found.item()!r} in Python; torch has {expected.item()!r}"
    return ""


@functools.cache
def wrong_operations(language="C++"):
    """For messages of tests of whole chains: the operations that are wrong alone, a line each."""
    lines = list(map(fault_of_scalars, SCALARS))
    if language != "C++" or cpp.compiler_or_none() is not None:
        for program, operations in PROGRAMS.items():
            for name in operations:
                try:
                    lines.append(fault_of_kernels(program, name, F32, language))
                except Exception as error:
                    lines.append(f"{name} in {language} raises {error!r}")
    return "".join(f"\nwrong alone: {line}" for line in lines if line)
