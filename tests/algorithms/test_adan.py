import pytest

import gradtx
from tests import references as ref
from tests.references import BETA, DECAY, RATE


def adan(s, t, g, p, lr=1e-3, betas=(0.98, 0.92, 0.99), eps=1e-8, weight_decay=0.0, max_grad_norm=0.0, no_prox=False):
    b1, b2, b3 = betas
    if max_grad_norm > 0:
        shrink = min(1.0, max_grad_norm / (ref.global_norm(g) + eps))
        s[""].seen.add(shrink < 1)
        g = {name: x * shrink for name, x in g.items()}
    new = {}
    for name in g:
        slots = s[name]
        change = g[name] - slots.previous if t > 1 else 0 * g[name]
        slots.m = b1 * slots.m + (1 - b1) * g[name]
        slots.d = b2 * slots.d + (1 - b2) * change
        slots.n = b3 * slots.n + (1 - b3) * (g[name] + b2 * change) ** 2
        slots.previous = g[name]
        u = slots.m / (1 - b1**t) + b2 * slots.d / (1 - b2**t)
        u = u / ((slots.n / (1 - b3**t)).sqrt() + eps)
        if no_prox:
            new[name] = p[name] * (1 - lr * weight_decay) - lr * u
        else:
            new[name] = (p[name] - lr * u) / (1 + lr * weight_decay)
    return new


OPTIONS = [
    (gradtx.adan, adan, {}),
    (gradtx.adan, adan, {"lr": 0.02, "betas": (0.9, 0.7, 0.8), "eps": 0.1, "weight_decay": 0.3}),
    (gradtx.adan, adan, {"lr": 0.02, "betas": (0.9, 0.7, 0.8), "weight_decay": 0.3, "no_prox": True}),
    (gradtx.adan, adan, {"lr": 0.02, "max_grad_norm": 0.5, "weight_decay": 0.3, "eps": 0.1}),
    (gradtx.adan, adan, {"lr": RATE, "betas": (BETA, BETA, 0.9), "weight_decay": DECAY, "max_grad_norm": BETA}),
]


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=ref.named)
def test_the_weights_follow_the_loop(alias, rule, options):
    ref.follows(alias(**options), ref.TreeLoop(rule, **options))


@pytest.mark.parametrize(
    ("rule", "options"), [(rule, options) for _, rule, options in OPTIONS if options], ids=ref.named
)
def test_the_options_above_take_both_branches(rule, options):
    if "max_grad_norm" not in options:
        return
    loop = ref.TreeLoop(rule, **options)
    ref.run(loop)
    assert loop.seen == {True, False}
