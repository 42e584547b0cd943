import math

import adam_atan2_pytorch
import adamp as naver
import pytest
import torch
from adam_atan2_pytorch import adam_atan2_with_orthog_grad, adam_atan2_with_wasserstein_reg

import gradtx
from tests import references as ref
from tests.references import BETA, DECAY, PUBLISHED, RATE


def adam(
    s, t, g, p, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, amsgrad=False, decoupled_weight_decay=False,
    correct_bias=True,
):  # fmt: skip
    if not decoupled_weight_decay:
        g = g + weight_decay * p
    m, v = ref.adam_moments(s, t, g, betas)
    if amsgrad:
        s.top = torch.maximum(s.top + 0 * s.v, s.v)
        v = s.top / (1 - betas[1] ** t)
    if not correct_bias:
        m, v = s.m, s.top if amsgrad else s.v
    step = m / (v.sqrt() + eps)
    return p - lr * (step + weight_decay * p if decoupled_weight_decay else step)


def adamw(s, t, g, p, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, amsgrad=False, correct_bias=True):
    return adam(s, t, g, p, lr, betas, eps, weight_decay, amsgrad, True, correct_bias)


def adamp(s, t, g, p, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, delta=0.1, wd_ratio=0.1, nesterov=False):
    b1, b2 = betas
    ref.adam_moments(s, t, g, betas)
    denominator = s.v.sqrt() / math.sqrt(1 - b2**t) + eps
    direction = (b1 * s.m + (1 - b1) * g if nesterov else s.m) / denominator
    direction, r, view = ref.project(p, g, direction, delta, wd_ratio, eps)
    s.seen.add((s.name, view))
    return p * (1 - lr * weight_decay * r) - lr / (1 - b1**t) * direction


def sgdp(
    s, t, g, p, lr, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False, eps=1e-8, delta=0.1, wd_ratio=0.1
):
    s.b = momentum * s.b + (1 - dampening) * g
    direction, r, view = ref.project(p, g, g + momentum * s.b if nesterov else s.b, delta, wd_ratio, eps)
    s.seen.add((s.name, view))
    return p * (1 - lr * weight_decay * r / (1 - momentum)) - lr * direction


def adam_atan2(
    s, t, g, p, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0, regen_reg_rate=0.0, decoupled_wd=False,
    cautious_wd=False, cautious_factor=1.0, a=1.27, b=1.0, wasserstein_reg=False, orthog_grad=False,
    orig_grad_ema_beta=0.9, clip_to_grok=False, clip_to_grok_max_norm=2.0,
):  # fmt: skip
    if t == 1:
        s.initial, s.initial_lr = p, lr if decoupled_wd else 1.0
    wd, regen = weight_decay / s.initial_lr, regen_reg_rate / s.initial_lr
    target = ref.placed_by_rank(s.initial, p) if wasserstein_reg else s.initial
    x = p + lr * regen * (target - p)
    if orthog_grad:
        u = s.e / max(s.e.norm().item(), 1e-12) if t > 1 else 0 * g
        s.e = orig_grad_ema_beta * s.e + (1 - orig_grad_ema_beta) * g
        g = g - (g * u).sum() * u
    m, v = ref.adam_moments(s, t, g, betas)
    u = torch.atan2(m, b * v.sqrt())
    if cautious_factor < 1:
        u = u * ref.caution_weights(u, g, cautious_factor)
    s.seen.update((u * x > 0).flatten().tolist())
    x = torch.where(u * x > 0, x * (1 - lr * wd), x) if cautious_wd else x * (1 - lr * wd)
    x = x - lr * a * u
    if clip_to_grok and p.ndim >= 2:
        c, h = (clip_to_grok_max_norm + 1) / 2, (clip_to_grok_max_norm - 1) / 2
        x = x / (h * torch.tanh((x.norm(dim=-1, keepdim=True) - c) / h) + c).clamp(min=1e-5)
    return x


def adopt(
    s, t, g, p, lr=1e-3, betas=(0.9, 0.9999), eps=1e-6, weight_decay=0.0, decoupled_weight_decay=False,
    clip_exponent=0.25,
):  # fmt: skip
    b1, b2 = betas
    if not decoupled_weight_decay:
        g = g + weight_decay * p
    if t == 1:
        s.v = g**2
        return p
    n = g / s.v.sqrt().clamp(min=eps)
    if clip_exponent is not None:
        n = n.clamp(-((t - 1) ** clip_exponent), (t - 1) ** clip_exponent)
    s.m = b1 * s.m + (1 - b1) * n
    s.v = b2 * s.v + (1 - b2) * g**2
    return (p * (1 - lr * weight_decay) if decoupled_weight_decay else p) - lr * s.m


def adopt_atan2(
    s, t, g, p, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0, regen_reg_rate=0.0, decoupled_wd=True,
    cautious_factor=1.0, a=1.27, b=1.0,
):  # fmt: skip
    b1, b2 = betas
    if t == 1:
        s.initial, s.initial_lr = p, lr if decoupled_wd else 1.0
    x = p + lr * regen_reg_rate / s.initial_lr * (s.initial - p)
    x = x * (1 - lr * weight_decay / s.initial_lr)
    if t == 1:
        s.v = g**2
        return x
    w = ref.caution_weights(s.m + 0 * g, g, cautious_factor) if cautious_factor < 1 else 1.0
    s.m = b1 * s.m + (1 - b1) * torch.atan2(g, b * s.v.sqrt())
    s.v = b2 * s.v + (1 - b2) * g**2
    return x - lr * a * w * s.m


OPTIONS = [
    (gradtx.adam, adam, {}),
    (gradtx.adam, adam, {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.2}),
    (gradtx.adam, adam, {"lr": 0.02, "betas": (0.8, 0.7), "weight_decay": 0.2, "amsgrad": True}),
    (gradtx.adam, adam, {"lr": RATE, "betas": (BETA, BETA), "weight_decay": DECAY, "eps": 0.01}),
    (gradtx.adamw, adamw, {}),
    (gradtx.adamw, adamw, {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.2}),
    (gradtx.adamw, adamw, {"lr": 0.02, "betas": (0.8, 0.7), "amsgrad": True}),
    (gradtx.adamw, adamw, {"lr": RATE, "betas": (BETA, 0.9), "weight_decay": DECAY}),
    (gradtx.sgdp, sgdp, {"lr": 0.1}),
    (gradtx.sgdp, sgdp, {"lr": 0.1, "momentum": 0.8, "dampening": 0.3, "weight_decay": 0.1}),
    (gradtx.sgdp, sgdp, {"lr": 0.1, "momentum": 0.8, "dampening": 0.3, "weight_decay": 0.1, "nesterov": True}),
    (gradtx.sgdp, sgdp, {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.2, "wd_ratio": 0.6, "delta": 0.6, "eps": 0.1}),
    (gradtx.sgdp, sgdp, {"lr": RATE, "momentum": BETA, "weight_decay": DECAY}),
    (gradtx.adamp, adamp, {}),
    (gradtx.adamp, adamp, {"lr": 0.02, "betas": (0.8, 0.95), "weight_decay": 0.3}),
    (gradtx.adamp, adamp, {"lr": 0.02, "betas": (0.8, 0.95), "weight_decay": 0.3, "nesterov": True, "wd_ratio": 0.6}),
    (gradtx.adamp, adamp, {"lr": 0.02, "weight_decay": 0.3, "delta": 0.6, "eps": 0.1}),
    (gradtx.adamp, adamp, {"lr": RATE, "betas": (BETA, BETA), "weight_decay": DECAY}),
    (gradtx.adam_atan2, adam_atan2, {}),
    (gradtx.adam_atan2, adam_atan2, {"lr": 0.02, "betas": (0.8, 0.95), "a": 0.7, "b": 3.0, "weight_decay": 0.3}),
    (gradtx.adam_atan2, adam_atan2, {"lr": 0.02, "weight_decay": 0.004, "decoupled_wd": True}),
    (gradtx.adam_atan2, adam_atan2, {"lr": 0.02, "weight_decay": 0.3, "cautious_wd": True, "cautious_factor": 0.3}),
    (gradtx.adam_atan2, adam_atan2, {"lr": 0.02, "weight_decay": 0.3, "cautious_wd": True, "cautious_factor": 0.0}),
    (gradtx.adam_atan2, adam_atan2, {"lr": 0.02, "regen_reg_rate": 2.0, "cautious_factor": 0.3}),
    (gradtx.adam_atan2, adam_atan2, {"lr": 0.02, "regen_reg_rate": 0.1, "decoupled_wd": True, "orthog_grad": True}),
    (gradtx.adam_atan2, adam_atan2, {"lr": 0.1, "regen_reg_rate": 2.0, "wasserstein_reg": True}),
    (gradtx.adam_atan2, adam_atan2, {"lr": 0.02, "orthog_grad": True, "orig_grad_ema_beta": 0.6, "weight_decay": 0.1}),
    (gradtx.adam_atan2, adam_atan2, {"lr": 0.02, "orthog_grad": True, "cautious_factor": 0.3}),
    (gradtx.adam_atan2, adam_atan2, {"lr": 0.02, "clip_to_grok": True, "weight_decay": 0.3}),
    (gradtx.adam_atan2, adam_atan2, {"lr": 0.02, "clip_to_grok": True, "clip_to_grok_max_norm": 1.2}),
    (
        gradtx.adam_atan2,
        adam_atan2,
        {"lr": RATE, "betas": (BETA, BETA), "weight_decay": DECAY, "decoupled_wd": True, "cautious_wd": True},
    ),
    (
        gradtx.adam_atan2,
        adam_atan2,
        {"lr": RATE, "regen_reg_rate": DECAY, "decoupled_wd": True, "wasserstein_reg": True, "orthog_grad": True},
    ),
    (gradtx.adopt, adopt, {}),
    (gradtx.adopt, adopt, {"lr": 0.02, "betas": (0.8, 0.9), "eps": 0.05, "weight_decay": 0.3}),
    (gradtx.adopt, adopt, {"lr": 0.02, "betas": (0.8, 0.9), "weight_decay": 0.3, "decoupled_weight_decay": True}),
    (gradtx.adopt, adopt, {"lr": 0.02, "betas": (0.8, 0.9), "clip_exponent": None}),
    (gradtx.adopt, adopt, {"lr": RATE, "betas": (BETA, BETA), "weight_decay": DECAY, "clip_exponent": 0.1}),
    (gradtx.adopt_atan2, adopt_atan2, {}),
    (gradtx.adopt_atan2, adopt_atan2, {"lr": 0.02, "betas": (0.8, 0.9), "a": 0.7, "b": 3.0, "weight_decay": 0.01}),
    (gradtx.adopt_atan2, adopt_atan2, {"lr": 0.02, "weight_decay": 0.3, "decoupled_wd": False}),
    (gradtx.adopt_atan2, adopt_atan2, {"lr": 0.02, "regen_reg_rate": 0.1, "cautious_factor": 0.3}),
    (gradtx.adopt_atan2, adopt_atan2, {"lr": 0.02, "cautious_factor": 0.0}),
    (gradtx.adopt_atan2, adopt_atan2, {"lr": RATE, "betas": (BETA, BETA), "weight_decay": DECAY}),
]


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=ref.named)
def test_the_weights_follow_the_loop(alias, rule, options):
    ref.follows(alias(**options), ref.WeightsLoop(rule, **options))


def test_decoupled_adam_is_adamw():
    options = {"lr": 0.02, "weight_decay": 0.2, "amsgrad": True}
    ref.follows(gradtx.adam(**options, decoupled_weight_decay=True), gradtx.adamw(**options), tolerance=0.0)


@pytest.mark.parametrize(("alias", "rule"), [(gradtx.adamp, adamp), (gradtx.sgdp, sgdp)], ids=ref.named)
def test_both_views_of_the_projection_fire_on_their_leaves_and_on_no_other(alias, rule):
    reference = ref.WeightsLoop(rule, lr=0.02, weight_decay=0.3)
    ref.run(reference)
    views = {name: {view for leaf, view in reference.seen if leaf == name} for name, _ in reference.seen}
    assert (views["rows"], views["whole"], views["bias"], views["scalar"]) == ({"rows"}, {"layer"}, {"none"}, {"none"})
    assert "none" in views["matrix"]
    assert "none" in views["kernel"]


def test_cautious_decay_spares_some_entries_and_takes_others():
    reference = ref.WeightsLoop(adam_atan2, lr=0.02, weight_decay=0.3, cautious_wd=True)
    ref.run(reference)
    assert reference.seen == {True, False}


NESTEROV = {"momentum": 0.8, "nesterov": True}  # without it the package projects its momentum buffer


@pytest.mark.slow
@pytest.mark.parametrize(
    ("alias", "optimizer", "options"),
    [
        (gradtx.adamp, naver.AdamP, {}),
        (gradtx.adamp, naver.AdamP, {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.3}),
        (gradtx.adamp, naver.AdamP, {"lr": 0.02, "weight_decay": 0.3, "nesterov": True, "delta": 0.6, "wd_ratio": 0.4}),
        (gradtx.sgdp, naver.SGDP, {"lr": 0.1, **NESTEROV}),
        (gradtx.sgdp, naver.SGDP, {"lr": 0.1, **NESTEROV, "dampening": 0.3, "weight_decay": 0.1}),
        (gradtx.sgdp, naver.SGDP, {"lr": 0.1, **NESTEROV, "weight_decay": 0.1, "delta": 0.6, "wd_ratio": 0.4}),
    ],
    ids=ref.named,
)
def test_the_weights_are_those_of_the_authors_adamp(alias, optimizer, options):
    ref.weights_follow(alias(**options), ref.Published(optimizer, **options), tolerance=PUBLISHED)


# Powers of two: the package's mask for cautious decay is float32, and 1 - lr * weight_decay is exact in it.
CAUTIOUS = {"lr": 2**-5, "weight_decay": 2**-2, "cautious_wd": True}
PLAIN_ATAN2 = [
    {},
    {"lr": 0.02, "betas": (0.8, 0.95), "a": 0.7, "b": 3.0, "weight_decay": 0.3},
    {"lr": 0.02, "weight_decay": 0.004, "decoupled_wd": True, "cautious_factor": 0.3},
    {**CAUTIOUS, "cautious_factor": 0.0},
    {"lr": 0.02, "regen_reg_rate": 2.0},
    {"lr": 0.02, "regen_reg_rate": 0.1, "decoupled_wd": True},
]


@pytest.mark.slow
@pytest.mark.parametrize("options", PLAIN_ATAN2, ids=str)
def test_the_weights_are_those_of_adam_atan2_pytorch(options):
    published = ref.Published(adam_atan2_pytorch.AdamAtan2, **options)
    ref.weights_follow(gradtx.adam_atan2(**options), published, tolerance=PUBLISHED)


@pytest.mark.slow
@pytest.mark.parametrize("options", [*PLAIN_ATAN2, {"lr": 0.02, "clip_to_grok_max_norm": 1.2}], ids=str)
def test_with_clip_to_grok_they_are_those_of_its_class(options):
    published = ref.Published(adam_atan2_pytorch.AdamAtan2ClipGrok, **options)
    ref.weights_follow(gradtx.adam_atan2(**options, clip_to_grok=True), published, tolerance=PUBLISHED)


@pytest.mark.slow
@pytest.mark.parametrize("options", [*PLAIN_ATAN2, {"lr": 0.02, "orig_grad_ema_beta": 0.6}], ids=str)
def test_with_orthogonal_gradients_they_are_those_of_its_class(options):
    published = ref.Published(adam_atan2_with_orthog_grad.AdamAtan2, **options)
    tx = gradtx.adam_atan2(**options, orthog_grad=True)
    ref.weights_follow(tx, published, without=("scalar",), tolerance=PUBLISHED)  # the package fails on 0-d leaves


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"lr": 0.1, "regen_reg_rate": 0.2, "decoupled_wd": True, "betas": (0.8, 0.95), "a": 0.7, "b": 3.0},
        {"lr": 0.02, "weight_decay": 0.3},
        {"lr": 0.02, "weight_decay": 0.01, "decoupled_wd": True},
    ],
    ids=str,
)
def test_with_wasserstein_regularization_they_are_those_of_its_class(options):
    published = ref.Published(adam_atan2_with_wasserstein_reg.AdamAtan2, **options)
    ref.weights_follow(gradtx.adam_atan2(**options, wasserstein_reg=True), published, tolerance=PUBLISHED)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lr": 0.02, "betas": (0.8, 0.95), "a": 0.7, "b": 3.0, "weight_decay": 0.01},
        {"lr": 0.02, "weight_decay": 0.3, "decoupled_wd": False, "cautious_factor": 0.3},
        {"lr": 0.02, "regen_reg_rate": 0.1, "cautious_factor": 0.0},
    ],
    ids=str,
)
def test_the_weights_are_those_of_the_adopt_of_adam_atan2_pytorch(options):
    published = ref.Published(adam_atan2_pytorch.AdoptAtan2, **options)
    ref.weights_follow(gradtx.adopt_atan2(**options), published, tolerance=PUBLISHED)


@pytest.mark.parametrize("alias", [gradtx.adam_atan2, gradtx.adopt_atan2], ids=ref.named)
def test_decay_and_regeneration_together_are_an_error_that_names_the_optimizer(alias):
    with pytest.raises(ValueError, match=f"^{alias.__name__}: weight_decay and regen_reg_rate are mutually exclusive"):
        alias(weight_decay=0.1, regen_reg_rate=0.1)
