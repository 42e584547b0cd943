"""`lazy_rows` on sharded tables with dense gradients: rows without a gradient are those of the whole table."""

from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import gradtx
from tests.distributed.problems import engine
from tests.optim.problems import assert_equal

STEPS = 6
SHAPES = {"even": (12, 4), "odd": (7, 3), "vector": (5,)}
PLACEMENTS = {"rows": Shard(0), "columns": Shard(1), "replicas": Replicate()}
CHAINS = {
    "adamw": gradtx.lazy_rows(gradtx.adamw(lr=0.05, weight_decay=0.3)),
    "catch_up": gradtx.lazy_rows(gradtx.adamw(lr=0.05, weight_decay=0.3), catch_up=True),
    "clipped": gradtx.chain(gradtx.clip_by_global_norm(0.5), gradtx.lazy_rows(gradtx.sgd(lr=0.1, momentum=0.9))),
    "accumulated": gradtx.accumulate(gradtx.lazy_rows(gradtx.adamw(lr=0.05), catch_up=True), every=2),
}


def drawn(seed, shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient(t, shape):
    """Some rows have none; in some, it is 0 in all columns but the last."""
    generator = torch.Generator().manual_seed(t)
    kinds = torch.randint(0, 3, shape[:1], generator=generator)
    full = drawn(100 + t, shape)
    if len(shape) > 1:
        full[kinds == 1, :-1] = 0.0
    full[kinds == 0] = 0.0
    return full


def trained(tx, compile, place=lambda tensor, shape: tensor, **options):
    params: dict[str, Any] = {
        name: nn.Parameter(place(drawn(len(name), shape), shape)) for name, shape in SHAPES.items()
    }
    optimizer = gradtx.as_optimizer(tx, params.items(), compile=compile, **options)
    for t in range(STEPS):
        for name, param in params.items():
            param.grad = place(gradient(t, SHAPES[name]), SHAPES[name])
        optimizer.step()
    return {name: getattr(x.detach(), "full_tensor", x.detach)() for name, x in params.items()}, optimizer


def sharded_equals_whole(chain, placement, kind):
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))

    def place(tensor, shape):
        divided = PLACEMENTS[placement] if placement != "columns" or len(shape) > 1 else Replicate()
        return distribute_tensor(tensor, mesh, [divided])

    expected, _ = trained(CHAINS[chain], False)
    with engine(kind) as compile:
        found, _ = trained(CHAINS[chain], compile, place)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["eager", "compiled"])
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("chain", CHAINS)
def test_sharded_tables_step_as_whole_ones(chain, placement, kind, two):
    two.run(sharded_equals_whole, chain, placement, kind)


def replicas_with_a_group(chain):
    expected, _ = trained(CHAINS[chain], False)
    found, _ = trained(CHAINS[chain], False, process_group=distributed.group.WORLD)
    assert_equal(found, expected)


@pytest.mark.parametrize("chain", CHAINS)
def test_replicas_with_a_process_group_step_as_one_process(chain, two):
    two.run(replicas_with_a_group, chain)
