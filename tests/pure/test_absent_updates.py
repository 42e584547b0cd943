"""Which leaves of a pure update have a gradient, and how often each has stepped, is data: one plan serves them all."""

import random

import pytest
import torch

import gradtx
from gradtx import chain
from gradtx.pure import tree_plan
from tests.conformance import (
    SHAPES,
    all_cases,
    assert_close,
    assert_own_memory,
    extras,
    first_state,
    layout,
    noise,
    untouched,
)
from tests.optim.engine.test_walk import walk_of
from tests.tiers import by_day

TOLERANCE = 1e-12  # the same float64 operations, in another order
OF_DIFFERENCES = 1e-8  # some rules take the root of a difference of nearly equal numbers
MATRICES = {f"{name}{i}": shape for i in range(3) for name, shape in (("a", (3, 4)), ("b", (5,)))}


@pytest.fixture
def plans(monkeypatch):
    """The plans that were made."""
    made = []
    init = tree_plan.TreePlan.__init__

    def counted(plan, *arguments):
        made.append(plan)
        init(plan, *arguments)

    monkeypatch.setattr(tree_plan.TreePlan, "__init__", counted)
    return made


def patterns(params, steps, seed=0, share=0.3):
    """Gradients of some steps, of which a random share is absent; all in the first and the last step."""
    rng = random.Random(seed)
    for step in range(steps):
        grads = noise(step + 1, {name: tuple(param.shape) for name, param in params.items()})
        if 0 < step < steps - 1:
            grads = {name: None if rng.random() < share else grad for name, grad in grads.items()}
        yield grads


def follows_the_definition(tx, params, calls, tolerance=TOLERANCE, **given):
    """Run updates beside those of `eagerly`, each way with its own weights and states; compare all results."""
    ways = [(params, tx.init(params)) for _ in range(2)]
    for grads in calls:
        results = []
        for i, (now, state) in enumerate(ways):
            with untouched(grads, state, now):
                if i:
                    with gradtx.eagerly():
                        updates, state = tx.update(grads, state, now, **given)
                else:
                    updates, state = tx.update(grads, state, now, **given)
                    assert_own_memory([updates, state], grads, now, ways[0][1])
            results.append((updates, state))
        (updates, state), expected = results
        assert list(state) == list(expected[1])
        assert layout(results[0]) == layout(expected)
        assert_close(results[0], expected, rtol=tolerance, atol=tolerance)
        assert updates.keys() == expected[0].keys()
        assert [name for name, x in updates.items() if x is None] == [
            name for name, x in expected[0].items() if x is None
        ]
        ways = [
            (gradtx.apply_updates(now, of_way[0]), of_way[1]) for (now, _), of_way in zip(ways, results, strict=True)
        ]
    return ways[0]


CHAINS = {
    "adamw": gradtx.adamw(lr=gradtx.cosine_schedule(0.1, T_max=7)),
    "clip": chain(gradtx.clip_by_global_norm(0.5), gradtx.adamw()),
    "stale clip": chain(gradtx.clip_by_global_norm(0.5, stale=True), gradtx.lion()),
    "adaptive clip": chain(gradtx.clip_to_peak_history(), gradtx.adamp()),
    "muon": gradtx.muon(fallback=gradtx.adamw()),
    "prodigy": gradtx.prodigy(),
    "schedule-free": gradtx.schedule_free_adamw(),
    "radam": gradtx.radam(),
    "int8": gradtx.adamw(state_dtype="int8"),
    "accumulate": gradtx.accumulate(gradtx.adamw(), 2),
    "skip": gradtx.skip_nonfinite(chain(gradtx.clip_by_global_norm(0.5), gradtx.adam())),
    "partition": gradtx.partition({"sgd": gradtx.sgd(lr=0.1), "adam": gradtx.adam()}, {"sgd": "a*", "adam": "*"}),
    "masked": gradtx.masked(gradtx.adamw(), "a*"),
    "frozen": chain(gradtx.freeze("b*"), gradtx.adam()),
    "average": chain(gradtx.adamw(), gradtx.average()),
    "lookahead": chain(gradtx.adam(), gradtx.lookahead(k=2)),
    "no slots": gradtx.sgd(lr=0.1),
}


@pytest.mark.parametrize("name", CHAINS)
def test_any_leaves_may_lack_a_gradient_in_any_update(name):
    params = noise(0, MATRICES)
    follows_the_definition(CHAINS[name], params, patterns(params, 7))


@pytest.mark.parametrize("of_gradients", [None, torch.float32], ids=["alike", "gradients in float32"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_leaves_in_which_rules_do_not_compute_may_lack_a_gradient_in_the_first_update(
    dtype, of_gradients, plans, monkeypatch
):
    monkeypatch.setattr(tree_plan, "_SHARED", tree_plan.SharedTrees())
    params = {name: x.to(dtype) for name, x in noise(0, {**MATRICES, "c": ()}).items()}
    calls = [
        {name: None if name in absent else torch.ones_like(x, dtype=of_gradients) for name, x in params.items()}
        for absent in (("a0", "b0", "c"), ("b0", "c"), (), ("a0", "b1"))
    ]
    for made, make in enumerate((gradtx.adamw, gradtx.radam, lambda: gradtx.adam(state_dtype="int8")), 1):
        follows_the_definition(make(), params, calls, tolerance=1e-6)
        assert len(plans) >= made


def test_a_weight_of_no_dimension_in_16_bits_may_lack_a_gradient_in_the_first_update():
    params = {"w": torch.ones(2, 2, dtype=torch.bfloat16), "scale": torch.ones((), dtype=torch.bfloat16)}
    calls = [{**params, "scale": None}, params]
    follows_the_definition(chain(gradtx.clip_by_global_norm(0.25), gradtx.adamw()), params, calls, tolerance=1e-6)


@pytest.mark.parametrize("counts", ["calls", "leaves"])
def test_new_patterns_need_no_new_plan(counts, plans, monkeypatch):
    tx = chain(gradtx.clip_by_global_norm(0.5), gradtx.adamw(lr=0.03))
    monkeypatch.setattr(tree_plan, "_SHARED", tree_plan.SharedTrees())
    ran = []
    run = tree_plan.TreePlan.__call__
    monkeypatch.setattr(tree_plan.TreePlan, "__call__", lambda *arguments: ran.append(1) or run(*arguments))
    params = noise(0, MATRICES)
    state = tx.init(params, counts=counts)
    for grads in patterns(params, 12):
        _, state = tx.update(grads, state, params)
    assert len(ran) == 12
    # With the first counts that differ, the state has another structure.
    assert len(plans) == (1 if counts == "leaves" else 2)


def test_a_new_pattern_calls_no_function_for_each_leaf():
    lengths = set()
    for leaves in (4, 64):
        params = {f"{i}": torch.ones(3, 3) for i in range(leaves)}
        tx = gradtx.adamw()
        state = tx.init(params)
        grads = {name: param.clone() for name, param in params.items()}
        odd = {name: None if int(name) % 2 else grad for name, grad in grads.items()}
        even = {name: grad if int(name) % 2 else None for name, grad in grads.items()}
        for some in (odd, even, odd, grads):
            _, state = tx.update(some, state, params)
        calls, _ = walk_of(lambda a=(tx, {**odd, "2": None}, state, params): a[0].update(*a[1:]))
        lengths.add(len(calls))
    assert len(lengths) == 1


@pytest.mark.parametrize("case", all_cases(), ids=str)
@by_day("adamw", "adafactor", "lbfgs", "muon", "prodigy", "schedule_free_adamw", "scale_by_adam", "sam", "skip*")
def test_every_method_follows_the_definition_through_random_patterns(case):
    shapes = {f"{name}.{i}": shape for name, shape in SHAPES.items() for i in range(2)}
    tx, params = case.make(), case.noise(0, shapes)
    if first_state(tx, params) is None:
        pytest.skip("it needs other weights")
    calls = list(patterns(params, 5, seed=3))
    follows_the_definition(tx, params, calls, OF_DIFFERENCES, **extras(tx, params))


def test_the_first_update_may_lack_gradients(plans):
    params = noise(0, MATRICES)
    first, *others = patterns(params, 6)
    lacking = {**first, "a0": None, "b2": None}
    follows_the_definition(CHAINS["clip"], params, [lacking, first, *others])
    follows_the_definition(CHAINS["accumulate"], params, [lacking, first, *others])


@pytest.mark.parametrize("name", ["adamw", "clip", "frozen", "partition", "schedule-free"])
def test_an_update_without_any_gradient_changes_nothing(name):
    params = noise(0, MATRICES)
    nothing = dict.fromkeys(params)
    first, *others = patterns(params, 4)
    only_one_chain = {**nothing, "b0": first["b0"]}
    calls = [nothing, first, nothing, only_one_chain, *others, nothing]
    _, state = follows_the_definition(CHAINS[name], params, calls)
    assert int(state["step"]) < len(calls)


def test_without_params_each_pattern_is_a_structure(plans):
    tx, shapes = gradtx.scale_by_adam(), {"a": (3,), "b": (2, 2)}
    ways = [tx.init(noise(0, shapes)) for _ in range(2)]
    for i in range(6):
        grads = noise(i + 1, shapes)
        if i % 2:
            grads["ab"[i % 4 // 2]] = None
        updates, ways[0] = tx.update(grads, ways[0])
        with gradtx.eagerly():
            expected, ways[1] = tx.update(grads, ways[1])
        assert [name for name in updates if updates[name] is None] == [name for name in grads if grads[name] is None]
        assert_close((updates, ways[0]), (expected, ways[1]), rtol=TOLERANCE, atol=TOLERANCE)


def nested(tensors, order):
    w, v, x, y = tensors
    branch = {"x": x, "y": (y, None)}
    return {"w": w, "b": [v, branch]} if order else {"b": [v, branch], "w": w}


def test_leaves_are_matched_by_name_in_nested_trees_where_some_have_no_parameter():
    tx = chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw())
    shapes = {"w": (3,), "v": (2, 2), "x": (), "y": (3,)}
    params = nested(noise(0, shapes).values(), True)
    ways = [tx.init(params) for _ in range(2)]
    rng = random.Random(0)
    for i in range(6):
        drawn = [None if i and rng.random() < 0.3 else grad for grad in noise(i + 1, shapes).values()]
        grads = nested(drawn, i % 2)
        updates, ways[0] = tx.update(grads, ways[0], params)
        with gradtx.eagerly():
            expected, ways[1] = tx.update(grads, ways[1], params)
        assert repr(updates).count("None") == 1 + drawn.count(None)
        assert_close((updates, ways[0]), (expected, ways[1]), rtol=TOLERANCE, atol=TOLERANCE)


def test_a_gradient_of_a_leaf_without_a_parameter_stays_an_error():
    tx, params = gradtx.adamw(), {"w": torch.ones(3), "v": None}
    state = tx.init(params)
    for _ in range(2):
        _, state = tx.update({"w": torch.ones(3), "v": None}, state, params)
        for gradient in (torch.ones(3), torch.ones(0)):
            with pytest.raises(ValueError, match="params: leaf 'v' is None, but it has a gradient"):
                tx.update({"w": torch.ones(3), "v": gradient}, state, params)


def test_stored_weights_never_have_a_gradient():
    params = {"w": torch.ones(3), "v": torch.ones(4), "stored": torch.ones(2).to(torch.float8_e4m3fn)}
    tx = gradtx.adam()
    state = tx.init(params)
    for i in range(4):
        grads = {"w": torch.ones(3), "v": None if i % 2 else torch.ones(4), "stored": None}
        updates, state = tx.update(grads, state, params)
        assert [updates[name] is None for name in params] == [False, i % 2 == 1, True]
    with pytest.raises(TypeError, match="float8"):
        tx.update({**grads, "stored": torch.ones(2)}, state, params)


FORMS = {
    "half": lambda grad: grad.to(torch.bfloat16),
    "transposed": lambda grad: grad.T.contiguous().T,
    "expanded": lambda grad: grad[:1].expand(grad.shape),
}


@pytest.mark.parametrize("form", FORMS)
def test_gradients_may_have_another_form_than_parameters(form, plans, monkeypatch):
    monkeypatch.setattr(tree_plan, "_SHARED", tree_plan.SharedTrees())
    shapes = {str(i): (3, 4) for i in range(6)}
    params = {name: x.float() for name, x in noise(0, shapes).items()}
    calls = [
        {name: None if grad is None else FORMS[form](grad.float()) for name, grad in grads.items()}
        for grads in [*patterns(params, 9)][1:-1]
    ]
    follows_the_definition(gradtx.adamw(), params, calls, 1e-6)
    # Each plan knows what earlier ones have seen.
    assert len(plans) <= 4


def test_complex_leaves_may_lack_a_gradient():
    params = {name: torch.complex(x, 2 * x) for name, x in noise(0, MATRICES).items()}
    calls = [
        {name: None if grad is None else torch.complex(grad, -grad) for name, grad in grads.items()}
        for grads in patterns(params, 6)
    ]
    follows_the_definition(CHAINS["clip"], params, calls)


def test_a_program_of_many_patterns_keeps_no_tensor_alive():
    import gc
    import weakref

    tx = gradtx.adamw(betas=(0.5, 0.6))
    params = noise(0, MATRICES)
    kept = []
    state = tx.init(params)
    for grads in patterns(params, 5):
        grads = {name: None if grad is None else grad.clone() for name, grad in grads.items()}
        _, state = tx.update(grads, state, params)
        kept += [weakref.ref(grad) for grad in grads.values() if grad is not None]
    del grads, state
    gc.collect()
    assert [ref() for ref in kept] == [None] * len(kept)


@pytest.mark.parametrize(
    "tx",
    [
        gradtx.accumulate(chain(gradtx.sgd(1.0), gradtx.freeze("frozen")), 2),
        chain(gradtx.accumulate(gradtx.sgd(1.0), 2), gradtx.freeze("frozen")),
    ],
    ids=["inside", "outside"],
)
def test_a_call_in_which_only_frozen_leaves_have_gradients_is_no_call_of_a_cycle(tx):
    params = {"w": torch.zeros(1), "frozen": torch.zeros(1)}
    state, values = tx.init(params), []
    for gradient in (1.0, None, 2.0, 4.0):
        grads = {"w": None if gradient is None else torch.tensor([gradient]), "frozen": torch.ones(1)}
        updates, state = tx.update(grads, state, params)
        params = gradtx.apply_updates(params, updates)
        values.append(params["w"].item())
    assert values == [0.0, 0.0, -1.5, -1.5]
    assert params["frozen"] == 0
