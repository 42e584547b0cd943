"""Updates that autograd records: later calls repeat the operations of earlier ones, with the same derivatives."""

import contextlib

import pytest
import torch

import gradtx
from gradtx.pure import repeated_calls
from tests.conformance import assert_same, noise, plain_cases
from tests.tiers import by_day

STEPS = repeated_calls.CALLS_BEFORE + 3
SHAPES = {"a": (4, 3), "b": (5,), "c": ()}
CHAINS = {
    "adamw": lambda lr: gradtx.adamw(lr),
    "amsgrad": lambda lr: gradtx.adam(lr, amsgrad=True),
    "sgd": lambda lr: gradtx.sgd(lr, momentum=0.9, nesterov=True),
    "clip": lambda lr: gradtx.chain(gradtx.clip_by_global_norm(0.5), gradtx.adamw(lr)),
    "rmsprop": lambda lr: gradtx.rmsprop(lr, centered=True),
    "nadam": lambda lr: gradtx.nadam(lr),
    "adamax": lambda lr: gradtx.adamax(lr),
    "adan": lambda lr: gradtx.adan(lr),
    "accumulate": lambda lr: gradtx.accumulate(gradtx.adamw(lr), every=2),
    "lookahead": lambda lr: gradtx.chain(gradtx.adamw(lr), gradtx.lookahead()),
    "skip": lambda lr: gradtx.skip_nonfinite(gradtx.adamw(lr)),
    "radam": lambda lr: gradtx.radam(lr),
}


@pytest.fixture(autouse=True)
def forgotten():
    repeated_calls.ALL_CALLS._values.clear()


def operations():
    return [calls.operations for calls, _ in repeated_calls.ALL_CALLS._values.values() if calls.operations]


def trained(make, steps=STEPS, shapes=SHAPES, requires=("scale", "start", "rate")):
    """Train differentiably; return what was trained, and the tensors to differentiate by."""
    scale = {name: x.requires_grad_("scale" in requires) for name, x in noise(1, shapes).items()}
    params = start = {name: x.requires_grad_("start" in requires) for name, x in noise(2, shapes).items()}
    rate = torch.tensor(0.1, dtype=torch.float64, requires_grad="rate" in requires)
    state = make(rate).init(noise(2, shapes))
    for step in range(steps):
        grads = {name: (x * (step + 1)).sin() + 0.1 for name, x in scale.items()}
        updates, state = make(rate).update(grads, state, params)
        params = gradtx.apply_updates(params, updates)
    return (params, state), [x for x in [*scale.values(), *start.values(), rate] if x.requires_grad]


def derivatives(result, inputs):
    params, _ = result
    loss = sum((x - 1).square().sum() for x in params.values())
    first = torch.autograd.grad(loss, inputs, create_graph=True, allow_unused=True)
    of_first = sum(x.square().sum() for x in first if x is not None)
    return first, torch.autograd.grad(of_first, inputs, allow_unused=True)


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("requires", [("scale",), ("start",), ("rate",), ("scale", "start", "rate")], ids=" ".join)
def test_values_and_derivatives_have_the_bits_of_rules_line_by_line(name, requires):
    result, inputs = trained(CHAINS[name], requires=requires)
    with gradtx.eagerly():
        expected, expected_inputs = trained(CHAINS[name], requires=requires)
    assert_same(result, expected)
    for got, wanted in zip(
        derivatives(result, inputs), derivatives(expected, expected_inputs), strict=True
    ):  # fmt: skip
        for x, y in zip(got, wanted, strict=True):
            assert (x is None) == (y is None)
            if x is not None:
                assert torch.equal(x, y)
                assert x.requires_grad == y.requires_grad


@pytest.mark.parametrize("case", plain_cases(), ids=str)
@by_day("scale_by_sign", "scale_by_adam", "scale_by_rms")
def test_every_method_has_the_bits_of_its_rules_line_by_line(case):
    if {*case.example.needs} - {"params"}:
        pytest.skip("it needs more than gradients")
    shapes = {name: tuple(x.shape) for name, x in case.noise(0).items()}
    make = lambda rate: case.make()  # noqa: E731

    try:
        with gradtx.eagerly():
            expected, expected_inputs = trained(make, shapes=shapes, requires=("scale", "start"))
            wanted = derivatives(expected, expected_inputs)
    except (RuntimeError, ValueError) as error:
        pytest.skip(f"torch cannot differentiate it: {error}")
    result, inputs = trained(make, shapes=shapes, requires=("scale", "start"))
    if not operations():
        pytest.skip("it has a program, or runs its rules")
    assert_same(result, expected)
    for x, y in zip(
        (x for of in derivatives(result, inputs) for x in of), (x for of in wanted for x in of), strict=True
    ):
        assert (x is None) == (y is None)
        assert x is None or torch.equal(x.nan_to_num(), y.nan_to_num())


def test_derivatives_are_those_of_the_formula():
    result, inputs = trained(CHAINS["adamw"])
    assert operations()
    scale, start, rate = inputs[:3], inputs[3:6], inputs[6]
    first, second, weights = [0.0] * 3, [0.0] * 3, list(start)
    for step in range(STEPS):
        for i in range(3):
            grad = (scale[i] * (step + 1)).sin() + 0.1
            first[i] = 0.9 * first[i] + 0.1 * grad
            second[i] = 0.999 * second[i] + 0.001 * grad**2
            root = (second[i] / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
            direction = first[i] / (1 - 0.9 ** (step + 1)) / root
            weights[i] = weights[i] * (1 - 0.01 * rate) - rate * direction
    expected = derivatives((dict(enumerate(weights)), None), inputs)
    for got, wanted in zip(derivatives(result, inputs), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)


def test_a_leaf_on_which_a_loss_does_not_depend_has_no_derivative():
    (params, _), inputs = trained(CHAINS["adamw"], requires=("scale",))
    assert operations()
    first, *others = torch.autograd.grad(params["a"].sum(), inputs, allow_unused=True)
    assert first is not None
    assert others == [None, None]


def test_calls_that_record_nothing_have_no_graph():
    tx, params = gradtx.adamw(0.1), noise(0, SHAPES)
    scale = noise(1, SHAPES)
    state = tx.init(params)
    for step in range(2 * STEPS):
        grads = {name: x.clone().requires_grad_() * 2 for name, x in scale.items()}
        with torch.set_grad_enabled(step % 2 == 0):
            updates, _ = tx.update(grads, state, params)
        assert updates["a"].requires_grad == (step % 2 == 0)


def test_a_rule_of_a_user_runs_in_every_call():
    calls = []

    @gradtx.per_tensor(elementwise=True)
    def counting():
        def update(update, state, param, ctx):
            calls.append(update)
            return -update, state

        return update

    tx = counting()
    grads = {"a": torch.ones(3, requires_grad=True)}
    for _ in range(STEPS):
        tx.update(grads, tx.init(grads))
    assert len(calls) == STEPS


def test_a_long_loop_is_warned_once():
    tx, params = gradtx.adamw(0.1), {"a": torch.ones(3, requires_grad=True)}
    grads, state = {"a": torch.ones(3)}, tx.init(params)

    def train(state):
        for _ in range(120):
            _, state = tx.update(grads, state, params)

    with pytest.warns(UserWarning, match="updates was recorded") as warned:
        train(state)
    assert len(warned) == 1
    assert operations()


def test_weights_in_other_layouts_keep_these():
    tx = gradtx.adamw(0.1)
    params = {"a": torch.randn(4, 3).mT.requires_grad_()}
    state = tx.init(params)
    for _ in range(STEPS):
        updates, state = tx.update({"a": torch.ones(3, 4)}, state, params)
        with gradtx.eagerly():
            expected, _ = tx.update({"a": torch.ones(3, 4)}, tx.init(params), params)
        assert updates["a"].stride() == expected["a"].stride()


@pytest.mark.parametrize("absent", ["a", "b", "c"])
def test_a_leaf_without_a_gradient_may_have_an_update(absent):
    """Every other call returns a mean, also for a leaf whose gradient only the call before had."""
    results = []
    for eager in (False, True):
        tx = gradtx.accumulate(gradtx.adamw(), every=2)
        params, scale = noise(2, SHAPES), torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
        state, returned = tx.init(params), []
        for step in range(4 * STEPS):
            grads = {name: (x * (step + 1)).sin() * scale for name, x in params.items()}
            if step % 2:
                grads[absent] = None
            with gradtx.eagerly() if eager else contextlib.nullcontext():
                updates, state = tx.update(grads, state, params)
            returned.append(updates)
        (slope,) = torch.autograd.grad(sum(x.sum() for x in updates.values()), scale)
        results.append((returned, state, slope))
    assert operations()
    assert_same(*results)
