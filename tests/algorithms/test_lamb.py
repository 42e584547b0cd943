import pytest

import gradtx
from tests import references as ref
from tests.references import BETA, DECAY, LONG, RATE


def lamb(
    s, t, g, p, lr=1e-3, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.0, bias_correction=True, grad_averaging=True,
    max_grad_norm=None, trust_clip=False, always_adapt=True,
):  # fmt: skip
    b1, b2 = betas
    if max_grad_norm is not None:
        s[""].seen.add("clipped" if ref.global_norm(g) > max_grad_norm else "short")
        shrink = max(1.0, ref.global_norm(g) / max_grad_norm)
        g = {name: x / shrink for name, x in g.items()}
    new = {}
    for name, slots in s.items():
        if not name:
            continue
        slots.m = b1 * slots.m + ((1 - b1) * g[name] if grad_averaging else g[name])
        slots.v = b2 * slots.v + (1 - b2) * g[name] ** 2
        m, v = (slots.m / (1 - b1**t), slots.v / (1 - b2**t)) if bias_correction else (slots.m, slots.v)
        r = m / (v.sqrt() + eps) + weight_decay * p[name]
        ratio = (p[name].norm() / r.norm()).item()
        if trust_clip:
            slots.seen.add("trusted" if ratio > 1 else "less")
            ratio = min(ratio, 1.0)
        if weight_decay == 0 and not always_adapt:
            ratio = 1.0
        new[name] = p[name] - lr * ratio * r
    return new


OPTIONS = [
    (gradtx.lamb, lamb, {}),
    (gradtx.lamb, lamb, {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.3}),
    (gradtx.lamb, lamb, {"lr": 0.02, "bias_correction": False, "weight_decay": 0.1}),
    (gradtx.lamb, lamb, {"lr": 0.02, "betas": (0.7, 0.9), "grad_averaging": False, "max_grad_norm": 0.3, "eps": 0.1}),
    (gradtx.lamb, lamb, {"lr": 0.02, "trust_clip": True, "weight_decay": 0.2}),
    (gradtx.lamb, lamb, {"lr": 0.02, "always_adapt": False}),
    (gradtx.lamb, lamb, {"lr": 0.02, "always_adapt": False, "weight_decay": 0.2}),
    (gradtx.lamb, lamb, {"lr": RATE, "betas": (BETA, BETA), "weight_decay": DECAY, "eps": 0.1, "max_grad_norm": BETA}),
]


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=ref.named)
def test_the_weights_follow_the_loop(alias, rule, options):
    ref.follows(alias(**options), ref.TreeLoop(rule, **options))


@pytest.mark.parametrize(
    ("rule", "options", "seen"),
    [
        (lamb, {"lr": 0.02, "max_grad_norm": 0.3}, {"clipped", "short"}),
        (lamb, {"lr": 0.02, "trust_clip": True, "weight_decay": 0.2}, {"trusted", "less"}),
    ],
    ids=ref.named,
)
def test_the_options_above_take_both_branches(rule, options, seen):
    loop = ref.TreeLoop(rule, **options)
    ref.run(loop, steps=LONG)
    assert loop.seen == seen
