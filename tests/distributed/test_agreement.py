"""Ranks that would step differently raise the same error, in place of hanging or of silently going apart."""

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import gradtx
from tests.distributed.traffic import Traffic

MUON = gradtx.muon(lr=0.1, fallback=gradtx.adamw())


def made(tx=MUON, names=("w", "v", "b")):
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    shapes = {"w": (5, 3), "v": (5, 3), "b": (5,)}
    params = {}
    for name in names:
        params[name] = torch.nn.Parameter(
            distribute_tensor(torch.ones(shapes[name]), mesh, [Shard(0)], src_data_rank=None)
        )
        params[name].grad = params[name].detach().clone()
    return gradtx.as_optimizer(tx, list(params.items())), params


def error_of(optimizer):
    with pytest.raises(RuntimeError) as caught:
        optimizer.step()
    distributed.barrier()
    return str(caught.value)


def is_last():
    return distributed.get_rank() == distributed.get_world_size() - 1


def without_a_gradient():
    optimizer, params = made()
    if is_last():
        params["v"].grad = None
    return error_of(optimizer)


def with_other_numbers():
    return error_of(made(gradtx.muon(lr=0.2 if is_last() else 0.1, fallback=gradtx.adamw()))[0])


def with_another_chain():
    return error_of(made(gradtx.lamb() if is_last() else gradtx.adamw())[0])


def with_a_parameter_less():
    return error_of(made(gradtx.lamb(), ("b", "v", "w") if not is_last() else ("b", "v"))[0])


@pytest.mark.parametrize(
    ("function", "texts"),
    [
        (without_a_gradient, ("rank 0 steps parameter 'v'", "with a gradient", "rank 1 does not")),
        (with_other_numbers, ("rank 0 steps group 0", "'lr': 0.1", "rank 1 steps group 0", "'lr': 0.2")),
        (with_another_chain, ("rank 0 steps", "adamw", "rank 1 steps", "lamb")),
        (with_a_parameter_less, ("rank 0 steps parameter 'w'", "rank 1 does not")),
    ],
)
def test_all_ranks_raise_and_name_what_differs(function, texts, two):
    first, second = two.run(function)
    assert first == second
    for text in texts:
        assert text in first


def messages_of_steps():
    optimizer, params = made(gradtx.adamw())
    counts = []
    for step in range(5):
        if step == 3:
            params["w"].grad = None
        with Traffic() as traffic:
            optimizer.step()
        counts.append(traffic.messages)
    return counts


def test_the_digest_travels_only_when_a_plan_is_made(two):
    for counts in two.run(messages_of_steps):
        assert counts == [["allreduce_"], [], [], ["allreduce_"], []]
