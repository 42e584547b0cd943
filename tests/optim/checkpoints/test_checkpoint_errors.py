"""Checkpoints that do not fit raise an error that says why, and change nothing."""

import copy

import pytest
import torch

import gradtx
from tests.optim.chains import BIAS_OR_NOT
from tests.optim.problems import assert_equal, descend, parameters, unchanged


def trained(tx, steps=7):
    params = parameters(torch.float32)
    optimizer = gradtx.as_optimizer(tx, list(params.items()))
    descend(optimizer, params, steps)
    return optimizer, params


def _without(state, key):
    del state["state"][1][key]


BROKEN = {
    "a slot is missing": (lambda s: _without(s, "exp_avg"), "state of parameter 'body.bias' lacks 'exp_avg'"),
    "the step is missing": (lambda s: _without(s, "step"), "'body.bias' lacks 'step'"),
    "a slot is unknown": (
        lambda s: s["state"][3].update(sum=torch.zeros(())),
        "'head.scale' has 'sum', which this chain",
    ),
    "a shape differs": (
        lambda s: s["state"][1].update(exp_avg=torch.zeros(4)),
        r"'body.bias': 'exp_avg' has shape \(4,\), needs \(3,\)",
    ),
    "shared values differ": (
        lambda s: s["state"][2].update(norm=torch.tensor(9.0)),
        "'norm' is 9 here and .* for another parameter",
    ),
    "a group is missing": (
        lambda s: s["param_groups"].pop(),
        r"has groups of \[2\] parameters, the optimizer has groups of \[2, 2\]",
    ),
    "a group is shorter": (
        lambda s: s["param_groups"][1]["params"].pop(),
        r"has groups of \[2, 1\] parameters, the optimizer has groups of \[2, 2\]",
    ),
    "a number is out of range": (lambda s: s["param_groups"][1].update(lr=-1.0), r"lr must be in \[0, inf\), got -1.0"),
    "a step is negative": (lambda s: s["state"][1].update(step=torch.tensor(-1.0)), "'body.bias'.*'step'"),
    "a slot is complex": (
        lambda s: s["state"][1].update(exp_avg=torch.zeros(3, dtype=torch.complex64)),
        "'body.bias'.*'exp_avg'",
    ),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_state_dict_that_does_not_fit_is_an_error_and_changes_nothing(broken):
    damage, message = BROKEN[broken]
    params = parameters()
    items = list(params.items())
    tx = gradtx.chain(gradtx.record("norm"), gradtx.adam(lr=0.1))
    optimizer = gradtx.as_optimizer(tx, [{"params": items[:2]}, {"params": items[2:]}])
    descend(optimizer, params, 3)
    saved = copy.deepcopy(optimizer.state_dict())
    descend(optimizer, params, 2, start=3)
    damage(saved)
    with unchanged(optimizer), pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(saved)
    descend(optimizer, params, 1, start=5)


def test_the_state_of_another_chain_is_an_error_that_names_slot_and_remedy():
    saved = trained(gradtx.sgd(momentum=0.9))[0].state_dict()
    optimizer, _ = trained(gradtx.adam())
    message = "lacks 'exp_avg'; load the state of an optimizer built from the same chain, or pass strict=False"
    with unchanged(optimizer), pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(saved)


def test_strict_false_keeps_fresh_state_for_all_that_is_absent_and_carries_along_what_is_unknown():
    optimizer, _ = trained(gradtx.adam())
    saved = copy.deepcopy(optimizer.state_dict())
    del saved["state"][1]["exp_avg"]
    saved["state"][2]["sum"] = torch.zeros(())
    again, own = trained(gradtx.adam(), steps=2)
    again.load_state_dict(saved, strict=False)
    assert_equal(again.state[own["body.bias"]]["exp_avg"], torch.zeros(3))
    assert_equal(again.state[own["body.bias"]]["exp_avg_sq"], saved["state"][1]["exp_avg_sq"])
    assert_equal(again.state[own["head.weight"]]["sum"], torch.zeros(()))


def test_strict_false_still_refuses_a_wrong_shape():
    optimizer, _ = trained(gradtx.adam())
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][1]["exp_avg"] = torch.zeros(4)
    with unchanged(optimizer), pytest.raises(ValueError, match=r"shape \(4,\), needs \(3,\)"):
        optimizer.load_state_dict(saved, strict=False)


def test_labels_of_partitions_that_differ_are_an_error():
    params = list(parameters().items())
    one = gradtx.partition({"bias": gradtx.sgd(), "weight": gradtx.sgd()}, BIAS_OR_NOT)
    other = gradtx.partition({"a": gradtx.sgd(), "b": gradtx.sgd()}, {"a": ("*.bias", "*.scale"), "b": "*"})
    optimizer = gradtx.as_optimizer(one, params)
    with unchanged(optimizer), pytest.raises(ValueError, match="label 'a', the optimizer's group has 'bias'"):
        optimizer.load_state_dict(gradtx.as_optimizer(other, params).state_dict())


def test_keys_that_json_made_strings_are_an_error():
    optimizer, _ = trained(gradtx.adam(lr=0.1))
    saved = optimizer.state_dict()
    saved["state"] = {str(number): entry for number, entry in saved["state"].items()}
    with unchanged(optimizer), pytest.raises(ValueError, match="strings such as '0', as after JSON; make them numbers"):
        optimizer.load_state_dict(saved)


def test_the_state_of_torchs_lbfgs_is_one_sentence():
    params = list(parameters().values())
    theirs = torch.optim.LBFGS(params)
    for param in params:
        param.grad = torch.ones_like(param)
    theirs.step(lambda: torch.tensor(1.0))
    optimizer = gradtx.optim.LBFGS(params)
    with unchanged(optimizer), pytest.raises(TypeError) as error:
        optimizer.load_state_dict(theirs.state_dict())
    assert "saved by another class" in str(error.value)
    assert len(str(error.value)) < 150
