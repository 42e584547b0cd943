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
    with pytest.raises(ValueError, match="noise_scale: no leaf has a gradient"):
        gradtx.noise_scale([{"w": None}, {"w": None}], 4)
