"""Mistakes that users make with pure functions and in rules of their own: one answer, and no argument has changed."""

import torch
from torch.func import functional_call

import gradtx
from gradtx import per_tensor
from tests.conformance import untouched
from tests.users.common import drawn, perceptron
from tests.users.mistakes import answer_to, assert_answered, each

TX = gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw(lr=0.1))
AVERAGED = gradtx.chain(gradtx.sgd(lr=0.1), gradtx.average(0.9))
MODEL = perceptron()
PARAMS = {name: p.detach().clone() for name, p in MODEL.named_parameters()}
GRADS = {name: torch.ones_like(p) for name, p in PARAMS.items()}
STATE = TX.update(GRADS, TX.init(PARAMS), PARAMS)[1]
X = drawn(4, 3)


def loss_fn(params):
    return functional_call(MODEL, params, (X,)).square().mean()


def without(name):
    return {key: leaf for key, leaf in PARAMS.items() if key != name}


def gradients_in_a_tuple():
    params = {name: p.clone().requires_grad_() for name, p in PARAMS.items()}
    grads = torch.autograd.grad(loss_fn(params), list(params.values()))
    TX.update(grads, STATE, PARAMS)


def with_other_attributes():
    TX.lr = 0.5


def written_hyperparameters():
    TX.hyperparams["lr"] = 0.5


UPDATES = {
    "parameters forgotten": (
        "add_decayed_weights needs params",
        r"update\(updates, state, params\)",
        lambda: TX.update(GRADS, STATE),
    ),
    "the state in the place of the parameters": (
        "params: leaf 'step' has dtype torch.int64",
        "pass it as the state",
        lambda: TX.update(GRADS, PARAMS, STATE),
    ),
    "no state": ("state is not a dict with a 'step'", "own init", lambda: gradtx.sgd(0.1).update(GRADS, None, PARAMS)),
    "an empty state": ("state is not a dict with a 'step'", "own init", lambda: TX.update(GRADS, {}, PARAMS)),
    "the state of another chain": (
        "state has 'trace'",
        "this chain's own init",
        lambda: TX.update(GRADS, gradtx.sgd(momentum=0.9).init(PARAMS), PARAMS),
    ),
    "the state of another model": (
        "state lacks 'scale_by_adam' of leaf '2.bias'",
        "own init, with these parameters",
        lambda: TX.update(GRADS, TX.init(without("2.bias")), PARAMS),
    ),
    "gradients in a tuple": (
        "params: leaf '0' is missing, but is in updates",
        "leaves are matched by name",
        gradients_in_a_tuple,
    ),
    "the loss under another name": (
        "unknown extra 'loss'",
        "known: .*value",
        lambda: TX.update(GRADS, STATE, PARAMS, loss=torch.tensor(1.0)),
    ),
    "the pair that update returns": (
        "updates: leaf '1.step' has dtype torch.int64",
        "pass it as the state",
        lambda: gradtx.apply_updates(PARAMS, TX.update(GRADS, STATE, PARAMS)),
    ),
    "the state applied": (
        "updates: leaf 'step' has dtype torch.int64",
        "pass it as the state",
        lambda: gradtx.apply_updates(PARAMS, STATE),
    ),
    "a generator": (
        "params: leaf '' is a generator",
        r"dict\(model\.named_parameters\(\)\)",
        lambda: TX.init(MODEL.parameters()),
    ),
    "a list of pairs": (
        "params: leaf '0.0' is a str",
        r"dict\(model\.named_parameters\(\)\)",
        lambda: TX.init(list(MODEL.named_parameters())),
    ),
    "buffers among the parameters": (
        "leaf '1.num_batches_tracked' has dtype torch.int64",
        "remove integer tensors",
        lambda: TX.init(torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).state_dict()),
    ),
    "weights to evaluate with, in the other order": (
        "params: leaf 'step' has dtype torch.int64",
        "pass it as the state",
        lambda: AVERAGED.eval_params(PARAMS, AVERAGED.init(PARAMS)),
    ),
}
USES = {
    "step of a transformation": ("a transformation has no 'step'", r"as_optimizer\(", lambda: TX.step()),
    "an attribute written": ("is immutable", r"replace\(lr=\.\.\.\)", with_other_attributes),
    "a hyperparameter written": ("hyperparams is a copy", r"replace\(lr=\.\.\.\)", written_hyperparameters),
    "a misspelt name in replace": (
        "no hyperparameter 'weight_deca'",
        "did you mean 'weight_decay'",
        lambda: TX.replace(weight_deca=0.1),
    ),
    "an unknown slot": (
        "the state has no 'exp_average'",
        "did you mean 'exp_avg'",
        lambda: gradtx.get(STATE, "exp_average"),
    ),
    "a slot of an optimizer's state dict": (
        "'exp_avg' is ambiguous",
        r"pass one of these paths",
        lambda: gradtx.get(gradtx.optim.AdamW(MODEL.parameters()).state_dict(), "exp_avg"),
    ),
}


@each({**UPDATES, **USES})
def test_a_mistake_with_pure_functions_is_answered_once_and_changes_no_argument(culprit, remedy, mistake):
    with untouched(PARAMS, GRADS, STATE):
        assert_answered(answer_to(mistake), culprit, remedy)


# Rules.


def slot(param):
    return {"average": torch.zeros_like(param)}


def rule(update, init=None, **options):
    def mine():
        return update if init is None else (init, update)

    return per_tensor(**options)(mine)()


def without_factory():
    @per_tensor
    def mine(update, state, param, ctx):
        return 0.5 * update, state


def without_annotation():
    @per_tensor
    def mine(beta=0.9):
        return lambda update, state, param, ctx: (beta * update, state)


def returns_after_a_sum(update, state, param, ctx):
    total = yield {"norm": update.square().sum()}
    return update / total["norm"].sqrt(), state


def yields_a_tensor(update, state, param, ctx):
    total = yield update.square().sum()
    yield update / total, state


RULES = {
    "no factory": (
        "mine: annotate 'update'",
        "the decorated function is a factory, which returns the update",
        without_factory,
    ),
    "no function": ("needs a function that returns the rule, got 'mine'", "per_tensor", lambda: per_tensor("mine")),
    "no annotation": ("mine: annotate 'beta'", r"gradtx\.Scalar", without_annotation),
    "an unknown option": (
        "unknown option 'elementwize'",
        "did you mean 'elementwise'",
        lambda: per_tensor(elementwize=True),
    ),
    "state and update in the other order": (
        r"got \(\{'average': .*\}, tensor\(",
        r"must return \(update, state\)",
        rule(lambda update, state, param, ctx: (state, update), slot),
    ),
    "the update alone": (
        r"got tensor\(shape=",
        r"must return \(update, state\)",
        rule(lambda update, state, param, ctx: update),
    ),
    "a slot that init forgot": (
        "the slot 'average', but has no init",
        r"return \(init, update\)",
        rule(lambda update, state, param, ctx: (update, {"average": update})),
    ),
    "a misspelt slot": (
        "the rule reads 'averge'",
        "did you mean 'average'",
        rule(lambda update, state, param, ctx: (state["averge"], state), slot),
    ),
    "a return after a sum": ("must end with `yield update, state`", "not with return", rule(returns_after_a_sum)),
    "a sum without a name": ("must yield a dict of 0-d sums", r"got tensor\(", rule(yields_a_tensor)),
    "a norm of the leaf as its update": (
        r"has shape \(8, 3\), but its update has shape \(\)",
        "leaf '0.weight'",
        rule(lambda update, state, param, ctx: (update.norm(), state)),
    ),
    "an undeclared extra": (
        r"ctx\.fisher: no link declares it",
        r"extras=\{'fisher': 'leaf'\}",
        rule(lambda update, state, param, ctx: (update * ctx.fisher, state)),
    ),
    "parameters that nobody passed": (
        "mine: params were not passed",
        r"update\(updates, state, params\)",
        rule(lambda update, state, param, ctx: (update + param, state)),
    ),
    "a vector for a rule of matrices": (
        r"mine: leaf '0.bias' has shape \(8,\), needs 2 dimensions",
        r"partition\(",
        rule(lambda update, state, param, ctx: (update @ update.T @ update, state), dims=2),
    ),
}


def first_update(mistake):
    if isinstance(mistake, gradtx.GradientTransformation):
        mistake.update(GRADS, mistake.init(PARAMS))
    else:
        mistake()


def first_step(mistake, params):
    optimizer = gradtx.as_optimizer(gradtx.chain(mistake, gradtx.scale_by_learning_rate(0.1)), params.items())
    for name, p in params.items():
        p.grad = GRADS[name].clone()
    optimizer.step()


@each(RULES)
def test_a_mistake_in_a_rule_is_answered_once_by_a_pure_update(culprit, remedy, mistake):
    with untouched(PARAMS, GRADS):
        assert_answered(answer_to(first_update, mistake), culprit, remedy)


OF_STEPS = {
    name: row
    for name, row in RULES.items()
    if isinstance(row[-1], gradtx.GradientTransformation) and name != "parameters that nobody passed"
}


@each(OF_STEPS)
def test_a_mistake_in_a_rule_is_answered_once_by_a_step_that_moves_no_weight(culprit, remedy, mistake):
    params = {name: torch.nn.Parameter(p.clone()) for name, p in PARAMS.items()}
    with untouched(params):
        assert_answered(answer_to(first_step, mistake, params), culprit, remedy)
