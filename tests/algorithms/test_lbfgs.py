import pytest
import torch
from torch import Tensor

import gradtx
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
    assert len(calls) == 6
    compare(run(Searching(tx, counted), 0, 2), with_value, 0.0)
    assert len(calls) == 6 + 8


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
