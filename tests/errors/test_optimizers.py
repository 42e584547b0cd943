"""Errors of `as_optimizer`, its groups and `memory`: what was given, where, and what to pass instead."""

import re

import pytest
import torch

import gradtx
from tests.errors.common import NAMED

W = torch.nn.Parameter(torch.ones(3, 2))
B = torch.nn.Parameter(torch.ones(3))
LINEAR = torch.nn.Linear(2, 3)
ADAMW = gradtx.adamw()
PAIR = "needs a tensor or a pair (name, tensor)"
FROM_MODEL = "pass model.parameters() or model.named_parameters()"


def matching(message):
    return f'^"?{re.escape(message)}"?$'  # a KeyError shows its message in quotes


def used_up():
    params = LINEAR.parameters()
    list(params)
    return params


PARAMS = {
    f"needs parameters, got None; {FROM_MODEL}": (TypeError, lambda: None),
    f"needs parameters, got 3; {FROM_MODEL}": (TypeError, lambda: 3),
    f"needs parameters, got 'abc'; {FROM_MODEL}": (TypeError, lambda: "abc"),
    f"needs parameters, got Linear(...); {FROM_MODEL}": (TypeError, lambda: LINEAR),
    "got an empty parameter list; a generator such as model.parameters() can be consumed only once": (
        ValueError,
        used_up,
    ),
    "needs a list of parameters or of groups, got a dict; pass list(params.items()), or put the group in a list": (
        TypeError,
        lambda: {"params": [W]},
    ),
    f"params[1] is None, {PAIR}": (TypeError, lambda: [W, None]),
    f"params[0] is 'w', {PAIR}": (TypeError, lambda: ["w", W]),
    f"params[0] is Linear(...), {PAIR}": (TypeError, lambda: [LINEAR]),
    f"params[1] is [tensor(shape=(3,))], {PAIR}": (TypeError, lambda: [W, [B]]),
    f"params[1] is a dict of 1, {PAIR}": (TypeError, lambda: [W, {"params": [B]}]),
    f"params[0] is (tensor(shape=(3, 2)), tensor(shape=(3,))), {PAIR}": (TypeError, lambda: [(W, B)]),
    f"params[0] is (3, tensor(shape=(3, 2))), {PAIR}": (TypeError, lambda: [(3, W)]),
    f"params[0] is ('w', tensor(shape=(3, 2)), 1), {PAIR}": (TypeError, lambda: [("w", W, 1)]),
    f"params[0] is ('w', 3), {PAIR}": (TypeError, lambda: [("w", 3)]),
    "a group is {'lr': 0.1}, needs a dict such as {'params': [...]}": (KeyError, lambda: [{"lr": 0.1}]),
    "a group is tensor(shape=(3,)), needs a dict such as {'params': [...]}": (TypeError, lambda: [{"params": [W]}, B]),
}
WRONG_GROUPS = {
    f"needs parameters, got None; {FROM_MODEL}": (TypeError, {"params": None}),
    f"needs parameters, got 7; {FROM_MODEL}": (TypeError, {"params": 7}),
    f"group['params'][0] is None, {PAIR}": (TypeError, {"params": [None]}),
    "a group is {'lr': 0.1}, needs a dict such as {'params': [...]}": (KeyError, {"lr": 0.1}),
}


@pytest.mark.parametrize(("message", "kind", "params"), [(m, *rest) for m, rest in PARAMS.items()], ids=PARAMS)
def test_what_are_no_parameters_says_where_and_what_to_pass(message, kind, params):
    with pytest.raises(kind, match=matching(f"ChainOptimizer: {message}")):
        gradtx.as_optimizer(ADAMW, params())
    with pytest.raises(kind, match=matching(f"AdamW: {message}")):
        gradtx.optim.AdamW(params())


@pytest.mark.parametrize(("message", "kind", "group"), [(m, *r) for m, r in WRONG_GROUPS.items()], ids=WRONG_GROUPS)
def test_a_group_that_is_none_is_not_added(message, kind, group):
    optimizer = gradtx.as_optimizer(ADAMW, [W])
    before = repr(optimizer)
    with pytest.raises(kind, match=matching(f"ChainOptimizer: {message}")):
        optimizer.add_param_group(dict(group))
    assert repr(optimizer) == before
    with pytest.raises(kind, match=matching(f"ChainOptimizer: {message}")):
        gradtx.as_optimizer(ADAMW, [dict(group)])


OWN_KERNELS = "gradtx writes its own kernels, which take no modes or options of torch.compile"
OPTIONS = {
    "ChainOptimizer: seed must be an int, got tensor(shape=(2,))": (TypeError, {"seed": torch.ones(2)}),
    f"ChainOptimizer: seed must fit in 64 bits, got {2**80}": (ValueError, {"seed": 2**80}),
    f"compile must be True, False or an Engine, got 'max-autotune'; {OWN_KERNELS}": (
        TypeError,
        {"compile": "max-autotune"},
    ),
    f"compile must be True, False or an Engine, got {{'max_autotune': True}}; {OWN_KERNELS}": (
        TypeError,
        {"compile": {"max_autotune": True}},
    ),
}


@pytest.mark.parametrize(("message", "kind", "options"), [(m, *rest) for m, rest in OPTIONS.items()], ids=OPTIONS)
def test_an_option_that_makes_no_sense_is_refused_when_the_optimizer_is_made(message, kind, options):
    with pytest.raises(kind, match=matching(message)):
        gradtx.as_optimizer(ADAMW, [W], **options)


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
@pytest.mark.parametrize("params", [[W, B, W], [("w", W), ("b", B), ("v", W)]])
def test_a_parameter_that_is_twice_in_a_group_is_there_once(params):
    optimizer = gradtx.as_optimizer(ADAMW, params)
    (group,) = optimizer.param_groups
    assert [id(param) for param in group["params"]] == [id(W), id(B)]
    assert group.get("param_names", ["w", "b"]) == ["w", "b"]
    optimizer.load_state_dict(optimizer.state_dict())


PLANS = {
    "memory: got no parameters": (ValueError, torch.nn.ReLU),
    f"memory: leaf '3' is a int, needs a tensor or None{NAMED}": (TypeError, lambda: [(3, 4)]),
    f"memory: leaf '0.0' is a str, needs a tensor or None{NAMED}": (TypeError, lambda: [("w", B, 1)]),
    f"memory: leaf 'w' is a str, needs a tensor or None{NAMED}": (TypeError, lambda: {"w": "3x4"}),
    "memory: 'weight' is lazy and has no shape yet; run the model once on an input": (
        ValueError,
        lambda: torch.nn.LazyLinear(3),
    ),
}


@pytest.mark.parametrize(("message", "kind", "params"), [(m, *rest) for m, rest in PLANS.items()], ids=PLANS)
def test_memory_of_what_are_no_parameters_says_what_to_pass(message, kind, params):
    with pytest.raises(kind, match=matching(message)):
        gradtx.memory(ADAMW, params())
