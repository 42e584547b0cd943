import math

import pytest
import torch

import gradtx
from tests.algorithms.matrices import matrices_follow, summed_momentum_of
from tests.references import BETA, DECAY, RATE, named


def mano(
    s, t, g, p, lr=1e-3, weight_decay=0.1, momentum=0.95, nesterov=True, normalize_params=False, eps=1e-8, factor=0.2,
    fallback=None,
):  # fmt: skip
    u = summed_momentum_of(s, g, momentum, nesterov)
    columns = (t - 1) % 2 == 0
    lines, weights = (u.T, p.T) if columns else (u, p)
    directions = []
    for line, q in zip(lines, weights, strict=True):
        q = q / max(q.norm().item(), eps) if normalize_params else q
        across = line - (line @ q) * q
        directions.append(math.sqrt(len(line)) * across / max(across.norm().item(), eps))
    d = torch.stack(directions, dim=1 if columns else 0)
    return p * (1 - lr * weight_decay) - lr * factor * d


CASES = [
    {"lr": 0.01},
    {"lr": RATE, "nesterov": False, "normalize_params": True, "momentum": BETA, "weight_decay": DECAY},
    {"lr": 0.02, "eps": 0.5, "factor": 1.0, "momentum": 0.0},
]


@pytest.mark.parametrize("options", CASES, ids=named)
def test_the_matrices_follow_the_loop(options):
    matrices_follow(gradtx.mano, mano, options)


def test_zero_lines_stay_zero_without_eps():
    tx = gradtx.mano(lr=1.0, weight_decay=0.0, eps=0.0, normalize_params=True)
    params = {"w": torch.zeros(2, 2)}
    update = tx.update({"w": torch.tensor([[3.0, 0.0], [0.0, 0.0]])}, tx.init(params), params)[0]["w"]
    torch.testing.assert_close(update, torch.tensor([[-0.2 * math.sqrt(2), 0.0], [0.0, 0.0]]))


def test_a_negative_factor_is_an_error_that_names_it():
    with pytest.raises(ValueError, match=r"mano: factor must be in \[0, inf\), got -1"):
        gradtx.mano(factor=-1.0)
