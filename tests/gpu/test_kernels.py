"""Kernels: every optimizer equals lists, with odd leaves; what moves between steps; how many launches a step takes."""

from __future__ import annotations

import contextlib
import copy
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves

import gradtx
from gradtx.compiler import tables, triton
from gradtx.optim.engine.kernels import KernelEngine
from gradtx.plans.kernel_function import kernel_function_of
from gradtx.pure import graph_node as graphs
from tests.codecs import AFFINE, DOUBLY
from tests.compiler.problems import CHANNELS, DIRECTIONS, ROWS, moved, rule
from tests.conformance import after_a_bad_gradient, assert_own_memory, plain_cases
from tests.gpu.problem import Problem, assert_near, noise, on_host
from tests.tiers import by_day, each_case

ALIASES = [case for case in plain_cases() if case.factory.spec.kind == "alias"]
STEPS = 3
ROOT = Path(__file__).parents[2]
# Leaves of 0, 1, and one more and less than a chunk; a number; a strange layout.
SIZES = ((0,), (1,), (7,), (1023,), (1025,), (64, 64), (3, 5), ())
# Operations are in another order than those of lists; in bfloat16, lists round `param - lr * gradient` once more.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: math.nextafter(2**-7, 1)}  # one unit
CODED: dict[str, Any] = {
    "int8": {"state_dtype": "int8"},
    "bfloat16": {"state_dtype": torch.bfloat16},
    "bfloat16:stochastic": {"state_dtype": "bfloat16:stochastic"},
    "bfloat16+8": {"state_dtype": "bfloat16+8"},
    "affine": {"state_dtype": {"*avg": AFFINE}},
    "doubly": {"state_dtype": {"*avg": DOUBLY}},
}


@pytest.fixture(autouse=True)
def running(gpu):
    """Kernels run: on a pretended GPU, Triton's interpreter runs them."""
    if gpu.is_real:
        yield
        return
    pytest.importorskip("triton", reason="needs Triton, which builds of torch for the CPU do not bring along")
    from tests.gpu.interpreted import interpreting

    with interpreting():
        yield


def ways(optimizer) -> set[str]:
    return {item.way for item in optimizer.explain()}


def steps(optimizer, count: int) -> None:
    for _ in range(count):
        optimizer.step()


# Functions of trees, in a compiled function.

CHAINS = {
    "adamw": lambda: gradtx.adamw(lr=0.01),
    "sum over leaves": lambda: gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw(lr=0.01)),
    "sum over a leaf": lambda: gradtx.lamb(lr=0.01),
    "own count": lambda: gradtx.accumulate(gradtx.adamw(lr=0.01), 2),
    "shared value": lambda: gradtx.prodigy(lr=1.0),
    "numbers of leaves": lambda: gradtx.chain(count_in_leaf(), gradtx.sgd(lr=0.01)),
    "codes": lambda: gradtx.adamw(lr=0.01, state_dtype="int8"),
    "columns": lambda: gradtx.sm3(lr=0.01),
}
# Texts of codes contain the numbers of blocks; vectors have other slots than matrices.
TEXTS = {"codes": 2, "columns": 2}


@gradtx.per_tensor(elementwise=True)
def count_in_leaf():
    def init(param):
        return {"count": torch.zeros((), dtype=torch.float32)}

    def update(update, state, param, ctx):
        return update / (1 + state["count"]), {"count": state["count"] + 1}

    return init, update


@by_day("adamw", "sum over leaves", "columns")
@pytest.mark.parametrize("chain", CHAINS)
def test_an_update_in_a_compiled_function_runs_kernels(chain, gpu, monkeypatch):
    launched = []

    def launch(kernel, *arguments, **constants):
        launched.append(kernel.fn.__name__)
        launching(kernel, *arguments, **constants)

    launching = triton.launch
    monkeypatch.setattr(triton, "launch", launch)
    monkeypatch.setattr(graphs, "function_of", kernel_function_of)
    monkeypatch.setattr(graphs, "FEW_LEAVES", 1)
    device = gpu.device if gpu.is_real else "cpu"  # torch.compile does not trace tensors of a pretended device
    tx, generator = CHAINS[chain](), torch.Generator().manual_seed(0)
    sizes = ((64, 64), (3, 128)) if chain == "codes" else SIZES
    params = {f"p{i}": torch.randn(size, generator=generator).to(device) for i, size in enumerate(sizes)}
    torch._dynamo.reset()
    compiled = torch.compile(tx.update, backend="aot_eager", fullgraph=True)
    state = eager = tx.init(params)
    for _ in range(STEPS):
        launched.clear()
        updates, state = compiled(params, state, params)
        expected, eager = tx.update(params, eager, params)
        assert_near(on_host(updates), on_host(expected), 1e-5)
    for found, wanted in zip(tree_leaves(state), tree_leaves(eager), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert launched.count("last_stage") == TEXTS.get(chain, 1)
    assert_own_memory((updates, state), params, eager)


# Equality.


def test_kernels_run_on_the_device_of_their_leaves(gpu, monkeypatch):
    """Triton launches on the current device, wherever the leaves are."""
    if gpu.is_real and torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    current, launched = [0], []

    @contextlib.contextmanager
    def device_index(index):
        before, current[0] = current[0], index
        with torch.cuda.device(index) if gpu.is_real else contextlib.nullcontext():
            yield
        current[0] = before

    def launch(*arguments, **constants):
        launched.append(current[0])
        launching(*arguments, **constants)

    launching = triton.launch
    monkeypatch.setattr(torch.accelerator, "device_index", device_index)
    monkeypatch.setattr(triton, "launch", launch)
    start = noise({"w": torch.empty(3, 4), "v": torch.empty(3, 4)}, 1)
    params = {name: torch.nn.Parameter(gpu.to(leaf, index=int(name == "v"))) for name, leaf in start.items()}
    expected = {name: torch.nn.Parameter(leaf.clone()) for name, leaf in start.items()}
    for leaves, compiled in ((params, True), (expected, False)):
        for leaf in leaves.values():
            leaf.grad = leaf.detach() + 1
        gradtx.optim.Lamb(leaves.values(), lr=0.1, compile=compiled).step()
    assert_near(on_host(params), on_host(expected), 1e-6)
    assert set(launched) == {0, 1}


@each_case
def test_an_optimizer_equals_lists(case, gpu):
    """In float64; a leaf that kernels cannot process says why."""
    kernels = Problem(case, gpu.to, compile=True).run(range(STEPS))
    lists = Problem(case, unmoved).run(range(STEPS))
    largest = max(float(value.abs().max()) for value in lists.values().values() if value.numel())
    assert_near(kernels.values(), lists.values(), TOLERANCES[torch.float64] * max(1.0, largest))
    for item in kernels.optimizer.explain():
        assert item.way == "kernels" or item.reason


def unmoved(tree):
    return tree


def made(gpu, move, make, dtype, **options):
    """Parameters of strange sizes and layouts, and their optimizer."""
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(size, generator=generator).to(dtype) for size in SIZES]
    values += [torch.randn(2, 3, 5, 7, generator=generator).to(dtype, memory_format=torch.channels_last)]
    values += [torch.randn(6, 4, generator=generator).to(dtype).t()]
    params = {f"p{i}": torch.nn.Parameter(value) for i, value in enumerate(move(values))}
    return params, gradtx.as_optimizer(make(), params.items(), **options)


def set_gradients(params, t, late=()):
    """Set gradients, of which some have another layout than their parameters."""
    generator = torch.Generator().manual_seed(100 + t)
    for name, param in params.items():
        gradient = torch.randn(param.shape, generator=generator).to(param.device, param.dtype)
        param.grad = None if name in late else gradient


def kernels_and_lists(gpu, make, dtype, **options):
    """The weights after some steps by kernels on the device and by lists, and the optimizer of the kernels."""
    results = []
    for move, compiles in ((gpu.to, True), (unmoved, False)):
        params, optimizer = made(gpu, move, make, dtype, compile=compiles, **options)
        for t in range(STEPS + 1):
            set_gradients(params, t, ("p3", "p6", "p8") if t < 2 else ())
            optimizer.step()
        results.append((on_host(params), optimizer))
    (found, optimizer), (expected, _) = results
    return found, expected, optimizer


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("name", ["adamw", "lamb", "lion", "sgd", "adan"])
@by_day("adamw-*", "lamb-torch.bfloat16", "lion-torch.bfloat16", "sgd-torch.float32", "adan-torch.float64")
def test_odd_sizes_layouts_and_late_gradients(name, dtype, gpu):
    options = {"momentum": 0.9} if name == "sgd" else {}
    found, expected, optimizer = kernels_and_lists(gpu, lambda: getattr(gradtx, name)(lr=0.01, **options), dtype)
    assert ways(optimizer) == {"kernels"}
    sums_of_bfloat16 = name == "lamb" and dtype is torch.bfloat16
    assert_near(found, expected, 0.01 if sums_of_bfloat16 else TOLERANCES[dtype])


@pytest.mark.parametrize("code", CODED)
@pytest.mark.parametrize("name", ["adamw", "lion"])
@by_day("adamw-*", "lion-int8")
def test_codes_are_read_and_written_within_the_kernels(name, code, gpu):
    tx = getattr(gradtx, name)(lr=0.01, **CODED[code])
    found, expected, optimizer = kernels_and_lists(gpu, lambda: tx, torch.float32)
    assert "kernels" in ways(optimizer)
    # On a GPU, a value between two codes may be rounded to the other one.
    assert_near(found, expected, 1e-3 if gpu.is_real else 1e-6)


@pytest.mark.parametrize("last", [gradtx.round_stochastically, gradtx.compensate_rounding])
def test_roundings_of_bfloat16(last, gpu):
    options = {"seed": 0} if last is gradtx.round_stochastically else {}
    tx = gradtx.chain(gradtx.adamw(lr=0.01), last(**options))
    found, expected, _ = kernels_and_lists(gpu, lambda: tx, torch.bfloat16)
    # One step of bfloat16: lists on a CPU round a product and a sum at once, kernels one after the other.
    assert_near(found, expected, 2**-7)


def test_leaves_of_several_dtypes(gpu):
    results = []
    for move, compiles in ((gpu.to, True), (unmoved, False)):
        values = [torch.linspace(-1, 1, 33), torch.linspace(-1, 1, 9, dtype=torch.float64)]
        values += [torch.linspace(-1, 1, 40).to(torch.bfloat16)]
        params = {f"p{i}": torch.nn.Parameter(value) for i, value in enumerate(move(values))}
        clipped = gradtx.chain(gradtx.clip_by_global_norm(0.5), gradtx.adamw(lr=0.01))
        optimizer = gradtx.as_optimizer(clipped, params.items(), compile=compiles)
        for t in range(STEPS):
            set_gradients(params, t)
            optimizer.step()
        results.append(on_host(params))
    assert ways(optimizer) == {"lists"}
    assert_near(*results, 1e-6)


# Rows of one to three tiles, odd ones and those of whole words.
ROW_SHAPES = [(6, 4), (5, 16), (2, 3, 5), (2, 3, 2, 2), (1, 7), (7, 1), (3, 2500), (2, 2048), (40, 64)]


@pytest.mark.parametrize("name", ROWS)
def test_reductions_of_rows_and_leaves_of_all_shapes_at_once(name, gpu):
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ROW_SHAPES]
    found, ways = moved(rule(ROWS[name]), gpu.to(gradients))
    assert ways == {"kernels"}
    for gradient, values in zip(gradients, on_host(dict(enumerate(found))).values(), strict=True):
        torch.testing.assert_close(values, ROWS[name](gradient), rtol=1e-12, atol=1e-12, equal_nan=True)


# Several tiles of rows and columns, chunks that divide the indices of the first axis, and one that has several.
MATRICES = [(6, 4), (5, 5), (7, 1), (33, 40), (40, 3)]
FILTERS = [(6, 4, 3, 3), (5, 4, 1, 1), (2, 6, 7, 5)]


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        *(pytest.param(DIRECTIONS[name], MATRICES, id=name) for name in DIRECTIONS),
        *(pytest.param(CHANNELS[name], FILTERS, id=f"{name} of filters") for name in CHANNELS),
    ],
)
def test_reductions_over_any_dimensions(function, shapes, gpu, monkeypatch):
    monkeypatch.setattr(tables, "LEAST_ROWS", 4)
    monkeypatch.setattr(tables, "CHUNK", 64)
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    found, ways = moved(rule(function), gpu.to(gradients))
    assert ways == {"kernels"}
    for gradient, values in zip(gradients, on_host(dict(enumerate(found))).values(), strict=True):
        torch.testing.assert_close(values, function(gradient), rtol=1e-12, atol=1e-12, equal_nan=True)


def test_reductions_of_what_reads_no_entries(gpu):
    """Of constants, as SPAM's zeros when it resets its slots, and of numbers of a leaf."""
    shapes = [(64, 64), (3, 128), (5,), (3, 2500)]
    gradients = [torch.ones(shape, dtype=torch.float64) for shape in shapes]

    def constants(u):
        numbers = torch.full_like(u, 2.0) * u.sum()
        return u + torch.zeros_like(u).amax() + numbers.sum() + torch.ones_like(u).sum()

    found, ways = moved(rule(constants), gpu.to(gradients))
    assert ways == {"kernels"}
    for gradient, values in zip(gradients, on_host(dict(enumerate(found))).values(), strict=True):
        torch.testing.assert_close(values, constants(gradient), rtol=1e-12, atol=1e-12)
    found, ways = moved(gradtx.spam(lr=0.01, state_dtype="int8"), gpu.to(gradients))
    assert "kernels" in ways
    expected, _ = moved(gradtx.spam(lr=0.01, state_dtype="int8"), gradients, compile=False)
    assert_near(on_host(dict(enumerate(found))), dict(enumerate(expected)), 1e-12)


@pytest.mark.parametrize("make", [gradtx.nero, lambda: gradtx.adamw(state_dtype="int8")], ids=["loops", "tiles"])
def test_a_value_of_a_row_is_written_when_all_threads_have_read_the_old_one(make, gpu):
    from tests.gpu.compile_kernels import sources_of

    source = max(sources_of(make()), key=len)
    operations = re.findall(r"tl\.(debug_barrier|load|store)\((?:\)|p\d+ \+ c0\W)", source)
    order = " ".join(operations)
    assert re.fullmatch(r"((load )*debug_barrier( store)+ ?)+", order), order


@pytest.mark.parametrize("last", ["adamp", "rows in the first phase", "neither"])
def test_a_phase_without_rows_beside_one_with_rows(last, gpu):
    """Chunks then have other sizes than tiles: sums over leaves would miss entries, or add some twice."""
    clip = gradtx.clip_by_global_norm(0.5)
    chain = {
        "adamp": lambda: gradtx.chain(clip, gradtx.adamp(lr=0.01)),
        "rows in the first phase": lambda: gradtx.chain(gradtx.centralize(), clip, gradtx.adamw(lr=0.01)),
        "neither": lambda: gradtx.chain(clip, gradtx.adamw(lr=0.01)),
    }[last]()
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 2500), (20, 147), (40, 64), (33,)]
    gradients = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    found, ways = moved(chain, gpu.to(gradients))
    assert ways == {"kernels"}
    expected, _ = moved(chain, gradients, compile=False)
    assert_near(on_host(dict(enumerate(found))), dict(enumerate(expected)), 1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_in_less_than_double_precision(dtype, gpu):
    gradients = [torch.linspace(-1, 2, 80).view(5, 16).to(dtype), torch.linspace(-2, 1, 30).view(2, 3, 5).to(dtype)]
    found, ways = moved(gradtx.adamp(lr=0.01), gpu.to(gradients))
    assert ways == {"kernels"}
    expected, _ = moved(gradtx.adamp(lr=0.01), gradients, compile=False)
    assert_near(on_host(dict(enumerate(found))), dict(enumerate(expected)), TOLERANCES[dtype])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_reaches_the_result_of_a_row(value, gpu):
    gradient = torch.linspace(-1, 1, 80).view(2, 40).contiguous()
    gradient[1, 7] = value
    for reduce in (torch.amax, torch.sum):
        (found,), _ = moved(rule(lambda x, reduce=reduce: x + reduce(x, -1, keepdim=True)), [gpu.to(gradient)])
        expected = gradient + reduce(gradient, -1, keepdim=True)
        torch.testing.assert_close(on_host({"": found})[""], expected, equal_nan=True)


# What moves between steps.


def replaced(params, optimizer):
    for param in params.values():
        param.data = param.data.clone()


def loaded(params, optimizer):
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def swapped_slots(params, optimizer):
    for param in params.values():
        optimizer.state[param]["exp_avg"] = optimizer.state[param]["exp_avg"].clone()


def laid_out_otherwise(params, optimizer):
    params["p8"].data = params["p8"].data.contiguous()


def added(params, optimizer):
    late = torch.nn.Parameter(torch.ones_like(params["p5"]))
    optimizer.add_param_group({"params": [("late", late)]})
    params["late"] = late


@pytest.mark.parametrize("change", [replaced, loaded, swapped_slots, laid_out_otherwise, added])
def test_tensors_that_are_replaced_are_noticed_before_a_launch(change, gpu):
    results = []
    for move, compiles in ((gpu.to, True), (unmoved, False)):
        params, optimizer = made(gpu, move, lambda: gradtx.adamw(lr=0.01), torch.float32, compile=compiles)
        old = []
        for t in range(2 * STEPS):
            if t == STEPS:
                old = [(param.data, param.data.clone()) for param in params.values()]
                change(params, optimizer)
            set_gradients(params, t)
            optimizer.step()
        if change is replaced:  # and the old memory is left alone
            assert all(torch.equal(tensor, before) for tensor, before in old)
        results.append(on_host(params))
    assert_near(*results, TOLERANCES[torch.float32])


def test_tensors_count_the_writes_of_kernels(gpu):
    """Autograd refuses a graph that saved a tensor with an older version."""
    param = torch.nn.Parameter(gpu.to(torch.ones(3)))
    optimizer = gradtx.as_optimizer(gradtx.adamw(lr=0.1), [param], compile=True)
    versions = []
    for _ in range(2):
        param.grad = torch.ones_like(param)
        optimizer.step()
        versions.append(param._version)
    assert 0 < versions[0] < versions[1]


def test_without_triton_compile_says_so_once(gpu, monkeypatch):
    if gpu.is_real:
        pytest.skip("Triton is there")
    monkeypatch.setattr(triton, "is_importable", lambda: False)
    params = [torch.nn.Parameter(gpu.to(torch.ones(3))) for _ in range(2)]
    optimizer = gradtx.as_optimizer(gradtx.adamw(lr=0.1), params, compile=KernelEngine())
    for param in params:
        param.grad = torch.ones_like(param)
    with pytest.warns(RuntimeWarning, match="install the version of Triton") as warned:
        steps(optimizer, 2)
    assert len(warned) == 1
    assert ways(optimizer) == {"lists"}


# Launches.


@pytest.mark.parametrize(
    ("make", "launches"),
    [
        (lambda: gradtx.adamw(lr=0.01), 1),
        (lambda: gradtx.adamw(lr=0.01, state_dtype="int8"), 1),
        (lambda: gradtx.adam_atan2(lr=0.01), 1),
        (lambda: gradtx.lamb(lr=0.01), 3),  # partial sums, sums, the step
        (lambda: gradtx.adamp(lr=0.01), 3),  # for all shapes: thresholds and lengths of rows are arguments
        (lambda: gradtx.nero(lr=0.01), 1),
        (gradtx.adafactor, 5),  # twice partial sums and sums, the step
        (lambda: gradtx.came(lr=0.01), 7),
        (lambda: gradtx.sm3(lr=0.01), 4),  # slots are written when all have read the old ones
        (lambda: gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw(lr=0.01)), 6),  # 5 for the norm
    ],
    ids=["adamw", "adamw int8", "adam_atan2", "lamb", "adamp", "nero", "adafactor", "came", "sm3", "clip"],
)
def test_launches_of_a_warm_step(make, launches, counted):
    params = {f"p{i}": torch.nn.Parameter(counted.to(torch.ones(4, i + 2))) for i in range(5)}
    optimizer = gradtx.as_optimizer(make(), params.items(), compile=True)
    for t in range(3):
        for param in params.values():
            gradient = counted.to(torch.full(param.shape, float(t + 1)))
            param.grad = gradient if param.grad is None else param.grad.copy_(gradient)
        with counted.counting() as seen:
            optimizer.step()
    assert seen.launches == launches, seen.kernels
    assert not seen.waits


# For the tensors of a ResNet-50: vectors, filters of one and of several entries, and the last matrix. Those with other
# slots or axes have other kernels, which share launches.
@pytest.mark.parametrize(
    ("make", "launches"),
    [
        (lambda: gradtx.adamw(lr=0.01), 1),
        (lambda: gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw(lr=0.01)), 6),
        (lambda: gradtx.lamb(lr=0.01), 3),
        (lambda: gradtx.adamp(lr=0.01), 3),
        (gradtx.adafactor, 5),
        (lambda: gradtx.came(lr=0.01), 7),
    ],
    ids=["adamw", "clip", "lamb", "adamp", "adafactor", "came"],
)
@by_day("clip", "adamp", "adafactor")
def test_launches_for_a_residual_network(make, launches, counted):
    shapes = [(4, 3, 7, 7), (4, 4, 1, 1), (4, 4, 3, 3), (16, 4, 1, 1), (8, 16, 1, 1), (8, 8, 3, 3), (10, 32)]
    shapes += [(4,), (16,), (8,), (10,)]
    params = [torch.nn.Parameter(counted.to(torch.ones(shape))) for shape in shapes]
    optimizer = gradtx.as_optimizer(make(), params, compile=True)
    for param in params:
        param.grad = torch.ones_like(param)
    for _ in range(2):
        with counted.counting() as seen:
            optimizer.step()
    assert seen.launches == launches, seen.kernels
    assert not seen.waits


# Bytes of a step: those that are read and written per entry, and those of them that are read again.
@pytest.mark.parametrize(
    ("make", "launches"),
    [
        (lambda: gradtx.adamw(lr=0.01), {"last_stage": (16, 12, 0)}),
        (
            lambda: gradtx.adamw(lr=0.01, state_dtype="int8"),
            # Of parameter and gradient, two codes and two scales of 64 entries.
            {"last_stage": (8 + 2 + 2 * 4 / 64, 4 + 2 + 2 * 4 / 64, 0)},
        ),
        (
            lambda: gradtx.lamb(lr=0.01),  # its norms need a pass of their own over all that the step reads
            {"stage0": (16, 0, 0), "combine0": (0, 0, 0), "last_stage": (16, 12, 16)},
        ),
        (
            lambda: gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw(lr=0.01)),
            {"stage0": (4, 0, 0), "combine0": (0, 0, 0), "finish": (0, 0, 0), "last_stage": (16, 12, 4)},
        ),
    ],
    ids=["adamw", "adamw int8", "lamb", "clip"],
)
def test_explain_says_what_kernels_read_and_write(make, launches, gpu):
    shapes = [(64, 64), (32, 128), (128, 64)]
    params = [torch.nn.Parameter(gpu.to(torch.ones(shape))) for shape in shapes]
    optimizer = gradtx.as_optimizer(make(), params, compile=True)
    for param in params:
        param.grad = torch.ones_like(param)
    steps(optimizer, 2)
    found, entries = optimizer.explain(), 2**14
    moved = {
        each.kernel: (each.read / entries, each.written / entries, each.again / entries) for each in found.launches
    }
    assert moved == launches
    assert {each.parameters for each in found.launches} == {3}
    assert found.bytes == entries * sum(read + written for read, written, _ in launches.values())
    assert found.least_bytes == found.bytes - entries * sum(again for *_, again in launches.values())


def test_explain_prints_a_line_per_kernel_and_a_total(gpu):
    params = [torch.nn.Parameter(gpu.to(torch.ones(1000)))]
    optimizer = gradtx.as_optimizer(gradtx.lamb(lr=0.01), params, compile=True)
    params[0].grad = torch.ones_like(params[0])
    optimizer.step()
    assert str(optimizer.explain()).splitlines() == [
        "kernels: 1 parameter (0)",
        "stage0: 16.000 kB read, 0 bytes written",
        "combine0: 0 bytes read, 0 bytes written",
        "last_stage: 16.000 kB read, 12.000 kB written",
        "3 kernel launches move 44.000 kB; reading and writing each tensor once would move 28.000 kB",
    ]


# Compiled for a GPU.


@pytest.mark.parametrize(
    "capability", ["90", *(pytest.param(each, marks=pytest.mark.nightly) for each in ("80", "100"))]
)
def test_kernels_compile_without_a_gpu_and_without_spills(capability, gpu):
    names = ["adamw", "adamw:int8", "lamb", "adamp", "spam:int8"]  # the last one reduces a constant
    output = compiled_without_a_gpu(capability, [*names, "adafactor", "came", "sm3"])
    for name in names:
        assert re.search(rf"{name} last_stage: [1-9]\d* wide loads, [1-9]\d* wide stores, 0 local", output)
    assert not re.search(r"[1-9]\d* local", output)


def compiled_without_a_gpu(capability, names):
    command = [sys.executable, "-m", "tests.gpu.compile_kernels", capability, *names]
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment).stdout


@pytest.mark.nightly
@pytest.mark.parametrize("code", ["", ":int8", ":bfloat16+8"])
def test_kernels_of_every_optimizer_compile_without_spills(code, gpu):
    names = [f"{case.factory.__name__}{code}" for case in ALIASES if not {*case.example.needs} - {"params"}]
    output = compiled_without_a_gpu("90", names)
    assert len(set(re.findall(r"^(\S+) last_stage", output, re.MULTILINE))) > 90
    assert not re.search(r"[1-9]\d* local", output)


def test_a_slot_with_a_value_for_each_column_is_not_taken_for_scales_of_blocks(gpu):
    """A matrix of 64 rows has as many entries for each of its columns as a block may have for its scale."""

    @gradtx.per_tensor()
    def multiply():
        def init(param):
            return {"factor": torch.linspace(1, 2, param.shape[-1], device=param.device)}

        def update(update, state, param, ctx):
            return update * state["factor"], state

        return init, update

    gradient = torch.linspace(-1, 1, 64 * 64).view(64, 64)
    param = torch.nn.Parameter(gpu.to(torch.zeros(64, 64)))
    optimizer = gradtx.as_optimizer(gradtx.chain(multiply(), gradtx.scale(1.0)), [param], compile=True)
    param.grad = gpu.to(gradient)
    optimizer.step()
    torch.testing.assert_close(on_host({"": param})[""], gradient * torch.linspace(1, 2, 64))
    assert ways(optimizer) == {"kernels"}


@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize("name", ["lion", "adabelief", "qhm"])
def test_after_a_gradient_that_is_not_finite_kernels_have_the_infinities_of_rules_line_by_line(name, bad, gpu):
    tx, params = getattr(gradtx, name)(lr=0.1), {"matrix": torch.ones(4, 5), "vector": torch.ones(7)}
    params = gpu.to(params)
    with gradtx.eagerly():
        by_line = after_a_bad_gradient(tx, params, bad)
    assert after_a_bad_gradient(tx, params, bad, compile=True) == by_line
