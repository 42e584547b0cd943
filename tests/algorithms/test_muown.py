import pytest

import gradtx
from tests.algorithms.matrices import matrices_follow, orthogonal, shape
from tests.references import RATE, named


def muown(
    s, t, g, p, lr=3e-4, momentum=0.95, weight_decay=0.0, betas=(0.9, 0.95), eps=1e-8, ns_coefficients="quintic",
    ns_steps=None, adjust_lr_fn="max_dim", ns_dtype=None, fallback=None,
):  # fmt: skip
    if t == 1:
        s.gamma = s.length = p.norm(dim=1, keepdim=True)
    unit = p / s.gamma
    dgamma = (g * unit).sum(1, keepdim=True)
    s.B = momentum * s.B + (1 - momentum) * s.gamma / s.length * (g - unit * dgamma)
    v = unit * s.length - lr * shape(p, adjust_lr_fn) * orthogonal(s.B, ns_coefficients, ns_steps)
    s.m = betas[0] * s.m + (1 - betas[0]) * dgamma
    s.v = betas[1] * s.v + (1 - betas[1]) * dgamma**2
    adam = s.m / (1 - betas[0] ** t) / ((s.v / (1 - betas[1] ** t)).sqrt() + eps)
    s.gamma = (s.gamma - lr * adam) * (1 - lr * weight_decay)
    s.length = v.norm(dim=1, keepdim=True)
    return s.gamma * v / s.length


CASES = [    (gradtx.muown, muown, {}),
    (gradtx.muown, muown, {"lr": RATE, "momentum": 0.7, "weight_decay": 0.4, "betas": (0.7, 0.8), "eps": 1e-3}),
    (gradtx.muown, muown, {"lr": 0.02, "ns_coefficients": "simple", "ns_steps": 3, "adjust_lr_fn": "spectral"}),
    (gradtx.muown, muown, {"lr": 0.02, "adjust_lr_fn": "match_rms_adamw"}),
]  # fmt: skip


@pytest.mark.parametrize(("alias", "rule", "options"), CASES, ids=named)
def test_the_matrices_follow_the_loop(alias, rule, options):
    matrices_follow(alias, rule, options)
