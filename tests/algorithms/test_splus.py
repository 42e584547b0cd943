import pytest
import torch

import gradtx
from tests.algorithms.eigenbasis import rotate, rotated_dims
from tests.matrix_problem import SEEDS, eigenvectors, follows, unfolded, weights
from tests.references import Transformed, WeightsLoop, named

AGREEMENT = 1e-11  # rounding of 1e-16 turns bases by as much over an eigenvalue gap, twelve times


# SPlus and Conda.


def splus(
    s, t, g, p, lr=0.1, betas=(0.9, 0.999), weight_decay=1e-2, ema_rate=0.999, inverse_steps=100,
    nonstandard_constant=1e-3, max_dim=10000,
):  # fmt: skip
    b1, b2 = betas
    dims = rotated_dims(p, max_dim) if p.ndim == 2 else []
    if t == 1:
        s.S = {i: torch.zeros(p.shape[i], p.shape[i], dtype=p.dtype) for i in dims}
        s.Q = {i: torch.eye(p.shape[i], dtype=p.dtype) for i in dims}
    s.m = b1 * s.m + (1 - b1) * g
    step = rotate(rotate(s.m, s.Q).sign(), s.Q, back=True)
    s.S = {i: b2 * s.S[i] + (1 - b2) * unfolded(g, i) @ unfolded(g, i).T for i in dims}
    if t == 1 or t % inverse_steps == 0:
        s.Q = {i: eigenvectors(s.S[i]) for i in dims}
    rate = lr * (2 / sum(p.shape) if p.ndim == 2 and max(p.shape) <= max_dim else nonstandard_constant)
    new = p - rate * step
    s.ema = ema_rate * s.ema + (1 - ema_rate) * new
    s.evaluated = s.ema / (1 - ema_rate**t)
    return new * (1 - rate * weight_decay)


SPLUS = [
    {},
    {"lr": 0.5, "betas": (0.8, 0.9), "weight_decay": 0.3, "ema_rate": 0.9, "inverse_steps": 3},
    {"lr": 0.5, "max_dim": 4, "nonstandard_constant": 0.1, "inverse_steps": 2, "ema_rate": 0.5},
]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("options", SPLUS, ids=named)
def test_splus_follows_the_loop_and_evaluates_with_its_average(options, seed):
    reference, step = WeightsLoop(splus, **options), Transformed(gradtx.splus(**options))
    follows(step, reference, seed, tolerance=AGREEMENT)
    params = weights(WeightsLoop(splus, **options), seed)[-1]
    averages = step.tx.eval_params(step.state, params)
    for name, average in averages.items():
        torch.testing.assert_close(average, reference.slots[name].evaluated, rtol=1e-12, atol=1e-13)
