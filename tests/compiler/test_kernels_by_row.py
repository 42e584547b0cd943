"""Kernels and lists by row: leaves of one call with scalars of their own, some of them absent."""

import contextlib

import pytest
import torch

import gradtx
from gradtx.base.recent import SharedPrograms
from gradtx.compiler import kernels, triton
from gradtx.compiler.kernels import AS_RECORDED, Inputs, PhaseKernels
from gradtx.compiler.tables import Rows, Table
from tests.compiler.problems import CPU, assert_equal_bits, columns_of, copies, scalars_of
from tests.examples import example_of

METHODS = ("adamw", "lion", "radam", "adafactor", "came", "adan", "lamb", "nadam", "adamp", "padam")
SHAPES = {"matrices": (96, 128), "vectors": (150,), "filters": (12, 8, 3, 3)}
WHICH = [0, -1, 2, 4, 4, -1, 1, 3, 0, -1, 2]
# Powers of entries are roots, or the entries themselves; neighbours with the same ones run together.
EXPONENTS = (0.5, 1.0, 0.3, 0.5, 0.3)
BY_ROW = AS_RECORDED._replace(by_row=True)
each = pytest.mark.parametrize


@pytest.fixture
def phases(monkeypatch, forget_programs):
    """A function that returns the last phase of an optimizer's step, as kernels run it."""
    noted = []
    writing = PhaseKernels.of

    def of(phase, *args):
        noted.append(phase)
        return writing(phase, *args)

    def phase_of(name, shape, dtype):
        param = torch.nn.Parameter(torch.ones(shape, dtype=dtype))
        factory = getattr(gradtx, name)
        param.grad = torch.ones_like(param)
        forget_programs()
        with monkeypatch.context() as patch:
            patch.setattr(kernels, "_KERNELS", SharedPrograms())
            patch.setattr(PhaseKernels, "of", staticmethod(of))
            gradtx.as_optimizer(factory(**example_of(factory)), [param], compile=True).step()
        return noted[-1]

    return phase_of


def located(program, columns):
    """Return where the arguments of leaves are, and their chunks."""
    rows = [list(map(torch.Tensor.data_ptr, column)) for column in columns]
    sizes = [program.text.groups.sizes(tensor.shape) for tensor in columns[0]]
    return Table(len(columns[0]), rows, CPU), program.layout(sizes, CPU)


def run_kernels(program, sets, columns, which=None):
    """Run kernels on leaves in place, by row if these have sets."""
    by_row = None if which is None else Rows(which, CPU)
    inputs = Inputs(program, sets, *located(program, columns), by_row)
    return program.results(inputs, program.run(inputs))


def unknown(sets, positions):
    """Return sets of which the host does not know some scalars, which are wide, or have the dtypes of numbers."""
    if not positions:
        return sets
    columns = [list(column) for column in zip(*sets, strict=True)]
    for i in positions:
        dtype = torch.float64 if isinstance(columns[i][0], float) else torch.int64
        columns[i] = [torch.tensor(scalar, dtype=dtype) for scalar in columns[i]]
    return list(zip(*columns, strict=True))


def check_rows(phase, sets_of_scalars, positions=(), which=WHICH):
    """Compare leaves with sets of their own with each leaf alone."""
    alone = PhaseKernels.of(phase, CPU, 0, AS_RECORDED)
    by_row = PhaseKernels.of(phase, CPU, 0, BY_ROW)
    prepare = alone.scalars.where_on_device(frozenset()).function
    sets = unknown(list(map(prepare, sets_of_scalars)), positions)
    before = columns_of(phase.recording, len(which))
    expected, columns = copies(before), copies(before)
    results_of_leaf = {}
    for leaf, at in enumerate(which):
        if at >= 0:
            own = [column[leaf : leaf + 1] for column in expected]
            results_of_leaf[leaf] = run_kernels(alone, sets[at], own)
    results = run_kernels(by_row, sets, columns, which)
    assert_equal_bits(columns, expected)
    assert any(not torch.equal(x, y) for x, y in zip(columns[0], before[0], strict=True))
    for leaf, own in results_of_leaf.items():
        for x, y in zip(results, own, strict=True):
            x = x[leaf] if isinstance(x, torch.Tensor) else x
            assert float(x) == float(y)


@each("threads", (1, 2))
@each("dtype", (torch.float32, torch.bfloat16), ids=str)
@each("shape", SHAPES)
@each("name", METHODS)
def test_leaves_with_scalars_of_their_own_have_the_bits_that_they_have_alone(name, shape, dtype, threads, phases):
    phase = phases(name, SHAPES[shape], dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        check_rows(phase, [scalars_of(phase.recording, seed) for seed in range(5)])
    finally:
        torch.set_num_threads(before)


@each("which", (WHICH, [-1, -1, 0, -1, 3, 1, 4, 2, 0, -1, -1]), ids=("mixed", "ends absent"))
@each("name", ("padam", "power_entries", "ftrl"))
def test_powers_have_the_exponents_of_each_leaf(name, which, phases):
    phase = phases(name, (96, 128), torch.float32)
    assert "Kernels<1>" in PhaseKernels.of(phase, CPU, 0, BY_ROW).text.source
    sets = []
    for exponent in EXPONENTS:
        scalars = scalars_of(phase.recording, 1)
        sets.append([exponent if isinstance(scalar, float) else scalar for scalar in scalars])
    check_rows(phase, sets, which=which)


@each("name", ("scale_by_gsnr", "sgd_sai"))
def test_kernels_whose_results_the_scalars_of_a_leaf_do_not_read_leave_it_out(name, phases):
    phase = phases(name, (96, 128), torch.float32)
    assert "if (!(" in PhaseKernels.of(phase, CPU, 0, BY_ROW).text.source
    sets = []
    for count in (1, 2, 3, 1, 2):
        scalars = scalars_of(phase.recording, 1)
        sets.append([scalar if isinstance(scalar, float) else count for scalar in scalars])
    check_rows(phase, sets)


@each("positions", ((), (0, 1, 2, 3)), ids=("numbers", "tensors"))
def test_results_that_follow_from_scalars_differ_by_leaf_if_these_do(positions, phases):
    phase = phases("prodigy", (24, 40), torch.float32)
    sets = [scalars_of(phase.recording, seed) for seed in range(5)]
    check_rows(phase, sets, positions)
    program = PhaseKernels.of(phase, CPU, 0, BY_ROW)
    sets = unknown(list(map(program.scalars.where_on_device(frozenset()).function, sets)), positions)
    by_leaf = torch.zeros(0, len(WHICH))
    memory = Table(len(WHICH), [], CPU), program.layout([], CPU), Rows(WHICH, CPU)
    differing = program.results(Inputs(program, sets, *memory), by_leaf)
    assert all(result.shape == (len(WHICH),) for result in differing)
    for result in program.results(Inputs(program, [sets[0]] * 5, *memory), by_leaf):
        assert not isinstance(result, torch.Tensor) or not result.ndim


def test_leaves_of_a_later_call_are_others():
    rows = Rows([0, -1, 1], CPU)
    assert (rows.present, rows.sets.tolist()) == ([0, 2], [0, -1, 1])
    address = rows.address
    rows.update([-1, 1, 0])
    assert (rows.present, rows.sets.tolist()) == ([1, 2], [-1, 1, 0])
    assert rows.address == rows.sets.data_ptr() == address


@each("name", METHODS)
def test_triton_kernels_do_so_too(name, phases):
    interpreted = pytest.importorskip("tests.gpu.interpreted", reason="needs Triton")
    with interpreted.interpreting():
        phase = phases(name, (24, 40), torch.float32)
        check_rows(phase, [scalars_of(phase.recording, seed) for seed in range(5)])


@each("is_triton", (False, True))
@each("name", ("adamw", "came"))
def test_scalars_that_the_host_does_not_know_may_differ_by_leaf(name, is_triton, phases):
    context = contextlib.nullcontext()
    if is_triton:
        context = pytest.importorskip("tests.gpu.interpreted", reason="needs Triton").interpreting()
    with context:
        phase = phases(name, (24, 40), torch.float32)
        count = len(PhaseKernels.of(phase, CPU, 0, AS_RECORDED).order)
        sets = [scalars_of(phase.recording, seed) for seed in range(5)]
        for positions in (range(count), range(0, count, 2)):
            check_rows(phase, sets, positions)


def test_kernels_by_row_share_launches_with_others(phases):
    interpreted = pytest.importorskip("tests.gpu.interpreted", reason="needs Triton")
    sequences, expected, found, kept = [], [], [], []
    with interpreted.interpreting():
        for name, which in (("adamw", WHICH), ("came", [2, -1, 1]), ("lion", None)):
            phase = phases(name, (24, 40), torch.float32)
            program = PhaseKernels.of(phase, CPU, 0, AS_RECORDED if which is None else BY_ROW)
            prepare = program.scalars.where_on_device(frozenset()).function
            sets = [prepare(scalars_of(phase.recording, seed)) for seed in range(5)]
            columns = columns_of(phase.recording, 3 if which is None else len(which))
            expected.append(copies(columns))
            found.append(columns)
            rows = None if which is None else Rows(which, CPU)
            scalars = sets[0] if which is None else sets
            run_kernels(program, scalars, expected[-1], which)
            inputs = Inputs(program, scalars, *located(program, columns), rows)
            calls, _ = program.calls(inputs)
            sequences.append(calls)
            kept.append(inputs)
        triton.launch_in_turn(sequences)
    for columns, others in zip(found, expected, strict=True):
        assert_equal_bits(columns, others)
