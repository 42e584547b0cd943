import math

import pytest
import torch

import gradtx
from tests.algorithms.matrices import matrices_follow, orthogonal
from tests.references import BETA, DECAY, RATE, named


def cosmos(
    s, t, g, p, lr=1e-3, betas=(0.9, 0.999), rank=64, lr_ratio=0.1, gamma=0.2, eps=1e-8, nesterov=True,
    weight_decay=0.0, fallback=None,
):  # fmt: skip
    b1, b2 = betas
    rows, columns = g.shape
    s.m = b1 * s.m + g
    T = sum(b1**i for i in range(t))
    u = (g + b1 * s.m) / (1 + b1 * T) if nesterov else g / T
    if t == 1:
        s.P = torch.linalg.eigh(g.T @ g)[1].flip(1)[:, :rank]
        s.S = (1 - b2) * (g @ s.P).T @ (g @ s.P)
    else:
        old = s.P
        s.P = torch.linalg.qr(b2 * old @ s.S + (1 - b2) * g.T @ g @ old)[0]
        turn = old.T @ s.P
        s.S = b2 * turn.T @ s.S @ turn + (1 - b2) * (g @ s.P).T @ (g @ s.P)
    s.v = b2 * s.v + (1 - b2) * (g @ s.P) ** 2
    low = u @ s.P
    d = low / ((s.v / (1 - b2**t)).sqrt() + eps) @ s.P.T
    s.seen.add("whole" if rank >= columns else "part")
    rest = u - low @ s.P.T
    if rank < columns and rest.norm() > 1e-13 * u.norm():  # else rounding errors
        rest = orthogonal(rest)
        d = d + gamma * math.sqrt(rows * columns) * rest / (rest.norm() + eps)
    return p * (1 - lr * weight_decay) - lr * lr_ratio * math.sqrt(rows * columns) * d / (d.norm() + eps)


CASES = [
    ({"lr": 0.01, "rank": 2}, {"part"}),
    ({"lr": RATE, "rank": 1, "betas": (BETA, 0.9), "weight_decay": DECAY, "nesterov": False, "eps": 1e-3}, {"part"}),
    ({"lr": 0.1, "rank": 3, "gamma": 1.0, "lr_ratio": 0.3, "betas": (0.5, 0.8)}, {"part", "whole"}),
]


@pytest.mark.parametrize(("options", "branches"), CASES, ids=named)
def test_the_matrices_follow_the_loop(options, branches):
    # Divisions by averages of squares that are still small amplify rounding.
    assert matrices_follow(gradtx.cosmos, cosmos, options, tolerance=1e-9) == branches


def test_a_rank_beyond_the_columns_is_that_of_the_columns():
    params = {"w": torch.zeros(5, 3)}
    state = gradtx.cosmos(rank=64).init(params)["scale_by_cosmos"]
    assert state["P"]["w"].shape == state["S"]["w"].shape == (3, 3)
    assert state["exp_avg_sq"]["w"].shape == (5, 3)


@pytest.mark.parametrize("rank", [0, -1])
def test_the_rank_is_at_least_1(rank):
    with pytest.raises(ValueError, match=rf"cosmos: rank must be in \[1, inf\), got {rank}"):
        gradtx.cosmos(rank=rank)
