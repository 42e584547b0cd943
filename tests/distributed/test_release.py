"""Gradients that are released during backward, on several processes."""

import pytest

import gradtx
from tests.distributed.problems import Model, batch, loss_of, sharded, weights, whole
from tests.optim.problems import assert_equal
from tests.tiers import by_day

TRANSFORMATIONS = {
    "adamw": gradtx.adamw(lr=1e-2, weight_decay=0.1),
    "muon": gradtx.muon(lr=1e-2, fallback=gradtx.adamw(lr=1e-2)),
    "muon and adamw": gradtx.partition(
        {"matrices": gradtx.muon(lr=1e-2), "rest": gradtx.adamw(lr=1e-2)},
        {"matrices": lambda name, param: param.ndim == 2, "rest": "*"},
    ),
    "soap": gradtx.soap(lr=1e-2, precondition_frequency=2),
    "stale clip and muon": gradtx.chain(
        gradtx.clip_by_global_norm(0.1, stale=True), gradtx.muon(lr=1e-2, fallback=gradtx.adamw(lr=1e-2))
    ),
    "lamb": gradtx.lamb(lr=1e-2),
    "accumulate": gradtx.accumulate(gradtx.adamw(lr=1e-2), every=2),
    "stale": gradtx.chain(gradtx.clip_by_global_norm(0.1, stale=True), gradtx.adamw(lr=1e-2)),
}


def saved(optimizer):
    """The saved slots, in one piece, whichever rank keeps them."""
    entries = optimizer.state_dict()["state"]
    in_order = [entries[key] for key in sorted(entries)]  # they come with gradients, during backward the last first
    return [{key: whole(value) for key, value in entry.items()} for entry in in_order]


def trained(name, released, compile):
    model = sharded()
    optimizer = gradtx.as_optimizer(TRANSFORMATIONS[name], model.named_parameters(), compile=compile)
    if released:
        optimizer.release_gradients()
    for i in range(4):
        loss_of(model, batch(i)).backward()
        assert all((p.grad is None) == released for p in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
    return weights(model), saved(optimizer)


def released_equals_ordinary(name, compile):
    assert_equal(trained(name, True, compile), trained(name, False, compile))


@by_day("muon", "lamb")
@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_sharded_parameters_step_during_backward_bit_for_bit(name, two):
    two.run(released_equals_ordinary, name, False)


def test_compiled_programs_step_shards_during_backward(two):
    two.run(released_equals_ordinary, "adamw", True)


def replicated_is_warned():
    optimizer = gradtx.optim.AdamW(Model().parameters())
    with pytest.warns(UserWarning, match=r"release_gradients: do not wrap .* DistributedDataParallel.*fully_shard"):
        optimizer.release_gradients()


def test_replicated_parameters_are_warned_of(two):
    two.run(replicated_is_warned)
