import math

import pytest
import torch

import gradtx
from tests import references as ref
from tests.references import LONG, STEPS, TOLERANCE

RATE = gradtx.cosine_schedule(0.2, T_max=20, eta_min=0.01)
SHARED = [
    {},
    {"lr": 0.1, "momentum": 0.9},
    {"lr": 0.1, "momentum": 0.8, "dampening": 0.3, "weight_decay": 0.2},
    {"lr": 0.1, "momentum": 0.8, "nesterov": True, "weight_decay": 0.2},
    {"lr": 0.1, "dampening": 0.3, "weight_decay": 0.2},
]
SCHEDULED = {"lr": RATE, "momentum": gradtx.linear_schedule(0.9), "weight_decay": RATE, "dampening": RATE}


def momentum_direction(s, t, g, momentum, dampening, nesterov):
    if momentum == 0:
        return g
    s.b = g if t == 1 else momentum * s.b + (1 - dampening) * g
    return g + momentum * s.b if nesterov else s.b


def sgd(s, t, g, p, lr=1e-3, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False):
    return p - lr * momentum_direction(s, t, g + weight_decay * p, momentum, dampening, nesterov)


def sgdw(s, t, g, p, lr=1e-3, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False):
    return p * (1 - lr * weight_decay) - lr * momentum_direction(s, t, g, momentum, dampening, nesterov)


def sgds(s, t, g, p, lr=1e-3, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False):
    stable = weight_decay * (1 - dampening) / (1 - momentum)
    return p * (1 - lr * stable) - lr * momentum_direction(s, t, g, momentum, dampening, nesterov)


@pytest.mark.parametrize("options", [*SHARED, SCHEDULED], ids=str)
@pytest.mark.parametrize(
    ("alias", "rule"), [(gradtx.sgd, sgd), (gradtx.sgdw, sgdw), (gradtx.sgds, sgds)], ids=ref.named
)
def test_the_weights_follow_the_loop(alias, rule, options):
    ref.follows(alias(**options), ref.WeightsLoop(rule, **options))
    assert ref.arguments(alias) == ref.arguments(rule)


def test_decay_enters_the_momentum_of_sgd_only():
    def buffer(alias):
        params = {"w": torch.tensor([4.0])}
        tx = alias(momentum=0.5, weight_decay=0.25)
        _, state = tx.update({"w": torch.tensor([2.0])}, tx.init(params), params)
        return state["trace"]["momentum_buffer"]["w"].item()

    assert (buffer(gradtx.sgd), buffer(gradtx.sgdw)) == (3.0, 2.0)


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9, "dampening": 0.1}], ids=str)
@pytest.mark.parametrize("alias", [gradtx.sgd, gradtx.sgdw, gradtx.sgds], ids=ref.named)
def test_nesterov_without_momentum_or_with_dampening_is_an_error(alias, options):
    with pytest.raises(ValueError, match=r"nesterov needs a momentum above 0 and a dampening of 0$"):
        alias(nesterov=True, **options)


def test_a_momentum_of_1_by_which_sgds_would_divide_is_an_error():
    with pytest.raises(ValueError, match=r"^sgds: momentum must be in \[0, 1\), got 1.0$"):
        gradtx.sgds(momentum=1.0)
    with pytest.raises(ValueError, match=r"^sgds: dampening must be in \[0, 1\], got 1.5$"):
        gradtx.sgds(dampening=1.5)


# Averaged and adaptive descent.


def asgd(s, t, g, p, lr=1e-2, lambd=1e-4, alpha=0.75, t0=1e6, weight_decay=0.0):
    if t == 1:
        s.eta, s.mu, s.ax = lr, 1.0, 0 * p
    s.seen.add(s.mu == 1)
    x = p * (1 - lambd * s.eta) - s.eta * (g + weight_decay * p)
    s.ax = x if s.mu == 1 else s.ax + s.mu * (x - s.ax)
    s.eta = lr / (1 + lambd * lr * t) ** alpha
    s.mu = 1 / max(1, t - t0)
    return x


ASGD = [
    {},
    {"lr": 0.2, "lambd": 0.3, "alpha": 0.5, "t0": 5.0, "weight_decay": 0.1},
    {"lr": 0.2, "lambd": 2.0, "alpha": 2.0, "t0": 0.0},
    {"lr": 0.2, "lambd": 0.0, "alpha": 0.0, "t0": 7.5},
]


@pytest.mark.parametrize("options", [*ASGD, {"lr": RATE, "lambd": RATE, "t0": 3.0, "weight_decay": RATE}], ids=str)
def test_weights_and_averages_of_asgd_follow_the_loop(options):
    ours, loop, params = ref.Transformed(gradtx.asgd(**options)), ref.WeightsLoop(asgd, **options), ref.problem()
    assert ref.arguments(gradtx.asgd) == ref.arguments(asgd)
    for t in range(1, STEPS + 1):
        grads = ref.gradients(params, t)
        updates, expected = ours(grads, params), loop(grads, params)
        params = gradtx.apply_updates(params, updates)
        averages = ours.tx.eval_params(ours.state, params)
        for name in params:
            torch.testing.assert_close(updates[name], expected[name], rtol=TOLERANCE, atol=1e-15)
            torch.testing.assert_close(averages[name], loop.slots[name].ax, rtol=1e-13, atol=1e-15)
    assert loop.seen == ({True, False} if options else {True})


def test_averaging_begins_two_steps_after_t0():
    # weights 1, 2, 3, 4, ...: at step 5 the first mean, of 4 and 5 in halves, then a third towards 6
    step, params = ref.Transformed(gradtx.asgd(lr=1.0, lambd=0.0, t0=2.0)), {"w": torch.zeros(1)}
    averages = []
    for _ in range(6):
        params = gradtx.apply_updates(params, step({"w": -torch.ones(1)}, params))
        averages.append(step.tx.eval_params(step.state, params)["w"].item())
    assert averages == [1.0, 2.0, 3.0, 4.0, 4.5, 5.0]


def adaptive_gd(s, t, g, p, lr=0.2, amplifier=0.02, damping=1.0, theta=1.0, eps=1e-5, weight_decay=0.0):
    own = s[""]
    if t == 1:
        own.rate, own.theta, own.p, own.g = lr, theta, p, g
    D = ref.global_norm({name: p[name] - own.p[name] for name in p})
    G = ref.global_norm({name: g[name] - own.g[name] for name in p})
    grown = own.rate * math.sqrt(1 + amplifier * own.theta)
    if D > 0 and G > 0:
        own.seen.add("measured" if D / (damping * G) < grown else "grown")
        rate = min(grown, D / (damping * G)) + eps
    else:
        rate = own.rate if math.isinf(own.theta) else grown
    if not (t == 1 and math.isinf(own.theta)):
        own.theta = rate / own.rate
    own.rate, own.p, own.g = rate, p, g
    return {name: p[name] - rate * (g[name] + weight_decay * p[name]) for name in p}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lr": 0.02, "amplifier": 0.5, "damping": 0.3, "theta": 2.0, "eps": 1e-3, "weight_decay": 0.2},
        {"lr": 0.02, "amplifier": 2.0, "damping": 0.05, "weight_decay": RATE},
    ],
    ids=str,
)
def test_the_weights_of_adaptive_gd_follow_the_loop(options):
    loop = ref.TreeLoop(adaptive_gd, **options)
    # noisy gradients make steps tiny, and their difference from the weights loses digits
    ref.follows(gradtx.adaptive_gd(**options), loop, steps=LONG, tolerance=1e-9)
    assert "measured" in loop.seen
    assert ref.arguments(gradtx.adaptive_gd) == ref.arguments(adaptive_gd)


@pytest.mark.parametrize("lr", [1e-3, 0.1])
def test_the_form_of_the_paper_follows_the_loop_on_one_loss(lr):
    # With a loss of each step's own the step size would shrink to nothing.
    options = {"lr": lr, "amplifier": 1.0, "damping": 2.0, "theta": math.inf, "eps": 0.0}
    ours, loop, params = (
        ref.Transformed(gradtx.adaptive_gd(**options)),
        ref.TreeLoop(adaptive_gd, **options),
        ref.problem(),
    )
    for t in range(1, 33):
        grads = ref.gradients(params, 1)
        updates, expected = ours(grads, params), loop(grads, params)
        ref.compare_trees(updates, expected, when=f" at step {t}")
        params = gradtx.apply_updates(params, updates)
    assert loop.seen == {"measured", "grown"}
