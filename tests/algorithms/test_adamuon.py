import math

import pytest

import gradtx
from tests.algorithms.matrices import matrices_follow, momentum_of, orthogonal, shape
from tests.references import BETA, RATE, named


def adamuon(
    s, t, g, p, lr=0.02, weight_decay=0.01, betas=(0.95, 0.999), nesterov=True, eps=1e-8, sign=False,
    rescale="sqrt_min", correct_bias=True, ns_coefficients="simple", ns_steps=None, adjust_lr_fn="match_rms_adamw",
    ns_dtype=None, fallback=None,
):  # fmt: skip
    u = momentum_of(s, g, betas[0], nesterov)
    o = orthogonal(u.sign() if sign else u, ns_coefficients, ns_steps)
    s.v = betas[1] * s.v + (1 - betas[1]) * o**2
    d = o / ((s.v / (1 - betas[1] ** t if correct_bias else 1)).sqrt() + eps)
    if rescale == "rms":
        d = d * 0.2 * math.sqrt(d.numel()) / (d.norm() + eps)
    if rescale == "sqrt_min":
        d = d * math.sqrt(min(d.shape)) / (d.norm() + eps)
    return p * (1 - lr * weight_decay) - lr * shape(p, adjust_lr_fn) * d


CASES = [    (gradtx.adamuon, adamuon, {}),
    (gradtx.adamuon, adamuon, {"lr": RATE, "betas": (0.8, BETA), "nesterov": False, "rescale": None, "eps": 1e-3}),
    (gradtx.adamuon, adamuon, {"sign": True, "rescale": "rms", "correct_bias": False, "adjust_lr_fn": "none"}),
]  # fmt: skip


@pytest.mark.parametrize(("alias", "rule", "options"), CASES, ids=named)
def test_the_matrices_follow_the_loop(alias, rule, options):
    matrices_follow(alias, rule, options)
