import math

import pytest
import torch

import gradtx
from tests.algorithms.eigenbasis import rotate
from tests.matrix_problem import SEEDS, follows, unfolded
from tests.references import BETA, RATE, WeightsLoop, named

AGREEMENT = 1e-11  # rounding of 1e-16 turns bases by as much over an eigenvalue gap, twelve times


def conda(s, t, g, p, lr=1e-3, betas=(0.9, 0.999), weight_decay=0.0, eps=1e-8, update_proj_gap=2000, scale=1.0):
    b1, b2 = betas
    s.m = b1 * s.m + (1 - b1) * g
    Q, factor = {}, 1.0
    if p.ndim == 2:
        factor, i = scale, 0 if p.shape[0] < p.shape[1] else 1
        if t == 1 or t % update_proj_gap == 0:
            s.Q = torch.linalg.svd(unfolded(s.m, i))[0]
        Q = {i: s.Q}
    s.v = b2 * s.v + (1 - b2) * rotate(g, Q) ** 2
    d = rotate(rotate(s.m, Q) / (s.v.sqrt() + eps), Q, back=True)
    a = lr * factor * math.sqrt(1 - b2**t) / (1 - b1**t)
    return (p - a * d) * (1 - lr * weight_decay)


CONDA = [
    {},
    {"lr": 0.02, "betas": (0.8, 0.9), "weight_decay": 0.3, "eps": 0.01, "update_proj_gap": 4, "scale": 0.25},
    {"lr": 0.02, "update_proj_gap": 1},
    {"lr": RATE, "betas": (BETA, BETA), "weight_decay": RATE, "update_proj_gap": 3},
]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("options", CONDA, ids=named)
def test_conda_follows_the_loop(options, seed):
    follows(gradtx.conda(**options), WeightsLoop(conda, **options), seed, tolerance=AGREEMENT)
