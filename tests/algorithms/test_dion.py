import math

import pytest
import torch

import gradtx
from gradtx.state.random import Stream
from tests.algorithms.matrices import polar
from tests.matrix_problem import MATRICES, SEEDS, follows, newton_schulz
from tests.references import BETA, RATE, WeightsLoop, named

AGREEMENT = 1e-12


def shape_factor(p, adjust):
    rows, columns = p.shape
    if adjust == "spectral":
        return math.sqrt(rows / columns)
    return 0.2 * math.sqrt(max(p.shape)) if adjust == "match_rms_adamw" else math.sqrt(max(1, rows / columns))


# Dion.


def dion(
    s, t, g, p, lr=0.01, mu=0.95, rank=1.0, weight_decay=0.01, eps=1e-8, adjust_lr_fn="spectral", init="random", seed=0,
    fallback=None,
):  # fmt: skip
    rows, columns = p.shape
    k = rank if isinstance(rank, int) else math.ceil(rank * min(p.shape))
    k = max(1, min(k, rows, columns))
    if t == 1:
        zero = torch.zeros((), dtype=torch.int64)
        drawn = Stream(zero + seed, zero, s.name).normal(torch.zeros(columns, k, dtype=p.dtype))
        s.Q = drawn if init == "random" else torch.eye(columns, k, dtype=p.dtype)
    M = s.M + g
    P = torch.linalg.qr(M @ s.Q)[0]
    R = M.T @ P
    s.M = M - (1 - mu) * P @ R.T
    s.Q = R / (R.norm(dim=0) + eps)
    return p * (1 - lr * weight_decay) - lr * shape_factor(p, adjust_lr_fn) * P @ s.Q.T


DION = [
    {},
    {"lr": 0.1, "mu": 0.7, "rank": 2, "weight_decay": 0.2, "eps": 0.1, "adjust_lr_fn": None, "seed": 3},
    {"lr": 0.1, "rank": 0.3, "init": "eye", "adjust_lr_fn": "match_rms_adamw"},
    {"lr": RATE, "mu": BETA, "weight_decay": RATE, "rank": 3},
]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("options", DION, ids=named)
def test_dion_follows_the_loop(options, seed):
    reference = WeightsLoop(dion, **options)
    follows(gradtx.dion(**options), reference, seed, names=MATRICES, tolerance=AGREEMENT)


def test_a_column_without_residual_keeps_its_direction():
    tx = gradtx.scale_by_dion(rank=1)
    params = {"w": torch.ones(3, 2, dtype=torch.float64)}
    state = tx.init(params)
    before = state["scale_by_dion"]["Q"]["w"]
    updates, state = tx.update({"w": torch.zeros(3, 2, dtype=torch.float64)}, state)
    assert torch.equal(state["scale_by_dion"]["Q"]["w"], before)
    assert torch.equal(updates["w"], torch.zeros(3, 2, dtype=torch.float64))


# Dion2.


def dion2(
    s, t, g, p, lr=0.01, fraction=0.25, ef_decay=0.95, weight_decay=0.01, select="short", beta2=None, neuron_eps=1e-8,
    ns_coefficients="polar_express", ns_steps=None, adjust_lr_fn="spectral", ns_dtype=None, fallback=None,
):  # fmt: skip
    shrink = 1.0
    if not isinstance(ns_coefficients, str):
        polynomials = [ns_coefficients] * ns_steps
    elif ns_coefficients == "newton_schulz":
        polynomials = [(2.0, -1.5, 0.5)] * (ns_steps or 12)
    else:
        polynomials, shrink = polar(ns_steps or 5), 1.01
    s.M = s.M + g
    rows = select == "rows" or (select == "short" and p.shape[0] <= p.shape[1])
    M = s.M if rows else s.M.T.clone()
    sizes = M.abs().sum(dim=1).tolist()
    chosen = sorted(range(len(sizes)), key=lambda i: -sizes[i])[: math.ceil(fraction * len(sizes))]
    part = M[chosen] if rows else M[chosen].T
    o = newton_schulz(part, polynomials, shrink=shrink)
    if beta2 is not None:
        if not isinstance(s.q, torch.Tensor):
            s.q = torch.zeros(p.shape[0], 1, dtype=p.dtype)
        where = chosen if rows else list(range(p.shape[0]))
        s.q[where] = beta2 * s.q[where] + (1 - beta2) * (o**2).mean(dim=1, keepdim=True)
        n = o / (s.q[where].sqrt() + neuron_eps)
        o = n * o.norm() / max(n.norm().item(), neuron_eps)
    u = torch.zeros_like(M)
    u[chosen] = o if rows else o.T
    M[chosen] *= ef_decay
    s.M, u = (M, u) if rows else (M.T, u.T)
    return p * (1 - lr * weight_decay) - lr * shape_factor(p, adjust_lr_fn) * u


DION2 = [
    {},
    {"lr": 0.1, "fraction": 0.5, "ef_decay": 0.6, "weight_decay": 0.2, "select": "columns", "adjust_lr_fn": None},
    {"lr": 0.1, "fraction": 1, "select": "rows", "ns_coefficients": "newton_schulz"},
    {"lr": 0.1, "fraction": 0.6, "beta2": 0.8, "neuron_eps": 0.01, "ns_coefficients": (2.0, -1.5, 0.5), "ns_steps": 4},
    {"lr": 0.1, "fraction": 0.4, "beta2": 0.9, "select": "columns", "ns_steps": 7},
    {"lr": RATE, "ef_decay": BETA, "weight_decay": RATE, "beta2": BETA, "select": "rows"},
]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("options", DION2, ids=named)
def test_dion2_follows_the_loop(options, seed):
    reference = WeightsLoop(dion2, **options)
    follows(gradtx.dion2(**options), reference, seed, names=MATRICES, tolerance=1e-11)  # of singular values, by svd


def test_of_equal_slices_the_first_are_chosen():
    tx = gradtx.orthogonalize_slices(fraction=0.5, select="columns")
    grads = {"w": torch.tensor([[1.0, -1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])}
    updates, _ = tx.update(grads, tx.init(grads))
    assert (updates["w"][0] != 0).tolist() == [True, True, False, False]
