"""FSDP2: what puts other memory into a parameter or a slot, in the same object, as moving a module does."""

import copy

import pytest
import torch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import gradtx
from gradtx.base.dtensor import from_local_like, local
from tests.distributed.problems import Model, assert_close, batch, loss_of, sharded, states, weights
from tests.tiers import by_day

CHAINS = {
    "adamw": gradtx.adamw(lr=1e-2),
    "clip and adamw": gradtx.chain(gradtx.clip_by_global_norm(0.1), gradtx.adamw(lr=1e-2)),
    "schedule free": gradtx.schedule_free_adamw(lr=1e-2),
    "lamb": gradtx.lamb(lr=1e-2),
    "muon": gradtx.muon(lr=1e-2, fallback=gradtx.adamw(lr=1e-2)),
}


def fresh(shard):
    return torch.empty_like(shard).copy_(shard)


def moved(model, optimizer):
    """What `model.cpu()` does to a model on a GPU; on the CPU, it would find nothing to do."""
    model._apply(fresh)


def moved_to_float32_and_back(model, optimizer):
    model.to(torch.float32).to(torch.float64)


def made_empty_and_loaded(model, optimizer):
    saved = {name: local(param).clone() for name, param in model.named_parameters()}
    model.to_empty(device="cpu")
    with torch.no_grad():
        for name, param in model.named_parameters():
            local(param).copy_(saved[name])


def swapped(model, optimizer):
    for param in model.parameters():
        other = torch.nn.Parameter(from_local_like(fresh(local(param.detach())), param))
        gradient, param.grad = param.grad, None
        torch.utils.swap_tensors(param, other)
        param.grad = gradient


def with_other_memory_in_slots(model, optimizer):
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, DTensor):
                value._local_tensor = value._local_tensor * 1.5


def with_swapped_slots(model, optimizer):
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, DTensor):
                torch.utils.swap_tensors(value, from_local_like(local(value) * 1.5, value))


CHANGES = {
    change.__name__: change
    for change in (
        moved, moved_to_float32_and_back, made_empty_and_loaded, swapped, with_other_memory_in_slots, with_swapped_slots
    )
}  # fmt: skip
MODES = {"lists": {}, "compiled": {"compile": True}}


def step(model, optimizer, t):
    optimizer.zero_grad()
    loss_of(model, batch(t)).backward()
    optimizer.step()


def after_a_change(chain, change, mode, released):
    """Weights and state after a change and two steps, of this optimizer and of a new one at each step."""
    found = []
    for renews in (False, True):
        model = sharded()
        optimizer = gradtx.as_optimizer(CHAINS[chain], model.named_parameters(), **MODES[mode])
        if released:
            optimizer.release_gradients()
        for t in range(5):
            if t == 3:
                CHANGES[change](model, optimizer)
            if renews and t >= 3:
                saved = copy.deepcopy(optimizer.state_dict())
                optimizer = gradtx.as_optimizer(CHAINS[chain], model.named_parameters(), **MODES[mode])
                optimizer.load_state_dict(saved)
            step(model, optimizer, t)
        found.append([weights(model), states(model, optimizer)])
    return found


@by_day("lists-moved-adamw", "compiled-moved-adamw", "lists-swapped-muon", "compiled-swapped-adamw",
        "lists-with_swapped_slots-adamw", "compiled-with_other_memory_in_slots-schedule free",
        "lists-made_empty_and_loaded-clip and adamw", "compiled-moved_to_float32_and_back-lamb")  # fmt: skip
@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("mode", MODES)
def test_steps_write_the_memory_that_weights_and_slots_have_now(mode, change, chain, two):
    for of_rank in two.run(after_a_change, chain, change, mode, False):
        assert_close(of_rank[0][0], of_rank[1][0])
        assert_close(of_rank[0][1], of_rank[1][1])


def moves_while_gradients_are_released():
    model = sharded()
    optimizer = gradtx.as_optimizer(CHAINS["adamw"], model.named_parameters())
    handle = optimizer.release_gradients()
    movements = []
    for t in range(5):
        if t == 3:
            moved(model, optimizer)
        before = weights(model)
        step(model, optimizer, t)
        movements.append(max((a - b).abs().max().item() for a, b in zip(before, weights(model), strict=True)))
    handle.remove()
    return movements


def test_released_gradients_move_the_weights_of_a_module_that_was_moved(two):
    for movements in two.run(moves_while_gradients_are_released):
        assert min(movements) > 1e-3


def replicated_in_place(mode):
    """Weights that were sharded and are replicated from the third step on, in the same objects."""
    torch.manual_seed(0)
    mesh = init_device_mesh("cpu", (2,))
    start, gradients = torch.randn(4, 3, dtype=torch.float64), torch.randn(5, 4, 3, dtype=torch.float64)
    whole = torch.nn.Parameter(start.clone())
    divided = torch.nn.Parameter(distribute_tensor(start, mesh, [Shard(0)]))
    ours = gradtx.as_optimizer(CHAINS["clip and adamw"], [divided], **MODES[mode])
    theirs = gradtx.as_optimizer(CHAINS["clip and adamw"], [whole])
    for t, gradient in enumerate(gradients):
        if t == 3:
            divided.grad = None
            other = torch.nn.Parameter(divided.detach().redistribute(mesh, [Replicate()]))
            torch.utils.swap_tensors(divided, other)
            for value in ours.state[divided].values():
                if isinstance(value, DTensor):
                    torch.utils.swap_tensors(value, value.redistribute(mesh, [Replicate()]))
        whole.grad = gradient.clone()
        divided.grad = distribute_tensor(gradient, mesh, divided.placements)
        ours.step()
        theirs.step()
    assert_close([divided.full_tensor()], [whole])


@pytest.mark.parametrize("mode", MODES)
def test_weights_with_another_placement_in_the_same_object_step_as_whole_ones(mode, two):
    two.run(replicated_in_place, mode)


def broadcast_into_fresh_slots(chain, mode):
    """Rank 0 has a state; the others receive it into the slots that torch.distributed.checkpoint makes."""
    rank = torch.distributed.get_rank()
    torch.manual_seed(0)
    found = []
    for received in (False, True):
        model = Model()
        optimizer = gradtx.as_optimizer(CHAINS[chain], model.named_parameters(), **MODES[mode])
        if rank == 0 or not received:
            for t in range(3):
                step(model, optimizer, t)
        else:
            get_optimizer_state_dict(model, optimizer)
        for param in model.parameters():
            torch.distributed.broadcast(param.detach(), 0)
            for key in sorted(optimizer.state[param]):
                torch.distributed.broadcast(optimizer.state[param][key], 0)
        saved = copy.deepcopy(optimizer.state_dict()["state"])
        for t in range(3, 5):
            step(model, optimizer, t)
        found.append([weights(model), states(model, optimizer), [saved[i] for i in sorted(saved)]])
    assert_close(found[1], found[0])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("chain", ["adamw", "schedule free"])
def test_a_state_that_is_broadcast_into_fresh_slots_is_the_state(chain, mode, two):
    two.run(broadcast_into_fresh_slots, chain, mode)


def broadcast_counts(options):
    model = Model()
    optimizer = gradtx.as_optimizer(CHAINS["adamw"], model.named_parameters(), **options)
    rank = torch.distributed.get_rank()
    for t in range(3 + rank):
        step(model, optimizer, t)
    for param in model.parameters():
        torch.distributed.broadcast(param.detach(), 0)
        for value in optimizer.state[param].values():
            torch.distributed.broadcast(value, 0)
    for t in range(4, 6):
        step(model, optimizer, t)
    counts = [state["step"].item() for state in optimizer.state.values()]
    return weights(model), counts


@pytest.mark.parametrize("options", [{}, {"compile": True}, {"capturable": True}], ids=str)
def test_ranks_go_on_with_the_counts_that_were_broadcast(options, two):
    first, second = two.run(broadcast_counts, options)
    assert set(first[1]) == set(second[1]) == {5.0}
    assert_close(second[0], first[0])
