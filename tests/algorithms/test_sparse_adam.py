import contextlib
import math

import pytest
import torch

import gradtx
from tests.references import BETA, RATE, WeightsLoop, follows

ROWS = 6
# The same sums in another order, in float64 and in float32; weights are about 1.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}
OPTIONS = [{}, {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3}, {"lr": 0.05, "betas": (0.0, 0.5), "maximize": True}]
WAYS = {
    "lists": ({}, contextlib.nullcontext),
    "compiled": ({"compile": True}, contextlib.nullcontext),
    "eagerly": ({}, gradtx.eagerly),
}


def sparse_adam(s, t, g, p, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
    """The formula of torch.optim.SparseAdam, for one row that each step lists, or for all of them."""
    s.m = betas[0] * s.m + (1 - betas[0]) * g
    s.v = betas[1] * s.v + (1 - betas[1]) * g**2
    return p - lr * math.sqrt(1 - betas[1] ** t) / (1 - betas[0] ** t) * s.m / (s.v.sqrt() + eps)


@pytest.mark.parametrize("options", [{}, {"lr": 0.02, "eps": 0.01}, {"lr": RATE, "betas": (BETA, BETA)}], ids=str)
def test_the_weights_follow_the_loop_if_all_rows_have_gradients(options):
    follows(gradtx.sparse_adam(**options), WeightsLoop(sparse_adam, **options))


def tables(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = [(ROWS, 3), (ROWS,), (ROWS, 2, 2)]
    return [torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in shapes]


def listed(t, shape, dtype):
    """The rows of a step, some of them twice and in no order, as a backward pass returns them; none in step 7."""
    generator = torch.Generator().manual_seed(t)
    index = torch.randint(ROWS - 1, (0 if t == 7 else 4,), generator=generator)
    values = torch.randn(len(index), *shape[1:], generator=generator, dtype=dtype)
    return torch.sparse_coo_tensor(index[None], values, shape, check_invariants=True)


def set_gradients(leaves, t):
    for leaf in leaves:
        leaf.grad = listed(t, leaf.shape, leaf.dtype)


def descended(make, dtype, steps=30):
    leaves = tables(dtype)
    optimizer = make(leaves)
    for t in range(steps):
        set_gradients(leaves, t)
        optimizer.step()
    return leaves, optimizer


def test_rows_follow_a_plain_loop_with_the_count_of_the_table():
    table = torch.nn.Parameter(torch.ones(ROWS, 3, dtype=torch.float64))
    optimizer = gradtx.optim.SparseAdam([table], lr=0.1, betas=(0.5, 0.8), eps=0.01)
    m, v, p = torch.zeros(ROWS, 3), torch.zeros(ROWS, 3), torch.ones(ROWS, 3)
    m, v, p = m.double(), v.double(), p.double()
    for t in range(1, 20):
        table.grad = listed(t, table.shape, table.dtype)
        dense = table.grad.to_dense()
        for row in table.grad.coalesce().indices()[0].tolist():
            m[row] = 0.5 * m[row] + 0.5 * dense[row]
            v[row] = 0.8 * v[row] + 0.2 * dense[row] ** 2
            p[row] -= 0.1 * math.sqrt(1 - 0.8**t) / (1 - 0.5**t) * m[row] / (v[row].sqrt() + 0.01)
        optimizer.step()
        torch.testing.assert_close(table.detach(), p, rtol=0, atol=1e-14)
    assert torch.equal(table.detach()[ROWS - 1], torch.ones(3, dtype=torch.float64))  # which no step listed


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_thirty_steps_equal_torch(options, dtype, way):
    ours, context = WAYS[way]
    with context():
        own, optimizer = descended(lambda leaves: gradtx.optim.SparseAdam(leaves, **options, **ours), dtype)
    other, theirs = descended(lambda leaves: torch.optim.SparseAdam(leaves, **options), dtype)
    for leaf, twin in zip(own, other, strict=True):
        torch.testing.assert_close(leaf, twin, rtol=0, atol=TOLERANCE[dtype])
        for slot in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(
                optimizer.state[leaf][slot], theirs.state[twin][slot], rtol=0, atol=TOLERANCE[dtype]
            )
        assert int(optimizer.state[leaf]["step"]) == theirs.state[twin]["step"] == 30


def test_groups_and_a_rate_in_a_tensor_equal_torch():
    def make(cls):
        rate = torch.tensor(0.01, dtype=torch.float64)
        return lambda leaves: cls(
            [{"params": leaves[:1], "lr": 0.1}, {"params": leaves[1:], "betas": (0.5, 0.6)}], rate
        )

    own, _ = descended(make(gradtx.optim.SparseAdam), torch.float64)
    other, _ = descended(make(torch.optim.SparseAdam), torch.float64)
    for leaf, twin in zip(own, other, strict=True):
        torch.testing.assert_close(leaf, twin, rtol=0, atol=1e-12)


def test_a_dense_gradient_is_a_step_of_all_rows():
    table = torch.nn.Parameter(torch.ones(ROWS, 3))
    table.grad = torch.full((ROWS, 3), 2.0)
    gradtx.optim.SparseAdam([table], lr=0.1).step()
    torch.testing.assert_close(table.detach(), torch.full((ROWS, 3), 0.9))


def test_it_trains_the_rows_of_an_embedding_that_a_batch_needs():
    embedding = torch.nn.Embedding(1000, 2, sparse=True)
    before = embedding.weight.detach().clone()
    optimizer = gradtx.optim.SparseAdam(embedding.parameters(), lr=0.1)
    embedding(torch.tensor([3, 3, 500])).square().sum().backward()
    optimizer.step()
    changed = (embedding.weight.detach() != before).any(1).nonzero()[:, 0]
    assert changed.tolist() == [3, 500]
