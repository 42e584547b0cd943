"""Clocks of combinators: every leaf counts its own updates, whatever its clock skips."""

import pytest
import torch

import gradtx

START = {"a": torch.tensor([1.0, -2.0]), "b": torch.tensor([0.5])}
NAN = float("nan")
# The gradient of "a", and that of "b", which comes late, is not finite once, and is missing once.
GRADIENTS = [(1.0, None), (2.0, None), (-1.0, 3.0), (0.5, NAN), (1.5, None), (-2.0, 1.0), (1.0, -0.5), (2.0, 2.0)]


def by_torch(cycles):
    """The weights after steps of torch's Adam, with an optimizer and a count for each leaf."""
    weights = {name: torch.nn.Parameter(value.clone()) for name, value in START.items()}
    optimizers = {name: torch.optim.Adam([weight], lr=0.1) for name, weight in weights.items()}
    for cycle in cycles:
        for name, values in zip(weights, zip(*cycle, strict=True), strict=True):
            if all(value is None for value in values):
                continue
            mean = sum(value or 0.0 for value in values) / len(values)
            weights[name].grad = torch.full_like(weights[name], mean)
            optimizers[name].step()
    return {name: weight.detach() for name, weight in weights.items()}


def given(values):
    return {n: None if g is None else torch.full_like(START[n], g) for n, g in zip(START, values, strict=True)}


def by_functions(tx, gradients):
    params, state = dict(START), tx.init(START)
    for values in gradients:
        updates, state = tx.update(given(values), state, params)
        params = gradtx.apply_updates(params, updates)
    return params


def by_optimizer(tx, gradients, **options):
    weights = {name: torch.nn.Parameter(value.clone()) for name, value in START.items()}
    optimizer = gradtx.as_optimizer(tx, weights.items(), **options)
    for values in gradients:
        for name, gradient in given(values).items():
            weights[name].grad = gradient
        optimizer.step()
    return {name: weight.detach() for name, weight in weights.items()}


WAYS = {
    "pure": by_functions,
    "lists": by_optimizer,
    "compiled": lambda tx, gradients: by_optimizer(tx, gradients, compile=True),
    "captured": lambda tx, gradients: by_optimizer(tx, gradients, capturable=True),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_late_leaf_counts_the_updates_that_were_not_skipped(way):
    finite = [[values] for values in GRADIENTS if NAN not in values]
    torch.testing.assert_close(WAYS[way](gradtx.skip_nonfinite(gradtx.adam(lr=0.1)), GRADIENTS), by_torch(finite))


@pytest.mark.parametrize("way", WAYS)
def test_a_late_leaf_counts_the_cycles_in_which_it_had_a_gradient(way):
    gradients = [values for values in GRADIENTS if NAN not in values][:6]
    cycles = [gradients[i : i + 2] for i in (0, 2, 4)]
    torch.testing.assert_close(WAYS[way](gradtx.accumulate(gradtx.adam(lr=0.1), every=2), gradients), by_torch(cycles))


# A call in which no leaf has a gradient.


WRAPPERS = {
    "alone": lambda tx: tx,
    "accumulate": lambda tx: gradtx.accumulate(tx, 1),
    "skip_nonfinite": gradtx.skip_nonfinite,
    "restart": lambda tx: gradtx.restart(tx, 1000),
    "restart, its clock kept": lambda tx: gradtx.restart(tx, 1000, keep_clock=True),
    "masked": lambda tx: gradtx.masked(tx, "*"),
    "graft": lambda tx: gradtx.graft(tx, tx),
    "both": lambda tx: gradtx.skip_nonfinite(gradtx.accumulate(tx, 1)),
}
IDLE = (None, None)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_schedules_stand_still_in_a_call_without_any_gradient(wrapper, way):
    tx = WRAPPERS[wrapper](gradtx.scale_by_learning_rate(gradtx.Schedule(lambda step: 1.0 + step)))
    weights = WAYS[way](tx, [IDLE, (1.0, 1.0), IDLE, IDLE, (1.0, 1.0), (1.0, 1.0), IDLE])
    torch.testing.assert_close(weights, {name: start - 1.0 - 2.0 - 3.0 for name, start in START.items()})


@pytest.mark.parametrize("way", WAYS)
def test_a_call_without_any_gradient_is_not_part_of_a_cycle(way):
    tx = gradtx.accumulate(gradtx.sgd(lr=1.0), every=2)
    weights = WAYS[way](tx, [(1.0, 2.0), IDLE, (3.0, None)])
    torch.testing.assert_close(weights, {"a": START["a"] - 2.0, "b": START["b"] - 1.0})


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_call_without_any_gradient_returns_its_state(wrapper):
    tx = WRAPPERS[wrapper](gradtx.prodigy())
    _, state = tx.update(given((1.0, 1.0)), tx.init(START), START)
    updates, after = tx.update(given(IDLE), state, START)
    assert updates == {"a": None, "b": None}
    torch.testing.assert_close(after, state, rtol=0, atol=0)
