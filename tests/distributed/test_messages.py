"""Sums of single leaves: those of all leaves travel together, so messages don't grow with the model."""

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import gradtx
from tests.distributed.problems import assert_close, whole
from tests.distributed.traffic import Traffic
from tests.tiers import by_day

# The messages of a step, whatever the number of leaves.
MESSAGES = {
    "lamb": (gradtx.lamb(lr=0.1), 1),
    "lars": (gradtx.lars(lr=0.1), 1),
    "adamp": (gradtx.adamp(lr=0.1, weight_decay=0.1, delta=2.0), 1),
    "adafactor": (gradtx.adafactor(lr=0.1, relative_step=False), 3),
    "adafactor_torch": (gradtx.adafactor_torch(lr=0.1), 3),
    "adamw": (gradtx.adamw(lr=0.1), 0),
    "clip and adamw": (gradtx.chain(gradtx.clip_by_global_norm(0.1), gradtx.adamw(lr=0.1)), 1),
}


FALLBACK = gradtx.adamw(lr=0.1)
# Of warm steps whose ranks share one mesh. To compare plans, they send nothing.
WARM = {
    "adamw": (gradtx.adamw(lr=0.1), 0),
    "lamb": (gradtx.lamb(lr=0.1), 1),
    "muon": (gradtx.muon(lr=0.1, fallback=FALLBACK), 2),
    "soap": (gradtx.soap(lr=0.1), 2),
    "clip and muon": (gradtx.chain(gradtx.clip_by_global_norm(0.1), gradtx.muon(lr=0.1, fallback=FALLBACK)), 3),
}


def trained(tx, place, layers):
    generator = torch.Generator().manual_seed(0)
    params = {}
    for i in range(layers):
        for name, shape in (("weight", (5, 3)), ("bias", (5,)), ("few", (2, 4))):
            value = torch.randn(shape, generator=generator, dtype=torch.float64)
            params[f"{i}.{name}"] = torch.nn.Parameter(place(value))
    optimizer = gradtx.as_optimizer(tx, list(params.items()))
    for _ in range(3):
        for param in params.values():
            param.grad = place(torch.randn(param.shape, generator=generator, dtype=torch.float64))
        with Traffic() as traffic:
            optimizer.step()
    return [whole(param) for param in params.values()], traffic


def divided_equals_whole(name, layers):
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    tx, _ = MESSAGES[name]
    expected, _ = trained(tx, torch.clone, layers)
    weights, traffic = trained(tx, lambda tensor: distribute_tensor(tensor, mesh, [Shard(0)]), layers)
    assert_close(weights, expected)
    return traffic.count


@by_day("lamb-1", "lars-4", "adamp-1", "adafactor-4", "adafactor_torch-1", "adamw-4", "clip and adamw-1")
@pytest.mark.parametrize("layers", [1, 4])
@pytest.mark.parametrize("name", MESSAGES)
def test_the_number_of_messages_does_not_depend_on_the_number_of_leaves(name, layers, two):
    assert two.run(divided_equals_whole, name, layers) == [MESSAGES[name][1]] * 2


def messages_of_a_warm_step(name):
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    _, traffic = trained(WARM[name][0], lambda tensor: distribute_tensor(tensor, mesh, [Shard(0)]), 2)
    return traffic.count


@pytest.mark.parametrize("name", WARM)
def test_a_warm_step_sends_no_message_to_compare_plans(name, four):
    assert four.run(messages_of_a_warm_step, name) == [WARM[name][1]] * 4
