import pytest
import torch

import gradtx
from tests.algorithms.matrices import matrices_follow, orthogonal, shape, summed_momentum_of
from tests.references import BETA, DECAY, RATE, named


def eigen(statistic, t, beta, eps, correct_bias):
    """Eigenvalues and vectors as in the authors' code."""
    statistic = statistic / (1 - beta**t) if correct_bias else statistic
    statistic = statistic * (len(statistic) / statistic.trace())
    values, basis = torch.linalg.eigh(statistic + eps * torch.eye(len(statistic), dtype=statistic.dtype))
    return values + max(0.0, -values.min().item()) + eps, basis


def mousse(
    s, t, g, p, lr=0.01, weight_decay=0.01, momentum=0.95, nesterov=False, beta=0.95, alpha=0.125, eps=1e-10,
    precondition_frequency=10, sides="both", correct_bias=True, graft=True, ns_coefficients="quintic", ns_steps=None,
    adjust_lr_fn="spectral", fallback=None,
):  # fmt: skip
    u = summed_momentum_of(s, g, momentum, nesterov)
    s.L = beta * s.L + (1 - beta) * (g @ g.T)
    s.R = beta * s.R + (1 - beta) * (g.T @ g)
    if precondition_frequency == 1 or t % precondition_frequency == 1:
        s.left = eigen(s.L, t, beta, eps, correct_bias)
        s.right = eigen(s.R, t, beta, eps, correct_bias)
    left, Q = s.left if sides != "right" else (torch.ones_like(s.left[0]), torch.eye(len(g), dtype=g.dtype))
    right, P = s.right if sides != "left" else (torch.ones_like(s.right[0]), torch.eye(g.shape[1], dtype=g.dtype))
    left, right = left[:, None] ** -alpha, right**-alpha
    o = orthogonal(left * (Q.T @ u @ P) * right, ns_coefficients, ns_steps)
    d = Q @ (left * o * right) @ P.T
    d = d * o.norm() / d.norm() if graft else d
    return p * (1 - lr * weight_decay) - lr * shape(p, adjust_lr_fn) * d


CASES = [
    {"lr": 0.01},
    {"lr": RATE, "nesterov": True, "momentum": BETA, "weight_decay": DECAY, "precondition_frequency": 1, "eps": 1e-4},
    {"lr": 0.02, "sides": "left", "correct_bias": False, "alpha": 0.25, "eps": 1e-2, "precondition_frequency": 3},
    {"lr": 0.01, "sides": "right", "graft": False, "beta": 0.8, "eps": 1e-3, "adjust_lr_fn": "original"},
    {"lr": 0.02, "eps": 1e-3, "ns_coefficients": "simple", "ns_steps": 7},
    {"lr": 0.02, "alpha": 0.0, "ns_steps": 3},
]  # fmt: skip


@pytest.mark.parametrize("options", CASES, ids=named)
def test_the_matrices_follow_the_loop(options):
    # Bit for bit the same factors: where one lacks a rank, roots divide by eps, which is not far above rounding.
    matrices_follow(gradtx.mousse, mousse, options)


def test_roots_are_computed_only_when_they_are_due(monkeypatch):
    counts, eigh = [], torch.linalg.eigh

    def counted(matrix):
        counts[-1] += 1
        return eigh(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", counted)
    weight = torch.nn.Parameter(torch.ones(2, 3))
    optimizer = gradtx.optim.Mousse([weight], precondition_frequency=3)
    for step in range(1, 8):
        weight.grad = torch.tensor([[step, 1.0, 0.0], [0.0, step, 1.0]])
        counts.append(0)
        optimizer.step()
    assert counts == [2, 0, 0, 2, 0, 0, 2]


def test_one_side_keeps_the_statistics_of_that_side():
    params = {"w": torch.zeros(2, 3)}
    for sides, sizes in (("both", [2, 3]), ("left", [2]), ("right", [3])):
        state = gradtx.mousse(sides=sides).init(params)["scale_by_mousse"]
        assert [len(state[f"pre_cond_{i}"]["w"]) for i in range(len(sizes))] == sizes
        assert f"pre_cond_{len(sizes)}" not in state


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": 0.0}, r"mousse: eps must be in \(0, inf\), got 0.0"),
        ({"sides": "rows"}, r"mousse: sides must be 'both', 'left' or 'right', got 'rows'"),
        ({"precondition_frequency": 0}, r"mousse: precondition_frequency must be in \[1, inf\), got 0"),
        ({"ns_coefficients": "none"}, r"mousse: coefs must be one of simple, .*, got 'none'"),
    ],
    ids=named,
)
def test_options_out_of_range_are_errors_that_name_them(options, message):
    with pytest.raises(ValueError, match=message):
        gradtx.mousse(**options)
