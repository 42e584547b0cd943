"""What owners keep goes through torch.distributed.checkpoint by rows, from one world into another."""

import copy

import pytest
import torch
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

import gradtx
from tests.codecs import DOUBLY
from tests.distributed.problems import Model, sharded, train, whole
from tests.tiers import by_day

BEFORE, STEPS = 3, 6
CHAINS = {
    "soap": gradtx.soap(lr=0.02, precondition_frequency=2, merge_dims=True),
    "shampoo": gradtx.shampoo(lr=0.02, momentum=0.5),
    "soap in part": gradtx.partition(
        {"matrix": gradtx.soap(lr=0.02), "rest": gradtx.adamw()}, {"matrix": "*body.weight", "rest": "*"}
    ),
    "coded": gradtx.chain(gradtx.scale_by_soap(state_dtype={"exp_avg": torch.bfloat16}), gradtx.scale(-0.02)),
    "with parts": gradtx.chain(gradtx.scale_by_soap(state_dtype={"exp_avg": DOUBLY}), gradtx.scale(-0.02)),
}


def made(name):
    model = sharded()
    return model, gradtx.as_optimizer(CHAINS[name], model.named_parameters())


def slots(optimizer):
    entries = optimizer.state_dict()["state"].values()
    return [{key: whole(value) for key, value in entry.items()} for entry in entries]


def save(folder, name):
    model, optimizer = made(name)
    train(model, optimizer, BEFORE)
    parts = {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}
    checkpoint.save(parts, checkpoint_id=folder)
    saved = slots(optimizer)
    train(model, optimizer, STEPS - BEFORE, start=BEFORE)
    return saved, slots(optimizer)


def load(folder, name):
    model, optimizer = made(name)
    parts = {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}
    checkpoint.load(parts, checkpoint_id=folder)
    set_model_state_dict(model, parts["model"])
    set_optimizer_state_dict(model, optimizer, parts["optimizer"])
    loaded = slots(optimizer)
    train(model, optimizer, STEPS - BEFORE, start=BEFORE)
    return loaded, slots(optimizer)


@by_day(
    "shampoo-1-2", "soap in part-2-1", "soap in part-2-2", "soap in part-2-4",
    "with parts-1-2", "with parts-2-1", "with parts-2-2",
)  # fmt: skip
@pytest.mark.parametrize(("source", "target"), [(2, 1), (1, 2), (2, 2), (2, 4)])
@pytest.mark.parametrize("name", CHAINS)
def test_a_run_continues_in_another_world(name, source, target, one, two, four, tmp_path):
    worlds = {1: one, 2: two, 4: four}
    saved, final = worlds[source].run(save, str(tmp_path), name)[0]
    loaded, continued = worlds[target].run(load, str(tmp_path), name)[0]
    torch.testing.assert_close(loaded, saved, rtol=0, atol=0)
    # Gradients are sums over the processes of FSDP2, in another order.
    exact = source == target
    torch.testing.assert_close(continued, final, rtol=0 if exact else 1e-7, atol=0 if exact else 1e-7)


def rows_and_replicas():
    """A state dict of version 0.1, in which factors are whole on every rank."""
    model, optimizer = made("soap")
    train(model, optimizer, BEFORE)
    state_dict = optimizer.state_dict()
    old = copy.deepcopy(state_dict)
    for entry in old["state"].values():
        for key, value in entry.items():
            if isinstance(value, DTensor) and key.startswith(("GG", "Q")):
                entry[key] = distribute_tensor(value.full_tensor(), value.device_mesh, [Replicate()])
    _, other = made("soap")
    other.load_state_dict(old)
    torch.testing.assert_close(slots(other), slots(optimizer), rtol=0, atol=0)
    factors = [value for entry in state_dict["state"].values() for key, value in entry.items() if key == "GG_0"]
    return [value.to_local().shape[0] < value.shape[0] for value in factors]


def test_factors_are_saved_by_rows_and_whole_ones_of_old_checkpoints_load(two):
    for are_parts in two.run(rows_and_replicas):
        assert any(are_parts)


def whole_state_continues():
    model, optimizer = made("soap")
    train(model, optimizer, BEFORE)
    on_first = StateDictOptions(full_state_dict=True, cpu_offload=True)
    saved = get_optimizer_state_dict(model, optimizer, options=on_first)
    other = gradtx.as_optimizer(CHAINS["soap"], model.named_parameters())
    everywhere = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_optimizer_state_dict(model, other, saved, options=everywhere)
    torch.testing.assert_close(slots(other), slots(optimizer), rtol=0, atol=0)
    plain = Model()
    reference = gradtx.as_optimizer(CHAINS["soap"], plain.named_parameters())
    train(plain, reference, BEFORE)
    reference.load_state_dict(_with_numbers(saved, reference) if saved else reference.state_dict())


def _with_numbers(saved, reference):
    """A whole state dict by names, as one process has it by numbers."""
    state_dict = reference.state_dict()
    names = state_dict["param_groups"][0]["param_names"]
    return {**state_dict, "state": {i: saved["state"][name] for i, name in enumerate(names)}}


def test_a_state_gathered_on_the_first_process_continues(two):
    two.run(whole_state_continues)
