import math

import pytest

import gradtx
from tests import references as ref
from tests.algorithms.loops import COMMON, COUPLED, DECOUPLED, SOME, decayed, stepped
from tests.references import Loop, first_update, follows, rectifier


def radam(
    s, t, g, p, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, decoupled_weight_decay=False,
    rho_threshold=5.0, degenerated_to_sgd=True,
):  # fmt: skip
    ref.adam_moments(s, t, decayed(g, p, weight_decay, decoupled_weight_decay), betas)
    direction = ref.rectified(s, t, s.m, s.v, betas, eps, rho_threshold, True)
    if not degenerated_to_sgd and ref.rectifier(t, betas[1], rho_threshold) is None:
        return p
    return stepped(p, lr, direction, weight_decay, decoupled_weight_decay)


OPTIONS = [
    *((gradtx.radam, radam, options) for options in COMMON),
    (gradtx.radam, radam, {**SOME, **COUPLED, "rho_threshold": 4.0}),
    (gradtx.radam, radam, {**SOME, **COUPLED, "rho_threshold": 7.5, "degenerated_to_sgd": False}),
    (gradtx.radam, radam, {**SOME, **DECOUPLED, "degenerated_to_sgd": False}),
]


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=ref.named)
def test_the_weights_follow_the_loop(alias, rule, options):
    ref.follows(alias(**options), ref.WeightsLoop(rule, **options))


def held(s, t, g, p, beta2=0.999, rho_threshold=5.0):
    s.b = 0.9 * s.b + g
    return 0 * g if rectifier(t, beta2, rho_threshold) is None else s.b


@pytest.mark.parametrize(
    "options",
    [{}, {"beta2": 0.95}, {"beta2": 0.99, "rho_threshold": 4.0}, {"beta2": 0.9, "rho_threshold": 12.0}, {"beta2": 0.5}],
    ids=str,
)
def test_hold_until_rectified_passes_nothing_before_while_momentum_collects(options):
    tx = gradtx.chain(gradtx.trace(0.9), gradtx.hold_until_rectified(**options))
    follows(tx, Loop(held, **options), rate=-0.1)


def test_held_updates_are_zero_even_where_they_were_not_finite():
    assert first_update(gradtx.hold_until_rectified(0.999), [math.inf, -1.0]) == [0.0, 0.0]
