"""Combinators: who goes through what, whose clock counts, what a skipped step leaves alone."""

import gc
import itertools
import math
import weakref

import pytest
import torch

import gradtx
from gradtx import Scalar, Schedule, accumulate, chain, freeze, masked, partition, per_tensor, skip_nonfinite
from tests.conformance import assert_close, assert_same, noise, tensors
from tests.tiers import by_day

SHAPES = {"head.weight": (2, 3), "head.bias": (2,), "body.weight": (3, 3), "body.bias": ()}
PARAMS = noise(0, SHAPES)


def grads_of(step, **changes):
    return {**noise(step, SHAPES), **changes}


def run(tx, grads, params=None, state=None, **extras):
    """Updates of every step and the last state, at the same parameters."""
    params = PARAMS if params is None else params
    state, found = tx.init(params) if state is None else state, []
    for gradient in grads:
        updates, state = tx.update(gradient, state, params, **extras)
        found.append(updates)
    return found, state


def moved(tx, grads, params=None):
    """The parameters after steps along given gradients."""
    params = PARAMS if params is None else params
    state = tx.init(params)
    for gradient in grads:
        updates, state = tx.update(gradient, state, params)
        params = gradtx.apply_updates(params, updates)
    return params


def full(value):
    return {name: torch.full(shape, value, dtype=torch.float64) for name, shape in SHAPES.items()}


def is_zero(tree, names=None):
    return all(not tree[name].any() for name in (tree if names is None else names))


@per_tensor
def see(name: str):
    """A rule that gives what it sees: its clock's step, or the gradient of its clock."""

    def update(update, state, param, ctx):
        return (torch.zeros_like(update) + ctx.time if name == "step" else ctx.grad), state

    return update


@per_tensor
def explode_at(step: int):
    """NaN in updates and slots at one step of its clock."""

    def update(update, state, param, ctx):
        bad = torch.where(ctx.step == step, torch.nan, 0.0)
        return update + bad, {"sum": state["sum"] + update + bad}

    return lambda param: {"sum": torch.zeros_like(param)}, update


NORM = gradtx.record("norm")
HEAD = {"head": "head.*", "body": "*"}


# chain


def _links():
    return gradtx.clip_by_global_norm(1.0), gradtx.trace(0.9), gradtx.adamw(lr=0.1)


@pytest.mark.parametrize(
    "nest",
    [
        lambda a, b, c: chain(chain(a, b), c),
        lambda a, b, c: chain(a, chain(b, c)),
        lambda a, b, c: chain(chain(a), chain(), chain(chain(b), c)),
    ],
)
def test_a_chain_is_flat_however_it_is_nested(nest):
    tx, flat = nest(*_links()), chain(*_links())
    assert repr(tx) == repr(flat)
    assert tx.hyperparams == flat.hyperparams
    grads = [grads_of(i) for i in range(1, 4)]
    assert_same(run(tx, grads), run(flat, grads))


def test_an_empty_chain_is_the_identity():
    (updates,), state = run(chain(), [grads_of(1)])
    assert_same(updates, grads_of(1))
    assert_same(state, {"step": torch.tensor(1)})


def test_links_run_in_the_order_they_are_written():
    (updates,), _ = run(chain(gradtx.clip_by_value(1.0), gradtx.scale(5.0)), [full(3.0)])
    assert_same(updates, full(5.0))
    (updates,), _ = run(chain(gradtx.scale(5.0), gradtx.clip_by_value(1.0)), [full(3.0)])
    assert_same(updates, full(1.0))


# partition

LABELS = {
    "patterns": HEAD,
    "tuple of patterns": {"head": ("head.weight", "head.bias"), "body": "*"},
    "predicates": {"head": lambda name, p: name.startswith("head"), "body": lambda name, p: True},
    "mixed": {"head": lambda name, p: name.startswith("head"), "body": "*"},
    "function": lambda name, p: name.split(".")[0],
    "tree whose labels are its keys": {"head": "head", "body": "body"},
}


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_every_leaf_goes_through_the_transformation_of_its_label(labels):
    tx = partition({"body": gradtx.trace(0.5), "head": gradtx.scale(7.0)}, labels)
    (_, updates), state = run(tx, [full(1.0)] * 2)
    assert {name: float(u.mean()) for name, u in updates.items()} == {
        "head.weight": 7.0,
        "head.bias": 7.0,
        "body.weight": 1.5,
        "body.bias": 1.5,
    }
    assert set(state["partition"]["body"]["trace"]["momentum_buffer"]) == {"body.weight", "body.bias"}


def test_the_first_selector_that_matches_wins():
    tx = partition(
        {"rest": gradtx.scale(3.0), "weights": gradtx.scale(2.0), "head": gradtx.scale(1.0)},
        {"head": "head.*", "weights": "*.weight", "rest": "*"},
    )
    (updates,), _ = run(tx, [full(1.0)])
    assert {name: float(u.mean()) for name, u in updates.items()} == {
        "head.weight": 1.0,
        "head.bias": 1.0,
        "body.weight": 2.0,
        "body.bias": 3.0,
    }


def test_patterns_are_case_sensitive_and_their_star_crosses_dots():
    params = {"a.b.c": torch.ones(1), "A.b.c": torch.ones(1), "a[0]": torch.ones(1)}
    tx = partition({"x": gradtx.scale(2.0), "y": gradtx.scale(1.0)}, {"x": "a*c", "y": "*"})
    (updates,), _ = run(tx, [params], params)
    assert {name: float(u) for name, u in updates.items()} == {"a.b.c": 2.0, "A.b.c": 1.0, "a[0]": 1.0}


def test_a_norm_inside_a_branch_sees_that_branch_only():
    clip = gradtx.clip_by_global_norm(1.0, eps=0.0)
    (updates,), _ = run(partition({"head": clip, "body": clip}, HEAD), [grads_of(1)])
    for branch in ("head", "body"):
        norm = torch.cat([u.flatten() for name, u in updates.items() if name.startswith(branch)]).norm()
        torch.testing.assert_close(norm, torch.tensor(1.0).double(), rtol=1e-14, atol=0)  # one rounding


def test_a_norm_around_a_partition_sees_all_leaves():
    tx = chain(partition({"head": gradtx.scale(2.0), "body": gradtx.scale(1.0)}, HEAD), NORM)
    _, state = run(tx, [full(1.0)])
    assert state["record"]["norm"] == math.sqrt(8 * 4 + 10)


SPLIT = {"a": lambda name, p: bool((p > 0).all()), "b": "*"}


@pytest.mark.parametrize("labels", [SPLIT, lambda name, p: "a" if (p > 0).all() else "b"], ids=["dict", "function"])
def test_what_a_predicate_said_about_the_parameter_at_init_is_remembered(labels):
    params = full(1.0) | {"body.bias": torch.tensor(-1.0).double()}
    tx = partition({"a": gradtx.trace(0.9), "b": gradtx.scale(5.0)}, labels)
    state = tx.init(params)
    for p in (params, {name: -p for name, p in params.items()}, None):
        updates, state = tx.update(full(1.0), state, p)
        assert float(updates["body.bias"]) == 5.0
    assert float(updates["head.bias"][0]) == pytest.approx(2.71)


@pytest.mark.parametrize("where", [lambda name, p: p.ndim < 2, lambda name, p: bool((p == 1).all())])
@pytest.mark.parametrize("wrap", [masked, lambda tx, where: chain(tx, freeze(where))], ids=["masked", "freeze"])
def test_masks_and_freezes_are_remembered_too(wrap, where):
    tx = wrap(gradtx.trace(0.5), where)
    params = full(1.0) | {"body.weight": torch.zeros(3, 3).double()}
    state = tx.init(params)
    first, state = tx.update(full(1.0), state, params)
    for p in ({name: 0 * p for name, p in params.items()}, None):
        again, state = tx.update({name: 0 * g for name, g in full(1.0).items()}, state, p)
        chosen = {name for name, u in again.items() if u.any()}
        through = {name for name, p in params.items() if where(name, p) == (wrap is masked)}
        assert chosen == through
    assert set(first) == set(SHAPES)


def test_partitions_nest():
    inner = partition({"w": gradtx.scale(2.0), "b": gradtx.trace(0.9)}, {"w": "*.weight", "b": "*"})
    tx = partition({"head": inner, "body": gradtx.scale(1.0)}, HEAD)
    (updates,), state = run(tx, [full(1.0)])
    assert {name: float(u.mean()) for name, u in updates.items()} == {
        "head.weight": 2.0,
        "head.bias": 1.0,
        "body.weight": 1.0,
        "body.bias": 1.0,
    }
    assert set(state["partition"]["head"]["partition"]["b"]["trace"]["momentum_buffer"]) == {"head.bias"}
    assert tx.hyperparams["momentum"] == 0.9


def test_a_branch_may_have_no_leaves_when_a_function_labels():
    tx = partition({"a": gradtx.adam(), "b": chain(NORM, gradtx.adam())}, lambda name, p: "a")
    found, state = run(tx, [grads_of(1)])
    assert_same(found, run(gradtx.adam(), [grads_of(1)])[0])
    assert state["partition"]["b"]["record"]["norm"] == 0


def test_partitioned_adams_equal_adams_run_apart():
    txs = {"head": gradtx.adamw(lr=0.1), "body": gradtx.sgd(lr=0.2, momentum=0.9, weight_decay=0.1)}
    grads = [grads_of(i) for i in range(1, 6)]
    together = moved(partition(txs, HEAD), grads)
    for label, tx in txs.items():
        mine = [name for name in SHAPES if name.startswith(label)]
        params = {name: PARAMS[name] for name in mine}
        alone = moved(tx, [{name: g[name] for name in mine} for g in grads], params)
        assert_same({name: together[name] for name in mine}, alone)


# masked


def test_unmasked_leaves_pass_unchanged_and_keep_no_state():
    tx = masked(chain(gradtx.trace(0.9), NORM, gradtx.scale(2.0)), "*.bias")
    (updates,), state = run(tx, [grads_of(1)])
    grads = grads_of(1)
    assert_same({n: updates[n] for n in SHAPES if "weight" in n}, {n: grads[n] for n in SHAPES if "weight" in n})
    assert_same(updates["body.bias"], 2 * grads["body.bias"])
    assert set(state["masked"]["trace"]["momentum_buffer"]) == {"head.bias", "body.bias"}
    torch.testing.assert_close(
        state["masked"]["record"]["norm"],
        torch.cat([grads["head.bias"].flatten(), grads["body.bias"].flatten()]).norm(),
        rtol=1e-14,  # one rounding
        atol=0,
    )


# freeze

FREEZE_PLACES = {
    "first": lambda tx: chain(freeze("*.bias"), NORM, tx),
    "last": lambda tx: chain(NORM, tx, freeze("*.bias")),
    "middle": lambda tx: chain(NORM, freeze("*.bias"), tx),
    "nested chain": lambda tx: chain(NORM, chain(tx, freeze("*.bias"))),
    "lifted out of accumulate": lambda tx: chain(NORM, accumulate(chain(tx, freeze("*.bias")), every=1)),
    "lifted out of skip_nonfinite": lambda tx: chain(NORM, skip_nonfinite(chain(tx, freeze("*.bias")))),
    "lifted out of with_lookahead": lambda tx: chain(NORM, gradtx.with_lookahead(chain(tx, freeze("*.bias")))),
    "lifted out of two": lambda tx: chain(NORM, skip_nonfinite(accumulate(chain(freeze("*.bias"), tx), every=1))),
}


@pytest.mark.parametrize("where", ["*.bias", lambda name, p: name.endswith("bias")], ids=["pattern", "predicate"])
@pytest.mark.parametrize("place", FREEZE_PLACES.values(), ids=FREEZE_PLACES)
def test_freeze_covers_the_whole_chain_around_it(place, where, monkeypatch):
    monkeypatch.setitem(place.__globals__, "freeze", lambda _: gradtx.freeze(where))
    tx = place(gradtx.adamw(lr=0.1, weight_decay=0.5))
    grads = [grads_of(i, **{"body.bias": torch.tensor(math.nan).double()}) for i in range(1, 4)]
    found, state = run(tx, grads)
    for updates in found:
        assert_same(updates["head.bias"], torch.zeros(2, dtype=torch.float64))
        assert_same(updates["body.bias"], torch.zeros((), dtype=torch.float64))
        assert updates["head.weight"].abs().min() > 0
    assert not any("bias" in path for path in tensors(state) if "['members']" not in path)
    weights = torch.cat([grads[-1][name].flatten() for name in ("head.weight", "body.weight")])
    torch.testing.assert_close(state["record"]["norm"], weights.norm(), rtol=1e-14, atol=0)  # one rounding


def test_a_freeze_in_a_branch_covers_that_branch_only():
    tx = partition(
        {"head": chain(gradtx.sgd(lr=1.0), freeze("*.bias")), "body": gradtx.sgd(lr=1.0)},
        {"head": "head.*", "body": "*"},
    )
    (updates,), _ = run(chain(NORM, tx), [full(1.0)])
    assert {name: float(u.mean()) for name, u in updates.items()} == {
        "head.weight": -1.0,
        "head.bias": 0.0,
        "body.weight": -1.0,
        "body.bias": -1.0,
    }


def test_a_freeze_in_a_mask_covers_the_mask_only():
    (updates,), _ = run(masked(chain(freeze("*"), gradtx.scale(1.0)), "head.*"), [full(1.0)])
    assert is_zero(updates, ["head.weight", "head.bias"])
    assert_same(updates["body.weight"], full(1.0)["body.weight"])


def test_two_freezes_add_up():
    (updates,), state = run(chain(freeze("head.*"), gradtx.trace(0.9), freeze("*.bias")), [full(1.0)])
    assert {name for name, u in updates.items() if u.any()} == {"body.weight"}
    assert set(state["trace"]["momentum_buffer"]) == {"body.weight"}


def test_freeze_may_ask_the_parameter_whether_it_wants_a_gradient():
    params = {name: p.clone().requires_grad_("bias" not in name) for name, p in PARAMS.items()}
    tx = chain(gradtx.adamw(), freeze(lambda name, p: not p.requires_grad))
    (updates,), state = run(tx, [grads_of(1)], params)
    assert is_zero(updates, ["head.bias", "body.bias"])
    assert set(state["scale_by_adam"]["exp_avg"]) == {"head.weight", "body.weight"}


def test_a_frozen_leaf_without_gradient_has_no_update():
    (updates,), _ = run(chain(gradtx.sgd(), freeze("head.*")), [grads_of(1, **{"head.bias": None})])
    assert updates["head.bias"] is None


def test_a_frozen_parameter_keeps_every_bit():
    params = noise(0, SHAPES, torch.bfloat16) | {"head.bias": torch.tensor([-0.0, math.inf]).bfloat16()}
    end = moved(
        chain(gradtx.adamw(lr=1.0), freeze("head.*")), [noise(i, SHAPES, torch.bfloat16) for i in range(3)], params
    )
    assert float(end["head.bias"][1]) == math.inf
    assert_same(end["head.weight"], params["head.weight"])


# accumulate

INNER = {
    "sgd": gradtx.sgd(lr=0.1, momentum=0.9, weight_decay=0.1),
    "adamw": gradtx.adamw(lr=0.1),
    "clipped": chain(gradtx.clip_by_global_norm(0.1), gradtx.adam(lr=0.1), gradtx.lookahead(k=2)),
    "scheduled": gradtx.adam(lr=gradtx.linear_schedule(0.1, start_factor=0.1, total_iters=3)),
    "projected": gradtx.adamp(lr=0.1, weight_decay=0.1),
    "partition": partition({"head": gradtx.adam(lr=0.1), "body": gradtx.sgd(lr=0.1)}, HEAD),
    "skip": skip_nonfinite(gradtx.adam(lr=0.1)),
}


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("inner", INNER.values(), ids=INNER)
def test_accumulate_equals_the_big_batch(inner, every):
    small = [grads_of(i) for i in range(1, 1 + 4 * every)]
    big = [
        {name: sum(g[name] for g in small[i : i + every]) / every for name in SHAPES}
        for i in range(0, 4 * every, every)
    ]
    # one rounding of the mean, amplified by Adam's division
    assert_close(moved(accumulate(inner, every=every), small), moved(inner, big), rtol=1e-12, atol=1e-12)


def test_accumulate_counts_real_updates_for_steps_schedules_and_gradients():
    rates = Schedule(lambda step: 10.0 + step)
    tx = accumulate(chain(see("step"), gradtx.sgd(lr=rates)), every=2)
    found, _ = run(tx, [full(1.0)] * 6)
    assert [float(u["body.bias"]) for u in found] == [0, -10.0, 0, -22.0, 0, -36.0]  # step times rate
    found, _ = run(accumulate(see("grad"), every=2), [full(1.0), full(4.0)])
    assert_same(found, [full(0.0), full(2.5)])


RATES = gradtx.linear_schedule(1.0, 0.1, 1.0, total_iters=9)
SLOW = accumulate(gradtx.sgd(lr=RATES), every=2)


@pytest.mark.parametrize(
    "tx",
    [
        gradtx.hyperball(SLOW, 0.05),
        gradtx.hyperball(chain(gradtx.scale(2.0), SLOW), 0.05),
        gradtx.muon(lr=0.01, fallback=SLOW),
        gradtx.muon(lr=0.01, fallback=chain(gradtx.scale(2.0), SLOW), mask="*.weight"),
        gradtx.soap_muon(lr=0.01, fallback=SLOW),
        chain(gradtx.scale(2.0), skip_nonfinite(gradtx.muon(lr=0.01, fallback=SLOW))),
        gradtx.muon(lr=0.01, fallback=gradtx.hyperball(SLOW, 0.05)),
    ],
    ids=repr,
)
def test_a_schedule_follows_the_clock_of_accumulate_wherever_accumulate_is_passed(tx):
    params = {name: value.clone() for name, value in PARAMS.items()}
    state = tx.init(params)
    weights = {name: torch.nn.Parameter(value.clone()) for name, value in params.items()}
    optimizer = gradtx.as_optimizer(tx, weights.items())
    (rate,) = [name for name, value in tx.hyperparams.items() if isinstance(value, Schedule)]
    for i in range(5):
        updates, state = tx.update(grads_of(i), state, params)
        params = gradtx.apply_updates(params, updates)
        for name, weight in weights.items():
            weight.grad = grads_of(i)[name]
        optimizer.step()
        assert gradtx.learning_rate(tx, state, rate) == RATES((i + 1) // 2)
    assert_close({name: weight.detach() for name, weight in weights.items()}, params, rtol=1e-12, atol=1e-12)


def test_links_outside_accumulate_count_calls():
    tx = chain(gradtx.scale(1.0), accumulate(see("step"), every=2), see("step"))
    found, state = run(tx, [full(1.0)] * 4)
    assert [float(u["body.bias"]) for u in found] == [1, 2, 3, 4]
    assert state["step"] == 4
    assert state["accumulate"]["step"] == 2


def test_between_emissions_updates_are_zero_and_only_the_sum_moves():
    tx = accumulate(chain(NORM, gradtx.adam()), every=3)
    (_, _, third), state = run(tx, [grads_of(i) for i in (1, 2, 3)])
    assert not is_zero(third)
    (fourth,), later = run(tx, [grads_of(4)], state=state)
    assert is_zero(fourth)
    mine, theirs = state["accumulate"], later["accumulate"]
    for entry in ("step", "record", "scale_by_adam"):
        assert_same(theirs[entry], mine[entry])
    assert theirs["mini_step"] == 1
    assert mine["mini_step"] == 0
    assert is_zero(mine["acc"])
    assert_same(theirs["acc"], grads_of(4))


def test_inside_accumulate_a_none_gradient_counts_as_zero():
    tx = accumulate(gradtx.sgd(lr=1.0), every=2)
    (_, updates), _ = run(tx, [full(2.0) | {"head.bias": None}, full(4.0)])
    assert updates["head.bias"].tolist() == [-2.0, -2.0]
    assert float(updates["body.bias"]) == -3.0
    (_, updates), _ = run(tx, [full(2.0), full(4.0) | {"head.bias": None}])
    assert updates["head.bias"].tolist() == [-1.0, -1.0]


def test_accumulate_needs_no_params_to_wait_for_a_leaf():
    tx = accumulate(gradtx.sgd(lr=1.0), every=2)
    state = tx.init(full(0.0))
    _, state = tx.update(full(2.0) | {"head.bias": None}, state)
    updates, _ = tx.update(full(2.0) | {"body.bias": None}, state)
    assert float(updates["head.bias"][0]) == float(updates["body.bias"]) == -1.0


@pytest.mark.parametrize("bad", [1, 2])
def test_nan_in_a_step_that_is_not_taken_does_not_leak(bad):
    tx = accumulate(chain(explode_at(bad), gradtx.trace(0.9)), every=2)
    found, state = run(tx, [full(1.0)])  # the inner chain runs at its step 1 in any case
    assert is_zero(found[0])
    values = [t for t in tensors(state).values() if t.is_floating_point()]
    assert all(t.isfinite().all() for t in values)


def test_the_sum_of_accumulate_is_kept_in_state_dtype():
    low = {"w": torch.ones(4, dtype=torch.bfloat16)}
    tx = accumulate(gradtx.sgd(lr=1.0), every=512, state_dtype=torch.float32)
    state = tx.init(low)
    assert state["accumulate"]["acc"]["w"].dtype == torch.float32
    for _ in range(512):
        updates, state = tx.update(low, state)
    assert updates["w"].tolist() == [-1.0] * 4  # a bfloat16 sum stops growing at 256


# skip_nonfinite

BAD = [
    pytest.param({name: torch.full(SHAPES[name], value, dtype=torch.float64)}, id=f"{value} in {name}")
    for name, value in itertools.product(("body.bias", "head.weight"), (math.nan, math.inf, -math.inf))
]


@pytest.mark.parametrize("bad", BAD)
def test_a_nonfinite_step_changes_nothing_but_the_count_of_skipped(bad):
    tx = skip_nonfinite(chain(NORM, gradtx.adam(lr=gradtx.linear_schedule(0.1)), gradtx.trace(0.5)))
    _, state = run(tx, [grads_of(1)])
    (updates,), later = run(tx, [grads_of(2, **bad)], state=state)
    assert is_zero(updates)
    before, after = dict(state["skip_nonfinite"]), dict(later["skip_nonfinite"])
    assert (before.pop("skipped"), after.pop("skipped")) == (0, 1)
    assert_same(after, before)
    assert later["step"] == 2


@pytest.mark.parametrize("most", [0, 1, 3])
def test_the_update_after_max_consecutive_skipped_ones_passes(most):
    tx = skip_nonfinite(gradtx.sgd(lr=1.0), max_consecutive=most)
    bad = grads_of(2, **{"body.bias": torch.tensor(math.nan).double()})
    good = grads_of(1)
    calls = [bad] * (most + 2) + [good] + [bad] * most + [good]
    all_updates, state = run(tx, calls)
    passed = [not is_zero(updates) for updates in all_updates]
    assert passed == [False] * most + [True, True, True] + [False] * most + [True]
    assert state["skip_nonfinite"]["skipped"] == 2 * most
    assert state["skip_nonfinite"]["consecutive"] == 0


def test_training_with_skipped_steps_equals_training_without_them():
    inner = chain(gradtx.adamw(lr=gradtx.cosine_schedule(0.1, 4)), gradtx.lookahead(k=2))
    good = [grads_of(i) for i in range(1, 6)]
    bad = grads_of(9, **{"body.bias": torch.tensor(math.nan).double()})
    mixed = [bad, good[0], bad, bad, *good[1:4], bad, good[4]]
    # Inside, leaves have counts of their own, so that the operations on counts are others.
    assert_close(moved(skip_nonfinite(inner), mixed), moved(inner, good), rtol=1e-14, atol=1e-15)


def test_a_none_gradient_is_not_nonfinite():
    tx = skip_nonfinite(gradtx.sgd(lr=1.0))
    (updates,), state = run(tx, [full(1.0) | {"head.bias": None}])
    assert updates["head.bias"] is None
    assert float(updates["body.bias"]) == -1.0
    assert state["skip_nonfinite"]["skipped"] == 0


def test_skip_in_a_branch_looks_at_that_branch_only():
    tx = partition({"head": skip_nonfinite(gradtx.sgd(lr=1.0)), "body": gradtx.sgd(lr=1.0)}, HEAD)
    (updates,), state = run(tx, [full(1.0) | {"body.bias": torch.tensor(math.nan).double()}])
    assert float(updates["head.bias"][0]) == -1.0
    assert state["partition"]["head"]["skip_nonfinite"]["skipped"] == 0
    (updates,), _ = run(tx, [full(1.0) | {"head.weight": full(math.nan)["head.weight"]}])
    assert is_zero(updates, ["head.weight", "head.bias"])
    assert float(updates["body.bias"]) == -1.0


@pytest.mark.parametrize("present", SHAPES)
def test_a_call_without_any_gradient_in_one_of_two_branches_counts_for_both_clocks(present):
    slots = gradtx.schedule_free(gradtx.scale_by_adam(), lr=0.1, beta=0.9)
    tx = partition({"head": skip_nonfinite(slots), "body": skip_nonfinite(gradtx.nadam(lr=0.1))}, HEAD)
    without = dict.fromkeys(SHAPES) | {present: full(1.0)[present]}
    _, state = run(tx, [full(1.0), without, without, full(1.0)], PARAMS)
    for branch in ("head", "body"):
        assert state["partition"][branch]["skip_nonfinite"]["step"] == 4


def test_the_clock_of_a_branch_starts_with_its_first_gradient():
    tx = partition({"head": skip_nonfinite(gradtx.adam(lr=0.1)), "body": gradtx.sgd(lr=0.1)}, HEAD)
    late = full(1.0) | {"head.weight": None, "head.bias": None}
    grads = [late, late, full(1.0), late, grads_of(1)]
    weights = {name: torch.nn.Parameter(value.clone()) for name, value in PARAMS.items()}
    optimizer = gradtx.as_optimizer(tx, weights.items())
    for step in grads:
        for name, weight in weights.items():
            weight.grad = step[name]
        optimizer.step()
    _, state = run(tx, grads, PARAMS)
    assert state["partition"]["head"]["skip_nonfinite"]["step"] == 3
    expected = moved(tx, grads)
    assert_close({name: weight.detach() for name, weight in weights.items()}, expected, rtol=1e-12, atol=1e-12)
    first = moved(tx, grads[:3])["head.bias"] - PARAMS["head.bias"]
    assert_close(first, torch.full_like(first, -0.1), rtol=1e-6, atol=0)


def test_the_gradient_of_a_skipped_step_is_zero_not_nan():
    lr = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    tx = skip_nonfinite(gradtx.adamw(lr=lr))
    params = {name: p.clone().requires_grad_() for name, p in PARAMS.items()}
    (updates,), _ = run(tx, [full(math.nan)], params)
    slopes = torch.autograd.grad(sum(u.sum() for u in updates.values()), [lr, *params.values()], allow_unused=True)
    assert all(slope is None or not slope.any() for slope in slopes)


# Wrappers in wrappers.


def test_skip_inside_accumulate_skips_a_whole_cycle():
    tx = accumulate(skip_nonfinite(see("step")), every=2)
    bad = full(math.inf)
    found, state = run(tx, [full(1.0), full(1.0), full(1.0), bad, full(1.0), full(1.0)])
    assert [float(u["body.bias"]) for u in found] == [0, 1, 0, 0, 0, 2]
    inner = state["accumulate"]["skip_nonfinite"]
    assert (inner["step"], inner["skipped"], state["accumulate"]["step"]) == (2, 1, 3)


def test_accumulate_inside_skip_drops_the_bad_call_from_the_cycle():
    tx = skip_nonfinite(accumulate(see("grad"), every=2))
    found, state = run(tx, [full(1.0), full(math.nan), full(3.0), full(5.0)])
    assert [float(u["body.bias"]) for u in found] == [0, 0, 2.0, 0]
    inner = state["skip_nonfinite"]["accumulate"]
    assert (inner["step"], inner["mini_step"], state["skip_nonfinite"]["skipped"]) == (1, 1, 1)


# map_after_step


def test_the_parameter_after_the_step_goes_through_the_function():
    tx = chain(gradtx.sgd(lr=1.0), gradtx.map_after_step(lambda p: p.clamp(-0.5, 0.5)))
    params = PARAMS
    after = moved(tx, [grads_of(1)], params)
    expected = {name: (p - grads_of(1)[name]).clamp(-0.5, 0.5) for name, p in params.items()}
    assert_close(after, expected, rtol=1e-14, atol=1e-15)  # the update is a difference: one rounding


def test_before_sends_the_parameter_through_the_function_twice():
    tx = chain(gradtx.sgd(lr=1.0), gradtx.map_after_step(torch.tanh, before=True))
    params = PARAMS
    after = moved(tx, [grads_of(1)], params)
    expected = {name: (p.tanh() - grads_of(1)[name]).tanh() for name, p in params.items()}
    assert_close(after, expected, rtol=1e-14, atol=1e-15)  # as above


def test_a_closure_made_in_an_alias_sees_the_values_of_its_step():
    @gradtx.alias
    def bounded(lr: Scalar = 1.0, bound: Scalar = 0.5):
        return chain(gradtx.sgd(lr), gradtx.map_after_step(lambda p: p.clamp(-bound, bound)))

    falling = Schedule(lambda step: 2.0 - torch.as_tensor(step).double())
    tx, params = bounded(bound=falling), full(3.0)
    state = tx.init(params)
    for bound in (2.0, 1.0):
        updates, state = tx.update(full(0.0), state, params)
        assert_same(gradtx.apply_updates(params, updates), full(bound))


# Under torch.func and torch.compile.


@pytest.mark.parametrize("nothing", [(), []], ids=str)
def test_no_patterns_select_nothing(nothing):
    params = {"w": torch.ones(2), "b": torch.ones(2)}
    for tx in (gradtx.masked(gradtx.scale(5.0), nothing), gradtx.freeze(nothing)):
        updates, _ = tx.update(params, tx.init(params), params)
        assert torch.equal(updates["w"], params["w"])
        assert torch.equal(updates["b"], params["b"])
    module = torch.nn.Linear(2, 1)
    optimizer = gradtx.optim.AdamW(module.named_parameters(), weight_decay=0.5, mask=nothing)
    undecayed = torch.nn.Linear(2, 1)
    undecayed.load_state_dict(module.state_dict())
    plain = gradtx.optim.AdamW(undecayed.named_parameters(), weight_decay=0.0)
    for each, steps in ((module, optimizer), (undecayed, plain)):
        each(torch.ones(1, 2)).sum().backward()
        steps.step()
    assert torch.equal(module.weight, undecayed.weight)


def test_a_mask_made_from_the_whole_tree_keeps_no_parameter_alive():
    weight = torch.nn.Parameter(torch.ones(3))
    tx = gradtx.masked(gradtx.sgd(lr=0.1), lambda params: dict.fromkeys(params, True))
    optimizer = gradtx.as_optimizer(tx, [("w", weight)])
    weight.grad = torch.ones(3)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.full((3,), 0.9))
    gc.collect()
    gone = weakref.ref(weight)
    gc.disable()
    try:
        del optimizer, weight
        assert gone() is None
    finally:
        gc.enable()


# Selectors of every form inside every combinator.

FORMS = {
    "function of a leaf": lambda name, tensor: name == "w",
    "tree": {"w": True, "v": False},
    "function of the tree": lambda params: {name: name == "w" for name in params},
}


def labels_of(where):
    """The labels of a partition whose branch "a" has the leaves that a selector chooses, in the selector's form."""
    if isinstance(where, str):
        return {"a": where, "b": "*"}
    if isinstance(where, dict):
        return {name: "a" if flag else "b" for name, flag in where.items()}
    if where is FORMS["tree"] or where is FORMS["function of the tree"]:
        return lambda params: labels_of(where(params))
    return lambda name, tensor: "a" if where(name, tensor) else "b"


INSIDE = {
    "mask": lambda where: gradtx.adamw(lr=0.1, weight_decay=0.5, mask=where),
    "masked": lambda where: chain(gradtx.scale_by_adam(), masked(gradtx.scale(2.0), where)),
    "partition": lambda where: partition({"a": gradtx.adam(lr=0.1), "b": gradtx.adam(lr=0.2)}, labels_of(where)),
}
# What divides, rotates, averages and repeats a chain, or lets it wait.
AROUND = {
    **{f"blocks({key})": {key: value} for key, value in (("heads", 2), ("batch", 1))},
    "accumulate": lambda tx: gradtx.accumulate(tx, every=2),
    "apply_if": lambda tx: gradtx.apply_if(tx, condition=lambda step: step % 2 == 1),
    "graft": lambda tx: gradtx.graft(tx, gradtx.sgd(lr=0.1)),
    "low_rank": lambda tx: gradtx.low_rank(tx, rank=2),
    "mechanize": gradtx.mechanize,
    "outer": lambda tx: gradtx.outer(tx, gradtx.sgd(lr=0.7), every=2),
    "restart": lambda tx: gradtx.restart(tx, every=2),
    "rotated": gradtx.rotated,
    "skip_nonfinite": skip_nonfinite,
    "nested blocks": lambda tx: gradtx.blocks(gradtx.blocks(tx, heads=2), heads=2),
    "blocks in a clock": lambda tx: gradtx.accumulate(gradtx.blocks(tx, heads=2), every=2),
    "clock in blocks": lambda tx: gradtx.blocks(skip_nonfinite(tx), heads=2),
}
AROUND = {
    name: around if callable(around) else lambda tx, options=around: gradtx.blocks(tx, **options)
    for name, around in AROUND.items()
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("inside", INSIDE)
@pytest.mark.parametrize("around", AROUND)
@by_day("*blocks*-function of the tree", "rotated-*-function of the tree", "outer-*-tree", "blocks(batch)-*")
def test_a_selector_of_every_form_selects_as_patterns_do_inside_every_combinator(around, inside, form):
    start = noise(5, {"w": (4, 4), "v": (4, 4)})
    expected, found = (AROUND[around](INSIDE[inside](where)) for where in ("w", FORMS[form]))
    grads = [noise(i, {"w": (4, 4), "v": (4, 4)}) for i in (6, 7, 8)]
    wanted = moved(expected, grads, start)
    assert not torch.equal(wanted["w"] - start["w"], wanted["v"] - start["v"])
    assert_same(moved(found, grads, start), wanted)
    params = {name: torch.nn.Parameter(value.clone()) for name, value in start.items()}
    optimizer = gradtx.as_optimizer(found, params.items())
    for gradient in grads:
        for name, param in params.items():
            param.grad = gradient[name].clone()
        optimizer.step()
    for name, param in params.items():
        torch.testing.assert_close(param.detach(), wanted[name], rtol=1e-9, atol=1e-12)
