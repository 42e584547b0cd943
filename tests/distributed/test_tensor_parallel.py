"""Tensor parallelism without FSDP2, where autograd leaves gradients in other placements than those of parameters."""

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

import gradtx
from tests.distributed.problems import assert_close, engine, weights
from tests.tiers import by_day

CHAINS = {
    "adamw": gradtx.adamw(lr=1e-2),
    "clip": gradtx.chain(gradtx.clip_by_global_norm(0.1), gradtx.adamw(lr=1e-2)),
    "clocks": gradtx.skip_nonfinite(gradtx.accumulate(gradtx.adamw(lr=1e-2), every=2)),
    "distance": gradtx.prodigy(),
    "muon": gradtx.muon(lr=1e-2, ns_dtype=torch.float64, fallback=gradtx.adamw(lr=1e-2)),
    "hessian": gradtx.adahessian(lr=1e-2),
    "sharpness": gradtx.sam(gradtx.sgd(lr=0.1, momentum=0.9)),
}


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.up, self.down = torch.nn.LayerNorm(6), torch.nn.Linear(6, 8), torch.nn.Linear(8, 6)
        self.double()

    def forward(self, x):
        return self.down(self.up(self.norm(x)).tanh())


def parallel(model):
    """Divide the matrices by columns and rows, and the sequence between them."""
    mesh = init_device_mesh("cpu", (2,))
    return parallelize_module(
        model,
        mesh,
        {
            "": PrepareModuleInput(input_layouts=(Replicate(),), desired_input_layouts=(Shard(1),)),
            "norm": SequenceParallel(),
            "up": ColwiseParallel(input_layouts=Shard(1)),
            "down": RowwiseParallel(),
        },
    )


def train(model, optimizer, create_graph):
    for t in range(4):

        def closure(t=t):
            optimizer.zero_grad()
            x = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(t), dtype=torch.float64)
            loss = (model(x) - x.flip(1)).square().mean()
            loss.backward(create_graph=create_graph)
            return loss

        optimizer.step(closure)


def divided_equals_whole(name, kind):
    plain, model = Model(), parallel(Model())
    with engine("compiled" if kind == "compiled" else "eager") as compile:
        for each in (plain, model):
            optimizer = gradtx.as_optimizer(CHAINS[name], each.named_parameters(), compile=compile)
            if kind == "released":
                optimizer.release_gradients()
                for t in range(3):
                    x = torch.full((3, 4, 6), 1.0 + t, dtype=torch.float64)
                    each(x * torch.arange(6).cos()).square().mean().backward()
                    optimizer.step()
            else:
                train(each, optimizer, name == "hessian")
    assert_close(weights(model), weights(plain))
    return [param.grad is None or param.grad.placements == param.placements for param in model.parameters()]


@by_day("clip-lists", "distance-lists", "hessian-lists")
@pytest.mark.parametrize(
    ("name", "kind"), [*((name, "lists") for name in CHAINS), ("adamw", "compiled"), ("adamw", "released")]
)
def test_sums_of_gradients_that_autograd_left_pending_are_completed(name, kind, two):
    assert all(map(all, two.run(divided_equals_whole, name, kind)))


def pure_update_with_a_pending_sum():
    mesh = init_device_mesh("cpu", (2,))
    tx = gradtx.skip_nonfinite(gradtx.adamw(lr=0.1))
    whole = {"w": torch.arange(5.0, dtype=torch.float64).sin()}
    params = {"w": distribute_tensor(whole["w"], mesh, [Replicate()])}
    term = whole["w"] * (1.0 if mesh.get_local_rank() else 2.0)
    gradient = {"w": DTensor.from_local(term, mesh, [Partial()])}
    found, _ = tx.update(gradient, tx.init(params), params)
    expected, _ = tx.update({"w": 3 * whole["w"]}, tx.init(whole), whole)
    assert_close([found["w"].full_tensor()], [expected["w"]])


def test_a_pure_update_completes_pending_sums(two):
    two.run(pure_update_with_a_pending_sum)
