"""Where torch.optim has an optimizer of the same name, ours takes the same steps."""

import pytest
import torch

import gradtx
from tests.algorithms.shared_with_torch import SHARED
from tests.optim.problems import assert_close, assert_equal, descend, parameters, twins, values

# The same sums in a different order: torch updates in place with fused operations.
TOLERANCE = 1e-12

SGD = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "dampening": 0.5},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1, "maximize": True},
    {"lr": 0, "momentum": 1},
]
ADAM = [
    {},
    {"betas": (0.5, 0.6), "eps": 1e-3},
    {"betas": (0.0, 0.0)},
    {"betas": (0.0, 0.9), "amsgrad": True},
    {"weight_decay": 0.1, "amsgrad": True},
    {"weight_decay": 0.1, "maximize": True},
    {"lr": 0, "eps": 1},
]
RADAM = [
    {},
    {"betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.1},
    {"weight_decay": 0.1, "decoupled_weight_decay": True, "maximize": True},
    {"betas": (0.9, 0.6)},
    {"betas": (0.0, 0.0)},
]
ASGD = [
    {},
    {"lambd": 0.3, "alpha": 0.5, "t0": 4},
    {"lambd": 0.3, "alpha": 2.0, "t0": 0, "weight_decay": 0.1},
    {"lambd": 0.0, "t0": 6, "maximize": True},
]
CASES = [
    *(("SGD", options) for options in SGD),
    *(("Adam", options) for options in ADAM),
    *(("AdamW", options) for options in [*ADAM, {"weight_decay": 0.0}]),
    ("Adam", {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    *(("RAdam", options) for options in RADAM),
    *(("ASGD", options) for options in ASGD),
    ("Adafactor", {}),
    ("Adafactor", {"lr": 0.3, "beta2_decay": -0.4, "d": 1.2, "weight_decay": 0.1}),
    ("Adafactor", {"lr": 0.05, "eps": (0.2, 0.7), "maximize": True}),
    *((name, options) for name, several in SHARED.items() for options in several),
]
NAMES = ["SGD", "Adam", "AdamW", "RAdam", "Adagrad", "Adadelta", "RMSprop", "Rprop", "Adamax", "NAdam"]


def pair(name, params=parameters, **options):
    """Return our optimizer and torch's, each with its own parameters."""
    return [
        (made(ours.values(), **{"lr": 0.03, **options}), ours)
        for made, ours in ((getattr(gradtx.optim, name), params()), (getattr(torch.optim, name), params()))
    ]


def assert_same_steps(name, steps=30, tolerance=TOLERANCE, params=parameters, skip=lambda name, t: False, **options):
    (ours, own), (theirs, other) = pair(name, params, **options)
    descend(ours, own, steps, skip=skip)
    descend(theirs, other, steps, skip=skip)
    assert_close(own.values(), other.values(), tolerance)


@pytest.mark.usefixtures("float64_by_default")  # in which torch keeps some numbers
@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_thirty_steps_equal_torch(name, options):
    assert_same_steps(name, **options)


@pytest.mark.usefixtures("float64_by_default")
@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_steps_without_some_gradients_equal_torch(name, options):
    assert_same_steps(name, skip=lambda leaf, t: (t + len(leaf)) % 3 == 0, **options)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # Thirty roundings of the dtype; torch computes in half precision, and our rules in float32.
    [(torch.float32, 1e-5), (torch.bfloat16, 0.05)],
)
def test_narrow_dtypes_follow_torch(name, dtype, tolerance):
    assert_same_steps(name, tolerance=tolerance, params=lambda: parameters(dtype))


@pytest.mark.parametrize(("name", "options"), [case for case in CASES if case[0] not in ("SGD", "Adafactor")], ids=str)
def test_the_state_has_the_keys_shapes_and_dtypes_of_torch(name, options):
    (ours, own), (theirs, other) = pair(name, lambda: parameters(torch.float32), **options)
    descend(ours, own, 3)
    descend(theirs, other, 3)
    for a, b in zip(own.values(), other.values(), strict=True):
        state, expected = ours.state[a], theirs.state[b]
        assert set(state) == set(expected)
        for key, value in expected.items():
            kept = torch.float64 if key in ("mu_product", "eta", "mu") else value.dtype
            assert (state[key].shape, state[key].dtype) == (value.shape, kept)
        assert_equal(state["step"], expected["step"])


@pytest.mark.parametrize("name", ["NAdam", "ASGD", "AdamW"])
def test_numbers_are_float64_as_in_torch_if_that_is_the_default_dtype(name, float64_by_default):
    # torch follows the default dtype, with which float32 runs lose digits that ours keep.
    (ours, own), (theirs, other) = pair(name, lambda: parameters(torch.float64))
    descend(ours, own, 3)
    descend(theirs, other, 3)
    for a, b in zip(own.values(), other.values(), strict=True):
        state, expected = ours.state[a], theirs.state[b]
        numbers = {key for key, value in expected.items() if value.ndim == 0} - {"step"}
        for key in numbers:
            torch.testing.assert_close(state[key], expected[key], rtol=1e-14, atol=0.0)
    assert numbers or name == "AdamW"


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RAdam"])
def test_a_tensor_as_learning_rate_equals_torch(name):
    assert_same_steps(name, lr=torch.tensor(0.03, dtype=torch.float64))


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RAdam"])
def test_gradients_that_are_not_zeroed_accumulate_as_in_torch(name):
    results = []
    for optimizer, params in pair(name):
        for t in range(6):
            sum((p * (t + 1)).sin().sum() for p in params.values()).backward()
            if t % 2:
                optimizer.step()
            if t == 3:
                optimizer.zero_grad()
        results.append(values(params))
    assert_close(*results, tolerance=TOLERANCE)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad_is_that_of_torch(set_to_none):
    params = parameters()
    optimizer = gradtx.optim.AdamW(params.values())
    descend(optimizer, params, 1)
    optimizer.zero_grad(set_to_none=set_to_none)
    for param in params.values():
        assert (param.grad is None) if set_to_none else not param.grad.any()


@pytest.mark.parametrize("name", NAMES)
def test_maximize_climbs_where_the_default_descends(name):
    (up, params), _ = pair(name, maximize=True)
    down = twins(params)
    other = getattr(gradtx.optim, name)(down.values(), lr=0.03)
    for t in range(5):
        for a, b in zip(params.values(), down.values(), strict=True):
            a.grad = torch.full_like(a, 0.1 * (t + 1))
            b.grad = -a.grad
        up.step()
        other.step()
    assert_equal(values(params), values(down))


def test_a_gradient_with_a_graph_of_its_own_is_taken_as_it_is():
    (ours, own), (theirs, other) = pair("SGD", momentum=0.9)
    for optimizer, params in ((ours, own), (theirs, other)):
        loss = sum(param.pow(3).sum() for param in params.values())
        grads = torch.autograd.grad(loss, list(params.values()), create_graph=True)
        for param, grad in zip(params.values(), grads, strict=True):
            param.grad = grad
        optimizer.step()
    assert_close(own.values(), other.values(), TOLERANCE)
    assert not any(value.requires_grad for param in own.values() for value in ours.state[param].values())


def test_a_gradient_wider_than_its_parameter_is_rounded_once_at_the_end():
    narrow = parameters(torch.bfloat16)
    optimizer = gradtx.as_optimizer(gradtx.sgd(lr=1.0), narrow.values())
    expected = []
    for param in narrow.values():
        param.grad_dtype = torch.float32
        param.grad = torch.full(param.shape, 1 + 2**-12, dtype=torch.float32)
        expected.append((param.detach().float() - param.grad).to(torch.bfloat16))
    optimizer.step()
    assert_equal(values(narrow), expected)


@pytest.mark.slow
@pytest.mark.usefixtures("float64_by_default")
@pytest.mark.parametrize("name", ["Adagrad", "Adadelta", "RMSprop", "Rprop", "Adamax", "NAdam", "ASGD"])
def test_a_scheduler_that_warms_up_from_the_start_moves_it_as_torch(name):
    after = []
    for optimizer, params in pair(name, lr=0.1):
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=5)
        descend(optimizer, params, 10, after=scheduler.step, skip=lambda leaf, t: leaf == "head.scale" and t < 3)
        after.append(params)
    # torch keeps NAdam's product in float32
    assert_close(after[0].values(), after[1].values(), 1e-7 if name == "NAdam" else TOLERANCE)


@pytest.mark.slow
@pytest.mark.usefixtures("float64_by_default")
def test_a_parameter_of_rprop_that_first_steps_after_a_reload_takes_the_rate_of_then_as_in_torch():
    after = []
    for optimizer, params in pair("Rprop", lr=0.1):
        descend(optimizer, params, 3, skip=lambda leaf, t: leaf == "head.scale")
        own = twins(params)
        again = type(optimizer)(own.values())
        again.load_state_dict(optimizer.state_dict())
        again.param_groups[0]["lr"] = 0.03
        descend(again, own, 3, start=3)
        after.append(own)
    assert_close(after[0].values(), after[1].values(), TOLERANCE)
