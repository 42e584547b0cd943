"""Extras that do not come from a closure: per leaf, as a list in parameter order or a dict by name."""

import pytest
import torch

import gradtx
from tests.optim.problems import assert_close, functional, made, parameters, set_gradients, unchanged, values

TOLERANCE = 1e-12  # the same float64 sums in a different order


@gradtx.per_tensor(needs=("hessian_diag",))
def newton():
    def update(update, state, param, ctx):
        return -update / ctx.hessian_diag, state

    return update


@gradtx.per_tensor(extras={"fisher": "leaf", "temperature": "scalar?"})
def natural():
    def update(update, state, param, ctx):
        return -update / ctx.fisher, state

    return update


@pytest.mark.parametrize(
    ("tx", "message"),
    [
        (newton(), r"newton needs hessian_diag: call step\(closure, hessian_diag=\.\.\.\)"),
        (natural(), r"natural needs fisher: call step\(closure, fisher=\.\.\.\)"),
    ],
    ids=["hessian_diag", "fisher"],
)
def test_a_missing_extra_is_an_error_that_says_what_to_call_and_changes_nothing(tx, message):
    optimizer, params = made(gradtx.chain(tx, gradtx.trace(0.9)))
    set_gradients(params)
    with unchanged(optimizer), pytest.raises(ValueError, match=message):
        optimizer.step()


def test_an_unknown_extra_is_an_error_with_a_suggestion():
    optimizer, params = made(newton())
    set_gradients(params)
    with (
        unchanged(optimizer),
        pytest.raises(TypeError, match="unknown extra 'hesian_diag'; did you mean 'hessian_diag'"),
    ):
        optimizer.step(hesian_diag=[])


@pytest.mark.parametrize("form", [list, tuple, lambda h: dict(zip(parameters(), h, strict=True))])
@pytest.mark.parametrize("labels", [None, {"bias": "*.bias", "weight": "*"}])
def test_extras_by_leaf_come_as_a_list_in_parameter_order_or_a_dict_by_name(form, labels):
    tx = newton() if labels is None else gradtx.partition({"bias": newton(), "weight": newton()}, labels)
    optimizer, params = made(tx)
    before = values(params)
    for param in params.values():
        param.grad = torch.ones_like(param)
    diagonal = [torch.full_like(param, 2.0 + i) for i, param in enumerate(params.values())]
    optimizer.step(hessian_diag=form(diagonal))
    expected = [old - 1 / h for old, h in zip(before, diagonal, strict=True)]
    assert_close(params.values(), expected, TOLERANCE)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda h: h[:2], "hessian_diag: needs one tensor per parameter, got 2 tensors for 4 parameters"),
        (lambda h: {"body.weight": h[0], "tail": h[1]}, "hessian_diag: leaf 'body.bias' is missing"),
        (lambda h: [*h[:3], torch.ones(7)], "'head.scale'.*shape"),
    ],
    ids=["too few", "another name", "another shape"],
)
def test_extras_by_leaf_that_do_not_fit_are_an_error_that_changes_nothing(wrong, message):
    optimizer, params = made(gradtx.chain(newton(), gradtx.trace(0.9)))
    set_gradients(params)
    diagonal = [torch.ones_like(param) for param in params.values()]
    with unchanged(optimizer), pytest.raises(ValueError, match=message):
        optimizer.step(hessian_diag=wrong(diagonal))


def test_a_leaf_without_gradient_needs_no_extra():
    optimizer, params = made(natural())
    set_gradients(params, skip=lambda name, t: name == "head.scale")
    fisher = [torch.ones_like(param) for param in params.values()]
    fisher[-1] = None
    optimizer.step(fisher=fisher)
    expected, _ = functional(gradtx.scale(-1.0), parameters(), 1, lambda name, t: name == "head.scale")
    assert_close(params.values(), expected.values(), TOLERANCE)


def shaped(params, shape):
    tree = {name: torch.ones_like(p) for name, p in params.items()}
    tree[max(tree)] = torch.ones(shape)
    return tree


@pytest.mark.slow
@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("steps", [0, 1])
@pytest.mark.parametrize(
    ("tx", "good", "bad", "message"),
    [
        (gradtx.adahessian(lr=0.1), {"hessian_diag": 3}, {"hessian_diag": 4}, "hessian_diag: leaf 'z' has shape"),
        (gradtx.sophia(lr=0.1), {"hessian_diag": 3}, {"hessian_diag": 4}, "hessian_diag: leaf 'z' has shape"),
        (gradtx.scale_by_local_smoothness(), {"prev_grad": 3}, {"prev_grad": 4}, "prev_grad: leaf 'z' has shape"),
        (natural(), {"fisher": 3}, {"fisher": 4}, "fisher: leaf 'z' has shape"),
        (gradtx.momo(lr=0.1), {"value": 1.0}, {"value": torch.ones(2)}, "value must be 0-d"),
    ],
    ids=["adahessian", "sophia", "smoothness", "user's", "momo"],
)
def test_an_extra_that_only_the_last_leaf_cannot_take_changes_nothing(tx, good, bad, message, steps, compile):
    params = {name: torch.nn.Parameter(torch.ones(3, dtype=torch.float64)) for name in "ayz"}
    transforms = {"first": gradtx.sgd(lr=0.1, momentum=0.9), "rest": tx}
    tx = gradtx.partition(transforms, {"first": "a", "rest": "*"})
    optimizer = gradtx.as_optimizer(tx, params.items(), compile=compile)

    def extras(given):
        return {name: shaped(params, value) if isinstance(value, int) else value for name, value in given.items()}

    set_gradients(params)
    for _ in range(steps):
        optimizer.step(**extras(good))
    with unchanged(optimizer), pytest.raises(ValueError, match=message):
        optimizer.step(**extras(bad))
    optimizer.step(**extras(good))
