import math

import pytest
import torch

import gradtx
from tests.algorithms.matrices import matrices_follow, powered
from tests.matrix_problem import follows
from tests.references import BETA, DECAY, RATE, WeightsLoop, named


def asgo(s, t, g, p, lr=0.01, momentum=0.9, beta2=0.8, eps=1e-10, weight_decay=0.1, factor=0.2, fallback=None):
    rows, columns = g.shape
    s.seen.add("left" if rows < columns else "right")
    s.m = momentum * s.m + (1 - momentum) * g
    s.V = beta2 * s.V + (1 - beta2) * (g @ g.T if rows < columns else g.T @ g)
    root = powered(s.V + eps * torch.eye(len(s.V), dtype=g.dtype), -0.5)
    u = root @ s.m if rows < columns else s.m @ root
    return p * (1 - lr * weight_decay) - lr * factor * math.sqrt(rows * columns) * u / u.norm()


CASES = [
    {"lr": 0.01},
    {"lr": RATE, "momentum": BETA, "weight_decay": DECAY, "eps": 1e-2, "beta2": 0.95},
    {"lr": 0.02, "factor": 1.0, "beta2": 0.0, "momentum": 0.0, "eps": 1e-4},
]


@pytest.mark.parametrize("options", CASES, ids=named)
def test_the_matrices_follow_the_loop(options):
    # Roots divide by small eigenvalues, which amplifies rounding.
    matrices_follow(gradtx.asgo, asgo, options, tolerance=1e-9)


def test_square_matrices_follow_the_loop():
    loop = WeightsLoop(asgo)
    follows(gradtx.asgo(), loop, 0, 20, ("square", "wide"), tolerance=1e-9)
    assert loop.seen == {"left", "right"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": 0.0}, r"asgo: eps must be in \(0, inf\), got 0.0"),
        ({"beta2": 1.0}, r"asgo: beta2 must be in \[0, 1\), got 1.0"),
    ],
    ids=named,
)
def test_options_out_of_range_are_errors_that_name_them(options, message):
    with pytest.raises(ValueError, match=message):
        gradtx.asgo(**options)
