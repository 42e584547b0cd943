import pytest
import torch

import gradtx
from tests import references as ref
from tests.references import BETA, DECAY, RATE, finite_without_gradient, first_update


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
    (gradtx.adai, adai, {"lr": 0.1}),
    (gradtx.adai, adai, {"lr": 0.1, "betas": (0.6, 0.8), "eps": 0.3, "weight_decay": 0.2}),
    (gradtx.adai, adai, {"lr": 0.1, "betas": (0.6, 0.8), "weight_decay": 0.2, "decoupled_weight_decay": True}),
    (gradtx.adai, adai, {"lr": 0.1, "betas": (0.3, 0.8), "dampening": 0.4}),
    (gradtx.adai, adai, {"lr": 0.1, "betas": (0.3, 0.8), "dampening": 0.0, "eps": 0.05}),
    (gradtx.adai, adai, {"lr": RATE, "betas": (RATE, BETA), "eps": RATE, "dampening": BETA, "weight_decay": DECAY}),
]


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=ref.named)
def test_the_weights_follow_the_loop(alias, rule, options):
    ref.follows(alias(**options), ref.TreeLoop(rule, **options))


@pytest.mark.parametrize(
    ("rule", "options"), [(rule, options) for _, rule, options in OPTIONS if options], ids=ref.named
)
def test_the_options_above_take_both_branches(rule, options):
    loop = ref.TreeLoop(rule, **options)
    ref.run(loop)
    assert loop.seen == {True, False}


# Errors.


def test_adai_asks_for_a_learning_rate():
    with pytest.raises(TypeError, match=r"^adai: missing argument 'lr'$"):
        gradtx.adai()


def test_leaves_without_a_gradient_and_empty_ones_do_not_enter_the_mean():
    params = {"a": torch.zeros(2), "b": torch.zeros(3), "c": torch.zeros(0)}
    grads = {"a": torch.tensor([1.0, 3.0]), "b": None, "c": torch.zeros(0)}
    tx = gradtx.scale_by_adai(betas=(0.1, 0.0))
    _, state = tx.update(grads, tx.init(params))
    # the mean is 5
    torch.testing.assert_close(state["scale_by_adai"]["beta1_prod"]["a"], torch.tensor([0.98, 0.82]))


def test_all_gradients_zero_give_zero():
    assert first_update(gradtx.scale_by_adai(), [0.0, 0.0], steps=3) == [0.0, 0.0]
    assert finite_without_gradient(gradtx.scale_by_adai(dampening=0.5))
