"""Programs over lists: what is recorded, what is refused, what is contracted, and what may be overwritten."""

import contextlib
import copy
import math
import re

import pytest
import torch

import gradtx
from gradtx import chain
from gradtx.base import recent
from gradtx.base import tree as _tree
from gradtx.compiler import UnrecordableError, list_function, scalar_operations
from gradtx.compiler.record import as_written
from gradtx.pure import tree_plan as _tree_plans
from gradtx.pure import tree_run as _pure
from tests.compiler.problems import CPU, F64, expected_of, lists, recorded, run
from tests.conformance import noise
from tests.optim.problems import assert_equal

# Recording.


def reads(number, x):
    return [x if x.sum() > 0 else -x], []


def draws(number, x):
    return [torch.rand_like(x)], []


FROM_ELSEWHERE = torch.ones(2, 3, dtype=F64, device="meta")


def borrows(number, x):
    return [x + FROM_ELSEWHERE], []


def writes_at_once(number, x):
    x.mul_(2)
    return [x], []


@pytest.mark.parametrize(
    ("function", "reason"),
    [(reads, "reads the value"), (draws, "random"), (borrows, "outside"), (writes_at_once, "in place")],
)
def test_what_a_program_cannot_repeat_is_refused(function, reason):
    with pytest.raises(UnrecordableError, match=reason):
        recorded(function, [(2, 3)])


def test_equal_programs_have_the_same_text_and_others_do_not():
    def double(number, x):
        return [2 * x], []

    def by_size(number, x):
        return [x / x.numel()], []

    def centred(number, x):
        return [x - x.mean(0, keepdim=True)], []

    assert recorded(double, [(2, 3)]).text() == recorded(double, [(5,)]).text()
    assert recorded(by_size, [(2, 3)]).text() != recorded(by_size, [(5, 1)]).text()

    def transposed(number, x):
        return [x.mT * 2], []

    assert recorded(centred, [(2, 3)]).text() != recorded(centred, [(1, 3)]).text()  # where the mean is as large as x
    assert recorded(transposed, [(3, 3)]).text() != recorded(transposed, [(1, 1)]).text()  # equal strides


@pytest.mark.parametrize("default", [torch.float32, F64])
def test_recorded_dtypes_follow_the_default_dtype(default):
    def quotient(number, x):
        return [x / 3], []

    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        result = recorded(quotient, [(2,)], dtype=torch.int64).outputs[0].meta["val"]
    finally:
        torch.set_default_dtype(before)
    assert result.dtype == default


# What runs.


def adam_like(number, param, average, grad):
    new = number * average + (1 - number) * grad
    square = grad**2
    return [], [(average, new), (param, param - number * new / (square.sqrt() + 0.1))]


def calls_in(program):
    """The number of operations on lists, or on each leaf."""
    _, _, body = program.source.partition("def run(prepared, columns):\n")
    return sum(bool(re.search(r"\w\(", line)) for line in body.splitlines() if "return" not in line)


def test_products_are_added_in_one_operation():
    program = list_function(recorded(adam_like, [(2, 3)] * 3), CPU)
    # b m + (1 - b) g in place; lerp is not a number once m is infinite
    assert "foreach_mul_(leaf1, " in program.source
    assert "foreach_add_(mul, leaf2, alpha=" in program.source
    assert "addcdiv" in program.source  # p - b m / (...)
    assert calls_in(program) <= 6


@pytest.mark.parametrize("on_host", [True, False])
def test_a_program_gives_what_the_function_gives(on_host):
    program = list_function(recorded(adam_like, [(2, 3)] * 3), CPU, () if on_host else (0,))
    params, averages, grads = lists(0), lists(1), lists(2)
    expected = []
    number = torch.tensor(0.3, dtype=F64)
    for tensors in zip(params, averages, grads, strict=True):
        _, writes = adam_like(number, *tensors)
        expected.append([value for _, value in writes])
    run(program, [0.3 if on_host else number], params, averages, grads)
    for i, (average, param) in enumerate(expected):
        torch.testing.assert_close(averages[i], average, rtol=1e-14, atol=1e-15)
        torch.testing.assert_close(params[i], param, rtol=1e-14, atol=1e-15)


def shared_square(number, average, grad):
    square = grad**2
    return [square], [(average, number * average + (1 - number) * square)]


def test_an_average_of_squares_that_overflowed_stays_infinite():
    program = list_function(recorded(shared_square, [(2, 3)] * 2), CPU)
    assert "lerp" not in program.source  # inf + w (x - inf) is not a number
    averages, grads = lists(0), [torch.full_like(tensor, 1e200) for tensor in lists(1)]
    for grad in (grads, lists(1)):
        run(program, [0.3], averages, grad)
        assert all(average.isinf().all() for average in averages)


def corrected(number, param, average, square, grad):
    """A step of Adam at a count, with both corrections."""
    denominator = square.sqrt() / number.sqrt() + 0.1
    return [], [(param, param - 0.01 * ((average / (1 - number)) / denominator))]


def by_a_number(number, param, average, square, grad):
    """Only roots of numbers may multiply the quotient: `number` may be infinite."""
    return [], [(param, param - average / (square.sqrt() / number + 0.1))]


@pytest.mark.parametrize("on_host", [True, False])
@pytest.mark.parametrize(("function", "number", "calls"), [(corrected, 0.3, 3), (by_a_number, math.inf, 4)])
def test_the_correction_of_a_root_multiplies_the_quotient(function, number, calls, on_host):
    program = list_function(recorded(function, [(2, 3)] * 4), CPU, () if on_host else (0,))
    if on_host:
        assert calls_in(program) == calls  # for the root, the sum with eps, the sum with the quotient
    params, averages, squares, grads = lists(0), lists(1), [x.square() for x in lists(2)], lists(3)
    exact = torch.tensor(number, dtype=F64)
    expected = [function(exact, *tensors)[1][0][1] for tensors in zip(params, averages, squares, grads, strict=True)]
    run(program, [number if on_host else exact], params, averages, squares, grads)
    torch.testing.assert_close(params, expected, rtol=1e-14, atol=1e-15)


def test_factors_in_a_row_are_multiplied_first_wherever_the_product_is_added():
    def update(number, param, grad, square):
        return [], [(param, param - number * (0.5 * (grad / square)))]

    program = list_function(recorded(update, [(2, 3)] * 3), CPU)
    assert calls_in(program) == 1, program.source


def shifted(number, x, first, second, third):
    """A queue."""
    return [], [(third, second.clone()), (second, first.clone()), (first, x.clone())]


def scaled_in_place(number, x, average, param, other):
    new = number * average + x
    return [], [(average, new), (param, param - 0.1 * new), (other, other.clone())]


def scaled_in_place_to_maximize(number, x, average, param, other):
    return scaled_in_place(number, -x, average, param, other)


def divided_number(number, x, average, param, other):
    return [], [(param, param + number / (x.square() + 1) * -0.1 * average)]


def squared(number, x, average, param, other):
    scaled = number * x
    return [], [(param, param + scaled * scaled)]


def decayed_list(number, x, average, param, other):
    return [], [(param, param - number * (x + 0.1 * param))]


def decayed_quotient(number, x, average, param, other):
    new = 0.9 * average + 0.1 * x
    return [], [(average, new), (param, param - number * (0.1 * param + new / (other.square() + 1)))]


def pulled(number, x, average, param, other):
    update = number * (average - param) - 0.2 * x
    return [], [(average, average - 0.1 * x), (param, param + update)]


def pulled_alone(number, x, average, param, other):
    return [], [(param, param - number * (x - param))]


def moved_average(number, x, average, param, other):
    return [], [(average, average + number * (x - average))]


def decayed_and_averaged(number, x, average, param, other):
    new = param - number * (x + 0.1 * param)
    return [], [(average, average + 0.2 * (new - average)), (param, new)]


def resting(number, x, average, param, other):
    step = torch.where(number == 0, 0.0, number * (x / (other.square() + 1)))
    return [], [(param, param + -step)]


def measured(number, x, average, param, other):
    return [], [(param, param + x * x.square().sum().sqrt())]


def unit_rows(number, x, average, param, other):
    return [], [(param, x / x.square().sum(dim=1, keepdim=True).sqrt())]


def scaled_sum(number, x, average, param, other):
    return [], [(param, param + (number * x).sum())]


def read_by_another(number, x, average, param, other):
    """A schedule-free step: the weights move towards the old value of a slot, which moves, too."""
    new = average - number * x
    return [], [(average, new), (param, 0.9 * param + 0.1 * average)]


def divided_where_it_can_be(number, x, average, param, other):
    known = other != 0
    return [], [(param, torch.where(known, x / torch.where(known, other, 1.0), 0.0))]


@pytest.mark.parametrize(
    ("function", "calls"),
    [
        (moved_average, 1),
        (decayed_and_averaged, 3),
        (resting, 3),
        (measured, 3),
        (unit_rows, 3),
        (scaled_sum, 3),
        (read_by_another, 3),
        (divided_where_it_can_be, 4),
        (shifted, 3),
        (scaled_in_place, 3),
        (scaled_in_place_to_maximize, 3),
        (divided_number, 3),
        (squared, 2),
        (decayed_list, 2),
        (decayed_quotient, 6),
        (pulled, 3),
        (pulled_alone, 1),
    ],
)
def test_programs_have_no_temporaries_that_they_can_do_without(function, calls):
    program = list_function(recorded(function, [(2, 3)] * 4), CPU)
    columns = [lists(seed) for seed in range(4)]
    _, expected = expected_of(function, [0.3], columns)
    run(program, [0.3], *columns)
    assert calls_in(program) == calls, program.source
    for i, leaf in enumerate(expected):
        torch.testing.assert_close([column[i] for column in columns], leaf, rtol=1e-14, atol=1e-15)


def test_a_norm_of_a_large_leaf_has_all_digits_of_its_dtype():
    def update(number, param, x):
        return [], [(param, param + x.square().sum().sqrt())]

    program = list_function(recorded(update, [(3001, 701)] * 2, dtype=torch.float32), CPU)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(3001, 701, generator=generator)
    for entries in (x, x.T.contiguous().T, x.double()):
        param = torch.zeros_like(entries)
        run(program, [0.0], [param], [entries])
        expected = torch.full_like(entries, x.double().square().sum().sqrt().item())
        torch.testing.assert_close(param, expected, rtol=2e-7, atol=0)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_norm_is_not_finite_where_an_entry_is_not(value):
    def update(number, param, x):
        return [], [(param, param + x.square().sum().sqrt())]

    program = list_function(recorded(update, [(3001,)] * 2), CPU)
    for place in (0, 1500, 3000):
        x, param = torch.ones(3001, dtype=F64), torch.zeros(3001, dtype=F64)
        x[place] = value
        run(program, [0.0], [param], [x])
        torch.testing.assert_close(param[0], torch.tensor(abs(value), dtype=F64), equal_nan=True)


def test_operations_kept_as_written_are_not_joined_with_later_ones():
    def update(number, param, grad):
        with as_written():
            scaled = grad / 3.0 * 1.1
        return [], [(param, param - number * scaled)]

    program = list_function(recorded(update, [(2, 3)] * 2), CPU)
    params, grads = lists(0), lists(1)
    expected = [param - 0.7 * (grad / 3.0 * 1.1) for param, grad in zip(params, grads, strict=True)]
    run(program, [0.7], params, grads)
    for param, value in zip(params, expected, strict=True):
        torch.testing.assert_close(param, value, rtol=1e-15, atol=0.0)
    assert program.source.count("foreach_mul") + program.source.count("foreach_div") == 2  # both, one after the other


def swapped(number, a, b, c):
    return [], [(a, b + 0), (b, c.clone()), (c, a.clone())]


def selected(number, a, b, c):
    return [], [(a, torch.where(number > 0, b, a)), (b, torch.where(number > 0, a, b))]


def read_later(number, a, b, c):
    new = a * number
    return [], [(a, new), (b, a + new)]


def twice(number, a, b, c):
    new = (a - b) * number
    return [], [(a, new), (b, new), (c, c + new)]


def decayed_and_read(number, a, b, c):
    return [], [(a, a - number * (b * c + 0.1 * a)), (b, b + a)]


def decayed_by_itself(number, a, b, c):
    return [], [(a, a - number * (b / a + 0.1 * a)), (c, c - number * (c + 0.1 * c))]


def decayed_after_writing(number, a, b, c):
    return [], [(b, c.clone()), (a, a - number * (b.view(3, 2).view(2, 3) + 0.1 * a))]


def pulled_by_what_is_written(number, a, b, c):
    return [], [(b, b - c), (a, a + number * (b - a) + 0.1 * c), (c, c + number * (a - c))]


def pulled_after_writing(number, a, b, c):
    return [], [(b, c.clone()), (a, a + number * (b.view(3, 2).view(2, 3) - a))]


def towards_a_constant(number, a, b, c):
    return [], [(a, a.lerp(torch.zeros_like(a), 0.25)), (b, torch.ones_like(b).lerp(b, number))]


DECAYED = [decayed_and_read, decayed_by_itself, decayed_after_writing]
PULLED = [pulled_by_what_is_written, pulled_after_writing]


@pytest.mark.parametrize("function", [swapped, selected, read_later, twice, towards_a_constant, *DECAYED, *PULLED])
@pytest.mark.parametrize("number", [0.5, -0.5])
def test_no_argument_is_overwritten_before_it_is_read(function, number):
    program = list_function(recorded(function, [(2, 3)] * 3), CPU)
    columns = [lists(seed) for seed in range(3)]
    _, expected = expected_of(function, [number], columns)
    run(program, [number], *columns)
    for i, own in enumerate(expected):
        torch.testing.assert_close([column[i] for column in columns], own, rtol=1e-14, atol=1e-15)


def eigenvalues_after_an_average(number, x, average, other):
    values, _ = torch.linalg.eigh(x)
    return [], [(average, average * number), (other, other + values)]


def test_a_factorization_that_raises_precedes_all_writes():
    program = list_function(recorded(eigenvalues_after_an_average, [(3, 3), (3, 3), (3,)]), CPU)
    columns = [lists(0, 2, (3, 3)), lists(1, 2, (3, 3)), lists(2, 2, (3,))]
    columns[0][1].fill_(torch.nan)
    before = [[tensor.clone() for tensor in column] for column in columns[1:]]
    with pytest.raises(torch.linalg.LinAlgError):
        run(program, [0.5], *columns)
    assert_equal(columns[1:], before)


def test_results_share_no_memory_with_arguments_or_one_another():
    def function(number, x):
        half = 0.5 * x
        return [x, half, 0.5 * x, half.view(-1)], []

    columns = lists(0)
    results = run(list_function(recorded(function, [(2, 3)]), CPU), [1.0], columns)
    storages = [tensor.untyped_storage().data_ptr() for result in (columns, *results) for tensor in result]
    assert len(set(storages)) == len(storages)


# Numbers.

OPERATIONS = [
    lambda x: 1 / x,
    lambda x: x.log(),
    lambda x: x.sqrt(),
    lambda x: x**-0.5,
    lambda x: (1000 * x).exp(),
    lambda x: torch.where(x > 0, x, -x).rsqrt(),
    lambda x: torch.maximum(x, torch.full_like(x, 0.5)) + torch.minimum(x, x.new_zeros(())),
    lambda x: (x > 0).to(F64) + (~(x > 0)).to(F64) * 2,
    lambda x: x.clamp(0.1, 0.2) + x.floor(),
    lambda x: x.clamp(-9, 9).to(torch.int64).to(F64) % 3,
    # Integers wrap.
    lambda x: (((x.clamp(-9, 9).to(torch.int64) + 2**63 - 2) * (2**62 + 12345) ^ 5) >> 3).to(F64),
    lambda x: ((x.clamp(-9, 9).to(torch.int64) * (2**33 + 2**31 + 7)).to(torch.int32) - 2**31).to(F64),
    lambda x: (3 - x.clamp(-9, 9).to(torch.int64) ** 40).to(F64),
]


@pytest.mark.parametrize("operation", OPERATIONS, ids=range(len(OPERATIONS)))
@pytest.mark.parametrize("value", [0.0, -1.5, 2.5, 1e300])
def test_numbers_are_as_torch_computes_them(operation, value):
    def function(number, x):
        return [operation(number)], []

    program = list_function(recorded(function, [(2,)]), CPU)
    (result,) = run(program, [value], [torch.ones(2, dtype=F64)])
    expected = operation(torch.tensor(value, dtype=F64)).item()
    assert result == pytest.approx(expected, rel=1e-15, nan_ok=True)


@pytest.mark.parametrize("factor", [1e39, -1e300, 1e-50, 3.4028235677973366e38])
def test_a_number_that_float32_cannot_hold_multiplies_as_in_torch(factor):
    gradient = torch.tensor([1.0, -2.0, 0.0])
    tx = gradtx.scale(factor)
    state = tx.init({"w": gradient})
    for _ in range(2):  # the definition, and its program
        updates, state = tx.update({"w": gradient}, state)
        torch.testing.assert_close(updates["w"], gradient * factor, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_numbers_round_once_to_the_dtype_of_a_list(dtype):
    function = list_function(recorded(lambda a, x: ([x * a + a / 3], []), [(5,)], dtype=dtype), CPU)
    columns = [tensor.to(dtype) for tensor in lists(3, shape=(5,))]
    for number in (0.1, -1 / 3, 1e-8, 12345.678):
        [results] = run(function, [number], columns)
        for result, x in zip(results, columns, strict=True):
            torch.testing.assert_close(result, x * number + number / 3, rtol=0, atol=0)


def test_a_list_is_divided_by_a_literal_zero():
    @gradtx.per_tensor(elementwise=True)
    def sign(width: gradtx.Scalar = 1.0):
        return lambda update, state, param, ctx: ((update / width).tanh(), state)

    tx = sign(0.0)
    updates, _ = tx.update({"w": torch.tensor([1.0, -2.0])}, tx.init({"w": torch.zeros(2)}))
    assert updates["w"].tolist() == [1.0, -1.0]


def test_python_operations_never_give_complex_numbers():
    for function in scalar_operations.IN_PYTHON.values():
        assert function is not pow
    assert math.isnan(scalar_operations._by_tensors(torch.ops.aten.pow.Tensor_Scalar, {}, (F64, None), -8.0, 0.5))


@gradtx.per_tensor(elementwise=True)
def share_of_entries():
    """Divides by the number of all entries, which every leaf knows only as a constant."""

    def update(update, state, param, ctx):
        total = yield {"entries": torch.tensor(float(update.numel()), dtype=F64)}
        yield -update / total["entries"], state

    return update


@pytest.mark.parametrize("chunk", [2**18, 4])
def test_a_constant_term_counts_once_for_every_leaf_and_not_for_its_parts(chunk, monkeypatch):
    monkeypatch.setattr("gradtx.plans.bundle.CHUNK", chunk)
    params = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((3, 3), (5,), (5,), ())]
    optimizer = gradtx.as_optimizer(share_of_entries(), params)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert {way.way for way in optimizer.explain()} == {"lists"}
    for param in params:
        torch.testing.assert_close(param.detach(), torch.full_like(param, -1 / 20), rtol=1e-6, atol=0.0)


# In optimizers.


def test_explain_calls_frozen_what_a_link_freezes_or_requires_no_gradient():
    params = {name: torch.nn.Parameter(torch.ones(2), name != "c") for name in "abc"}
    optimizer = gradtx.as_optimizer(gradtx.chain(gradtx.sgd(lr=0.1), gradtx.freeze("b")), params.items())
    (params["a"] + params["b"]).sum().backward()
    optimizer.step()
    assert [way.way for way in optimizer.explain()] == ["lists", "frozen", "frozen"]


def test_explain_says_why_a_parameter_runs_alone():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 1))
    tx = gradtx.partition({"a": gradtx.soap(stagger=True), "b": gradtx.adamw()}, {"a": "*.weight", "b": "*"})
    optimizer = gradtx.as_optimizer(tx, model.named_parameters())
    assert [way.way for way in optimizer.explain()] == ["not yet"] * 4
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    ways = {way.name: way for way in optimizer.explain()}
    assert ways["0.bias"].way == "lists"
    assert ways["0.weight"].way == "alone"
    assert "has no program" in ways["0.weight"].reason
    assert "alone: 2 parameters (0.weight, 1.weight)" in repr(optimizer.explain())


@gradtx.per_tensor(compiles=False, because="it counts whatever it sees")
def counting():
    def update(u, state, p, ctx):
        return u, state

    return update


@gradtx.per_tensor(compiles=False)
def undeclared():
    def update(u, state, p, ctx):
        return u, state

    return update


@gradtx.whole_tree()
def whole():
    def update(updates, state, params, ctx):
        return updates, state

    return update


REASONS = {
    "counting has no program: it counts whatever it sees": counting,
    "undeclared has no program: it may read values": undeclared,
    "whole has no program: it processes whole trees at once": whole,
    "scale_by_lbfgs has no program: its small systems amplify how a program rounds": gradtx.scale_by_lbfgs,
    "scale_by_psgd_kron has no program: it draws random numbers, which follow from the name of a leaf": (
        lambda: gradtx.scale_by_psgd_kron(probes="random")
    ),
    "low_rank has no program: it draws random numbers, which follow from the name of a leaf": (
        lambda: gradtx.low_rank(gradtx.adamw(), rank=2, projection="random")
    ),
}


@pytest.mark.parametrize("reason", REASONS)
def test_explain_says_why_a_rule_has_no_program(reason):
    params = [torch.nn.Parameter(torch.ones(3, 3)) for _ in range(2)]
    optimizer = gradtx.as_optimizer(gradtx.chain(REASONS[reason](), gradtx.scale(-0.1)), params)
    for param in params:
        param.grad = torch.ones(3, 3)
    optimizer.step()
    assert {(way.way, way.reason) for way in optimizer.explain()} == {("alone", reason)}


def ways_of_steps_that_equal_pure_updates(tx, shapes, without=lambda step: ()):
    """How each leaf runs in an optimizer whose weights end where pure updates take them."""
    params = noise(0, shapes)
    weights = {name: torch.nn.Parameter(value.clone()) for name, value in params.items()}
    optimizer = gradtx.as_optimizer(tx, weights.items())
    state = tx.init(params, counts="leaves")
    for step in range(1, 6):
        gradients = {**noise(step, shapes), **dict.fromkeys(without(step))}
        updates, state = tx.update(gradients, state, params)
        params = gradtx.apply_updates(params, updates)
        for name, weight in weights.items():
            weight.grad = gradients[name]
        optimizer.step()
    for name, weight in weights.items():
        torch.testing.assert_close(weight.detach(), params[name], rtol=1e-12, atol=1e-12)
    return {way.name: way.way for way in optimizer.explain()}


def test_a_space_whose_links_sum_over_leaves_runs_alone_with_all_its_leaves():
    inner = gradtx.chain(gradtx.clip_by_global_norm(0.5), gradtx.mechanize(gradtx.sgd(lr=0.1)))
    tx = gradtx.chain(gradtx.rotated(inner), gradtx.scale(1.0))
    shapes = {"matrix": (4, 3), "vector": (5,)}
    ways = ways_of_steps_that_equal_pure_updates(tx, shapes, lambda step: ["matrix"] if step == 3 else [])
    assert ways == {"matrix": "alone", "vector": "alone"}


def test_a_new_number_a_scheduler_or_a_missing_gradient_records_nothing_again(monkeypatch):
    params = [torch.nn.Parameter(torch.ones(shape)) for shape in ((3, 2), (4,))]
    optimizer = gradtx.optim.AdamW(params, lr=0.1)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)

    def step(*gradients):
        for param, gradient in zip(params, gradients, strict=True):
            param.grad = None if gradient is None else torch.full_like(param, gradient)
        optimizer.step()
        scheduler.step()

    step(1.0, 1.0)
    monkeypatch.setattr("gradtx.plans.phases.record", lambda *arguments: pytest.fail("recorded again"))
    step(2.0, 1.0)
    step(None, 1.0)
    optimizer.param_groups[0]["weight_decay"] = 0.3
    step(2.0, None)
    step(1.0, 1.0)


def test_pure_use_in_inference_mode():
    tx = gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw(lr=gradtx.cosine_schedule(0.1, T_max=10)))
    params = {"w": torch.ones(3)}

    def trained(modes):
        now, state = params, tx.init(params)
        for inside in modes:
            with torch.inference_mode(inside):
                updates, state = tx.update(now, state, now)
                now = gradtx.apply_updates(now, updates)
        return now["w"].clone()

    inside = trained([True, True, False, True])  # the first call records
    torch.testing.assert_close(inside, trained([False] * 4), rtol=0.0, atol=0.0)


def test_a_chain_with_another_rate_in_each_step_records_nothing_again(monkeypatch):
    monkeypatch.setattr(_tree_plans, "_SHARED", _tree_plans.SharedTrees())
    made = []
    init = _tree_plans.TreePlan.__init__
    monkeypatch.setattr(_tree_plans.TreePlan, "__init__", lambda *args: made.append(1) or init(*args))
    tx = gradtx.adamax(lr=0.5)
    params = {"w": torch.ones(3)}
    state = tx.init(params)
    for rate in (0.1, torch.tensor(0.2), torch.tensor(0.4)):
        updates, state = tx.replace(lr=rate).update({"w": torch.ones(3)}, state, params)
        torch.testing.assert_close(updates["w"], torch.full((3,), -float(rate)))
    assert len(made) == 1


@gradtx.per_tensor
def reads_a_value():
    def update(u, state, p, ctx):
        return (2 * u if u.sum().item() > 0 else u), {"calls": state["calls"] + 1}

    return {"calls": torch.zeros_like}, update


MIXED = gradtx.partition(
    {"alone": chain(reads_a_value(), gradtx.sgd(lr=0.1)), "lists": gradtx.adamw(lr=0.01)},
    {"alone": "a.*", "lists": "*"},
)
WAITING = gradtx.partition(
    {"alone": reads_a_value(), "lists": gradtx.accumulate(gradtx.adam(), 2)}, {"alone": "a.*", "lists": "*"}
)


@pytest.mark.parametrize("tx", [gradtx.adamw(), MIXED], ids=["all leaves", "leaves without one, too"])
def test_a_program_of_pure_use_keeps_no_tensor_alive(tx):
    import gc
    import weakref

    params = {"a.w": torch.ones(3), "b.w": torch.ones(4)}
    state = tx.init(params)
    updates, state = tx.update(params, state, params)
    assert any(_tree_plans.plans_of(tx).values())
    kept = [weakref.ref(tensor) for tensor in (*params.values(), *updates.values())]
    del params, updates, state
    gc.collect()
    assert [ref() for ref in kept] == [None] * 4


@pytest.mark.parametrize("missing", [None, "a.w", "c.b"])
@pytest.mark.parametrize(
    "tx",
    [
        MIXED,
        WAITING,
        chain(gradtx.clip_by_global_norm(0.5), MIXED),
        chain(gradtx.clip_by_global_norm(0.5, stale=True), MIXED),
        chain(gradtx.clip_by_global_norm(0.5, stale=True), gradtx.skip_nonfinite(gradtx.adam())),
        gradtx.skip_nonfinite(MIXED),
        chain(MIXED, gradtx.average()),
    ],
    ids=str,
)
def test_a_leaf_without_a_program_leaves_the_others_theirs(tx, missing, monkeypatch):
    shapes = {"a.w": (3, 4), "a.b": (), "c.w": (4, 4), "c.b": (3,)}
    start = noise(0, shapes)
    ran = []
    run_program = _tree_plans.TreePlan.__call__
    monkeypatch.setattr(_tree_plans.TreePlan, "__call__", lambda *args: ran.append(1) or run_program(*args))

    def trained():
        params, state = start, tx.init(start)
        for step in range(6):
            grads = noise(step + 1, shapes)
            if step in (0, 3) and missing:
                grads[missing] = None
            if step == 2:
                grads["c.w"] = grads["c.w"] * (math.inf if "skip" in repr(tx) else 1.0)
            given = (grads, state, params)
            before = copy.deepcopy(given)
            updates, state = tx.update(*given)
            torch.testing.assert_close(given, before, rtol=0.0, atol=0.0, equal_nan=True)
            tensors = _tree.tensors((grads, given[1:], updates, state))
            assert len({tensor.data_ptr() for tensor in tensors}) == len(tensors)
            params = gradtx.apply_updates(params, updates)
        return params, state

    with gradtx.eagerly():
        expected = trained()
    assert not ran
    torch.testing.assert_close(trained(), expected, rtol=1e-14, atol=1e-14)
    # `accumulate` also processes leaves without a gradient, which no program does.
    assert len(ran) == (4 if missing and tx is WAITING else 6)


def test_the_gradient_of_a_rules_own_tensor_reaches_the_leaves_that_have_programs():
    factor = torch.tensor(2.0, requires_grad=True)

    @gradtx.per_tensor
    def learned():
        return lambda u, state, p, ctx: (factor * u, state)

    learned_and_not = gradtx.partition({"learned": learned(), "rest": chain()}, {"learned": "a", "rest": "b"})
    tx = chain(learned_and_not, gradtx.clip_by_global_norm(1.0))
    params = {"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}
    for _ in range(2):
        updates, _ = tx.update(params, tx.init(params))
        (slope,) = torch.autograd.grad(updates["b"].sum(), factor)
        torch.testing.assert_close(slope, torch.tensor(-4.0 * 2 * 9 / 52**1.5))
    assert not any(_tree_plans.plans_of(tx).values())  # later calls do not try again


DELAYED = {
    "old": lambda update, old, ctx: (old, update),
    "product": lambda update, old, ctx: (2 * (update * old), old + update),
    "quotient": lambda update, old, ctx: (update / old, update),
    "square": lambda update, old, ctx: (old.square(), update),
    "mean": lambda update, old, ctx: (0.9 * old + (1 - 0.9) * update, update),
    "view": lambda update, old, ctx: (old.mT.mT, update),
    "selected": lambda update, old, ctx: (torch.where(ctx.step > 2, old, update), update),
}


@pytest.mark.parametrize("elementwise", [False, True])
@pytest.mark.parametrize("formula", DELAYED)
def test_an_update_reads_an_old_slot_before_it_is_written(formula, elementwise):
    @gradtx.per_tensor(elementwise=elementwise and formula != "view")
    def delayed():
        def update(update, state, param, ctx):
            direction, new = DELAYED[formula](update, state["old"], ctx)
            return direction, {"old": new}

        return lambda param: {"old": torch.ones_like(param)}, update

    for tx in (
        gradtx.chain(delayed(), gradtx.scale_by_learning_rate(0.1)),
        gradtx.chain(gradtx.scale(-0.1), delayed()),
    ):
        values = dict(zip("ab", lists(0)[0:1] * 2, strict=True))
        params = {name: torch.nn.Parameter(value.clone()) for name, value in values.items()}
        optimizer = gradtx.as_optimizer(tx, list(params.items()))
        state = tx.init(values)
        for i in range(4):
            grads = {name: lists(i + 1)[0].clone() for name in values}
            for name, param in params.items():
                param.grad = grads[name].clone()
            optimizer.step()
            updates, state = _pure.update(_pure.UpdateCall(tx, grads, state, values, {}))
            values = gradtx.apply_updates(values, updates)
        for name, param in params.items():
            torch.testing.assert_close(param.detach(), values[name], rtol=1e-12, atol=1e-12)


def test_transformations_that_differ_in_numbers_share_programs_and_use_their_own_numbers():
    tx, other = gradtx.sgd(lr=0.1), gradtx.sgd(lr=0.5)
    params = {"w": torch.ones(3)}
    state = tx.init(params)
    first, _ = tx.update(params, state, params)
    second, _ = other.update(params, state, params)
    assert _tree_plans.plans_of(tx) is _tree_plans.plans_of(other)
    torch.testing.assert_close(second["w"], 5 * first["w"])


@pytest.mark.parametrize("others", [("empty",), ("empty", "matrix"), ("empty", "vector", "matrix")])
def test_the_bits_of_leaves_without_dimensions_do_not_depend_on_other_leaves(others):
    numbers = [f"number_{i}" for i in range(8)]
    shapes = {**dict.fromkeys(numbers, ()), "empty": (0,), "vector": (5,), "matrix": (3, 4)}
    ways = []
    for names in (numbers, [*numbers, *others]):
        ways.append([])
        generator = torch.Generator().manual_seed(84)
        params = {name: torch.nn.Parameter(torch.randn(shapes[name], generator=generator)) for name in names}
        optimizer = gradtx.as_optimizer(gradtx.sgd(lr=0.05, momentum=0.9), list(params.items()))
        for step in range(20):
            generator.manual_seed(step)
            for param in params.values():
                param.grad = torch.randn(param.shape, generator=generator)
            optimizer.step()
            ways[-1].append([params[name].item() for name in numbers])
    assert ways[0] == ways[1]


UNREAD = {
    "per-leaf": {"hessian_diag": {"w": torch.ones(3), "b": None}},
    "None": {"hessian_diag": None},
    "functions": {"grad_fn": lambda params: params, "value_fn": lambda params: torch.tensor(1.0)},
    "a loss with its graph": {"value": torch.tensor(1.0, requires_grad=True)},
    "a whole number": {"value": 3},
}


@pytest.mark.parametrize("extras", UNREAD.values(), ids=list(UNREAD))
@pytest.mark.parametrize("make", [gradtx.adamw, lambda: gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.lion())])
def test_an_extra_that_no_link_reads_changes_neither_the_program_nor_a_bit(make, extras, forget_programs):
    forget_programs()
    tx = make()
    params = noise(0, {"w": (3,), "b": (2,)}, torch.float32)
    state = tx.init(params)
    expected = tx.update(params, state, params)
    for _ in range(2):
        assert_equal(tx.update(params, state, params, **extras), expected)
    with_extras, without = _tree_plans.plans_of(tx).values()
    texts = []
    for programs in (with_extras, without):
        texts.append([[each.text for each in leaves.operations] for leaves in programs[0].bundles])
    assert texts[0] == texts[1]


OF_ALL_SHAPES = {
    "lamb": (gradtx.lamb, 1),
    "lars": (gradtx.lars, 1),
    "centralize": (gradtx.centralize, 2),  # a vector has no rows
    "soap": (gradtx.soap, 2),
}


@pytest.mark.parametrize(("make", "most"), OF_ALL_SHAPES.values(), ids=OF_ALL_SHAPES)
def test_leaves_of_all_shapes_share_a_program_in_pure_use(make, most, forget_programs, monkeypatch):
    """Also if functions of another text push theirs out of the cache in between."""
    monkeypatch.setattr(recent, "MOST", 1)
    forget_programs()
    shapes = {"a": (4, 6), "b": (6,), "c": (3, 5), "d": (2,), "e": (5, 7)}
    tx, params = make(), noise(0, shapes)
    state = expected = tx.init(params)
    for seed in range(3):
        grads = noise(seed, shapes)
        updates, state = tx.update(grads, state, params)
        with gradtx.eagerly():
            one_by_one, expected = tx.update(grads, expected, params)
        for name, update in updates.items():
            torch.testing.assert_close(update, one_by_one[name], rtol=1e-12, atol=1e-14)
    ((plan,),) = _tree_plans.plans_of(tx).values()
    assert len(plan.bundles) <= most


def test_an_extra_that_no_link_reads_is_checked_by_the_first_call_with_it():
    tx, params = gradtx.sgd(lr=1.0), {"w": torch.ones(3)}
    state = tx.init(params)
    tx.update(params, state, params)  # records a program
    with pytest.raises(ValueError, match=r"hessian_diag: leaf 'w' has shape \(4,\), needs \(3,\)"):
        tx.update(params, state, params, hessian_diag={"w": torch.ones(4)})
    with pytest.raises(ValueError, match="hessian_diag: leaf 'w' is missing"):
        tx.update(params, state, params, hessian_diag={})


def moving_rule(update):
    """A rule with two slots, of which one takes the place of the other."""

    @gradtx.per_tensor
    def moves():
        return lambda param: {"a": torch.zeros_like(param), "b": torch.zeros_like(param)}, update

    return moves()


MOVING = {
    "multiplied by one": moving_rule(lambda u, s, p, ctx: (s["b"] * 1.0, {"a": u, "b": s["a"] * 1.0})),
    "as they are": moving_rule(lambda u, s, p, ctx: (s["b"], {"a": u, "b": s["a"]})),
    "by views": moving_rule(lambda u, s, p, ctx: (s["b"].view(-1).view(u.shape), {"a": u + s["b"], "b": s["a"]})),
}
AROUND = {
    "alone": chain,
    "accumulate before": lambda tx: chain(gradtx.accumulate(gradtx.ema(0.5), 2), tx),
    "skip_nonfinite": gradtx.skip_nonfinite,
}


@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
@pytest.mark.parametrize("tx", MOVING.values(), ids=MOVING)
def test_a_slot_that_moves_into_another_has_the_value_from_before_the_step(tx, around):
    tx, ends = around(tx), []
    for context in (contextlib.nullcontext, gradtx.eagerly):
        param = torch.nn.Parameter(torch.zeros(2))
        optimizer = gradtx.as_optimizer(tx, [param])
        for step in range(6):
            param.grad = torch.tensor([1.0 + step, 2.0 + step**2])
            with context():
                optimizer.step()
        ends.append(param.detach().clone())
    assert_equal(*ends)
