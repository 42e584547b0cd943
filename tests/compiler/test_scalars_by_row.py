"""Lists of leaves with scalars of their own: each has the bits that it has alone with them."""

import threading

import pytest
import torch

import gradtx
from gradtx.compiler import list_function, write_lists
from gradtx.compiler.write_expressions import UnsuitableProgramError
from gradtx.plans import bundle
from tests.compiler.problems import CPU, assert_equal_bits, bits, columns_of, copies, recorded, scalars_of
from tests.examples import example_of

METHODS = ("adamw", "lion", "radam", "adafactor", "came", "adan", "lamb", "nadam", "adamp", "asgd", "rprop", "padam")
WHICH = [0, 2, 4, 4, 1, 3, 0]
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64)
each = pytest.mark.parametrize


@pytest.fixture
def recording_of(monkeypatch, forget_programs):
    """A function that returns the last recording of an optimizer's step over lists."""
    noted = []

    def noting(recording, *args, **options):
        noted.append(recording)
        return list_function(recording, *args, **options)

    def recording(name, dtype=torch.float32):
        param = torch.nn.Parameter(torch.ones(12, 10, dtype=dtype))
        factory = getattr(gradtx, name)
        param.grad = torch.ones_like(param)
        forget_programs()  # of leaves of other sizes
        with monkeypatch.context() as patch:
            patch.setattr(bundle, "list_function", noting)
            gradtx.as_optimizer(factory(**example_of(factory)), [param]).step()
        return noted[-1]

    return recording


def check_rows(recording, sets_of_scalars, on_device=(), which=WHICH):
    """Compare leaves with sets of their own with each leaf alone."""
    alone = list_function(recording, CPU, on_device)
    by_row = list_function(recording, CPU, on_device, varying=range(len(recording.scalars)))
    for scalars, node in zip(zip(*sets_of_scalars, strict=True), recording.scalars, strict=True):
        if recording.scalars.index(node) in on_device:
            assert all(isinstance(scalar, torch.Tensor) for scalar in scalars)
    before = columns_of(recording, len(which), zeros=True)
    expected, columns = copies(before), copies(before)
    results_of_leaf = []
    for leaf, at in enumerate(which):
        own = [column[leaf : leaf + 1] for column in expected]
        results_of_leaf.append(alone.run(alone.prepare(sets_of_scalars[at]), own))
    prepared = by_row.spread(list(map(by_row.prepare, sets_of_scalars)), which)
    results = by_row.run(prepared, columns)
    assert_equal_bits(columns, expected)
    pairs = [pair for both in zip(columns, before, strict=True) for pair in zip(*both, strict=True)]
    assert any(not torch.equal(x, y) for x, y in pairs)
    for leaf, own in enumerate(results_of_leaf):
        for x, y in zip(results, own, strict=True):
            x = torch.as_tensor(x[leaf] if isinstance(x, list | tuple) else x)
            y = torch.as_tensor(y[0] if isinstance(y, list | tuple) else y, dtype=x.dtype)
            assert torch.equal(bits(x), bits(y)), f"a result of leaf {leaf}"


@each("dtype", DTYPES, ids=str)
@each("name", METHODS)
def test_leaves_with_scalars_of_their_own_have_the_bits_that_they_have_alone(name, dtype, recording_of):
    if dtype.is_complex and name in ("adafactor", "came", "adamp"):
        pytest.skip("needs real matrices")
    recording = recording_of(name, dtype)
    # RAdam skips work in the first steps.
    check_rows(recording, [scalars_of(recording, seed, least=10) for seed in range(5)])


OPERATIONS = {
    "lerp": lambda a, x, y: ([torch.lerp(x, y, a)], [(y, y + x)]),
    "sub": lambda a, x, y: ([x - a, a - x], [(y, y + x)]),
    "pow": lambda a, x, y: ([x.abs() ** a], [(y, y + x)]),
    "clamp": lambda a, x, y: ([x.clamp(min=a), torch.maximum(x, a)], [(y, y + x)]),
    "where": lambda a, x, y: ([torch.where(x > 0.3, x, a), torch.where(a > 0.05, x, a)], [(y, y + x)]),
    "fill": lambda a, x, y: ([torch.full_like(x, 1.0) * a], [(y, torch.zeros_like(y) + a)]),
    "factors": lambda a, x, y: ([x + a * y], [(x, x + a * y * y), (y, y + a * x / y)]),
    "quotients": lambda a, x, y: ([x / a, a / x], [(x, x + a * y)]),
    "comparison": lambda a, x, y: ([(x > a).to(x.dtype)], [(y, y - a * x)]),
}


@each("dtype", DTYPES[:4], ids=str)
@each("name", OPERATIONS)
def test_an_operation_has_the_bits_of_each_leaf(name, dtype):
    recording = recorded(OPERATIONS[name], [(2, 3)] * 2, dtype=dtype)
    fourth = 1.3 if name == "where" else -0.0  # leaves of a call agree on what is skipped
    check_rows(recording, [[0.1], [0.7], [2.0], [fourth], [0.3]])


@each("has_lists", (True, False))
@each("name", ("schedule_free_adamw", "madgrad"))
def test_interpolations_take_the_weight_of_each_leaf(name, has_lists, recording_of, monkeypatch):
    monkeypatch.setattr(write_lists, "LERPS_BY_LEAF", has_lists and write_lists.LERPS_BY_LEAF)
    recording = recording_of(name)
    source = list_function(recording, CPU, varying=range(len(recording.scalars))).source
    assert ("\n    each_lerp" in source) is not write_lists.LERPS_BY_LEAF
    check_rows(recording, [scalars_of(recording, seed, least=10) for seed in range(5)])


@each("name", METHODS)
def test_scalars_that_the_host_does_not_know_may_differ_by_leaf(name, recording_of):
    recording = recording_of(name)
    sets = [scalars_of(recording, seed, least=10) for seed in range(5)]
    dtypes = [node.meta["val"].dtype for node in recording.scalars]
    on_device = [i for i in range(len(dtypes)) if i != 3]
    for scalars in sets:
        for i in on_device:
            scalars[i] = torch.tensor(scalars[i], dtype=dtypes[i])
    check_rows(recording, sets, on_device)


def test_leaves_of_one_call_agree_on_what_is_skipped(recording_of):
    recording = recording_of("radam")
    early, late = [[1, 2, 0.1, 0.9, 0.99, 1e-8, 5.0][: len(recording.scalars)] for _ in range(2)]
    late[:2] = [40, 41]
    function = list_function(recording, CPU, varying=[0, 1])
    sets = [function.prepare(scalars) for scalars in (early, late, late)]
    first, *others = map(function.spread.case_of, sets)
    assert [first != case for case in others] == [True, True]
    with pytest.raises(UnsuitableProgramError, match="skip"):
        function.spread(sets, [0, 1])
    for leaves in (sets[:1], sets[1:]):
        check_rows(recording, [leaves[0]] * 5)


def test_a_set_that_all_leaves_share_stays_as_it_is(recording_of):
    recording = recording_of("adamw")
    function = list_function(recording, CPU)
    prepared = function.prepare(scalars_of(recording, 1))
    assert function.spread([prepared, prepared], [0, 1, 0]) == prepared


def test_scalars_that_nothing_reads_may_differ_between_leaves():
    recording = recorded(lambda a, b, x: ([], [(x, x + a)]), [(3,)], count=2, dtype=torch.float32)
    check_rows(recording, [[0.5, seed] for seed in range(5)])
    function = list_function(recording, CPU, varying=[1])
    columns = [[torch.ones(3)]]
    function.run(function.spread([[0.5, 1.0], [0.5, 2.0]], [1]), columns)
    torch.testing.assert_close(columns[0][0], torch.full((3,), 1.5))


def test_numbers_that_are_too_large_for_a_dtype_are_infinite(recording_of):
    recording = recording_of("adamw")
    sets = [scalars_of(recording, seed) for seed in range(5)]
    sets[2][5] = 1e300
    check_rows(recording, sets)


@each("rate", (0.1, 0.0))
def test_leaves_with_equal_factors_share_a_call(rate, recording_of):
    recording = recording_of("lion")
    sets = [scalars_of(recording, seed) for seed in range(2)]
    sets[0][2], sets[1][2] = rate, -rate  # zeros of both signs are not equal
    check_rows(recording, sets, which=[0, 1, 1, 0, 1] * 4)


def test_a_gpu_takes_lists_of_numbers_and_nothing_leaf_by_leaf(recording_of):
    recording, device = recording_of("adamw"), torch.device("cuda")
    source = list_function(recording, device, varying=[0]).source
    assert "scalars=" in source
    assert "\n    each_" not in source
    with pytest.raises(UnsuitableProgramError, match="one by one"):
        list_function(recording, device, varying=range(len(recording.scalars)))
    with pytest.raises(UnsuitableProgramError, match="one by one"):
        list_function(recording, device, on_device=[0], varying=[0])


def test_tensors_that_leaves_share_follow_from_no_scalar_that_differs():
    recording = recorded(lambda a, x: ([x + a * torch.arange(3.0, device=x.device)], []), [(3,)])
    list_function(recording, CPU)
    with pytest.raises(UnsuitableProgramError, match="share"):
        list_function(recording, CPU, varying=[0])


def test_sets_of_another_thread_are_others(recording_of):
    recording = recording_of("adamw")
    function = list_function(recording, CPU, varying=range(len(recording.scalars)))
    sets = [function.prepare(scalars_of(recording, seed)) for seed in range(5)]
    prepared = function.spread(sets, WHICH)
    before = [float(x) for values in prepared if isinstance(values, list) for x in values]
    thread = threading.Thread(target=function.spread, args=(sets[::-1], WHICH))
    thread.start()
    thread.join()
    assert [float(x) for values in prepared if isinstance(values, list) for x in values] == before
