"""The one type: copies, hyperparameters, needs, evaluation, and transformations from two plain functions."""

import collections
import copy
import io
import pickle

import pytest
import torch

import gradtx
from gradtx import GradientTransformation, chain
from tests.conformance import assert_own_memory, assert_same, layout, noise, tensors, untouched
from tests.rules import HALVE, VECTORS, WRAPPINGS, double, look_ahead, ones, run


def test_the_root_has_every_schedule():
    for name in gradtx.schedules.__all__:
        assert getattr(gradtx, name) is getattr(gradtx.schedules, name)


# The type.


SAMPLES = [
    gradtx.adamw(lr=0.1, betas=(0.8, torch.tensor(0.9)), state_dtype=torch.float64),
    chain(gradtx.clip_by_global_norm(1.0), gradtx.trace(0.9), gradtx.scale_by_learning_rate(0.1)),
    gradtx.accumulate(chain(gradtx.adam(lr=gradtx.cosine_schedule(0.1, 5)), gradtx.freeze("b")), every=2),
    gradtx.partition({"x": gradtx.sgd(0.1), "rest": gradtx.masked(HALVE, "b")}, {"x": "a", "rest": "*"}),
    chain(),
    HALVE,
]


def test_a_transformation_unpacks_into_its_two_functions():
    init, update = gradtx.sgd(lr=1.0)
    updates, _ = update(ones(), init(ones()))
    assert torch.equal(updates["a"], -torch.ones(3))


@pytest.mark.parametrize("tx", SAMPLES, ids=repr)
@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, lambda tx: pickle.loads(pickle.dumps(tx))])
def test_a_copy_behaves_as_the_original(tx, copied):
    other = copied(tx)
    assert repr(other) == repr(tx)
    assert_same(run(other, 3), run(tx, 3))


@pytest.mark.parametrize("name", ["lr", "_name", "_core", "_txs", "anything"])
@pytest.mark.parametrize("tx", SAMPLES, ids=repr)
def test_no_attribute_can_be_set(tx, name):
    with pytest.raises(AttributeError, match="is immutable; use replace"):
        setattr(tx, name, 1.0)


def test_what_hyperparams_gives_is_a_copy_that_says_how_to_change_a_value():
    tx = gradtx.adam(lr=0.1)
    with pytest.raises(
        TypeError,
        match=r"adam: hyperparams is a copy; replace\(lr=\.\.\.\) returns a transformation with another value",
    ):
        tx.hyperparams["lr"] = 7.0
    assert tx.hyperparams["lr"] == 0.1


def test_hyperparams_is_a_dict_whose_copies_are_plain_ones():
    found = gradtx.adam(lr=0.1).hyperparams
    plain = dict(found)
    for other in (found, copy.copy(found), copy.deepcopy(found), pickle.loads(pickle.dumps(found)), found | {}):
        assert other == plain
    assert "lrr" not in found
    assert found.get("lrr") is None
    file = io.BytesIO()
    torch.save(found, file)
    file.seek(0)
    assert torch.load(file, weights_only=True) == plain


# Any two functions, as in optax.


Count = collections.namedtuple("Count", "calls total")
PLAIN_STATES = {
    "namedtuple": Count(torch.tensor(0.0), [torch.zeros(2)]),
    "dict": {"calls": torch.tensor(0.0), "deep": {"b": [torch.zeros(2)]}},
    "empty tuple": (),
    "none": None,
    "bare tensor": torch.tensor(0.0),
}


def counting(first):
    """Doubles updates, and adds one to every tensor of a state of any form."""

    def mapped(function, tree):
        return torch.utils._pytree.tree_map(lambda leaf: None if leaf is None else function(leaf), tree)

    return GradientTransformation(
        lambda params: first, lambda u, s, p: (mapped(lambda leaf: 2 * leaf, u), mapped(lambda leaf: leaf + 1, s))
    )


@pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS)
@pytest.mark.parametrize("first", PLAIN_STATES.values(), ids=PLAIN_STATES)
def test_two_plain_functions_work_wherever_a_factory_does(first, wrap):
    tx = wrap(counting(first))
    updates, state = run(tx, 1)
    assert torch.equal(updates["a"], torch.full((3,), 2.0))
    zeros = [t for path, t in tensors(tx.init(ones())).items() if "transformation" in path]
    after = [t for path, t in tensors(state).items() if "transformation" in path]
    assert len(zeros) == len(tensors(first))
    assert all(torch.equal(new, old + 1) for new, old in zip(after, zeros, strict=True))


def test_plain_functions_get_the_callers_trees_with_none_for_what_is_not_there():
    seen = []

    def update(updates, state, params):
        seen.append((updates, params))
        return updates, state

    params = {"x": [torch.ones(1), torch.ones(2)], "y": (torch.ones(3),)}
    grads = {"x": [torch.ones(1), None], "y": (torch.ones(3),)}
    tx = chain(gradtx.freeze("y.*"), GradientTransformation(lambda params: {}, update))
    updates, _ = tx.update(grads, tx.init(params), params)
    ((given, given_params),) = seen
    assert given["x"][1] is None
    assert given["y"] == (None,)
    assert torch.equal(given_params["x"][0], torch.ones(1))
    assert updates["x"][1] is None
    assert torch.equal(updates["y"][0], torch.zeros(3))


def test_the_state_of_plain_functions_stands_still_while_a_wrapper_waits():
    tx = gradtx.accumulate(HALVE, every=2)
    state = tx.init(ones())
    counts = []
    for _ in range(5):
        _, state = tx.update(ones(), state)
        counts.append(state["accumulate"]["transformation"]["calls"].item())
    assert counts == [0, 1, 1, 2, 2]


# Hyperparameters, replace, repr.


def test_the_outermost_decorated_call_owns_a_name():
    tx = chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw(lr=0.1), gradtx.lookahead())
    clips = "clip_by_global_norm.eps"
    names = ["max_norm", clips, "lr", "betas", "eps", "weight_decay", "amsgrad", "maximize", "k", "alpha"]
    assert list(tx.hyperparams) == names
    assert tx.hyperparams[clips] == 1e-6
    assert tx.hyperparams["eps"] == 1e-8


def test_the_bare_name_of_a_number_belongs_to_the_optimizer_and_not_to_the_first_link():
    tx = chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw()).replace(eps=1e-3)
    assert repr(tx) == "chain(clip_by_global_norm(1.0), adamw(eps=0.001))"
    assert repr(tx.replace(**{"clip_by_global_norm.eps": 0.1})) == (
        "chain(clip_by_global_norm(1.0, eps=0.1), adamw(eps=0.001))"
    )


def test_the_second_owner_of_a_name_has_a_number():
    tx = chain(gradtx.adamw(lr=0.1), gradtx.adamw(lr=0.2), gradtx.sgd(lr=0.3))
    assert tx.hyperparams["lr"] == 0.1
    assert tx.hyperparams["adamw_1.lr"] == 0.2
    assert tx.hyperparams["sgd.lr"] == 0.3


def test_in_a_partition_the_label_is_the_owner():
    tx = gradtx.partition(
        {"body": gradtx.adamw(lr=0.1), "head": chain(gradtx.sgd(lr=0.2), gradtx.sgd(lr=0.3))},
        {"head": "a", "body": "*"},
    )
    assert tx.hyperparams["lr"] == 0.1
    assert tx.hyperparams["head.lr"] == 0.2
    assert tx.hyperparams["head.sgd_1.lr"] == 0.3
    assert tx.replace(**{"head.lr": 0.5}).hyperparams["head.lr"] == 0.5


def test_hyperparameters_are_numbers_switches_and_tuples_but_not_functions():
    tx = chain(gradtx.map_after_step(torch.tanh), gradtx.average(), gradtx.adam())
    assert "fn" not in tx.hyperparams
    assert tx.hyperparams["before"] is False
    assert tx.hyperparams["decay"] is None
    assert tx.hyperparams["betas"] == (0.9, 0.999)


NESTED = chain(
    gradtx.adamw(lr=0.1, weight_decay=0.5),
    gradtx.accumulate(gradtx.partition({"x": gradtx.sgd(0.2), "y": gradtx.sgd(0.3)}, {"x": "a", "y": "*"}), every=1),
)


@pytest.mark.parametrize("name", list(NESTED.hyperparams))
def test_every_name_of_hyperparams_can_be_replaced_alone(name):
    old = NESTED.hyperparams
    value = {bool: lambda v: not v, int: lambda v: v + 1, float: lambda v: v / 2 + 0.1, tuple: lambda v: (0.5, 0.5)}
    new = value[type(old[name])](old[name])
    if name.endswith("nesterov"):
        with pytest.raises(ValueError, match="nesterov needs a momentum"):
            NESTED.replace(**{name: new})
        return
    assert NESTED.replace(**{name: new}).hyperparams == {**old, name: new}
    assert NESTED.hyperparams == old


def test_a_bare_name_can_also_be_given_with_its_owner():
    tx = chain(gradtx.adamw(lr=0.1), gradtx.sgd(lr=0.2))
    assert tx.replace(**{"adamw.lr": 0.5}).hyperparams["lr"] == 0.5


def test_a_bare_name_can_also_be_given_with_its_label():
    tx = gradtx.partition({"a": gradtx.sgd(lr=0.1), "b": gradtx.sgd(lr=0.2)}, {"a": "w", "b": "*"})
    assert tx.replace(**{"a.lr": 0.5}).hyperparams["lr"] == 0.5
    assert tx.replace(**{"a.lr": 0.5}).hyperparams["b.lr"] == 0.2


def test_replace_rebuilds_what_an_alias_derives_from_its_arguments():
    tx = chain(gradtx.clip_by_value(5.0), gradtx.sgdp(lr=1.0, momentum=0.0, weight_decay=0.5, wd_ratio=1.0))
    faster = tx.replace(momentum=0.5)  # the decay is weight_decay / (1 - momentum)
    zero = {name: torch.zeros_like(leaf) for name, leaf in ones().items()}
    assert run(tx, 1, grads=zero)[0]["a"].tolist() == [-0.5] * 3
    assert run(faster, 1, grads=zero)[0]["a"].tolist() == [-1.0] * 3


@pytest.mark.parametrize(
    ("text", "tx"),
    {
        "adamw(lr=0.1)": gradtx.adamw(lr=0.1),
        "adamw()": gradtx.adamw(lr=1e-3),
        "adamw(state_dtype=torch.float32)": gradtx.adamw(state_dtype=torch.float32),
        "chain()": chain(),
        "adam(lr=tensor(0.5), maximize=True)": gradtx.adam(torch.tensor(0.5), maximize=True),
        "adam(lr=cosine_schedule(1.0, 10))": gradtx.adam(gradtx.cosine_schedule(1.0, 10)),
        "chain(scale(2.0), trace(0.9))": chain(gradtx.scale(2), chain(gradtx.trace(0.9))),
        "accumulate(masked(sgd(), '*'), 2)": gradtx.accumulate(gradtx.masked(gradtx.sgd(), "*"), every=2),
        "partition({'x': sgd()}, {'x': '*'})": gradtx.partition({"x": gradtx.sgd()}, {"x": "*"}),
        "map_after_step(double, before=True)": gradtx.map_after_step(double, before=True),
        "GradientTransformation(halve_init, halve)": HALVE,
    }.items(),
)
def test_the_repr_is_what_one_would_type(text, tx):
    assert repr(tx) == text


# Needs.


@pytest.mark.parametrize(
    ("needs", "tx"),
    [
        ((), chain(gradtx.trace(0.9), gradtx.adam())),
        (("params",), gradtx.adamw()),
        ((), gradtx.adamw(weight_decay=0.0)),
        (("params",), gradtx.accumulate(chain(gradtx.adam(), gradtx.lookahead()), every=2)),
        (("params",), gradtx.partition({"x": gradtx.adam(), "y": gradtx.adamw()}, {"x": "a", "y": "*"})),
        (("grad_fn", "params"), chain(gradtx.adamw(), look_ahead())),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_needs_lists_what_update_requires(needs, tx):
    assert tx.needs == needs


# None, names, evaluation.


def test_a_none_gradient_gives_a_none_update_and_is_left_out_of_sums():
    tx = chain(gradtx.record("norm"), gradtx.trace(0.9))
    state = tx.init(ones())
    updates, new = tx.update(ones(b=None), state)
    assert updates["b"] is None
    assert new["record"]["norm"] == 2.0  # of a and c: 3 + 1 entries of 1
    assert_same(new["trace"]["momentum_buffer"]["b"], state["trace"]["momentum_buffer"]["b"])


def test_a_none_leaf_of_the_parameters_is_no_parameter():
    params = ones(b=None)
    tx = gradtx.adamw()
    updates, state = run(tx, 2, params, params)
    assert updates["b"] is None
    assert set(state["scale_by_adam"]["exp_avg"]) == {"a", "c"}
    assert gradtx.apply_updates(params, updates)["b"] is None


def test_apply_updates_adds_in_the_parameters_dtype_and_keeps_what_has_no_update():
    params = {"x": torch.ones(2, dtype=torch.bfloat16), "y": [torch.ones(1), None]}
    updates = {"y": [None, None], "x": torch.full((2,), 2**-10)}
    with untouched(params, updates):
        new = gradtx.apply_updates(params, updates)
    assert new["x"].dtype == torch.bfloat16
    assert new["x"].tolist() == [1.0, 1.0]
    assert new["y"][0] is params["y"][0]


def test_apply_updates_adds_wide_updates_before_it_rounds():
    params, updates = {"w": torch.tensor(256.0).bfloat16()}, {"w": torch.tensor(1.5)}
    assert gradtx.apply_updates(params, updates)["w"] == 258.0  # 1.5 alone would add nothing to round(256 + 1)


def test_a_leaf_is_found_by_name_whatever_the_order_of_dicts():
    tx = chain(gradtx.adamw(lr=0.1), gradtx.lookahead(k=2))
    params, grads = noise(1, VECTORS), noise(2, VECTORS)
    backwards = lambda tree: dict(reversed(tree.items()))  # noqa: E731
    state = tx.init(params)
    for mine, theirs in ((backwards(grads), params), (grads, backwards(params)), (backwards(grads), backwards(params))):
        updates, new = tx.update(mine, state, theirs)
        expected, expected_state = tx.update(grads, state, params)
        assert list(updates) == list(mine)
        assert_same({name: updates[name] for name in grads}, expected)
        assert_same(new, expected_state)


def test_eval_params_asks_the_last_link_with_an_opinion_leaf_by_leaf():
    tx = gradtx.partition(
        {"x": chain(gradtx.sgd(0.1), gradtx.average(), gradtx.lookahead(k=9)), "y": gradtx.sgd(0.1)},
        {"x": "a", "y": "*"},
    )
    params = noise(1, VECTORS)
    _, state = run(tx, 2, params, noise(2, VECTORS))
    now = noise(3, VECTORS)
    with untouched(now, state):
        found = tx.eval_params(state, now)
    assert_same(found, {**now, "a": state["partition"]["x"]["lookahead"]["slow"]["a"]})
    assert_own_memory(found["a"], state)


EVALUATED = {
    "average in accumulate": (gradtx.accumulate(chain(gradtx.sgd(0.1), gradtx.average()), every=1), "average"),
    "average in skip": (gradtx.skip_nonfinite(chain(gradtx.sgd(0.1), gradtx.average())), "average"),
    "average in masked": (gradtx.masked(chain(gradtx.sgd(0.1), gradtx.average()), "a"), "average"),
    "with_lookahead": (gradtx.with_lookahead(gradtx.sgd(0.1), k=9), "slow"),
    "around an average": (gradtx.with_lookahead(chain(gradtx.sgd(0.1), gradtx.average()), k=9), "slow"),
    "before other links": (chain(gradtx.average(), gradtx.scale(1.0), gradtx.clip_by_value(9.0)), "average"),
}


@pytest.mark.parametrize(("tx", "slot"), EVALUATED.values(), ids=EVALUATED)
def test_eval_params_looks_inside_wrappers(tx, slot):
    _, state = run(tx, 2, grads=noise(2, VECTORS, torch.float32))
    kept = [value for path, value in tensors(state).items() if path.endswith(f"['{slot}']['a']")]
    assert torch.equal(tx.eval_params(state, ones())["a"], kept[0])


def test_eval_params_gives_the_parameters_where_no_link_has_an_opinion_or_they_are_frozen():
    tx = chain(gradtx.sgd(0.1), gradtx.average(), gradtx.freeze("b"))
    _, state = run(tx, 2)
    now = noise(3, VECTORS, torch.float32)
    found = tx.eval_params(state, now)
    assert_same(found["b"], now["b"])
    assert not torch.equal(found["a"], now["a"])
    assert_same(gradtx.adam().eval_params(gradtx.adam().init(now), now), now)


def test_eval_params_keeps_the_parameters_dtype():
    params = noise(1, VECTORS, torch.bfloat16)
    tx = chain(gradtx.sgd(0.1), gradtx.average(state_dtype=torch.float32))
    _, state = run(tx, 2, params, params)
    assert layout(tx.eval_params(state, params)) == layout(params)
