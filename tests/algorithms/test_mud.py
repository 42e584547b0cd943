import pytest
import torch

import gradtx
from tests.algorithms.matrices import matrices_follow, shape, summed_momentum_of
from tests.references import BETA, DECAY, RATE, named


def unit_rows(Q, eps):
    return torch.stack([row / max(row.norm().item(), eps) for row in Q])


def decorrelated(u, passes=1, eps=1e-8):
    """Row by row: each loses its parts along the rows before it, as they are afterwards."""
    if u.shape[0] > u.shape[1]:
        return decorrelated(u.T, passes, eps).T
    Q = unit_rows(u, eps)
    for _ in range(passes):
        solved = []
        for i, row in enumerate(Q):
            solved.append(row - sum(((row @ Q[j]) * solved[j] for j in range(i)), torch.zeros_like(row)))
        Q = unit_rows(torch.stack(solved), eps)
    return Q


def mud(
    s, t, g, p, lr=1e-3, weight_decay=0.01, momentum=0.95, nesterov=True, passes=1, eps=1e-8,
    adjust_lr_fn="match_rms_adamw", fallback=None,
):  # fmt: skip
    d = decorrelated(summed_momentum_of(s, g, momentum, nesterov), passes, eps)
    return p * (1 - lr * weight_decay) - lr * shape(p, adjust_lr_fn) * d


CASES = [
    {"lr": 0.01},
    {"lr": RATE, "nesterov": False, "momentum": BETA, "weight_decay": DECAY, "passes": 2, "eps": 1e-2},
    {"lr": 0.02, "passes": 3, "adjust_lr_fn": "original", "momentum": 0.0},
]


@pytest.mark.parametrize("options", CASES, ids=named)
def test_the_matrices_follow_the_loop(options):
    matrices_follow(gradtx.mud, mud, options)


def test_passes_bring_rows_nearer_to_orthogonal_ones():
    u = torch.randn(4, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    gaps = []
    for passes in (1, 2, 30):  # with 3, the rest is rounding errors already
        tx = gradtx.decorrelate(passes)
        q = tx.update({"w": u}, tx.init({}))[0]["w"]
        torch.testing.assert_close(q.norm(dim=1), torch.ones(4).double())
        gaps.append((q @ q.T - torch.eye(4)).norm().item())
    assert gaps[0] > gaps[1] > 1e-6 > gaps[2]


def test_rows_of_zeros_and_equal_rows_stay_finite():
    tx = gradtx.decorrelate(2, eps=0.0)
    u = torch.tensor([[0.0, 0.0, 0.0], [3.0, 4.0, 0.0], [3.0, 4.0, 0.0]])
    q = tx.update({"w": u}, tx.init({}))[0]["w"]
    assert q.isfinite().all()
    assert q[0].tolist() == [0.0] * 3
    torch.testing.assert_close(q[1], torch.tensor([0.6, 0.8, 0.0]))


@pytest.mark.parametrize("passes", [0, -1])
def test_the_number_of_passes_is_at_least_1(passes):
    with pytest.raises(ValueError, match=rf"mud: passes must be in \[1, inf\), got {passes}"):
        gradtx.mud(passes=passes)
