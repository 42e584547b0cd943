"""A range test finds the largest stable rate, and restores everything to the bit."""

import copy
import math
import random
import statistics

import numpy
import pytest
import torch
from torch import nn

import gradtx
from gradtx import RangeTest

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


class Moving(nn.Module):
    """A model that replaces its buffers and attributes, with a target that follows it and a head of its own."""

    def __init__(self):
        super().__init__()
        self.trained, self.head, self.target = (nn.Linear(3, 3) for _ in range(3))
        self.target.requires_grad_(False)
        self.register_buffer("ema", torch.zeros(3))
        self.calls, self.total, self.last = 0, torch.zeros(3), None

    def forward(self, x):
        self.calls += 1
        self.total = self.total + 1
        self.ema = 0.9 * self.ema + 0.1 * x.mean(0)
        hidden = self.trained(x)
        with torch.no_grad():
            self.target.weight.mul_(0.9).add_(0.1 * self.trained.weight)
        self.last = hidden.detach()
        self.cache = x
        return self.head(hidden) - self.target(x)


def everything_of(*models):
    gradients = [p.grad for model in models for p in model.parameters()]
    required = [p.requires_grad for model in models for p in model.parameters()]
    modes = [module.training for model in models for module in model.modules()]
    attributes = [(model.calls, model.total, model.last, hasattr(model, "cache")) for model in models[:1]]
    return copy.deepcopy(([model.state_dict() for model in models], gradients, required, modes, attributes))


@pytest.mark.parametrize("tool", ["range_test", "sharpness"])
def test_all_that_models_have_is_restored_also_what_other_optimizers_train(tool):
    torch.manual_seed(0)
    model, critic = Moving(), nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    optimizer = gradtx.optim.SGD(model.trained.named_parameters(), lr=0.1)

    def closure(with_gradients=True):
        optimizer.zero_grad()
        model.train()
        critic[0].requires_grad_(False)
        loss = critic(model(torch.randn(5, 3))).square().mean()
        if with_gradients:
            loss.backward()
        return loss

    closure()
    model.eval()
    critic[0].requires_grad_(True)
    del model.cache
    model.last = None
    before, buffer, gradients = everything_of(model, critic), model.ema, [p.grad for p in critic.parameters()]
    if tool == "range_test":
        gradtx.range_test(optimizer, closure, [1e-3, 1e-2, 1e-1])
    else:
        gradtx.sharpness(lambda _: closure(False), model)
    torch.testing.assert_close(everything_of(model, critic), before, rtol=0, atol=0)
    assert model.ema is buffer
    assert all(p.grad is gradient for p, gradient in zip(critic.parameters(), gradients, strict=True))


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


def weights_after_a_step(optimizer, *params):
    """Test two rates, with a gradient of 1 for each entry, and return the weights after the first step."""
    seen = []

    def closure():
        optimizer.zero_grad()
        seen.append([param.item() for param in params])
        loss = sum(params).sum()
        loss.backward()
        return loss

    gradtx.range_test(optimizer, closure, [0.03, 0.06])
    return seen[1]


def test_groups_keep_the_ratio_of_their_rates():
    a, b = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    groups = [{"params": [("a", a)], "lr": 0.3}, {"params": [("b", b)], "lr": 0.1}]
    optimizer = gradtx.as_optimizer(gradtx.sgd(lr=1.0), groups)
    assert weights_after_a_step(optimizer, a, b) == pytest.approx([0.97, 0.99])


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
    with pytest.raises(TypeError, match="range_test: closure must return the loss, got None; end it with return loss"):
        gradtx.range_test(optimizer, lambda: closure() and None)
    fixed = quadratic(gradtx.chain(gradtx.scale_by_sign(), gradtx.scale(-0.1)))
    with pytest.raises(ValueError, match="range_test: the chain has no learning rate"):
        gradtx.range_test(*fixed[:2])
    with pytest.raises(ValueError, match="range_test: the rates of all groups are 0"):
        gradtx.range_test(*quadratic(gradtx.sgd(lr=0.0))[:2])
    assert torch.equal(weight, torch.ones(2))


@pytest.mark.parametrize(
    ("lrs", "error", "message"),
    [
        (
            [],
            ValueError,
            r"lrs must be numbers that rise, such as \[1e-4, 1e-3, 1e-2\], at least two of them, got \[\]",
        ),
        ([0.1], ValueError, r".* at least two of them, got \[0.1\]"),
        (0.1, TypeError, "lrs must be numbers that rise, such as .*, got 0.1"),
        (["low", "high"], TypeError, "lrs must be numbers that rise, such as .*, got .'low', 'high'."),
        ([0.2, 0.1], ValueError, r"lrs must rise, but lrs\[1\] = 0.1 follows 0.2; pass sorted\(set\(lrs\)\)"),
        ([0.1, 0.1], ValueError, r"lrs must rise, but lrs\[1\] = 0.1 follows 0.1"),
        ([0.0, 0.1], ValueError, r"lrs\[0\] must be above 0, got 0.0"),
        ([-0.1, 0.1], ValueError, r"lrs\[0\] must be above 0, got -0.1"),
        ([0.1, math.nan], ValueError, r"lrs\[1\] must be finite, got nan"),
        ([0.1, math.inf], ValueError, r"lrs\[1\] must be finite, got inf"),
    ],
)
def test_rates_that_cannot_be_tested_are_named_before_the_closure_is_called(lrs, error, message):
    optimizer, _, _ = quadratic(gradtx.sgd(lr=0.1))
    with pytest.raises(error, match=f"range_test: {message}"):
        gradtx.range_test(optimizer, lambda: pytest.fail("called"), lrs)


@pytest.mark.parametrize(
    "losses",
    [
        # Falls to 2, rises, and falls back to 3 in the largest fall of all.
        [9, 9, 9, 9, 8, 5, 2, 2, 2, 40, 40, 40, 40, 3, 3, 3, 3],
        [9, 8, 7, 6, 5, 4, 3, 2, 1],
        [9, 9, 3, 1],
    ],
)
def test_the_steepest_rate_lies_at_or_below_the_largest_stable_one(losses):
    lrs = [10.0 ** (i - 9) for i in range(len(losses) - 1)]
    result = RangeTest(lrs, losses)
    assert lrs[0] <= result.steepest <= result.largest
    # Of a plain loop.
    smoothed = [statistics.median(losses[max(0, i - 2) : i + 3]) for i in range(len(losses))]
    steps = smoothed.index(min(smoothed))
    assert result.largest == lrs[steps - 1]
    falls = [smoothed[i] - smoothed[i + 1] for i in range(steps)]
    assert result.steepest == lrs[falls.index(max(falls))]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["sgd", "momentum", "adamw", "lion"])
def test_noisy_runs_that_go_far_beyond_the_edge_keep_the_steepest_rate_below_the_largest(name, seed):
    chains = {
        "sgd": gradtx.sgd(lr=0.1),
        "momentum": gradtx.sgd(lr=0.1, momentum=0.9),
        "adamw": gradtx.adamw(lr=1e-3),
        "lion": gradtx.lion(lr=1e-4),
    }
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = gradtx.as_optimizer(chains[name], model.named_parameters())

    def closure():
        optimizer.zero_grad()
        x = torch.randn(32, 16)
        loss = nn.functional.cross_entropy(model(x), x[:, :10].argmax(1))
        loss.backward()
        return loss

    result = gradtx.range_test(optimizer, closure)
    assert result.steepest <= result.largest


def test_a_closure_without_backward_is_an_error_that_says_so():
    model, optimizer, closure = network()
    closure()  # leaves gradients, which must not pass for those of the test
    with pytest.raises(ValueError, match=r"closure computes no gradients .* call loss.backward\(\) in it"):
        gradtx.range_test(optimizer, lambda: model(torch.ones(2, 4)).sum())


def test_a_rule_that_estimates_gradients_needs_no_backward():
    weight = nn.Parameter(torch.ones(2))
    optimizer = gradtx.as_optimizer(gradtx.mezo(lr=0.01), [("w", weight)])
    result = gradtx.range_test(optimizer, lambda: (CURVATURES * weight.square()).sum() / 2)
    assert result.largest > 1e-3


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_first_loss_that_is_not_finite_is_said(loss):
    optimizer, closure, _ = quadratic(gradtx.sgd(lr=0.1))
    with pytest.raises(ValueError, match=f"range_test: the loss is {loss} at the present weights, before any step"):
        gradtx.range_test(optimizer, lambda: closure() * loss)


def test_a_closure_that_steps_is_refused_before_it_changes_the_optimizers_state():
    optimizer, closure, _ = quadratic(gradtx.adamw(lr=0.1))

    def step():
        loss = closure()
        optimizer.step()
        return loss

    with pytest.raises(
        RuntimeError, match=r"range_test: closure calls optimizer.step\(\), but range_test steps itself"
    ):
        gradtx.range_test(optimizer, step)
    assert not optimizer.state
    step()  # is allowed again
    assert len(optimizer.state) == 1


def test_an_optimizer_that_steps_during_backward_is_refused_unchanged():
    optimizer, closure, weight = quadratic(gradtx.adamw(lr=0.1))
    handle = optimizer.release_gradients()
    with pytest.raises(RuntimeError, match=r"steps during backward .*; call handle.remove\(\) before the test"):
        gradtx.range_test(optimizer, closure)
    assert not optimizer.state
    assert torch.equal(weight, torch.ones(2))
    handle.remove()
    assert gradtx.range_test(optimizer, closure).largest > 0


def everything(model, optimizer):
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    streams = [torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].tolist()]
    slots = [dict(optimizer.state[p]) for p in model.parameters() if p in optimizer.state]
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    return copy.deepcopy((list(model.state_dict().values()), gradients, streams, slots, groups))


def none(closure, optimizer):
    closure()


def not_finite(closure, optimizer):
    return closure() * math.nan


def without_gradients(closure, optimizer):
    loss = closure()
    optimizer.zero_grad()
    return loss


def stepping(closure, optimizer):
    loss = closure()
    optimizer.step()
    return loss


def exhausted(closure, optimizer):
    closure()
    raise StopIteration


@pytest.mark.parametrize("fault", [none, not_finite, without_gradients, stepping, exhausted])
@pytest.mark.parametrize("steps", [0, 2])
def test_after_an_error_everything_is_as_before(fault, steps):
    model, optimizer, closure = network()
    for _ in range(steps):
        optimizer.step(closure)
    before = everything(model, optimizer)
    with pytest.raises((TypeError, ValueError, RuntimeError, StopIteration)):
        gradtx.range_test(optimizer, lambda: fault(closure, optimizer))
    after = everything(model, optimizer)
    torch.testing.assert_close(after[:2], before[:2], rtol=0, atol=0)
    assert torch.equal(after[2][0], before[2][0])
    assert after[2][1:] == before[2][1:]
    torch.testing.assert_close(after[3], before[3], rtol=0, atol=0)
    assert after[4] == before[4]


def warming_up():
    return gradtx.warmup_linear_schedule(100, max_lr=0.5, warmup_steps=10)


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("steps", [0, 3])
def test_a_schedule_that_warms_up_from_0_is_replaced_by_the_rates_of_the_test(steps, compile):
    weight = nn.Parameter(torch.ones(2))
    optimizer = gradtx.as_optimizer(gradtx.sgd(lr=warming_up()), [("w", weight)], compile=compile)

    def closure():
        optimizer.zero_grad()
        loss = (CURVATURES * weight.square()).sum() / 2
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)
    shown = optimizer.param_groups[0]["lr"]
    assert (shown == 0) == (steps == 0)
    rates, p = [0.01, 0.02, 0.05], weight.detach().clone()
    result = gradtx.range_test(optimizer, closure, rates)
    expected = [((CURVATURES * p.square()).sum() / 2).item()]
    for rate in rates:
        p = p - rate * CURVATURES * p
        expected.append(((CURVATURES * p.square()).sum() / 2).item())
    assert result.losses == pytest.approx(expected, rel=1e-5)  # float32
    # The schedule goes on.
    assert optimizer.param_groups[0]["lr"] == shown
    optimizer.step(closure)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(warming_up()(steps + 1))


def test_groups_with_one_schedule_get_the_rates_of_the_test_and_others_the_remedy():
    a, b = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    shared = [{"params": [("a", a)], "weight_decay": 0.0}, {"params": [("b", b)]}]
    optimizer = gradtx.as_optimizer(gradtx.sgd(lr=warming_up()), shared)
    assert weights_after_a_step(optimizer, a, b) == pytest.approx([0.97, 0.97])
    other = gradtx.warmup_linear_schedule(100, max_lr=0.1, warmup_steps=5)
    apart = [{"params": [("a", a)], "lr": other}, {"params": [("b", b)]}]
    with pytest.raises(ValueError, match=r"ratios are unknown; .* if schedules start at 0, make a step first"):
        weights_after_a_step(gradtx.as_optimizer(gradtx.sgd(lr=warming_up()), apart), a, b)


def test_each_branch_of_a_partition_keeps_the_ratio_of_its_rate_and_frozen_leaves_stay():
    names = ("a", "b", "c")
    params = {name: nn.Parameter(torch.ones(1)) for name in names}
    branches = {"a": gradtx.sgd(lr=0.3), "b": gradtx.sgd(lr=0.1), "c": gradtx.freeze(lambda name, _: True)}
    tx = gradtx.partition(branches, lambda name, _: name)
    optimizer = gradtx.as_optimizer(tx, params.items())
    assert weights_after_a_step(optimizer, *params.values()) == pytest.approx([0.97, 0.99, 1.0])


class LightningOptimizer:
    """Lightning's wrapper, in short: of a class that also inherits from that of the optimizer."""

    def __init__(self, optimizer):
        self._optimizer = optimizer
        name = f"Lightning{type(optimizer).__name__}"
        self.__class__ = type(name, (self.__class__, type(optimizer)), {})

    @property
    def optimizer(self):
        return self._optimizer

    def step(self, closure=None):
        return self._optimizer.step(closure)

    def __getattr__(self, name):
        return getattr(self._optimizer, name)


def lightnings_own(optimizer):
    return pytest.importorskip("lightning.pytorch.core.optimizer").LightningOptimizer(optimizer)


@pytest.mark.parametrize("wrapped_by", [LightningOptimizer, pytest.param(lightnings_own, marks=pytest.mark.nightly)])
def test_a_trainers_wrapper_is_tested_as_what_it_wraps(wrapped_by):
    optimizer, closure, weight = quadratic(gradtx.adamw(lr=0.1))
    wrapper = wrapped_by(optimizer)
    expected = gradtx.range_test(optimizer, closure)
    assert gradtx.range_test(wrapper, closure).losses == expected.losses
    assert torch.equal(weight, torch.ones(2))


def test_a_closure_that_steps_a_trainers_wrapper_is_refused():
    optimizer, closure, weight = quadratic(gradtx.adamw(lr=0.1))
    wrapper = LightningOptimizer(optimizer)

    def stepping():
        loss = closure()
        wrapper.step()
        return loss

    with pytest.raises(RuntimeError, match=r"range_test: closure calls optimizer\.step"):
        gradtx.range_test(wrapper, stepping)
    assert torch.equal(weight, torch.ones(2))


SCALE = 1024.0


def scaled_closure(scale, unscaled=False):
    weight = nn.Parameter(torch.tensor([1.0, 1.0]))
    optimizer = gradtx.as_optimizer(gradtx.sgd(lr=0.1), [("w", weight)])

    def closure():
        optimizer.zero_grad()
        loss = (CURVATURES * weight.square()).sum() / 2
        torch.autograd.backward(scale(loss))
        if unscaled:
            weight.grad /= SCALE
        return loss

    return optimizer, closure


def test_gradients_of_a_scaled_loss_are_refused_and_those_of_another_loss_are_said():
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    with pytest.raises(ValueError, match=r"a GradScaler multiplies the gradients by 1024, .* call loss.backward\(\)"):
        gradtx.range_test(*scaled_closure(scaler.scale))
    del scaler
    with pytest.warns(UserWarning, match="gradients of 100 times the loss that it returns"):
        gradtx.range_test(*scaled_closure(lambda loss: 100 * loss))


@pytest.mark.parametrize("scale", [lambda loss: loss, lambda loss: -loss, lambda loss: 1.5 * loss])
def test_gradients_of_the_returned_loss_or_a_similar_one_are_tested(scale):
    gradtx.range_test(*scaled_closure(scale), [1e-3, 1e-2])


def test_gradients_that_the_closure_unscales_are_those_of_the_loss():
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    expected = gradtx.range_test(*scaled_closure(lambda loss: loss)).lrs
    assert gradtx.range_test(*scaled_closure(scaler.scale, unscaled=True)).lrs == expected
