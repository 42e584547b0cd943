"""DP-SGD: clipped gradients of examples and noise, against plain loops, statistics, and Opacus if it is there."""

import pytest
import torch
from torch.func import functional_call, grad, vmap

import gradtx


def problem(examples=6, dtype=torch.float64):
    rng = torch.Generator().manual_seed(0)
    params = {"w": torch.randn(3, 4, generator=rng, dtype=dtype), "b": torch.randn(3, generator=rng, dtype=dtype)}
    x = torch.randn(examples, 4, generator=rng, dtype=dtype)
    y = torch.randn(examples, 3, generator=rng, dtype=dtype)
    return params, x, y


def loss(params, x, y):
    return (torch.tanh(params["w"] @ x + params["b"]) - y).square().sum()


def gradients(params, x, y):
    return vmap(grad(loss), (None, 0, 0))(params, x, y)


def clipped_sum(examples, clip):
    """A plain loop over examples."""
    total = {name: torch.zeros_like(g[0]) for name, g in examples.items()}
    for i in range(len(next(iter(examples.values())))):
        norm = sum(g[i].square().sum() for g in examples.values()).sqrt()
        for name, g in examples.items():
            total[name] += g[i] * min(1.0, clip / norm.item())
    return total


@pytest.mark.parametrize("clip", [1e-3, 1.0, 2.5, 1e3])
def test_each_example_is_clipped_by_its_norm_over_the_whole_tree(clip):
    params, x, y = problem()
    examples = gradients(params, x, y)
    tx = gradtx.differentially_private_aggregate(clip, 0.0)
    updates, _ = tx.update(examples, tx.init(params), params)
    for name, total in clipped_sum(examples, clip).items():
        torch.testing.assert_close(updates[name], total / 6, rtol=1e-12, atol=1e-15)


def test_the_noise_has_the_stated_deviation_and_neither_mean_nor_correlation():
    size, clip, multiplier, batch = 200_000, 0.5, 3.0, 4
    params = {"w": torch.zeros(size, dtype=torch.float64)}
    tx = gradtx.differentially_private_aggregate(clip, multiplier, seed=3)
    state = tx.init(params)
    draws = []
    for _ in range(2):
        updates, state = tx.update({"w": torch.zeros(batch, size, dtype=torch.float64)}, state, params)
        draws.append(updates["w"])
    deviation = multiplier * clip / batch
    for draw in draws:
        assert abs(draw.mean()) < 4 * deviation / size**0.5
        assert abs(draw.var() / deviation**2 - 1) < 4 * (2 / size) ** 0.5  # the standard error of a variance
        kurtosis = (draw / deviation).pow(4).mean()
        assert abs(kurtosis - 3) < 4 * (96 / size) ** 0.5
    assert abs((draws[0] * draws[1]).mean()) < 4 * deviation**2 / size**0.5


def test_the_expected_batch_size_divides_signal_and_noise():
    params, x, y = problem()
    examples = gradients(params, x, y)
    found = []
    for expected in (None, 24):
        tx = gradtx.differentially_private_aggregate(1.0, 2.0, expected_batch_size=expected)
        found.append(tx.update(examples, tx.init(params), params)[0])
    for name in params:
        torch.testing.assert_close(found[1][name] * 24, found[0][name] * 6)
    tx = gradtx.differentially_private_aggregate(1.0, 0.0, expected_batch_size=24)
    nothing = {name: g[:0] for name, g in examples.items()}
    assert tx.update(nothing, tx.init(params), params)[0]["w"].count_nonzero() == 0


def parameters(params):
    return {name: torch.nn.Parameter(p.clone()) for name, p in params.items()}


def run(optimizer, weights, x, y, way):
    for _ in range(3):
        examples = gradients({name: w.detach() for name, w in weights.items()}, x, y)
        if way == "attributes":
            for name, weight in weights.items():
                weight.grad_sample = examples[name]
            optimizer.step()
        elif way == "beside gradients":  # which are ignored, as those of Opacus' module
            for name, weight in weights.items():
                weight.grad_sample, weight.grad = [examples[name][:2], examples[name][2:]], torch.ones_like(weight)
            optimizer.step()
        elif way == "dict":
            optimizer.step(grad_sample=examples)
        else:
            optimizer.step(grad_sample=list(examples.values()))
        optimizer.zero_grad()
        assert all(weight.grad is None and getattr(weight, "grad_sample", None) is None for weight in weights.values())


@pytest.mark.parametrize("way", ["attributes", "beside gradients", "dict", "list"])
def test_an_optimizer_takes_the_steps_of_the_pure_chain_bit_for_bit(way):
    params, x, y = problem()
    tx = gradtx.chain(gradtx.differentially_private_aggregate(0.5, 1.5, seed=2), gradtx.adamw(lr=0.1))
    weights = parameters(params)
    run(gradtx.as_optimizer(tx, weights.items()), weights, x, y, way)
    state = tx.init(params)
    for _ in range(3):
        updates, state = tx.update(gradients(params, x, y), state, params)
        params = gradtx.apply_updates(params, updates)
    for name, weight in weights.items():
        assert torch.equal(weight.detach(), params[name])


@pytest.mark.parametrize("threads", [1, 4])
def test_the_seed_determines_every_bit(threads):
    def trained(seed):
        params, x, y = problem(dtype=torch.float32)
        weights = parameters(params)
        run(gradtx.optim.DPSGD(weights.items(), 0.1, 1.0, 1.0, seed), weights, x, y, "attributes")
        return weights["w"].detach()

    before, found = torch.get_num_threads(), trained(5)
    torch.manual_seed(1)  # torch's generator has no part in it
    torch.set_num_threads(threads)
    try:
        assert torch.equal(trained(5), found)
        assert not torch.equal(trained(6), found)
    finally:
        torch.set_num_threads(before)


def test_a_resumed_run_draws_the_noise_of_an_uninterrupted_one():
    params, x, y = problem()
    weights, others = parameters(params), parameters(params)
    optimizer = gradtx.optim.DPSGD(weights.items(), 0.1, 1.0, 1.0)
    run(optimizer, weights, x, y, "dict")
    resumed = gradtx.optim.DPSGD(others.items(), 0.1, 1.0, 1.0)
    for name in others:
        others[name].data.copy_(weights[name].data)
    resumed.load_state_dict(optimizer.state_dict())
    for each, of in ((optimizer, weights), (resumed, others)):
        run(each, of, x, y, "dict")
    assert torch.equal(weights["w"], others["w"])


def test_later_links_see_only_the_private_gradient():
    seen = []

    @gradtx.per_tensor
    def look():
        def update(update, state, param, ctx):
            seen.append(torch.equal(ctx.grad, update))
            return update, state

        return update

    params, x, y = problem()
    tx = gradtx.chain(gradtx.differentially_private_aggregate(1.0, 1.0), look())
    with gradtx.eagerly():
        tx.update(params, tx.init(params), params, grad_sample=gradients(params, x, y))
    assert seen == [True, True]


def test_members_with_their_own_noise_multipliers_train_under_vmap():
    params, x, y = problem()
    examples = gradients(params, x, y)

    def step(multiplier):
        tx = gradtx.differentially_private_aggregate(1.0, multiplier)
        return tx.update(examples, tx.init(params), params)[0]["w"]

    multipliers = torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64)
    torch.testing.assert_close(vmap(step)(multipliers), torch.stack([step(m) for m in multipliers]))


def test_a_leaf_without_examples_is_skipped():
    params, x, y = problem()
    examples = {**gradients(params, x, y), "b": None}
    tx = gradtx.dpsgd(1.0, 1.0, 0.0)
    updates, _ = tx.update(examples, tx.init(params), params)
    assert updates["b"] is None
    torch.testing.assert_close(updates["w"], -clipped_sum({"w": examples["w"]}, 1.0)["w"] / 6)


AGGREGATE = gradtx.differentially_private_aggregate(1.0, 1.0)


def test_leading_axes_that_differ_are_an_error_that_names_the_leaves_and_changes_nothing():
    params, x, y = problem()
    examples = gradients(params, x, y)
    short = {**examples, "b": examples["b"][:4]}
    message = "leaf 'b' has 4 examples in its leading axis, but leaf 'w' has 6"
    with pytest.raises(ValueError, match=f"updates: {message}"):
        AGGREGATE.update(short, AGGREGATE.init(params), params)
    weights = parameters(params)
    optimizer = gradtx.optim.DPSGD(weights.items(), 0.1, 1.0, 1.0)
    with pytest.raises(ValueError, match=f"grad_sample: {message}"):
        optimizer.step(grad_sample=short)
    assert not optimizer.state
    assert all(weight.grad is None and torch.equal(weight, params[name]) for name, weight in weights.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: g.sum(), "updates: leaf 'w' is 0-d, needs a leading axis"),
        (lambda g: g[:, 1:], r"updates: leaf 'w' has shape \(2, 4\), but its parameter has \(3, 4\)"),
    ],
)
def test_gradients_of_another_shape_are_an_error(change, message):
    params, x, y = problem()
    examples = {"w": change(gradients(params, x, y)["w"])}
    with pytest.raises(ValueError, match=message):
        AGGREGATE.update(examples, AGGREGATE.init({"w": params["w"]}), {"w": params["w"]})


def test_no_examples_and_no_number_to_divide_by_is_an_error():
    params, x, y = problem()
    nothing = {name: g[:0] for name, g in gradients(params, x, y).items()}
    with pytest.raises(ValueError, match="has no examples in its leading axis; skip the step, or pass expected_batch"):
        AGGREGATE.update(nothing, AGGREGATE.init(params), params)


def test_a_gradient_without_examples_would_step_unclipped_and_is_an_error():
    weights = parameters(problem()[0])
    optimizer = gradtx.optim.DPSGD(weights.items(), 0.1, 1.0, 1.0)
    weights["w"].grad = torch.ones_like(weights["w"])
    with pytest.raises(ValueError, match="parameter 'w' has a gradient, but no gradients of examples"):
        optimizer.step()
    weights["b"].grad_sample = torch.ones(2, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match="parameter 'w' has a gradient, but no gradients of examples"):
        optimizer.step()
    assert not optimizer.state
    assert weights["b"].grad is None


@pytest.mark.parametrize("parts", [1, 2])
def test_a_second_step_on_the_same_gradients_of_examples_is_an_error_that_changes_nothing(parts):
    """As with Opacus: whoever counts the privacy loss counts one step for each backward pass."""
    params, x, y = problem()
    weights = parameters(params)
    optimizer = gradtx.optim.DPSGD(weights.items(), 0.1, 1.0, 1.0)

    def backward():
        for name, examples in gradients(params, x, y).items():
            weights[name].grad_sample = examples if parts == 1 else list(examples.chunk(2))

    backward()
    with pytest.raises(TypeError):
        optimizer.step(unknown=1.0)  # a step that fails has used nothing
    optimizer.step()
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    with pytest.raises(
        ValueError, match=r"a step has used the gradients of examples of parameter '\w'.* zero_grad\(\)"
    ):
        optimizer.step()
    assert all(torch.equal(weights[name], value) for name, value in before.items())
    assert optimizer.state[weights["w"]]["step"] == 1
    backward()
    optimizer.step()
    optimizer.zero_grad()
    backward()
    optimizer.step()
    assert optimizer.state[weights["w"]]["step"] == 3


def test_gradients_of_examples_in_the_same_memory_may_be_written_again():
    params, x, y = problem()
    weights = parameters(params)
    optimizer = gradtx.optim.DPSGD(weights.items(), 0.1, 1.0, 0.0)
    for name, examples in gradients(params, x, y).items():
        weights[name].grad_sample = examples
    optimizer.step()
    for name, examples in gradients(params, x, y).items():
        weights[name].grad_sample.copy_(examples)
    optimizer.step()
    assert optimizer.state[weights["w"]]["step"] == 2


def test_what_is_not_finite_in_one_example_can_be_replaced_before_the_step():
    params, x, y = problem()
    finite, replaced = parameters(params), parameters(params)
    for weights in (finite, replaced):
        for name, examples in gradients(params, x, y).items():
            examples[1] = 0.0 if weights is finite else float("nan")
            weights[name].grad_sample = examples.nan_to_num(0.0, 0.0, 0.0)
        gradtx.optim.DPSGD(weights.items(), 0.1, 1.0, 1.0).step()
    assert all(torch.equal(finite[name], replaced[name]) for name in params)


def test_links_that_would_process_the_wrong_gradient_are_refused():
    with pytest.raises(ValueError, match="the updates of trace before it would be lost; make differentially_private"):
        gradtx.chain(gradtx.trace(0.9), AGGREGATE)
    for combine in (
        gradtx.sam,
        gradtx.skip_nonfinite,
        lambda tx: gradtx.accumulate(tx, every=2),
        lambda tx: gradtx.blocks(tx, batch=1),
    ):
        with pytest.raises(TypeError, match=r"differentially_private_aggregate .*; move it"):
            combine(AGGREGATE)
    chained = gradtx.chain(AGGREGATE, gradtx.accumulate(gradtx.adam(), every=2))
    assert "grad_sample" in chained.needs


def test_a_grad_scaler_is_refused_because_it_does_not_unscale_examples():
    weights = parameters(problem(dtype=torch.float32)[0])
    optimizer = gradtx.optim.DPSGD(weights.values(), 0.1, 1.0, 1.0)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(sum(w.square().sum() for w in weights.values())).backward()
    with pytest.raises(RuntimeError, match="a GradScaler does not unscale what the first link"):
        scaler.step(optimizer)


# Opacus, an extra that the project does not require.


@pytest.mark.filterwarnings("ignore")
def test_a_step_equals_that_of_opacus_without_noise_and_noise_has_its_deviation():
    opacus = pytest.importorskip("opacus")
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).double()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    x, y = torch.randn(10, 4, dtype=torch.float64), torch.randint(3, (10,))

    def stepped(multiplier, made):
        net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).double()
        net.load_state_dict(start)
        wrapped = opacus.GradSampleModule(net)
        optimizer = made(net, multiplier)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(wrapped(x), y).backward()
        optimizer.step()
        return {name: p.detach() - start[name] for name, p in net.named_parameters()}

    def theirs(net, multiplier):
        return opacus.optimizers.DPOptimizer(
            torch.optim.SGD(net.parameters(), lr=1.0),
            noise_multiplier=multiplier,
            max_grad_norm=0.5,
            expected_batch_size=10,
        )

    def ours(net, multiplier):
        return gradtx.optim.DPSGD(net.parameters(), 1.0, 0.5, multiplier, expected_batch_size=10)

    found, expected = stepped(0.0, ours), stepped(0.0, theirs)
    for name in start:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-6)  # theirs adds 1e-6 to the norms
    assert max(g.abs().max() for g in found.values()) > 0.01
    # All entries of the noise, found as the difference from the step without noise.
    deviations = []
    for made, quiet in ((ours, found), (theirs, expected)):
        noisy = stepped(40.0, made)
        deviations.append(torch.cat([(noisy[name] - quiet[name]).flatten() for name in start]).std())
    for deviation in deviations:
        assert deviation == pytest.approx(40.0 * 0.5 / 10, rel=0.4)  # of 67 entries


def test_the_gradients_of_examples_of_a_module_come_from_functional_call():
    model = torch.nn.Linear(4, 3).double()
    params = {name: p.detach().clone() for name, p in model.named_parameters()}
    _, x, y = problem()
    of_example = grad(lambda params, x, y: (functional_call(model, params, (x,)) - y).square().sum())
    examples = vmap(of_example, (None, 0, 0))(params, x, y)
    optimizer = gradtx.optim.DPSGD(model.named_parameters(), 1.0, 0.5, 0.0)
    optimizer.step(grad_sample=examples)
    for name, total in clipped_sum(examples, 0.5).items():
        torch.testing.assert_close(model.get_parameter(name).detach(), params[name] - total / 6)
