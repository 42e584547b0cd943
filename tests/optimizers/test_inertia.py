import pytest

import gradtx
from tests import references as ref
from tests.references import BETA, DECAY, RATE


def lion(s, t, g, p, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0):
    b1, b2 = betas
    d = (b1 * s.m + (1 - b1) * g).sign()
    s.seen.update((d != g.sign()).flatten().tolist())
    s.m = b2 * s.m + (1 - b2) * g
    return p * (1 - lr * weight_decay) - lr * d


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


def adai(s, t, g, p, lr, betas=(0.1, 0.99), eps=1e-3, weight_decay=0.0, decoupled_weight_decay=False, dampening=1.0):
    b0, b2 = betas
    if not decoupled_weight_decay:
        g = {name: x + weight_decay * p[name] for name, x in g.items()}
    for name, x in g.items():
        s[name].v = b2 * s[name].v + (1 - b2) * x**2
    hats = {name: s[name].v / (1 - b2**t) for name in g}
    mean = sum(v.sum().item() for v in hats.values()) / sum(v.numel() for v in hats.values())
    new = {}
    for name in g:
        slots = s[name]
        b1 = 1 - b0 * (hats[name] / mean) ** (1 / (3 - 2 * dampening))
        s[""].seen.update((b1 < 0).flatten().tolist(), (b1 > 1 - eps).flatten().tolist())
        b1 = b1.clamp(0, 1 - eps)
        slots.product = b1 * (1.0 if t == 1 else slots.product)
        slots.m = b1 * slots.m + (1 - b1) ** dampening * g[name]
        direction = b0 ** (1 - dampening) * slots.m / (1 - slots.product)
        kept = p[name] * (1 - lr * weight_decay) if decoupled_weight_decay else p[name]
        new[name] = kept - lr * direction
    return new


OPTIONS = [
    (gradtx.lion, lion, {}),
    (gradtx.lion, lion, {"lr": 0.02, "betas": (0.6, 0.9), "weight_decay": 0.3}),
    (gradtx.lion, lion, {"lr": RATE, "betas": (BETA, 0.9), "weight_decay": DECAY}),
    (gradtx.adan, adan, {}),
    (gradtx.adan, adan, {"lr": 0.02, "betas": (0.9, 0.7, 0.8), "eps": 0.1, "weight_decay": 0.3}),
    (gradtx.adan, adan, {"lr": 0.02, "betas": (0.9, 0.7, 0.8), "weight_decay": 0.3, "no_prox": True}),
    (gradtx.adan, adan, {"lr": 0.02, "max_grad_norm": 0.5, "weight_decay": 0.3, "eps": 0.1}),
    (gradtx.adan, adan, {"lr": RATE, "betas": (BETA, BETA, 0.9), "weight_decay": DECAY, "max_grad_norm": BETA}),
    (gradtx.adai, adai, {"lr": 0.1}),
    (gradtx.adai, adai, {"lr": 0.1, "betas": (0.6, 0.8), "eps": 0.3, "weight_decay": 0.2}),
    (gradtx.adai, adai, {"lr": 0.1, "betas": (0.6, 0.8), "weight_decay": 0.2, "decoupled_weight_decay": True}),
    (gradtx.adai, adai, {"lr": 0.1, "betas": (0.3, 0.8), "dampening": 0.4}),
    (gradtx.adai, adai, {"lr": 0.1, "betas": (0.3, 0.8), "dampening": 0.0, "eps": 0.05}),
    (gradtx.adai, adai, {"lr": RATE, "betas": (RATE, BETA), "eps": RATE, "dampening": BETA, "weight_decay": DECAY}),
]


def reference(rule, options):
    return (ref.WeightsLoop if rule is lion else ref.TreeLoop)(rule, **options)


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=ref.named)
def test_the_weights_follow_the_loop(alias, rule, options):
    ref.follows(alias(**options), reference(rule, options))


@pytest.mark.parametrize(("rule", "options"), [(rule, options) for _, rule, options in OPTIONS[4:]], ids=ref.named)
def test_the_options_above_take_both_branches(rule, options):
    if rule is adan and "max_grad_norm" not in options:
        return
    loop = reference(rule, options)
    ref.run(loop)
    assert loop.seen == {True, False}


# Errors.


def test_adai_asks_for_a_learning_rate():
    with pytest.raises(TypeError, match=r"^adai: missing argument 'lr'$"):
        gradtx.adai()
