"""Errors of states from other chains, or edited ones."""

import pytest
import torch

import gradtx
from gradtx import chain
from tests.errors.common import ADAM, OWN, SHAPES, failing, matching, params, without


def state_of(tx, *path, drop=None, put=None, tree=None):
    """A state, with something dropped from or put into the entry at a path."""
    state = tx.init(params() if tree is None else tree)
    entry = state
    for key in path:
        entry = entry[key]
    entry.pop(drop, None)
    entry.update(put or {})
    return state


NOT_A_STATE = f"adam: state is not a dict with a 'step'{OWN}"
WRAPPED, AMSGRAD = gradtx.accumulate(ADAM, every=2), gradtx.adam(amsgrad=True)
PARTED = gradtx.partition({"x": gradtx.trace(0.9), "y": ADAM}, {"x": "w", "y": "*"})
SKIPPING, RECORD = gradtx.skip_nonfinite(ADAM), gradtx.record("a")
STATES = {
    "number": (NOT_A_STATE, ADAM, 3),
    "list": (NOT_A_STATE, ADAM, []),
    "empty dict": (NOT_A_STATE, ADAM, {}),
    "no step": (NOT_A_STATE, ADAM, state_of(ADAM, drop="step")),
    "step as int": (NOT_A_STATE, ADAM, state_of(ADAM, put={"step": 3})),
    "of stacked members": (
        "state['step'] must be a 0-d integer tensor, got tensor([0, 0]); map over members with torch.vmap",
        ADAM,
        torch.vmap(ADAM.init)({name: torch.stack([value, value]) for name, value in params().items()}),
    ),
    "another rule's": (f"state has 'trace', which this chain does not use{OWN}", ADAM, state_of(gradtx.trace(0.9))),
    "one stage too many": (
        f"state has 'scale_by_adam', which this chain does not use{OWN}",
        gradtx.sgd(),
        state_of(ADAM),
    ),
    "one stage too few": (f"state lacks 'scale_by_adam' of leaf 'w'{OWN}", ADAM, state_of(gradtx.sgd())),
    "a second occurrence": (
        f"state lacks 'scale_by_adam_1' of leaf 'w'{OWN}",
        chain(ADAM, gradtx.scale_by_adam()),
        state_of(ADAM),
    ),
    "one slot too few": (f"state lacks 'scale_by_adam.max_exp_avg_sq' of leaf 'w'{OWN}", AMSGRAD, state_of(ADAM)),
    "one slot too many": (
        "scale_by_adam: leaf 'w' has the slots ['exp_avg', 'exp_avg_sq', 'max_exp_avg_sq'], but this chain uses "
        f"['exp_avg', 'exp_avg_sq']{OWN}",
        ADAM,
        state_of(AMSGRAD),
    ),
    "a slot of one leaf gone": (
        f"state lacks 'scale_by_adam.exp_avg' of leaf 'b'{OWN}",
        ADAM,
        state_of(ADAM, "scale_by_adam", "exp_avg", drop="b"),
    ),
    "a slot gone": (
        f"state lacks 'scale_by_adam.exp_avg' of leaf 'w'{OWN}",
        ADAM,
        state_of(ADAM, "scale_by_adam", drop="exp_avg"),
    ),
    "a number for a stage": (
        f"state lacks 'scale_by_adam' of leaf 'w'{OWN}",
        ADAM,
        state_of(ADAM, put={"scale_by_adam": 3}),
    ),
    "made for fewer leaves": (f"state lacks 'scale_by_adam' of leaf 'b'{OWN}", ADAM, state_of(ADAM, tree=without("b"))),
    "made for more leaves": (
        "updates lack leaf 'c', which the state has at 'scale_by_adam.exp_avg'; pass None for a leaf without a "
        "gradient",
        ADAM,
        state_of(ADAM, tree=params(c=torch.ones(1))),
    ),
    "a slot that would broadcast": (
        "scale_by_adam.exp_avg: leaf 'w' has a slot of shape (2, 1), but its new value has shape (2, 3)" + SHAPES,
        ADAM,
        state_of(ADAM, tree=params(w=torch.ones(2, 1))),
    ),
    "of parameters of another shape": (
        f"state at 'scale_by_adam.exp_avg.w' is ((3, 2), 'float', 'cpu'), needs ((2, 3), 'float', 'cpu'){OWN}",
        ADAM,
        state_of(ADAM, tree=params(w=torch.ones(3, 2))),
    ),
    "a number for a slot": (
        f"state at 'scale_by_adam.exp_avg' must be a tensor for leaf 'b', got 3{OWN}",
        ADAM,
        state_of(ADAM, "scale_by_adam", "exp_avg", put={"b": 3}),
    ),
    "a slot under a rule without state": (
        f"state has 'scale.foo', which this chain does not use{OWN}",
        gradtx.scale(2.0),
        {"step": torch.tensor(0), "scale": {"foo": params()}},
    ),
    "a shared scalar too many": (
        f"state has 'record.zz', which this chain does not use{OWN}",
        RECORD,
        state_of(RECORD, "record", put={"zz": torch.tensor(1.0)}),
    ),
    "a vector for a shared scalar": (
        f"state has 'record.a' of shape (3,), needs 0-d{OWN}",
        RECORD,
        state_of(RECORD, "record", put={"a": torch.ones(3)}),
    ),
    "the sum of accumulate gone": (
        f"state lacks 'accumulate.acc' of leaf 'w'{OWN}",
        WRAPPED,
        state_of(WRAPPED, "accumulate", drop="acc"),
    ),
    "another rule's inside a wrapper": (
        f"state has 'accumulate.trace', which this chain does not use{OWN}",
        WRAPPED,
        state_of(gradtx.accumulate(gradtx.trace(0.9), every=2)),
    ),
    "another label": (
        f"state has 'partition.z', which this chain does not use{OWN}",
        PARTED,
        state_of(gradtx.partition({"x": gradtx.trace(0.9), "z": ADAM}, {"x": "w", "z": "*"})),
    ),
    "labels by pattern where this chain asked a function": (
        f"state lacks 'partition' of leaf 'w'{OWN}",
        gradtx.partition({"x": gradtx.trace(0.9), "y": ADAM}, lambda name, p: "x"),
        state_of(PARTED),
    ),
    "the inner one's": (f"state lacks 'accumulate.step'{OWN}", WRAPPED, state_of(ADAM)),
    "the wrapper's": (f"state has 'accumulate', which this chain does not use{OWN}", ADAM, state_of(WRAPPED)),
    "no phase": (
        f"state lacks 'accumulate.mini_step'{OWN}",
        WRAPPED,
        state_of(WRAPPED, "accumulate", drop="mini_step"),
    ),
    "no count": (
        f"state lacks 'skip_nonfinite.skipped'{OWN}",
        SKIPPING,
        state_of(SKIPPING, "skip_nonfinite", drop="skipped"),
    ),
    "another shared scalar": (f"state lacks 'record.a'{OWN}", RECORD, state_of(gradtx.record("b"))),
    "other leaves in a branch": (
        f"state lacks 'partition.x.scale_by_adam' of leaf 'w'{OWN}",
        gradtx.partition({"x": ADAM, "y": ADAM}, {"x": "w", "y": "*"}),
        state_of(gradtx.partition({"x": ADAM, "y": ADAM}, {"x": "b", "y": "*"})),
    ),
    "plain functions without theirs": (
        f"state lacks 'transformation'{OWN}",
        gradtx.GradientTransformation(lambda p: {"n": torch.zeros(())}, lambda u, s, p: (u, s)),
        {"step": torch.tensor(0)},
    ),
}


@pytest.mark.parametrize(("message", "tx", "state"), STATES.values(), ids=STATES)
def test_a_foreign_state_is_refused_and_nothing_changes(message, tx, state):
    failing(ValueError, matching(message), tx, {"state": state})


LOOKAHEAD = gradtx.lookahead()
EVALUATED = {
    "one stage too few": (f"state lacks 'lookahead' of leaf 'w'{OWN}", state_of(gradtx.sgd())),
    "fewer leaves": (f"state lacks 'lookahead' of leaf 'b'{OWN}", state_of(LOOKAHEAD, tree=without("b"))),
    "another rule's": (f"state has 'trace', which this chain does not use{OWN}", state_of(gradtx.trace(0.9))),
    "no state": (f"lookahead: state is not a dict with a 'step'{OWN}", {}),
}


@pytest.mark.parametrize(("message", "state"), EVALUATED.values(), ids=EVALUATED)
def test_a_foreign_state_is_refused_by_eval_params_too(message, state):
    with pytest.raises(ValueError, match=matching(message)):
        LOOKAHEAD.eval_params(state, params())


def test_evaluation_weights_of_another_shape_than_the_parameters_are_refused():
    state = LOOKAHEAD.init(params(b=torch.ones(9)))
    with pytest.raises(ValueError, match=r"(?=.*'b')(?=.*\(9,\))(?=.*\(3,\))"):
        LOOKAHEAD.eval_params(state, params())
