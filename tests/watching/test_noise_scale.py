"""The noise scale against its definition, where it is known, and its error against the spread of many estimates."""

import math
import statistics

import pytest
import torch

import gradtx

MEAN = {"a": torch.tensor([0.3, -0.4], dtype=torch.float64), "b": torch.full((3,), 0.1, dtype=torch.float64)}
SIGMA = {"a": 0.5, "b": 2.0}


def drawn(sizes, seed):
    """Gradients of batches: the mean of examples with a known mean and a known covariance."""
    generator = torch.Generator().manual_seed(seed)
    gradients = []
    for size in sizes:
        noise = {
            name: torch.randn(size, *mean.shape, generator=generator, dtype=mean.dtype) for name, mean in MEAN.items()
        }
        gradients.append({name: MEAN[name] + SIGMA[name] * noise[name].mean(0) for name in MEAN})
    return gradients


def test_estimates_are_those_of_the_papers_formula_for_two_batch_sizes():
    small, big = drawn([8, 56], 0)
    result = gradtx.noise_scale([small, big], [8, 56])
    # The paper's small batch is part of its large one: here both together, with 64 examples.
    both = {name: (8 * small[name] + 56 * big[name]) / 64 for name in MEAN}
    for name in MEAN:
        noise = 8 * (small[name] - both[name]).square().sum() + 56 * (big[name] - both[name]).square().sum()
        square = both[name].square().sum() - noise / 64
        assert result.leaves[name].noise == pytest.approx(noise.item())
        assert result.leaves[name].square == pytest.approx(square.item())
    assert math.isnan(result.error)


def test_estimates_have_no_bias_and_the_error_is_their_spread():
    sizes = [64] * 24
    results = [gradtx.noise_scale(drawn(sizes, seed), 64) for seed in range(200)]
    noise = sum(SIGMA[name] ** 2 * mean.numel() for name, mean in MEAN.items())
    square = sum(mean.square().sum().item() for mean in MEAN.values())
    spread = statistics.stdev(result.scale for result in results)
    for value, known in ((lambda r: r.noise, noise), (lambda r: r.square, square)):
        values = list(map(value, results))
        assert statistics.fmean(values) == pytest.approx(known, abs=4 * statistics.stdev(values) / math.sqrt(200))
    assert statistics.median(result.scale for result in results) == pytest.approx(noise / square, rel=0.1)
    # A jackknife's error has an error itself, of about a third here.
    assert statistics.median(result.error for result in results) == pytest.approx(spread, rel=0.35)
    within = [abs(result.scale - noise / square) < 2 * result.error for result in results]
    assert sum(within) > 0.85 * len(within)


def test_gradients_of_micro_batches_of_a_model_are_accepted_as_they_are():
    weight = torch.nn.Parameter(torch.ones(4))
    unused = torch.nn.Parameter(torch.ones(4))
    gradients = []
    for seed in range(4):
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(seed))
        weight.grad = None
        (x @ weight).square().mean().backward()
        gradients.append([weight.grad, unused.grad])
    result = gradtx.noise_scale(gradients, 16)
    assert list(result.leaves) == ["0"]
    assert result.scale == pytest.approx(result.leaves["0"].scale)
    assert result.scale > 0
    assert "noise scale" in repr(result)


def test_noise_that_hides_the_gradient_is_said():
    noise = torch.tensor([1.0, -1.0])
    result = gradtx.noise_scale([{"w": noise}, {"w": -noise}], 4)
    assert result.scale == math.inf
    assert repr(result) == "the noise hides the gradient: measure with more or larger batches"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("batches", [2, 6])
def test_a_gradient_that_is_not_finite_makes_its_leaf_unknown_and_no_other(value, batches):
    gradients = drawn([8] * batches, 0)
    expected = gradtx.noise_scale(gradients, 8).leaves["b"]
    gradients[1]["a"][0] = value
    result = gradtx.noise_scale(gradients, 8)
    assert math.isnan(result.scale)
    assert math.isnan(result.leaves["a"].scale)
    assert result.leaves["b"].scale == expected.scale
    assert repr(result).startswith("a gradient of leaf 'a' is not finite, so the noise scale is not known")


def test_bad_input_is_one_clear_error():
    tree = {"w": torch.ones(2)}
    with pytest.raises(ValueError, match="noise_scale: needs the gradients of at least two batches, got 1"):
        gradtx.noise_scale([tree], 4)
    with pytest.raises(ValueError, match="noise_scale: got 3 batch sizes for 2 gradients"):
        gradtx.noise_scale([tree, tree], [1, 2, 3])
    with pytest.raises(ValueError, match="noise_scale: batch sizes must be at least 1"):
        gradtx.noise_scale([tree, tree], 0)
    with pytest.raises(ValueError, match="noise_scale: leaf 'w' has no gradient in some"):
        gradtx.noise_scale([tree, {"w": None}], 4)
    with pytest.raises(TypeError, match=r"noise_scale: batch sizes must be numbers of examples, got 1\.5"):
        gradtx.noise_scale([tree, tree], 1.5)
    with pytest.raises(ValueError, match=r"the gradients of leaf 'w' have the shapes \(2,\), \(3,\)"):
        gradtx.noise_scale([tree, {"w": torch.ones(3)}], 4)


def test_gradients_of_one_memory_are_an_error_and_rows_of_one_tensor_are_none():
    gradient = torch.ones(2)
    with pytest.raises(ValueError, match="noise_scale: several gradients of leaf 'w' are the same memory"):
        gradtx.noise_scale([{"w": gradient}, {"w": gradient.detach()}], 4)
    assert gradtx.noise_scale([{"w": row} for row in torch.eye(3)], 4).noise == 4


@pytest.mark.parametrize(("size", "saved"), [(1, 0.4), (8, 1 / 6), (4000, 0.0)])
def test_the_text_says_what_twice_the_batch_saves(size, saved):
    noise, square = 4.0, 1.0  # steps are in proportion to 1 + 4 / size
    assert 1 - (1 + noise / square / size / 2) / (1 + noise / square / size) == pytest.approx(saved, abs=1e-3)
    at = torch.tensor([1.0, 0.0], dtype=torch.float64)
    # Two gradients around it, whose noise is 4, and whose mean is longer by its own noise.
    away = torch.tensor([0.0, math.sqrt(noise / size / 2)], dtype=torch.float64)
    at = at * math.sqrt(1 + noise / size / 2)
    text = repr(gradtx.noise_scale([{"w": at + away}, {"w": at - away}], size))
    assert text.startswith(f"noise scale 4 examples, {4 / size:.2g} times the batch of {size}: twice the batch")
    assert f"would save {100 * saved:.0f}% of the steps" in text
    with pytest.raises(ValueError, match="noise_scale: no leaf has a gradient"):
        gradtx.noise_scale([{"w": None}, {"w": None}], 4)


# From what `accumulate` averages.


def trained(every, cycles, per="leaf", watch_every=1, chain=None, compile=False, watched=True, start=0):
    """Train on noise around two mean gradients; return what was seen, the micro-gradients, and the weights."""
    means = {"a": torch.full((30,), 0.3, dtype=torch.float64), "b": torch.full((4, 5), -0.2, dtype=torch.float64)}
    params = {name: torch.nn.Parameter(torch.zeros_like(mean)) for name, mean in means.items()}
    optimizer = gradtx.as_optimizer(
        gradtx.accumulate(chain or gradtx.sgd(lr=0.0), every), list(params.items()), compile=compile
    )
    generator = torch.Generator().manual_seed(0)
    gradients, seen = [], None
    for i in range(start + every * cycles):
        if i == start and watched:
            seen = gradtx.watch(optimizer, every=watch_every, per=per)
        drawn = {
            name: mean + torch.randn(mean.shape, generator=generator, dtype=mean.dtype) for name, mean in means.items()
        }
        gradients.append(drawn)
        for name, gradient in drawn.items():
            params[name].grad = gradient.clone()
        optimizer.step()
    return seen, gradients, params


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("per", ["leaf", "all"])
def test_one_cycle_of_accumulate_has_the_noise_scale_of_its_gradients(per, compile):
    seen, gradients, _ = trained(4, 1, per, compile=compile)
    expected, result = gradtx.noise_scale(gradients, batch_size=16), seen.noise_scale(batch_size=16)
    assert result.noise == pytest.approx(expected.noise, rel=1e-9)
    assert result.square == pytest.approx(expected.square, rel=1e-9)
    assert result.scale == pytest.approx(expected.scale, rel=1e-9)
    assert list(result.leaves) == (["a", "b"] if per == "leaf" else [])
    for name, leaf in result.leaves.items():
        assert leaf.noise == pytest.approx(expected.leaves[name].noise, rel=1e-9)


@pytest.mark.parametrize("way", ["default", "compiled", "scaled", "scaled by the step", "bfloat16", "all leaves"])
def test_leaves_that_miss_micro_batches_are_part_of_the_noise_scale(way):
    dtype = torch.bfloat16 if way == "bfloat16" else torch.float64
    params = {
        name: torch.nn.Parameter(torch.zeros(size, dtype=dtype)) for name, size in {"a": 30, "b": 20, "c": 4}.items()
    }
    optimizer = gradtx.as_optimizer(
        gradtx.accumulate(gradtx.sgd(lr=0.0), 4),
        list(params.items()),
        compile=way == "compiled",
        amp_scaling=way == "scaled by the step",
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, enabled=way.startswith("scaled"))
    generator, gradients = torch.Generator().manual_seed(0), []

    def step(factor=1.0):
        drawn = {
            # "b" is not in the last micro-batch, and "c" in none.
            name: torch.zeros_like(param)
            if name == "c" or (name == "b" and len(gradients) % 4 == 3)
            else (0.3 + torch.randn(param.shape, generator=generator)).to(dtype)
            for name, param in params.items()
        }
        for name, param in params.items():
            param.grad = float(scaler.scale(torch.ones(()))) * factor * drawn[name] if drawn[name].any() else None
        scaler.step(optimizer)
        scaler.update()
        return drawn

    with gradtx.watch(optimizer, every=1, per="all" if way == "all leaves" else "leaf") as seen:
        for i in range(8):
            if i == 6 and scaler.is_enabled():
                step(math.inf)  # which the scaler skips
            gradients.append({name: gradient.double() for name, gradient in step().items()})
    assert len(seen.steps) == 2
    result = seen.noise_scale(batch_size=16)
    expected = [gradtx.noise_scale(cycle, batch_size=16) for cycle in (gradients[:4], gradients[4:])]
    # The sum is of numbers in float32 if the gradients are of 16 bits.
    assert result.noise == pytest.approx(sum(each.noise for each in expected) / 2, rel=1e-6)
    assert result.square == pytest.approx(sum(each.square for each in expected) / 2, rel=1e-6)
    assert list(result.leaves) == ([] if way == "all leaves" else ["a", "b"])


def test_a_call_without_any_gradient_is_not_part_of_a_cycle():
    weight = torch.nn.Parameter(torch.zeros(5))
    optimizer = gradtx.as_optimizer(gradtx.accumulate(gradtx.sgd(lr=0.0), 2), [("w", weight)])
    with gradtx.watch(optimizer, every=1) as seen:
        for gradient in (torch.ones(5), None, torch.zeros(5)):
            weight.grad = gradient
            optimizer.step()
    assert seen.noise_scale(4).noise == 4 * 5 * (2 * 0.25)


def test_several_cycles_give_the_known_noise_scale_within_its_error():
    seen, _, _ = trained(4, 60)
    result = seen.noise_scale(batch_size=10)
    # Noise of size 1 in 50 entries of micro-batches of 10 examples, around a mean gradient.
    known = 10 * 50 / (30 * 0.3**2 + 20 * 0.2**2)
    assert abs(result.scale - known) < 3 * result.error
    assert result.error < 0.3 * known


def test_cycles_of_the_measured_steps_count_alone():
    seen, gradients, _ = trained(2, 12, watch_every=7)
    measured = [gradients[step - 2 : step] for step in seen.steps]
    expected = [gradtx.noise_scale(pair, batch_size=4) for pair in measured]
    result = seen.noise_scale(batch_size=4)
    assert 1 < len(measured) < 12
    assert result.noise == pytest.approx(sum(one_of.noise for one_of in expected) / len(expected), rel=1e-9)


def test_a_cycle_that_was_seen_in_part_does_not_count():
    seen, gradients, _ = trained(4, 2, start=2)  # the watch begins with the third call
    expected = gradtx.noise_scale(gradients[4:8], batch_size=4)
    assert len(seen.steps) == 2
    assert seen.noise_scale(batch_size=4).noise == pytest.approx(expected.noise, rel=1e-9)


def test_training_keeps_its_bits_while_micro_batches_are_measured():
    chain = gradtx.adamw(lr=0.1)
    (_, _, plain), (_, _, seen) = trained(3, 4, chain=chain, watched=False), trained(3, 4, chain=chain)
    assert all(torch.equal(plain[name], seen[name]) for name in plain)


def test_without_averaged_gradients_one_error_says_what_is_needed():
    weight = torch.nn.Parameter(torch.ones(3))
    chains = [
        gradtx.sgd(lr=0.1),
        gradtx.accumulate(gradtx.sgd(lr=0.1), 2, use_grad_mean=False),
        gradtx.chain(gradtx.clip_by_value(0.1), gradtx.accumulate(gradtx.sgd(lr=0.1), 2)),
    ]
    for tx in chains:
        optimizer = gradtx.as_optimizer(tx, [("w", weight)])
        with gradtx.watch(optimizer, every=1) as seen:
            for _ in range(4):
                weight.grad = torch.randn(3)
                optimizer.step()
        with pytest.raises(ValueError, match=r"noise_scale: no measured step has averaged gradients; the chain must"):
            seen.noise_scale(8)
    seen, _, _ = trained(2, 1)
    with pytest.raises(ValueError, match="noise_scale: batch_size must be an int of at least 1, got 0"):
        seen.noise_scale(0)


def test_gradients_without_noise_have_the_scale_0_and_no_error():
    result = gradtx.noise_scale([{"w": torch.ones(4)} for _ in range(3)], batch_size=8)
    assert result.scale == 0
    assert math.isnan(result.error)
