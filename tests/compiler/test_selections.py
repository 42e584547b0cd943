"""Operations that only one branch of `where` needs: they are skipped, and nothing is lost by it."""

import random

import pytest
import torch

import gradtx
from gradtx.compiler import list_function
from tests.compiler.problems import CPU, expected_of, lists, recorded, run
from tests.optim.problems import assert_equal

TRUTHS = [(x, y) for x in (-0.5, 0.5) for y in (-0.5, 0.5)]


class Drawn:
    """A random function of two numbers and four tensors, which decides by the numbers."""

    def __init__(self, seed):
        self._seed = seed

    def __call__(self, first, second, *arguments):
        rng = random.Random(self._seed)
        self._first = arguments[0]
        conditions = [first > 0, second > 0, (first > 0) & (second > 0), first < 0]
        pool = list(arguments)
        for _ in range(rng.randrange(3, 10)):
            x, y = rng.choice(pool), rng.choice(pool)
            if rng.random() < 0.4:
                pool.append(self._selection(rng, conditions, x, rng.choice([y, second]), 1))
            else:
                pool.append(self._operation(rng, first, x, y))
        if self._seed % 3 == 0:  # programs give results or write arguments
            return [rng.choice(pool) for _ in range(3)], []
        written = [argument for argument in arguments if rng.random() < 0.8]  # others are read only, as gradients
        rng.shuffle(written)
        return [], [self._write(rng, conditions, argument, pool) for argument in written]

    def _write(self, rng, conditions, argument, pool):
        if rng.random() < 0.2:
            return argument, rng.choice(pool[:4]).clone()  # of an argument
        values = pool[4:]
        if rng.random() < 0.3:
            return argument, rng.choice(values)
        return argument, self._selection(rng, conditions, rng.choice([argument, *values]), rng.choice(values), 2)

    def _selection(self, rng, conditions, x, y, depth):
        if depth == 2 and rng.random() < 0.5:
            y = self._selection(rng, conditions, x, y, 1)
        if rng.random() < 0.2 and x is not y:
            y = torch.zeros_like(x)
        branches = [x, y]
        rng.shuffle(branches)
        condition = rng.choice(conditions)
        if self._seed % 4 == 1 and rng.random() < 0.4:
            # Of each entry of an argument, which does not round.
            condition = condition | (self._first > 0)
        return torch.where(condition, *branches)

    def _operation(self, rng, first, x, y):
        made = [
            lambda: x + y,
            lambda: first * x - y,
            lambda: x * y,
            lambda: (1 - first) * x + first * y,
            lambda: x.abs().sqrt().clamp(0.1, 2.0),
            lambda: (x - y).detach(),
            lambda: -x,
            lambda: first / (x.abs() + 1) * y,
            lambda: x * (first * y),
        ]
        return rng.choice(made)()


def assert_no_memory_is_shared(*columns):
    storages = [tensor.untyped_storage().data_ptr() for column in columns for tensor in column]
    assert len(set(storages)) == len(storages)


@pytest.mark.parametrize("seed", range(150))
def test_random_functions_give_in_all_cases_what_they_give_leaf_by_leaf(seed):
    function = Drawn(seed)
    program = list_function(recorded(function, [(2, 3)] * 4, count=2), CPU)
    for numbers in TRUTHS:
        columns = [lists(i) for i in range(4)]
        results, arguments = expected_of(function, numbers, columns)
        actual = run(program, list(numbers), *columns)
        assert_no_memory_is_shared(*columns, *actual)
        for i, (values, leaf) in enumerate(zip(results, arguments, strict=True)):
            torch.testing.assert_close([value[i] for value in actual], values, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close([column[i] for column in columns], leaf, rtol=1e-12, atol=1e-12)


def operations(tx, steps):
    """The operations on lists, or on leaves, in each of some steps."""
    params = [torch.nn.Parameter(torch.ones(8, 8)) for _ in range(3)]
    optimizer = gradtx.as_optimizer(tx, params)
    counts = []
    for _ in range(steps):
        for param in params:
            param.grad = torch.ones_like(param)
        with torch.profiler.profile(acc_events=True) as profile:
            optimizer.step()
        counts.append(sum(event.name.startswith("aten::_foreach") for event in profile.events()))
    return counts


def test_a_call_that_only_accumulates_computes_no_update():
    counts = operations(gradtx.accumulate(gradtx.adamw(1e-3), 4), 9)[1:]  # the first is recorded
    assert counts[0] == counts[1] == counts[3]
    assert counts[2] == counts[6] > counts[0] + 6


def test_lookahead_synchronizes_every_k_steps_alone():
    counts = operations(gradtx.with_lookahead(gradtx.sgd(lr=0.1, momentum=0.9), k=3), 7)[1:]
    assert counts[1] == counts[4] > counts[0] == counts[2]


def test_leaves_that_a_choice_marks_share_lists_in_pure_updates_whatever_their_shapes():
    def count(sizes):
        tx = gradtx.muon(lr=0.1, fallback=gradtx.adamw(lr=0.1))
        params = {f"w{i}": torch.ones(size) for i, size in enumerate(sizes)}
        state = tx.init(params)
        _, state = tx.update(params, state, params)  # the first call is recorded
        with torch.profiler.profile(acc_events=True) as profile:
            tx.update(params, state, params)
        return sum(event.name.startswith("aten::_foreach") for event in profile.events())

    assert count([(3,)]) == count([(3,), (4,), (5,)]) > 0


def test_a_first_step_that_differs_writes_its_state_in_place():
    function = list_function(
        recorded(lambda n, m, g: ([], [(m, torch.where(n > 0, g * g, (1 - n) * m + n * g))]), [(2, 3)] * 2), CPU
    )
    assert "foreach_mul_(leaf0, " in function.source
    assert "foreach_add_(mul_1, leaf1, alpha=" in function.source
    for number in (0.5, -0.5):
        momenta, gradients = lists(0), lists(1)
        run(function, [number], momenta, gradients)
        for new, old, gradient in zip(momenta, lists(0), gradients, strict=True):
            expected = gradient * gradient if number > 0 else old.lerp(gradient, number)
            torch.testing.assert_close(new, expected, rtol=1e-12, atol=0.0)


def test_a_branch_that_is_not_taken_is_not_computed_even_where_it_would_raise_no_nan():
    """A NaN in a branch that is not taken changes nothing, as with `where`."""
    params = [torch.nn.Parameter(torch.ones(3))]
    optimizer = gradtx.as_optimizer(gradtx.skip_nonfinite(gradtx.adamw(0.1)), params)
    before = None
    for gradient in (1.0, float("nan"), 2.0):
        params[0].grad = torch.full((3,), gradient)
        before = params[0].detach().clone()
        optimizer.step()
        assert params[0].isfinite().all()
        if gradient != gradient:
            assert_equal(params[0].detach(), before)


def test_a_quotient_whose_floor_is_positive_is_not_checked_for_zeros():
    def quotient(floor, top, bottom):
        bottom = bottom + floor
        known = (bottom != 0) | (floor > 0)
        return [torch.where(known, top / torch.where(known, bottom, 1.0), 0.0)], []

    program = list_function(recorded(quotient, [(2,)] * 2), CPU)
    top, bottom = torch.tensor([[1.0, 2.0], [0.0, 4.0]], dtype=torch.float64)
    for floor, expected in ((0.5, [2.0, 2 / 4.5]), (0.0, [0.0, 0.5])):
        with torch.profiler.profile(acc_events=True) as profile:
            [[result]] = run(program, [floor], [top.clone()], [bottom.clone()])
        names = {event.name for event in profile.events()}
        assert result.tolist() == expected
        assert ("aten::_foreach_copy_" in names) == ("aten::where" in names) == (floor == 0)  # a conversion finds zeros
