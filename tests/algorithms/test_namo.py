import pytest

import gradtx
from tests.algorithms.matrices import matrices_follow, momentum_of, orthogonal, shape
from tests.references import RATE, named


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
