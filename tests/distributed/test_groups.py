"""Process groups that are made again in living processes, and meshes whose ranks are in another order."""

from datetime import timedelta

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor

import gradtx
from gradtx.base.dtensor import local
from gradtx.distributed.layouts import pieces_of
from tests.distributed.problems import Model, train
from tests.distributed.worlds import World
from tests.tiers import by_day

DEADLINE = 20.0
SHAPES = {"w": (7, 4), "v": (4, 6), "b": (5,)}
FALLBACK = gradtx.adamw(lr=1e-2)
OPTIMIZERS = {
    "adamw": gradtx.adamw(lr=1e-2),
    "clip": gradtx.chain(gradtx.clip_by_global_norm(0.1), gradtx.adamw(lr=1e-2)),
    "lamb": gradtx.lamb(lr=1e-2),
    "muon": gradtx.muon(lr=0.1, fallback=FALLBACK),
    "soap": gradtx.soap(lr=0.1, precondition_frequency=2),
    "adafactor": gradtx.adafactor(lr=0.1, relative_step=False),
}


def gradients(step):
    generator = torch.Generator().manual_seed(step)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def trained(name, place):
    params = {key: torch.nn.Parameter(place(value)) for key, value in gradients(100).items()}
    optimizer = gradtx.as_optimizer(OPTIMIZERS[name], list(params.items()))
    for step in range(3):
        for key, gradient in gradients(step).items():
            params[key].grad = place(gradient)
        optimizer.step()
    return params


def check_shards(name, place):
    """The shards of this rank are those of one process."""
    expected = trained(name, torch.clone)
    for key, param in trained(name, place).items():
        piece = pieces_of(param)[distributed.get_rank(param.device_mesh.get_group())]
        torch.testing.assert_close(local(param), expected[key][piece.window], rtol=1e-5, atol=1e-6)


def divided(mesh):
    def place(tensor):
        return distribute_tensor(tensor.clone(), mesh, [Shard(0)], src_data_rank=None)

    return place


def again(store, rank, size):
    distributed.destroy_process_group()
    distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=timedelta(seconds=DEADLINE)
    )


def with_another_world(name, folder):
    """Three processes, then two of them with ranks renumbered; the third goes on alone."""
    rank = distributed.get_rank()
    check_shards(name, divided(init_device_mesh("cpu", (3,))))
    if rank == 0:
        again(f"{folder}/alone", 0, 1)
        check_shards(name, divided(init_device_mesh("cpu", (1,))))
        return True
    again(f"{folder}/both", 2 - rank, 2)
    check_shards(name, divided(init_device_mesh("cpu", (2,))))
    again(f"{folder}/back", rank - 1, 2)
    check_shards(name, divided(init_device_mesh("cpu", (2,))))
    return True


@pytest.mark.parametrize("name", ["muon", "soap"])
def test_owners_use_the_groups_of_a_world_that_was_made_again(name, tmp_path):
    world = World(3)
    try:
        assert world.run(with_another_world, name, str(tmp_path), limit=DEADLINE) == [True] * 3
    finally:
        world.stop()


def with_other_peers(name):
    """Meshes of two of four ranks, with other peers each time, whose groups are destroyed while the world goes on."""
    rank = distributed.get_rank()
    for pairs in ([0, 1], [2, 3]), ([0, 2], [1, 3]), ([0, 3], [1, 2]):
        groups = [distributed.new_group(pair) for pair in pairs]
        group = next(group for group, pair in zip(groups, pairs, strict=True) if rank in pair)
        check_shards(name, divided(DeviceMesh.from_group(group, "cpu")))
        distributed.destroy_process_group(group)
    return True


@pytest.mark.parametrize("name", ["muon", "soap"])
def test_owners_use_the_groups_of_other_peers(name):
    world = World(4)
    try:
        assert world.run(with_other_peers, name, limit=DEADLINE) == [True] * 4
    finally:
        world.stop()


def weights_under_fsdp(name, ranks):
    """The trained weights of a model under FSDP2 on a mesh of these ranks, in one piece; or the error."""
    mesh = DeviceMesh("cpu", ranks)
    model = Model()
    fully_shard(model, mesh=mesh)
    try:
        optimizer = gradtx.as_optimizer(OPTIMIZERS[name], model.named_parameters())
        losses = train(model, optimizer)
    except ValueError as error:
        return str(error)
    return losses


@by_day("muon", "lamb", "adafactor")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_mesh_whose_ranks_are_in_another_order_works_as_in_order_or_is_refused_by_name(name, two):
    expected = two.run(weights_under_fsdp, name, [0, 1], limit=DEADLINE)
    answers = two.run(weights_under_fsdp, name, [1, 0], limit=DEADLINE)
    if name in ("adamw", "clip", "lamb"):
        assert answers == expected
        return
    for answer in answers:
        assert "the ranks of its mesh, [1, 0], are not in ascending order" in answer
        if name != "adafactor":
            assert answer.startswith("parameter '")


def in_columns(name):
    """Two meshes of a grid whose rows are not consecutive."""
    mesh = DeviceMesh("cpu", torch.tensor([[0, 2], [1, 3]]))
    expected = trained(name, torch.clone)
    placements = [Shard(0), Shard(0)]
    params = trained(name, lambda tensor: distribute_tensor(tensor.clone(), mesh, placements, src_data_rank=None))
    for key, param in params.items():
        own = distribute_tensor(expected[key].detach(), mesh, placements, src_data_rank=None)
        torch.testing.assert_close(local(param).detach(), local(own), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["soap"])
def test_ranks_of_a_mesh_need_not_be_consecutive(name, four):
    four.run(in_columns, name, limit=DEADLINE)
