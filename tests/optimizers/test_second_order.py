import pytest

import gradtx
from tests.references import RATE, WeightsLoop, follows, named
from tests.transforms.test_second_order import RISING, WithHessian, hessian
from tests.transforms.test_second_order import sophia as sophia_direction


def adahessian(
    s, t, g, p, lr=0.15, betas=(0.9, 0.999), eps=1e-4, weight_decay=0.0, hessian_power=1.0, update_period=1,
    spatial_average=True,
):  # fmt: skip
    return p - lr * (hessian(s, t, g, p, betas, eps, hessian_power, update_period, spatial_average) + weight_decay * p)


def sophia(s, t, g, p, lr=6e-4, betas=(0.96, 0.99), gamma=0.01, eps=1e-12, weight_decay=0.1, update_period=10):
    return p * (1 - lr * weight_decay) - lr * sophia_direction(s, t, g, p, betas, gamma, eps, update_period)


OPTIONS = [
    (gradtx.adahessian, adahessian, {}),
    (gradtx.adahessian, adahessian, {"lr": 0.02, "betas": (0.8, 0.95), "weight_decay": 0.2, "hessian_power": 0.5}),
    (gradtx.adahessian, adahessian, {"lr": 0.02, "eps": 0.1, "update_period": 3, "spatial_average": False}),
    (gradtx.adahessian, adahessian, {"lr": RATE, "betas": (RISING, 0.9), "weight_decay": RISING, "update_period": 2}),
    (gradtx.sophia, sophia, {}),
    (gradtx.sophia, sophia, {"lr": 0.02, "betas": (0.8, 0.5), "gamma": 0.5, "eps": 0.02, "update_period": 3}),
    (gradtx.sophia, sophia, {"lr": RATE, "gamma": RISING, "weight_decay": RISING, "update_period": 1}),
]


def stepped(alias, options):
    tx = alias(**options)
    return WithHessian(tx, tx.hyperparams["update_period"])


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=named)
def test_the_weights_follow_the_loop(alias, rule, options):
    # an update of 1e-4 as the difference of two weights: 1e-12 of rounding
    follows(stepped(alias, options), WeightsLoop(rule, **options))
