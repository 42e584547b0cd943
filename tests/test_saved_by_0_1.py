"""What 0.1 saved still loads, and continues with equal numbers. tests/data/write.py made the files."""

import pickle
from pathlib import Path

import pytest
import torch

import gradtx
from tests.conformance import assert_close, layout
from tests.data import write_soap
from tests.data.write import clipped_adamw, parameters, train, train_optimizer, transformation

DATA = Path(__file__).parent / "data"
FACTORIES = pickle.loads((DATA / "factories_0_1.pkl").read_bytes())
# The same rules in another order of operations may differ in the last bits.
EXACT = {"rtol": 1e-13, "atol": 1e-15}
ROTATED = {"rtol": 1e-11, "atol": 1e-13}  # momenta are turned in and out, and bases amplify it


def load(name):
    return torch.load(DATA / name, weights_only=True)


def test_a_pickled_chain_loads():
    tx = pickle.loads((DATA / "transformation_0_1.pkl").read_bytes())
    assert repr(tx) == repr(transformation())
    assert repr(tx.hyperparams) == repr(transformation().hyperparams)


@pytest.mark.parametrize("make", ["pickled", "written"])
def test_a_functional_state_continues(make):
    tx = transformation()
    if make == "pickled":
        tx = pickle.loads((DATA / "transformation_0_1.pkl").read_bytes())
    saved = load("state_0_1.pt")
    params, _ = train(tx, saved["params"], saved["state"], range(3, 6))
    assert_close(params, saved["continued"], **EXACT)


def test_a_new_run_has_the_state_of_an_old_one():
    tx = transformation()
    start = parameters()
    params, state = train(tx, start, tx.init(start), range(3))
    saved = load("state_0_1.pt")
    assert_close(params, saved["params"], **EXACT)
    assert layout(state) == layout(saved["state"])
    assert_close(state, saved["state"], **EXACT)


def test_an_optimizers_state_dict_continues():
    saved = load("optimizer_0_1.pt")
    weights = {name: torch.nn.Parameter(value) for name, value in saved["params"].items()}
    optimizer = clipped_adamw(weights)
    optimizer.load_state_dict(saved["optimizer"])
    train_optimizer(optimizer, weights, range(3, 6))
    assert_close({name: weight.detach() for name, weight in weights.items()}, saved["continued"], **EXACT)


@pytest.mark.parametrize("name", FACTORIES)
def test_a_pickled_call_of_every_factory_loads(name):
    data, text = FACTORIES[name]
    # Since then, torch's functions are shown as users write them.
    assert repr(pickle.loads(data)) == text.replace("_VariableFunctionsClass.", "torch.")


# SOAP, which is `rotated` Adam now.


def test_a_functional_state_of_soap_continues():
    saved = load("soap_0_1.pt")
    before = layout(saved["state"])
    params, state = write_soap.train(write_soap.soap(), saved["params"], saved["state"], range(5, 12))
    assert_close(params, saved["continued"], **ROTATED)
    assert set(state["scale_by_soap"]) == {"GG_0", "GG_1", "GG_2", "Q_0", "Q_1", "Q_2", "scale_by_adam_hat"}
    assert layout(saved["state"]) == before


def test_a_new_run_of_soap_takes_the_steps_of_an_old_one():
    tx, start = write_soap.soap(), write_soap.parameters()
    params, _ = write_soap.train(tx, start, tx.init(start), range(12))
    saved = load("soap_0_1.pt")["continued"]
    # The first statistics of the longer side of "wide" have rank 3 of 5, so that its first basis is partly arbitrary.
    for name in ("kernel", "bias"):
        assert_close(params[name], saved[name], **ROTATED)


def test_an_optimizers_state_dict_of_soap_continues():
    saved = load("soap_0_1.pt")
    weights = {name: torch.nn.Parameter(value) for name, value in saved["params"].items()}
    optimizer = gradtx.as_optimizer(write_soap.soap(), list(weights.items()))
    assert optimizer.state[weights["wide"]].keys() == saved["optimizer"]["state"][0].keys()
    optimizer.load_state_dict(saved["optimizer"])
    write_soap.train_optimizer(optimizer, weights, range(5, 12))
    assert_close({name: weight.detach() for name, weight in weights.items()}, saved["continued"], **ROTATED)
