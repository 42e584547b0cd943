"""Errors of factories, combinators and names."""

import math
import re
from typing import Annotated

import pytest
import torch

import gradtx
from gradtx import alias, chain, per_tensor, whole_tree
from tests.errors.common import NAN, matching, params
from tests.users.mistakes import PACKAGE

MADE = "as returned by factories such as gradtx.adamw(lr=1e-3)"


@per_tensor(owns_lr=True)
def owner():
    return lambda update, state, param, ctx: (update, state)


def bare():
    return lambda update, state, param, ctx: (update, state)


def nothing():
    return None


def unannotated(x=1):
    return None


def masking(weight_decay: gradtx.Scalar = 0.1, mask: object = None):
    return gradtx.add_decayed_weights(weight_decay)


def declared(beta: gradtx.Scalar = 0.9):
    return lambda update, state, param, ctx: (update, state)


def vaguely_declared(beta: Annotated[gradtx.Scalar, "0 to 1"] = 0.9):
    return lambda update, state, param, ctx: (update, state)


SELECT = (
    "select leaves by their names in the model with a pattern such as 'encoder.*', a tuple of patterns, or a function "
    "(name, tensor) -> bool"
)
NUMBER = "must be a number, a 0-d tensor or a gradtx.Schedule"
ADAM_NAMES = (
    "amsgrad, betas, cautious_decay, correct_bias, decoupled_weight_decay, eps, lr, mask, maximize, state_dtype, "
    "weight_decay"
)
FOLLOWS = "owner owns the learning rate and returns the final update, so {} cannot follow it; "
FOLLOWS += "pass lr and decay to owner, or remove one of the two links"

TWO = gradtx.partition({"a": gradtx.adam(), "b": gradtx.sgd()}, {"a": "w", "b": "*"})
OTHER_NAMES = {
    "lrr": "did you mean 'lr'?",
    "a.lrr": "did you mean 'a.lr'?",
    "b.sdg.lr": "did you mean 'b.sgd.lr'?",
    "c.lr": "did you mean 'b.lr'?",
    "a.momentum": "did you mean 'b.momentum'?",
}

BUILDING = {
    # numbers
    "adam: lr must be in [0, inf), got nan": (ValueError, lambda: gradtx.adam(lr=NAN)),
    "adam: lr must be in [0, inf), got inf": (ValueError, lambda: gradtx.adam(lr=math.inf)),
    "adamw: betas[1] must be in [0, 1), got 1.5": (ValueError, lambda: gradtx.adamw(betas=(0.9, 1.5))),
    "adamw: betas[0] must be in [0, 1), got 1.0": (ValueError, lambda: gradtx.adamw(betas=(1, 0.9))),
    "adamw: betas[0] must be in [0, 1), got nan": (ValueError, lambda: gradtx.adamw(betas=(NAN, 0.9))),
    "adamw: betas must have 2 entries, got 3": (ValueError, lambda: gradtx.adamw(betas=(0.9, 0.9, 0.9))),
    "adamw: betas must be a tuple of numbers, got 0.9": (TypeError, lambda: gradtx.adamw(betas=0.9)),
    f"adamw: betas[1] {NUMBER}, got 'x'": (TypeError, lambda: gradtx.adamw(betas=(0.9, "x"))),
    f"adamw: lr {NUMBER}, got constant; wrap it: gradtx.Schedule(...)": (TypeError, lambda: gradtx.adamw(constant)),
    f"adamw: betas[0] {NUMBER}, got constant; wrap it: gradtx.Schedule(...)": (
        TypeError,
        lambda: gradtx.adamw(betas=(constant, 0.9)),
    ),
    f"adamw: lr {NUMBER}, got True": (TypeError, lambda: gradtx.adamw(lr=True)),
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
        f"record: name must be an identifier other than 'step', which is the count's key, got {name!r}": (
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
    "lbfgs: unknown argument 'line_search_fn'; use line_search(lbfgs(), conditions=\"strong_wolfe\")": (
        TypeError,
        lambda: gradtx.lbfgs(line_search_fn="strong_wolfe"),
    ),
    "lbfgs: unknown argument 'history_size'; did you mean 'history'?": (
        TypeError,
        lambda: gradtx.lbfgs(history_size=5),
    ),
    "masked: unknown argument 'mask'; did you mean 'where'?": (
        TypeError,
        lambda: gradtx.masked(gradtx.adam(), mask="*"),
    ),
    "add_decayed_weights: unknown argument 'mask'; wrap the call: masked(..., where) applies it to some parameters": (
        TypeError,
        lambda: gradtx.add_decayed_weights(0.1, mask="*"),
    ),
    "lion: unknown argument 'cautious'; add scale_by_caution(0.0) after the link that computes the direction; for the "
    "decay, pass cautious_decay=True": (TypeError, lambda: gradtx.lion(cautious=True)),
    f"adam: unknown argument 'init_value'; known: {ADAM_NAMES}": (TypeError, lambda: gradtx.adam(init_value=0.1)),
    "per_tensor: needs a function that returns the rule, got 'mine'": (TypeError, lambda: per_tensor("mine")),
    "adam: got two values for 'lr'": (TypeError, lambda: gradtx.adam(0.1, lr=0.1)),
    "accumulate: missing argument 'every'": (TypeError, lambda: gradtx.accumulate(gradtx.adam())),
    "adam: takes at most 5 positional arguments, got 6": (
        TypeError,
        lambda: gradtx.adam(0.1, (0.9, 0.9), 0.1, 0.1, False, True),
    ),
    # state_dtype
    **{
        f"adam: state_dtype must be a floating-point torch.dtype of 16 bits or more, got {value!r}; "
        f"did you mean {meant}? or a code, 'int8', 'int4', 'float8', "
        "'bfloat16+8', 'bfloat16:stochastic', 'factored', a Codec, or a dict slot pattern -> one of these": (
            TypeError,
            lambda value=value: gradtx.adam(state_dtype=value),
        )
        for value, meant in {
            "float8_e5m2": "'float8'",
            "uint8": "'int8'",
            torch.int8: "'int8'",
            torch.float8_e4m3fn: "'float8'",
        }.items()
    },
    # transformations where they belong
    "chain: argument 2 must be a GradientTransformation, got adam; call it: adam(...)": (
        TypeError,
        lambda: chain(gradtx.adam(), gradtx.adam),
    ),
    f"chain: argument 1 must be a GradientTransformation, got Linear(...); {MADE}": (
        TypeError,
        lambda: chain(torch.nn.Linear(1, 1)),
    ),
    f"chain: argument 1 must be a GradientTransformation, got 3; {MADE}": (TypeError, lambda: chain(3)),
    (
        "chain: argument 1 must be a GradientTransformation, got <lambda>; "
        "decorate the function that returns it with @gradtx.per_tensor"
    ): (TypeError, lambda: chain(bare())),
    "chain: argument 1 is a list of links; pass its items: chain(*links)": (TypeError, lambda: chain([gradtx.adam()])),
    "warmup_cosine_schedule: total_steps must be an int, got 1000.0": (
        TypeError,
        lambda: gradtx.warmup_cosine_schedule(total_steps=1e3, warmup_steps=1),
    ),
    "cosine_schedule: total_steps must be in [1, inf), got 0": (
        ValueError,
        lambda: gradtx.cosine_schedule(lr=0.1, total_steps=0),
    ),
    f"chain: argument 2 must be a GradientTransformation, got AdamW(...); {MADE}": (
        TypeError,
        lambda: chain(gradtx.adam(), gradtx.optim.AdamW([torch.zeros(1)])),
    ),
    f"memory: tx must be a GradientTransformation, got SGD; {MADE}": (
        TypeError,
        lambda: gradtx.memory(torch.optim.SGD, {"w": torch.zeros(1)}),
    ),
    "as_optimizer: the first argument must be the transformation: as_optimizer(tx, params)": (
        TypeError,
        lambda: gradtx.as_optimizer([torch.zeros(1)], gradtx.adam()),
    ),
    f"as_optimizer: tx must be a GradientTransformation, got 'adam'; {MADE}": (
        TypeError,
        lambda: gradtx.as_optimizer("adam", [torch.zeros(1)]),
    ),
    f"train_step: tx must be a GradientTransformation, got constant; {MADE}": (
        TypeError,
        lambda: gradtx.train_step(gradtx.adam(), constant),
    ),
    **{
        f"{name}: takes hyperparameters, got adam(); combine links by chain(...), and make an optimizer by "
        f"gradtx.as_optimizer({name}(...), params) or a class of gradtx.optim": (
            TypeError,
            lambda name=name: getattr(gradtx, name)(gradtx.adam(), 5),
        )
        for name in ("lookahead", "average", "adamw", "clip_by_global_norm")
    },
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
    "partition: labels and transforms must have the same keys, got b and a": (
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
        f"{name}: {SELECT}, got Linear(...)": (TypeError, lambda make=make: make(torch.nn.Linear(1, 1)))
        for name, make in {"freeze": gradtx.freeze, "masked": lambda where: gradtx.masked(gradtx.adam(), where)}.items()
    },
    f"freeze: {SELECT}, got Linear": (TypeError, lambda: gradtx.freeze(torch.nn.Linear)),
    f"freeze: {SELECT}, got tensor(shape=(2,))": (TypeError, lambda: gradtx.freeze(torch.zeros(2))),
    f"freeze: {SELECT}, got adam()": (TypeError, lambda: gradtx.freeze(gradtx.adam())),
    f"masked: {SELECT}, got ['a', 2]": (TypeError, lambda: gradtx.masked(gradtx.adam(), ["a", 2])),
    "map_after_step: fn must be a function of a tensor, got 3": (TypeError, lambda: gradtx.map_after_step(3)),
    "GradientTransformation: update must be a function, got None": (
        TypeError,
        lambda: gradtx.GradientTransformation(bare, None),
    ),
    "Schedule: needs a function of the step, got 0.1": (TypeError, lambda: gradtx.Schedule(0.1)),
    "sgd: Schedule(<lambda>) returned None; a schedule must return a number or a 0-d tensor": (
        TypeError,
        lambda: gradtx.sgd(lr=gradtx.Schedule(lambda step: None)),
    ),
    # owners of the learning rate
    **{
        f"chain: {FOLLOWS.format(name)}": (ValueError, lambda tx=tx: chain(owner(), tx()))
        for name, tx in {
            "scale_by_learning_rate": gradtx.adam,
            "add_decayed_weights": lambda: gradtx.add_decayed_weights(0.1),
            "owner": owner,
        }.items()
    },
    "adam_atan2: weight_decay and regen_reg_rate are mutually exclusive; set one of them to 0.0": (
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
        lambda: chain(gradtx.centralize(), gradtx.sgd()).replace(**{"momentum": NAN}),
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
    **{
        f"declared: {message}": (TypeError, lambda options=options: per_tensor(**options)(declared))
        for message, options in {
            "unknown entry 'fisher' in needs; valid: params, value, value_fn, grad_fn, hessian_diag; "
            "declare others by extras={'fisher': 'leaf'}": {"needs": ("params", "fisher")},
            "an option names the unknown argument 'betas'; did you mean 'beta'?": {"agree": ("betas",)},
            **{
                "extras must be a dict of name -> 'leaf', 'scalar' or 'tensors', with '?' appended if "
                f"optional, or 'examples', got {given}; a rule for whole trees also takes 'function' and 'outputs'": {
                    "extras": extras
                }
                for given, extras in {"('fisher',)": ("fisher",), "{'fisher': 'tensor'}": {"fisher": "tensor"}}.items()
            },
        }.items()
    },
    "an interval beside a type is written as in '[0, 1)', got '0 to 1'": (
        ValueError,
        lambda: per_tensor(vaguely_declared),
    ),
    "per_tensor: unknown option 'elementwize'; did you mean 'elementwise'?": (
        TypeError,
        lambda: per_tensor(elementwize=True),
    ),
    "whole_tree: unknown option 'elementwise'; known: amplifies, capturable, closure, extras, length, "
    "makes_gradient, needs, owns_lr, rate, sign": (TypeError, lambda: whole_tree(elementwise=True)),
    "alias: unknown option 'needs'; known: class_name": (TypeError, lambda: alias(needs=("params",))),
    "unannotated: annotate 'x': gradtx.Scalar for a number, gradtx.GradientTransformation for an inner "
    "transformation, object for any other value; the decorated function is a factory, which returns the update": (
        TypeError,
        lambda: per_tensor(unannotated),
    ),
    "masking: omit 'mask', which the decorator adds": (TypeError, lambda: alias(masking)),
    "bare: a random rule needs the argument `seed: int`": (TypeError, lambda: per_tensor(random=True)(bare)),
    "nothing: must return update, (init, update) or (init, update, evaluate), got None": (
        TypeError,
        lambda: per_tensor(nothing)(),
    ),
    "bare: must return a transformation, such as chain(...), got <lambda>": (TypeError, lambda: alias(bare)()),
}


def constant(step):
    return 0.1


@pytest.mark.parametrize(("message", "kind", "call"), [(m, *rest) for m, rest in BUILDING.items()], ids=BUILDING)
def test_building_it_wrong_says_what_is_wrong(message, kind, call):
    with pytest.raises(kind, match=matching(message)) as error:
        call()
    assert str(error.traceback[-1].path).startswith(PACKAGE)


def test_a_rate_is_found_by_every_name_that_replace_takes():
    for name, rate in {"lr": 1, "a.lr": 1, "a.adam.lr": 1, "b.lr": 2, "b.sgd.lr": 2}.items():
        tx = TWO.replace(**{"a.lr": 1.0, "b.lr": 2.0})
        assert gradtx.learning_rate(tx, tx.init(params()), name).item() == rate
        assert gradtx.learning_rate(tx.replace(**{name: 3.0}), tx.init(params()), name).item() == 3.0


def test_an_owner_inside_a_wrapper_is_named_itself():
    for tx in (gradtx.accumulate(owner(), every=2), gradtx.masked(owner(), "a"), gradtx.skip_nonfinite(owner())):
        with pytest.raises(ValueError, match=matching("chain: " + FOLLOWS.format("scale_by_learning_rate"))):
            chain(tx, gradtx.scale_by_learning_rate(0.1))


def test_an_attribute_error_of_a_factory_or_a_schedule_is_the_users_own():
    @per_tensor
    def misspelt(rate: gradtx.Scalar = 0.1):
        return rate.unknown

    with pytest.raises(AttributeError, match="'float' object has no attribute 'unknown'"):
        misspelt()
    with pytest.raises(AttributeError, match="'Tensor' object has no attribute 'unknown'"):
        gradtx.sgd(lr=gradtx.Schedule(lambda step: step.unknown))


def test_a_hyperparameter_is_no_attribute():
    message = "adamw: a transformation has no 'lr'; its numbers are in hyperparams, and "
    with pytest.raises(AttributeError, match=message):
        gradtx.adamw().lr  # noqa: B018


@pytest.mark.parametrize(
    ("name", "message"),
    {
        "adamW": "module 'gradtx' has no attribute 'adamW'; did you mean 'adamw'?",
        "warmup_cosine": "module 'gradtx' has no attribute 'warmup_cosine'; did you mean 'warmup_cosine_schedule'?",
        "SGDW": "module 'gradtx' has no attribute 'SGDW'; use gradtx.optim.SGDW",
        "RMSProp": "module 'gradtx' has no attribute 'RMSProp'; use gradtx.optim.RMSprop",
        "FusedAdam": "module 'gradtx' has no attribute 'FusedAdam'; use gradtx.optim.AdamW(params, compile=True)",
        "MultiSteps": "module 'gradtx' has no attribute 'MultiSteps'; use accumulate(tx, every=...)",
        "clip_grad_norm_": "module 'gradtx' has no attribute 'clip_grad_norm_'; use clip_by_global_norm(...) for the "
        "norm of all gradients, clip_by_norm(...) for that of each",
        "EMA": "module 'gradtx' has no attribute 'EMA'; use average(decay) as the last link for weights, ema(decay) "
        "for updates",
        "MetaSGD": "module 'gradtx' has no attribute 'MetaSGD'; use MetaOptimizer(net, tx) with any chain, such as "
        "sgd(...); see docs/howto/from-torchopt.md",
        "recover_state_dict": "module 'gradtx' has no attribute 'recover_state_dict'; use the methods extract, recover "
        "and stop_gradient of MetaOptimizer; see docs/howto/from-torchopt.md",
        "FuncAdam": "module 'gradtx' has no attribute 'FuncAdam'; use tx.update and apply_updates, which are pure; see "
        "docs/howto/from-torchopt.md",
        "ImplicitMetaGradientModule": "module 'gradtx' has no attribute 'ImplicitMetaGradientModule'; use "
        "custom_root(torch.func.grad(loss)), or minimize(tx, loss, start, ...); see docs/howto/implicit-gradients.md",
        "adamwss": "module 'gradtx' has no attribute 'adamwss'; did you mean 'adamw'?",
        "quux": "module 'gradtx' has no attribute 'quux'; see docs/optax-names.md and docs/other-names.md",
        "_quux": "module 'gradtx' has no attribute '_quux'",
    }.items(),
)
def test_an_unknown_name_of_the_library_says_which_is_meant(name, message):
    with pytest.raises(AttributeError, match=matching(message)):
        getattr(gradtx, name)


OF_A_LEAF = (
    "a function here is called as (name, tensor) and returns a bool, for one leaf, such as lambda name, tensor: "
)
OF_A_TREE = "a function here is called as (name, tensor) and returns a label, for one leaf"


@pytest.mark.parametrize(
    ("message", "call"),
    {
        f"masked: {OF_A_LEAF}tensor.ndim > 1; <lambda> takes (a, b, c)": lambda: gradtx.masked(
            gradtx.sgd(), lambda a, b, c: True
        ),
        f"freeze: {OF_A_LEAF}": lambda: gradtx.freeze(lambda: True),
        f"blocks: {OF_A_LEAF}": lambda: gradtx.blocks(gradtx.muon(), lambda p: p.ndim > 1, sizes=(2, 2)),
        f"adamw: mask: {OF_A_LEAF}": lambda: gradtx.adamw(mask=lambda a, b, c: True),
        f"partition: {OF_A_LEAF}": lambda: gradtx.partition({"a": gradtx.sgd()}, {"a": lambda p: p.ndim > 1}),
        f"partition: {OF_A_TREE}": lambda: gradtx.partition({"a": gradtx.sgd()}, lambda a, b, c: "a"),
        'asam: mask: a function here is called as (name) and returns a bool, such as lambda name: "weight" in name; '
        "<lambda> takes (name, tensor)": lambda: gradtx.asam(gradtx.sgd(), mask=lambda name, tensor: True),
    }.items(),
)
def test_a_function_of_leaves_with_other_arguments_is_refused_where_it_is_passed(message, call):
    with pytest.raises(TypeError, match=f"^{re.escape(message)}"):
        call()


def test_a_function_of_one_argument_that_expects_a_leaf_is_told_that_it_gets_the_tree():
    for tx in (gradtx.masked(gradtx.sgd(), lambda p: p.ndim > 1), gradtx.adamw(mask=lambda p: p.ndim > 1)):
        with pytest.raises(AttributeError) as error:
            tx.init({"w": torch.ones(2)})
        assert "<lambda> has one argument, so it gets the tree of all parameters" in error.value.__notes__[-1]


def test_a_predicate_that_forgets_to_return_is_an_error_and_does_not_select_nothing_in_silence():
    tx = gradtx.masked(gradtx.sgd(), lambda name, tensor: None)
    with pytest.raises(TypeError, match=matching("masked: <lambda> returned None for leaf 'w'; it must return a bool")):
        tx.init({"w": torch.ones(2)})


def test_a_scheduler_of_torch_is_no_rate_and_the_error_says_how_to_use_it():
    params = [torch.nn.Parameter(torch.zeros(2))]
    scheduler = torch.optim.lr_scheduler.StepLR(torch.optim.SGD(params, lr=0.1), 3)
    rest = "; torch schedulers write to param_groups: create the optimizer with a number, then StepLR(optimizer, ..."
    for call in (
        lambda: gradtx.adamw(lr=scheduler),
        lambda: gradtx.optim.AdamW(params, lr=scheduler),
        lambda: gradtx.optim.AdamW([{"params": params, "lr": scheduler}]),
        lambda: gradtx.create_optimizer(params, "adamw", lr=scheduler),
    ):
        with pytest.raises(TypeError, match="adamw: lr must be a number") as e:
            call()
        assert rest in str(e.value)
        assert " object at 0x" not in str(e.value)
    for call in (
        lambda: gradtx.as_lr_scheduler(scheduler.optimizer, scheduler),
        lambda: gradtx.join_schedules([scheduler, scheduler], [1]),
        lambda: gradtx.sgd(lr=torch.optim.lr_scheduler.StepLR),
    ):
        with pytest.raises(TypeError) as e:
            call()
        assert rest in str(e.value)


@pytest.mark.parametrize("number", [torch.tensor(1j), torch.tensor(True)], ids=["complex", "bool"])
def test_a_tensor_that_is_no_real_number_is_refused(number):
    with pytest.raises(TypeError, match="adam: lr must be a number"):
        gradtx.adam(lr=number)
