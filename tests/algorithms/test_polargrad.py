import pytest
import torch

import gradtx
from tests.algorithms.matrices import matrices_follow, momentum_of, orthogonal
from tests.references import BETA, RATE, named


def polargrad(
    s, t, g, p, lr=3e-4, momentum=0.95, nesterov=False, weight_decay=0.01, method="newton_schulz", alpha=1.0,
    center_rows=False, ns_coefficients="quintic", ns_steps=None, ns_dtype=None, fallback=None,
):  # fmt: skip
    u = momentum_of(s, g, momentum, nesterov)
    if center_rows:
        u = u - u.mean(0)
    if method == "exact":
        left, values, right = torch.linalg.svd(u, full_matrices=False)
        known = values > 1e-7 * values.max()
        s.seen.add(bool(known.all()))
        o = left[:, known] @ right[known]
        nuclear = values[known].sum()
    else:
        o = orthogonal(u, ns_coefficients, ns_steps)
        nuclear = (o * u).sum()
    d = o * nuclear**alpha
    return p * (1 - lr * weight_decay) - lr * (d - d.mean(0) if center_rows else d)


CASES = [    (gradtx.polargrad, polargrad, {"lr": 0.01}),
    (gradtx.polargrad, polargrad, {"lr": RATE, "method": "exact", "momentum": 0.5, "nesterov": True, "alpha": 0.6}),
    (gradtx.polargrad, polargrad, {"lr": 0.03, "method": "exact", "center_rows": True, "weight_decay": 0.3}),
    (gradtx.polargrad, polargrad, {"lr": 0.03, "alpha": BETA, "center_rows": True, "ns_coefficients": "cans"}),
]  # fmt: skip


@pytest.mark.parametrize(("alias", "rule", "options"), CASES, ids=named)
def test_the_matrices_follow_the_loop(alias, rule, options):
    matrices_follow(alias, rule, options)
