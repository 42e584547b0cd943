"""Rounded weights of divided parameters have the bits of one process."""

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import gradtx

SHAPES = {"matrix": (67, 128), "columns": (8, 70), "vector": (1000,), "small": (1, 3)}
LINKS = {
    "round_stochastically": lambda: gradtx.round_stochastically(seed=7),
    "compensate_rounding": gradtx.compensate_rounding,
    "compensate_rounding in 8 bits": lambda: gradtx.compensate_rounding(bits=8),
}


def whole(seed, name, dtype):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(SHAPES[name], generator=generator).to(dtype)


def divided(seed, dtype):
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    dims = {"columns": 1}
    return {name: distribute_tensor(whole(seed, name, dtype), mesh, [Shard(dims.get(name, 0))]) for name in SHAPES}


def trained(link, dtype, tensors_of):
    params = {name: torch.nn.Parameter(tensor) for name, tensor in tensors_of(0, dtype).items()}
    tx = gradtx.chain(gradtx.sgd(lr=1e-3, momentum=0.9), LINKS[link]())
    optimizer = gradtx.as_optimizer(tx, list(params.items()))
    # Programs differ from single leaves in the last bit of float32, which rounding may show.
    with gradtx.eagerly():
        for step in range(4):
            gradients = tensors_of(step + 1, dtype)
            for name, param in params.items():
                param.grad = gradients[name]
            optimizer.step()
    return params


def run(link, dtype):
    return {name: param.detach().full_tensor() for name, param in trained(link, dtype, divided).items()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("link", LINKS)
def test_two_processes_round_as_one(link, dtype, two):
    expected = trained(link, dtype, lambda seed, dtype: {name: whole(seed, name, dtype) for name in SHAPES})
    for tensors in two.run(run, link, dtype):
        for name, param in expected.items():
            assert torch.equal(tensors[name], param.detach()), name
