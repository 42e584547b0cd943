"""ASGD matches torch: the same steps and averages, and checkpoints work in both directions."""

import pytest
import torch

import gradtx
from tests.optim.problems import assert_close, descend, parameters, saved_and_loaded, twins

# The same float64 sums in a different order.
TOLERANCE = 1e-12
OPTIONS = [
    {},
    {"lambd": 0.3, "alpha": 0.5, "t0": 4},
    {"lambd": 0.3, "alpha": 2.0, "t0": 0, "weight_decay": 0.1},
    {"lambd": 0.0, "t0": 6, "maximize": True},
]

# torch stores `eta` and `mu` in the default dtype.
pytestmark = pytest.mark.usefixtures("float64_by_default")


def assert_same_averages(ours, own, theirs, other):
    averages = [ours.state[p]["ax"] for p in own.values()]
    assert_close(averages, [theirs.state[p]["ax"] for p in other.values()], TOLERANCE)
    ours_state, theirs_state = ours.state[own["body.bias"]], theirs.state[other["body.bias"]]
    for key in ("eta", "mu", "step"):
        torch.testing.assert_close(ours_state[key].double(), theirs_state[key].double(), rtol=TOLERANCE, atol=0)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("skipped", [False, True])
def test_thirty_steps_equal_torch(options, skipped):
    own, other = parameters(), parameters()
    ours, theirs = (
        gradtx.optim.ASGD(own.values(), lr=0.03, **options),
        torch.optim.ASGD(other.values(), 0.03, **options),
    )
    for optimizer, params in ((ours, own), (theirs, other)):
        descend(optimizer, params, 30, skip=lambda leaf, t: skipped and (t + len(leaf)) % 3 == 0)
    assert_close(own.values(), other.values(), TOLERANCE)
    assert_same_averages(ours, own, theirs, other)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("direction", ["torch to ours", "ours to torch"])
def test_a_checkpoint_continues(options, direction):
    classes = [torch.optim.ASGD, gradtx.optim.ASGD]
    make, remake = classes if direction == "torch to ours" else classes[::-1]
    params = parameters()
    optimizer = make(params.values(), lr=0.03, **options)
    descend(optimizer, params, 10, skip=lambda leaf, t: leaf == "head.scale")
    own = twins(params)
    other = remake(own.values(), **({"maximize": True} if options.get("maximize") else {}))
    other.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    descend(optimizer, params, 10, start=10)
    descend(other, own, 10, start=10)
    assert_close(own.values(), params.values(), TOLERANCE)
    assert_same_averages(other, own, optimizer, params)


def test_the_state_has_the_keys_and_shapes_of_torch():
    own, other = parameters(), parameters()
    ours, theirs = gradtx.optim.ASGD(own.values()), torch.optim.ASGD(other.values())
    descend(ours, own, 2)
    descend(theirs, other, 2)
    for a, b in zip(own.values(), other.values(), strict=True):
        shapes = [{key: value.shape for key, value in o.state[p].items()} for o, p in ((ours, a), (theirs, b))]
        assert shapes[0] == shapes[1]
