"""Errors of `update` and `apply_updates`: trees and extras that do not fit; inputs stay as they are."""

import re

import pytest
import torch

import gradtx
from gradtx import chain, per_tensor
from tests.conformance import assert_same, snapshot, untouched
from tests.errors.common import ADAM, DTYPE, NAMED, OWN, failing, matching, params, rule, slot, without

# Updates: trees and extras. Each case is (kind, transformation, arguments of update that differ).


@per_tensor(extras={"fisher": "leaf", "temperature": "scalar"})
def uses_extras():
    return lambda update, state, param, ctx: (update * ctx.fisher * ctx.temperature, state)


@per_tensor(needs=("value", "grad_fn"))
def uses_closure():
    return lambda update, state, param, ctx: (update * ctx.value, state)


@per_tensor(needs=("hessian_diag",))
def uses_hessian():
    return lambda update, state, param, ctx: (update * ctx.hessian_diag, state)


BY_NAME = "; leaves are matched by name"
TREES = {
    f"params: leaf 'b' is not in updates{BY_NAME}": (ValueError, ADAM, {"updates": without("b")}),
    f"params: leaf 'b' is missing, but is in updates{BY_NAME}": (ValueError, ADAM, {"params": without("b")}),
    f"params: leaf '0' is missing, but is in updates{BY_NAME}": (
        ValueError,
        ADAM,
        {"updates": list(params().values())},
    ),
    "updates lack leaf 'b', which the state has at 'scale_by_adam.exp_avg'; pass None for a leaf without a gradient": (
        ValueError,
        ADAM,
        {"updates": without("b"), "params": None},
    ),
    f"state lacks 'scale_by_adam' of leaf 'c'{OWN}": (
        ValueError,
        ADAM,
        {"updates": params(c=torch.ones(1)), "params": params(c=torch.ones(1))},
    ),
    "updates: leaf 'b' has shape (4,), but its parameter has (3,)": (
        ValueError,
        ADAM,
        {"updates": params(b=torch.ones(4))},
    ),
    f"updates: leaf 'b' is a float, needs a tensor or None{NAMED}": (TypeError, ADAM, {"updates": params(b=1.0)}),
    f"params: leaf 'b' is a str, needs a tensor or None{NAMED}": (TypeError, ADAM, {"params": params(b="x")}),
    f"params: leaf '' is a Linear, needs a tensor or None{NAMED}": (TypeError, ADAM, {"params": torch.nn.Linear(1, 1)}),
    "updates: leaf 'b' has dtype torch.int32, " + DTYPE: (
        TypeError,
        ADAM,
        {"updates": params(b=torch.ones(3, dtype=torch.int32))},
    ),
    f"params: leaf 'step' has dtype torch.int64, {DTYPE}": (TypeError, ADAM, {"params": ADAM.init(params())}),
    "adamw needs params: call update(updates, state, params)": (ValueError, gradtx.adamw(), {"params": None}),
    "add_decayed_weights needs params: call update(updates, state, params)": (
        ValueError,
        chain(gradtx.add_decayed_weights(0.1), ADAM),
        {"params": None},
    ),
    "lookahead needs params: call update(updates, state, params)": (
        ValueError,
        chain(ADAM, gradtx.lookahead()),
        {"params": None},
    ),
    "adam: unknown extra 'valu'; did you mean 'value'?": (TypeError, ADAM, {"valu": torch.tensor(1.0)}),
    "adam: unknown extra 'loss'; known: grad_fn, hessian_diag, value, value_fn": (
        TypeError,
        ADAM,
        {"loss": torch.tensor(1.0)},
    ),
    "chain: unknown extra 'fishr'; did you mean 'fisher'?": (
        TypeError,
        chain(ADAM, uses_extras()),
        {"fishr": params()},
    ),
    "uses_extras needs fisher: call update(updates, state, params, fisher=...)": (ValueError, uses_extras(), {}),
    "uses_extras needs temperature: call update(updates, state, params, temperature=...)": (
        ValueError,
        uses_extras(),
        {"fisher": params()},
    ),
    "uses_closure needs value: call update(updates, state, params, value=...)": (ValueError, uses_closure(), {}),
    "uses_closure needs grad_fn: call update(updates, state, params, grad_fn=...)": (
        ValueError,
        uses_closure(),
        {"value": 1.0},
    ),
    "uses_hessian needs hessian_diag: call update(updates, state, params, hessian_diag=...)": (
        ValueError,
        uses_hessian(),
        {},
    ),
    f"hessian_diag: leaf 'b' is missing, but is in updates{BY_NAME}": (
        ValueError,
        uses_hessian(),
        {"hessian_diag": without("b")},
    ),
    "hessian_diag: leaf 'b' has shape (7,), needs (3,)": (
        ValueError,
        uses_hessian(),
        {"hessian_diag": params(b=torch.ones(7))},
    ),
    "hessian_diag: leaf 'b' has shape (1,), needs (3,)": (  # it would broadcast
        ValueError,
        uses_hessian(),
        {"hessian_diag": params(b=torch.ones(1))},
    ),
    "value must be 0-d, got a tensor of shape (3,)": (
        ValueError,
        uses_closure(),
        {"value": torch.ones(3), "grad_fn": dict},
    ),
    "value must be a number or a 0-d tensor, got 'x'": (TypeError, uses_closure(), {"value": "x", "grad_fn": dict}),
    "grad_fn must be a function params -> gradients, got 3": (TypeError, uses_closure(), {"value": 1.0, "grad_fn": 3}),
    "temperature must be 0-d, got a tensor of shape (3,)": (
        ValueError,
        uses_extras(),
        {"fisher": params(), "temperature": torch.ones(3)},
    ),
    "params: leaf 'b' is None, but it has a gradient": (
        ValueError,
        gradtx.add_decayed_weights(0.1),
        {"params": params(b=None)},
    ),
    f"state at 'scale_by_adam.exp_avg.b' is ((3,), 'float', 'cpu'), needs ((4,), 'float', 'cpu'){OWN}": (
        ValueError,
        ADAM,
        {"updates": params(b=torch.ones(4)), "params": params(b=torch.ones(4))},
    ),
    f"state at 'scale_by_adam.exp_avg.w' is ((2, 3), 'float', 'cpu'), needs ((2,), 'float', 'cpu'){OWN}": (
        ValueError,
        ADAM,
        {"updates": params(w=torch.ones(2)), "params": None},
    ),
    f"state lacks 'masked' of leaf 'c'{OWN}": (
        ValueError,
        gradtx.masked(gradtx.trace(0.9), lambda name, p: name == "b"),
        {"updates": params(c=torch.ones(1)), "params": params(c=torch.ones(1))},
    ),
}


@pytest.mark.parametrize(("message", "kind", "tx", "changes"), [(m, *rest) for m, rest in TREES.items()], ids=TREES)
def test_trees_and_extras_that_do_not_fit_are_refused_and_nothing_changes(message, kind, tx, changes):
    failing(kind, matching(message), tx, changes)


@pytest.mark.parametrize(
    ("tx", "name"),
    [
        (gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw()), "adamw"),
        (gradtx.accumulate(gradtx.lion(weight_decay=0.1), 2), "lion"),
        (gradtx.muon(), "muon"),
        (gradtx.masked(gradtx.add_decayed_weights(0.1), "b"), "add_decayed_weights"),
    ],
    ids=["in a chain", "in a combinator", "around a rule", "a link"],
)
def test_who_needs_params_is_the_function_that_the_caller_typed(tx, name):
    state = tx.init({"b": torch.ones(2, 2)})
    with pytest.raises(ValueError, match=rf"^{name} needs params: call update\(updates, state, params\)"):
        tx.update({"b": torch.ones(2, 2)}, state)


def test_an_update_without_a_state_says_where_to_get_one():
    message = (
        "adamw: update needs the state as well: call update(updates, state, params) with the state that init(params), "
        "or the last update, returned"
    )
    for arguments, options in (((params(),), {}), ((), {"updates": params()}), ((params(),), {"params": params()})):
        with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
            gradtx.adamw().update(*arguments, **options)
    updates, _ = ADAM.update(updates=params(), state=ADAM.init(params()))
    assert updates.keys() == params().keys()


def test_a_leaf_that_a_freeze_by_predicate_never_saw_is_refused():
    tx, more = chain(gradtx.trace(0.9), gradtx.freeze(lambda name, p: name == "b")), params(c=torch.ones(1))
    failing(ValueError, f"state lacks '(freeze|trace)' of leaf 'c'{OWN}", tx, {"updates": more, "params": more})


# apply_updates.


APPLY = {
    "a leaf gone": ("updates: leaf 'b' is missing, but is in params; leaves are matched by name", without("b")),
    "a leaf too many": ("updates: leaf 'c' is not in params; leaves are matched by name", params(c=torch.ones(1))),
    "no tensor": (f"updates: leaf 'b' is a float, needs a tensor or None{NAMED}", params(b=1.0)),
    "a shape that would broadcast": (
        "apply_updates: leaf 'b' has shape (1,), but its parameter has (3,)",
        params(b=torch.ones(1)),
    ),
}


@pytest.mark.parametrize(("message", "updates"), APPLY.values(), ids=APPLY)
def test_updates_that_do_not_fit_the_parameters_are_refused(message, updates):
    with pytest.raises((TypeError, ValueError), match=matching(message)):
        gradtx.apply_updates(params(), updates)


# Nothing is half done.


def test_an_error_in_the_middle_of_an_update_leaves_all_inputs_alone():
    def update(update, state, param, ctx):
        if param.ndim == 1:
            raise RuntimeError("the second leaf fails")
        return update, {"x": state["x"] + 1}

    tx = chain(gradtx.adamw(), rule(update, slot))
    state, grads, weights = tx.init(params()), params(), params()
    before = snapshot(state)
    with untouched(grads, weights, state), pytest.raises(RuntimeError, match="the second leaf fails"):
        tx.update(grads, state, weights)
    assert_same(state, before)
