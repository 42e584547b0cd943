"""Rules are recorded; `gradtx.eagerly` runs them line by line; schedules are called at every update in both uses."""

import copy
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


# The first value that is not finite.


@gradtx.per_tensor
def falling():
    """A rule whose root is that of -1 at the third step, and whose infinities at entries of 0 are discarded."""

    def update(update, state, param, ctx):
        left = state["left"] - 1
        scaled = update * (left + 2).rsqrt()
        return torch.where(update == 0, 0.0, scaled / update * update), {"left": left}

    return {"left": gradtx.slots.linear()}, update


CHAIN = gradtx.chain(gradtx.clip_by_global_norm(10.0), falling(), gradtx.sgd(lr=0.1))
ORIGIN = (
    r"^falling: leaf 'a' at step 2: 3 of 3 entries of the result of aten.rsqrt are not finite, and all of its "
    r"arguments are; test_eagerly.py:\d+: scaled = update \* \(left \+ 2\).rsqrt\(\)$"
)


@pytest.mark.parametrize("compile", [False, True])
def test_the_first_line_that_makes_a_nan_is_named_and_the_step_writes_nothing(compile):
    params = {name: torch.nn.Parameter(torch.ones(3)) for name in "ab"}
    optimizer = gradtx.as_optimizer(CHAIN, params.items(), compile=compile)
    for param in params.values():
        param.grad = torch.tensor([0.0, 1.0, 2.0])
    with gradtx.eagerly(nan="raise"):
        optimizer.step()
        before = [param.detach().clone() for param in params.values()]
        state = copy.deepcopy(optimizer.state_dict()["state"])
        with pytest.raises(FloatingPointError, match=ORIGIN):
            optimizer.step()
    assert all(map(torch.equal, before, params.values()))
    torch.testing.assert_close(optimizer.state_dict()["state"], state, rtol=0, atol=0)


@pytest.mark.parametrize("transform", [lambda train: train, torch.vmap, torch.func.grad], ids=["plain", "vmap", "grad"])
def test_the_first_line_that_makes_a_nan_is_named_in_pure_use(transform):
    def train(scale):
        params = {"a": torch.ones(3), "b": torch.ones(2)}
        state = CHAIN.init(params)
        for _ in range(3):
            updates, state = CHAIN.update({name: scale * p for name, p in params.items()}, state, params)
        return updates["a"].sum()

    scale = torch.ones(1 if transform is torch.vmap else ())
    with gradtx.eagerly(nan="raise"), pytest.raises(FloatingPointError, match=ORIGIN):
        transform(train)(scale)


@pytest.mark.parametrize("name", ["adamw", "lamb", "muon", "shampoo", "sophia", "adafactor"])
def test_a_gradient_that_is_not_finite_is_named_before_all_links(name):
    fallback = {"fallback": gradtx.sgd()} if name == "muon" else {}
    tx = gradtx.chain(gradtx.clip_by_global_norm(1.0), getattr(gradtx, name)(**fallback))
    params = {"a": torch.ones(2, 2), "b": torch.ones(2, 2)}
    grads = {"a": torch.ones(2, 2), "b": torch.tensor([[1.0, float("nan")], [1.0, 1.0]])}
    extras = {"hessian_diag": params} if "hessian_diag" in tx.needs else {}
    message = r"leaf 'b' at step 1: 1 of 4 entries of its gradient are not finite before any link; torch.autograd.det"
    with gradtx.eagerly(nan="raise"), pytest.raises(FloatingPointError, match=message):
        tx.update(grads, tx.init(params), params, **extras)


def test_what_skip_nonfinite_discards_is_no_error():
    tx, params = gradtx.skip_nonfinite(gradtx.adamw()), {"a": torch.ones(2)}
    with gradtx.eagerly(nan="raise"):
        updates, state = tx.update({"a": torch.tensor([1.0, float("nan")])}, tx.init(params), params)
    assert updates["a"].tolist() == [0.0, 0.0]
    assert state["skip_nonfinite"]["skipped"] == 1


@pytest.mark.parametrize("mode", ["pure", "lists", "kernels"])
@pytest.mark.parametrize("bad", ["inf", "nan"])
@pytest.mark.parametrize("name", ["lion", "adam_atan2", "sign of momentum"])
def test_a_rule_that_stores_what_is_not_finite_is_found_though_its_update_is_finite(name, bad, mode):
    momentum = gradtx.chain(gradtx.trace(0.9), gradtx.scale_by_sign(), gradtx.scale_by_learning_rate(0.1))
    tx = getattr(gradtx, name)(lr=0.1) if hasattr(gradtx, name) else momentum
    params = {"a": torch.nn.Parameter(torch.ones(3)), "b": torch.nn.Parameter(torch.ones(3))}
    grads = {"a": torch.ones(3), "b": torch.tensor([1.0, float(bad), 1.0])}
    message = "leaf 'b' at step 1: 1 of 3 entries of its gradient are not finite before any link"
    optimizer = gradtx.as_optimizer(tx, params.items(), compile=mode == "kernels")
    for key, param in params.items():
        param.grad = grads[key]
    with gradtx.eagerly(nan="raise"), pytest.raises(FloatingPointError, match=message):
        tx.update(grads, tx.init(params), params) if mode == "pure" else optimizer.step()
    assert all(param.eq(1).all() for param in params.values())


@pytest.mark.parametrize("mode", ["pure", "lists", "kernels"])
def test_a_slot_that_is_nan_since_an_earlier_step_is_found_though_the_entry_only_stands_still(mode):
    param = torch.nn.Parameter(torch.ones(3))
    optimizer = gradtx.optim.Lion([param], lr=0.1, compile=mode == "kernels")
    tx, trees = gradtx.lion(lr=0.1), {"0": param.detach().clone()}
    state = tx.init(trees)
    for bad in (float("nan"), 1.0, 1.0):
        param.grad = torch.tensor([1.0, bad, 1.0])
        updates, state = tx.update({"0": param.grad}, state, trees)
        optimizer.step()
    assert updates["0"][1] == 0  # the sign of NaN
    message = r"leaf '0' at step 4: 1 of 3 entries of its exp_avg are not finite before any link"
    with gradtx.eagerly(nan="raise"), pytest.raises(FloatingPointError, match=message):
        tx.update({"0": param.grad}, state, trees) if mode == "pure" else optimizer.step()


def test_an_infinity_from_which_a_minimum_starts_may_stay():
    @gradtx.per_tensor(elementwise=True)
    def least():
        def update(update, state, param, ctx):
            return -update, {"least": torch.where(update > 0, torch.minimum(state["least"], update), state["least"])}

        return {"least": gradtx.slots.linear(lambda p: torch.full_like(p, float("inf")))}, update

    tx, params = least(), {"a": torch.ones(2)}
    with gradtx.eagerly(nan="raise"):
        _, state = tx.update({"a": torch.tensor([1.0, -1.0])}, tx.init(params), params)
    assert state["least"]["least"]["a"].tolist() == [1.0, float("inf")]


def test_weights_outside_of_the_range_of_their_dtype_are_named():
    weight = torch.nn.Parameter(torch.full((2,), 6e4, dtype=torch.float16))
    optimizer = gradtx.optim.SGD([weight], lr=1e4)
    weight.grad = torch.tensor([-1.0, 1.0]).half()
    message = "leaf '0' at step 1: 1 of 2 entries of the new weights are outside the range of torch.float16; weights"
    with gradtx.eagerly(nan="raise"), pytest.raises(FloatingPointError, match=message):
        optimizer.step()
    assert weight.tolist() == [6e4, 6e4]


def test_another_word_for_what_to_do_with_a_nan_is_refused():
    with pytest.raises(ValueError, match="eagerly: nan must be 'raise' or None, got 'warn'"), gradtx.eagerly("warn"):
        pass


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
    monkeypatch.setattr("gradtx.pure.tree_run.update", None)  # what runs rules line by line
    for _ in range(6):
        updates, state = tx.update(grads, state, trees)
        trees = gradtx.apply_updates(trees, updates)
    monkeypatch.undo()
    for t in range(6):
        updates, other = gradtx.adamw(lr=float(schedule(t))).update(grads, other, expected)
        expected = gradtx.apply_updates(expected, updates)
    assert_close(trees.values(), expected.values(), TOLERANCE)
