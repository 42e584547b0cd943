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
SOAP = {"lr": 0.02, "precondition_frequency": 2}
STATEFUL = {
    "soap": gradtx.soap(**SOAP),
    "soap with a decay of weights": gradtx.chain(gradtx.clip_by_value(0.5), gradtx.soap(weight_decay=0.1, **SOAP)),
    "kl_soap": gradtx.kl_soap(**SOAP),
    "shampoo": gradtx.shampoo(lr=0.02, momentum=0.5, weight_decay=0.1, preconditioning_compute_steps=2),
    "scalable_shampoo": gradtx.scalable_shampoo(
        lr=0.02, block_size=8, start_preconditioning_step=2, preconditioning_compute_steps=2, weight_decay=0.0
    ),
    "rotated chain": gradtx.chain(
        gradtx.trace(0.9), gradtx.rotated(gradtx.chain(gradtx.scale_by_adam(), gradtx.trace(0.5))), gradtx.scale(-0.02)
    ),
    "accumulate": gradtx.accumulate(gradtx.soap(**SOAP), every=2),
    "skip": gradtx.skip_nonfinite(gradtx.shampoo(lr=0.02)),
    "soap for matrices": gradtx.partition(
        {"matrices": gradtx.soap(**SOAP), "rest": ADAMW}, {"matrices": tuple(MATRICES), "rest": "*"}
    ),
}
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


def by_name(optimizer):
    """The saved slots, in one piece."""
    entries = optimizer.state_dict()["state"].values()
    return [{key: whole(value) for key, value in entry.items()} for entry in entries]


def weights_states_and_traffic(name, kind):
    optimizer, weights, traffic = trained(STATEFUL[name], placement(kind))
    return weights, by_name(optimizer), traffic.messages


@pytest.mark.parametrize(("kind", "ranks"), [("fsdp", 2), ("fsdp", 4), ("hsdp", 4), ("rows and columns", 4)])
@pytest.mark.parametrize("name", STATEFUL)
def test_slots_live_with_the_owner_and_steps_equal_those_of_one_process_bitwise(name, kind, ranks, two, four):
    optimizer, expected, _ = trained(STATEFUL[name], undivided)
    answers = {2: two, 4: four}[ranks].run(weights_states_and_traffic, name, kind)
    sums = ["all_reduce"] if name == "skip" else []  # whether a gradient is infinite
    for weights, states, messages in answers:
        assert [message for message, _ in messages] == [*sums, "alltoall_base_", "alltoall_base_"]
        for key, weight in weights.items():
            assert torch.equal(weight, expected[key]), key
        for state, of_one in zip(states, by_name(optimizer), strict=True):
            assert state.keys() == of_one.keys()
            for key, value in state.items():
                assert torch.equal(value, of_one[key]), key
