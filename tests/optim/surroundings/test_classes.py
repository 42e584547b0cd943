"""The generated classes: real signatures and docstrings, real torch optimizers, torch's errors."""

import functools
import inspect
import itertools
import pickle
import re
import subprocess
import sys
import threading
from typing import get_args, get_type_hints

import pytest
import torch

import gradtx
from gradtx.base.other_libraries import HINTS_OF_OPTIONS, OPTIONS
from gradtx.optim import ChainOptimizer, classes
from gradtx.optim.classes import CLASSES
from gradtx.optim.engine import Engine
from gradtx.optim.groups import ENGINE_OPTIONS
from tests.conformance import example, examples_of, residuals
from tests.optim.problems import assert_close, assert_equal, descend, loss_of, parameters, set_gradients, values
from tests.tiers import by_day

ALIASES = {cls.__name__: getattr(gradtx, alias) for alias, cls in CLASSES.items()}


def test_every_alias_has_a_class():
    aliases = {name for name in gradtx.__all__ if getattr(getattr(gradtx, name), "spec", None)}
    aliases = {getattr(gradtx, name) for name in aliases if getattr(gradtx, name).spec.kind == "alias"}
    assert aliases == set(ALIASES.values())
    assert set(gradtx.optim.__all__) >= set(ALIASES)


@pytest.mark.parametrize("name", ALIASES)
def test_a_class_has_the_signature_of_its_alias_after_params(name):
    own = list(inspect.signature(getattr(gradtx.optim, name)).parameters.values())
    expected = list(inspect.signature(ALIASES[name]).parameters.values())
    assert own[0].name == "params"
    assert own[1 : 1 + len(expected)] == expected


@pytest.mark.parametrize("name", ALIASES)
def test_a_class_documents_all_its_arguments_and_has_a_name_to_pickle_it_by(name):
    cls = getattr(gradtx.optim, name)
    of_alias = inspect.getdoc(ALIASES[name])
    before, source = of_alias.partition("Args:")[0], of_alias.index("Source:")
    assert before in cls.__doc__
    assert of_alias[source:] in cls.__doc__
    entries = re.findall(r"^Args:\n((?:    .*\n?|\n(?=    ))*)", cls.__doc__, re.MULTILINE)
    documented = re.findall(r"^    (\w+): ", "".join(entries), re.MULTILINE)
    _, *arguments = inspect.signature(cls).parameters
    assert documented == arguments
    assert (cls.__name__, cls.__qualname__, cls.__module__) == (name, name, "gradtx.optim")
    assert issubclass(cls, torch.optim.Optimizer)


@pytest.mark.parametrize("name", ALIASES)
def test_a_class_says_what_a_class_does_not_what_a_transformation_does(name):
    cls = getattr(gradtx.optim, name)
    said = inspect.getdoc(cls)
    assert not re.search(r"^Returns:|A transformation|tx\.update|`params` is missing(?: although|[,.])", said, re.M)
    for state in re.findall(r"\bState: (.*?)\n\n", inspect.getdoc(ALIASES[name]), re.DOTALL):
        assert " ".join(state.split()) in " ".join(said.split())
    (call,) = re.findall(r"^    >>> optimizer = (.*)$", said, re.MULTILINE)
    model = torch.nn.Linear(2, 2, bias=False)
    assert type(eval(call, {"gradtx": gradtx, "model": model})) is cls
    needs_closure = {"value", "value_fn", "grad_fn"} & {*ALIASES[name](**example(ALIASES[name])).needs}
    assert ("optimizer.step(closure)" in said) == bool(needs_closure)


@pytest.mark.parametrize("name", ALIASES)
def test_tools_that_read_types_find_those_of_a_constructor(name):
    hints = get_type_hints(getattr(gradtx.optim, name).__init__)
    _, *arguments = inspect.signature(getattr(gradtx.optim, name).__init__).parameters
    assert hints.keys() - {"return"} <= set(arguments)
    assert {"params", "compile"} <= hints.keys()


@pytest.mark.parametrize("name", ["adamw", "muon", "prodigy"])
def test_tools_that_read_types_find_those_of_a_function_with_their_ranges(name):
    function = getattr(gradtx, name)
    hints = get_type_hints(function, include_extras=True)
    assert set(hints) == {*inspect.signature(function).parameters, "return"}
    assert get_args(hints["lr"])[-1] == "[0, inf)"
    assert hints["return"] is gradtx.GradientTransformation


def test_tools_that_read_types_find_those_of_the_base_class():
    assert get_type_hints(ChainOptimizer.__init__)["compile"] == bool | Engine


@pytest.mark.parametrize("module", [gradtx.optim, gradtx.optim.classes], ids=["optim", "classes"])
def test_completion_and_tools_that_list_members_find_all_classes(module):
    assert set(ALIASES) <= set(dir(module))
    assert set(ALIASES) <= {name for name, value in inspect.getmembers(module, inspect.isclass)}


def test_dir_shows_what_a_user_needs():
    shown = {name for name in dir(gradtx) if not name.startswith("__")}
    assert shown == set(gradtx.__all__)
    assert {name for name in dir(gradtx.optim) if not name.startswith("__")} == set(gradtx.optim.__all__)


def test_classes_are_found_by_short_names_only_where_users_derive_them():
    """torch's names stay torch's, for tools that go through subclasses, whatever was used before."""

    class Mine(gradtx.optim.Lion):
        pass

    def below(cls):
        return {cls, *(found for subclass in cls.__subclasses__() for found in below(subclass))}

    found = below(torch.optim.Optimizer)
    assert Mine in found
    assert [cls for cls in found if cls.__module__ == "gradtx.optim"] == []
    assert issubclass(gradtx.optim.Lion, torch.optim.Optimizer)


def test_threads_that_ask_for_a_class_at_the_same_moment_get_one():
    command = (
        "import sys, threading, gradtx, gradtx.optim as optim\n"
        "sys.setswitchinterval(1e-6)\n"
        "names = ['Lion', 'AdamP', 'SOAP', 'Muon', 'Prodigy', 'LBFGS', 'Adan', 'Yogi']\n"
        "found, start = [], threading.Barrier(8)\n"
        "def ask():\n"
        "    start.wait()\n"
        "    found.append([getattr(optim, name) for name in names])\n"
        "threads = [threading.Thread(target=ask) for _ in range(8)]\n"
        "for thread in threads: thread.start()\n"
        "for thread in threads: thread.join()\n"
        "assert len(found) == 8\n"
        "for classes in zip(*found): assert len(set(classes)) == 1, classes\n"
    )
    run = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_an_alias_of_a_user_has_one_class_also_in_threads_that_ask_at_the_same_moment():
    aliases = []
    for i in range(8):

        def momentum_sgd(lr: gradtx.Scalar = 0.1):
            return gradtx.chain(gradtx.trace(0.9), gradtx.scale_by_learning_rate(lr))

        momentum_sgd.__name__ = f"momentum_sgd_{i}"
        aliases.append(gradtx.alias(momentum_sgd))
    found, start = [], threading.Barrier(8)

    def ask():
        start.wait()
        found.append([gradtx.optimizer_class(alias) for alias in aliases])

    threads, interval = [threading.Thread(target=ask) for _ in range(8)], sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert len(found) == 8
    for alias, *of_threads in zip(aliases, *found, strict=True):
        later = gradtx.optimizer_class(alias), gradtx.load_optimizer(alias.spec.name)
        assert {*of_threads, *later} == {of_threads[0]}


@pytest.mark.parametrize("name", ALIASES)
def test_an_optimizer_of_a_class_has_a_pickle(name):
    optimizer = getattr(gradtx.optim, name)(parameters().values(), **example(ALIASES[name]))
    assert repr(pickle.loads(pickle.dumps(optimizer))) == repr(optimizer)


@pytest.mark.parametrize(
    "name", ["SGD", "Adam", "AdamW", "RAdam", "Adagrad", "Adadelta", "RMSprop", "Rprop", "Adamax", "NAdam"]
)
def test_options_that_torch_takes_by_position_are_taken_by_position(name):
    theirs = inspect.signature(getattr(torch.optim, name)).parameters.values()
    positional = [p.name for p in theirs if p.kind is p.POSITIONAL_OR_KEYWORD]
    # Arguments after one of torch's implementation options cannot be passed by position alone.
    positional = list(itertools.takewhile(lambda name: name not in ENGINE_OPTIONS, positional))
    own = inspect.signature(getattr(gradtx.optim, name)).parameters.values()
    assert [p.name for p in own if p.kind is p.POSITIONAL_OR_KEYWORD] == positional


@by_day(
    "ASGD", "Adam", "QHM", "AdaTAM", "AdamW", "AdamS", "Adadelta", "AdaBound", "SWATS", "Kate", "LARS", "Muon",
    "AdamH", "NorMuon", "SOAPLaProp", "Fira", "ApolloDQN", "DAdaptLion", "LDoG", "ScheduleFreeSGD", "MARS", "FTRL",
    "Tiger",
)  # fmt: skip
@pytest.mark.parametrize("name", ALIASES)
def test_a_class_takes_the_steps_of_as_optimizer(name):
    required, results = example(ALIASES[name]), []
    for make in (
        getattr(gradtx.optim, name),
        lambda params, **given: gradtx.as_optimizer(ALIASES[name](**given), params),
    ):
        params = parameters()
        optimizer = make(params.values(), **required)
        for _ in range(5):
            optimizer.step(closure_of(optimizer, params))  # provides every extra that a link may need
        results.append(values(params))
    assert_equal(*results)


def closure_of(optimizer, params):
    kinds, _ = optimizer._tx._requirements()
    if "residual_fn" in kinds:  # in place of a loss
        return lambda: residuals(params)

    def closure():
        optimizer.zero_grad()
        loss = loss_of(params)
        if torch.is_grad_enabled():  # not for estimates from losses alone
            loss.backward()
            for param in params.values():
                param.grad_sample = examples_of(param.grad)
        return loss

    return closure


def test_arguments_may_come_by_position_or_by_name():
    params = list(parameters().values())
    by_position, by_name = (
        gradtx.optim.AdamW(params, 0.1, (0.5, 0.6)),
        gradtx.optim.AdamW(betas=(0.5, 0.6), params=params, lr=0.1),
    )
    assert by_position.param_groups == by_name.param_groups


def test_state_dtype_is_an_argument_of_the_classes():
    params = parameters(torch.bfloat16)
    optimizer = gradtx.optim.AdamW(params.values(), state_dtype=torch.float32)
    states = optimizer.state_dict()["state"].values()
    assert {state["exp_avg"].dtype for state in states} == {torch.float32}


@pytest.mark.parametrize("name", ALIASES)
def test_the_defaults_of_an_optimizer_make_another_like_it(name):
    """Trainers and torch itself call `type(opt)(params, **opt.defaults)`."""
    cls, param, options = getattr(gradtx.optim, name), torch.nn.Parameter(torch.ones(3, 3)), example(ALIASES[name])
    others = [{}]
    arguments = inspect.signature(cls).parameters
    if "lr" in arguments and "relative_step" not in arguments:
        others.append({"lr": gradtx.Schedule(lambda step: 0.1 / (1 + step))})
    if cls([param], **options).state[param].keys() != {"step"}:
        others.append({"state_dtype": torch.float64})
    for other in others:
        optimizer = cls([param], **{**options, **other})
        again = type(optimizer)([param], **optimizer.defaults)
        assert repr(again._tx) == repr(optimizer._tx)
        assert again.defaults == optimizer.defaults


def test_repr_shows_the_class_and_every_hyperparameter_of_every_group():
    params = parameters()
    text = repr(gradtx.optim.SGD(params.values(), lr=gradtx.linear_schedule(0.5, start_factor=0.5), momentum=0.9))
    assert text.startswith(
        "SGD (\nParameter Group 0\n    dampening: 0.0\n    lr: 0.25\n    maximize: False\n    momentum: 0.9"
    )


@pytest.mark.parametrize(
    ("name", "remedy"), [("adamw", "did you mean 'AdamW'?"), ("ADOPT_atan2", "did you mean 'AdoptAtan2'?"),
                         ("sam", "gradtx.sam is a link, not an optimizer: chain it with one, or wrap one with it")]
)  # fmt: skip
def test_a_class_in_another_spelling_is_an_error_that_names_it(name, remedy):
    with pytest.raises(AttributeError, match=re.escape(f"gradtx.optim has no {name!r}; {remedy}")):
        getattr(gradtx.optim, name)


def test_a_class_may_be_subclassed():
    class Mine(gradtx.optim.AdamW):
        def __init__(self, params, depth=1):
            super().__init__(params, lr=0.1 / depth)
            self.steps = 0

        def step(self, closure=None):
            self.steps += 1
            return super().step(closure)

    params, others = parameters(), parameters()
    optimizer = Mine(params.values(), depth=2)
    descend(optimizer, params, 3)
    descend(gradtx.optim.AdamW(others.values(), lr=0.05), others, 3)
    assert optimizer.steps == 3
    assert list(inspect.signature(Mine).parameters) == ["params", "depth"]
    assert_equal(values(params), values(others))


# torch's errors for invalid parameters.


BAD = {
    "an empty list": lambda: [],
    "an exhausted generator": lambda: iter(()),
    "a tensor": lambda: torch.zeros(2, requires_grad=True),
    "a non-leaf": lambda: [torch.zeros(2, requires_grad=True) * 2],
    "a number": lambda: [1.0],
    "an array": lambda: [[1.0, 2.0]],
    "a set": lambda: [{"params": {torch.nn.Parameter(torch.zeros(2))}}],
    "nothing": lambda: None,
    "a number in place of a list": lambda: 3,
    "a group without params": lambda: [{"lr": 0.1}],
    "a group after parameters": lambda: [torch.nn.Parameter(torch.zeros(2)), {"params": []}],
    "a parameter in two groups": lambda: [{"params": [p]} for p in [torch.nn.Parameter(torch.zeros(2))] * 2],
    "names for some": lambda: [("a", torch.nn.Parameter(torch.zeros(2))), torch.nn.Parameter(torch.zeros(2))],
    "names in one group": lambda: [
        {"params": [("a", torch.nn.Parameter(torch.zeros(2)))]},
        {"params": [torch.nn.Parameter(torch.zeros(2))]},
    ],
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_parameters_are_refused_with_torchs_type_of_error(bad):
    with pytest.raises((TypeError, ValueError, KeyError)) as expected:
        torch.optim.AdamW(BAD[bad]())
    with pytest.raises(expected.type):
        gradtx.optim.AdamW(BAD[bad]())


def test_a_parameter_twice_in_a_group_is_torchs_warning():
    param = torch.nn.Parameter(torch.zeros(2))
    with pytest.warns(UserWarning, match="duplicate parameters"):
        gradtx.optim.AdamW([param, param])


def test_integer_parameters_are_refused_by_name():
    with pytest.raises(TypeError, match=r"'w' has dtype torch.int64, needs a floating-point one"):
        gradtx.optim.SGD([("w", torch.zeros(2, dtype=torch.int64))])


def test_complex_parameters_are_refused_with_the_reason_and_the_remedy_where_a_link_reads_rows():
    with pytest.raises(TypeError, match=r"'w' is complex, which this link does not support.* keep torch\.view_as_real"):
        gradtx.optim.Muon([("w", torch.zeros(2, 3, dtype=torch.complex64))])


def test_a_group_that_is_refused_leaves_the_optimizer_as_it_was():
    params = parameters()
    optimizer = gradtx.optim.AdamW(params.values())
    descend(optimizer, params, 2)
    groups, state = list(optimizer.param_groups), dict(optimizer.state)
    fresh = torch.nn.Parameter(torch.zeros(2))
    for group, error in (
        ({"params": [fresh], "lr": -1.0}, ValueError),
        ({"params": [fresh], "differentiable": True}, TypeError),
        ({"params": [params["body.bias"]]}, ValueError),
        ({"params": [torch.zeros(2, dtype=torch.int64)]}, TypeError),
        ([fresh], TypeError),
    ):
        with pytest.raises(error):
            optimizer.add_param_group(group)
    assert optimizer.param_groups == groups
    assert optimizer.state == state
    optimizer.add_param_group({"params": [fresh]})
    descend(optimizer, {**params, "fresh": fresh}, 1)


@pytest.mark.parametrize("params", [None, [], 3])
def test_as_optimizer_says_what_it_needs(params):
    with pytest.raises(TypeError, match=r"tx must be a GradientTransformation, got .*sgd.*; call it"):
        gradtx.as_optimizer(gradtx.sgd, params)


def test_a_pattern_without_a_match_is_an_error_that_tells_of_named_parameters():
    params = parameters()
    tx = gradtx.chain(gradtx.adam(), gradtx.freeze("head.*"))
    gradtx.as_optimizer(tx, list(params.items()))
    with pytest.raises(ValueError, match=r"'head.\*' matches no leaf.*pass model.named_parameters\(\)"):
        gradtx.as_optimizer(tx, params.values())
    with pytest.raises(ValueError, match=r"freeze: 'tail.\*' matches no leaf; leaves: body.weight, body.bias") as error:
        gradtx.as_optimizer(gradtx.chain(gradtx.adam(), gradtx.freeze("tail.*")), list(params.items()))
    assert "named_parameters" not in str(error.value)


def test_a_leaf_without_label_is_an_error_that_names_it():
    tx = gradtx.partition({"body": gradtx.sgd()}, {"body": "body.*"})
    with pytest.raises(ValueError, match=r"partition: leaf 'head\.weight' has no label"):
        gradtx.as_optimizer(tx, list(parameters().items()))


@pytest.mark.parametrize(
    "make",
    [
        lambda params, **options: gradtx.optim.SOAP(params, **options),
        lambda params, **options: gradtx.as_optimizer(gradtx.soap(), params, **options),
    ],
    ids=["class", "as_optimizer"],
)
def test_a_process_group_and_a_device_of_the_state_exclude_each_other(make):
    params = [torch.nn.Parameter(torch.ones(2, 2))]
    with pytest.raises(ValueError, match="process_group cannot be combined with state_device"):
        make(params, process_group=object(), state_device="cpu")


# Mistakes of those who know torch.


MODEL = torch.nn.Linear(2, 2)
PARAMETERS = {
    "parameters()": MODEL.parameters,
    "named_parameters()": MODEL.named_parameters,
    "a list of tensors": lambda: list(MODEL.parameters()),
    "a list of plain tensors": lambda: [torch.zeros(2, requires_grad=True)],
    "named tensors": lambda: list(MODEL.named_parameters()),
    "groups": lambda: [{"params": list(MODEL.parameters())}],
    "a generator": lambda: (p for p in MODEL.parameters()),
    "a dict": lambda: dict(MODEL.named_parameters()),
    "a parameter": lambda: MODEL.weight,
    "a model": lambda: MODEL,
}


@pytest.mark.parametrize("given", PARAMETERS)
@pytest.mark.parametrize("name", ["AdamW", "Muon"])
def test_parameters_passed_to_an_alias_are_an_error_that_names_its_class_and_as_optimizer(name, given):
    alias = ALIASES[name]
    remedy = rf".* gradtx.as_optimizer\({alias.__name__}\(...\), params\) or a class of gradtx.optim"
    with pytest.raises(TypeError, match=rf"{alias.__name__}: takes hyperparameters, got .*; {remedy}"):
        alias(PARAMETERS[given](), lr=1e-3)


def test_parameters_passed_to_an_alias_by_name_get_the_same_remedy():
    with pytest.raises(TypeError, match=r"adamw: unknown argument 'params'; .* a class of gradtx.optim"):
        gradtx.adamw(params=MODEL.parameters(), lr=1e-3)


def test_parameters_passed_to_a_link_or_an_alias_of_ones_own_get_as_optimizer_as_remedy():
    for factory in (gradtx.scale_by_adam, gradtx.clip_by_global_norm, damped):
        with pytest.raises(TypeError, match=rf"got .* gradtx.as_optimizer\({factory.__name__}\(...\), params\)"):
            factory(MODEL.parameters())


def test_numbers_in_tensors_are_no_parameters():
    betas = [torch.nn.Parameter(torch.tensor(0.9)), torch.tensor(0.99)]
    assert gradtx.scale_by_adam(betas).hyperparams["betas"][0] is betas[0]
    assert gradtx.adamw(torch.nn.Parameter(torch.tensor(0.1))).hyperparams["lr"].ndim == 0


# Classes of a user's aliases.


@gradtx.alias
def damped(lr: gradtx.Scalar = 1e-3, *, weight_decay: gradtx.Scalar = 0.0):
    """Gradient descent.

    Args:
        lr: The rate.
        weight_decay: The decay.
    """
    return gradtx.chain(gradtx.add_decayed_weights(weight_decay), gradtx.scale_by_learning_rate(lr))


Damped = gradtx.optimizer_class(damped)


@pytest.fixture
def _registered(monkeypatch):
    monkeypatch.setattr(classes, "_classes_of_users", {"damped": Damped})


def test_a_class_of_ones_own_alias_steps_pickles_and_makes_another_like_it():
    params = parameters()
    own = parameters()
    options = {"lr": 0.5, "weight_decay": 0.1, "mask": lambda name, p: p.ndim > 1}
    optimizer = Damped(params.values(), **options)
    descend(optimizer, params, 3)
    descend(gradtx.optim.SGD(own.values(), **options), own, 3)
    assert_close(params.values(), own.values(), 1e-12)
    assert type(optimizer)(params.values(), **optimizer.defaults).defaults == optimizer.defaults
    again = pickle.loads(pickle.dumps(Damped(params.values(), lr=0.5)))
    assert type(again) is Damped
    assert again.param_groups[0]["lr"] == 0.5


@pytest.mark.usefixtures("_registered")
def test_a_class_of_ones_own_alias_is_known_by_the_names_of_both():
    for name in ("damped", "Damped", "DAMPED"):
        assert gradtx.load_optimizer(name) is Damped
    assert type(gradtx.create_optimizer(MODEL, "damped", lr=0.1, weight_decay=0.1)) is Damped
    assert gradtx.get_supported_optimizers("damp*") == ["damped"]


def test_a_class_of_ones_own_alias_documents_what_the_alias_and_the_optimizer_accept():
    for name in ("lr", "weight_decay", "maximize", "mask", "state_dtype", "compile", "process_group", "capturable"):
        assert f"\n    {name}: " in Damped.__doc__
        assert name in inspect.signature(Damped).parameters


def test_the_class_of_an_alias_of_gradtx_is_its_class_in_optim():
    assert gradtx.optimizer_class(gradtx.adamw) is gradtx.optim.AdamW


def test_what_is_no_alias_or_has_the_name_of_an_optimizer_gets_no_class():
    with pytest.raises(TypeError, match=r"optimizer_class: needs an alias, got trace; decorate a function"):
        gradtx.optimizer_class(gradtx.trace)

    @gradtx.alias
    def adam_w(lr: gradtx.Scalar = 1e-3):
        return gradtx.sgd(lr)

    with pytest.raises(ValueError, match="optimizer_class: gradtx has an optimizer 'adam_w'; rename the alias"):
        gradtx.optimizer_class(adam_w)

    @gradtx.alias
    def needy(tx: gradtx.GradientTransformation):
        return gradtx.chain(tx, gradtx.sgd())

    with pytest.raises(TypeError, match="needy: give 'tx' a default"):
        gradtx.optimizer_class(needy)


def test_an_alias_may_require_numbers():
    @gradtx.alias
    def demanding(lr: gradtx.Positive, steps: gradtx.Count):
        return gradtx.chain(gradtx.hold_until(steps), gradtx.sgd(lr))

    optimizer = gradtx.optimizer_class(demanding)([torch.nn.Parameter(torch.ones(1))], lr=0.1, steps=3)
    assert optimizer.param_groups[0]["steps"] == 3


# torch's Adafactor and the paper's.


def test_adafactor_is_torchs_class_and_ada_factor_the_papers():
    assert gradtx.optim.Adafactor._alias is gradtx.adafactor_torch
    assert gradtx.optim.AdaFactor._alias is gradtx.adafactor
    assert gradtx.load_optimizer("Adafactor") is gradtx.optim.Adafactor
    assert gradtx.load_optimizer("AdaFactor") is gradtx.optim.AdaFactor
    assert gradtx.load_optimizer("adafactor") is gradtx.optim.AdaFactor
    assert gradtx.load_optimizer("adafactor_torch") is gradtx.optim.Adafactor


def test_every_class_named_as_in_torch_has_torchs_arguments():
    for name in set(gradtx.optim.__all__) & set(vars(torch.optim)):
        theirs = inspect.signature(getattr(torch.optim, name)).parameters
        ours = inspect.signature(getattr(gradtx.optim, name)).parameters
        elsewhere = {*ENGINE_OPTIONS, "foreach", "fused", "differentiable", "capturable", *HINTS_OF_OPTIONS, *OPTIONS}
        assert set(theirs) - set(ours) <= elsewhere, name


@pytest.mark.parametrize("name", ALIASES)
def test_code_that_filters_options_by_the_signature_of_init_drops_none(name):
    cls = getattr(gradtx.optim, name)
    _, *arguments = inspect.signature(cls.__init__).parameters.values()
    assert arguments == list(inspect.signature(cls).parameters.values())
    assert cls.__init__.__qualname__ == f"{name}.__init__"
    assert cls.__init__.__module__ == cls.__module__


def test_filtered_options_reach_a_users_subclass():
    class Mine(gradtx.optim.AdamW):
        pass

    options = {"lr": 0.5, "betas": (0.5, 0.75), "epochs": 3}
    accepted = {k: v for k, v in options.items() if k in inspect.signature(Mine.__init__).parameters}
    optimizer = Mine([torch.nn.Parameter(torch.ones(1))], **accepted)
    assert (optimizer.defaults["lr"], optimizer.defaults["betas"]) == (0.5, (0.5, 0.75))


def test_a_partial_call_with_the_transformation_by_name_makes_an_optimizer():
    """As frameworks build optimizers: `_partial_: true` of Hydra, `optimizer_factory(params)` of others."""
    make = functools.partial(gradtx.as_optimizer, tx=gradtx.adamw(lr=0.5), seed=3)
    params = [torch.nn.Parameter(torch.ones(1))]
    assert make(params).param_groups[0]["lr"] == make(params=params).param_groups[0]["lr"] == 0.5
    with pytest.raises(TypeError, match="tx"):
        gradtx.as_optimizer(gradtx.sgd(), params, tx=gradtx.adamw())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("AdamW", {"state_dtype": "int8", "mask": lambda name, p: p.ndim > 1, "correct_bias": False}),
        ("SGD", {"state_dtype": torch.float64, "momentum": 0.5}),
        ("Muon", {"fallback": gradtx.adamw(lr=0.25), "ns_dtype": torch.float64}),
    ],
)
def test_groups_of_two_optimizers_in_one_keep_the_options_of_both(name, options):
    """As torchrl merges the optimizers of actor and critic: `type(first)([*first.param_groups, ...])`."""
    cls = getattr(gradtx.optim, name)
    ours, theirs = parameters(), parameters()

    def parts_of(params):
        """Two optimizers with other rates, of every second parameter each."""
        halves = list(params.values())[::2], list(params.values())[1::2]
        return [cls(half, lr=rate, **options) for half, rate in zip(halves, (0.1, 0.2), strict=True)]

    parts = parts_of(ours)
    merged = cls([group for part in parts for group in part.param_groups])
    expected = parts_of(theirs)
    for step in range(3):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        for optimizer in (merged, *expected):
            optimizer.step()
    assert_equal(values(ours), values(theirs))


def test_options_that_are_passed_replace_those_of_the_optimizer_whose_groups_are_passed():
    first = gradtx.optim.AdamW([torch.nn.Parameter(torch.ones(2))], state_dtype="int8", mask="*", lr=0.5)
    second = gradtx.optim.AdamW(first.param_groups, state_dtype=torch.float64)
    assert (second.defaults["state_dtype"], second.defaults["mask"]) == (torch.float64, "*")
    assert "mask" not in gradtx.optim.AdamW([dict(first.param_groups[0])]).defaults
