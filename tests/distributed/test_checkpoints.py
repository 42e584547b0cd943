"""torch.distributed.checkpoint: states by name of parameter, in one piece or divided, from one world into another."""

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

import gradtx
from gradtx import chain
from gradtx.base.dtensor import local
from tests.distributed.problems import (
    CHAINS,
    STEPS,
    Model,
    assert_close,
    engine,
    sharded,
    states,
    train,
    weights,
    whole,
)
from tests.tiers import by_day

BEFORE = 3
KINDS = [
    "clip and adamw",
    "adamp",
    "distance",
    "schedule",
    "accumulate",
    "partition",
    "freeze",
    "lookahead",
    "record",
    "sgd",
    "random",
]


def made(name, compile):
    model = sharded()
    return model, gradtx.as_optimizer(CHAINS[name], model.named_parameters(), compile=compile)


def options(flat):
    return StateDictOptions(flatten_optimizer_state_dict=flat)


def save(folder, name, kind, flat, steps):
    with engine(kind) as compile:
        model, optimizer = made(name, compile)
        train(model, optimizer, steps)
    parts = {
        "model": get_model_state_dict(model),
        "optimizer": get_optimizer_state_dict(model, optimizer, options=options(flat)),
    }
    checkpoint.save(parts, checkpoint_id=folder)
    return weights(model), states(model, optimizer)


def load(folder, name, kind, flat, steps):
    """Takes the rest of the steps; the results are those of a run in one piece."""
    with engine(kind) as compile:
        model, optimizer = made(name, compile)
    with torch.no_grad():
        for param in model.parameters():
            param.zero_()
    parts = {
        "model": get_model_state_dict(model),
        "optimizer": get_optimizer_state_dict(model, optimizer, options=options(flat)),
    }
    checkpoint.load(parts, checkpoint_id=folder)
    set_model_state_dict(model, parts["model"])
    set_optimizer_state_dict(model, optimizer, parts["optimizer"], options=options(flat))
    found = weights(model), states(model, optimizer)
    with engine(kind):
        train(model, optimizer, STEPS - steps, start=steps)
    plain = Model()
    reference = gradtx.as_optimizer(CHAINS[name], plain.named_parameters())
    train(plain, reference, STEPS)
    assert_close(weights(model), weights(plain))
    assert_close(states(model, optimizer), states(plain, reference))
    return found


CASES = [(name, False, BEFORE) for name in KINDS]
CASES += [(name, True, BEFORE) for name in ("clip and adamw", "distance", "accumulate", "partition", "freeze")]
CASES += [(name, flat, 0) for name in ("clip and adamw", "freeze", "lookahead") for flat in (False, True)]
# Those of which kernels update divided tensors; the others run over lists.
IN_KERNELS = ["sgd", "accumulate", "partition", "lookahead"]
CASES = [(*case, "eager") for case in CASES] + [(name, False, BEFORE, "compiled") for name in IN_KERNELS]


@by_day(
    "adamp-False-3-eager-1-2", "distance-False-3-eager-2-1", "partition-False-3-eager-2-1",
    "record-False-3-eager-2-1", "random-False-3-eager-1-2", "accumulate-True-3-eager-1-2",
    "lookahead-True-0-eager-1-2", "accumulate-False-3-compiled-1-2", "lookahead-False-3-compiled-1-2",
)  # fmt: skip
@pytest.mark.parametrize(("source", "target"), [(2, 1), (1, 2)])
@pytest.mark.parametrize(("name", "flat", "steps", "kind"), CASES)
def test_a_run_continues_in_another_world(name, flat, steps, source, target, kind, one, two, tmp_path):
    worlds = {1: one, 2: two}
    saved = worlds[source].run(save, str(tmp_path), name, kind, flat, steps)[0]
    found = worlds[target].run(load, str(tmp_path), name, kind, flat, steps)[0]
    for got, expected in zip(found, saved, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


def torchs_run_continues(folder, flat, kind):
    model = sharded()
    theirs = torch.optim.AdamW(model.parameters(), lr=1e-2)
    train(model, theirs, BEFORE)
    state = get_optimizer_state_dict(model, theirs, options=options(flat))
    checkpoint.save({"optimizer": state}, checkpoint_id=folder)
    ours = gradtx.optim.AdamW(model.parameters(), compile=kind != "eager")
    found = get_optimizer_state_dict(model, ours, options=options(flat))
    checkpoint.load({"optimizer": found}, checkpoint_id=folder)
    set_optimizer_state_dict(model, ours, found, options=options(flat))
    with engine(kind):
        train(model, ours, STEPS - BEFORE, start=BEFORE)
    plain = Model()
    train(plain, torch.optim.AdamW(plain.parameters(), lr=1e-2), STEPS)
    assert_close(weights(model), weights(plain))


@by_day("nested-compiled", "flattened-eager")
@pytest.mark.parametrize("kind", ["eager", "compiled"])
@pytest.mark.parametrize("flat", [False, True], ids=["nested", "flattened"])
def test_a_sharded_run_of_torchs_adamw_continues(flat, kind, two, tmp_path):
    two.run(torchs_run_continues, str(tmp_path), flat, kind)


@gradtx.per_tensor(whole=True)
def keep_parts_at_owners():
    """Slots that are parts of a larger tensor, transposed, and twice the same one, which an owner computes."""

    def slots_of(p):
        larger = torch.cat([p, p])
        return {"part": larger.flatten()[::3], "transposed": (p + 1).mT, "same": larger, "again": larger}

    def update(g, state, p, ctx):
        return g, slots_of(g)

    return {name: lambda p, name=name: slots_of(p)[name] for name in ("part", "transposed", "same", "again")}, update


@gradtx.per_tensor()
def keep_parts():
    def slots_of(p):
        larger = torch.cat([p, p])
        return {"part": larger.flatten()[::3], "flat": larger.flatten()}

    def update(g, state, p, ctx):
        return g, slots_of(g)

    return {name: lambda p, name=name: slots_of(p)[name] for name in ("part", "flat")}, update


PARTS = {
    "prodigy": gradtx.prodigy(slice_p=3),
    "parts": chain(keep_parts(), gradtx.scale(-0.1)),
    "parts at owners": gradtx.partition(
        {"matrices": chain(keep_parts_at_owners(), gradtx.scale(-0.1)), "rest": gradtx.prodigy(slice_p=3)},
        {"matrices": "*body.weight", "rest": "*"},
    ),
}


def broadcast_from_the_first(name, kind):
    model = sharded()
    with engine("eager") if kind != "eagerly" else gradtx.eagerly():
        optimizer = gradtx.as_optimizer(PARTS[name], model.named_parameters())
        train(model, optimizer, BEFORE)
        for state in optimizer.state.values():
            tensors = [local(value) for value in state.values() if value.numel() and not value.is_meta]
            storages = {tensor.untyped_storage().data_ptr() for tensor in tensors if tensor.numel()}
            assert len(storages) == len([tensor for tensor in tensors if tensor.numel()])
            assert all(tensor.is_contiguous() for tensor in tensors)
            assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in tensors if tensor.numel())
        on_first = StateDictOptions(full_state_dict=True, cpu_offload=True)
        saved = get_optimizer_state_dict(model, optimizer, options=on_first)
        again = gradtx.as_optimizer(PARTS[name], model.named_parameters())
        everywhere = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        set_optimizer_state_dict(model, again, saved, options=everywhere)
    for ours, theirs in zip(
        again.state_dict()["state"].values(), optimizer.state_dict()["state"].values(), strict=True
    ):
        torch.testing.assert_close(
            {key: whole(value) for key, value in ours.items()},
            {key: whole(value) for key, value in theirs.items()},
            rtol=0,
            atol=0,
        )


@by_day("prodigy-lists", "parts-eagerly", "parts at owners-lists")
@pytest.mark.parametrize("kind", ["eagerly", "lists"])
@pytest.mark.parametrize("name", PARTS)
def test_slots_own_contiguous_memory_so_a_whole_state_reaches_all_ranks(name, kind, two):
    two.run(broadcast_from_the_first, name, kind)
