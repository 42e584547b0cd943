import math

import pytest

import gradtx
from tests import references as ref
from tests.references import LONG, RATE


def fromage(s, t, g, p, lr=0.01, p_bound=None):
    if t == 1:
        s.start = p.norm()
    x = (p - lr * p.norm() / g.norm() * g) / math.sqrt(1 + lr**2)
    if p_bound is not None:
        s.seen.add((x.norm() > p_bound * s.start).item())
        if x.norm() > p_bound * s.start:
            x = x * (p_bound * s.start / x.norm())
    return x


OPTIONS = [
    (gradtx.fromage, fromage, {}),
    (gradtx.fromage, fromage, {"lr": 0.1}),
    (gradtx.fromage, fromage, {"lr": 0.3, "p_bound": 1.0}),
    (gradtx.fromage, fromage, {"lr": RATE, "p_bound": 1.01}),
]


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=ref.named)
def test_the_weights_follow_the_loop(alias, rule, options):
    ref.follows(alias(**options), ref.WeightsLoop(rule, **options))


@pytest.mark.parametrize(
    ("rule", "options", "seen"), [(fromage, {"lr": 0.3, "p_bound": 1.0}, {True, False})], ids=ref.named
)
def test_the_options_above_take_both_branches(rule, options, seen):
    loop = ref.WeightsLoop(rule, **options)
    ref.run(loop, steps=LONG)
    assert loop.seen == seen
