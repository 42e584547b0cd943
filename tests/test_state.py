"""Parts of a state by name, and the learning rate that the next update uses."""

import pytest
import torch

import gradtx
from gradtx import accumulate, chain, get, learning_rate, put
from tests.conformance import assert_same, noise, untouched

SHAPES = {"head.weight": (2, 3), "body.weight": (3,), "body.scale": ()}
PARAMS = noise(0, SHAPES)


def state_of(tx, steps=1):
    state = tx.init(PARAMS)
    for step in range(steps):
        _, state = tx.update(noise(step + 1, SHAPES), state, PARAMS)
    return state


TWICE = chain(gradtx.scale_by_adam(), gradtx.scale_by_adam(), gradtx.record("norm"))
WRAPPED = accumulate(chain(gradtx.adam(lr=0.1), gradtx.record("norm")), every=2)
SPLIT = gradtx.partition(
    {"head": gradtx.adamw(lr=0.1), "rest": accumulate(gradtx.sgd(lr=0.2, momentum=0.9), every=2)},
    {"head": "head.*", "rest": "*"},
)


# get.


def test_a_slot_is_found_wherever_it_stands():
    for tx in (gradtx.adam(), gradtx.skip_nonfinite(gradtx.adam()), accumulate(gradtx.adam(), every=1)):
        state = state_of(tx)
        at = state
        while "scale_by_adam" not in at:
            at = at[{"skip_nonfinite", "accumulate"}.intersection(at).pop()]
        found = get(state, "exp_avg_sq")
        assert_same(found, at["scale_by_adam"]["exp_avg_sq"])
        assert set(found) == set(SHAPES)


def test_a_number_that_all_leaves_share_is_found():
    state = state_of(TWICE)
    assert get(state, "norm") is state["record"]["norm"]
    assert get(state_of(WRAPPED), "mini_step") == 1


def test_a_whole_path_means_what_stands_there():
    state = state_of(WRAPPED, steps=3)
    assert (get(state, "step"), get(state, "accumulate.step")) == (3, 1)
    assert_same(get(state, "accumulate"), state["accumulate"])


def test_what_several_links_have_is_found_by_more_of_its_path():
    state = state_of(TWICE)
    with pytest.raises(ValueError, match=r"get: 'exp_avg' is ambiguous: scale_by_adam.exp_avg, scale_by"):
        get(state, "exp_avg")
    for link in ("scale_by_adam", "scale_by_adam_1"):
        assert_same(get(state, f"{link}.exp_avg"), state[link]["exp_avg"])
    assert_same(get(state_of(SPLIT), "scale_by_adam.exp_avg"), get(state_of(SPLIT), "exp_avg"))


def test_what_is_found_can_be_changed_without_changing_the_state():
    state = state_of(gradtx.adam())
    with untouched(state):
        get(state, "exp_avg").clear()


MISSING = [
    (gradtx.adam(), "exp_ave", r"the state has no 'exp_ave'; did you mean 'exp_avg'\?"),
    (TWICE, "scale_by_adam_1.exp_av", r"no 'scale_by_adam_1.exp_av'; did you mean 'scale_by_adam_1.exp_avg'\?"),
    (TWICE, "zzz", r"no 'zzz'; known: .*, exp_avg, exp_avg_sq, .*record, scale_by_adam, scale_by_adam_1, step"),
    (TWICE, "exp_avg.head.weight", r"'exp_avg.head.weight' is ambiguous: scale_by_adam.exp_avg.head.weight, "),
]


@pytest.mark.parametrize(("tx", "name", "message"), MISSING)
def test_a_name_that_nothing_has_is_answered_with_what_there_is(tx, name, message):
    state = tx.init(PARAMS)
    with pytest.raises(ValueError, match=f"^get: .*{message}"):
        get(state, name)
    with pytest.raises(ValueError, match=f"^put: .*{message}"):
        put(state, name, 0)


def test_what_is_no_state_is_refused():
    with pytest.raises(TypeError, match=r"get: state must be a dict such as init returns, got tensor"):
        get(torch.tensor(1.0), "exp_avg")


# put.


def test_another_value_takes_the_place_and_the_old_state_stays():
    state = state_of(WRAPPED, steps=3)
    value = noise(9, SHAPES)
    with untouched(state, value):
        new = put(state, "exp_avg", value)
        new["accumulate"]["acc"].clear()  # containers are new everywhere
    assert_same(get(new, "exp_avg"), value)
    new["accumulate"]["acc"] = state["accumulate"]["acc"]
    assert_same(put(new, "exp_avg", get(state, "exp_avg")), state)


def test_the_next_update_goes_on_from_what_was_put():
    tx = gradtx.sgd(lr=1.0, momentum=0.5)
    ones = {name: torch.ones_like(p) for name, p in PARAMS.items()}
    state = put(state_of(tx), "momentum_buffer", {name: 6 * one for name, one in ones.items()})
    updates, _ = tx.update(ones, state, PARAMS)
    assert_same(updates, {name: -4 * one for name, one in ones.items()})  # 0.5 * 6 + 1


def test_a_number_fills_one_tensor_in_its_dtype():
    state = state_of(WRAPPED)
    assert_same(put(state, "step", 7)["step"], torch.tensor(7))
    assert_same(get(put(state, "accumulate.step", 3.0), "accumulate.step"), torch.tensor(3))
    assert_same(
        get(put(state, "accumulate.acc.head.weight", 0.5), "acc")["head.weight"], torch.full((2, 3), 0.5).double()
    )


ONE = {name: torch.ones_like(p) for name, p in PARAMS.items()}
UNFIT = [
    (
        {k: v for k, v in ONE.items() if k != "body.scale"},
        ValueError,
        r"leaf 'body.scale' is missing, but is in the old value",
    ),
    ({**ONE, "tail": torch.ones(1)}, ValueError, r"leaf 'tail' is not in the old value"),
    (
        {**ONE, "head.weight": torch.ones(3, 2).double()},
        ValueError,
        r"'head.weight' is torch.float64 \(3, 2\) on cpu, needs torch.float64 \(2, 3\)",
    ),
    ({**ONE, "head.weight": torch.ones(2, 3)}, ValueError, r"'head.weight' is torch.float32 .*, needs torch.float64"),
    ({**ONE, "body.scale": ONE["body.scale"].to("meta")}, ValueError, r"'body.scale' is .* on meta, needs .* on cpu"),
    ({**ONE, "body.scale": 1.0}, TypeError, r"leaf 'body.scale' is a float"),
    ({**ONE, "body.scale": None}, ValueError, r"leaf 'body.scale' is None, needs torch.float64"),
    (torch.ones(2, 3), ValueError, "scale_by_adam.exp_avg: leaf '[a-z.]*' is missing, but is in the old value"),
    (1.0, TypeError, "scale_by_adam.exp_avg: leaf '' is a float, needs a tensor"),
]


@pytest.mark.parametrize(("value", "error", "message"), UNFIT)
def test_a_value_that_does_not_fit_changes_nothing(value, error, message):
    state = state_of(gradtx.adam())
    with untouched(state), pytest.raises(error, match=f"^put: .*{message}"):
        put(state, "exp_avg", value)


@pytest.mark.parametrize("value", [0.5, torch.tensor(1.0), {"w": torch.tensor(1)}, float("nan")])
def test_a_count_stays_a_count(value):
    with pytest.raises((TypeError, ValueError), match=r"^put: step"):
        put(state_of(gradtx.adam()), "step", value)


# learning_rate.


def ramp(slope):
    return gradtx.Schedule(lambda step: slope * (step + 1))


def rate(tx, steps, name=None):
    found = learning_rate(tx, state_of(tx, steps), name)
    assert (found.dtype, found.ndim) == (torch.float64, 0)
    return found.item()


@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1, dtype=torch.float64), gradtx.Schedule(lambda step: 0.1)])
def test_numbers_tensors_and_schedules_are_read_alike(lr):
    for tx in (gradtx.adamw(lr=lr), chain(gradtx.scale_by_adam(), gradtx.scale_by_learning_rate(lr)), gradtx.alig(lr)):
        assert learning_rate(tx, tx.init(PARAMS)).item() == 0.1


CLOCKED = {
    "none": (lambda lr: gradtx.sgd(lr=lr), [1, 2, 3, 4, 5]),
    "accumulate": (lambda lr: accumulate(gradtx.sgd(lr=lr), every=2), [1, 1, 2, 2, 3]),
    "in a chain": (
        lambda lr: chain(accumulate(chain(gradtx.centralize(), gradtx.sgd(lr=lr)), every=2)),
        [1, 1, 2, 2, 3],
    ),
    "nested": (lambda lr: gradtx.skip_nonfinite(accumulate(gradtx.sgd(lr=lr), every=3)), [1, 1, 1, 2, 2]),
    "beside": (lambda lr: chain(accumulate(gradtx.scale(1.0), every=2), gradtx.sgd(lr=lr)), [1, 2, 3, 4, 5]),
    "branch": (lambda lr: gradtx.partition({"a": accumulate(gradtx.sgd(lr=lr), every=2)}, {"a": "*"}), [1, 1, 2, 2, 3]),
}


@pytest.mark.parametrize("name", CLOCKED)
def test_the_rate_of_a_schedule_is_the_one_that_the_next_update_uses(name):
    make, expected = CLOCKED[name]
    tx = make(ramp(0.5))
    assert [rate(tx, steps) for steps in range(5)] == [0.5 * n for n in expected]


def test_an_update_uses_the_rate_that_was_told():
    tx = gradtx.skip_nonfinite(gradtx.sgd(lr=gradtx.cosine_schedule(0.1, T_max=7)))
    state = state_of(tx, 3)
    updates, _ = tx.update({name: torch.ones_like(p) for name, p in PARAMS.items()}, state, PARAMS)
    assert updates["body.scale"] == -learning_rate(tx, state)


def test_the_rate_follows_the_leaf_with_the_most_updates_as_the_update_does():
    """Experts that take turns: no leaf is in every call."""
    tx, params = gradtx.sgd(lr=ramp(0.5)), {"a": torch.zeros(1), "b": torch.zeros(1)}
    state = tx.init(params)
    for name in ("a", "b", "a", "b"):
        expected = learning_rate(tx, state)
        updates, state = tx.update({**dict.fromkeys(params), name: torch.ones(1)}, state, params)
        assert updates[name] == -expected


def test_one_of_several_rates_is_chosen_by_name():
    with pytest.raises(
        ValueError, match=r"partition has several learning rates: head.adamw.lr, rest.sgd.lr; pass one of these names"
    ):
        learning_rate(SPLIT, SPLIT.init(PARAMS))
    names = {"lr": 0.1, "head.lr": 0.1, "head.adamw.lr": 0.1, "rest.lr": 0.2, "rest.sgd.lr": 0.2}
    assert {name: rate(SPLIT, 1, name) for name in names} == names
    both = gradtx.graft(gradtx.sgd(lr=0.1), gradtx.adamw(lr=0.2))
    with pytest.raises(ValueError, match=r"graft has several learning rates: sgd.lr, adamw.lr; pass one"):
        learning_rate(both, both.init(PARAMS))
    assert rate(both, 1, "adamw.lr") == 0.2


def test_a_chain_without_a_rate_or_without_that_name_is_told():
    state = {"step": torch.tensor(0)}
    with pytest.raises(
        ValueError, match=r"learning_rate: chain has no learning rate; its hyperparameters: max_norm, eps"
    ):
        learning_rate(chain(gradtx.clip_by_global_norm(1.0), gradtx.centralize()), state)
    with pytest.raises(ValueError, match=r"learning_rate: chain has no learning rate; its hyperparameters: none"):
        learning_rate(chain(), state)
    with pytest.raises(ValueError, match=r"alig has no learning rate"):
        learning_rate(gradtx.alig(max_lr=None), state)
    with pytest.raises(
        ValueError, match=r"partition has no scalar hyperparameter 'heads.lr'; did you mean 'head.lr'\?"
    ):
        learning_rate(SPLIT, SPLIT.init(PARAMS), "heads.lr")
    with pytest.raises(TypeError, match=r"learning_rate: tx must be a GradientTransformation, got adam; call it"):
        learning_rate(gradtx.adam, state)


def test_a_state_that_does_not_belong_is_told():
    with pytest.raises(ValueError, match=r"state lacks 'accumulate.step'"):
        learning_rate(WRAPPED, gradtx.adam().init(PARAMS))
    with pytest.raises(ValueError, match=r"adam: state is not a dict with a 'step'"):
        learning_rate(gradtx.adam(), ())


def test_a_sparse_slot_in_a_state_that_was_seen_is_refused_by_name():
    tx, params = gradtx.adam(), {f"w{i}": torch.ones(2, 2) for i in range(2)}
    state = tx.init(params)
    for _ in range(3):
        _, state = tx.update(params, state, params)
    slots = state["scale_by_adam"]["exp_avg"]
    slots["w1"] = slots["w1"].to_sparse()
    with pytest.raises(ValueError, match=r"scale_by_adam.exp_avg. must be a dense real tensor for leaf .w1"):
        tx.update(params, state, params)
