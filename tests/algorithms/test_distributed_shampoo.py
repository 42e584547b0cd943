"""Meta's Distributed Shampoo against a plain loop over its blocks in float64."""

import itertools

import pytest
import torch

import gradtx
from tests.references import BETA, DECAY, RATE, Slots, WeightsLoop, named, weights_follow

DEFAULTS = {
    "lr": 1e-2, "betas": (0.9, 1.0), "beta3": None, "eps": 1e-12, "weight_decay": 0.0, "max_preconditioner_dim": 1024,
    "target_dims": 1, "precondition_frequency": 1, "start_preconditioning_step": None, "use_bias_correction": True,
    "exponent": None, "pseudo_inverse": False, "graft": "adam", "graft_beta2": 0.999, "graft_eps": 1e-8,
}  # fmt: skip


def merged(shape, limit, target):
    """From the last dimension backwards."""
    left, groups = [n for n in shape if n != 1] or [1], []
    while left:
        if groups and len(groups) + len(left) > target and left[-1] * groups[0] <= limit:
            groups[0] *= left.pop()
        else:
            groups.insert(0, left.pop())
    return groups


def root(A, e, eps, pseudo):
    """eigh of A + eps I; all eigenvalues are shifted if the least is below eps."""
    w, V = torch.linalg.eigh(A + eps * torch.eye(len(A), dtype=A.dtype))
    if pseudo:
        keep = w > len(A) * torch.finfo(A.dtype).eps * w.max()
        powers = [x**-e if kept else 0.0 for x, kept in zip(w.tolist(), keep, strict=True)]
        return V @ torch.diag(torch.tensor(powers, dtype=A.dtype)) @ V.T
    return V @ torch.diag((w + max(0.0, eps - w.min().item())) ** -e) @ V.T


def block(s, t, g, o):
    (b1, b2), k = o["betas"], g.ndim
    b3 = b1 if o["beta3"] is None else o["beta3"]
    c = 1 - b2**t if o["use_bias_correction"] and b2 < 1 else 1.0
    s.S = s.S or [torch.zeros(n, n, dtype=g.dtype) for n in g.shape]
    s.R = s.R or [torch.eye(n, dtype=g.dtype) for n in g.shape]
    for i, n in enumerate(g.shape):
        m = g.movedim(i, 0).reshape(n, -1)
        s.S[i] = b2 * s.S[i] + (1 if b2 == 1 else 1 - b2) * m @ m.T
    start = o["start_preconditioning_step"] or o["precondition_frequency"]
    if t == start or (t > start and t % o["precondition_frequency"] == 0):
        s.R = [root(S / c, o["exponent"] or 1 / (2 * k), o["eps"], o["pseudo_inverse"]) for S in s.S]
    f = g if b1 == 0 else b3 * s.m + (1 - b3) * g
    if b1 and o["use_bias_correction"]:
        f = f / (1 - b3 * b1 ** (t - 1))
    s.m, beta = b1 * s.m + (1 - b1) * g, o["graft_beta2"]
    s.v = s.v + g**2 if o["graft"] == "adagrad" else beta * s.v + (1 - beta) * g**2
    u = f
    if o["graft"] in ("adam", "rmsprop", "adagrad"):
        u = f / ((s.v / (1 - beta**t if o["graft"] == "adam" else 1)) ** 0.5 + o["graft_eps"])
    if t < start:
        return u  # with no graft: f, as R = I
    d = f
    for i in range(k):
        d = torch.tensordot(s.R[i], d, dims=([1], [i])).movedim(0, i)
    return d if o["graft"] is None else d * u.norm() / (d.norm() + 1e-16)


def shampoo(s, t, g, p, **o):
    o = {**DEFAULTS, **o}
    limit, shape = o["max_preconditioner_dim"], merged(p.shape, o["max_preconditioner_dim"], o["target_dims"])
    s.blocks, g, d = s.blocks or {}, g.reshape(shape), torch.empty(shape, dtype=g.dtype)
    for corner in itertools.product(*(range(0, n, limit) for n in shape)):
        piece = tuple(slice(i, i + limit) for i in corner)
        d[piece] = block(s.blocks.setdefault(corner, Slots()), t, g[piece], o)
    return p - o["lr"] * (d.reshape(p.shape) + o["weight_decay"] * p)


# eps is above rounding, as the statistics are singular; weight decay and rate are checked once for all.
CASES = [
    {"eps": 1e-3},
    {"lr": RATE, "weight_decay": DECAY, "betas": (0.9, 0.95), "eps": 1e-4, "target_dims": 2, "graft_beta2": BETA},
    {"betas": (0.8, 0.9), "beta3": 0.5, "eps": 1e-3, "max_preconditioner_dim": 3, "target_dims": 2},
    {"betas": (0.0, 0.9), "eps": 1e-2, "max_preconditioner_dim": 12, "exponent": 0.3, "graft": "sgd"},
    {"eps": 1e-2, "precondition_frequency": 3, "start_preconditioning_step": 5, "graft": "rmsprop", "graft_eps": 0.1},
    {"eps": 1e-2, "precondition_frequency": 4, "target_dims": 3, "graft": "adagrad", "max_preconditioner_dim": 2},
    {"betas": (0.9, 0.9), "eps": 1e-2, "use_bias_correction": False, "graft_beta2": 0.9, "target_dims": 2},
    {"eps": 1e-2, "precondition_frequency": 2, "start_preconditioning_step": 4, "graft": None, "target_dims": 2},
    {"betas": (0.9, 0.9), "eps": 0.0, "pseudo_inverse": True, "graft": None, "exponent": 1 / 3, "target_dims": 2},
]  # fmt: skip


@pytest.mark.parametrize("options", CASES, ids=named)
def test_it_follows_the_loop_over_blocks(options):
    # Rows and columns of the first gradient that are singular make their pseudo-inverses a matter of rounding.
    without = ("rows", "whole") if "pseudo_inverse" in options else ()
    tx, reference = gradtx.distributed_shampoo(**options), WeightsLoop(shampoo, **options)
    weights_follow(tx, reference, without=without, steps=30)


@pytest.mark.parametrize(
    ("limit", "target", "sizes"), [(16, 2, [4, 12]), (8, 1, [4, 3, 4]), (64, 1, [48]), (3, 2, [3, 3, 2, 2, 1, 3, 2, 2])]
)
def test_dimensions_merge_from_the_last_one_backwards_and_are_cut(limit, target, sizes):
    tx = gradtx.scale_by_distributed_shampoo(max_preconditioner_dim=limit, target_dims=target)
    state = tx.init({"w": torch.zeros(4, 3, 2, 1, 2)})["scale_by_distributed_shampoo"]
    assert [len(state[f"factor_matrices_{i}"]["w"]) for i in range(len(sizes))] == sizes
    assert f"factor_matrices_{len(sizes)}" not in state


@pytest.mark.parametrize("corrects", [True, False])
def test_a_parameter_without_dimensions_keeps_its_dtype(corrects):
    tx = gradtx.distributed_shampoo(use_bias_correction=corrects)
    params = {"scale": torch.ones(())}
    updates, _ = tx.update(params, tx.init(params), params)
    assert updates["scale"].dtype is torch.float32
    assert updates["scale"] < 0
