import math

import pytest
import torch

import gradtx
from tests.algorithms.matrices import matrices_follow, momentum_of, orthogonal, shape
from tests.references import BETA, RATE, named


def contra_muon(
    s, t, g, p, lr=0.0375, weight_decay=0.0, momentum=0.95, nesterov=True, contra=0.4, power_steps=5,
    ns_coefficients="newton_schulz", ns_steps=None, adjust_lr_fn="original", ns_dtype=None, fallback=None,
):  # fmt: skip
    u = momentum_of(s, g, momentum, nesterov)
    o = orthogonal(u, ns_coefficients, ns_steps)
    v = torch.ones(u.shape[1], dtype=u.dtype) / math.sqrt(u.shape[1])
    for _ in range(power_steps):
        w = u @ v / (u @ v).norm()
        v = u.T @ w / (u.T @ w).norm()
    d = o - contra / 2 * u / max((u @ v).norm().item(), 1e-10)
    d = d * o.norm() / max(d.norm().item(), 1e-10)
    return p * (1 - lr * weight_decay) - lr * shape(p, adjust_lr_fn) * d


CASES = [    (gradtx.contra_muon, contra_muon, {}),
    (gradtx.contra_muon, contra_muon, {"lr": RATE, "contra": BETA, "power_steps": 2, "ns_coefficients": "simple"}),
    (gradtx.contra_muon, contra_muon, {"contra": -0.7, "nesterov": False, "weight_decay": 0.2, "momentum": 0.6}),
]  # fmt: skip


@pytest.mark.parametrize(("alias", "rule", "options"), CASES, ids=named)
def test_the_matrices_follow_the_loop(alias, rule, options):
    matrices_follow(alias, rule, options)
