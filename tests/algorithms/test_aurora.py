import pytest
import torch

import gradtx
from tests.algorithms.matrices import matrices_follow, momentum_of, orthogonal, shape
from tests.references import BETA, RATE, named


def aurora(
    s, t, g, p, lr=0.05, momentum=0.95, nesterov=True, weight_decay=0.025, balance=2, balance_power=0.5,
    ns_coefficients="newton_schulz", ns_steps=12, adjust_lr_fn="original", ns_dtype=None, fallback=None,
):  # fmt: skip
    y = momentum_of(s, g, momentum, nesterov)
    rows, cols = p.shape
    if rows == cols or balance == 0:
        d = orthogonal(y, ns_coefficients, ns_steps)
    else:
        y = y.T if rows < cols else y
        D = 1 / y.norm(dim=1).clamp(min=1e-7)
        for _ in range(balance):
            d = orthogonal(torch.diag(D) @ y, ns_coefficients, ns_steps)
            D = D * (y.shape[1] / y.shape[0] / d.square().sum(1).clamp(min=1e-14)) ** balance_power
        d = d.T if rows < cols else d
    return p * (1 - lr * weight_decay) - lr * shape(p, adjust_lr_fn) * d


CASES = [    (gradtx.aurora, aurora, {}),
    (gradtx.aurora, aurora, {"lr": RATE, "balance": 5, "balance_power": 0.3, "nesterov": False, "weight_decay": 0.2}),
    (gradtx.aurora, aurora, {"balance": 1, "momentum": BETA, "ns_coefficients": "quintic", "ns_steps": 5}),
    (gradtx.aurora, aurora, {"balance": 0, "adjust_lr_fn": "spectral"}),
]  # fmt: skip


@pytest.mark.parametrize(("alias", "rule", "options"), CASES, ids=named)
def test_the_matrices_follow_the_loop(alias, rule, options):
    matrices_follow(alias, rule, options)
