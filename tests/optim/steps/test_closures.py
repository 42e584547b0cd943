"""Closures: the loss, gradients at other points, and other extras reach the links that need them."""

import pytest
import torch

import gradtx
from tests.optim.problems import (
    assert_close,
    assert_equal,
    descend,
    loss_of,
    made,
    parameters,
    set_gradients,
    unchanged,
    values,
    whole,
)
from tests.tiers import each_case

TOLERANCE = 1e-12  # the same float64 sums in a different order


@gradtx.whole_tree(needs=("grad_fn", "params"))
def sam(rho: gradtx.Scalar = 0.05):
    """Foret et al. 2020: the gradient at a nearby point uphill."""

    def update(updates, state, params, ctx):
        norm = torch.stack([u.square().sum().to(torch.float64) for u in updates.values()]).sum().sqrt()
        return ctx.grad_fn({name: params[name] + rho * u / (norm + 1e-12) for name, u in updates.items()}), state

    return update


@gradtx.per_tensor(needs=("value",))
def scale_by_value():
    def update(update, state, param, ctx):
        return -ctx.value * update, state

    return update


def closure_of(optimizer, params, calls=None, fail_at=None):
    def closure():
        calls is not None and calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = loss_of(params)
        loss.backward()
        if calls is not None and len(calls) == fail_at:
            raise RuntimeError("out of memory")
        return loss

    return closure


def ten_steps(make, start, sign):
    """The weights after ten steps on `sign` times a loss, uphill if the sign is negative."""
    weights = {name: torch.nn.Parameter(value.clone()) for name, value in start.items()}
    optimizer = gradtx.as_optimizer(make(maximize=sign < 0), weights.items())

    def closure():
        optimizer.zero_grad()
        loss = sign * sum((weight - 0.1).square().sum() + (2 * weight).cos().sum() for weight in weights.values())
        if torch.is_grad_enabled():  # not for estimates from losses alone
            loss.backward()
            for weight in weights.values():
                weight.grad_sample = torch.stack([weight.grad, -0.5 * weight.grad])
        return loss

    for _ in range(10):
        optimizer.step(closure)
    return [weight.detach() for weight in weights.values()]


def goes_the_same_way(make, start):
    downhill = ten_steps(make, start, 1.0)
    assert_equal(ten_steps(make, start, -1.0), downhill)
    with gradtx.eagerly():
        assert_close(ten_steps(make, start, -1.0), downhill, 1e-9)  # feedback amplifies other roundings


@each_case
def test_ten_steps_that_maximize_the_negative_loss_are_those_that_minimize_the_loss(case):
    goes_the_same_way(case.make, case.noise(1, scale=0.5))


@pytest.mark.parametrize("around", ["sam", "mechanize", "line_search"])
def test_a_search_around_an_optimizer_that_maximizes_takes_the_steps_that_minimize_the_negative_loss(around):
    start = {"a": torch.tensor([0.5, -1.0], dtype=torch.float64), "b": torch.tensor(0.3, dtype=torch.float64)}
    goes_the_same_way(lambda maximize: getattr(gradtx, around)(gradtx.sgd(lr=0.1, maximize=maximize)), start)


def maximized(lr, sign):
    """The parameters after three steps of MoMo by functions, under any transform."""
    params = {"w": torch.tensor([3.0, -2.0], dtype=torch.float64)}
    tx = gradtx.momo(lr=lr, maximize=sign < 0)
    state = tx.init(params)
    for _ in range(3):
        grads, value = torch.func.grad_and_value(lambda params: sign * params["w"].square().sum())(params)
        updates, state = tx.update(grads, state, params, value=value)
        params = gradtx.apply_updates(params, updates)
    return params["w"]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_maximizing_under_vmap_and_grad_is_minimizing_the_negated_loss(sign):
    rates = torch.tensor([0.1, 0.5], dtype=torch.float64)
    members = torch.vmap(lambda lr: maximized(lr, sign))(rates)
    assert_equal(members, torch.vmap(lambda lr: maximized(lr, 1.0))(rates))
    assert_close(members, torch.stack([maximized(lr, sign) for lr in rates.tolist()]), TOLERANCE)
    slope = torch.func.jacrev(lambda lr: maximized(lr, sign))(rates[0])
    assert slope.abs().min() > 0
    assert_equal(slope, torch.func.jacrev(lambda lr: maximized(lr, 1.0))(rates[0]))


def ones(params):
    for param in params.values():
        param.grad = torch.ones_like(param)


def moved(params, before):
    return [param.detach() - old for param, old in zip(params.values(), before, strict=True)]


def test_step_runs_the_closure_once_with_grad_enabled_and_returns_the_loss():
    optimizer, params = made(gradtx.sgd(lr=0.1))
    calls = []
    expected = loss_of(params)
    with torch.no_grad():
        loss = optimizer.step(closure_of(optimizer, params, calls))
    assert calls == [True]
    assert_equal(loss.detach(), expected.detach())


def test_a_closure_gives_the_trajectory_of_torch():
    results = []
    for module in (gradtx.optim, torch.optim):
        params = parameters()
        optimizer = module.AdamW(params.values(), lr=0.1)
        for _ in range(10):
            optimizer.step(closure=closure_of(optimizer, params))
        results.append(params.values())
    assert_close(*results, tolerance=TOLERANCE)


@pytest.mark.parametrize("value", [3.0, 3, torch.tensor(3.0), torch.tensor(3.0, dtype=torch.bfloat16)], ids=str)
def test_the_loss_reaches_a_link_that_needs_it(value):
    optimizer, params = made(scale_by_value())
    for step in (lambda: optimizer.step(lambda: value), lambda: optimizer.step(value=value)):
        ones(params)
        before = values(params)
        step()
        assert_close(moved(params, before), [torch.full_like(p, -3.0) for p in before], TOLERANCE)


def test_sam_in_the_adapter_equals_the_functional_loop():
    tx = gradtx.chain(sam(0.1), gradtx.clip_by_global_norm(1.0), gradtx.adam(lr=0.1))
    optimizer, params = made(tx)
    calls = []
    closure = closure_of(optimizer, params, calls)

    def grads_at(at):
        at = {name: value.detach().requires_grad_() for name, value in at.items()}
        return dict(zip(at, torch.autograd.grad(loss_of(at), list(at.values())), strict=True))

    expected = {name: param.detach() for name, param in parameters().items()}
    state = tx.init(expected)
    for _ in range(6):
        optimizer.step(closure)
        updates, state = tx.update(grads_at(expected), state, expected, grad_fn=grads_at)
        expected = gradtx.apply_updates(expected, updates)
    assert len(calls) == 12
    assert_close(params.values(), expected.values(), TOLERANCE)


def test_sam_puts_half_precision_weights_back_bit_for_bit():
    optimizer, params = made(gradtx.chain(sam(), gradtx.scale(0.0)), parameters(torch.bfloat16))
    before = values(params)
    optimizer.step(closure_of(optimizer, params))
    assert_equal(values(params), before)


def test_gradients_after_a_step_of_sam_are_those_of_the_first_call():
    optimizer, params = made(gradtx.chain(sam(), gradtx.sgd(lr=0.1)))
    expected = torch.autograd.grad(loss_of(params), list(params.values()))
    optimizer.step(closure_of(optimizer, params))
    assert_equal([param.grad for param in params.values()], list(expected))


def test_weights_state_and_gradients_are_put_back_when_the_closure_raises():
    optimizer, params = made(gradtx.chain(sam(), gradtx.sgd(lr=0.1, momentum=0.9)))
    optimizer.step(closure_of(optimizer, params))
    before = whole(optimizer, grads=False)
    expected = torch.autograd.grad(loss_of(params), list(params.values()))
    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step(closure_of(optimizer, params, calls=[], fail_at=2))
    assert_equal(whole(optimizer, grads=False), before)
    assert_equal([param.grad for param in params.values()], list(expected))


def test_a_closure_that_raises_at_once_changes_nothing():
    optimizer, params = made(gradtx.adam())
    descend(optimizer, params, 2)

    def closure():
        raise RuntimeError("out of data")

    with unchanged(optimizer), pytest.raises(RuntimeError, match="out of data"):
        optimizer.step(closure)


@pytest.mark.parametrize(
    ("tx", "message"),
    [
        (sam(), r"sam needs grad_fn: call step\(closure\)$"),
        (scale_by_value(), r"scale_by_value needs value: call step\(closure"),
    ],
    ids=["sam", "value"],
)
def test_a_missing_closure_is_an_error_that_says_what_to_call_and_changes_nothing(tx, message):
    optimizer, params = made(gradtx.chain(tx, gradtx.trace(0.9)))
    set_gradients(params)
    with unchanged(optimizer), pytest.raises(ValueError, match=message):
        optimizer.step()


def test_a_closure_that_returns_nothing_gives_no_value():
    optimizer, params = made(scale_by_value())
    set_gradients(params)
    with unchanged(optimizer), pytest.raises(ValueError, match="scale_by_value needs value"):
        optimizer.step(lambda: None)


def test_a_loss_that_is_no_single_number_is_an_error_where_a_link_needs_it():
    optimizer, params = made(scale_by_value())
    set_gradients(params)
    with unchanged(optimizer), pytest.raises(ValueError, match="value"):
        optimizer.step(lambda: torch.ones(3))


@pytest.mark.parametrize("tx", [gradtx.sam(gradtx.sgd(lr=0.1)), gradtx.line_search(gradtx.sgd(lr=0.1))], ids=repr)
def test_a_closure_without_backward_is_an_error_where_a_link_calls_it_again(tx):
    optimizer, params = made(tx)
    with (
        unchanged(optimizer),
        pytest.raises(RuntimeError, match="the closure computed no gradients; it must call zero_grad"),
    ):
        optimizer.step(lambda: loss_of(params))


# Several updates with one closure.


def search(module, params, iterations):
    """Return L-BFGS with a line search, as a function from a closure to its first loss."""
    if module is torch:
        never = {"max_eval": 10**6, "tolerance_grad": 0.0, "tolerance_change": 0.0}
        optimizer = torch.optim.LBFGS(
            params, max_iter=iterations, history_size=10, line_search_fn="strong_wolfe", **never
        )
        return optimizer.step
    tx = gradtx.line_search(gradtx.lbfgs(history=10), conditions="strong_wolfe")
    optimizer = gradtx.as_optimizer(tx, params)
    return lambda closure: optimizer.step(closure, max_iter=iterations)


def rosenbrock(params):
    p = params[0]
    return (100 * (p[1:] - p[:-1].square()).square() + (1 - p[:-1]).square()).sum()


def network(params):
    x = torch.linspace(-2.0, 2.0, 40, dtype=torch.float64).unsqueeze(1)
    hidden = (x * params[0] + params[1]).tanh()
    return (hidden @ params[2] - x.square().squeeze(1)).square().mean()


STARTS = {
    rosenbrock: lambda: [torch.tensor([-1.2, 1.0, -0.5, 0.8], dtype=torch.float64)],
    network: lambda: [torch.linspace(-1.0, 2.0, 8, dtype=torch.float64) * factor for factor in (1.0, -0.7, 0.3)],
}


def evaluated(module, loss, iterations, steps, scale=lambda step: 1.0):
    """Take steps; return the points of all evaluations, the losses that steps returned, and the final loss."""
    params = [torch.nn.Parameter(value) for value in STARTS[loss]()]
    points, results = [], []
    step = search(module, params, iterations)
    for number in range(steps):

        def closure():
            points.append(torch.cat([param.detach().flatten() for param in params]))
            for param in params:
                param.grad = None
            value = scale(number) * loss(params)  # noqa: B023  # called within this iteration
            value.backward()
            return value

        results.append(step(closure).item())
    return points, results, loss(params).item()


@pytest.mark.parametrize(("iterations", "steps"), [(1, 20), (5, 4), (20, 1)])
@pytest.mark.parametrize("loss", STARTS, ids=lambda loss: loss.__name__)
def test_lbfgs_needs_about_as_many_evaluations_as_torchs_with_as_many_iterations_a_step(loss, iterations, steps):
    theirs, _, their_end = evaluated(torch, loss, iterations, steps)
    ours, _, our_end = evaluated(gradtx, loss, iterations, steps)
    assert len(ours) <= 1.1 * len(theirs)
    assert our_end <= 1.0001 * their_end


@pytest.mark.parametrize("loss", STARTS, ids=lambda loss: loss.__name__)
def test_one_step_evaluates_no_point_twice(loss):
    points, _, _ = evaluated(gradtx, loss, 30, 1)
    assert len({tuple(point.tolist()) for point in points}) == len(points)


def test_a_new_step_evaluates_its_closure_because_the_data_may_be_new():
    _, losses, _ = evaluated(gradtx, rosenbrock, 3, 2, scale=lambda step: 1.0 + step)
    _, _, after_one = evaluated(gradtx, rosenbrock, 3, 1)
    assert losses[1] == pytest.approx(2 * after_one)


def test_updates_end_where_a_line_search_moves_nothing():
    param = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    calls = []
    optimizer = gradtx.as_optimizer(gradtx.line_search(gradtx.sgd(lr=1.0), max_steps=3), [param])

    def closure():
        calls.append(1)
        param.grad = torch.ones(2, dtype=torch.float64)  # no descent direction: the loss is constant
        return torch.tensor(1.0)

    optimizer.step(closure, max_iter=50)
    assert len(calls) == 4


def test_several_updates_without_a_line_search_are_several_steps():
    results = []
    for calls in ([{"max_iter": 3}], [{}, {}, {}]):
        optimizer, params = made(gradtx.adam(lr=0.1))

        def closure():
            for param in params.values():  # noqa: B023
                param.grad = None
            loss = loss_of(params)  # noqa: B023
            loss.backward()
            return loss

        for options in calls:
            optimizer.step(closure, **options)
        results.append(values(params))
    assert_equal(*results)


@pytest.mark.parametrize(("number", "closure"), [(3, ()), (20.0, (lambda: 0.0,)), ("3", (lambda: 0.0,))])
def test_several_updates_need_a_closure_and_a_whole_number(number, closure):
    optimizer, params = made(gradtx.adam(lr=0.1))
    set_gradients(params)
    message = f"max_iter={number!r} must be an int of at least 1, and needs a closure"
    with unchanged(optimizer), pytest.raises(ValueError, match=message):
        optimizer.step(*closure, max_iter=number)
