"""A learning rate of 0 is a step of length 0: at first, in between and at last."""

import inspect

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

import gradtx
from tests.conformance import factories, noise, step_extras
from tests.examples import example_of
from tests.tiers import by_day, third_of

SHAPES = {"matrix": (4, 3), "vector": (5,)}

# Methods that move the weights at a rate of 0 as well, and why.
MOVES = {
    "accsgd": "the weights follow an average of other weights",
    "asgd": "torch's class steps with the rate of the step before",
    "cautious_decay_after": "its own rate is that of the decay; another optimizer makes the step",
    "dadapt_adagrad": "dual averaging: the weights follow an average of other weights",
    "dadapt_adam": "the momentum has the rates of earlier steps",
    "dadapt_adan": "as above",
    "gpa_adamw": "the weights follow an average of other weights",
    "madgrad": "dual averaging: the weights follow an average of other weights",
    "nero": "the first step projects the weights",
    "ranger": "lookahead moves the weights to slow ones",
    "ranger21": "as above",
    "rprop": "torch's class reads the rate in the first step only",
    "schedule_free_adamw": "the weights follow an average, whose weights are those of the largest rate so far",
    "schedule_free_plus": "as above",
    "schedule_free_radam": "as above",
    "schedule_free_sgd": "as above",
    "spectral_sphere": "the first step projects the weights",
    "srmm": "the momentum has the rates of earlier steps",
}
# At the default, a multiplier of a step to a loss of 0, the losses of the test, far from 0, would make weights diverge.
USUAL = {"schedule_free_plus": 0.03}
# Projections and norms of weights round them.
ROUNDING = 1e-5


def _arguments(factory):
    if factory is gradtx.spectral_sphere:  # whose own search takes seconds
        return example_of(factory)
    parameters = inspect.signature(factory).parameters
    return {
        name: value
        for name, value in example_of(factory).items()
        if name != "lr" and (parameters[name].default is inspect.Parameter.empty or name in ("fallback", "base"))
    }


def _has_rate(factory):
    return factory.spec.kind == "alias" and "lr" in inspect.signature(factory).parameters


def _usual_rate(factory):
    default = inspect.signature(factory).parameters["lr"].default
    return default if isinstance(default, float) else 0.01


METHODS = {factory.__name__: factory for factory in factories() if _has_rate(factory)}
METHODS.pop("adafactor")  # sets its rate itself


def _schedule(rates):
    values = torch.tensor(rates, dtype=torch.float64)
    return gradtx.Schedule(lambda count: values[torch.as_tensor(count).long().clamp(max=len(rates) - 1)])


def _step(optimizer, tx, params, t):
    def closure():
        for name, gradient in noise(t + 1, SHAPES, torch.float32).items():
            params[name].grad = gradient
        return sum(param.detach().square().sum() for param in params.values())

    closure()
    given = step_extras(tx, params)
    optimizer.step(closure if "grad_fn" in tx.needs else None, **given)


def _set(optimizer, rate):
    for group in optimizer.param_groups:
        group["lr"] = rate


def _params():
    return {name: torch.nn.Parameter(weight) for name, weight in noise(0, SHAPES, torch.float32).items()}


def _ways(factory, form, rates, compile):
    """How far the weights move in each step, and the optimizer."""
    form_of = {
        "number": float,
        "tensor": lambda rate: torch.tensor(rate, dtype=torch.float64),
        "schedule": lambda rate: _schedule(rates),
    }[form]
    arguments = {**_arguments(factory), "lr": form_of(rates[0])}
    if "fallback" in arguments:
        arguments["fallback"] = gradtx.adam(lr=arguments["lr"])
    tx = factory(**arguments)
    params, ways = _params(), []
    optimizer = gradtx.as_optimizer(tx, params.items(), compile=compile)
    for t, rate in enumerate(rates):
        if form != "schedule":
            _set(optimizer, form_of(rate))
        before = {name: param.detach().clone() for name, param in params.items()}
        _step(optimizer, tx, params, t)
        ways.append(max((param.detach() - before[name]).abs().max().item() for name, param in params.items()))
    return ways, optimizer


DIVIDING = ("adabound", "adaptive_gd", "ftrl", "gravity")


@pytest.mark.parametrize("compile", [False, True], ids=["default", "compiled"])
@pytest.mark.parametrize("form", ["number", "tensor", "schedule"])
@pytest.mark.parametrize("name", METHODS)
@by_day(*(f"{name}-number-default" for name in METHODS if third_of(name) == 1), *(f"{name}-*" for name in DIVIDING))
@pytest.mark.filterwarnings("ignore")
def test_a_rate_of_0_is_a_step_of_length_0_and_leaves_a_state_to_go_on_with(name, form, compile):
    usual = USUAL.get(name) or _usual_rate(METHODS[name])
    for rates in ((0.0, 0.0, *[usual] * 12), (*[usual] * 12, 0.0, 0.0, usual)):
        ways, optimizer = _ways(METHODS[name], form, rates, compile)
        for way, rate in zip(ways, rates, strict=True):
            if rate == 0 and name not in MOVES:
                assert way < ROUNDING
        assert 0 < max(ways) < 1e3
        for state in optimizer.state.values():
            for slot, value in state.items():
                assert not value.isnan().any(), slot


def _trained(factory, rates, compile=False, **options):
    params = _params()
    optimizer = gradtx.as_optimizer(factory(lr=rates[0], **options), params.items(), compile=compile)
    t = 0
    for rate in rates:
        _set(optimizer, rate)
        _step(optimizer, factory(), params, t)
        t += rate != 0
    return [param.detach() for param in params.values()], optimizer


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("factory", [gradtx.ftrl, gradtx.adaptive_gd])
def test_steps_of_rate_0_leave_weights_and_state_as_they_are(factory, compile):
    with_zeros, optimizer = _trained(factory, [0.0, 0.1, 0.0, 0.1, 0.0, 0.1], compile)
    without, twin = _trained(factory, [0.1, 0.1, 0.1], compile)
    torch.testing.assert_close(with_zeros, without)
    for state, expected in zip(optimizer.state.values(), twin.state.values(), strict=True):
        for slot in state.keys() - {"step"}:
            torch.testing.assert_close(state[slot], expected[slot])


def test_the_band_of_adabound_surrounds_the_final_rate_after_a_warm_up_from_0():
    weight = {"w": torch.zeros(2, dtype=torch.float64)}
    gradient = {"w": torch.tensor([1.0, -2.0], dtype=torch.float64)}
    rates = [0.0, 0.001, 0.002, 0.004, 0.002]
    tx = gradtx.adabound(lr=_schedule(rates), final_lr=0.1, gamma=1e9)
    state, mean = tx.init(weight), 0.0
    for rate, largest in zip(rates, [1.0, 0.001, 0.002, 0.004, 0.004], strict=True):
        mean = 0.9 * mean + 0.1 * gradient["w"]
        updates, state = tx.update(gradient, state, weight)
        torch.testing.assert_close(updates["w"], -0.1 * rate / largest * mean, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("factory", [gradtx.add_decayed_weights, gradtx.regenerate_towards_init])
def test_what_is_relative_to_a_rate_from_0_follows_the_largest_so_far(factory):
    rates = [0.0, 0.001, 0.004, 0.002]
    rate = _schedule(rates)
    tx = gradtx.chain(factory(0.5, relative_to=rate), gradtx.scale_by_learning_rate(rate))
    state = tx.init({"w": torch.zeros(1)})
    changes = []
    for _ in rates:
        updates, state = tx.update({"w": torch.zeros(1)}, state, {"w": torch.ones(1)})
        changes.append(updates["w"].item())
    assert changes == pytest.approx([0.0, -0.5, -0.5, -0.25])


@pytest.mark.parametrize("name", [*DIVIDING, "muon_adam_atan2", "sgd", "adamw"])
def test_lambda_lr_warms_up_from_0_and_decays_to_0(name):
    factory = getattr(gradtx, name)
    options = {"decoupled_wd": True} if name == "muon_adam_atan2" else {}
    params = _params()
    optimizer = gradtx.as_optimizer(factory(**options), params.items())
    scheduler = LambdaLR(optimizer, lambda epoch: [0.0, 0.5, 1.0, 0.5, 0.0, 0.0][min(epoch, 5)])
    for t in range(6):
        before = [param.detach().clone() for param in params.values()]
        _step(optimizer, factory(**options), params, t)
        scheduler.step()
        moved = any(not torch.equal(old, new) for old, new in zip(before, params.values(), strict=True))
        assert moved == (t in (1, 2, 3))
        assert all(param.isfinite().all() for param in params.values())


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("name", ["adaptive_gd", "gravity", "rprop"])
def test_a_rate_written_before_the_first_step_is_that_of_the_constructor(name, compile):
    factory, ends = METHODS[name], []
    for rate in (0.3, 0.01):
        params = _params()
        optimizer = gradtx.as_optimizer(factory(lr=rate), params.items(), compile=compile)
        _set(optimizer, 0.3)
        for t in range(3):
            _step(optimizer, factory(), params, t)
        ends.append([param.detach() for param in params.values()])
    torch.testing.assert_close(ends[0], ends[1], rtol=0.0, atol=0.0)


@pytest.mark.parametrize("name", ["adaptive_gd", "gravity"])
def test_the_warm_up_of_a_scheduler_does_not_replace_the_initial_rate(name):
    params = _params()
    optimizer = gradtx.as_optimizer(METHODS[name](lr=0.2), params.items())
    LambdaLR(optimizer, lambda epoch: 1e-6)
    _step(optimizer, METHODS[name](), params, 0)
    (state, *_) = optimizer.state.values()
    slot = "step_size" if name == "adaptive_gd" else "v"
    assert state[slot].abs().max() < 1.0 < 0.01 / (0.2 * 1e-6)  # the initial velocity at the first rate


def test_a_warm_up_by_hand_does_not_change_what_later_rates_are_compared_with():
    params = _params()
    optimizer = gradtx.optim.AdaBound(params.values(), lr=0.1)
    _set(optimizer, 1e-6)
    _step(optimizer, gradtx.adabound(), params, 0)
    assert [state["initial_lr"].item() for state in optimizer.state.values()] == pytest.approx([0.1, 0.1])
