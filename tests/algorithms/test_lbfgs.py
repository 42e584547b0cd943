import contextlib
import copy
import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import gradtx
from tests.conformance import assert_close
from tests.matrix_problem import SEEDS
from tests.references import RATE, Transformed, TreeLoop, compare, compare_trees, named

SHAPES = {"a": (4, 3), "b": (5,), "c": ()}


def problem(seed):
    """A smooth function of few parameters that no quadratic equals, its start, and its gradient."""
    rng = torch.Generator().manual_seed(seed)
    sizes = [torch.Size(shape).numel() for shape in SHAPES.values()]
    n = sum(sizes)
    A = torch.randn(n, n, generator=rng, dtype=torch.float64)
    A = A @ A.T / n + torch.diag(torch.logspace(-1, 1, n, dtype=torch.float64))
    x = torch.randn(n, generator=rng, dtype=torch.float64)

    def loss(params):
        p = torch.cat([params[name].reshape(-1) for name in SHAPES])
        return 0.5 * p @ A @ p + (0.3 * p).sin().sum() + 0.05 * p.pow(4).sum()

    start = {}
    for (name, shape), piece in zip(SHAPES.items(), x.split(sizes), strict=True):
        start[name] = piece.reshape(shape)
    return loss, start


def run(step, seed, steps=25):
    """The weights after each step."""
    loss, params = problem(seed)
    history = []
    for _ in range(steps):
        updates = step(torch.func.grad(loss)(params), params)
        params = {name: params[name] + updates[name] for name in params}
        history.append(params)
    return history


def lbfgs(s, t, grads, params, lr=1.0, history=10, curvature=1e-10, first="l1", weight_decay=0.0):
    """The recursion of two loops, over all leaves as one vector."""
    s = s[""]
    g, p = (torch.cat([tree[name].reshape(-1) for name in tree]) for tree in (grads, params))
    if t == 1:
        s.pairs, s.gamma = [], 1.0
        d = g * min(1.0, 1 / g.abs().sum().item()) if first == "l1" else g
    else:
        step, change = p - s.p, g - s.g
        product = (step @ change).item()
        s.seen.add(product > curvature)
        if product > curvature:
            s.pairs = [*s.pairs, (step, change)][-history:]
            s.gamma = product / (change @ change).item()
        q, alphas = g, []
        for step, change in reversed(s.pairs):
            alphas.append((step @ q) / (step @ change))
            q = q - alphas[-1] * change
        d = s.gamma * q
        for (step, change), alpha in zip(s.pairs, reversed(alphas), strict=True):
            d = d + step * (alpha - (change @ d) / (step @ change))
    s.p, s.g = p, g
    new = p * (1 - lr * weight_decay) - lr * d
    pieces = new.split([params[name].numel() for name in params])
    return {name: piece.reshape(params[name].shape) for name, piece in zip(params, pieces, strict=True)}


CASES = [
    {"lr": 0.3},
    {"lr": 0.5, "history": 3, "weight_decay": 0.1},
    {"lr": 0.2, "history": 1, "first": "none"},
    {"lr": 0.3, "curvature": 0.05, "history": 4},
    {"lr": RATE, "history": 5, "weight_decay": RATE},
]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("options", CASES, ids=named)
def test_lbfgs_follows_the_two_loops(options, seed):
    step = Transformed(gradtx.lbfgs(**options))
    compare(run(step, seed), run(TreeLoop(lbfgs, **options), seed), 1e-11, absolute=True)


def test_pairs_of_little_curvature_are_left_out():
    reference = TreeLoop(lbfgs, **CASES[3])
    run(reference, 0)
    assert reference.seen == {True, False}


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("history", [2, 10])
def test_lbfgs_is_torch_optim_lbfgs_with_one_step_a_call(history, seed):
    loss, start = problem(seed)
    params = {name: torch.nn.Parameter(value.clone()) for name, value in start.items()}
    optimizer = torch.optim.LBFGS(params.values(), lr=0.3, max_iter=1, history_size=history)

    def closure():
        optimizer.zero_grad()
        value = loss(params)
        value.backward()
        return value

    expected = []
    for _ in range(25):
        optimizer.step(closure)
        expected.append({name: param.detach().clone() for name, param in params.items()})
    step = Transformed(gradtx.lbfgs(lr=0.3, history=history))
    compare(run(step, seed), expected, 1e-11, absolute=True)


def valley(x):
    """Rosenbrock's function."""
    return ((1 - x[:-1]) ** 2 + 100 * (x[1:] - x[:-1] ** 2) ** 2).sum()


def bowl(condition, n=40):
    """A quadratic of some condition number."""
    rng = torch.Generator().manual_seed(0)
    Q, _ = torch.linalg.qr(torch.randn(n, n, generator=rng, dtype=torch.float64))
    A = (Q * torch.logspace(0, math.log10(condition), n, dtype=torch.float64)) @ Q.T
    return lambda x: 0.5 * x @ (A.to(x.dtype) @ x)


def lowest(step, loss, x, steps=200):
    """The loss after steps in the direction of updates, each halved until the loss falls."""
    for _ in range(steps):
        params = {"a": x[:3], "b": x[3:]}
        gradients = torch.func.grad(lambda p: loss(torch.cat([p["a"], p["b"]])))(params)
        updates = step(gradients, {name: value.clone() for name, value in params.items()})
        change = torch.cat([updates["a"], updates["b"]])
        slope = change @ torch.cat([gradients["a"], gradients["b"]])
        length = 1.0
        while length > 1e-10 and not loss(x + length * change) <= loss(x) + 1e-4 * length * slope:
            length /= 2
        if length <= 1e-10:
            break
        x = x + length * change
    return loss(x).item()


@pytest.mark.parametrize("history", [5, 10])
@pytest.mark.parametrize("problem", ["valley", "bowl of 1e4", "bowl of 1e6"])
def test_in_float32_it_converges_as_the_two_loops_do(problem, history):
    loss = valley if problem == "valley" else bowl(float(problem.split()[-1]))
    start = torch.full((20,), -1.2) if problem == "valley" else torch.ones(40)
    ours = lowest(Transformed(gradtx.lbfgs(history=history)), loss, start)
    theirs = lowest(TreeLoop(lbfgs, history=history), loss, start)
    assert ours <= max(3 * theirs, 1e-9)


def test_a_vmapped_update_is_that_of_each_member():
    tx = gradtx.lbfgs(lr=0.3, history=3)
    members = [problem(seed)[1] for seed in (0, 1)]
    loss, _ = problem(0)
    stacked = {name: torch.stack([member[name] for member in members]) for name in SHAPES}
    state = torch.vmap(tx.init)(stacked)
    states = [tx.init(member) for member in members]
    for _ in range(8):
        gradients = torch.vmap(torch.func.grad(loss))(stacked)
        updates, state = torch.vmap(tx.update)(gradients, state, stacked)
        stacked = gradtx.apply_updates(stacked, updates)
        for i, member in enumerate(members):
            of_member, states[i] = tx.update(torch.func.grad(loss)(member), states[i], member)
            members[i] = gradtx.apply_updates(member, of_member)
            compare_trees({name: value[i] for name, value in stacked.items()}, members[i], 1e-10)


def test_a_leaf_that_joins_late_has_pairs_of_its_own():
    """Alone with its history, a leaf has a direction that its own products give, not those of another one."""
    weights = [torch.nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64)) for _ in range(2)]
    curvatures = [torch.tensor([1.0, 4.0]), torch.tensor([2.0, 3.0])]
    optimizer = gradtx.optim.LBFGS(weights, lr=0.1, history=2)
    for step in range(3):
        for i, (weight, curvature) in enumerate(zip(weights, curvatures, strict=True)):
            weight.grad = curvature * weight.detach() if i == 0 or step > 1 else None
        before = [weight.detach().clone() for weight in weights]
        length = sum(weight.grad.abs().sum() for weight in weights if weight.grad is not None)
        optimizer.step()
    g = weights[1].grad
    torch.testing.assert_close(weights[1].detach(), before[1] - 0.1 * g / max(1.0, length), rtol=1e-12, atol=0)
    first, second = (optimizer.state[weight] for weight in weights)
    assert first["products_s"].count_nonzero() > 0
    assert second["products_s"].count_nonzero() == 0


def test_the_history_of_an_optimizer_moves_on_without_copies_and_a_state_dict_keeps_its_values():
    weight = torch.nn.Parameter(torch.linspace(1, 2, 6))
    optimizer = gradtx.optim.LBFGS([weight], lr=0.1, history=3)
    for _ in range(5):
        weight.grad = weight.detach() * torch.linspace(1, 3, 6)
        saved = dict(optimizer.state_dict()["state"][0])
        del saved["step"]  # counted in place, as by torch
        values = copy.deepcopy(saved)
        slots = dict(optimizer.state[weight])
        optimizer.step()
        for key, value in saved.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(values[key])), key
    state = optimizer.state[weight]
    for name in "sy":
        assert state[f"{name}_0"] is slots[f"{name}_1"]
        assert state[f"{name}_1"] is slots[f"{name}_2"]
    memory = [value.data_ptr() for value in state.values() if isinstance(value, torch.Tensor)]
    assert len(set(memory)) == len(memory)


def test_an_update_runs_few_operations_however_long_the_history():
    counts = []
    for history in (2, 20):
        weight = torch.nn.Parameter(torch.linspace(1, 2, 6))
        optimizer = gradtx.optim.LBFGS([weight], lr=0.1, history=history)
        for _ in range(3):
            weight.grad = weight.detach() * torch.linspace(1, 3, 6)
            with torch.autograd.profiler.profile() as profile:
                optimizer.step()
        counts.append(len(profile.function_events))
    assert counts[1] - counts[0] < 18 * 6  # pairs, of which each is read, and moves on


def test_a_pair_joins_only_from_the_second_step_and_the_state_counts_them():
    step = Transformed(gradtx.lbfgs(lr=0.1, history=3))
    counts = []
    loss, params = problem(0)
    for _ in range(6):
        updates = step(torch.func.grad(loss)(params), params)
        params = {name: params[name] + updates[name] for name in params}
        counts.append(step.state["scale_by_lbfgs"]["count"].item())
    assert counts == [0, 1, 2, 3, 3, 3]


# With a line search.


def backtracking(s, t, grads, params, loss, max_steps=10, shrink=0.5, c1=1e-4, start=1.0, growth=None):
    """Gradient descent of rate 1, every length tried in turn."""
    s = s[""]
    direction = {name: -g for name, g in grads.items()}
    slope = sum((grads[name] * direction[name]).sum() for name in grads)
    first = start if growth is None or t == 1 else s.next
    accepted = 0.0
    for i in range(max_steps):
        a = first * shrink**i
        moved = {name: params[name] + a * direction[name] for name in params}
        if loss(moved) <= loss(params) + c1 * a * slope:
            accepted = a
            break
    s.seen.add(i if accepted else "none")
    if growth is not None:
        s.next = growth * accepted if accepted else shrink * first
    return {name: params[name] + accepted * direction[name] for name in params}


class Searching:
    """A stepper of a transformation that needs the loss."""

    def __init__(self, tx, loss, **extras):
        self.tx, self.loss, self.state, self.extras = tx, loss, None, extras
        self.sizes = []

    def __call__(self, grads, params):
        state = self.tx.init(params) if self.state is None else self.state
        extras = {name: function(params) for name, function in self.extras.items()}
        updates, self.state = self.tx.update(grads, state, params, value_fn=self.loss, **extras)
        self.sizes.append(self.state["line_search"]["step_size"].item())
        return updates


BACKTRACKING = [
    {},
    {"max_steps": 4, "shrink": 0.3, "c1": 0.1, "start": 2.0},
    {"max_steps": 6, "shrink": 0.6, "growth": 2.0, "start": 0.7},
    {"max_steps": 1, "growth": 1.5},
]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("options", BACKTRACKING, ids=named)
def test_backtracking_follows_the_loop(options, seed):
    loss, _ = problem(seed)
    step = Searching(gradtx.line_search(gradtx.sgd(lr=1.0), **options), loss)
    reference = TreeLoop(lambda *args: backtracking(*args, loss, **options))
    compare(run(step, seed), run(reference, seed), 1e-12, absolute=True)


def test_lengths_shrink_differently_and_some_steps_fail():
    loss, _ = problem(0)
    reference = TreeLoop(lambda *args: backtracking(*args, loss, **BACKTRACKING[3]))
    run(reference, 0)
    assert reference.seen == {0, "none"}
    reference = TreeLoop(lambda *args: backtracking(*args, loss))
    run(reference, 0)
    assert reference.seen == {2, 3}


def test_the_loss_at_the_parameters_may_be_passed():
    loss, _ = problem(0)
    calls = []

    def counted(params):
        calls.append(1)
        return loss(params)

    tx = gradtx.line_search(gradtx.sgd(lr=0.01), max_steps=3)
    with_value = run(Searching(tx, counted, value=loss), 0, 2)
    assert len(calls) == 2  # the first trial of each step is accepted
    compare(run(Searching(tx, counted), 0, 2), with_value, 0.0)
    assert len(calls) == 2 + 4


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "options", [{}, {"c2": 0.1, "c1": 1e-3}, {"start": 0.01, "growth": 3.0, "max_steps": 20}], ids=named
)
def test_accepted_lengths_satisfy_the_strong_wolfe_conditions(options, seed):
    loss, start = problem(seed)
    chosen = {"max_steps": 20, **options}
    tx = gradtx.line_search(gradtx.lbfgs(history=5), conditions="strong_wolfe", **chosen)
    c1, c2 = options.get("c1", 1e-4), options.get("c2", 0.9)
    params, state = start, tx.init(start)
    for _ in range(12):
        grads = torch.func.grad(loss)(params)
        updates, state = tx.update(grads, state, params, value_fn=loss)
        size = state["line_search"]["step_size"]
        assert size > 0
        slope = sum((grads[name] * updates[name]).sum() for name in params) / size
        new = gradtx.apply_updates(params, updates)
        there = torch.func.grad(loss)(new)
        assert loss(new) <= loss(params) + c1 * size * slope
        if slope.abs() > 1e-12:  # rounding of the loss hides less
            assert sum((there[name] * updates[name]).sum() for name in params).abs() / size <= c2 * slope.abs()
        params = new


@pytest.mark.slow
@pytest.mark.parametrize("conditions", ["armijo", "strong_wolfe"])
def test_lbfgs_with_a_search_minimizes_rosenbrocks_function(conditions):
    def loss(p):
        return (1 - p["x"]) ** 2 + 100 * (p["y"] - p["x"] ** 2) ** 2

    tx = gradtx.line_search(gradtx.lbfgs(), conditions=conditions, max_steps=20)
    params = {"x": torch.tensor(-1.2, dtype=torch.float64), "y": torch.tensor(1.0, dtype=torch.float64)}
    state = tx.init(params)
    for _ in range(50):
        updates, state = tx.update(torch.func.grad(loss)(params), state, params, value_fn=loss)
        params = gradtx.apply_updates(params, updates)
    assert loss(params) < 1e-20


@pytest.mark.slow
@pytest.mark.parametrize("conditions", ["armijo", "strong_wolfe"])
def test_a_search_runs_under_vmap(conditions):
    tx = gradtx.line_search(gradtx.lbfgs(history=3), conditions=conditions, max_steps=6)

    loss, start = problem(0)

    def train(scale):
        params, state = start, tx.init(start)
        for _ in range(4):
            grads = torch.func.grad(lambda p: loss(p) * scale)(params)
            updates, state = tx.update(grads, state, params, value_fn=lambda p: loss(p) * scale)
            params = gradtx.apply_updates(params, updates)
        return params["a"]

    scales = torch.tensor([0.5, 3.0], dtype=torch.float64)
    together = torch.vmap(train)(scales)
    torch.testing.assert_close(together, torch.stack([train(scale) for scale in scales]), rtol=1e-9, atol=1e-11)


# A search stops at the first accepted trial.

C2 = 0.3  # rather flat, so that searches go on beyond first trials of some lengths


def lowest_of_cubic(start, end):
    """Where the cubic through two ends (length, loss, slope) has its minimum; None if it has none."""
    (a, f, f_slope), (b, h, h_slope) = start, end
    bend = f_slope + h_slope - 3 * (h - f) / (b - a)
    square = bend**2 - f_slope * h_slope
    if square <= 0:
        return None
    root = math.copysign(square**0.5, b - a)
    return b - (b - a) * (h_slope + root - bend) / (h_slope - f_slope + 2 * root)


def between(low, high):
    lowest = lowest_of_cubic(low, high)
    ends = sorted((low[0], high[0]))
    width = ends[1] - ends[0]
    middle = ends[0] + width / 2
    return min(max(middle if lowest is None else lowest, ends[0] + width / 10), ends[1] - width / 10)


def beyond(last, end):
    lowest, length = lowest_of_cubic(last, end), end[0]
    return 10 * length if lowest is None or lowest <= length else min(max(lowest, 2 * length), 10 * length)


def armijo(at, value, slope, max_steps):
    """The accepted length, and the number of trials."""
    for i in range(max_steps):
        if at(0.5**i)[0] <= value + 1e-4 * 0.5**i * slope:
            return 0.5**i, i + 1
    return 0.0, max_steps


def strong_wolfe(at, value, slope, max_steps):
    """The accepted length, or the one of lowest loss, and the number of trials."""
    low, high, a = (0.0, value, slope), None, 1.0
    last = low
    for i in range(max_steps):
        there, steepness = at(a)
        if there > value + 1e-4 * a * slope or there >= low[1]:
            high = a, there, steepness
        elif abs(steepness) <= C2 * abs(slope):
            return a, i + 1
        else:
            if steepness * (1.0 if high is None else high[0] - low[0]) >= 0:
                high = low
            last, low = low, (a, there, steepness)
        a = beyond(last, low) if high is None else between(low, high)
    return low[0], max_steps


REFERENCES = {"armijo": armijo, "strong_wolfe": strong_wolfe}


def banana(p):
    """Rosenbrock's function."""
    return (1 - p["x"]) ** 2 + 100 * (p["y"] - p["x"] ** 2) ** 2


def point(x, y):
    return {"x": torch.tensor(x, dtype=torch.float64), "y": torch.tensor(y, dtype=torch.float64)}


class Bananas:
    """Steps down Rosenbrock's function, and the number of trials of each."""

    def __init__(self, conditions, tx):
        self.tx = gradtx.line_search(tx, conditions=conditions, max_steps=20, c2=C2)
        self.trials, self.sizes = [], []

    def train(self, params, steps=12):
        state = self.tx.init(params)
        for _ in range(steps):
            params, state = self.step(params, state)
        return params

    def step(self, params, state):
        grads, value = torch.func.grad_and_value(banana)(params)
        self.trials.append(0)
        updates, state = self.tx.update(grads, state, params, value=value, value_fn=self.counted)
        self.sizes.append(state["line_search"]["step_size"])
        return gradtx.apply_updates(params, updates), state

    def counted(self, params):
        self.trials[-1] += 1
        return banana(params)


class Tracing(TorchDispatchMode):
    """Sees all operations, as whoever records them in a graph does: a search must have all trials then."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **kwargs or {})


both_conditions = pytest.mark.parametrize("conditions", REFERENCES)
# First trials of many lengths.
each_rate = pytest.mark.parametrize("rate", [1e-7, 1e-4, 2e-3, 1.0])


def follows_the_reference(conditions, tx):
    """Take steps, and return the numbers of trials."""
    search, params = Bananas(conditions, tx), point(-1.2, 1.0)
    state, state_of_tx = search.tx.init(params), tx.init(params)
    for step in range(12):
        grads, value = torch.func.grad_and_value(banana)(params)
        updates, state_of_tx = tx.update(grads, state_of_tx, params)
        slope = sum((grads[name] * updates[name]).item() for name in params)

        def at(length):
            moved = {name: params[name] + length * updates[name] for name in params}  # noqa: B023
            there, value = torch.func.grad_and_value(banana)(moved)
            return value.item(), sum((there[name] * updates[name]).item() for name in params)  # noqa: B023

        length, trials = REFERENCES[conditions](at, value.item(), slope, 20)
        params, state = search.step(params, state)
        assert search.sizes[step].item() == pytest.approx(length, rel=1e-9)
        assert search.trials[step] == trials
    return search.trials


@both_conditions
@each_rate
def test_a_pure_search_stops_at_the_first_accepted_trial(conditions, rate):
    trials = follows_the_reference(conditions, gradtx.sgd(rate))
    assert max(trials) < 20
    is_too_short = rate <= 1e-4 and conditions == "strong_wolfe"
    assert (max(trials) > 2) == (is_too_short or rate == 1.0)


@both_conditions
def test_a_pure_search_of_lbfgs_needs_one_trial_in_many_steps(conditions):
    trials = follows_the_reference(conditions, gradtx.lbfgs())
    assert min(trials) == 1
    assert sum(trials) < 3 * 12


@contextlib.contextmanager
def capturing():
    """Pretend that a CUDA graph is being captured, which refuses reads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gradtx.base.torch_names.is_captured", lambda device: True)
        yield


@both_conditions
@each_rate
@pytest.mark.parametrize("recording", [Tracing, capturing])
def test_a_pure_search_equals_all_trials_bit_for_bit(conditions, rate, recording):
    search, start = Bananas(conditions, gradtx.sgd(rate, momentum=0.5)), point(-1.2, 1.0)
    stopped = search.train(start)
    assert min(search.trials) < 20
    search.trials.clear()
    with recording():
        compare_trees(search.train(start), stopped, 0.0)
    assert search.trials == [20] * 12


@both_conditions
def test_under_vmap_a_search_ends_with_that_of_the_last_member(conditions):
    members = [point(-1.2, 1.0), point(3.0, 0.5), point(0.2, 0.1)]
    together = Bananas(conditions, gradtx.lbfgs())
    stacked = torch.vmap(together.train)({name: torch.stack([member[name] for member in members]) for name in "xy"})
    each = []
    for i, member in enumerate(members):
        alone = Bananas(conditions, gradtx.lbfgs())
        compare_trees({name: value[i] for name, value in stacked.items()}, alone.train(member), 1e-9)
        each.append(alone.trials)
    assert together.trials == [max(trials) for trials in zip(*each, strict=True)]
    assert len(set(map(tuple, each))) == 3


@both_conditions
@each_rate
def test_under_vmap_members_have_the_bits_that_they_have_alone(conditions, rate):
    tx = gradtx.sgd(rate)
    members = [point(-1.2, 1.0), point(3.0, 0.5)]
    stacked = {name: torch.stack([member[name] for member in members]) for name in "xy"}
    together = torch.vmap(Bananas(conditions, tx).train)(stacked)
    for i, member in enumerate(members):
        compare_trees({name: value[i] for name, value in together.items()}, Bananas(conditions, tx).train(member), 0.0)


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # torch.func.jvp's
@both_conditions
@pytest.mark.parametrize("rate", [0.05, 1.0, 30.0])
def test_a_search_that_stops_has_the_derivatives_of_all_trials(conditions, rate):
    """By autograd, and by `grad` and `jvp`; a difference quotient agrees."""
    search = Bananas(conditions, gradtx.lbfgs(rate))

    def end(x):
        return search.train({"x": x, "y": torch.ones_like(x)}, steps=2)["y"]

    x = torch.tensor(-1.2, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(end(x), x)
    assert max(search.trials) < 20
    x = x.detach()
    with Tracing():
        expected = torch.func.grad(end)(x)
    assert search.trials[-2:] == [20] * 2
    assert_close(slope, expected, 1e-9)
    assert_close(torch.func.grad(end)(x), expected, 1e-9)
    assert_close(torch.func.jvp(end, (x,), (torch.ones_like(x),))[1], expected, 1e-9)
    assert_close((end(x + 1e-5) - end(x - 1e-5)) / 2e-5, expected, 1e-4)


def test_minimize_needs_few_losses_with_a_search():
    calls = []

    def loss(params):
        calls.append(1)
        return banana(params)

    tx = gradtx.line_search(gradtx.lbfgs(), conditions="strong_wolfe")
    result = gradtx.minimize(tx, loss, point(-1.2, 1.0), steps=100, until=1e-8)
    compare_trees(result, point(1.0, 1.0), 1e-8)
    assert len(calls) < 100


@pytest.mark.slow
@pytest.mark.parametrize("conditions", ["armijo", "strong_wolfe"])
def test_an_optimizer_calls_its_closure_for_the_trials(conditions):
    loss, start = problem(0)
    tx = gradtx.line_search(gradtx.lbfgs(history=4), conditions=conditions)
    params = {name: torch.nn.Parameter(value.clone()) for name, value in start.items()}
    optimizer = gradtx.as_optimizer(tx, params.items())
    calls = []

    def closure():
        optimizer.zero_grad()
        value = loss(params)
        value.backward()
        calls.append(1)
        return value

    for _ in range(8):
        optimizer.step(closure)
    expected = run(Searching(tx, loss, value=loss), 0, 8)[-1]
    weights = {name: param.detach() for name, param in params.items()}
    compare_trees(weights, expected, 1e-10, absolute=True)
    assert 16 <= len(calls) < 8 * 11  # it stops at the first accepted trial


def test_a_search_goes_uphill_of_a_loss_that_is_maximized():
    loss, start = problem(0)

    @gradtx.alias
    def searching_ascent(lr: gradtx.Scalar = 1.0):
        return gradtx.line_search(gradtx.sgd(lr))

    tx = searching_ascent(maximize=True)
    params, state = start, tx.init(start)
    for _ in range(5):
        negative = lambda p: -loss(p)  # noqa: E731
        grads = torch.func.grad(negative)(params)
        updates, state = tx.update(grads, state, params, value_fn=negative)
        assert state["line_search"]["step_size"] > 0
        params = gradtx.apply_updates(params, updates)
    assert loss(params) < loss(start)


def test_a_frozen_leaf_and_one_without_gradient_stay():
    loss, start = problem(0)
    tx = gradtx.chain(gradtx.line_search(gradtx.sgd(lr=1.0)), gradtx.freeze("b"))
    grads = {**torch.func.grad(loss)(start), "c": None}
    updates, _ = tx.update(grads, tx.init(start), start, value_fn=loss)
    assert updates["c"] is None
    assert torch.equal(updates["b"], torch.zeros(5, dtype=torch.float64))
    assert updates["a"].abs().max() > 0


def test_a_loss_that_is_not_finite_is_no_step():
    params = {"w": torch.tensor([1.0])}
    tx = gradtx.line_search(gradtx.sgd(lr=1.0), max_steps=3)
    updates, state = tx.update(
        {"w": torch.tensor([1.0])}, tx.init(params), params, value_fn=lambda p: p["w"].sum() * torch.nan
    )
    assert updates["w"].item() == 0
    assert state["line_search"]["step_size"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"conditions": "x"}, "line_search: conditions must be 'armijo' or 'strong_wolfe', got 'x'"),
        ({"c1": 0.9, "c2": 0.5}, "line_search: c2 must be greater than c1, got 0.5 and 0.9"),
    ],
)
def test_a_search_rejects_what_makes_no_sense(options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        gradtx.line_search(gradtx.sgd(lr=1.0), **options)


def test_what_is_missing_is_named():
    tx, params = gradtx.line_search(gradtx.sgd(lr=1.0)), {"w": torch.ones(2)}
    state = tx.init(params)
    with pytest.raises(TypeError, match=r"line_search: tx must be a GradientTransformation, .*call it.*"):
        gradtx.line_search(gradtx.sgd)
    with pytest.raises(ValueError, match=r"line_search needs value_fn: call update\(.*value_fn=\.\.\.\)"):
        tx.update(params, state, params)
    with pytest.raises(TypeError, match="value_fn must be a function params -> 0-d tensor, got 3"):
        tx.update(params, state, params, value_fn=3)
    with pytest.raises(ValueError, match="the result of value_fn must be 0-d, got a tensor of shape"):
        tx.update(params, state, params, value_fn=lambda p: p["w"])
    optimizer = gradtx.as_optimizer(tx, [torch.nn.Parameter(torch.ones(2))])
    with pytest.raises(ValueError, match=r"line_search needs value_fn: call step\(closure\)"):
        optimizer.step()


def test_train_step_passes_the_loss_on():
    def loss(params, x: Tensor):
        return (params["w"] - x).square().sum()

    tx = gradtx.line_search(gradtx.sgd(lr=8.0))
    step = gradtx.train_step(loss, tx)
    params, x = {"w": torch.zeros(2)}, torch.ones(2)
    params, state, _ = step(params, tx.init(params), x)
    assert state["line_search"]["step_size"] == 0.0625  # 8 x 2 x 0.0625: the minimum itself
    torch.testing.assert_close(params["w"], x)
