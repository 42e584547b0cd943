"""Kernels in C++: each operation as torch computes it, rows of all lengths, threads, and what is not finite."""

import functools
import math
import os
import platform
import re
import struct
import subprocess

import pytest
import torch

import gradtx
from gradtx.base.recent import SharedPrograms
from gradtx.compiler import cpp, kernels
from gradtx.compiler.write_cpp_expressions import HALVES, PRELUDE
from tests.compiler.problems import CHANNELS, DIRECTIONS, FACTORED, ROWS, moved, rule
from tests.conformance import assert_own_memory
from tests.tiers import by_day

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
TOLERANCES = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}
VALUES = (0.0, -0.0, 1.0, -1.0, 0.3, -0.7, 1.6, 2.5, 1e-3, 1e3, math.inf, -math.inf, math.nan)
each = pytest.mark.parametrize


# Operations.

NAMES = ("exp", "expm1", "sin", "cos", "tanh", "atan", "erf", "floor", "ceil", "round", "abs", "sign", "neg", "square")
UNARY = {
    **{name: getattr(torch, name) for name in (*NAMES, "sigmoid", "reciprocal")},
    "log": lambda x: x.abs().log(),
    "log1p": lambda x: x.abs().log1p(),
    "sqrt": lambda x: x.abs().sqrt(),
    "rsqrt": lambda x: x.abs().rsqrt(),
    "pow": lambda x: x.abs() ** 0.3,
    "cube root by pow": lambda x: x.abs() ** (1 / 3),
    "square root by pow": lambda x: x.abs() ** 0.5,
    "nan_to_num": lambda x: x.nan_to_num(nan=0.5, posinf=2.0, neginf=-2.0),
    "isnan": lambda x: x.isnan().to(x.dtype),
    "isinf": lambda x: x.isinf().to(x.dtype),
    "isfinite": lambda x: x.isfinite().to(x.dtype),
    "not": lambda x: (~(x > 0)).to(x.dtype),
    "clamp": lambda x: x.clamp(-0.5, 0.5),
    "clamp_min": lambda x: x.clamp(min=0.2),
    "clamp_max": lambda x: x.clamp(max=0.2),
    "where": lambda x: torch.where(x > 0.1, x, 2 * x),
    "lerp": lambda x: torch.lerp(x, 2 * x, 0.7),
    "flags": lambda x: (((x > 0) & (x < 2)) | (x == -1) ^ (x != x)).to(x.dtype),
    "integers": lambda x: ((x.nan_to_num(0.0, 5.0, -5.0).to(torch.int32) * 7 ^ 3) << 2 >> 1).to(x.dtype),
    "bits": lambda x: (x.float().view(torch.int32) & 0x7FFFFFFF).view(torch.float32).to(x.dtype),
}
BINARY = {
    **{name: getattr(torch, name) for name in ["add", "sub", "mul", "div", "atan2", "maximum", "minimum"]},
    "pow": lambda x, y: x.abs() ** y,
    "addcmul": lambda x, y: torch.addcmul(x, x, y, value=0.3),
    "addcdiv": lambda x, y: torch.addcdiv(x, x, y, value=0.3),
    "add with a factor": lambda x, y: torch.add(x, y, alpha=-0.3),
    "at most": lambda x, y: (x <= y).to(x.dtype),
    "at least": lambda x, y: (x >= y).to(x.dtype),
}


def assert_are_those_of_torch(operations, operands, dtype):
    """Compare operations, which one kernel stores as slots, with torch's."""
    names = {f"slot{i}": name for i, name in enumerate(operations)}

    @gradtx.per_tensor()
    def store():
        def init(param):
            slots = {slot: torch.zeros_like(param) for slot in names}
            return {**slots, "other": operands[-1].clone()}

        def update(update, state, param, ctx):
            given = (update, state["other"])[: len(operands)]
            results = {slot: operations[name](*given) for slot, name in names.items()}
            return update, {**results, "other": state["other"]}

        return init, update

    param = torch.nn.Parameter(torch.zeros_like(operands[0]))
    optimizer = gradtx.as_optimizer(gradtx.chain(store(state_dtype=dtype), gradtx.scale(0.0)), [param], compile=True)
    param.grad = operands[0]
    optimizer.step()
    (item,) = optimizer.explain()
    assert item.way == "kernels", item.reason
    slots = {key.removeprefix("store."): value for key, value in optimizer.state[param].items()}
    for slot, name in names.items():
        torch.testing.assert_close(
            slots[slot],
            operations[name](*operands),
            rtol=TOLERANCES[dtype],
            atol=TOLERANCES[dtype],
            equal_nan=True,
            msg=lambda text, name=name: f"{name}: {text}",
        )


@each("dtype", DTYPES, ids=str)
def test_operations_are_those_of_torch(dtype):
    values = torch.tensor(VALUES * 5, dtype=dtype)  # also those that no vector holds
    assert_are_those_of_torch(UNARY, [values], dtype)


@each("dtype", DTYPES, ids=str)
def test_operations_of_two_tensors_are_those_of_torch(dtype):
    pairs = torch.cartesian_prod(torch.tensor(VALUES), torch.tensor(VALUES)).to(dtype)
    assert_are_those_of_torch(BINARY, [pairs[:, 0].clone(), pairs[:, 1].clone()], dtype)


@each("dtype", DTYPES[:3], ids=str)
def test_sums_with_scaled_products_overflow_where_those_of_torch_do(dtype):
    largest = torch.finfo(dtype).max
    ends = torch.tensor([1e-30, 1.0, 1e-3 * largest, 0.9 * largest, largest], dtype=torch.float64)
    pairs = torch.cartesian_prod(ends, ends).to(dtype)
    scaled = {
        f"{operation.__name__} {value}": functools.partial(joined, operation, value)
        for operation in (torch.addcmul, torch.addcdiv)
        for value in (1e-3, 1.0, 1e3, -0.5 / largest)
    }
    assert_are_those_of_torch(scaled, [pairs[:, 0].clone(), pairs[:, 1].clone()], dtype)


def joined(operation, value, x, y):
    return operation(torch.zeros_like(x), x, y, value=value)


# Reductions.

SHAPES = [(6, 4), (4, 6), (3, 16), (2, 3, 5), (2, 3, 2, 2), (1, 7), (7, 1), (5000, 3), (3, 5000)]


@each("name", ROWS)
def test_reductions_of_rows_and_leaves_of_all_shapes_at_once(name):
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]
    found, ways = moved(rule(ROWS[name]), gradients)
    assert ways == {"kernels"}
    for gradient, values in zip(gradients, found, strict=True):
        torch.testing.assert_close(values, ROWS[name](gradient), rtol=1e-12, atol=1e-12, equal_nan=True)


@each("reduce", [torch.amax, torch.amin, torch.sum])
@each("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_reaches_the_result_of_a_reduction(reduce, value):
    gradient = torch.linspace(-1, 1, 40).view(4, 10).contiguous()
    gradient[2, 7] = value
    for chain in (rule(lambda x: x + reduce(x, -1, keepdim=True)), rule(lambda x: x + reduce(x, (0, 1)))):
        (found,), _ = moved(chain, [gradient])
        (expected,), _ = moved(chain, [gradient], compile=False)
        torch.testing.assert_close(found, expected, equal_nan=True)


@each("compile", [False, True])
@each("reduce", [torch.max, torch.min, torch.amax, torch.amin], ids=lambda function: function.__name__)
def test_the_largest_entry_of_an_empty_leaf_is_an_error_in_every_mode(reduce, compile):
    """`largest` of gradtx.maths is 0 there."""
    chain = rule(lambda x: x / (1 + reduce(x)))
    for gradients in ([torch.ones(0, 2)], [torch.ones(3, 2), torch.ones(0, 2)]):
        with pytest.raises(RuntimeError, match="Expected reduction dim to be specified"):
            moved(chain, gradients, compile)


COLUMNS = {
    "a part of the rows": lambda x: x - x.view(2, -1, x.shape[-1]).mean(dim=1).repeat(x.shape[0] // 2, 1),
    "transposed": lambda x: x + x.sum(0, keepdim=True) * x.t().sum(0).sum(),
}


@each("name", COLUMNS)
def test_what_has_no_kernels_runs_over_lists_and_says_why(name):
    gradient = torch.randn(4, 64, dtype=torch.float64)
    param = torch.nn.Parameter(torch.zeros_like(gradient))
    optimizer = gradtx.as_optimizer(rule(COLUMNS[name]), [param], compile=True)
    param.grad = gradient
    optimizer.step()
    (item,) = optimizer.explain()
    assert item.way == "lists"
    assert item.reason
    torch.testing.assert_close(param.detach(), COLUMNS[name](gradient))


@each("shape", [(64, 64), (32, 64), (64, 16)])
def test_a_slot_with_a_value_for_each_column_is_not_taken_for_one_of_rows(shape):
    """Even where there are as many rows as columns, or as a block has entries."""
    scales = torch.linspace(1, 2, shape[-1])
    chain = rule(lambda update, state: update * state["scale"], lambda param: {"scale": scales.clone()})
    gradient = torch.randn(shape)
    (found,), _ = moved(chain, [gradient])
    torch.testing.assert_close(found, gradient * scales)


def test_a_slot_with_a_value_for_each_row_is_read():
    scales = torch.linspace(1, 2, 12).view(12, 1)
    chain = rule(lambda update, state: update * state["scale"], lambda param: {"scale": scales.clone()})
    gradient = torch.randn(12, 5)
    (found,), ways = moved(chain, [gradient])
    assert ways == {"kernels"}
    torch.testing.assert_close(found, gradient * scales)


# Leaves of all shapes.


NUMBERS = {
    "of entries": lambda x: x / x.numel() + 2.0,
    "of entries and rows": lambda x: x * x.numel() ** 0.5 - x.shape[0],
    "in a sum": lambda x: x - x.sum() / (x.numel() + 1.0),
    "in a row": lambda x: x.flatten(1) / (1e-3 + x.flatten(1).norm(dim=1, keepdim=True) / x[0].numel()),
    "of ones": lambda x: x + x.numel() * torch.ones_like(x).sum(),
}


@each("name", NUMBERS)
def test_numbers_that_follow_from_shapes_are_arguments_of_one_text(name, texts):
    function = NUMBERS[name]
    generator = torch.Generator().manual_seed(0)
    shapes = [(6, 4), (4, 64), (3, 16), (2, 3, 5), (2, 3, 2, 2), (64, 128), (3, 5000)]
    gradients = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    found, ways = moved(rule(lambda x: function(x).view(x.shape)), gradients)
    assert ways == {"kernels"}
    assert len(texts) == 1
    for gradient, values in zip(gradients, found, strict=True):
        torch.testing.assert_close(values, function(gradient).view(gradient.shape), rtol=1e-12, atol=1e-12)


def test_constants_that_no_kernel_takes_as_arguments_stay_in_the_text(texts):
    function = lambda x: x * torch.scalar_tensor(1.0 / x.shape[0], dtype=x.dtype)  # noqa: E731
    gradients = [torch.randn(shape, dtype=torch.float64) for shape in [(6, 4), (4, 64), (3, 16)]]
    found, ways = moved(rule(function), gradients)
    assert ways == {"kernels"}
    for gradient, values in zip(gradients, found, strict=True):
        torch.testing.assert_close(values, gradient / gradient.shape[0])


@each("name", ["adamp", "adam_mini", "nero", "lamb"])
def test_all_matrices_and_filters_of_a_model_have_one_text(name, texts):
    shapes = [(64, 3, 7, 7), (64, 64, 1, 1), (64, 64, 3, 3), (256, 64, 1, 1), (10, 256), (128, 256)]
    gradients = [torch.randn(shape) for shape in shapes]
    found, _ = moved(getattr(gradtx, name)(lr=0.1), gradients)
    assert len(texts) == 1
    expected, _ = moved(getattr(gradtx, name)(lr=0.1), gradients, compile=False)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


# Threads, and functions of trees.


@each("make", [gradtx.adamw, gradtx.lamb, lambda: gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adamp(lr=0.1))])
def test_threads_change_no_bit(make):
    assert_threads_change_no_bit(make, [torch.randn(300, 700), torch.randn(5), torch.randn(64, 3, 3, 3)])
    # Small leaves run together, between some that are divided among threads.
    small = [torch.randn(3 + i, 4) for i in range(30)]
    others = [torch.randn(0, 4), *small, torch.randn(150, 100)]
    assert_threads_change_no_bit(make, [*small, torch.randn(300, 100), *others])


def assert_threads_change_no_bit(make, gradients):
    threads = torch.get_num_threads()
    runs = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            runs.append(moved(make(), gradients)[0])
    finally:
        torch.set_num_threads(threads)
    for run in runs[1:]:
        assert all(map(torch.equal, run, runs[0]))


def test_kernels_of_rows_write_new_memory_for_leaves_of_several_lengths(monkeypatch):
    """One program serves leaves of all shapes, but its kernels have rows of one length: others run over lists."""
    from gradtx.pure import graph_node as graphs

    monkeypatch.setattr(graphs, "FEW_LEAVES", 1)
    tx = gradtx.chain(gradtx.centralize(), gradtx.sgd(lr=0.1))
    params = {str(shape): torch.randn(shape, dtype=torch.float64) for shape in ((6, 4), (4, 6), (3, 8), (8, 3))}
    torch._dynamo.reset()
    compiled = torch.compile(tx.update, backend="aot_eager", fullgraph=True)
    updates, _ = compiled(params, tx.init(params), params)
    for name, param in params.items():
        torch.testing.assert_close(updates[name], -0.1 * (param - param.mean(dim=1, keepdim=True)))


OF_TREES = {
    "columns": lambda: gradtx.chain(gradtx.scale_by_factored_rms(), gradtx.sgd(lr=0.1)),
    "columns before a sum": lambda: gradtx.chain(
        gradtx.scale_by_factored_rms(), gradtx.clip_by_global_norm(0.1), gradtx.sgd(lr=0.1)
    ),
    "slots that keep old values": lambda: gradtx.sm3(lr=0.1),
    "norms of weights that meet nothing else": gradtx.adafactor,
}


@each("name", OF_TREES)
@by_day("columns before a sum", "slots that keep old values")
def test_functions_of_trees_run_columns_as_kernels_that_write_new_memory(name, monkeypatch):
    from gradtx.pure import graph_node as graphs

    layouts = []

    def run(self, inputs):
        layouts.append(inputs.layout)
        return running(self, inputs)

    running = kernels.CppKernels.run
    monkeypatch.setattr(kernels.CppKernels, "run", run)
    monkeypatch.setattr(graphs, "FEW_LEAVES", 1)
    tx, generator = OF_TREES[name](), torch.Generator().manual_seed(0)
    # Two leaves of a shape, equal sizes of other axes, and axes of one entry.
    shapes = [(6, 4), (6, 4, 1), (1, 6, 4), (5, 5), (3, 2, 3, 3), (7,), ()]
    params = {
        f"{i}": torch.randn(shape, generator=generator, dtype=torch.float64)
        for i, shape in enumerate([*shapes, *shapes])
    }
    torch._dynamo.reset()
    compiled = torch.compile(tx.update, backend="aot_eager", fullgraph=True)
    state = expected_state = tx.init(params)
    for _ in range(3):
        gradients = {key: torch.randn_like(param) for key, param in params.items()}
        layouts.clear()
        updates, state = compiled(gradients, state, params)
        with gradtx.eagerly():
            expected, expected_state = tx.update(gradients, expected_state, params)
        torch.testing.assert_close(updates, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(state, expected_state, rtol=1e-12, atol=1e-12)
        assert any(layout is not None for layout in layouts)
        assert_own_memory((updates, state), params, gradients)


@each("dtype", DTYPES[:2], ids=str)
def test_powers_follow_an_exponent_that_changes(dtype):
    torch.manual_seed(0)
    start = torch.rand(300, dtype=dtype)
    params = [torch.nn.Parameter(start.clone()) for _ in range(2)]
    pair = [gradtx.optim.FAdam([param], lr=0.1, compile=way) for param, way in zip(params, (True, False), strict=True)]
    for exponent in (0.5, 1.0, 0.3, 0.0, 0.5, 2.0):
        gradient = torch.randn(300, dtype=dtype)
        for param, optimizer in zip(params, pair, strict=True):
            optimizer.param_groups[0]["p"] = exponent
            param.grad = gradient
            optimizer.step()
        torch.testing.assert_close(*params, rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype])


def test_a_sum_that_only_the_first_step_reads_is_computed_only_there(texts):
    torch.manual_seed(0)
    start = [torch.randn(64, 32), torch.randn(300)]
    params = [[torch.nn.Parameter(leaf.clone()) for leaf in start] for _ in range(2)]
    pair = [gradtx.optim.SGDSaI(leaves, lr=0.1, compile=way) for leaves, way in zip(params, (True, False), strict=True)]
    for _ in range(4):
        gradients = [torch.randn_like(leaf) for leaf in start]
        for leaves, optimizer in zip(params, pair, strict=True):
            for leaf, gradient in zip(leaves, gradients, strict=True):
                leaf.grad = gradient
            optimizer.step()
    for compiled, leaf in zip(*params, strict=True):
        torch.testing.assert_close(compiled, leaf, rtol=1e-6, atol=1e-6)
    calls = [line for text in texts for line in text.splitlines() if re.search(r"(stage|reduce)\d\(a, from", line)]
    assert calls
    assert all(line.startswith("if (a.words[") for line in calls), calls


def test_equal_texts_are_compiled_once():
    text = '#include <stdint.h>\nextern "C" void run(const void*) {}\n'
    assert cpp.compiled(text) is cpp.compiled(text)


def test_numbers_of_8_bits_are_those_of_torch():
    """All of them, and all between two of them, in both directions; larger ones as in torch 2.13, not NaN as before."""
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    halves = torch.linspace(-1, 1, 4001) ** 3 * 500
    values = torch.cat(
        [codes.float(), halves, codes[:127].float() + codes[1:128].float().diff(prepend=torch.zeros(1)) / 2]
    )
    chain = rule(lambda update: update.to(torch.float8_e4m3fn).to(torch.float32))
    (found,), ways = moved(chain, [values])
    assert ways == {"kernels"}
    expected = values.clamp(-448, 448).to(torch.float8_e4m3fn).float()
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


# Converts numbers as strips of entries do, and each alone.
CONVERSIONS = f"""{PRELUDE}{HALVES}
struct Columns {{ int64_t n; const uint16_t* words; float *wide, *wide_alone; }};
extern "C" void run(const Columns* a) {{
  widen(a->wide, a->words, a->n);
  for (int64_t i = 0; i < a->n; i++) a->wide_alone[i] = widened(a->words[i]);
}}
"""
BACK = f"""{PRELUDE}{HALVES}
struct Columns {{ int64_t n; const float* numbers; uint16_t *words, *words_alone; }};
extern "C" void run(const Columns* a) {{
  narrow(a->words, a->numbers, a->n);
  for (int64_t i = 0; i < a->n; i++) a->words_alone[i] = narrowed(a->numbers[i]);
}}
"""


def _converted(source, numbers, dtype):
    """Return what a text makes of numbers, in strips and alone; not all of them fill a vector."""
    in_strips, alone = (torch.empty(numbers.numel(), dtype=dtype) for _ in range(2))
    columns = (numbers.numel(), *(x.data_ptr() for x in (numbers, in_strips, alone)))
    cpp.compiled(source)(struct.pack("=4q", *columns))
    return in_strips, alone


@each("count", [65536, 65531])
def test_all_numbers_of_float16_are_widened_as_by_torch(count):
    numbers = torch.arange(65536).to(torch.int16)[:count].view(torch.float16)
    for found in _converted(CONVERSIONS, numbers, torch.float32):
        is_nan = numbers.isnan()
        assert torch.equal(found.isnan(), is_nan)
        assert torch.equal(found[~is_nan].view(torch.int32), numbers.float()[~is_nan].view(torch.int32))


def test_numbers_are_rounded_to_float16_as_by_torch():
    """Each number of float16, ties and their neighbours, subnormal ones, those that overflow, and a sample of bits."""
    halves = torch.arange(0x7C01).to(torch.int16).view(torch.float16).double()
    ties = ((halves[1:-1] + halves[:-2]) / 2).float()
    bits = torch.randint(-(2**31), 2**31, (200_003,), generator=torch.Generator().manual_seed(0)).to(torch.int32)
    near = [ties.view(torch.int32) + i for i in (-1, 0, 1)]
    special = torch.tensor([65519.996, 65520.0, 65536.0, 1e38, math.inf, 1e-45, 2.0**-25, 2.0**-24, 0.0])
    sizes = torch.cat([halves.float(), *(x.view(torch.float32) for x in near), bits.view(torch.float32), special])
    numbers = torch.cat([sizes, -sizes]).contiguous()
    expected, is_nan = numbers.to(torch.float16), numbers.isnan()
    for found in _converted(BACK, numbers, torch.float16):
        assert torch.equal(found.isnan(), is_nan)
        assert torch.equal(found[~is_nan].view(torch.int16), expected[~is_nan].view(torch.int16))


@each("make", [gradtx.adamw, gradtx.lamb, lambda: gradtx.chain(gradtx.centralize(), gradtx.sgd(lr=0.1))])
def test_a_default_device_elsewhere_changes_nothing(make):
    """What kernels read is on the host, or they would follow addresses of another device."""
    gradients = [torch.linspace(-1, 1, 12).view(3, 4).contiguous(), torch.linspace(-1, 1, 5)]
    expected, _ = moved(make(), gradients)
    params = [torch.nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
    optimizer = gradtx.as_optimizer(make(), params, compile=True)
    for param, gradient in zip(params, gradients, strict=True):
        param.grad = gradient
    with torch.device("meta"):
        optimizer.step()
    assert {item.way for item in optimizer.explain()} == {"kernels"}
    assert all(map(torch.equal, params, expected))


def test_what_leaves_share_may_go_through_a_view():
    def keep(param):
        return {"count": torch.ones((), dtype=torch.float64)}

    @gradtx.per_tensor()
    def viewed():
        def update(update, state, param, ctx):
            return update, {"count": state["count"].reshape(1).reshape(())}

        return keep, update

    gradient = torch.linspace(-1, 1, 3)
    (found,), ways = moved(gradtx.chain(viewed(), gradtx.sgd(lr=0.5)), [gradient])
    assert ways == {"lists"}
    torch.testing.assert_close(found, -0.5 * gradient)


@each("name", ["adamw", "lion", "adabound", "adopt", "adai", "adan", "adamp", "sm3", "came", "adam_mini"])
def test_loops_over_entries_are_vectorized(name, monkeypatch, forget_programs):
    """As g++ reports it: a maximum in a form that it does not take into vectors cost ten times the step."""
    compiler = cpp.compiler_or_none()
    if platform.machine() != "x86_64" or compiler is None:
        pytest.skip("needs a compiler for x86")
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True).stdout
    if "Free Software Foundation" not in version:
        pytest.skip("g++ reports its loops")
    texts = []
    # Each text is compiled once, for the report: the step itself runs no kernel, and no other test finds its programs.
    forget_programs()
    monkeypatch.setattr(kernels, "_KERNELS", SharedPrograms())
    monkeypatch.setattr(cpp, "compile_all", lambda sources: None)
    monkeypatch.setattr(cpp, "compiled", lambda text: texts.append(text) or (lambda arguments: None))
    moved(
        getattr(gradtx, name)(lr=0.1),
        [torch.ones(100), torch.ones(20, 30), torch.ones(64, 8, 3, 3), torch.ones(64, 64)],
    )
    assert texts
    flags = [*cpp.FLAGS, "-mavx2", "-mfma", "-mf16c", "-fopenmp", "-fopt-info-vec-optimized", "-o", os.devnull]
    for text in dict.fromkeys(texts):
        report = subprocess.run([*compiler, *flags, "-"], input=text, capture_output=True, text=True, check=True).stderr
        vectorized = {int(line) for line in re.findall(r"<stdin>:(\d+):\d+: optimized: loop vectorized", report)}
        lines = text.splitlines()
        loops = [i for i, line in enumerate(lines) if line == "#pragma omp simd" or "simd red" in line]
        assert loops
        for start in loops:
            # Of a loop with a fixed number of entries, g++ names a line of the body.
            end = lines.index("}", start)
            assert vectorized.intersection(range(start + 1, end + 2)), report


# Rows, columns, channels: reductions over any dimensions.

MATRICES = [(6, 4), (4, 6), (5, 5), (1, 7), (7, 1), (33, 1025), (2000, 3), (64, 64)]
FILTERS = [(6, 4, 3, 3), (3, 3, 3, 3), (5, 4, 1, 1), (2, 3, 7, 5), (70, 64, 3, 3), (1, 3, 2, 2)]


# A text of columns takes g++ a second. By day, all directions in float64, and two that share sums in other dtypes.
@each("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@each("name", DIRECTIONS)
@by_day("*-torch.float64", "rows and columns-torch.float32", "norms and entries-torch.bfloat16")
def test_reductions_over_columns_of_matrices_of_all_shapes(name, dtype):
    assert_all_directions(DIRECTIONS[name], MATRICES, dtype)


@each("name", CHANNELS)
def test_reductions_over_any_dimensions_of_filters(name):
    assert_all_directions(CHANNELS[name], FILTERS, torch.float64)


def assert_all_directions(function, shapes, dtype):
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    found, ways = moved(rule(function), gradients)
    assert ways == {"kernels"}
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.05}[dtype]
    for gradient, values in zip(gradients, found, strict=True):
        expected = function(gradient.double()).to(dtype)
        torch.testing.assert_close(values, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


@each("dtype", [torch.float64, torch.float32], ids=str)
@each("name", FACTORED)
@by_day(
    "adam_mini-torch.float64", "clip and sm3-torch.float64", "came-torch.float32", "clip and adafactor-torch.float32"
)
def test_factored_moments_are_those_of_lists(name, dtype):
    results = []
    for compile in (True, False):
        generator = torch.Generator().manual_seed(0)
        params = [
            torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in SHAPES + FILTERS
        ]
        if name not in ("sm3", "clip and sm3", "adam_mini"):  # which run empty leaves over lists
            params += [torch.nn.Parameter(torch.zeros(3, 0, dtype=dtype))]
        optimizer = gradtx.as_optimizer(FACTORED[name](), params, compile=compile)
        for _ in range(3):
            for param in params:
                param.grad = torch.randn(param.shape, generator=generator, dtype=dtype)
            optimizer.step()
        results.append(
            [
                *(param.detach() for param in params),
                *(slot for param in params for slot in optimizer.state[param].values()),
            ]
        )
        if compile:
            assert {item.reason for item in optimizer.explain()} == {""}
    tolerance = 1e-12 if dtype is torch.float64 else 1e-6
    for found, expected in zip(*results, strict=True):
        scale = float(expected.abs().max()) if expected.numel() else 1.0
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * max(scale, 1.0))


def test_a_slot_of_columns_may_follow_from_the_old_value_of_another(texts):
    def init(param):
        return {"first": torch.zeros_like(param[0]), "second": torch.zeros_like(param[0])}

    @gradtx.per_tensor()
    def follow():
        def update(update, state, param, ctx):
            first, second = state["first"], state["second"]
            return update + first + second, {"first": first + update.sum(0), "second": second + first}

        return init, update

    found = []
    for compile in (False, True):
        param = torch.nn.Parameter(torch.arange(12.0, dtype=torch.float64).view(3, 4))
        optimizer = gradtx.as_optimizer(gradtx.chain(follow(), gradtx.scale(-0.1)), [param], compile=compile)
        for _ in range(4):
            param.grad = param.detach().cos()
            optimizer.step()
        found.append(param.detach())
    assert len(texts) == 1
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


ENTRIES, ROW_COUNT, COLUMN_COUNT = 10 * 32 + 6 * 5, 10 + 6, 32 + 5
FILTER, FILTER_ROWS, FILTER_COLUMNS = 8 * 4 * 3 * 5, 8 * 4 * 3, 8 * 4 * 5


@each(
    ("make", "shapes", "moved_values"),
    [
        pytest.param(
            lambda: gradtx.chain(gradtx.scale_by_factored_rms(), gradtx.sgd(lr=0.1)),
            [(10, 32), (6, 5)],
            {
                "stage0": (ENTRIES, 0, 0),
                "combine0": (ROW_COUNT + COLUMN_COUNT, ROW_COUNT + COLUMN_COUNT, 0),
                "last_stage": (2 * ENTRIES, ENTRIES, ENTRIES),
            },
            id="rows and columns",
        ),
        pytest.param(
            lambda: gradtx.chain(gradtx.scale_by_factored_rms(), gradtx.sgd(lr=0.1)),
            [(8, 4, 3, 5)],
            {"last_stage": (2 * FILTER + FILTER_ROWS + FILTER_COLUMNS, FILTER + FILTER_ROWS + FILTER_COLUMNS, 0)},
            id="filters",  # sums of three and five entries are part of the only stage
        ),
        pytest.param(
            lambda: gradtx.sm3(lr=0.1),  # slots are written when all have read the old ones
            [(10, 32), (6, 5)],
            {
                "stage0": (ENTRIES + ROW_COUNT + COLUMN_COUNT, 0, 0),
                "combine0": (ROW_COUNT + COLUMN_COUNT, 0, ROW_COUNT + COLUMN_COUNT),
                "last_stage": (2 * ENTRIES + ROW_COUNT + COLUMN_COUNT, ENTRIES, ENTRIES + ROW_COUNT + COLUMN_COUNT),
                "finish": (0, ROW_COUNT + COLUMN_COUNT, 0),
            },
            id="sm3",
        ),
        pytest.param(
            lambda: gradtx.nero(lr=0.1),  # one kernel for rows of both lengths
            [(10, 32), (6, 5)],
            {"last_stage": (2 * ENTRIES + ROW_COUNT, ENTRIES + ROW_COUNT, 0)},
            id="rows of several lengths",
        ),
    ],
)
def test_explain_counts_values_of_rows_and_columns_as_it_counts_entries(make, shapes, moved_values):
    params = [torch.nn.Parameter(torch.ones(shape)) for shape in shapes]
    optimizer = gradtx.as_optimizer(make(), params, compile=True)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    bytes_of = {item.kernel: (item.read, item.written, item.again) for item in optimizer.explain().launches}
    assert bytes_of == {name: tuple(4 * count for count in counts) for name, counts in moved_values.items()}


@each("name", [*FACTORED, "of columns"])
@by_day("factored", "sm3", "clip and adafactor", "of columns")
def test_threads_change_no_bit_of_what_columns_give(name):
    small = [torch.randn(3 + i, 4) for i in range(30)]
    gradients = [torch.randn(300, 700), *small, torch.randn(64, 3, 3, 3), torch.randn(2000, 31), *small]
    make = {**FACTORED, "of columns": lambda: rule(DIRECTIONS["of what columns give"])}[name]
    assert_threads_change_no_bit(make, gradients)


@each("value", [math.nan, math.inf, -math.inf])
@each("reduce", [torch.amax, torch.amin, torch.sum])
def test_what_is_not_finite_reaches_the_result_of_a_column(reduce, value):
    gradient = torch.linspace(-1, 1, 40).view(4, 10).contiguous()
    gradient[2, 7] = value
    chain = rule(lambda x: x + reduce(x, 0, keepdim=True))
    (found,), ways = moved(chain, [gradient])
    (expected,), _ = moved(chain, [gradient], compile=False)
    assert ways == {"kernels"}
    torch.testing.assert_close(found, expected, equal_nan=True)


def test_kernels_may_read_float16_and_write_none():
    """Those of the squares of gradients: their texts have conversions in one direction alone."""
    gradient = torch.linspace(-1, 1, 70).half()
    param = torch.nn.Parameter(torch.zeros(70).half())
    chain = gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.sgd(lr=1.0))
    optimizer = gradtx.as_optimizer(chain, [param], compile=True)
    param.grad = gradient
    optimizer.step()
    assert {item.way for item in optimizer.explain()} == {"kernels"}
    expected = -gradient.double() / gradient.double().norm()
    torch.testing.assert_close(param.detach().double(), expected, rtol=1e-3, atol=1e-6)
