import pytest
import torch

import gradtx
from tests.references import BETA, DECAY, RATE, WeightsLoop, follows, named


def sign_momentum(s, g, p, lr, b, weight_decay, decoupled):
    g = g if decoupled else g + weight_decay * p
    s.m = b * s.m + (1 - b) * g
    return p - lr * (s.m.sign() + (weight_decay * p if decoupled else 0))


def signsgd(s, t, g, p, lr=1e-3, weight_decay=0.0, decoupled_weight_decay=True):
    return sign_momentum(s, g, p, lr, 0.0, weight_decay, decoupled_weight_decay)


def signum(s, t, g, p, lr=1e-3, momentum=0.9, weight_decay=0.0, decoupled_weight_decay=True):
    return sign_momentum(s, g, p, lr, momentum, weight_decay, decoupled_weight_decay)


def tiger(s, t, g, p, lr=1e-3, beta=0.965, weight_decay=0.01):
    return sign_momentum(s, g, p, lr, beta, weight_decay, True)


SOME = {"lr": 0.02, "weight_decay": 0.3}
SCHEDULED = {"lr": RATE, "weight_decay": DECAY}
OPTIONS = [
    *(
        (alias, rule, options)
        for alias, rule in ((gradtx.signsgd, signsgd), (gradtx.signum, signum), (gradtx.tiger, tiger))
        for options in ({}, SOME, SCHEDULED)
    ),
    (gradtx.signsgd, signsgd, {**SOME, "decoupled_weight_decay": False}),
    (gradtx.signum, signum, {**SOME, "decoupled_weight_decay": False, "momentum": 0.5}),
    (gradtx.signum, signum, {**SOME, "momentum": 0.0}),
    (gradtx.signum, signum, {**SCHEDULED, "momentum": BETA}),
    (gradtx.tiger, tiger, {"lr": 0.02, "beta": 0.5}),
    (gradtx.tiger, tiger, {"lr": 0.02, "beta": BETA}),
]


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=named)
def test_the_weights_follow_the_loop(alias, rule, options):
    follows(alias(**options), WeightsLoop(rule, **options))


@pytest.mark.parametrize("tx", [gradtx.signsgd(), gradtx.signum(momentum=0.0)], ids=str)
def test_without_momentum_nothing_is_kept(tx):
    assert list(tx.init({"w": torch.zeros(2)})) == ["step"]


def test_a_momentum_that_may_change_keeps_its_slot():
    tx = gradtx.signum(momentum=torch.tensor(0.0))
    assert list(tx.init({"w": torch.zeros(2)})["scale_by_lion"]) == ["exp_avg"]
