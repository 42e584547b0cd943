import pytest

import gradtx
from tests import references as ref
from tests.algorithms.loops import COMMON, decayed, hat, stepped


def diffgrad(s, t, g, p, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, decoupled_weight_decay=False):
    g = decayed(g, p, weight_decay, decoupled_weight_decay)
    ref.adam_moments(s, t, g, betas)
    return stepped(p, lr, ref.friction(s, g) * hat(t, s.m, s.v, betas, eps), weight_decay, decoupled_weight_decay)


OPTIONS = [(gradtx.diffgrad, diffgrad, options) for options in COMMON]


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=ref.named)
def test_the_weights_follow_the_loop(alias, rule, options):
    ref.follows(alias(**options), ref.WeightsLoop(rule, **options))
