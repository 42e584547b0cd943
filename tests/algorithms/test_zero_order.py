"""Zero-order gradients: unbiased, repeatable, in little memory, and in optimizers that never call backward."""

import pytest
import torch

import gradtx
from gradtx.algorithms import zero_order

CURVES = torch.tensor([1.0, 3.0, 0.5, 2.0, 1.5], dtype=torch.float64)


def quadratic(params):
    w = torch.cat([params["a"], params["b"]["c"].reshape(1)])
    return (0.5 * CURVES * w * w).sum() - (w * CURVES.flip(0)).sum()


POINT = {
    "a": torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64),
    "b": {"c": torch.tensor(-1.0, dtype=torch.float64)},
}
TRUE = torch.func.grad(quadratic)(POINT)


def flat(tree):
    return torch.cat([tree["a"], tree["b"]["c"].reshape(1)])


@pytest.mark.parametrize("distribution", zero_order.DISTRIBUTIONS)
@pytest.mark.parametrize("method", zero_order.METHODS)
def test_estimates_are_unbiased_within_three_standard_errors_of_4000_samples(method, distribution):
    grad = gradtx.zero_order_grad(quadratic, method=method, distribution=distribution, scale=1e-4)
    estimates = torch.vmap(lambda seed: flat(grad(POINT, seed=seed)))(torch.arange(4000))
    error = estimates.std(0) / 4000**0.5
    # Forward differences have a bias of order scale.
    assert ((estimates.mean(0) - flat(TRUE)).abs() < 3 * error + 1e-3 * (method == "forward")).all()
    # Their variance is that of the formula: |g|^2 + g_i^2 for normal entries, |g|^2 - g_i^2 for signs.
    g = flat(TRUE)
    sign = {"normal": 1.0, "rademacher": -1.0}.get(distribution)
    if sign is not None:
        assert torch.allclose(estimates.var(0), g.square().sum() + sign * g * g, rtol=0.15)


def test_more_samples_divide_the_variance():
    def spread(samples):
        grad = gradtx.zero_order_grad(quadratic, samples=samples)
        return torch.vmap(lambda seed: flat(grad(POINT, seed=seed)))(torch.arange(1000)).var(0).sum()

    assert spread(8) / spread(1) == pytest.approx(1 / 8, rel=0.2)


def test_directions_of_samples_seeds_and_leaves_are_independent():
    def slope_of(params):
        return params["a"].sum() * 0 + params["b"].sum()

    point = {"a": torch.zeros(20_000), "b": torch.zeros(20_000)}
    grads = [gradtx.zero_order_grad(slope_of, scale=1.0)(point, seed=seed) for seed in (0, 1)]
    directions = [g[name] / g[name].std() for g in grads for name in "ab"]
    for i, x in enumerate(directions):
        for y in directions[:i]:
            assert (x * y).mean().abs() < 5 / 20_000**0.5


@pytest.mark.parametrize("distribution", zero_order.DISTRIBUTIONS)
def test_parts_of_a_large_leaf_are_those_of_the_whole(distribution, monkeypatch):
    loss = lambda params: (params["w"].sin() * torch.arange(1000.0, dtype=torch.float64)).mean()  # noqa: E731
    point = {"w": torch.linspace(-1, 1, 1000, dtype=torch.float64).reshape(10, 100)}
    grad = gradtx.zero_order_grad(
        lambda params: loss({"w": params["w"].flatten()}), samples=2, distribution=distribution
    )
    whole = grad(point, seed=3)["w"]
    monkeypatch.setattr(zero_order, "CHUNK", 64)
    torch.testing.assert_close(grad(point, seed=3)["w"], whole, rtol=1e-9, atol=1e-9)
    under_vmap = torch.vmap(lambda w: grad({"w": w}, seed=3)["w"])(point["w"][None])[0]
    torch.testing.assert_close(under_vmap, whole, rtol=1e-9, atol=1e-9)


def net_loss(params, x):
    return ((x @ params["w"]).tanh() @ params["v"]).square().mean()


def test_the_seed_determines_every_bit_on_any_number_of_threads():
    rng = torch.Generator().manual_seed(0)
    params = {"w": torch.randn(40, 900, generator=rng), "v": torch.randn(900, generator=rng)}
    directions = {}
    before = torch.get_num_threads()
    try:
        for threads in (1, 4):
            torch.set_num_threads(threads)
            torch.manual_seed(threads)
            # Losses of entries that no reduction adds: only the directions may differ.
            grad = gradtx.zero_order_grad(lambda p: p["w"][0, 0] * p["v"][0], scale=0.1)
            directions[threads] = [grad(params, seed=7), grad(params, seed=7)]
            assert not torch.equal(grad(params, seed=8)["w"], directions[threads][0]["w"])
    finally:
        torch.set_num_threads(before)
    first, *others = directions[1] + directions[4]
    for other in others:
        assert all(torch.equal(first[name], other[name]) for name in first)


def test_members_and_seeds_run_under_vmap():
    rng = torch.Generator().manual_seed(0)
    members = {"w": torch.randn(3, 4, 5, generator=rng), "v": torch.randn(3, 5, generator=rng)}
    x = torch.randn(6, 4, generator=rng)
    grad = gradtx.zero_order_grad(net_loss, samples=2)
    seeds = torch.tensor([5, 6, 7])
    together = torch.vmap(lambda p, seed: grad(p, x, seed=seed))(members, seeds)
    for i, seed in enumerate(seeds):
        alone = grad({name: p[i] for name, p in members.items()}, x, seed=int(seed))
        for name in members:
            # Differences of rounded losses, divided by the scale.
            torch.testing.assert_close(together[name][i], alone[name], rtol=0.05, atol=5e-3)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"method": "backward"}, ValueError, "method must be 'central', 'forward' or 'antithetic', got 'backward'"),
        ({"distribution": "cauchy"}, ValueError, "distribution must be 'normal', 'rademacher' or 'sphere'"),
        ({"samples": 0}, ValueError, r"samples must be in \[1, inf\), got 0"),
        ({"samples": 1.5}, TypeError, "samples must be an int, got 1.5"),
        ({"scale": 0.0}, ValueError, r"scale must be in \(0, inf\), got 0.0"),
    ],
)
def test_bad_options_are_named(options, error, message):
    with pytest.raises(error, match=f"zero_order_grad: {message}"):
        gradtx.zero_order_grad(quadratic, **options)


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (lambda p: p["a"], ValueError, r"the loss must be 0-d, got a tensor of shape \(4,\)"),
        (lambda p: 3.0, TypeError, "the loss must be a 0-d tensor, got 3.0"),
    ],
)
def test_a_loss_that_is_not_0d_is_named(loss, error, message):
    with pytest.raises(error, match=message):
        gradtx.zero_order_grad(loss)(POINT)
    with pytest.raises(TypeError, match="zero_order_grad: loss must be a function of params, got 3"):
        gradtx.zero_order_grad(3)


# Optimizers.


def weights(dtype=torch.float64):
    start = {"a": POINT["a"], "c": POINT["b"]["c"]}
    return {name: torch.nn.Parameter(value.to(dtype, copy=True)) for name, value in start.items()}


def loss_of(params):
    return quadratic({"a": params["a"], "b": {"c": params["c"]}})


@pytest.mark.parametrize("options", [{}, {"method": "forward", "samples": 3}, {"distribution": "sphere", "samples": 2}])
@pytest.mark.parametrize("maximize", [False, True])
def test_an_optimizer_takes_the_steps_of_functions_and_leaves_no_gradients(options, maximize):
    sign = -1 if maximize else 1
    tx = gradtx.chain(gradtx.estimate_gradient(seed=4, **options), gradtx.adam(lr=0.1, maximize=maximize))
    params, state = {"a": POINT["a"], "c": POINT["b"]["c"]}, None
    state = tx.init(params)
    trained = weights()
    optimizer = gradtx.as_optimizer(tx, trained.items())
    for _ in range(4):
        found = optimizer.step(lambda: sign * loss_of(trained))
        value = sign * loss_of(params)
        updates, state = tx.update(params, state, params, value_fn=lambda p: sign * loss_of(p))
        assert found == pytest.approx(float(value), abs=1e-4)
        params = gradtx.apply_updates(params, updates)
        assert all(weight.grad is None for weight in trained.values())
    for name, weight in trained.items():
        # Losses at weights that have been moved and back differ by a rounding error, which the scale divides.
        torch.testing.assert_close(weight.detach(), params[name], rtol=1e-8, atol=1e-8)
    assert loss_of(params) < quadratic(POINT)


def test_a_resumed_run_draws_the_directions_of_an_uninterrupted_one():
    first, second = weights(), weights()
    tx = gradtx.mezo(lr=0.05, samples=2)
    optimizer = gradtx.as_optimizer(tx, first.items())
    for _ in range(2):
        optimizer.step(lambda: loss_of(first))
    resumed = gradtx.optim.MeZO(second.items(), lr=0.05, samples=2)
    for name in second:
        second[name].data.copy_(first[name].data)
    resumed.load_state_dict(optimizer.state_dict())
    optimizer.step(lambda: loss_of(first))
    resumed.step(lambda: loss_of(second))
    for name in first:
        assert torch.equal(first[name], second[name])


def test_a_closure_may_reset_gradients_as_those_for_other_optimizers_do():
    trained, others = weights(), weights()
    optimizer = gradtx.optim.MeZO(trained.items(), lr=0.05)

    def closure():
        optimizer.zero_grad()
        return loss_of(trained)

    optimizer.step(closure)
    gradtx.optim.MeZO(others.items(), lr=0.05).step(lambda: loss_of(others))
    assert torch.equal(trained["a"], others["a"])
    assert not torch.equal(trained["a"], POINT["a"])


def test_frozen_parameters_are_not_moved():
    trained = weights()
    trained["c"].requires_grad_(False)
    moved = []
    optimizer = gradtx.optim.MeZO(trained.items(), lr=0.05)

    def closure():
        moved.append(trained["c"].clone())
        return loss_of(trained)

    optimizer.step(closure)
    assert all(torch.equal(c, POINT["b"]["c"]) for c in moved)
    assert len(moved) == 2
    assert not torch.equal(trained["a"], POINT["a"])


def test_a_failing_closure_puts_the_weights_back():
    trained = weights()
    optimizer = gradtx.optim.MeZO(trained.items(), lr=0.05)

    def closure():
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step(closure)
    torch.testing.assert_close(trained["a"].detach(), POINT["a"], rtol=0, atol=1e-15)
    assert not optimizer.state
    assert trained["a"].grad is None


def test_a_closure_with_backward_is_told_to_leave_it_out():
    trained = weights()
    optimizer = gradtx.optim.MeZO(trained.items(), lr=0.05)

    def closure():
        loss = loss_of(trained)
        loss.backward()
        return loss

    with pytest.raises(RuntimeError, match="does not require grad") as error:
        optimizer.step(closure)
    assert "must not call backward()" in error.value.__notes__[-1]


def test_steps_without_a_closure_or_with_a_loss_of_another_shape_are_named():
    trained = weights()
    optimizer = gradtx.optim.MeZO(trained.items(), lr=0.05)
    with pytest.raises(ValueError, match=r"mezo needs value_fn: call step\(closure\)"):
        optimizer.step()
    with pytest.raises(ValueError, match=r"the result of value_fn must be 0-d, got a tensor of shape \(4,\)"):
        optimizer.step(lambda: trained["a"] * 1)
    torch.testing.assert_close(trained["a"].detach(), POINT["a"], rtol=0, atol=1e-15)


def test_the_link_must_be_first_and_outside_of_what_processes_gradients():
    with pytest.raises(ValueError, match="make estimate_gradient the first link"):
        gradtx.chain(gradtx.trace(0.9), gradtx.mezo())
    with pytest.raises(TypeError, match=r"estimate_gradient .*; move it"):
        gradtx.accumulate(gradtx.mezo(), every=2)


def peak_of(call):
    """The most bytes on the CPU that a call holds at once beyond those from before, as torch's allocator reports."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    now = peak = 0
    events = [each for each in profile.profiler.kineto_results.events() if each.name() == "[memory]"]
    for event in sorted(events, key=lambda each: each.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


@pytest.mark.parametrize("method", ["central", "forward"])
def test_a_step_needs_a_tenth_of_a_parameter_set_beside_the_parameters(method):
    tx = gradtx.chain(gradtx.estimate_gradient(method, distribution="rademacher"), gradtx.scale_by_learning_rate(1e-3))
    params = [torch.nn.Parameter(torch.ones(2**16)) for _ in range(100)]
    optimizer = gradtx.as_optimizer(tx, params)
    peak = peak_of(lambda: optimizer.step(lambda: sum(p[0] for p in params)))
    assert 0.01 < peak / sum(p.nbytes for p in params) < 0.1  # beside the parameters: one chunk and one leaf
    assert peak_of(lambda: torch.ones(1000)) == 4000  # what measures it


def test_a_function_needs_one_copy_of_the_parameters_at_a_time():
    params = {str(i): torch.ones(2**16) for i in range(100)}
    grad = gradtx.zero_order_grad(lambda p: sum(x[0] for x in p.values()), distribution="rademacher")
    peak = peak_of(lambda: grad(params))
    assert 1.0 <= peak / sum(p.nbytes for p in params.values()) < 1.1
