"""Ano, Rose and Magma against plain float64 loops and pytorch_optimizer."""

import math

import pytest
import torch

import gradtx
from tests import references as ref
from tests.references import DECAY, PUBLISHED, RATE
from tests.rules import uniform

STEPS = 30


def ano(s, t, g, p, lr=1e-4, betas=(0.92, 0.99), eps=1e-8, weight_decay=0.0, logarithmic=False):
    b1 = 1 - 1 / math.log(max(2, t)) if logarithmic else betas[0]
    s.m = b1 * s.m + (1 - b1) * g
    s.v = (betas[1] * s.v + (1 - betas[1]) * (g**2 - s.v).sign() * g**2).clamp(min=0)
    d = g.abs() * s.m.sign() / ((s.v / (1 - betas[1] ** t)).sqrt() + eps)
    return p - lr * (d + weight_decay * p)


@pytest.mark.parametrize(
    "options",
    [{}, {"lr": RATE, "betas": (0.8, 0.7), "eps": 0.1, "weight_decay": DECAY}, {"logarithmic": True, "lr": 0.01},
     {"betas": (0.5, 0.3), "lr": 0.01}],
    ids=ref.named,
)  # fmt: skip
def test_ano_follows_the_loop(options):
    ref.weights_follow(gradtx.ano(**options), ref.WeightsLoop(ano, **options), steps=STEPS)


@pytest.mark.parametrize("logarithmic", [False, True])
def test_ano_is_that_of_pytorch_optimizer(logarithmic):
    from pytorch_optimizer import Ano

    published = ref.Published(Ano, lr=0.01, weight_decay=0.1, weight_decouple=True, logarithmic_schedule=logarithmic)
    tx = gradtx.ano(0.01, weight_decay=0.1, logarithmic=logarithmic)
    ref.weights_follow(tx, published, steps=STEPS, tolerance=PUBLISHED)


def rose(s, t, g, p, lr=1e-3, weight_decay=1e-4, centralize=True, stabilize=True):
    g = g + weight_decay * p
    if p.ndim == 0:
        return p - lr * g.sign()
    if p.ndim == 1:
        return p - lr * g / (g.max().abs() - g.min())
    rows = g.flatten(1)
    rows = rows - rows.mean(1, keepdim=True) if centralize else rows
    D = rows.max(1).values.abs() - rows.min(1).values
    if stabilize:
        M, S = D.mean(), D.std(correction=0)
        D = M + (D - M) * M / (S + M)
    return p - lr * (rows / D[:, None]).reshape(p.shape)


ROSES = [{}, {"lr": RATE, "weight_decay": DECAY}, {"centralize": False}, {"stabilize": False, "weight_decay": 0.0}]


@pytest.mark.parametrize("options", ROSES, ids=ref.named)
def test_rose_follows_the_loop(options):
    ref.weights_follow(gradtx.rose(**options), ref.WeightsLoop(rose, **options), steps=STEPS)


@pytest.mark.parametrize("centralize", [False, True])
@pytest.mark.parametrize("stabilize", [False, True])
def test_rose_is_that_of_pytorch_optimizer(centralize, stabilize):
    from pytorch_optimizer import ROSE

    options = {"lr": 0.01, "weight_decay": 0.1, "centralize": centralize, "stabilize": stabilize}
    published = ref.Published(ROSE, bf16_sr=False, **options)
    ref.weights_follow(gradtx.rose(**options), published, steps=STEPS, tolerance=PUBLISHED)


def test_equal_and_negative_entries_have_the_range_of_the_authors():
    tx = gradtx.scale_by_range(centralize=False, stabilize=False)
    assert ref.first_update(tx, [[2.0, 2.0], [-1.0, -3.0], [0.0, 0.0]]) == [[2.0, 2.0], [-0.25, -0.75], [0.0, 0.0]]
    assert ref.first_update(gradtx.scale_by_range(), [[2.0, 2.0]]) == [[0.0, 0.0]]


def coins(steps, names, seed):
    """The first uniform number of each leaf's stream at each step."""
    step, zeros = ref.Transformed(uniform(seed=seed)), {n: torch.zeros((), dtype=torch.float64) for n in names}
    return [step(zeros, zeros) for _ in range(steps)]


def magma(s, t, g, p, keep=0.5, tau=2.0, momentum=0.9, smoothing=0.9, seed=0):
    s.coins = s.coins or [tree[s.name].item() for tree in coins(STEPS, [s.name], seed)]
    s.m = momentum * s.m + (1 - momentum) * g
    s.s = 1.0 if t == 1 else s.s
    cosine = (s.m * g).sum() / max(s.m.norm().item(), 1e-8) / max(g.norm().item(), 1e-8)
    s.s = smoothing * s.s + (1 - smoothing) / (1 + math.exp(-cosine / tau))
    s.seen.add(s.coins[t - 1] < keep)
    return (s.coins[t - 1] < keep) * s.s * g


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ({}, {False, True}),
        ({"keep": 1.0, "tau": 0.3}, {True}),
        ({"keep": 0.3, "momentum": 0.5, "smoothing": 0.2, "seed": 7}, {False, True}),
        ({"keep": 0.0}, {False}),
    ],
)
def test_masks_by_alignment_follow_the_loop(options, seen):
    reference = ref.Loop(magma, **options)
    ref.follows(gradtx.mask_by_alignment(**options), reference, rate=-0.02, steps=STEPS)
    assert reference.seen == seen


def test_magma_that_keeps_all_is_that_of_pytorch_optimizer():
    from pytorch_optimizer import Magma

    def wrapped(params):
        return Magma(torch.optim.SGD(params, lr=0.01), mask_prob=1.0, moment_key=None)

    tx = gradtx.chain(gradtx.sgd(lr=0.01), gradtx.mask_by_alignment(keep=1.0))
    ref.weights_follow(tx, ref.Published(wrapped), steps=STEPS, tolerance=1e-6)  # alignment in float32 there
