"""Evaluation weights, for the duration of a block."""

import pickle

import pytest
import torch

import gradtx
from tests.optim.chains import CHAINS
from tests.optim.problems import assert_close, assert_equal, descend, functional, parameters, values

TOLERANCE = 1e-12  # the same float64 sums in a different order

TRACKING = {
    "average": gradtx.chain(gradtx.sgd(lr=0.1), gradtx.average()),
    "exponential average": gradtx.chain(gradtx.adam(lr=0.1), gradtx.average(decay=0.9)),
    "lookahead": gradtx.chain(gradtx.sgd(lr=0.1), gradtx.lookahead(k=3)),
    "with lookahead": gradtx.with_lookahead(gradtx.sgd(lr=0.1), k=3),
    "inside a partition": gradtx.partition(
        {"head": gradtx.chain(gradtx.sgd(lr=0.1), gradtx.average()), "body": gradtx.with_lookahead(gradtx.adam(), k=3)},
        {"head": "head.*", "body": "*"},
    ),
    "inside accumulate": gradtx.accumulate(gradtx.chain(gradtx.sgd(lr=0.1), gradtx.average()), every=2),
    "frozen": gradtx.chain(gradtx.sgd(lr=0.1), gradtx.average(), gradtx.freeze("head.*")),
    "none": gradtx.adam(lr=0.1),
}


def trained(tx, steps=5, dtype=torch.float64, **options):
    params = parameters(dtype)
    optimizer = gradtx.as_optimizer(tx, list(params.items()))
    descend(optimizer, params, steps, **options)
    return optimizer, params


@pytest.mark.parametrize("name", TRACKING)
def test_the_block_has_the_weights_that_the_functional_loop_evaluates_with(name):
    tx = TRACKING[name]
    optimizer, params = trained(tx)
    weights, state = functional(tx, parameters(), 5)
    before = values(params)
    with optimizer.eval_params():
        assert_close(params.values(), tx.eval_params(state, weights).values(), TOLERANCE)
    assert_equal(values(params), before)


@pytest.mark.parametrize("has_version", [True, False], ids=["a version", "data"])
def test_weights_written_in_evaluation_mode_are_lost_with_a_warning(has_version):
    optimizer, params = trained(TRACKING["average"])
    before = values(params)
    optimizer.eval()
    weight = params["body.weight"]
    (weight.detach() if has_version else weight.data).fill_(7.0)
    with pytest.warns(UserWarning, match=r"train: 1 of \d+ parameters were written after eval\(\).*in training mode"):
        optimizer.train()
    assert_equal(values(params), before)
    optimizer.eval()
    copied = pickle.loads(pickle.dumps(optimizer))  # whose parameters nothing writes
    copied.train()
    optimizer.train()


def test_half_precision_weights_are_put_back_bit_for_bit():
    optimizer, params = trained(TRACKING["exponential average"], dtype=torch.bfloat16)
    before = values(params)
    with optimizer.eval_params():
        assert not torch.equal(params["body.weight"], before[0])
    assert_equal(values(params), before)


def test_weights_are_put_back_when_the_block_raises():
    optimizer, params = trained(TRACKING["average"])
    before = values(params)
    with pytest.raises(KeyError), optimizer.eval_params():
        raise KeyError
    assert_equal(values(params), before)


def test_blocks_may_be_nested():
    optimizer, params = trained(TRACKING["average"])
    before = values(params)
    with optimizer.eval_params():
        inner = values(params)
        with optimizer.eval_params():
            assert_equal(values(params), inner)
        assert_equal(values(params), inner)
    assert_equal(values(params), before)


def test_the_parameters_stay_the_same_objects_with_the_same_memory():
    optimizer, params = trained(TRACKING["lookahead"])
    pointers = [param.data_ptr() for param in params.values()]
    with optimizer.eval_params():
        assert [param.data_ptr() for param in params.values()] == pointers
        assert all(param.requires_grad for param in params.values())


def test_the_block_leaves_state_and_training_alone():
    for name in ("average", "inside a partition", "inside accumulate"):
        optimizer, params = trained(TRACKING[name])
        with optimizer.eval_params():
            pass
        descend(optimizer, params, 3, start=5)
        expected, own = trained(TRACKING[name], 8)
        assert_equal(values(params), values(own))
        assert_equal(optimizer.state_dict(), expected.state_dict())


@pytest.mark.slow
def test_every_chain_can_be_evaluated_before_and_after_steps():
    for tx in CHAINS.values():
        optimizer, params = trained(tx, 0)
        before = values(params)
        with optimizer.eval_params():
            assert_equal(values(params), before)
        descend(optimizer, params, 2)
        with optimizer.eval_params():
            assert all(param.isfinite().all() for param in params.values())
