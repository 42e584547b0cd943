import math

import adamp as naver
import pytest

import gradtx
from tests import references as ref
from tests.references import BETA, DECAY, PUBLISHED, RATE


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


OPTIONS = [
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
]


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=ref.named)
def test_the_weights_follow_the_loop(alias, rule, options):
    ref.follows(alias(**options), ref.WeightsLoop(rule, **options))


@pytest.mark.parametrize(("alias", "rule"), [(gradtx.adamp, adamp), (gradtx.sgdp, sgdp)], ids=ref.named)
def test_both_views_of_the_projection_fire_on_their_leaves_and_on_no_other(alias, rule):
    reference = ref.WeightsLoop(rule, lr=0.02, weight_decay=0.3)
    ref.run(reference)
    views = {name: {view for leaf, view in reference.seen if leaf == name} for name, _ in reference.seen}
    assert (views["rows"], views["whole"], views["bias"], views["scalar"]) == ({"rows"}, {"layer"}, {"none"}, {"none"})
    assert "none" in views["matrix"]
    assert "none" in views["kernel"]


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
