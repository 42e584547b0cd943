import pytest
import pytorch_optimizer

import gradtx
from tests.references import (
    RATE,
    TOLERANCE,
    Published,
    WeightsLoop,
    difference,
    difference_of_weights,
    named,
)
from tests.transforms.test_second_order import RISING, WithHessian, diagonal, hessian
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
    assert difference(stepped(alias, options), WeightsLoop(rule, **options)) < TOLERANCE


class PublishedWithHessian(Published):
    """A published optimizer that is handed the Hessian at each step that uses it."""

    def __init__(self, optimizer, period, **options):
        super().__init__(optimizer, update_period=period, **options)
        self.period, self.t = period, 0

    def __call__(self, grads, params):
        self.t += 1
        fresh = (self.t - 1) % self.period == 0
        given = [diagonal(p, self.t) for p in params.values()] if fresh else None
        make = self.make

        def stepping(found):
            optimizer = make(found)
            step = optimizer.step
            optimizer.step = lambda: step(hessian=self.given)
            return optimizer

        self.given = given
        if not self.params:
            self.make = stepping
        return super().__call__(grads, params)


@pytest.mark.parametrize("weight_decay", [0.0, 0.2])
def test_without_averaging_adahessian_is_pytorch_optimizers(weight_decay):
    options = {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": weight_decay, "hessian_power": 0.6}
    theirs = PublishedWithHessian(pytorch_optimizer.AdaHessian, 1, adam_debias=False, **options)
    assert difference_of_weights(stepped(gradtx.adahessian, {**options, "spatial_average": False}), theirs) < 1e-12


def test_sophia_is_pytorch_optimizers_first_version_with_other_units():
    lr, gamma, eps, weight_decay = 0.02, 0.4, 0.01, 0.2
    ours = stepped(gradtx.sophia, {"lr": lr, "gamma": gamma, "eps": eps, "weight_decay": weight_decay})
    units = {"lr": lr / gamma, "p": gamma, "eps": eps / gamma, "weight_decay": weight_decay * gamma}
    theirs = PublishedWithHessian(pytorch_optimizer.SophiaH, 10, betas=(0.96, 0.99), **units)
    assert difference_of_weights(ours, theirs) < 1e-12
