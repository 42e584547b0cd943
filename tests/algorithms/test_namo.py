import math

import pytest
import torch

import gradtx
from tests.algorithms.matrices import matrices_follow, momentum_of, orthogonal, shape
from tests.references import BETA, DECAY, RATE, named


def namo(
    s, t, g, p, lr=3e-4, weight_decay=0.01, betas=(0.95, 0.95), nesterov=False, eps=1e-8, correct_bias=False,
    ns_coefficients="quintic", ns_steps=None, adjust_lr_fn="max_dim", ns_dtype=None, fallback=None,
):  # fmt: skip
    u = momentum_of(s, g, betas[0], nesterov)
    s.v = betas[1] * s.v + (1 - betas[1]) * (g**2).sum()
    size, v = u.norm(), s.v
    if correct_bias:
        size, v = size / (1 - betas[0] ** t), v / (1 - betas[1] ** t)
    d = orthogonal(u, ns_coefficients, ns_steps) * size / (v.sqrt() + eps)
    return p * (1 - lr * weight_decay) - lr * shape(p, adjust_lr_fn) * d


CASES = [    (gradtx.namo, namo, {"lr": 0.01}),
    (gradtx.namo, namo, {"lr": RATE, "nesterov": True, "betas": (0.7, 0.9), "correct_bias": True, "eps": 1e-2}),
    (gradtx.namo, namo, {"lr": 0.02, "ns_coefficients": "deepseekv4", "adjust_lr_fn": "original", "weight_decay": 0.2}),
]  # fmt: skip


@pytest.mark.parametrize(("alias", "rule", "options"), CASES, ids=named)
def test_the_matrices_follow_the_loop(alias, rule, options):
    matrices_follow(alias, rule, options)


def namo_d(
    s, t, g, p, lr=0.01, weight_decay=0.1, betas=(0.95, 0.99), nesterov=True, clamp=0.75, eps=1e-8, factor=0.2,
    ns_coefficients="simple", ns_steps=None, fallback=None,
):  # fmt: skip
    b1, b2 = betas
    u = momentum_of(s, g, b1, nesterov)
    s.V = b2 * s.V + (1 - b2) * (g**2).sum(0)
    sizes = u.norm(dim=0) / (s.V.sqrt() + eps)
    if 0 < clamp <= 1:
        mean = sizes.mean().item()
        s.seen |= {"low"} if sizes.min() < clamp * mean else set()
        s.seen |= {"high"} if sizes.max() > mean / clamp else set()
        sizes = sizes.clamp(clamp * mean, mean / clamp)
    direction = orthogonal(u, ns_coefficients, ns_steps)
    new = []
    for j, size in enumerate(sizes.tolist()):
        rate = lr * math.sqrt(1 - b2**t) / (1 - b1**t) * size
        scale = rate * factor * math.sqrt(max(g.shape))
        s.seen |= ({"full"} if scale > 1 else set()) | ({"fast"} if rate > 1 else set())
        new.append(p[:, j] * max(0.0, 1 - weight_decay * min(rate, 1.0)) - min(scale, 1.0) * direction[:, j])
    return torch.stack(new, dim=1)


OF_COLUMNS = [
    ({"lr": 0.01}, {"low", "high"}),
    ({"lr": RATE, "nesterov": False, "betas": (0.7, 0.9), "weight_decay": DECAY, "clamp": 0.0, "eps": 1e-2}, set()),
    ({"lr": 3.0, "clamp": BETA, "factor": 1.0, "ns_coefficients": "quintic", "weight_decay": 2.0}, {"full", "low"}),
    ({"lr": 1.2, "clamp": 0.5, "weight_decay": 0.3, "factor": 0.01, "betas": (0.5, 0.9)}, {"fast"}),
    ({"lr": 0.02, "clamp": 1.0, "ns_steps": 3}, {"low", "high"}),
]


@pytest.mark.parametrize(("options", "branches"), OF_COLUMNS, ids=named)
def test_namo_d_follows_the_loop(options, branches):
    # Steps of a rate of 3 amplify rounding.
    assert branches <= matrices_follow(gradtx.namo_d, namo_d, options, tolerance=1e-9)


@pytest.mark.parametrize("clamp", [-0.1, 1.5])
def test_the_clamp_is_a_fraction(clamp):
    with pytest.raises(ValueError, match=rf"namo_d: clamp must be in \[0, 1\], got {clamp}"):
        gradtx.namo_d(clamp=clamp)
