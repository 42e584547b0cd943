"""Every misuse is one TypeError or ValueError that names the culprit and the remedy; nothing is half done.

The table of messages is frozen: whoever changes one changes it here, on purpose.
"""

import math
import re

import pytest
import torch

import gradtx
from gradtx import Scalar, alias, chain, per_tensor, whole_tree
from tests.conformance import assert_same, snapshot, untouched

OWN = "; pass the state made by this chain's own init, with these parameters"
NAN = math.nan


def params(**changes):
    return {"w": torch.ones(2, 3), "b": torch.ones(3), **changes}


def without(name):
    return {key: leaf for key, leaf in params().items() if key != name}


def matching(message):
    return f"^{re.escape(message)}$"


# Building.


@per_tensor(owns_lr=True)
def owner():
    return lambda update, state, param, ctx: (update, state)


def bare():
    return lambda update, state, param, ctx: (update, state)


def nothing():
    return None


def unannotated(x=1):
    return None


SELECT = "select leaves with a name pattern, a tuple of patterns or a function (name, tensor) -> bool"
NUMBER = "must be a number, a 0-d tensor or a gradtx.Schedule"
ADAM_NAMES = "amsgrad, betas, decoupled_weight_decay, eps, lr, maximize, weight_decay"
FOLLOWS = "owner owns the learning rate and returns the finished update, so {} can't follow it; "
FOLLOWS += "give owner its lr and decay, or leave one of them out"

TWO = gradtx.partition({"a": gradtx.adam(), "b": gradtx.sgd()}, {"a": "w", "b": "*"})
OTHER_NAMES = {
    "lrr": "did you mean 'lr'?",
    "a.lrr": "did you mean 'a.lr'?",
    "b.sdg.lr": "did you mean 'b.sgd.lr'?",
    "c.lr": "known: a.adam.lr, a.lr, b.lr, b.sgd.lr, lr",
    "a.momentum": "known: a.amsgrad, a.betas, a.decoupled_weight_decay, a.eps, a.lr, a.maximize, a.weight_decay",
}

BUILDING = {
    # numbers
    "adam: lr must be in [0, inf), got -1.0": (ValueError, lambda: gradtx.adam(lr=-1)),
    "adam: lr must be in [0, inf), got nan": (ValueError, lambda: gradtx.adam(lr=NAN)),
    "adam: lr must be in [0, inf), got inf": (ValueError, lambda: gradtx.adam(lr=math.inf)),
    "adamw: betas[1] must be in [0, 1), got 1.5": (ValueError, lambda: gradtx.adamw(betas=(0.9, 1.5))),
    "adamw: betas[0] must be in [0, 1), got 1.0": (ValueError, lambda: gradtx.adamw(betas=(1, 0.9))),
    "adamw: betas[0] must be in [0, 1), got nan": (ValueError, lambda: gradtx.adamw(betas=(NAN, 0.9))),
    "adamw: betas must have 2 entries, got 3": (ValueError, lambda: gradtx.adamw(betas=(0.9, 0.9, 0.9))),
    "adamw: betas must have 2 entries, got 1": (ValueError, lambda: gradtx.adamw(betas=[0.9])),
    "adamw: betas must be a tuple of numbers, got 0.9": (TypeError, lambda: gradtx.adamw(betas=0.9)),
    "adamw: betas must be a tuple of numbers, got tensor(shape=(2,))": (
        TypeError,
        lambda: gradtx.adamw(betas=torch.ones(2)),
    ),
    f"adamw: betas[1] {NUMBER}, got 'x'": (TypeError, lambda: gradtx.adamw(betas=(0.9, "x"))),
    f"adamw: lr {NUMBER}, got constant; wrap it: gradtx.Schedule(...)": (TypeError, lambda: gradtx.adamw(constant)),
    f"adamw: betas[0] {NUMBER}, got constant; wrap it: gradtx.Schedule(...)": (
        TypeError,
        lambda: gradtx.adamw(betas=(constant, 0.9)),
    ),
    f"adamw: lr {NUMBER}, got True": (TypeError, lambda: gradtx.adamw(lr=True)),
    f"adamw: lr {NUMBER}, got '0.1'": (TypeError, lambda: gradtx.adamw(lr="0.1")),
    f"adamw: lr {NUMBER}, got None": (TypeError, lambda: gradtx.adamw(lr=None)),
    "adamw: lr must be 0-d, got a tensor of shape (3,); use torch.vmap to run one member per value": (
        ValueError,
        lambda: gradtx.adamw(lr=torch.ones(3)),
    ),
    "lookahead: k must be an int, got 5.0": (TypeError, lambda: gradtx.lookahead(k=5.0)),
    "lookahead: k must be an int, got True": (TypeError, lambda: gradtx.lookahead(k=True)),
    "lookahead: k must be in [1, inf), got 0": (ValueError, lambda: gradtx.lookahead(k=0)),
    "lookahead: alpha must be in [0, 1], got 1.5": (ValueError, lambda: gradtx.lookahead(alpha=1.5)),
    "accumulate: every must be in [1, inf), got 0": (ValueError, lambda: gradtx.accumulate(gradtx.adam(), 0)),
    "accumulate: every must be an int, got 2.0": (TypeError, lambda: gradtx.accumulate(gradtx.adam(), 2.0)),
    "clip_by_global_norm: max_norm must be in (0, inf], got 0.0": (
        ValueError,
        lambda: gradtx.clip_by_global_norm(0.0),
    ),
    "sgdp: momentum must be in [0, 1), got 1.0": (ValueError, lambda: gradtx.sgdp(0.1, momentum=1.0)),
    # switches and words
    "adam: amsgrad must be a bool, got 1": (TypeError, lambda: gradtx.adam(amsgrad=1)),
    "adam: maximize must be a bool, got 'yes'": (TypeError, lambda: gradtx.adam(maximize="yes")),
    "with_lookahead: pullback_momentum must be a str, got 3": (
        TypeError,
        lambda: gradtx.with_lookahead(gradtx.adam(), pullback_momentum=3),
    ),
    "with_lookahead: pullback_momentum must be 'none', 'reset' or 'pullback', got 'x'": (
        ValueError,
        lambda: gradtx.with_lookahead(gradtx.adam(), pullback_momentum="x"),
    ),
    "sgd: trace: nesterov needs a momentum above 0 and a dampening of 0": (
        ValueError,
        lambda: gradtx.sgd(nesterov=True),
    ),
    **{
        f"record: name becomes a key beside 'step', so it must be another identifier, got {name!r}": (
            ValueError,
            lambda name=name: gradtx.record(name),
        )
        for name in ("a b", "step")
    },
    # names of arguments
    "adam: unknown argument 'weight_decai'; did you mean 'weight_decay'?": (
        TypeError,
        lambda: gradtx.adam(weight_decai=0.1),
    ),
    f"adam: unknown argument 'learning_rate'; known: {ADAM_NAMES}": (
        TypeError,
        lambda: gradtx.adam(learning_rate=0.1),
    ),
    "adam: got two values for 'lr'": (TypeError, lambda: gradtx.adam(0.1, lr=0.1)),
    "sgdp: missing argument 'lr'": (TypeError, lambda: gradtx.sgdp()),
    "accumulate: missing argument 'every'": (TypeError, lambda: gradtx.accumulate(gradtx.adam())),
    "adam: takes at most 5 positional arguments, got 6": (
        TypeError,
        lambda: gradtx.adam(0.1, (0.9, 0.9), 0.1, 0.1, False, True),
    ),
    # state_dtype
    "scale: keeps no state with these options; leave out state_dtype": (
        TypeError,
        lambda: gradtx.scale(1.0, state_dtype=torch.float32),
    ),
    "adam: state_dtype must be a floating-point torch.dtype, got torch.int64": (
        TypeError,
        lambda: gradtx.adam(state_dtype=torch.int64),
    ),
    "adam: state_dtype must be a floating-point torch.dtype, got 'float32'": (
        TypeError,
        lambda: gradtx.adam(state_dtype="float32"),
    ),
    # transformations where they belong
    "chain: argument 2 must be a GradientTransformation, got adam; call it: adam(...)": (
        TypeError,
        lambda: chain(gradtx.adam(), gradtx.adam),
    ),
    "chain: argument 1 must be a GradientTransformation, got Linear(...)": (
        TypeError,
        lambda: chain(torch.nn.Linear(1, 1)),
    ),
    "chain: argument 1 must be a GradientTransformation, got 3": (TypeError, lambda: chain(3)),
    "chain: argument 1 must be a GradientTransformation, got [adam()]": (TypeError, lambda: chain([gradtx.adam()])),
    **{
        f"{name}: tx must be a GradientTransformation, got adam; call it: adam(...)": (
            TypeError,
            lambda make=make: make(gradtx.adam),
        )
        for name, make in {
            "accumulate": lambda tx: gradtx.accumulate(tx, 2),
            "skip_nonfinite": gradtx.skip_nonfinite,
            "masked": lambda tx: gradtx.masked(tx, "*"),
            "with_lookahead": gradtx.with_lookahead,
        }.items()
    },
    "partition: transforms['a'] must be a GradientTransformation, got adam; call it: adam(...)": (
        TypeError,
        lambda: gradtx.partition({"a": gradtx.adam}, {"a": "*"}),
    ),
    "partition: transforms must be a dict of label -> transformation, got {}": (
        TypeError,
        lambda: gradtx.partition({}, {}),
    ),
    "partition: labels are b, transforms are a": (
        ValueError,
        lambda: gradtx.partition({"a": gradtx.adam()}, {"b": "*"}),
    ),
    "partition: label 'a.b' must be a string without dots": (
        ValueError,
        lambda: gradtx.partition({"a.b": gradtx.adam()}, {"a.b": "*"}),
    ),
    "partition: labels must be a dict or a function (name, tensor), got 'a'": (
        TypeError,
        lambda: gradtx.partition({"a": gradtx.adam()}, "a"),
    ),
    f"partition: {SELECT}, got 3": (TypeError, lambda: gradtx.partition({"a": gradtx.adam()}, {"a": 3})),
    "partition: labels must be a dict or a function (name, tensor), got Linear(...)": (
        TypeError,
        lambda: gradtx.partition({"a": gradtx.adam()}, torch.nn.Linear(1, 1)),
    ),
    **{
        f"{name}: {SELECT}, got Linear(...); a module's parameters go by its name in the model, as in 'encoder.*'": (
            TypeError,
            lambda make=make: make(torch.nn.Linear(1, 1)),
        )
        for name, make in {"freeze": gradtx.freeze, "masked": lambda where: gradtx.masked(gradtx.adam(), where)}.items()
    },
    f"freeze: {SELECT}, got Linear": (TypeError, lambda: gradtx.freeze(torch.nn.Linear)),
    f"freeze: {SELECT}, got tensor(shape=(2,))": (TypeError, lambda: gradtx.freeze(torch.zeros(2))),
    f"freeze: {SELECT}, got constant": (TypeError, lambda: gradtx.freeze(constant)),  # which takes no tensor
    f"freeze: {SELECT}, got ()": (TypeError, lambda: gradtx.freeze(())),
    f"freeze: {SELECT}, got adam()": (TypeError, lambda: gradtx.freeze(gradtx.adam())),
    f"masked: {SELECT}, got ['a', 2]": (TypeError, lambda: gradtx.masked(gradtx.adam(), ["a", 2])),
    "map_after_step: fn must be a function of a tensor, got 3": (TypeError, lambda: gradtx.map_after_step(3)),
    "GradientTransformation: init must be a function, got 1": (
        TypeError,
        lambda: gradtx.GradientTransformation(1, bare),
    ),
    "GradientTransformation: update must be a function, got None": (
        TypeError,
        lambda: gradtx.GradientTransformation(bare, None),
    ),
    "Schedule: needs a function of the step, got 0.1": (TypeError, lambda: gradtx.Schedule(0.1)),
    # owners of the learning rate
    **{
        f"chain: {FOLLOWS.format(name)}": (ValueError, lambda tx=tx: chain(owner(), tx()))
        for name, tx in {
            "scale_by_learning_rate": gradtx.adam,
            "add_decayed_weights": lambda: gradtx.add_decayed_weights(0.1),
            "owner": owner,
        }.items()
    },
    "adam_atan2: weight_decay and regen_reg_rate exclude each other; leave one at 0.0": (
        ValueError,
        lambda: gradtx.adam_atan2(weight_decay=0.1, regen_reg_rate=0.1),
    ),
    # replace
    "adam: no hyperparameter 'wieght_decay'; did you mean 'weight_decay'?": (
        TypeError,
        lambda: gradtx.adam().replace(wieght_decay=0.1),
    ),
    "chain: no hyperparameter 'lr'; there are none": (TypeError, lambda: chain().replace(lr=0.1)),
    "sgd: lr must be in [0, inf), got -1.0": (
        ValueError,
        lambda: chain(gradtx.sgd(), gradtx.scale(1.0)).replace(lr=-1),
    ),
    "sgd: momentum must be in [0, inf), got nan": (
        ValueError,
        lambda: chain(gradtx.adam(), gradtx.sgd()).replace(**{"momentum": NAN}),
    ),
    f"sgd: lr {NUMBER}, got constant; wrap it: gradtx.Schedule(...)": (
        TypeError,
        lambda: gradtx.sgd().replace(lr=constant),
    ),
    **{
        f"partition: no hyperparameter {name!r}; {meant}": (TypeError, lambda name=name: TWO.replace(**{name: 0.1}))
        for name, meant in OTHER_NAMES.items()
    },
    # schedules
    f"cosine_schedule: lr {NUMBER}, got constant; wrap it: gradtx.Schedule(...)": (
        TypeError,
        lambda: gradtx.cosine_schedule(constant, 3),
    ),
    "cosine_schedule: T_max must be an int, got 3.0": (TypeError, lambda: gradtx.cosine_schedule(0.1, 3.0)),
    "join_schedules: schedules[0] must be a gradtx.Schedule, got 0.1": (
        TypeError,
        lambda: gradtx.join_schedules([0.1], []),
    ),
    # decorators
    "per_tensor: unknown option 'elementwize'; did you mean 'elementwise'?": (
        TypeError,
        lambda: per_tensor(elementwize=True),
    ),
    "whole_tree: unknown option 'elementwise'; known: example, extras, needs, ranges, static": (
        TypeError,
        lambda: whole_tree(elementwise=True),
    ),
    "alias: unknown option 'needs'; known: any_length, class_name, example, ranges, static": (
        TypeError,
        lambda: alias(needs=("params",)),
    ),
    "unannotated: annotate 'x'; numbers are gradtx.Scalar or gradtx.Betas": (
        TypeError,
        lambda: per_tensor(unannotated),
    ),
    "bare: a random rule takes `seed: int`": (TypeError, lambda: per_tensor(random=True)(bare)),
    "nothing: return update, (init, update) or (init, update, evaluate), got None": (
        TypeError,
        lambda: per_tensor(nothing)(),
    ),
    "bare: must return a transformation, such as chain(...), got <lambda>": (TypeError, lambda: alias(bare)()),
}


def constant(step):
    return 0.1


@pytest.mark.parametrize(("message", "kind", "call"), [(m, *rest) for m, rest in BUILDING.items()], ids=BUILDING)
def test_building_it_wrong_says_what_is_wrong(message, kind, call):
    with pytest.raises(kind, match=matching(message)):
        call()


@pytest.mark.parametrize(
    ("name", "meant"), [*OTHER_NAMES.items(), ("a.lr", "it is shown as 'lr'"), ("a.adam.lr", "it is shown as 'lr'")]
)
def test_an_unknown_name_in_hyperparams_says_which_is_meant(name, meant):
    with pytest.raises(KeyError) as found:
        TWO.hyperparams[name]
    assert found.value.args == (f"partition: no hyperparameter {name!r}; {meant}",)


def test_a_rate_is_found_by_every_name_that_replace_takes():
    for name, rate in {"lr": 1, "a.lr": 1, "a.adam.lr": 1, "b.lr": 2, "b.sgd.lr": 2}.items():
        tx = TWO.replace(**{"a.lr": 1.0, "b.lr": 2.0})
        assert gradtx.learning_rate(tx, tx.init(params()), name).item() == rate
        assert gradtx.learning_rate(tx.replace(**{name: 3.0}), tx.init(params()), name).item() == 3.0


def test_an_owner_inside_a_wrapper_is_named_itself():
    with pytest.raises(ValueError, match=matching("chain: " + FOLLOWS.format("scale_by_learning_rate"))):
        chain(gradtx.accumulate(owner(), every=2), gradtx.scale_by_learning_rate(0.1))


@pytest.mark.parametrize("number", [torch.tensor(1j), torch.tensor(True)], ids=["complex", "bool"])
def test_a_tensor_that_is_no_real_number_is_refused(number):
    with pytest.raises(TypeError, match="adam: lr must be a number"):
        gradtx.adam(lr=number)


# First state.

DTYPE = "needs a floating-point one; leave integer and complex tensors out of the tree"
ADAM = gradtx.adam()
NAMED = "; pass a tree of tensors, such as dict(model.named_parameters())"
INIT = {
    "params: leaf 'b' has dtype torch.int64, " + DTYPE: (
        TypeError,
        ADAM,
        params(b=torch.ones(3, dtype=torch.int64)),
    ),
    "params: leaf 'b' has dtype torch.complex64, " + DTYPE: (
        TypeError,
        ADAM,
        params(b=torch.ones(3, dtype=torch.complex64)),
    ),
    "params: leaf 'b' has dtype torch.bool, " + DTYPE: (TypeError, ADAM, params(b=torch.ones(3, dtype=torch.bool))),
    "params: leaf 'b' is a float, needs a tensor or None": (TypeError, ADAM, params(b=1.0)),
    f"params: leaf '' is a Linear, needs a tensor or None{NAMED}": (TypeError, ADAM, torch.nn.Linear(1, 1)),
    f"params: leaf '' is a generator, needs a tensor or None{NAMED}": (
        TypeError,
        ADAM,
        torch.nn.Linear(1, 1).parameters(),
    ),
    "params: leaf '0.0' is a str, needs a tensor or None": (
        TypeError,
        ADAM,
        list(torch.nn.Linear(1, 1).named_parameters()),
    ),
    "params: two leaves are both named 'a.b'; rename a key, since leaves go by dotted name": (
        ValueError,
        ADAM,
        {"a.b": torch.ones(1), "a": {"b": torch.ones(1)}},
    ),
    "freeze: 'x.*' matches no leaf; leaves: w, b": (ValueError, chain(gradtx.freeze("x.*"), ADAM), params()),
    "masked: 'zz' matches no leaf; leaves: w, b": (ValueError, gradtx.masked(ADAM, ("w", "zz")), params()),
    "freeze: 'B' matches no leaf; leaves: w, b": (ValueError, gradtx.accumulate(gradtx.freeze("B"), 2), params()),
    "partition: 'c' matches no leaf; leaves: w, b": (
        ValueError,
        gradtx.partition({"x": ADAM, "y": ADAM}, {"x": "c", "y": "*"}),
        params(),
    ),
    "partition: leaf 'b' has no label; add a pattern that matches it, such as '*' for the rest": (
        ValueError,
        gradtx.partition({"x": ADAM}, {"x": "w"}),
        params(),
    ),
    "partition: leaf 'w' has label 'zz'; labels: x, y": (
        ValueError,
        gradtx.partition({"x": ADAM, "y": ADAM}, lambda name, p: "zz"),
        params(),
    ),
    "add_decayed_weights: the rate is divided by the initial learning rate, which is 0; "
    "start above 0, or leave out relative_to (decoupled_wd)": (
        ValueError,
        gradtx.adopt_atan2(lr=0.0, weight_decay=0.1),
        params(),
    ),
}


@pytest.mark.parametrize(("message", "kind", "tx", "tree"), [(m, *rest) for m, rest in INIT.items()], ids=INIT)
def test_parameters_that_do_not_fit_are_refused(message, kind, tx, tree):
    with pytest.raises(kind, match=matching(message)):
        tx.init(tree)


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
    f"params have leaf 'b', which updates lack{BY_NAME}": (ValueError, ADAM, {"updates": without("b")}),
    f"params lack leaf 'c', which updates have{BY_NAME}": (ValueError, ADAM, {"updates": params(c=torch.ones(1))}),
    f"params lack leaf 'b', which updates have{BY_NAME}": (ValueError, ADAM, {"params": without("b")}),
    f"params have leaf 'c', which updates lack{BY_NAME}": (ValueError, ADAM, {"params": params(c=torch.ones(1))}),
    f"params lack leaf '0', which updates have{BY_NAME}": (ValueError, ADAM, {"updates": list(params().values())}),
    f"params lack leaf '', which updates have{BY_NAME}": (ValueError, ADAM, {"updates": torch.ones(3)}),
    "updates lack leaf 'b', which the state has at 'scale_by_adam.exp_avg'; pass None for a leaf without gradient": (
        ValueError,
        ADAM,
        {"updates": without("b"), "params": None},
    ),
    f"state lacks 'scale_by_adam' of leaf 'c'{OWN}": (
        ValueError,
        ADAM,
        {"updates": params(c=torch.ones(1)), "params": params(c=torch.ones(1))},
    ),
    "updates: leaf 'b' has shape (4,), its parameter (3,)": (ValueError, ADAM, {"updates": params(b=torch.ones(4))}),
    "updates: leaf 'b' has shape (1,), its parameter (3,)": (ValueError, ADAM, {"updates": params(b=torch.ones(1))}),
    "updates: leaf 'b' is a float, needs a tensor or None": (TypeError, ADAM, {"updates": params(b=1.0)}),
    "params: leaf 'b' is a str, needs a tensor or None": (TypeError, ADAM, {"params": params(b="x")}),
    f"params: leaf '' is a Linear, needs a tensor or None{NAMED}": (TypeError, ADAM, {"params": torch.nn.Linear(1, 1)}),
    "updates: leaf '' is a Linear, needs a tensor or None; pass a tree of tensors, such as "
    "{name: p.grad for name, p in model.named_parameters()}": (TypeError, ADAM, {"updates": torch.nn.Linear(1, 1)}),
    "updates: leaf 'b' has dtype torch.int32, " + DTYPE: (
        TypeError,
        ADAM,
        {"updates": params(b=torch.ones(3, dtype=torch.int32))},
    ),
    "add_decayed_weights needs params: call update(updates, state, params)": (
        ValueError,
        gradtx.adamw(),
        {"params": None},
    ),
    "lookahead needs params: call update(updates, state, params)": (
        ValueError,
        chain(ADAM, gradtx.lookahead()),
        {"params": None},
    ),
    "adam: unknown extra 'valu'; did you mean 'value'?": (TypeError, ADAM, {"valu": torch.tensor(1.0)}),
    "adam: unknown extra 'loss'; known: grad_fn, hessian_diag, value": (TypeError, ADAM, {"loss": torch.tensor(1.0)}),
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
    f"hessian_diag lack leaf 'b', which updates have{BY_NAME}": (
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
    f"scale_by_adam.exp_avg: leaf 'b' has a slot of shape (3,), its new value has shape (4,){OWN}": (
        ValueError,
        ADAM,
        {"updates": params(b=torch.ones(4)), "params": params(b=torch.ones(4))},
    ),
    f"scale_by_adam.exp_avg: leaf 'w' has a slot of shape (2, 3), its new value has shape (2,){OWN}": (
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


def failing(kind, match, tx, changes):
    """Call update as a case says; the error must come and the inputs stay."""
    state = tx.init(params())
    arguments = {"updates": params(), "state": state, "params": params(), **changes}
    with untouched(*arguments.values()), pytest.raises(kind, match=match):
        tx.update(**arguments)


@pytest.mark.parametrize(("message", "kind", "tx", "changes"), [(m, *rest) for m, rest in TREES.items()], ids=TREES)
def test_trees_and_extras_that_do_not_fit_are_refused_and_nothing_changes(message, kind, tx, changes):
    failing(kind, matching(message), tx, changes)


def test_a_leaf_that_a_freeze_by_predicate_never_saw_is_refused():
    tx, more = chain(gradtx.trace(0.9), gradtx.freeze(lambda name, p: name == "b")), params(c=torch.ones(1))
    failing(ValueError, f"state lacks '(freeze|trace)' of leaf 'c'{OWN}", tx, {"updates": more, "params": more})


# Foreign states: another chain's, or one that somebody edited.


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
    "another rule's": (f"state has 'trace', which this chain does not keep{OWN}", ADAM, state_of(gradtx.trace(0.9))),
    "one stage too many": (
        f"state has 'scale_by_adam', which this chain does not keep{OWN}",
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
        "scale_by_adam: leaf 'w' has the slots ['exp_avg', 'exp_avg_sq', 'max_exp_avg_sq'] where this chain keeps "
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
        "updates lack leaf 'c', which the state has at 'scale_by_adam.exp_avg'; pass None for a leaf without gradient",
        ADAM,
        state_of(ADAM, tree=params(c=torch.ones(1))),
    ),
    "a slot that would broadcast": (
        "scale_by_adam.exp_avg: leaf 'w' has a slot of shape (2, 1), its new value has shape (2, 3)" + OWN,
        ADAM,
        state_of(ADAM, tree=params(w=torch.ones(2, 1))),
    ),
    "of parameters of another shape": (
        "scale_by_adam.exp_avg: leaf 'w' has a slot of shape (3, 2), its new value has shape (2, 3)" + OWN,
        ADAM,
        state_of(ADAM, tree=params(w=torch.ones(3, 2))),
    ),
    "a number for a slot": (
        f"state at 'scale_by_adam.exp_avg' has no tensor for leaf 'b', got 3{OWN}",
        ADAM,
        state_of(ADAM, "scale_by_adam", "exp_avg", put={"b": 3}),
    ),
    "a slot under a rule without state": (
        f"state has 'scale.foo', which this chain does not keep{OWN}",
        gradtx.scale(2.0),
        {"step": torch.tensor(0), "scale": {"foo": params()}},
    ),
    "a shared scalar too many": (
        f"state has 'record.zz', which this chain does not keep{OWN}",
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
        f"state has 'accumulate.trace', which this chain does not keep{OWN}",
        WRAPPED,
        state_of(gradtx.accumulate(gradtx.trace(0.9), every=2)),
    ),
    "another label": (
        f"state has 'partition.z', which this chain does not keep{OWN}",
        PARTED,
        state_of(gradtx.partition({"x": gradtx.trace(0.9), "z": ADAM}, {"x": "w", "z": "*"})),
    ),
    "labels by pattern where this chain asked a function": (
        f"state lacks 'partition' of leaf 'w'{OWN}",
        gradtx.partition({"x": gradtx.trace(0.9), "y": ADAM}, lambda name, p: "x"),
        state_of(PARTED),
    ),
    "the inner one's": (f"state lacks 'accumulate.step'{OWN}", WRAPPED, state_of(ADAM)),
    "the wrapper's": (f"state has 'accumulate', which this chain does not keep{OWN}", ADAM, state_of(WRAPPED)),
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
    "another rule's": (f"state has 'trace', which this chain does not keep{OWN}", state_of(gradtx.trace(0.9))),
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


def test_a_state_with_one_of_a_lists_slots_gone_is_refused():
    @per_tensor
    def lists():
        init = lambda param: {"axis": [torch.zeros(2), torch.zeros(3)]}  # noqa: E731
        return init, lambda update, state, param, ctx: (update + sum(axis.sum() for axis in state["axis"]), state)

    failing(ValueError, "axis", lists(), {"state": state_of(lists(), "lists", drop="axis_1")})


# Rules that return nonsense.


def rule(update, init=None, **options):
    @per_tensor(**options)
    def broken():
        return update if init is None else (init, update)

    return broken()


def slot(param):
    return {"x": torch.zeros_like(param)}


def yields(*values):
    def update(update, state, param, ctx):
        for value in values:
            yield value(update) if callable(value) else value

    return rule(update)


def sharing(update):
    return rule(update, shared={"d": 1.0})


def rule_of_trees(update):
    @whole_tree
    def broken():
        return update

    return broken()


PAIR = "broken: a rule returns (update, state), got "
RETURNS = "broken: the rule returns a state "
RULES = {
    "nothing": (PAIR + "NoneType", rule(lambda u, s, p, c: None)),
    "the update alone": (PAIR + "Tensor", rule(lambda u, s, p, c: u)),
    "three things": (PAIR + "tuple", rule(lambda u, s, p, c: (u, s, s))),
    "no dict for a state": (PAIR + "tuple", rule(lambda u, s, p, c: (u, None))),
    "an update of another shape": (
        "broken: leaf 'w' has shape (2, 3), its update came out as ()",
        rule(lambda u, s, p, c: (u.sum(), s)),
    ),
    "a slot of another shape": (
        "broken: the rule returns the slot 'x' of leaf 'w' in shape (), its init makes it in shape (2, 3)",
        rule(lambda u, s, p, c: (u, {"x": u.sum()}), slot),
    ),
    "a number for a slot": (
        "broken.x: the new value of leaf 'w' came out as 1.0",
        rule(lambda u, s, p, c: (u, {"x": 1.0}), slot),
    ),
    "a slot too few": (
        f"{RETURNS}without the slot 'x', which its init makes",
        rule(lambda u, s, p, c: (u, {}), slot),
    ),
    "a slot too many": (
        f"{RETURNS}with the slot 'y', which its init does not make",
        rule(lambda u, s, p, c: (u, {**s, "y": u}), slot),
    ),
    "a slot of another name": (
        f"{RETURNS}without the slot 'x', which its init makes, and with the slot 'y', which its init does not make",
        rule(lambda u, s, p, c: (u, {"y": u}), slot),
    ),
    "a slot without init": (
        f"{RETURNS}with the slot 'x', though there is no init to make it: return init, update",
        rule(lambda u, s, p, c: (u, {"x": u})),
    ),
    "a slot that init does not make, asked for": (
        "broken: the rule asks for 'xx', which is no slot that its init makes; did you mean 'x'?",
        rule(lambda u, s, p, c: (u + s["xx"], s), lambda p: {"x": p, "other": p}),
    ),
    "a sum that is no scalar": (
        "broken: the sum 'n' has shape (2, 3), needs 0-d",
        yields(lambda u: {"n": u}, lambda u: (u, {})),
    ),
    "nonsense after a sum": (PAIR + "int", yields(lambda u: {"n": u.sum()}, 3)),
    "None for the update": ("broken: the update of leaf 'w' came out as None", rule(lambda u, s, p, c: (None, s))),
    "a number for the update": ("broken: the update of leaf 'w' came out as 1.0", rule(lambda u, s, p, c: (1.0, s))),
    "no shared scalar": ("broken.d: the new value of leaf 'w' came out as None", sharing(lambda u, s, p, c: (u, {}))),
    "a number for a shared scalar": (
        "broken.d: the new value of leaf 'w' came out as 2.0",
        sharing(lambda u, s, p, c: (u, {"d": 2.0})),
    ),
    "a vector for a shared scalar": (
        "broken: the shared 'd' comes in shape (3,), needs 0-d",
        sharing(lambda u, s, p, c: (u, {"d": torch.ones(3)})),
    ),
    "sums that differ between leaves": (
        "broken: leaf 'w' yields the sums ['n2'], leaf 'b' ['n1']",
        yields(lambda u: {f"n{u.ndim}": u.sum()}, lambda u: (u, {})),
    ),
    "a plain function, the updates alone": (
        "transformation: update returns (updates, state), got dict",
        gradtx.GradientTransformation(dict, lambda u, s, p: u),
    ),
    "a plain function, nothing": (
        "transformation: update returns (updates, state), got NoneType",
        gradtx.GradientTransformation(dict, lambda u, s, p: None),
    ),
    "a tree rule, a leaf too few": (
        "broken: update returned no tensor for leaf 'b'",
        rule_of_trees(lambda u, s, p, c: ({"w": u["w"]}, s)),
    ),
    "a tree rule, nothing": (
        "broken: update returns (updates, state), got NoneType",
        rule_of_trees(lambda u, s, p, c: None),
    ),
}


@pytest.mark.parametrize(("message", "tx"), RULES.values(), ids=RULES)
def test_a_rule_that_returns_nonsense_is_told_what_to_return(message, tx):
    failing((TypeError, ValueError), matching(message), tx, {})


INITS = {
    "nothing": ("None", lambda p: None),
    "no dict": ("[]", lambda p: []),
    "a number for a slot": ("0.0 for 'x'", lambda p: {"x": 0.0}),
    "None for a slot": ("None for 'x'", lambda p: {"x": None}),
    "a number for a name": ("{0: 1}", lambda p: {0: 1}),
    "numbers in a list": ("0.0 for 'x_0'", lambda p: {"x": [0.0]}),
}


@pytest.mark.parametrize(("got", "init"), INITS.values(), ids=INITS)
def test_an_init_that_returns_nonsense_is_told_what_to_return(got, init):
    tx = rule(lambda u, s, p, c: (u, s), init)
    with pytest.raises(TypeError, match=matching(f"broken: init returns a dict of slot name -> tensor, got {got}")):
        tx.init(params())


def test_a_slot_may_not_end_in_a_number():
    with pytest.raises(TypeError, match="a trailing number is the library's; return a list in one slot"):
        rule(lambda u, s, p, c: (u, s), lambda p: {"x_1": p}).init(params())


def test_an_undeclared_extra_is_an_attribute_error_that_says_how_to_declare_it():
    tx = rule(lambda u, s, p, c: (u * c.foo, s))
    failing(AttributeError, r"ctx\.foo: nobody declared it; use needs=\('foo',\) or extras=", tx, {})


def test_a_misspelt_attribute_of_the_context_is_told_which_is_meant():
    for name, meant in {"bias_corection": "bias_correction", "valu": "value", "fishr": "fisher"}.items():
        tx = rule(lambda u, s, p, c, name=name: (u * getattr(c, name), s), extras={"fisher": "leaf?"})
        failing(AttributeError, matching(f"ctx.{name}: nobody declared it; did you mean ctx.{meant}?"), tx, {})


def test_random_numbers_of_a_rule_that_declared_none_say_how_to_declare_them():
    tx = rule(lambda u, s, p, c: (u + c.rng.normal(u), s))
    failing(AttributeError, matching("ctx.rng: only for rules that are declared @per_tensor(random=True)"), tx, {})


def summed(update, state, param, ctx):
    yield {"n": param.square().sum()}
    yield update, state


WITHOUT = "{}: params were not passed, and the rule fails without them ({}): call update(updates, state, params){}"
DECLARE = "; if it always reads them, declare needs=('params',)"
LACKS_NORM, NO_FACTOR = (
    "'NoneType' object has no attribute 'norm'",
    "unsupported operand type(s) for *: 'float' and 'NoneType'",
)
READERS = {
    "an attribute": (
        WITHOUT.format("broken", LACKS_NORM, DECLARE),
        rule(lambda u, s, p, c: (u / p.norm(), s)),
    ),
    "a factor": (WITHOUT.format("broken", NO_FACTOR, DECLARE), rule(lambda u, s, p, c: (u + 0.1 * p, s))),
    "before a sum": (WITHOUT.format("broken", LACKS_NORM.replace("norm", "square"), DECLARE), rule(summed)),
    "a rule of trees": (
        WITHOUT.format("broken", "'NoneType' object is not subscriptable", DECLARE),
        rule_of_trees(lambda u, s, p, c: ({"w": p["w"], "b": p["b"]}, s)),
    ),
    "a plain function": (
        WITHOUT.format("transformation", "'NoneType' object is not subscriptable", ""),
        gradtx.GradientTransformation(dict, lambda u, s, p: ({"w": p["w"], "b": p["b"]}, s)),
    ),
}


@pytest.mark.parametrize(("message", "tx"), READERS.values(), ids=READERS)
def test_a_rule_that_reads_parameters_that_nobody_passed_is_told_so(message, tx):
    failing(ValueError, matching(message), tx, {"params": None})


def test_errors_of_a_rule_that_have_nothing_to_do_with_missing_parameters_stay_as_they_are():
    failing(
        AttributeError, "'Tensor' object has no attribute 'nrom'", rule(lambda u, s, p, c: u.nrom()), {"params": None}
    )
    failing(AttributeError, matching(LACKS_NORM), rule(lambda u, s, p, c: (u * c.value.norm(), s)), {})


def decayed(update, state, param, ctx):
    state["x"].mul_(0.9)
    return update + state["x"], state


def two_slots(param):
    return {"x": torch.zeros_like(param), "y": [torch.zeros(2), torch.zeros(3)]}


def second_slot(update, state, param, ctx):
    state["y"][1][:2].add_(1.0)
    return update, state


def sum_in_place(update, state, param, ctx):
    total = yield {"n": update.abs_().sum()}
    yield update / total["n"], state


IN_PLACE = {
    "the gradient": ("update", rule(lambda u, s, p, c: (u.mul_(2.0), s))),
    "a view of the gradient": ("update", rule(lambda u, s, p, c: (u.flatten().clamp_(-0.5, 0.5).view_as(u), s))),
    "what another link made": ("update", chain(ADAM, rule(lambda u, s, p, c: (u.neg_(), s)))),
    "a parameter": ("param", rule(lambda u, s, p, c: (p.copy_(u), s))),
    "a slot": ("state['x']", rule(decayed, slot)),
    "a slot of a list": ("state['y_1']", rule(second_slot, two_slots)),
    "a shared scalar": ("state['d']", sharing(lambda u, s, p, c: (u, {"d": s["d"].add_(1.0)}))),
    "before a sum": ("update", rule(sum_in_place)),
}


@pytest.mark.parametrize(("what", "tx"), IN_PLACE.values(), ids=IN_PLACE)
def test_a_rule_that_works_in_place_is_found_out(what, tx):
    message = f"broken: the rule writes into {what} of leaf 'w'; "
    message += "return new tensors, without methods that end in an underscore"
    with pytest.raises(ValueError, match=matching(message)):
        tx.update(params(), tx.init(params()), params())
    weights = {name: torch.nn.Parameter(leaf) for name, leaf in params().items()}
    optimizer = gradtx.as_optimizer(tx, list(weights.items()))
    for weight in weights.values():
        weight.grad = torch.ones_like(weight)
    with pytest.raises(ValueError, match=matching(message)):
        optimizer.step()


def test_a_rule_that_works_in_place_is_found_out_at_leaves_of_any_rank():
    tx = rule(lambda u, s, p, c: (u.mul_(2.0) if u.ndim == 1 else u * 2.0, s))
    with pytest.raises(ValueError, match="writes into update of leaf 'b'"):
        tx.update(params(), tx.init(params()))


def test_a_rule_may_work_in_place_on_what_it_made_itself():
    tx = chain(rule(lambda u, s, p, c: ((u + 1.0).mul_(2.0), {"x": s["x"].clone().add_(u)}), slot), ADAM)
    tx.update(params(), tx.init(params()), params())
    with torch.inference_mode():
        tx.update(params(), tx.init(params()), params())


def test_a_plain_function_that_loses_a_leaf_is_told_which():
    tx = gradtx.GradientTransformation(dict, lambda u, s, p: ({"w": u["w"]}, s))
    failing(ValueError, "updates returned by a plain function lack leaf 'b'", tx, {})


def test_a_key_error_in_a_rule_says_which_key():
    def update(update, state, param, ctx):
        return {}["typo"], state

    failing((KeyError, ValueError), "typo", rule(update), {})


# apply_updates.

APPLY = {
    "a leaf gone": ("updates lack leaf 'b', which params have; leaves are matched by name", without("b")),
    "a leaf too many": (
        "updates have leaf 'c', which params lack; leaves are matched by name",
        params(c=torch.ones(1)),
    ),
    "no tensor": ("updates: leaf 'b' is a float, needs a tensor or None", params(b=1.0)),
    "a shape that would broadcast": (
        "apply_updates: leaf 'b' has shape (1,), its parameter (3,)",
        params(b=torch.ones(1)),
    ),
    "a shape that would widen": (
        "apply_updates: leaf 'b' has shape (3, 1), its parameter (3,)",
        params(b=torch.ones(3, 1)),
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


def test_a_factory_stays_usable_after_a_misuse():
    @per_tensor
    def strict(factor: Scalar = 1.0):
        return lambda update, state, param, ctx: (factor * update, state)

    with pytest.raises(TypeError, match="strict: factor must be a number"):
        strict("x")
    tx = strict(2.0)
    with pytest.raises(TypeError, match="no hyperparameter"):
        tx.replace(fctor=1.0)
    assert torch.equal(tx.update(params(), tx.init(params()))[0]["b"], torch.full((3,), 2.0))
