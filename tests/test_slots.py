"""The layout and the memory of states."""

import collections

import pytest
import torch

import gradtx
from gradtx import GradientTransformation, Scalar, chain, per_tensor, whole_tree
from tests.conformance import assert_own_memory, assert_same, layout, noise, untouched
from tests.rules import FLAT, HALVE, WRAPPINGS, made, normal, ones, run
from tests.tiers import by_day

# What a rule declares of its slots.


@per_tensor(elementwise=True)
def scale_by_declared(beta: Scalar = 0.5, peak: bool = False):
    def update(g, state, p, ctx):
        mean = beta * state["mean"] + (1 - beta) * g
        new = {"mean": mean, "size": torch.maximum(state["size"], g.abs())}
        if peak:
            new["peak"] = torch.maximum(state["peak"], g.square().sum())
        return mean + state["origin"], new

    slots = {
        "mean": gradtx.slots.ema(beta),
        "size": gradtx.slots.square(lambda p: torch.full_like(p, 0.25)),
        "origin": gradtx.slots.start(),
        "peak": gradtx.slots.scalar(2.0) if peak else None,
        "past": lambda p: [p, 2 * p] if p.ndim else None,
    }
    return slots, update


def test_declared_slots_start_as_they_say():
    params = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor(5.0)}
    state = scale_by_declared(peak=True).init(params)["scale_by_declared"]
    assert set(state) == {"mean", "size", "origin", "peak", "past_0", "past_1"}
    assert_same(state["mean"], {"a": torch.zeros(2), "b": torch.tensor(0.0)})
    assert_same(state["size"], {"a": torch.full((2,), 0.25), "b": torch.tensor(0.25)})
    assert_same(state["origin"], params)
    assert_same(state["peak"]["a"], torch.tensor(2.0, dtype=torch.float64))
    assert_same(state["past_1"], {"a": 2 * params["a"]})
    assert "peak" not in scale_by_declared().init(params)["scale_by_declared"]


@pytest.mark.parametrize("state_dtype", [None, torch.float64, "int8"])
def test_slots_that_a_rule_does_not_return_are_kept(state_dtype):
    tx = scale_by_declared(state_dtype=state_dtype)
    params = {"w": torch.randn(64, 80, generator=torch.Generator().manual_seed(0))}
    start = tx.init(params)
    _, state = tx.update({"w": torch.ones(64, 80)}, start, params)
    for slot, value in start["scale_by_declared"].items():
        if slot.startswith(("origin", "past")):
            assert_same(state["scale_by_declared"][slot], value)
    assert_own_memory((start, state))


def test_a_state_with_slots_that_the_rule_does_not_declare_is_an_error():
    params = {"w": torch.ones(2)}
    state = scale_by_declared(peak=True).init(params)
    with pytest.raises(ValueError, match="but this chain uses"):
        scale_by_declared().update(params, state, params)


def test_slots_that_are_never_negative_have_the_code_without_signs():
    tx = scale_by_declared(state_dtype="int8")
    state = tx.init({"w": torch.ones(64, 80)})["scale_by_declared"]
    assert state["size"]["w"].dtype == torch.uint8
    assert state["mean"]["w"].dtype == torch.int8


# The layout of a state.


def test_the_state_has_one_step_and_an_entry_for_each_stage_with_state():
    tx = chain(
        gradtx.scale(2.0),
        gradtx.trace(0.9),
        gradtx.centralize(),
        gradtx.trace(0.5),
        gradtx.record("norm"),
        gradtx.adam(),
    )
    state = tx.init(ones())
    assert list(state) == ["step", "trace", "trace_1", "record", "scale_by_adam"]
    assert_same(state["step"], torch.tensor(0))
    assert_same(state["record"], {"norm": torch.tensor(0.0, dtype=torch.float64)})
    assert set(state["scale_by_adam"]) == {"exp_avg", "exp_avg_sq"}
    assert set(state["scale_by_adam"]["exp_avg"]) == {"a", "b", "c"}
    _, new = tx.update(ones(), state)
    assert layout(new) == layout(state)
    assert new["step"] == 1


def test_a_wrapper_holds_its_own_slots_beside_the_entries_of_its_chain():
    tx = chain(
        gradtx.trace(0.5), gradtx.accumulate(chain(gradtx.trace(0.9), gradtx.skip_nonfinite(gradtx.adam())), every=2)
    )
    state = tx.init(ones())
    assert set(state) == {"step", "trace", "accumulate"}
    assert set(state["accumulate"]) == {"step", "leaf_steps", "mini_step", "acc", "seen", "trace", "skip_nonfinite"}
    assert set(state["accumulate"]["skip_nonfinite"]) == {"step", "leaf_steps", "skipped", "scale_by_adam"}


def test_a_partition_has_one_entry_a_label():
    tx = gradtx.partition(
        {"x": gradtx.adam(), "y": gradtx.trace(0.9), "z": gradtx.scale(1.0)}, {"x": "a", "y": "b", "z": "c"}
    )
    state = tx.init(ones())
    assert set(state["partition"]) == {"x", "y"}  # z keeps nothing
    assert set(state["partition"]["x"]["scale_by_adam"]["exp_avg"]) == {"a"}
    assert set(state["partition"]["y"]["trace"]["momentum_buffer"]) == {"b"}


def test_the_state_of_a_chain_of_one_is_that_of_its_link():
    assert chain(HALVE) is HALVE
    assert_same(run(chain(gradtx.adam()), 2), run(gradtx.adam(), 2))


def test_leaf_names_are_dotted_paths():
    Point = collections.namedtuple("Point", "x y")
    params = {"layers": [{"w": torch.ones(1)}, {"w": torch.ones(1)}], "p": Point(torch.ones(1), (torch.ones(1),))}
    state = gradtx.trace(0.9).init(params)
    assert set(state["trace"]["momentum_buffer"]) == {"layers.0.w", "layers.1.w", "p.x", "p.y.0"}
    named = dict(torch.nn.Sequential(torch.nn.Linear(1, 1)).named_parameters())
    assert set(gradtx.trace(0.9).init(named)["trace"]["momentum_buffer"]) == {"0.weight", "0.bias"}


# Memory: nothing that is returned shares it with what was given, or with one another.


LIKE = lambda param: {"prev": torch.zeros_like(param)}  # noqa: E731
TWO = lambda param: {"x": torch.zeros_like(param), "y": torch.ones_like(param)}  # noqa: E731
D = torch.tensor(0.5, dtype=torch.float64)


@per_tensor(shared={"d": lambda arguments: arguments["d0"]})
def shared_constant(d0: Scalar = 0.5):
    return lambda update, state, param, ctx: (update, {"d": state["d"]})


@per_tensor
def keeps_its_number(number: Scalar):
    return (
        lambda param: {"number": torch.zeros((), dtype=torch.float64)},
        lambda update, state, param, ctx: (update, {"number": number}),
    )


def _total_twice(update, state, param, ctx):
    total = yield {"n": update.sum()}
    yield update, {"x": total["n"] + 0 * state["x"], "y": total["n"].expand(update.shape)}


def _shared_totals(update, state, param, ctx):
    total = yield {"n": update.sum()}
    yield update, {"d": total["n"], "e": total["n"]}


def rotated(leaves):
    """Every leaf in the place of the one before it."""
    names = [name for name, leaf in leaves.items() if leaf is not None]
    return {**leaves, **{here: leaves[there] for here, there in zip(names, names[1:] + names[:1], strict=True)}}


@whole_tree
def rotate():
    return lambda updates, state, params, ctx: (rotated(updates), state)


@whole_tree
def swap_slots():
    init = lambda params: {"prev": {name: torch.zeros_like(p) for name, p in params.items()}, "n": torch.zeros(())}  # noqa: E731

    def update(updates, state, params, ctx):
        return updates, {"prev": rotated(params), "n": state["n"]}

    return init, update


ALIASING = {
    "update as it came": made(lambda update, state, param, ctx: (update, state)),
    "param as update": made(lambda update, state, param, ctx: (param, state), needs=("params",)),
    "a view of the update": made(lambda update, state, param, ctx: (update.flatten().view_as(update), state)),
    "update as slot": made(lambda update, state, param, ctx: (update, {"prev": update}), LIKE),
    "param as slot": made(lambda update, state, param, ctx: (update, {"prev": param}), lambda param: {"prev": param}),
    "grad as slot": made(lambda update, state, param, ctx: (2 * update, {"prev": ctx.grad}), LIKE),
    "state as it came": made(lambda update, state, param, ctx: (2 * update, state), LIKE),
    "slot as update": made(lambda update, state, param, ctx: (state["prev"], {"prev": update}), LIKE),
    "swapped slots": made(lambda update, state, param, ctx: (update, {"x": state["y"], "y": state["x"]}), TWO),
    "one tensor in two slots": made(lambda update, state, param, ctx: (update, dict.fromkeys("xy", update + 1)), TWO),
    "totals as slots": made(_total_twice, TWO),
    "totals as shared": made(_shared_totals, shared={"d": 0.0, "e": 0.0}),
    "unchanged shared": shared_constant(),
    "shared from a tensor": shared_constant(d0=D),
    "number as slot": keeps_its_number(D),
    "step as slot": made(
        lambda update, state, param, ctx: (update, {"prev": ctx.step}),
        lambda param: {"prev": torch.zeros((), dtype=torch.int64)},
    ),
    "time as slot": made(
        lambda update, state, param, ctx: (update, {"prev": ctx.time}),
        lambda param: {"prev": torch.zeros((), dtype=torch.float64)},
    ),
    "hessian as slot": made(
        lambda update, state, param, ctx: (update, {"prev": ctx.hessian_diag}), LIKE, needs=("hessian_diag",)
    ),
    "seed": normal(seed=1),
    "leaves of a tree as other leaves": rotate(),
    "params of a tree as other slots": swap_slots(),
    "plain functions": GradientTransformation(lambda params: params, lambda u, s, p: (p, s)),
    "plain state": GradientTransformation(lambda params: {"n": torch.zeros(())}, lambda u, s, p: (u, s)),
    "plain rotation": GradientTransformation(lambda params: (), lambda u, s, p: (rotated(u), s)),
}


@pytest.mark.parametrize("around", ["alone", "chain", "accumulate", "partition", "skip_nonfinite"])
@pytest.mark.parametrize("tx", ALIASING.values(), ids=ALIASING)
def test_no_output_shares_memory_with_an_input_or_another_output(tx, around):
    tx = WRAPPINGS[around](tx) if around != "chain" else chain(tx, gradtx.record("n"), tx)
    params, grads, hessian = noise(1, FLAT), noise(2, FLAT), noise(3, FLAT)
    state = tx.init(params)
    assert_own_memory(state, params, D)
    for _ in range(2):
        with untouched(params, grads, state, hessian):
            updates, new = tx.update(grads, state, params, hessian_diag=hessian)
        assert_own_memory([updates, new], params, grads, state, hessian, D)
        state = new


TRACED = [
    "update as it came",
    "param as slot",
    "swapped slots",
    "one tensor in two slots",
    "totals as slots",
    "unchanged shared",
    "step as slot",
]


@pytest.mark.slow
@by_day("swapped slots", "totals as slots")
@pytest.mark.parametrize("name", TRACED)
def test_outputs_of_a_compiled_update_share_no_memory_either(name):
    torch._dynamo.reset()
    tx, params, grads = ALIASING[name], noise(1, FLAT), noise(2, FLAT)
    state = tx.init(params)
    compiled = torch.compile(lambda g, s, p: tx.update(g, s, p), backend="eager", fullgraph=True)
    with untouched(params, grads, state):
        found = compiled(grads, state, params)
    assert_own_memory(found, params, grads, state)


@pytest.mark.parametrize("tx", [ALIASING["plain state"], gradtx.record("n"), normal(), ALIASING["update as slot"]])
@pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS)
def test_a_step_without_any_gradient_copies_the_state(tx, wrap):
    tx = wrap(tx)
    _, state = run(tx, 1)
    updates, new = tx.update(dict.fromkeys(ones()), state, ones())
    assert all(u is None or not u.any() for u in updates.values())
    assert_own_memory([updates, new], state, ones())
