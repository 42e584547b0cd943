"""What selectors see as the names of parameters: nothing that was made up, nothing that a wrapper inserted."""

import copy
import fnmatch
import pickle
import re

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

import gradtx

ROLES = {"0.weight": True}
# Functions that read the name, each in another way.
READERS = {
    "in": lambda name, p: "bias" not in name,
    "a method": lambda name, p: name.endswith("weight"),
    "split": lambda name, p: int(name.split(".")[0]) > 0,
    "re": lambda name, p: re.search("bias", name) is None,
    "re and the tensor": lambda name, p: p.ndim > 1 and int(re.match(r"(\d)\.", name).group(1)) > 0,
    "fnmatch": lambda name, p: fnmatch.fnmatch(name, "*.bias"),
    "fnmatchcase": lambda name, p: fnmatch.fnmatchcase(name, "*.bias"),
    "==": lambda name, p: name == "0.weight",
    "== from the right": lambda name, p: "0.weight" == name,  # noqa: SIM300
    "a list": lambda name, p: name in ["0.weight"],
    "a set": lambda name, p: name in {"0.weight"},
    "a dict": lambda name, p: ROLES[name],
    "get": lambda name, p: ROLES.get(name, False),
    "in another string": lambda name, p: name in "0.weight 1.weight",
    "len": lambda name, p: len(name) > 3,
    "an index": lambda name, p: name[0] == "0",
    "iteration": lambda name, p: any(letter == "b" for letter in name),
    "an f-string": lambda name, p: f"{name}" == "0.weight",
    "%": lambda name, p: "model.%s" % name == "model.0.weight",  # noqa: UP031
    "+": lambda name, p: "model." + name == "model.0.weight",
    "join": lambda name, p: "".join([name]) == "0.weight",
    "str": lambda name, p: str(name) == "0.weight",
    "a method of str": lambda name, p: str.startswith(name, "0"),
    "bool": lambda name, p: bool(name) and p.ndim > 1,
}
USES = {
    "mask of a class": lambda where, params: gradtx.optim.AdamW(params, mask=where),
    "mask of an alias": lambda where, params: gradtx.as_optimizer(gradtx.lion(weight_decay=0.1, mask=where), params),
    "freeze": lambda where, params: gradtx.as_optimizer(gradtx.chain(gradtx.freeze(where), gradtx.sgd(0.1)), params),
    "masked": lambda where, params: gradtx.as_optimizer(gradtx.masked(gradtx.sgd(0.1), where), params),
    "blocks": lambda where, params: gradtx.as_optimizer(gradtx.blocks(gradtx.sgd(0.1), where, heads=2), params),
    "labels of partition": lambda where, params: gradtx.as_optimizer(
        gradtx.partition({"a": gradtx.sgd(0.1), "b": gradtx.adam()}, lambda name, p: "a" if where(name, p) else "b"),
        params,
    ),
    "a selector of partition": lambda where, params: gradtx.as_optimizer(
        gradtx.partition({"a": gradtx.sgd(0.1), "b": gradtx.adam()}, {"a": where, "b": "*"}), params
    ),
    "memory": lambda where, params: gradtx.memory(gradtx.adamw(mask=where), params),
}


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))


def backward(net):
    """Set gradients without a call of the model, which may be compiled."""
    for i, p in enumerate(net.parameters()):
        p.grad = torch.linspace(-1, 1 + i, p.numel()).view_as(p)


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("reader", READERS)
def test_a_function_that_reads_names_needs_named_parameters(reader, use):
    forms = [model().parameters(), list(model().parameters())]
    if use != "memory":  # which takes no groups
        forms.append([{"params": model().parameters()}])
    for params in forms:
        with pytest.raises(ValueError, match=r"reads the names of parameters, .* pass model.named_parameters\(\)"):
            USES[use](READERS[reader], params)


def test_the_error_names_who_asked_and_the_function():
    def decays(name, p):
        return "bias" not in name

    with pytest.raises(ValueError, match=r"^adamw: mask: decays reads the names of parameters"):
        gradtx.optim.AdamW(model().parameters(), mask=decays)


def test_the_mask_of_asam_reads_names_too():
    net = model()
    optimizer = gradtx.as_optimizer(gradtx.asam(gradtx.sgd(0.1), mask=lambda name: "weight" in name), net.parameters())
    with pytest.raises(ValueError, match=r"^asam: mask: <lambda> reads the names"):
        optimizer.step(lambda: backward(net))


@pytest.mark.parametrize("use", [use for use in USES if use != "blocks"])
def test_a_function_that_reads_only_the_tensor_needs_no_names(use):
    def is_matrix(name, p):
        return p.ndim > 1

    for params in (model().parameters(), model().named_parameters()):
        USES[use](is_matrix, params)


def test_an_error_of_the_function_itself_is_raised_as_it_is():
    with pytest.raises(AttributeError, match="object has no attribute 'is_norm'"):
        gradtx.optim.AdamW(model().parameters(), mask=lambda name, p: p.is_norm)
    with pytest.raises(TypeError, match="can only concatenate tuple"):
        gradtx.optim.AdamW(model().parameters(), mask=lambda name, p: p.shape + 1)


def test_parameters_added_without_names_have_none_either():
    net = model()
    optimizer = gradtx.optim.SGD(
        net[0].parameters(), weight_decay=0.1, mask=lambda name, p: p.ndim == 4 and "x" in name
    )
    with pytest.raises(ValueError, match="reads the names of parameters"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1, 1, 1, 1))]})


def test_an_optimizer_without_names_is_copied_and_pickled():
    optimizer = gradtx.optim.SGD(model().parameters(), lr=0.1)
    for again in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert [row.name for row in again.explain()] == ["0", "1", "2", "3"]


def test_indices_of_a_list_and_keys_of_a_dict_are_names():
    tx = gradtx.masked(gradtx.scale(2.0), lambda name, p: name in ("0", "2.w"))
    grads = [torch.ones(1), torch.ones(1), {"w": torch.ones(1)}]
    updates, _ = tx.update(grads, tx.init(grads))
    assert [updates[0].item(), updates[1].item(), updates[2]["w"].item()] == [2.0, 1.0, 2.0]


# Wrappers.


def compiled_by_layer(net):
    for i, layer in enumerate(net):
        net[i] = torch.compile(layer, backend="eager")
    return net


WRAPPED = {
    "torch.compile": lambda net: torch.compile(net, backend="eager"),
    "torch.compile of each layer": compiled_by_layer,
    "data parallel": nn.DataParallel,
    "compiled data parallel": lambda net: torch.compile(nn.DataParallel(net), backend="eager"),
    "data parallel around compiled layers": lambda net: nn.DataParallel(compiled_by_layer(net)),
    "activation checkpoints": lambda net: nn.Sequential(*map(checkpoint_wrapper, net)),
    "the average of torch": torch.optim.swa_utils.AveragedModel,
}
NAMES = ["0.weight", "0.bias", "1.weight", "1.bias"]


def names_seen(named):
    seen = []

    def selected(name, p):
        seen.append(name)
        return True

    gradtx.as_optimizer(gradtx.masked(gradtx.sgd(0.1), selected), named)
    return seen


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_selectors_see_the_names_that_the_model_has_without_wrappers(wrapper):
    net = WRAPPED[wrapper](model())
    given = [name for name, _ in net.named_parameters()]
    assert given != NAMES
    assert names_seen(net.named_parameters()) == NAMES
    optimizer = gradtx.as_optimizer(gradtx.masked(gradtx.sgd(0.1), ("0.*", "1.bias")), net.named_parameters())
    assert optimizer.param_groups[0]["param_names"] == given  # as in torch
    assert list(gradtx.label_by_role(net)) == NAMES


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_muon_for_treats_a_wrapped_model_as_the_model(wrapper):
    ours, theirs = gradtx.muon_for(WRAPPED[wrapper](model())), gradtx.muon_for(model())
    assert ours.rows == theirs.rows
    assert [len(group["params"]) for group in ours.param_groups] == [
        len(group["params"]) for group in theirs.param_groups
    ]
