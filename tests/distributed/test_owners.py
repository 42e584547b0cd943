"""Matrix rules on divided parameters: each matrix is computed once, by its owner, as one process computes it."""

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import gradtx
from tests.distributed.problems import whole
from tests.distributed.traffic import Traffic

STEPS = 4
# Neither 2 nor 4 divides these; the last ranks have nothing of `thin` and `row`.
SHAPES = {
    "tall": (37, 11),
    "wide": (9, 30),
    "square": (13, 13),
    "thin": (2, 7),
    "row": (1, 5),
    "bias": (37,),
    "norm": (3,),
}
MATRICES = {name: shape for name, shape in SHAPES.items() if len(shape) == 2}

ADAMW = gradtx.adamw(lr=1e-2)
CHAINS = {
    "muon": gradtx.muon(lr=0.02, fallback=ADAMW),
    "muon in full precision": gradtx.muon(lr=0.02, ns_dtype=None, nesterov=False, fallback=ADAMW),
    "muon and adamw": gradtx.partition(
        {"matrices": gradtx.muon(lr=0.02, adjust_lr_fn="match_rms_adamw"), "rest": ADAMW},
        {"matrices": tuple(MATRICES), "rest": "*"},
    ),
}


def gradients(step):
    generator = torch.Generator().manual_seed(step)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def undivided(tensor):
    return tensor.clone()


def placement(kind):
    """A function that divides a tensor: as FSDP2, as FSDP2 with copies, or by rows and by columns."""
    size = distributed.get_world_size()
    if kind == "fsdp":
        mesh = init_device_mesh("cpu", (size,))
        return lambda tensor: distribute_tensor(tensor.clone(), mesh, [Shard(0)])
    mesh = init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("outer", "inner"))
    if kind == "hsdp":
        return lambda tensor: distribute_tensor(tensor.clone(), mesh, [Replicate(), Shard(0)])
    return lambda tensor: distribute_tensor(tensor.clone(), mesh, [Shard(0), Shard(tensor.ndim - 1)])


def trained(tx, place, steps=STEPS, **options):
    """An optimizer after some steps, its parameters, and the traffic of the last step."""
    params = {name: torch.nn.Parameter(place(value)) for name, value in gradients(100).items()}
    optimizer = gradtx.as_optimizer(tx, list(params.items()), **options)
    traffic = Traffic()
    for step in range(steps):
        for name, gradient in gradients(step).items():
            params[name].grad = place(gradient)
        if step < steps - 1:
            optimizer.step()
    with traffic:
        optimizer.step()
    return optimizer, {name: whole(param) for name, param in params.items()}, traffic


def weights_and_traffic(name, kind):
    _, weights, traffic = trained(CHAINS[name], placement(kind))
    return weights, traffic.messages


def bytes_of_messages(ranks, itemsize):
    """Every piece goes to its owner and back, but for those that are there; with a flag for each rank."""
    entries = sum(torch.Size(shape).numel() for shape in MATRICES.values())
    return itemsize * (2 * entries * (ranks - 1) / ranks + 2 * ranks * (ranks - 1))


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("kind", ["fsdp", "hsdp", "rows and columns"])
@pytest.mark.parametrize("name", CHAINS)
def test_muon_sends_two_messages_and_equals_one_process_bitwise(name, kind, ranks, two, four):
    _, expected, _ = trained(CHAINS[name], undivided)
    answers = {2: two, 4: four}[ranks].run(weights_and_traffic, name, kind)
    for weights, messages in answers:
        assert [message for message, _ in messages] == ["alltoall_base_", "alltoall_base_"]
        for key, weight in weights.items():
            assert torch.equal(weight, expected[key]), key
