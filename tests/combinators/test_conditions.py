"""Conditions on calls, cycles of changing length, tests that skip calls, and selections by trees."""

import pickle

import pytest
import torch

import gradtx


def steps(tx, gradients, **extras):
    """The updates of a leaf `w`, one call after another, by functions."""
    params = {"w": torch.zeros(2, dtype=torch.float64)}
    state, found = tx.init(params), []
    for i, gradient in enumerate(gradients):
        given = {name: values[i] for name, values in extras.items()}
        grads = {"w": torch.full((2,), float(gradient), dtype=torch.float64)}
        updates, state = tx.update(grads, state, params, **given)
        found.append(float(updates["w"][0]))
    return found, state


def optimizer_steps(tx, gradients, compile=False, **extras):
    """The same by an optimizer."""
    weight = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer, found = gradtx.as_optimizer(tx, [("w", weight)], compile=compile), []
    for i, gradient in enumerate(gradients):
        before = weight.detach().clone()
        weight.grad = torch.full_like(weight, float(gradient))
        optimizer.step(**{name: values[i] for name, values in extras.items()})
        found.append(float((weight.detach() - before)[0]))
    return found


SUM = gradtx.scale(-1.0)


def cycles(updates):
    return 1 + updates % 3


@pytest.mark.parametrize("every", [cycles, gradtx.Schedule(cycles)], ids=["function", "schedule"])
@pytest.mark.parametrize("mean", [True, False])
def test_a_cycle_has_as_many_calls_as_a_function_of_the_updates_says(every, mean):
    gradients = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]
    tx = gradtx.accumulate(SUM, every=every, use_grad_mean=mean)
    n2, n3 = (2, 3) if mean else (1, 1)
    expected = [-1, 0, -6 / n2, 0, 0, -56 / n3, -64]
    found, state = steps(tx, gradients)
    assert found == pytest.approx(expected)
    assert int(state["accumulate"]["step"]) == 4
    assert optimizer_steps(tx, gradients) == pytest.approx(expected)
    assert optimizer_steps(tx, gradients, compile=True) == pytest.approx(expected)


def test_a_sum_of_a_fixed_number_of_calls():
    tx = gradtx.accumulate(SUM, every=2, use_grad_mean=False)
    assert steps(tx, [1, 2, 3, 4])[0] == [0, -3, 0, -7]


def test_a_loaded_optimizer_follows_the_function_of_the_code():
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = gradtx.as_optimizer(gradtx.accumulate(gradtx.sgd(lr=1.0), every=cycles), [weight])
    weight.grad = torch.ones(2)
    optimizer.step()
    saved = pickle.loads(pickle.dumps(optimizer.state_dict()))
    assert "every" not in saved["param_groups"][0]
    optimizer.load_state_dict(saved)
    for _ in range(2):
        optimizer.step()
    assert weight.detach().tolist() == [-2.0, -2.0]


@pytest.mark.parametrize(
    ("every", "message"),
    [
        (lambda updates: 1 - updates, "at least 1, got 0 after 1 updates"),
        (lambda updates: 0, "at least 1, got 0 after 0 updates"),
        (gradtx.linear_schedule(8.0, 1.0, 0.0, 100), "at least 1, got 0.0 after 128 updates"),
    ],
)
def test_a_function_that_returns_less_than_1_at_some_count_is_named(every, message):
    with pytest.raises(ValueError, match=f"accumulate: every must return {message}"):
        gradtx.accumulate(SUM, every=every)


def test_calls_that_a_test_skips_are_no_part_of_a_cycle():
    gradients = [1.0, float("nan"), 3.0, 5.0, float("inf"), float("nan"), 7.0]
    tx = gradtx.accumulate(SUM, every=2, skip=gradtx.skip_not_finite())
    expected = [0, 0, -2, 0, 0, 0, -6]
    found, state = steps(tx, gradients)
    assert found == expected
    assert int(state["accumulate"]["skipped"]) == 3
    assert optimizer_steps(tx, gradients) == expected
    assert optimizer_steps(tx, gradients, compile=True) == expected


def test_a_call_with_large_gradients_is_skipped_by_the_norm_of_the_whole_tree():
    tx = gradtx.accumulate(SUM, every=1, skip=gradtx.skip_large_updates(50.0))
    assert steps(tx, [4.0, 5.0, -1.0])[0] == [-4, 0, 1]  # 2 x 5^2 = 50 is too large
    test = gradtx.skip_large_updates(25.0)
    assert test({"a": torch.tensor([3.0]), "b": [torch.tensor([4.0]), None]})
    assert not test({"a": torch.tensor([3.0]), "b": [torch.tensor([3.9])]})
    assert test({"a": torch.tensor([float("nan")])})
    assert gradtx.accumulate(SUM, every=1, skip=pickle.loads(pickle.dumps(test))) is not None


def test_a_skipped_call_has_a_derivative_without_nan():
    def trained(scale):
        tx = gradtx.accumulate(gradtx.sgd(lr=1.0), every=1, skip=gradtx.skip_not_finite())
        params = {"w": torch.ones(2, dtype=torch.float64)}
        state = tx.init(params)
        for factor in (0.0, float("inf"), 0.0):
            updates, state = tx.update({"w": scale * params["w"] + factor}, state, params)
            params = gradtx.apply_updates(params, updates)
        return params["w"].sum()

    at = torch.tensor(0.1, dtype=torch.float64)
    assert torch.func.grad(trained)(at) == pytest.approx(2 * -2 * 0.9)  # of (1 - scale)^2


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: gradtx.accumulate(SUM, every=0), ValueError, r"accumulate: every must be in \[1, inf\), got 0"),
        (lambda: gradtx.accumulate(SUM, every="2"), TypeError, "accumulate: every must be an int"),
        (lambda: gradtx.accumulate(SUM, every=2, skip=any), TypeError, "accumulate: skip must be a gradtx.SkipTest"),
        (lambda: gradtx.skip_large_updates(0.0), ValueError, "skip_large_updates: max_squared_norm must be in"),
        (lambda: gradtx.apply_if(SUM, True), TypeError, "apply_if: condition must be a function of the step"),
        (lambda: gradtx.mask_if(SUM, 3), TypeError, "mask_if: condition must be a function of the step"),
    ],
)
def test_bad_options_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


# Conditions.


def momentum(lr=1.0):
    return gradtx.chain(gradtx.trace(0.5), gradtx.scale(-lr))


CALLS = [1.0, 2.0, 4.0, 8.0]


@pytest.mark.parametrize("compile", [None, False, True])
def test_conditions_of_the_count(compile):
    run = steps if compile is None else lambda tx, gradients: (optimizer_steps(tx, gradients, compile), None)
    odd = lambda step: step % 2 == 1  # noqa: E731
    assert run(gradtx.apply_if(momentum(), odd), CALLS)[0] == [1, -2, 4, -9]
    assert run(gradtx.mask_if(momentum(), odd), CALLS)[0] == [0, -2, 0, -9]


@pytest.mark.parametrize("compile", [None, False, True])
def test_conditions_of_the_loss_and_of_other_extras(compile):
    def run(tx, **extras):
        if compile is None:
            return steps(tx, CALLS, **extras)[0]
        return optimizer_steps(tx, CALLS, compile, **extras)

    values = [3.0, 1.0, torch.tensor(5.0), 2.5]
    assert run(gradtx.mask_if(momentum(), lambda step, value: value > 2.0), value=values) == [-1, 0, -4.5, -10.25]
    tx = gradtx.apply_if(momentum(), lambda step, value, epoch: (value < 3.0) & (epoch > 0))
    assert set(tx.needs) == {"value", "epoch"}
    assert run(tx, value=values, epoch=[0, 0, 1, 1]) == [1, 2, 4, -8]


def test_a_missing_extra_of_a_condition_is_named():
    tx = gradtx.mask_if(SUM, lambda step, value: value > 2.0)
    with pytest.raises(ValueError, match="mask_if needs value"):
        steps(tx, [1.0])


def test_what_is_inside_counts_only_the_calls_in_which_the_condition_holds():
    rate = gradtx.Schedule(lambda step: 10.0**-step)
    tx = gradtx.apply_if(gradtx.sgd(lr=rate), lambda step: step != 1)
    assert steps(tx, [1.0, 1.0, 1.0])[0] == pytest.approx([-1, 1, -0.1])


def test_members_have_their_own_decisions_under_vmap():
    tx = gradtx.mask_if(gradtx.sgd(lr=1.0), lambda step, value: value > 0.0)
    params = {"w": torch.ones(2)}

    def step(value):
        return tx.update(params, tx.init(params), params, value=value)[0]["w"]

    assert torch.vmap(step)(torch.tensor([1.0, -1.0])).tolist() == [[-1, -1], [0, 0]]


# Selections by trees.

TREE = {"layer": {"weight": torch.ones(2, 2), "bias": torch.ones(2)}, "head": torch.ones(2, 2)}
MATRICES = {"layer": {"weight": True, "bias": False}, "head": True}


def of_matrices(params):
    """A mask in the structure of the tree."""
    return torch.utils._pytree.tree_map(lambda leaf: leaf.ndim > 1, params)


def names_of(updates, value):
    flat, _ = torch.utils._pytree.tree_flatten_with_path(updates)
    return {torch.utils._pytree.keystr(path) for path, leaf in flat if bool((leaf == value).all())}


@pytest.mark.parametrize("where", [MATRICES, of_matrices], ids=["tree", "function"])
def test_a_mask_may_be_a_tree_or_a_function_of_the_whole_tree(where):
    matrices = {"['layer']['weight']", "['head']"}
    for tx, value in (
        (gradtx.masked(gradtx.scale(3.0), where), 3.0),
        (gradtx.chain(gradtx.scale(3.0), gradtx.freeze(where)), 0.0),
        (gradtx.sgdw(lr=1.0, weight_decay=1.0, mask=where), -2.0),
    ):
        state = tx.init(TREE)
        for _ in range(2):
            updates, state = tx.update(TREE, state, TREE)
            assert names_of(updates, value) == matrices


def test_a_prefix_of_a_tree_selects_whole_subtrees():
    tx = gradtx.masked(gradtx.scale(3.0), lambda params: {"layer": True, "head": False})
    updates, _ = tx.update(TREE, tx.init(TREE), TREE)
    assert names_of(updates, 3.0) == {"['layer']['weight']", "['layer']['bias']"}


def test_labels_may_come_from_a_function_of_the_whole_tree_that_is_asked_once():
    calls = []

    def labels(params):
        calls.append(params)
        sizes = {name: leaf.numel() for name, leaf in params.items()}
        largest = max(sizes, key=sizes.get)
        return {name: "large" if name == largest else "rest" for name in params}

    tx = gradtx.partition({"large": gradtx.scale(2.0), "rest": gradtx.scale(0.0)}, labels)
    params = {"a": torch.ones(2), "b": torch.ones(5), "c": torch.ones(3)}
    state = tx.init(params)
    assert len(calls) == 1
    updates, _ = tx.update(params, state, params)
    assert {name: float(u.max()) for name, u in updates.items()} == {"a": 0, "b": 2, "c": 0}
    weights = {name: torch.nn.Parameter(p.clone()) for name, p in params.items()}
    optimizer = gradtx.as_optimizer(tx, weights.items())
    for weight in weights.values():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert {name: float(w.detach().max()) for name, w in weights.items()} == {"a": 1, "b": 3, "c": 1}


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"w": 1}, "masked: a tree that selects leaves must have bools as leaves, got 1 at 'w'"),
        (lambda params: None, "masked: a tree that selects leaves must have bools as leaves"),
        (lambda params: {}, "must return a tree of labels with the structure of the parameters"),
    ],
)
def test_trees_of_other_things_are_named(where, message):
    with pytest.raises(TypeError, match=message):
        gradtx.masked(SUM, where).init({"w": torch.ones(2)})


def test_a_leaf_that_no_tree_selects_is_named():
    with pytest.raises(ValueError, match="masked: leaf 'b' has no label in the tree of labels: a"):
        gradtx.masked(SUM, {"a": True}).init({"a": torch.ones(2), "b": torch.ones(2)})
