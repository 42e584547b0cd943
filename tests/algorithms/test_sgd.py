import pytest
import torch

import gradtx
from tests import references as ref

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
