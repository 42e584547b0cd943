"""Optimizers that obtain `hessian_diag` themselves, from the graph of the gradients or from a closure."""

import pytest
import torch

import gradtx
from gradtx.optim import hessian as _hessian
from tests.optim.problems import assert_close, assert_equal, parameters, saved_and_loaded, unchanged, values, whole

TOLERANCE = 1e-12  # the same float64 sums in a different order

pytestmark = pytest.mark.filterwarnings(r"ignore:Using backward\(\) with create_graph:UserWarning")


@gradtx.per_tensor(needs=("hessian_diag",))
def newton(update_period: int = 1):
    def update(update, state, param, ctx):
        return -0.1 * update / (1 + ctx.hessian_diag.abs()), state

    return update


def loss_of(params):
    """Return a separable loss: its Hessian is diagonal, so a single random vector determines it exactly."""
    return sum(((2 * p).sin() + 0.5 * p.square()).sum() for p in params.values())


def diagonal(params):
    return {name: 1 - 4 * (2 * p.detach()).sin() for name, p in params.items()}


def coupled(params):
    return loss_of(params) + sum(p.sum() for p in params.values()) ** 2


def closure_of(optimizer, params, loss=loss_of, calls=None):
    def closure():
        optimizer.zero_grad()
        value = loss(params)
        value.backward()
        if calls is not None:
            calls.append(any(p.grad is not None and p.grad.requires_grad for p in params.values()))
        return value

    return closure


def by_graph(optimizer, params, loss=loss_of):
    optimizer.zero_grad()
    loss(params).backward(create_graph=True)
    optimizer.step()


def by_closure(optimizer, params, loss=loss_of):
    optimizer.step(closure_of(optimizer, params, loss))


WAYS = [by_graph, by_closure]
CHAINS = {
    "adahessian": gradtx.adahessian(lr=0.1, weight_decay=0.1),
    "every third": gradtx.adahessian(lr=0.1, update_period=3),
    "sophia": gradtx.sophia(lr=0.1, update_period=4, gamma=0.5),
    "clipped": gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.sophia(lr=0.1, update_period=2, gamma=0.5)),
    "skip": gradtx.skip_nonfinite(gradtx.adahessian(lr=0.1, update_period=2)),
    "partition": gradtx.partition(
        {"bias": gradtx.sgd(lr=0.1), "weight": gradtx.adahessian(lr=0.1)}, {"bias": "*.bias", "weight": "*"}
    ),
    "without a clock": gradtx.cautious_decay_after(gradtx.adahessian(lr=0.1, update_period=2), 0.1, 0.1),
    "a user's": newton(),
}


def made(tx, **options):
    params = parameters()
    return gradtx.as_optimizer(tx, list(params.items()), **options), params


def functional(tx, steps):
    params = {name: p.detach() for name, p in parameters().items()}
    state = tx.init(params)
    for _ in range(steps):
        grads = {name: 2 * (2 * p).cos() + p for name, p in params.items()}
        updates, state = tx.update(grads, state, params, hessian_diag=diagonal(params))
        params = gradtx.apply_updates(params, updates)
    return params


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CHAINS)
def test_the_steps_are_those_of_the_pure_functions_with_the_exact_diagonal(name, way):
    optimizer, params = made(CHAINS[name])
    for _ in range(9):
        way(optimizer, params)
    assert_close(params.values(), functional(CHAINS[name], 9).values(), TOLERANCE)


def test_the_class_does_the_same():
    params = parameters()
    optimizer = gradtx.optim.AdaHessian(params.values(), lr=0.1, weight_decay=0.1, seed=3)
    for _ in range(9):
        by_closure(optimizer, params)
    assert_close(params.values(), functional(CHAINS["adahessian"], 9).values(), TOLERANCE)


@pytest.fixture
def estimates(monkeypatch):
    """Count the estimates."""
    found = []
    estimate = _hessian.HessianSource._estimate

    def noted(self, due, step):
        found.append(sorted(leaf.name for leaf in due))
        return estimate(self, due, step)

    monkeypatch.setattr(_hessian.HessianSource, "_estimate", noted)
    return found


@pytest.mark.parametrize("way", WAYS)
def test_an_estimate_is_made_only_at_the_steps_that_use_it(way, estimates):
    optimizer, params = made(gradtx.sophia(lr=0.1, update_period=4))
    made_at = []
    for i in range(9):
        way(optimizer, params)
        made_at.extend([i] * (len(estimates) - len(made_at)))
    assert made_at == [0, 4, 8]


def test_between_them_backward_needs_no_graph():
    optimizer, params = made(gradtx.sophia(lr=0.1, update_period=2))
    by_graph(optimizer, params)
    optimizer.zero_grad()
    loss_of(params).backward()
    optimizer.step()
    with unchanged(optimizer), pytest.raises(ValueError, match=r"sophia needs hessian_diag"):
        optimizer.step()


def test_a_closure_keeps_a_graph_only_at_the_steps_that_use_it_and_none_afterwards():
    optimizer, params = made(gradtx.sophia(lr=0.1, update_period=3))
    params["head.scale"].requires_grad_(False)  # never steps, so it is always due
    calls = []
    for _ in range(7):
        optimizer.step(closure_of(optimizer, params, calls=calls))
        assert not any(p.grad is not None and p.grad.requires_grad for p in params.values())
    assert calls == [True, False, False, True, False, False, True]


def test_only_parameters_whose_links_use_it_are_in_the_product(estimates):
    optimizer, params = made(CHAINS["partition"])
    params["head.scale"].requires_grad_(False)
    by_closure(optimizer, params)
    assert estimates == [["body.weight", "head.weight"]]


def test_accumulation_takes_the_hessian_of_the_call_that_updates(estimates):
    optimizer, params = made(gradtx.accumulate(gradtx.adahessian(lr=0.1), every=3))
    calls = []
    for _ in range(6):
        optimizer.step(closure_of(optimizer, params, calls=calls))
    assert calls == [False, False, True] * 2
    assert len(estimates) == 2
    # the weights do not change within a cycle, so two cycles equal two plain steps
    assert_close(params.values(), functional(gradtx.adahessian(lr=0.1), 2).values(), TOLERANCE)


@pytest.mark.parametrize("way", WAYS)
def test_maximizing_takes_the_hessian_of_the_negative(way):
    def negative(params):
        return -loss_of(params)

    results = []
    for loss, options in ((loss_of, {}), (negative, {"maximize": True})):
        optimizer, params = made(gradtx.sophia(lr=0.1, gamma=0.5, **options))
        for _ in range(4):
            way(optimizer, params, loss)
        results.append(values(params))
    assert_equal(*results)


def test_groups_with_periods_of_their_own(estimates):
    params = parameters()
    named = list(params.items())
    groups = [{"params": named[:2], "update_period": 1}, {"params": named[2:], "update_period": 3}]
    optimizer = gradtx.optim.SophiaH(groups, lr=0.1)
    for _ in range(4):
        by_closure(optimizer, params)
    names = [name for name, _ in named]
    assert estimates == [sorted(names), sorted(names[:2]), sorted(names[:2]), sorted(names)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_half_precision_works(dtype):
    params = parameters(dtype)
    optimizer = gradtx.optim.AdaHessian(params.values(), lr=0.1)
    before = values(params)
    by_closure(optimizer, params)
    assert all(p.isfinite().all() and not torch.equal(p, old) for p, old in zip(params.values(), before, strict=True))


# Randomness.


def trained(steps, seed=0, tx=CHAINS["every third"], way=by_closure):
    optimizer, params = made(tx, seed=seed)
    for _ in range(steps):
        way(optimizer, params, coupled)
    return optimizer, params


def test_the_seed_decides_and_the_global_generator_is_not_touched():
    before = torch.get_rng_state()
    results = [values(trained(5, seed)[1]) for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert_equal(results[0], results[1])
    assert not torch.equal(results[0][0], results[2][0])


def test_vectors_differ_between_refreshes():
    tx = gradtx.chain(gradtx.scale_by_sophia((0.0, 0.0), update_period=1), gradtx.scale(0.0))
    optimizer, params = made(tx)
    seen = []
    for _ in range(4):
        by_closure(optimizer, params, coupled)
        seen.append(optimizer.state[params["body.weight"]]["hessian"].clone())
    assert not any(torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CHAINS)
def test_a_resumed_run_is_bitwise_the_same_whatever_seed_it_was_made_with(name, way):
    optimizer, params = trained(4, 5, CHAINS[name], way)
    resumed, others = made(CHAINS[name], seed=9)
    resumed.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    with torch.no_grad():
        for param, other in zip(params.values(), others.values(), strict=True):
            other.copy_(param)
    for _ in range(5):
        way(optimizer, params, coupled)
        way(resumed, others, coupled)
    assert_equal(values(params), values(others))
    assert_equal(whole(resumed, grads=False), whole(optimizer, grads=False))


def test_the_seed_is_shown_in_groups_that_use_it_only():
    assert made(gradtx.adahessian(), seed=4)[0].param_groups[0]["hessian_seed"] == 4
    assert "hessian_seed" not in made(gradtx.adam(), seed=4)[0].param_groups[0]


@pytest.mark.parametrize("seed", [1.5, True, None, "1"])
def test_a_seed_that_is_no_int_is_an_error(seed):
    with pytest.raises(TypeError, match=r"ChainOptimizer: seed must be an int, got"):
        made(gradtx.adahessian(), seed=seed)


# Diagonals passed by the caller.


def test_a_model_without_second_derivatives_is_an_error_that_names_the_ways_out():
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, gradient):
            return gradient.clone()

        @staticmethod
        def backward(ctx, vector):
            raise RuntimeError("derivative is not implemented")

    class Identity(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return Once.apply(gradient)

    param = torch.nn.Parameter(torch.ones(3))
    optimizer = gradtx.as_optimizer(gradtx.sophia(lr=0.1), [param])

    def closure():
        optimizer.zero_grad()
        loss = Identity.apply(param).square().sum()
        loss.backward()
        return loss

    message = r"^sophia: hessian_diag cannot be estimated.*derivative is not implemented.*hessian_diag=\.\.\."
    with pytest.raises(RuntimeError, match=message):
        optimizer.step(closure)
    assert_equal(param.detach(), torch.ones(3))
    optimizer.step(closure, hessian_diag=[torch.ones(3)])


def test_an_explicit_diagonal_is_taken_and_nothing_estimated(estimates):
    optimizer, params = made(gradtx.adahessian(lr=0.1))
    other, twins = made(gradtx.adahessian(lr=0.1))
    for form in (dict, lambda found: list(found.values())):
        doubled = {name: 2 * d for name, d in diagonal(params).items()}
        optimizer.step(closure_of(optimizer, params), hessian_diag=form(doubled))
        closure_of(other, twins)()
        other.step(hessian_diag=form(doubled))
    assert estimates == []
    assert_equal(values(params), values(twins))


@pytest.mark.parametrize("tx", [gradtx.adahessian(), gradtx.accumulate(gradtx.sophia(), every=1), newton()], ids=str)
def test_gradients_without_a_graph_are_an_error_that_says_what_to_call_and_change_nothing(tx):
    optimizer, params = made(gradtx.chain(tx, gradtx.trace(0.9)))
    loss_of(params).backward()
    message = r"needs hessian_diag: call step\(closure, hessian_diag=\.\.\.\); or omit it.*create_graph=True"
    with unchanged(optimizer), pytest.raises(ValueError, match=message):
        optimizer.step()


def test_a_closure_that_raises_leaves_no_graph_behind():
    optimizer, params = made(gradtx.adahessian())

    def closure():
        loss_of(params).backward()
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step(closure)
    assert not any(p.grad.requires_grad for p in params.values())
