"""What 0.1 saved still loads, and continues with equal numbers. tests/data/write.py made the files."""

import pickle
from pathlib import Path

import pytest
import torch

from tests.conformance import assert_close, layout
from tests.data.write import clipped_adamw, parameters, train, train_optimizer, transformation

DATA = Path(__file__).parent / "data"
FACTORIES = pickle.loads((DATA / "factories_0_1.pkl").read_bytes())
# The same rules in another order of operations may differ in the last bits.
EXACT = {"rtol": 1e-13, "atol": 1e-15}


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
