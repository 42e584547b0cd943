"""A range test finds the largest stable rate, and restores everything to the bit."""

import copy
import math
import random

import numpy
import pytest
import torch
from torch import nn

import gradtx

CURVATURES = torch.tensor([1.0, 20.0])


def quadratic(tx, start=(1.0, 1.0)):
    weight = nn.Parameter(torch.tensor(start))
    optimizer = gradtx.as_optimizer(tx, [("w", weight)])

    def closure():
        optimizer.zero_grad()
        loss = (CURVATURES * weight.square()).sum() / 2
        loss.backward()
        return loss

    return optimizer, closure, weight


def network():
    torch.manual_seed(0)
    random.seed(0)
    numpy.random.seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, affine=False), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 1))
    optimizer = gradtx.optim.AdamW(model.named_parameters(), lr=1e-3)

    def closure():
        optimizer.zero_grad()
        x = torch.randn(16, 4) + random.random() + numpy.random.rand()
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        loss.backward()
        return loss

    return model, optimizer, closure


@pytest.mark.parametrize("steps", [0, 3])
def test_everything_is_restored_to_the_bit(steps):
    model, optimizer, closure = network()
    for _ in range(steps):
        optimizer.step(closure)

    def everything():
        gradients = [p.grad for p in model.parameters()]
        streams = [torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].tolist()]
        state = {name: dict(optimizer.state[p]) for name, p in model.named_parameters() if p in optimizer.state}
        return copy.deepcopy((model.state_dict(), gradients, streams, state, optimizer.param_groups[0]["lr"]))

    before = everything()
    result = gradtx.range_test(optimizer, closure, [1e-4, 1e-3, 1e-2])
    after = everything()
    assert len(result.losses) == 4
    assert str(before) == str(after)  # rounded; bits next
    for old, new in zip(before[0].values(), after[0].values(), strict=True):
        assert torch.equal(old, new)
    assert torch.equal(before[2][0], after[2][0])
    for name, slots in before[3].items():
        for slot, value in slots.items():
            assert torch.equal(value, after[3][name][slot])


def test_training_after_a_range_test_is_bit_for_bit_training_without():
    weights = []
    for tests in (False, True):
        model, optimizer, closure = network()
        for t in range(4):
            if tests and t in (0, 2):
                gradtx.range_test(optimizer, closure)
            optimizer.step(closure)
        weights.append(list(model.state_dict().values()))
    assert all(map(torch.equal, *weights))


def test_the_largest_stable_rate_of_gradient_descent_is_near_2_over_the_curvature():
    result = gradtx.range_test(*quadratic(gradtx.sgd(lr=1.0))[:2])
    assert 0.05 < result.largest < 0.3  # 2 / 20; what is too large shows after a few steps
    assert result.steepest <= result.largest
    assert result.losses[-1] > result.losses[0]  # it went on until it diverged
    assert len(result.lrs) == len(result.losses) - 1 < 100


def test_losses_are_those_of_a_loop():
    optimizer, closure, _ = quadratic(gradtx.sgd(lr=1.0))
    rates = [0.01, 0.02, 0.05]
    result = gradtx.range_test(optimizer, closure, rates)
    p = torch.tensor([1.0, 1.0])
    expected = [10.5]
    for rate in rates:
        p = p - rate * CURVATURES * p
        expected.append(((CURVATURES * p.square()).sum() / 2).item())
    assert result.losses == pytest.approx(expected, rel=1e-6)


def test_groups_keep_the_ratio_of_their_rates():
    a, b = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    groups = [{"params": [("a", a)], "lr": 0.3}, {"params": [("b", b)], "lr": 0.1}]
    optimizer = gradtx.as_optimizer(gradtx.sgd(lr=1.0), groups)
    seen = []

    def closure():
        optimizer.zero_grad()
        seen.append((a.item(), b.item()))
        loss = (a + b).sum()
        loss.backward()
        return loss

    gradtx.range_test(optimizer, closure, [0.03, 0.06])
    assert seen[1] == pytest.approx((0.97, 0.99))


def test_a_rate_that_never_lowers_the_loss_is_said():
    result = gradtx.range_test(*quadratic(gradtx.sgd(lr=1.0))[:2], [1.0, 2.0])
    assert math.isnan(result.largest)
    assert "no step lowered the loss; test smaller rates" in repr(result)


def test_the_plot_is_written(tmp_path):
    result = gradtx.range_test(*quadratic(gradtx.sgd(lr=1.0))[:2])
    path = tmp_path / "range.png"
    result.plot(path)
    assert path.stat().st_size > 1000


def test_bad_input_is_one_clear_error():
    optimizer, closure, weight = quadratic(gradtx.sgd(lr=0.1))
    with pytest.raises(TypeError, match="range_test: needs an optimizer of gradtx"):
        gradtx.range_test(torch.optim.SGD([weight], lr=0.1), closure)
    with pytest.raises(TypeError, match="range_test: closure must be a function"):
        gradtx.range_test(optimizer, None)
    with pytest.raises(TypeError, match="range_test: closure must return the loss, got None"):
        gradtx.range_test(optimizer, lambda: closure() and None)
    for lrs in ([0.1], [0.2, 0.1], [0.0, 0.1]):
        with pytest.raises(ValueError, match="range_test: lrs must be at least two positive numbers that rise"):
            gradtx.range_test(optimizer, closure, lrs)
    fixed = quadratic(gradtx.chain(gradtx.scale_by_sign(), gradtx.scale(-0.1)))
    with pytest.raises(ValueError, match="range_test: the chain has no learning rate"):
        gradtx.range_test(*fixed[:2])
    with pytest.raises(ValueError, match="range_test: the rates of all groups are 0"):
        gradtx.range_test(*quadratic(gradtx.sgd(lr=0.0))[:2])
    assert torch.equal(weight, torch.ones(2))
