"""Mistakes of the first hour: each message names what was passed and what to write instead."""

import copy
import pickle

import pytest
import torch

import gradtx

PARAMS = {"w": torch.ones(2)}


def test_a_pair_of_updates_and_state_is_not_added():
    tx = gradtx.adamw()
    pair = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    with pytest.raises(TypeError, match=r"apply_updates: updates is a pair .*updates, state = tx.update\(...\)"):
        gradtx.apply_updates(PARAMS, pair)


def test_a_pair_of_parameters_is_a_tree_like_any_other():
    params = (torch.ones(1), {"b": torch.ones(1)})
    added = gradtx.apply_updates(params, (torch.ones(1), {"b": torch.ones(1)}))
    assert added[0].item() == added[1]["b"].item() == 2.0


@pytest.mark.parametrize(
    ("factory", "name", "meant"),
    [
        (gradtx.adamw, "b1", "betas"),
        (gradtx.adam, "beta2", "betas"),
        (gradtx.lion, "b2", "betas"),
        (gradtx.sgd, "beta", "momentum"),
        (gradtx.rmsprop, "beta", "alpha"),
        (gradtx.ema, "beta", "decay"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_beta_of_another_name_is_told_the_one_here(factory, name, meant):
    with pytest.raises(TypeError, match=rf"unknown argument '{name}'; did you mean '{meant}'\?"):
        factory(**{name: 0.9})


@pytest.mark.parametrize("make", [torch.optim.AdamW, gradtx.optim.AdamW], ids=["torch", "gradtx"])
@pytest.mark.parametrize("factory", [gradtx.lookahead, gradtx.adamw, gradtx.accumulate], ids=lambda f: f.__name__)
def test_a_factory_that_is_given_an_optimizer_says_how_to_make_one(factory, make):
    optimizer = make([torch.nn.Parameter(torch.ones(2))])
    with pytest.raises(TypeError, match=r"takes no optimizer, got AdamW; .* gradtx.as_optimizer\("):
        factory(optimizer)


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        (lambda beta: gradtx.slots.square(beta), r"must be a function of the parameter, got 0.9; slots.ema\(decay\)"),
        (lambda beta: gradtx.slots.linear(beta), r"must be a function of the parameter, got 0.9; slots.ema\(decay\)"),
        (lambda beta: gradtx.slots.start(beta), r"slow must be True or False, got 0.9"),
    ],
    ids=["square", "linear", "start"],
)
def test_a_decay_in_the_place_of_a_first_value_is_an_error_where_the_slot_is_declared(declared, message):
    @gradtx.per_tensor(elementwise=True)
    def scale_by_square(beta: gradtx.Decay = 0.9):
        def update(g, state, p, ctx):
            return g, state

        return {"exp_avg_sq": declared(beta)}, update

    with pytest.raises(TypeError, match=message):
        scale_by_square().init(PARAMS)


@pytest.fixture
def group():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield torch.distributed.group.WORLD
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("place", ["optimizer", "outer"])
def test_an_optimizer_with_a_process_group_is_copied_and_says_how_to_save_it(place, group):
    weight = torch.nn.Parameter(torch.ones(2))
    if place == "optimizer":
        optimizer = gradtx.as_optimizer(gradtx.adamw(), [("w", weight)], process_group=group)
    else:
        tx = gradtx.outer(gradtx.adamw(), gradtx.sgd(lr=0.7), every=2, process_group=group)
        assert copy.copy(tx) is tx
        optimizer = gradtx.as_optimizer(tx, [("w", weight)])
    weight.grad = torch.ones(2)
    optimizer.step()
    again = copy.deepcopy(optimizer)
    (copied,) = again.param_groups[0]["params"]
    for one, param in ((optimizer, weight), (again, copied)):
        param.grad = torch.ones(2)
        one.step()
    assert torch.equal(copied, weight)
    with pytest.raises(TypeError, match="process_group belongs to this process and cannot be pickled; save the state"):
        pickle.dumps(optimizer)
