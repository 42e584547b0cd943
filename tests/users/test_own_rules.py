"""Three rules that users wrote for themselves, each everywhere: no rule was written with the uses in mind."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch

import gradtx
from tests.optim.problems import assert_close, assert_equal
from tests.users.common import drawn, through_a_file

STEPS, LR, NUMBER = 6, 0.05, 0.8
TOLERANCE = 1e-10  # of weights: sums in float64 in another order


@gradtx.per_tensor(elementwise=True)
def mix_two_momenta(slow: gradtx.Scalar = 0.9, share: gradtx.Scalar = 0.3):
    def init(param):
        return {"fast": torch.zeros_like(param), "slow": torch.zeros_like(param)}

    def update(update, state, param, ctx):
        fast_average = 0.5 * state["fast"] + 0.5 * update
        slow_average = slow * state["slow"] + (1 - slow) * update
        fast_mean, slow_mean = fast_average / ctx.bias_correction(0.5), slow_average / ctx.bias_correction(slow)
        return (1 - share) * fast_mean + share * slow_mean, {"fast": fast_average, "slow": slow_average}

    return init, update


def mixed_by_hand(grads, memory, t, slow):
    directions = {}
    for name, g in grads.items():
        f, s = memory.get(name, (0.0, 0.0))
        f, s = 0.5 * f + 0.5 * g, slow * s + (1 - slow) * g
        memory[name] = f, s
        directions[name] = 0.7 * f / (1 - 0.5**t) + 0.3 * s / (1 - slow**t)
    return directions


@gradtx.per_tensor(elementwise=True)
def momentum_of_length_one(beta: gradtx.Scalar = 0.9):
    """All leaves together have length 1."""

    def init(param):
        return {"exp_avg": torch.zeros_like(param)}

    def update(update, state, param, ctx):
        average = beta * state["exp_avg"] + (1 - beta) * update
        total = yield {"square": average.square().sum()}
        yield average / (total["square"].sqrt() + 1e-12), {"exp_avg": average}

    return init, update


def of_length_one_by_hand(grads, memory, t, beta):
    for name, g in grads.items():
        memory[name] = beta * memory.get(name, 0.0) + (1 - beta) * g
    length = torch.cat([average.flatten() for average in memory.values()]).norm()
    return {name: average / (length + 1e-12) for name, average in memory.items()}


@gradtx.per_tensor(dims=2)
def whiten_rows(beta: gradtx.Scalar = 0.9, damping: gradtx.Scalar = 0.1):
    def init(param):
        rows = param.shape[0]
        return {"exp_avg": torch.zeros_like(param), "gram": param.new_zeros(rows, rows)}

    def update(update, state, param, ctx):
        gram = beta * state["gram"] + (1 - beta) * update @ update.T
        damped = gram / ctx.bias_correction(beta) + damping * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        average = beta * state["exp_avg"] + (1 - beta) * update
        return torch.linalg.solve(damped, average), {"exp_avg": average, "gram": gram}

    return init, update


def whitened_by_hand(grads, memory, t, beta):
    directions = {}
    for name, g in grads.items():
        average, gram = memory.get(name, (0.0, 0.0))
        average, gram = beta * average + (1 - beta) * g, beta * gram + (1 - beta) * g @ g.T
        memory[name] = average, gram
        directions[name] = (gram / (1 - beta**t) + 0.1 * torch.eye(len(g), dtype=g.dtype)).inverse() @ average
    return directions


class Case(NamedTuple):
    factory: Callable
    by_hand: Callable
    shapes: dict[str, tuple[int, ...]]
    large: tuple[int, ...]  # of a leaf whose slots have codes


MATRICES = {"body": (4, 3), "head": (2, 4)}
CASES = {
    "momentum": Case(mix_two_momenta, mixed_by_hand, {**MATRICES, "bias": (3,), "gain": ()}, (64, 65)),
    "sum over leaves": Case(momentum_of_length_one, of_length_one_by_hand, {**MATRICES, "bias": (3,)}, (64, 65)),
    "matrix": Case(whiten_rows, whitened_by_hand, MATRICES, (64, 64)),
}
EACH = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def weights(shapes):
    return {name: drawn(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}


def gradients(params, t):
    return {name: 0.5 * p + (2 * p + t).sin() for name, p in params.items()}


def loop_by_hand(case, number=NUMBER):
    params, memory = weights(case.shapes), {}
    for t in range(1, STEPS + 1):
        directions = case.by_hand(gradients(params, t), memory, t, number)
        params = {name: p - LR * directions[name] for name, p in params.items()}
    return params


def chain_of(case, number=NUMBER, **options):
    return gradtx.chain(case.factory(number, **options), gradtx.scale_by_learning_rate(LR))


def pure_run(tx, params, steps=STEPS, start=0, state=None):
    state = tx.init(params) if state is None else state
    for t in range(start + 1, start + steps + 1):
        updates, state = tx.update(gradients(params, t), state, params)
        params = gradtx.apply_updates(params, updates)
    return params, state


def step(optimizer, params, first=0, steps=STEPS):
    for t in range(first + 1, first + steps + 1):
        with torch.no_grad():
            for name, g in gradients(params, t).items():
                params[name].grad = g.to(params[name].dtype)
        optimizer.step()


def trainable(params, dtype=torch.float64):
    return {name: torch.nn.Parameter(p.to(dtype, copy=True)) for name, p in params.items()}


@EACH
def test_pure_updates_are_those_of_the_loop(case):
    params, _ = pure_run(chain_of(case), weights(case.shapes))
    assert_close(params.values(), loop_by_hand(case).values(), TOLERANCE)


@pytest.mark.slow
@EACH
@pytest.mark.parametrize("compile", [False, True], ids=["lists", "compiled"])
def test_steps_of_an_optimizer_are_those_of_the_loop_and_none_is_taken_alone(case, compile):
    params = trainable(weights(case.shapes))
    optimizer = gradtx.as_optimizer(chain_of(case), params.items(), compile=compile)
    step(optimizer, params)
    assert_close(params.values(), loop_by_hand(case).values(), TOLERANCE)
    has_kernels = compile and case.factory is not whiten_rows  # they have no products of matrices
    assert {way.way for way in optimizer.explain()} == {"kernels" if has_kernels else "lists"}


@EACH
def test_one_vmap_trains_a_member_for_each_value(case):
    start = weights(case.shapes)
    numbers = torch.tensor([0.3, 0.6, 0.95], dtype=torch.float64)
    members = torch.vmap(lambda number: pure_run(chain_of(case, number), start)[0])(numbers)
    for params, number in zip(gradtx.unstack(members), numbers.tolist(), strict=True):
        assert_close(params.values(), loop_by_hand(case, number).values(), TOLERANCE)


@EACH
def test_the_derivative_of_a_run_is_that_of_the_loop(case):
    def length(params):
        return torch.stack([p.square().sum() for p in params.values()]).sum()

    start, number = weights(case.shapes), torch.tensor(NUMBER, dtype=torch.float64)
    ours = torch.func.grad(lambda number: length(pure_run(chain_of(case, number), start)[0]))(number)
    theirs = torch.func.grad(lambda number: length(loop_by_hand(case, number)))(number)
    assert theirs.abs() > 1e-3
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=0.0)


@pytest.mark.slow
@EACH
def test_state_in_8_bits_moves_the_run_by_a_few_percent_in_all_uses(case):
    start = {"large": weights({"large": case.large})["large"].float()}
    exact, _ = pure_run(chain_of(case), start)
    pure, state = pure_run(chain_of(case, state_dtype="int8"), start)
    way = (exact["large"] - start["large"]).norm()
    assert (pure["large"] - exact["large"]).norm() < 0.05 * way
    slots = state[case.factory.__name__]
    kept = {"gram"}  # a factor of a matrix: codes are for slots in the shape of their parameter
    assert all(slots[name]["large"].dtype == torch.int8 for name in slots.keys() - kept if "." not in name)
    for compile in (False, True):
        params = trainable(start, torch.float32)
        step(gradtx.as_optimizer(chain_of(case, state_dtype="int8"), params.items(), compile=compile), params)
        # A value between two codes may be rounded to the other one.
        assert (params["large"] - pure["large"]).norm() < 0.01 * way


@EACH
@pytest.mark.parametrize("options", [{}, {"state_dtype": "int8"}], ids=["exact", "int8"])
def test_runs_resume_bit_for_bit_from_a_file(case, options):
    tx, start = chain_of(case, **options), weights({**case.shapes, "large": case.large})
    whole, whole_state = pure_run(tx, start)
    half = through_a_file(pure_run(tx, start, STEPS // 2))
    assert_equal(pure_run(tx, half[0], STEPS // 2, STEPS // 2, half[1]), (whole, whole_state))

    params = trainable(start)
    optimizer = gradtx.as_optimizer(tx, params.items())
    step(optimizer, params, steps=STEPS // 2)
    saved, resumed = through_a_file(optimizer.state_dict()), trainable(params)
    step(optimizer, params, STEPS // 2, STEPS // 2)
    again = gradtx.as_optimizer(tx, resumed.items())
    again.load_state_dict(saved)
    step(again, resumed, STEPS // 2, STEPS // 2)
    assert_equal(resumed, params)


def test_the_matrix_rule_names_a_leaf_that_is_no_matrix():
    message = "whiten_rows: leaf 'bias' has shape .3,., needs 2 dimensions; send it to another transformation"
    with pytest.raises(ValueError, match=message):
        gradtx.as_optimizer(chain_of(CASES["matrix"]), trainable(weights(CASES["momentum"].shapes)).items())
