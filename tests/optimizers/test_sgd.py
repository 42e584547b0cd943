import pytest
import torch

import gradtx
from tests.references import (
    TOLERANCE,
    Published,
    WeightsLoop,
    arguments,
    difference,
    difference_of_weights,
    finite_without_gradient,
    first_update,
    named,
    negated,
)

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
@pytest.mark.parametrize(("alias", "rule"), [(gradtx.sgd, sgd), (gradtx.sgdw, sgdw), (gradtx.sgds, sgds)], ids=named)
def test_the_weights_follow_the_loop(alias, rule, options):
    assert difference(alias(**options), WeightsLoop(rule, **options)) < TOLERANCE
    assert arguments(alias) == arguments(rule)


@pytest.mark.parametrize("options", SHARED, ids=str)
def test_sgd_is_torch_sgd(options):
    # torch rounds p - lr * b once, p + (-lr * b) is rounded twice
    assert difference_of_weights(gradtx.sgd(**options), Published(torch.optim.SGD, **options)) < 1e-12


@pytest.mark.parametrize("options", SHARED, ids=str)
def test_sgd_that_maximizes_is_torch_sgd_that_maximizes(options):
    published = Published(torch.optim.SGD, **options, maximize=True)
    # as above
    assert difference_of_weights(negated(gradtx.sgd(**options, maximize=True)), negated(published)) < 1e-12


@pytest.mark.parametrize("alias", [gradtx.sgd, gradtx.sgdw, gradtx.sgds], ids=named)
def test_maximize_negates_the_gradient_but_not_the_decay(alias):
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
    uphill, downhill = alias(**options, maximize=True), alias(**options)
    grad, param = [1.0, -2.0], [3.0, 4.0]
    assert first_update(uphill, grad, param, steps=2) == first_update(downhill, [-1.0, 2.0], param, steps=2)
    assert first_update(uphill, grad, param) != first_update(downhill, grad, param)


def test_one_step_equals_the_hand_computed_values():
    options = {"lr": 0.5, "momentum": 0.5, "weight_decay": 0.25}
    # sgd: the gradient is 2 + 1, the buffer 3, then 0.5 * 3 + 3; sgdw: the buffer is 2, then 3, and 1 is added to it
    assert [first_update(gradtx.sgd(**options), [2.0], [4.0], steps=n) for n in (1, 2)] == [[-1.5], [-2.25]]
    assert [first_update(gradtx.sgdw(**options), [2.0], [4.0], steps=n) for n in (1, 2)] == [[-1.5], [-2.0]]


def test_decay_enters_the_momentum_of_sgd_only():
    def buffer(alias):
        params = {"w": torch.tensor([4.0])}
        tx = alias(momentum=0.5, weight_decay=0.25)
        _, state = tx.update({"w": torch.tensor([2.0])}, tx.init(params), params)
        return state["trace"]["momentum_buffer"]["w"].item()

    assert (buffer(gradtx.sgd), buffer(gradtx.sgdw)) == (3.0, 2.0)


@pytest.mark.parametrize("alias", [gradtx.sgd, gradtx.sgdw, gradtx.sgds], ids=named)
def test_zero_gradients_give_finite_updates(alias):
    assert finite_without_gradient(alias(momentum=0.9, weight_decay=0.1))


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9, "dampening": 0.1}], ids=str)
@pytest.mark.parametrize("alias", [gradtx.sgd, gradtx.sgdw, gradtx.sgds], ids=named)
def test_nesterov_without_momentum_or_with_dampening_is_an_error(alias, options):
    with pytest.raises(ValueError, match=r"nesterov needs a momentum above 0 and a dampening of 0$"):
        alias(nesterov=True, **options)


@pytest.mark.parametrize("argument", ["lr", "momentum", "weight_decay"])
@pytest.mark.parametrize("alias", [gradtx.sgd, gradtx.sgdw, gradtx.sgds], ids=named)
def test_rejects_a_negative_number(alias, argument):
    with pytest.raises(ValueError, match=rf"^{alias.__name__}: {argument} must be in \[0, (inf|1)\), got -1.0$"):
        alias(**{argument: -1.0})


def test_a_momentum_of_1_by_which_sgds_would_divide_is_an_error():
    with pytest.raises(ValueError, match=r"^sgds: momentum must be in \[0, 1\), got 1.0$"):
        gradtx.sgds(momentum=1.0)
    with pytest.raises(ValueError, match=r"^sgds: dampening must be in \[0, 1\], got 1.5$"):
        gradtx.sgds(dampening=1.5)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_sgds_decays_as_much_more_as_its_momentum_moves(momentum):
    # lr * 0.3 * (1 - 0.2) / (1 - momentum) of 10, and the gradient
    tx = gradtx.sgds(lr=0.1, momentum=momentum, dampening=0.2, weight_decay=0.3)
    assert first_update(tx, [2.0], [10.0])[0] == pytest.approx(-0.2 - 0.24 / (1 - momentum))


def test_sgds_without_decay_is_torch_sgd():
    options = {"lr": 0.1, "momentum": 0.8, "dampening": 0.3}
    assert difference_of_weights(gradtx.sgds(**options), Published(torch.optim.SGD, **options)) < 1e-12
