"""Errors of rules that return the wrong thing, read what is missing, or work in place."""

from contextlib import nullcontext

import pytest
import torch

import gradtx
from gradtx import chain, whole_tree
from tests.conformance import untouched
from tests.errors.common import ADAM, SHAPES, failing, matching, params, rule, slot


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


PAIR = "broken: a rule must return (update, state), got "
RETURNS = "broken: the rule returns a state "
RULES = {
    "nothing": (PAIR + "None", rule(lambda u, s, p, c: None)),
    "the update alone": (PAIR + "tensor(shape=(2, 3))", rule(lambda u, s, p, c: u)),
    "three things": (PAIR + "(tensor(shape=(2, 3)), {}, {})", rule(lambda u, s, p, c: (u, s, s))),
    "no dict for a state": (PAIR + "(tensor(shape=(2, 3)), None)", rule(lambda u, s, p, c: (u, None))),
    "an update of another shape": (
        "broken: leaf 'w' has shape (2, 3), but its update has shape ()",
        rule(lambda u, s, p, c: (u.sum(), s)),
    ),
    "a slot of another shape": (
        f"broken.x: leaf 'w' has a slot of shape (2, 3), but its new value has shape (){SHAPES}",
        rule(lambda u, s, p, c: (u, {"x": u.sum()}), slot),
    ),
    "a number for a slot": (
        "broken.x: the new value of leaf 'w' must be a tensor, got 1.0",
        rule(lambda u, s, p, c: (u, {"x": 1.0}), slot),
    ),
    "a slot too many": (
        f"{RETURNS}with the slot 'y', which its init does not create",
        rule(lambda u, s, p, c: (u, {**s, "y": u}), slot),
    ),
    "a slot of another name": (
        f"{RETURNS}with the slot 'y', which its init does not create",
        rule(lambda u, s, p, c: (u, {"y": u}), slot),
    ),
    "a slot without init": (
        f"{RETURNS}with the slot 'x', but has no init to create it; return (init, update)",
        rule(lambda u, s, p, c: (u, {"x": u})),
    ),
    "a slot that init does not make, asked for": (
        "broken: the rule reads 'xx', which its init does not create; did you mean 'x'?",
        rule(lambda u, s, p, c: (u + s["xx"], s), lambda p: {"x": p, "other": p}),
    ),
    "a sum that is no scalar": (
        "broken: the sum 'n' has shape (2, 3), needs 0-d",
        yields(lambda u: {"n": u}, lambda u: (u, {})),
    ),
    "a sum without a name": (
        "broken: a rule must yield a dict of 0-d sums before the result, got tensor(6)",
        yields(lambda u: u.sum(), lambda u: (u, {})),
    ),
    "nonsense after a sum": (PAIR + "3", yields(lambda u: {"n": u.sum()}, 3)),
    "None for the update": (
        "broken: the update of leaf 'w' must be a tensor, got None",
        rule(lambda u, s, p, c: (None, s)),
    ),
    "a number for a shared scalar": (
        "broken.d: the new value of leaf 'w' must be a tensor, got 2.0",
        sharing(lambda u, s, p, c: (u, {"d": 2.0})),
    ),
    "a vector for a shared scalar": (
        "broken: shared value 'd' has shape (3,), must be 0-d",
        sharing(lambda u, s, p, c: (u, {"d": torch.ones(3)})),
    ),
    "sums that differ between leaves": (
        "broken: leaf 'w' yields the sums ['n2'], but leaf 'b' yields ['n1']; all leaves must yield the same sums",
        yields(lambda u: {f"n{u.ndim}": u.sum()}, lambda u: (u, {})),
    ),
    "a plain function, the updates alone": (
        "transformation: update must return (updates, state), got dict",
        gradtx.GradientTransformation(dict, lambda u, s, p: u),
    ),
    "a tree rule, a leaf too few": (
        "broken: update must return a tensor for each leaf, got none for 'b'",
        rule_of_trees(lambda u, s, p, c: ({"w": u["w"]}, s)),
    ),
    "a tree rule, nothing": (
        "broken: update must return (updates, state), got NoneType",
        rule_of_trees(lambda u, s, p, c: None),
    ),
}


@pytest.mark.parametrize(("message", "tx"), RULES.values(), ids=RULES)
def test_a_rule_that_returns_nonsense_is_told_what_to_return(message, tx):
    failing((TypeError, ValueError), matching(message), tx, {})


# Functions are refused when the optimizer makes their state, and sums that differ when it compares the leaves.
OF_STEPS = {
    name: row for name, row in RULES.items() if "plain" not in name and name != "sums that differ between leaves"
}


@pytest.mark.parametrize(("message", "tx"), OF_STEPS.values(), ids=OF_STEPS)
def test_a_step_with_such_a_rule_raises_the_same_and_moves_no_weight(message, tx):
    weights = {name: torch.nn.Parameter(p) for name, p in params().items()}
    optimizer = gradtx.as_optimizer(chain(tx, gradtx.scale_by_learning_rate(0.1)), weights.items())
    for p in weights.values():
        p.grad = torch.ones_like(p)
    with untouched(weights), pytest.raises((TypeError, ValueError), match=matching(message)):
        optimizer.step()


INITS = {
    "nothing": ("None", lambda p: None),
    "no dict": ("[]", lambda p: []),
    "a number for a slot": ("0.0 for 'x'", lambda p: {"x": 0.0}),
    "a number for a name": ("{0: 1}", lambda p: {0: 1}),
    "numbers in a list": ("0.0 for 'x_0'", lambda p: {"x": [0.0]}),
}


@pytest.mark.parametrize(("got", "init"), INITS.values(), ids=INITS)
def test_an_init_that_returns_nonsense_is_told_what_to_return(got, init):
    tx = rule(lambda u, s, p, c: (u, s), init)
    with pytest.raises(TypeError, match=matching(f"broken: init must return a dict of slot name -> tensor, got {got}")):
        tx.init(params())


def test_a_slot_and_a_shared_value_may_not_have_one_name():
    @gradtx.per_tensor(shared={"n": 0.0})
    def broken():
        return lambda param: {"n": param}, lambda u, s, p, c: (u, s)

    with pytest.raises(TypeError, match=matching("broken: ['n'] are both slots and shared values; rename one of them")):
        broken().init(params())


def test_a_combinator_needs_no_parentheses():
    @gradtx.combinator
    def same(tx: gradtx.GradientTransformation):
        return gradtx.Frame(tx)

    tx = same(gradtx.sgd(lr=0.5))
    assert tx.update({"w": torch.ones(1)}, tx.init({"w": torch.ones(1)}))[0]["w"].item() == -0.5


def test_a_slot_may_not_end_in_a_number():
    with pytest.raises(TypeError, match="trailing numbers are reserved for the library; return a list in one slot"):
        rule(lambda u, s, p, c: (u, s), lambda p: {"x_1": p}).init(params())


def test_an_undeclared_extra_is_an_attribute_error_that_says_how_to_declare_it():
    tx = rule(lambda u, s, p, c: (u * c.foo, s))
    failing(AttributeError, r"ctx\.foo: no link declares it; use extras=\{'foo': 'leaf'\}", tx, {})


def test_a_misspelt_attribute_of_the_context_is_told_which_is_meant():
    for name, meant in {"bias_corection": "bias_correction", "valu": "value", "fishr": "fisher"}.items():
        tx = rule(lambda u, s, p, c, name=name: (u * getattr(c, name), s), extras={"fisher": "leaf?"})
        failing(AttributeError, matching(f"ctx.{name}: no link declares it; did you mean ctx.{meant}?"), tx, {})


def test_random_numbers_of_a_rule_that_declared_none_say_how_to_declare_them():
    tx = rule(lambda u, s, p, c: (u + c.rng.normal(u), s))
    failing(
        AttributeError,
        matching("ctx.rng: only random rules have it; declare the rule @per_tensor(random=True)"),
        tx,
        {},
    )


def test_an_init_of_a_random_rule_without_rng_is_told_its_arguments():
    @gradtx.per_tensor(random=True)
    def noisy(seed: int = 0):
        return (lambda param: {"x": param}), (lambda u, s, p, c: (u, s))

    with pytest.raises(TypeError, match="noisy: init of a random rule receives a parameter and rng"):
        noisy().init(params())


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
    "an attribute": (WITHOUT.format("broken", LACKS_NORM, DECLARE), rule(lambda u, s, p, c: (u / p.norm(), s))),
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
    failing(AttributeError, f"^{LACKS_NORM}\nbroken: leaf 'w'", rule(lambda u, s, p, c: (u * c.value.norm(), s)), {})


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
    message = f"broken: the rule writes to {what} of leaf 'w'; "
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
    with pytest.raises(ValueError, match="writes to update of leaf 'b'"):
        tx.update(params(), tx.init(params()))


def test_a_rule_may_work_in_place_on_what_it_made_itself():
    tx = chain(rule(lambda u, s, p, c: ((u + 1.0).mul_(2.0), {"x": s["x"].clone().add_(u)}), slot), ADAM)
    tx.update(params(), tx.init(params()), params())
    with torch.inference_mode():
        tx.update(params(), tx.init(params()), params())


def test_a_plain_function_that_loses_a_leaf_is_told_which():
    tx = gradtx.GradientTransformation(dict, lambda u, s, p: ({"w": u["w"]}, s))
    failing(ValueError, "updates returned by a plain function: leaf 'b' is missing", tx, {})


def test_a_key_error_in_a_rule_says_which_key():
    def update(update, state, param, ctx):
        return {}["typo"], state

    failing((KeyError, ValueError), "typo", rule(update), {})


# Errors of torch inside a user's functions: a note says where.

W = torch.ones(2, 3)


@gradtx.combinator
def wrong_leave(tx: gradtx.GradientTransformation):
    return gradtx.Frame(tx, leave=lambda u, s, p, c: (u @ u, s))


def after_a_sum(u, s, p, c):
    total = yield {"sum": u.sum()}
    yield u @ u + total["sum"], s


# A transformation, the name in the note, and the line that fails.
WRONG = {
    "update": (rule(lambda u, s, p, c: (u @ u, s)), "broken", "(u @ u, s)"),
    "init": (rule(lambda u, s, p, c: (u, s), lambda p: {"x": p @ p}), "broken", "p @ p"),
    "after a sum": (rule(after_a_sum), "broken", 'yield u @ u + total["sum"], s'),
    "inside an alias": (chain(rule(lambda u, s, p, c: (u @ u, s)), gradtx.sgd()), "broken", "u @ u, s"),
    "combinator": (wrong_leave(gradtx.sgd()), "wrong_leave", "leave=lambda"),
    "whole tree": (rule_of_trees(lambda u, s, p, c: ({"w": u["w"] @ u["w"]}, s)), "broken", 'u["w"] @ u["w"]'),
    "function of a link": (gradtx.map_after_step(lambda p: p @ p), "map_after_step", "lambda p: p @ p"),
    # Its shapes are right, so that a recorded program raises the error.
    "value": (rule(lambda u, s, p, c: (u.gather(0, u.long() + 5), s)), "broken", "u.gather(0,"),
}


def take_a_step(tx, way):
    param = torch.nn.Parameter(W)
    if way == "pure":
        tx.update({"w": W}, tx.init({"w": W}), {"w": W})
    elif way == "gradients":
        tx.update({"w": param * 2}, tx.init({"w": param}), {"w": param})
    elif way == "vmap":
        torch.vmap(lambda w: tx.update({"w": w}, tx.init({"w": w}), {"w": w})[0])(W[None])
    else:
        optimizer = gradtx.as_optimizer(tx, [("w", param)], compile=way == "compiled")
        param.grad = W.clone()
        optimizer.step()


@pytest.mark.parametrize("way", ["pure", "gradients", "vmap", "lists", "compiled", "eager"])
@pytest.mark.parametrize(("tx", "name", "line"), WRONG.values(), ids=WRONG)
def test_a_torch_error_in_a_users_rule_names_rule_leaf_shape_and_line(tx, name, line, way):
    with pytest.raises((RuntimeError, IndexError)) as caught, gradtx.eagerly() if way == "eager" else nullcontext():
        take_a_step(tx, way)
    note = caught.value.__notes__[-1]
    assert note.startswith(f"{name}: leaf 'w' of shape (2, 3) on cpu, test_rules.py:")
    assert line in note


@pytest.mark.slow
def test_a_torch_error_in_a_compiled_training_step_shows_the_users_line():
    tx = rule(lambda u, s, p, c: (u @ u, s))
    step = torch.compile(lambda w: tx.update({"w": w}, tx.init({"w": w}), {"w": w})[0], backend="eager")
    with pytest.raises(RuntimeError, match=r"tx = rule\(lambda u, s, p, c: \(u @ u, s\)\)|test_rules.py"):
        step(W)
