import itertools

import pytest
import torch

import gradtx
from tests import references as ref
from tests.algorithms.matrices import moves_after_a_late_first_gradient, powered
from tests.matrix_problem import merge, times, unfolded
from tests.references import BETA, RATE

# The null space of H is magnified by its inverse root: 1e-16 of H is 1e-12 of matrix_eps.
ROOTS = 1e-10


# Scalable Shampoo.


def cut(shape, size):
    """Slices of all blocks, the last dimension fastest."""
    edges = [[slice(k, min(k + size, n)) for k in range(0, n, size)] for n in shape]
    return list(itertools.product(*edges))


def scalable_shampoo(
    s, t, g, p, lr=1e-3, betas=(0.9, 0.999), moving_average_for_momentum=False, weight_decay=0.0,
    decoupled_weight_decay=False, inverse_exponent_override=0, start_preconditioning_step=25,
    preconditioning_compute_steps=1000, statistics_compute_steps=1, block_size=512, skip_preconditioning_rank_lt=1,
    no_preconditioning_for_layers_with_dim_gt=8192, shape_interpretation=True, graft_type="sgd",
    pre_conditioner_type="all", nesterov=True, diagonal_eps=1e-10, matrix_eps=1e-6,
):  # fmt: skip
    b1, b2 = betas
    w2 = 1.0 if b2 == 1 else 1 - b2
    shape = merge(p.shape, block_size) if shape_interpretation else list(p.shape)
    skipped = len(shape) <= 1 or p.ndim < skip_preconditioning_rank_lt
    skipped = skipped or any(n > no_preconditioning_for_layers_with_dim_gt for n in p.shape)
    every = list(range(len(shape)))
    dims = {"all": every, "input": every[:-1], "output": every[-1:]}[pre_conditioner_type]
    where = [] if skipped else cut(shape, block_size)
    s.seen.add((s.name, len(where)))
    if t == 1:
        sizes = [[index[i].stop - index[i].start for i in dims] for index in where]
        s.L = [[matrix_eps * torch.eye(n, dtype=p.dtype) for n in block] for block in sizes]
        s.P = [[torch.eye(n, dtype=p.dtype) for n in block] for block in sizes]
    if graft_type == "adagrad":
        s.D = s.D + g**2
    if graft_type == "rmsprop":
        s.D = b2 * s.D + w2 * g**2
    u = g
    if graft_type in ("adagrad", "rmsprop"):
        u = g / (s.D.sqrt() + diagonal_eps)
    if graft_type == "sqrtn":
        u = torch.sign(g)
    out = u if skipped else torch.zeros(shape, dtype=p.dtype)
    for n, index in enumerate(where):
        G = g.reshape(shape)[index]
        for j, i in enumerate(dims):
            if t % statistics_compute_steps == 0:
                s.L[n][j] = b2 * s.L[n][j] + w2 * unfolded(G, i) @ unfolded(G, i).T
            if t % preconditioning_compute_steps == 0:
                L, top = s.L[n][j], torch.linalg.matrix_norm(s.L[n][j], 2).item()
                e = inverse_exponent_override or 2 * len(dims)
                s.P[n][j] = powered(L + matrix_eps * max(top, 1e-16) * torch.eye(len(L), dtype=p.dtype), -1 / e)
        block = G
        for j, i in enumerate(dims):
            block = times(block, s.P[n][j], i)
        out[index] = block
    out = out.reshape(p.shape)
    if graft_type != "none":
        out = out * u.norm() / (out.norm() + 1e-16)
    if not decoupled_weight_decay:
        out, u = out + weight_decay * p, u + weight_decay * p
    w = 1 - b1 if moving_average_for_momentum else 1.0
    s.M, s.U = b1 * s.M + w * out, b1 * s.U + w * u
    d, c = (s.M, out) if t >= start_preconditioning_step else (s.U, u)
    if nesterov:
        d = b1 * d + w * c
    return p - lr * (d + weight_decay * p if decoupled_weight_decay else d)


BLOCKS = {"lr": 0.02, "block_size": 3, "start_preconditioning_step": 5, "preconditioning_compute_steps": 2}
SCALABLE = [
    {},
    {**BLOCKS, "betas": (0.8, 0.9), "weight_decay": 0.2, "matrix_eps": 1e-3},
    {**BLOCKS, "block_size": 4, "graft_type": "rmsprop", "weight_decay": 0.2, "decoupled_weight_decay": True},
    {**BLOCKS, "graft_type": "adagrad", "diagonal_eps": 0.1, "nesterov": False, "moving_average_for_momentum": True},
    {**BLOCKS, "graft_type": "sqrtn", "shape_interpretation": False, "statistics_compute_steps": 3},
    {**BLOCKS, "graft_type": "none", "pre_conditioner_type": "input", "inverse_exponent_override": 3},
    {**BLOCKS, "pre_conditioner_type": "output", "betas": (0.9, 1.0), "graft_type": "rmsprop"},
    {**BLOCKS, "skip_preconditioning_rank_lt": 3, "moving_average_for_momentum": True},
    {**BLOCKS, "no_preconditioning_for_layers_with_dim_gt": 3},
    {**BLOCKS, "lr": RATE, "betas": (BETA, BETA), "weight_decay": RATE, "matrix_eps": 0.1},
]


@pytest.mark.parametrize("options", SCALABLE, ids=ref.named)
def test_scalable_shampoo_follows_the_loop(options):
    ref.follows(gradtx.scalable_shampoo(**options), ref.WeightsLoop(scalable_shampoo, **options), tolerance=ROOTS)


def test_leaves_are_cut_into_as_many_blocks_as_the_reference_says():
    reference = ref.WeightsLoop(scalable_shampoo, **BLOCKS)
    ref.run(reference)
    assert reference.seen == {("matrix", 2), ("kernel", 1), ("rows", 2), ("whole", 2), ("bias", 0), ("scalar", 0)}


# All.


@pytest.mark.parametrize("make", [gradtx.scalable_shampoo], ids=ref.named)
def test_a_leaf_whose_first_gradient_comes_late_moves(make):
    moves_after_a_late_first_gradient(make())
