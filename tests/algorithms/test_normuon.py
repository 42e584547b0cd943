import math

import pytest

import gradtx
from tests.algorithms.matrices import matrices_follow, momentum_of, orthogonal, shape
from tests.references import BETA, RATE, named


def normuon(
    s, t, g, p, lr=1e-2, weight_decay=0.01, momentum=0.95, beta2=0.95, nesterov=True, eps=1e-10, axis="rows",
    rms=None, ns_coefficients="simple", ns_steps=None, adjust_lr_fn="original", ns_dtype=None, fallback=None,
):  # fmt: skip
    o = orthogonal(momentum_of(s, g, momentum, nesterov), ns_coefficients, ns_steps)
    rows, cols = o.shape
    dim = 0 if axis == "long" and cols > rows else 1
    s.seen.add(dim)
    s.q = beta2 * s.q + (1 - beta2) * (o**2).mean(dim)
    n = o / (s.q.sqrt() + eps).unsqueeze(dim)
    if rms is None:
        n = n * o.norm() / max(n.norm().item(), eps) * shape(p, adjust_lr_fn)
    else:
        n = n * rms * math.sqrt(rows * cols) / max(n.norm().item(), eps)
    return p * (1 - lr * weight_decay) - lr * n


FASTER = gradtx.Schedule(lambda step: 0.02 + 0.001 * step)
CASES = [
    (gradtx.normuon, normuon, {}),
    (gradtx.normuon, normuon, {"lr": RATE, "axis": "long", "beta2": 0.7, "eps": 1e-3, "adjust_lr_fn": "spectral"}),
    (gradtx.normuon, normuon, {"rms": 0.2, "nesterov": False, "ns_coefficients": "cans", "weight_decay": 0.3}),
    (gradtx.normuon, normuon, {"momentum": BETA, "rms": FASTER, "ns_coefficients": "quintic", "ns_steps": 7}),
]  # fmt: skip


@pytest.mark.parametrize(("alias", "rule", "options"), CASES, ids=named)
def test_the_matrices_follow_the_loop(alias, rule, options):
    matrices_follow(alias, rule, options)
