"""Sparse gradients of tables that every process has: averaged by DistributedDataParallel, or beside owners."""

from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

import gradtx
from tests.distributed.problems import engine
from tests.optim.problems import assert_equal

STEPS, ROWS = 5, 12


class Table(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = nn.Embedding(ROWS, 4, sparse=True), nn.Linear(4, 3)
        self.double()

    def forward(self, index):
        return self.head(self.table(index))


def train(model, optimizers, size=1, rank=0):
    """Train on this rank's part of each batch."""
    for t in range(STEPS):
        batch = torch.tensor([t, 3, 3, 2 * t % ROWS]).chunk(size)[rank]
        for optimizer in optimizers:
            optimizer.zero_grad()
        model(batch).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()


def weights(model):
    return {name: param.detach().clone() for name, param in model.named_parameters()}


def adam_and_momentum(module, model, **options):
    options["lr"] = 0.05
    return [
        module.SparseAdam(model.table.parameters(), **options),
        module.SGD(model.head.parameters(), momentum=0.9, **options),
    ]


def momentum(module, model, **options):
    return [module.SGD(model.parameters(), lr=0.05, momentum=0.9, **options)]


def replicated_equals_torch_on_the_whole_batch(optimizers, kind):
    reference, model = Table(), Table()
    train(reference, optimizers(torch.optim, reference))
    with engine(kind) as compile:
        ours = optimizers(gradtx.optim, model, compile=compile)
        train(DistributedDataParallel(model), ours, distributed.get_world_size(), distributed.get_rank())
    torch.testing.assert_close(weights(model), weights(reference), rtol=1e-12, atol=1e-12)
    return weights(model)


@pytest.mark.parametrize("kind", ["eager", "compiled"])
@pytest.mark.parametrize("optimizers", [adam_and_momentum, momentum])
def test_processes_with_half_a_batch_each_step_like_torch_with_all_of_it(optimizers, kind, two):
    first, second = two.run(replicated_equals_torch_on_the_whole_batch, optimizers, kind)
    assert_equal(first, second)


def beside_owners():
    tx = gradtx.partition(
        {"table": gradtx.sparse_adam(0.05), "muon": gradtx.muon(0.05), "rest": gradtx.sgd(0.05)},
        lambda name, param: "table" if "table" in name else "muon" if param.ndim > 1 else "rest",
    )
    alone, shared = Table(), Table()
    train(alone, [gradtx.as_optimizer(tx, alone.named_parameters())])
    group = distributed.group.WORLD
    train(shared, [gradtx.as_optimizer(tx, shared.named_parameters(), process_group=group)])
    torch.testing.assert_close(weights(shared), weights(alone), rtol=1e-12, atol=1e-12)
    return weights(shared)


def test_a_table_with_sparse_gradients_steps_beside_matrices_that_owners_orthogonalize(two):
    first, second = two.run(beside_owners)
    assert_equal(first, second)


def of_a_sharded_table():
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    param: Any = nn.Parameter(distribute_tensor(torch.zeros(ROWS, 4), mesh, [Shard(0)]))
    optimizer = gradtx.optim.AdamW({"table": param}.items())
    param.grad = distribute_tensor(torch.ones(ROWS, 4), mesh, [Shard(0)])
    optimizer.step()
    before = param.to_local().detach().clone()
    param.grad = torch.sparse_coo_tensor(torch.tensor([[1]]), torch.ones(1, 4), (ROWS, 4), check_invariants=True)
    with pytest.raises(RuntimeError, match="'table' is sparse, but its parameter is sharded; call to_dense"):
        optimizer.step()
    assert_equal(param.to_local(), before)
    assert optimizer.state[param]["step"] == 1


def test_a_sparse_gradient_of_a_sharded_table_is_an_error_that_changes_nothing(two):
    two.run(of_a_sharded_table)


def of_an_outer_optimizer():
    tx = gradtx.outer(gradtx.sparse_adam(0.1), gradtx.sgd(0.7), 3, process_group=distributed.group.WORLD)
    model = Table()
    before = weights(model)
    optimizer = gradtx.as_optimizer(tx, model.named_parameters())
    model(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(RuntimeError, match=r"outer\(process_group=...\) exchanges all rows; omit sparse=True"):
        optimizer.step()
    assert_equal(weights(model), before)


def test_an_outer_optimizer_over_ranks_refuses_sparse_gradients_before_it_sends_a_message(two):
    two.run(of_an_outer_optimizer)
