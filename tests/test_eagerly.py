"""Rules are recorded; `gradtx.eagerly` runs them line by line; schedules are called at every update in both uses."""

import runpy

import pytest
import torch

import gradtx
from gradtx.base import ambient
from tests.optim.problems import assert_close, descend, made

TOLERANCE = 1e-12  # the same float64 sums in a different order


def watched(seen):
    """A rule that shows what it is given."""

    @gradtx.per_tensor
    def watch():
        def update(update, state, param, ctx):
            seen.append(update)
            return -0.1 * update, state

        return update

    return watch()


@pytest.mark.slow
@pytest.mark.parametrize("compile", [False, True])
def test_rules_of_an_optimizer_run_for_each_leaf_and_step_with_values(compile):
    seen = []
    params = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))]
    optimizer = gradtx.as_optimizer(watched(seen), params, compile=compile)
    with gradtx.eagerly():
        for _ in range(2):
            for param in params:
                param.grad = torch.full((3,), 2.0)
            optimizer.step()
        assert {way.way for way in optimizer.explain()} == {"alone"}
    assert len(seen) == 4
    assert all(torch.equal(update, torch.full((3,), 2.0)) for update in seen)
    for param in params:
        param.grad = torch.full((3,), 2.0)
    optimizer.step()
    assert {way.way for way in optimizer.explain()} == {"kernels" if compile else "lists"}


def test_rules_of_pure_updates_run_for_each_leaf_and_update_with_values():
    seen = []
    tx = watched(seen)
    grads = {"a": torch.ones(2), "b": torch.ones(2)}
    state = tx.init(grads)
    with gradtx.eagerly():
        for _ in range(3):
            _, state = tx.update(grads, state)
    assert len(seen) == 6
    assert not any(update.is_meta for update in seen)
    tx.update(grads, state)
    assert any(update.is_meta for update in seen[6:])


@pytest.mark.parametrize(("value", "is_on"), [("1", True), ("0", False), ("", False), (None, False)])
def test_the_environment_variable_sets_the_switch_for_a_process(value, is_on, monkeypatch):
    if value is None:
        monkeypatch.delenv("GRADTX_EAGER", raising=False)
    else:
        monkeypatch.setenv("GRADTX_EAGER", value)
    assert runpy.run_path(ambient.__file__)["runs_eagerly"]() == is_on


def test_explain_says_that_the_switch_is_on():
    param = torch.nn.Parameter(torch.ones(2))
    optimizer = gradtx.optim.AdamW([param])
    param.grad = torch.ones(2)
    with gradtx.eagerly():
        optimizer.step()
        assert "alone: 1 parameter (0): gradtx.eagerly() is on" in str(optimizer.explain())


@pytest.mark.parametrize("use", ["optimizer", "pure"])
def test_an_error_inside_a_recorded_rule_names_the_switch_the_rule_the_leaf_and_the_line(use):
    @gradtx.per_tensor
    def permute():
        def update(update, state, param, ctx):
            return update.gather(0, update.long()), state

        return update

    tx, param = gradtx.chain(permute(), gradtx.sgd()), torch.nn.Parameter(torch.ones(2))
    optimizer = gradtx.as_optimizer(tx, {"w": param}.items())

    def step(grad):
        param.grad = grad
        if use == "optimizer":
            optimizer.step()
        else:
            tx.update({"w": grad}, tx.init({"w": grad}), {"w": param.detach()})

    step(torch.ones(2))
    with pytest.raises(RuntimeError, match="out of bounds") as caught:
        step(torch.full((2,), 5.0))
    switch, *notes = caught.value.__notes__
    assert "gradtx.eagerly()" in switch
    (note,) = notes
    assert note.startswith("permute: leaf 'w' of shape (2,) on cpu, test_eagerly.py:")
    assert note.endswith("return update.gather(0, update.long()), state")
    with gradtx.eagerly(), pytest.raises(RuntimeError, match="out of bounds") as caught:
        step(torch.full((2,), 5.0))
    assert caught.value.__notes__ == notes


# Schedules.


@pytest.mark.parametrize(
    "make",
    [
        gradtx.sgd,
        gradtx.adamw,
        lambda lr: gradtx.accumulate(gradtx.sgd(lr=lr), every=2),
        lambda lr: gradtx.skip_nonfinite(gradtx.sgd(lr=lr)),
        lambda lr: gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.sgd(lr=lr)),
    ],
    ids=["sgd", "adamw", "accumulate", "skip", "with a sum"],
)
def test_a_schedule_follows_python_state_in_both_uses(make):
    rate = {"now": 0.1}
    tx = make(lr=gradtx.Schedule(lambda step: rate["now"] * (1 + step)))
    optimizer, params = made(tx)
    trees = {name: param.detach().clone() for name, param in params.items()}
    state = tx.init(trees)
    for t in range(6):
        rate["now"] = 0.1 if t < 3 else 0.01
        descend(optimizer, params, 1, start=t)
        grads = {name: param.grad.clone() for name, param in params.items()}
        updates, state = tx.update(grads, state, trees)
        trees = gradtx.apply_updates(trees, updates)
        assert_close(params.values(), trees.values(), TOLERANCE)


def test_pure_updates_with_a_schedule_equal_those_with_its_numbers_and_stay_recorded(monkeypatch):
    schedule = gradtx.cosine_schedule(0.1, T_max=6)
    _, params = made(gradtx.sgd())
    expected = {name: param.detach().clone() for name, param in params.items()}
    tx = gradtx.adamw(lr=schedule)
    state, other = tx.init(params), gradtx.adamw().init(params)
    trees = dict(expected)
    grads = {name: torch.ones_like(param) for name, param in params.items()}
    tx.update(grads, state, trees)
    monkeypatch.setattr("gradtx.execution.pure.update", None)  # what runs rules line by line
    for _ in range(6):
        updates, state = tx.update(grads, state, trees)
        trees = gradtx.apply_updates(trees, updates)
    monkeypatch.undo()
    for t in range(6):
        updates, other = gradtx.adamw(lr=float(schedule(t))).update(grads, other, expected)
        expected = gradtx.apply_updates(expected, updates)
    assert_close(trees.values(), expected.values(), TOLERANCE)
