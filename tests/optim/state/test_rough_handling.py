"""Changes that users of torch.optim make to its optimizers behind their backs."""

import re

import pytest
import torch

import gradtx
from tests.optim.problems import (
    assert_close,
    assert_equal,
    both,
    descend,
    gradient,
    parameters,
    set_gradients,
    unchanged,
    values,
)

TOLERANCE = 1e-12  # the same float64 sums in a different order


def test_data_of_a_parameter_may_be_exchanged_and_written():
    def run(module):
        params = parameters()
        optimizer = module.AdamW(params.values(), lr=0.1)
        for t in range(4):
            params["body.weight"].data = params["body.weight"].data.clone() * 0.9
            params["body.bias"].data.mul_(0.9)
            descend(optimizer, params, 1, start=t)
        return params.values()

    assert_close(*both(run), tolerance=TOLERANCE)


def test_parameters_whose_requires_grad_changes_step_whenever_they_have_a_gradient():
    def run(module):
        params = parameters()
        optimizer = module.AdamW(params.values(), lr=0.1)
        for t in range(6):
            params["body.bias"].requires_grad_(t % 2 == 0)
            optimizer.zero_grad()
            sum((param * (t + 1)).sin().sum() for param in params.values()).backward()
            optimizer.step()
        return params.values()

    assert_close(*both(run), tolerance=TOLERANCE)


class OwnParameter(torch.nn.Parameter):
    """A parameter with attributes of a framework."""


class OwnTensor(torch.Tensor):
    """A tensor with methods of a framework."""


@pytest.mark.slow
@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("kind", [torch.nn.Parameter, OwnParameter, lambda value: value.as_subclass(OwnTensor)])
@pytest.mark.parametrize("place", ["parameter", "gradient", "slot"])
def test_tensors_of_another_class_step_as_plain_ones(place, kind, compile):
    param, twin = (next(iter(parameters().values())) for _ in range(2))
    if place == "parameter":
        param = kind(param.detach()).requires_grad_()
    ours = gradtx.optim.SGD([param], lr=0.1, momentum=0.5, compile=compile)
    theirs = torch.optim.SGD([twin], lr=0.1, momentum=0.5)
    for t in range(4):
        twin.grad = gradient(twin, t)
        param.grad = kind(twin.grad.clone()) if place == "gradient" and t != 1 else twin.grad.clone()
        if place == "slot" and t == 2:
            ours.state[param]["momentum_buffer"] = kind(ours.state[param]["momentum_buffer"].clone())
        ours.step()
        theirs.step()
        assert_close([param.detach().as_subclass(torch.Tensor)], [twin.detach()], TOLERANCE)


def test_tied_parameters_of_a_model_are_one():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    model[1].weight = model[0].weight
    optimizer = gradtx.as_optimizer(gradtx.sgd(lr=1.0), model.named_parameters())
    assert optimizer.param_groups[0]["param_names"] == ["0.weight", "0.bias", "1.bias"]
    before = model[0].weight.detach().clone()
    model(torch.ones(1, 3)).sum().backward()
    expected = before - model[0].weight.grad
    optimizer.step()
    assert_equal(model[1].weight.detach(), expected)


def test_a_model_in_place_of_its_parameters_is_an_error_that_says_what_to_pass():
    tx, remedy = gradtx.adamw(), "pass model.parameters() or model.named_parameters()"
    for model in (torch.nn.Linear(1, 1), torch.nn.Sequential(torch.nn.Linear(1, 1)), torch.nn.ParameterDict()):
        message = f": needs parameters, got {type(model).__name__}.*; {re.escape(remedy)}$"
        with pytest.raises(TypeError, match=f"^ChainOptimizer{message}"):
            gradtx.as_optimizer(tx, model)
        with pytest.raises(TypeError, match=f"^AdamW{message}"):
            gradtx.optim.AdamW(model)
        with pytest.raises(TypeError, match=f"^AdamW{message}"):
            gradtx.optim.AdamW([{"params": model}])
    both(lambda module: module.AdamW(torch.nn.ParameterList([torch.zeros(1)])).param_groups[0]["params"])


# Chains in the wrong order. The warning comes where the chain is written, also for pure functions.


@gradtx.alias
def twice(lr: gradtx.Scalar = 0.1):
    return gradtx.chain(gradtx.sgd(lr), gradtx.adam(lr))


BOTH = "and both scale by a learning rate, which flips the sign twice, so the loss increases; remove one of them"
DECAYS = "which has already flipped the sign, so it pulls the weights the wrong way; move it before the learning rate"
NO_EFFECT = "but its updates do not depend on the length of what it receives, so the learning rate has no effect"
STEPS = "so it bounds steps, which include the learning rate, in place of gradients"
MEANT = "(or add scale(1.0) to the chain if this is intended)"
SGD = gradtx.sgd(lr=0.1)
RATE = gradtx.scale_by_learning_rate(1e-3)
WRONG = {
    "two aliases": (f"chain: adam follows sgd, {BOTH}", lambda: gradtx.chain(SGD, gradtx.adam())),
    "the same one twice": (f"chain: sgd follows sgd, {BOTH}", lambda: gradtx.chain(SGD, SGD)),
    "a link behind an alias": (
        f"chain: scale_by_learning_rate follows sgd, {BOTH}",
        lambda: gradtx.chain(gradtx.centralize(), SGD, gradtx.trace(0.9), gradtx.scale_by_learning_rate(0.1)),
    ),
    "an owner of the rate": (f"chain: prodigy follows sgd, {BOTH}", lambda: gradtx.chain(SGD, gradtx.prodigy())),
    "inside a wrapper": (
        f"chain: adam follows sgd, {BOTH}",
        lambda: gradtx.accumulate(gradtx.chain(SGD, gradtx.adam()), every=2),
    ),
    "inside an alias": (f"twice: adam follows sgd, {BOTH}", lambda: gradtx.chain(gradtx.centralize(), twice())),
    "behind a wrapper": (
        f"chain: adam follows accumulate, {BOTH}",
        lambda: gradtx.chain(gradtx.accumulate(SGD, every=2), gradtx.adam()),
    ),
    "in chains of chains, once": (
        f"chain: adam follows sgd, {BOTH}",
        lambda: gradtx.chain(gradtx.chain(SGD, gradtx.adam()), gradtx.average(0.9)),
    ),
    "across chains": (
        f"chain: adam follows sgd, {BOTH}",
        lambda: gradtx.chain(gradtx.chain(gradtx.centralize(), SGD), gradtx.adam()),
    ),
    "beside frozen leaves": (
        f"chain: adam follows sgd, {BOTH}",
        lambda: gradtx.chain(gradtx.freeze("0"), SGD, gradtx.adam()),
    ),
    "a decay": (
        f"chain: add_decayed_weights follows sgd, {DECAYS}, or pass fixed=True to it",
        lambda: gradtx.chain(SGD, gradtx.add_decayed_weights(0.1)),
    ),
    "a pull to the start": (
        f"chain: regenerate_towards_init follows sgd, {DECAYS}",
        lambda: gradtx.chain(SGD, gradtx.regenerate_towards_init(0.1)),
    ),
    **{
        f"a rate before {link._name}": (
            f"chain: {link._name} follows scale_by_learning_rate, {NO_EFFECT}; move {link._name} before "
            f"scale_by_learning_rate {MEANT}",
            lambda link=link: gradtx.chain(RATE, link),
        )
        for link in (
            gradtx.scale_by_adam(),
            gradtx.scale_by_sign(),
            gradtx.normalize_by_global_norm(),
            gradtx.orthogonalize(),
            gradtx.scale_by_trust_ratio(),
        )
    },
    "an optimizer before what normalizes": (
        f"chain: scale_by_adam follows sgd, {NO_EFFECT}; move scale_by_adam before sgd {MEANT}",
        lambda: gradtx.chain(SGD, gradtx.trace(0.9), gradtx.scale_by_adam()),
    ),
    **{
        f"{link._name} behind an optimizer": (
            f"chain: {link._name} follows adamw, {STEPS}; move {link._name} before adamw {MEANT}",
            lambda link=link: gradtx.chain(gradtx.adamw(), link),
        )
        for link in (
            gradtx.clip_by_value(1.0),
            gradtx.clip_by_norm(1.0),
            gradtx.clip_by_global_norm(1.0),
            gradtx.clip_by_block_rms(1.0),
            gradtx.clip_adaptive(),
        )
    },
    "a clip behind branches": (
        f"chain: clip_by_norm follows muon, {STEPS}; move clip_by_norm before muon {MEANT}",
        lambda: gradtx.chain(gradtx.muon(), gradtx.clip_by_norm(1.0)),
    ),
}


@pytest.mark.parametrize(("fault", "make"), WRONG.values(), ids=WRONG)
@pytest.mark.filterwarnings("error:chain:UserWarning")
def test_a_chain_in_the_wrong_order_is_warned_of_once_where_it_is_written(fault, make):
    with pytest.warns(UserWarning, match=f"^{re.escape(fault)}$") as found:
        tx = make()
    assert [(warning.filename, len(found)) for warning in found] == [(__file__, 1)]
    matrix = torch.nn.Parameter(torch.ones(2, 2))
    gradtx.as_optimizer(tx, [matrix])  # says nothing more: warnings are errors in these tests


EARLY = {
    "average": ("average", "scale_by_learning_rate", lambda: gradtx.chain(gradtx.average(0.9), SGD)),
    "behind other links": (
        *("lookahead", "add_decayed_weights"),
        lambda: gradtx.chain(gradtx.lookahead(), gradtx.centralize(), gradtx.adamw()),
    ),
    "a wrapper behind it": (
        *("map_after_step", "accumulate"),
        lambda: gradtx.chain(gradtx.map_after_step(torch.relu), gradtx.accumulate(SGD, every=2)),
    ),
    "inside a branch": (
        *("average", "scale_by_learning_rate"),
        lambda: gradtx.partition({"a": gradtx.chain(gradtx.average(0.9), SGD), "b": SGD}, {"a": "0", "b": "*"}),
    ),
}


@pytest.mark.parametrize(("early", "late", "make"), EARLY.values(), ids=EARLY)
@pytest.mark.filterwarnings("error:chain:UserWarning")
def test_a_link_for_finished_steps_in_front_of_a_rate_is_warned_of_once(early, late, make):
    fault = f"{early} needs the finished step, but {late} follows it, .*; move {early} after {late}"
    with pytest.warns(UserWarning, match=f"^chain: {fault}$") as found:
        tx = make()
    assert [(warning.filename, len(found)) for warning in found] == [(__file__, 1)]
    gradtx.as_optimizer(tx, parameters().values())


RIGHT = {
    "a decay of fixed size": lambda: gradtx.chain(SGD, gradtx.add_decayed_weights(0.1, fixed=True)),
    "a decay that is off": lambda: gradtx.chain(SGD, gradtx.add_decayed_weights(0.0)),
    "branches": lambda: gradtx.partition({"a": SGD, "b": gradtx.adam()}, {"a": "0", "b": "*"}),
    "one after another": lambda: gradtx.chain(gradtx.masked(SGD, "0"), gradtx.masked(gradtx.adam(), "1")),
    "a wrapper's, whose leaves may be others": lambda: gradtx.chain(
        SGD, gradtx.masked(gradtx.adam(), lambda name, p: False)
    ),
    "a sign that is turned back": lambda: gradtx.chain(SGD, gradtx.scale(-1.0), gradtx.adam()),
    "one that maximizes": lambda: gradtx.chain(gradtx.sgd(lr=0.1, maximize=True), gradtx.adam()),
    "links that come last": lambda: gradtx.chain(SGD, gradtx.lookahead(), gradtx.average()),
    "a clip of steps that is meant": lambda: gradtx.chain(SGD, gradtx.scale(1.0), gradtx.clip_by_value(1.0)),
    "a wrapper and its clock": lambda: gradtx.chain(gradtx.accumulate(SGD, every=2), gradtx.lookahead()),
    "a rule of a user": lambda: gradtx.chain(SGD, follows_anything()),
    "clips that come first": lambda: gradtx.chain(gradtx.clip_by_value(1.0), gradtx.scale_by_adam(), RATE),
}


@gradtx.per_tensor(elementwise=True)
def follows_anything():
    return lambda update, state, param, ctx: (update, state)


@pytest.mark.parametrize("make", RIGHT.values(), ids=RIGHT)
@pytest.mark.filterwarnings("error:chain:UserWarning")
def test_a_chain_that_may_be_meant_is_not_warned_of(make):
    gradtx.as_optimizer(make(), parameters().values())  # warnings are errors in these tests


# Unusual tensors.


def test_parameters_of_size_zero_are_carried_along():
    shapes = {"empty": (0,), "thin": (2, 0), "full": (3,)}
    tx = gradtx.chain(
        gradtx.clip_by_global_norm(1.0),
        gradtx.centralize(),
        gradtx.clip_adaptive(),
        gradtx.adamp(),
        gradtx.lookahead(k=2),
    )
    for made in (
        tx,
        gradtx.adam_atan2(cautious_factor=0.5, orthog_grad=True, regen_reg_rate=0.1, wasserstein_reg=True),
    ):
        params = parameters(shapes=shapes)
        optimizer = gradtx.as_optimizer(made, list(params.items()))
        descend(optimizer, params, 3)
        assert params["full"].isfinite().all()
        optimizer.load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_a_gradient_that_is_sparse_in_its_rows_steps_as_the_dense_one_of_these_rows(name):
    params, others = parameters(), parameters()
    optimizers = [getattr(gradtx.optim, name)(list(each.items())) for each in (params, others)]
    for optimizer, each in zip(optimizers, (params, others), strict=True):
        descend(optimizer, each, 1)
        set_gradients(each, 1)
    params["head.weight"].grad = params["head.weight"].grad.to_sparse(1)
    for optimizer in optimizers:
        optimizer.step()
    assert_equal(values(params), values(others))


@pytest.mark.parametrize("name", ["Lamb", "AdamP"])
def test_a_sparse_gradient_is_a_clear_error_that_changes_nothing(name):
    params = parameters()
    optimizer = getattr(gradtx.optim, name)(list(params.items()))
    descend(optimizer, params, 1)
    params["head.weight"].grad = params["head.weight"].detach().to_sparse(1)
    before = values(params)
    with pytest.raises(RuntimeError, match=f"{name}: parameter 'head.weight' has a sparse gradient.*to_dense"):
        optimizer.step()
    assert_equal(values(params), before)
    params["head.weight"].grad = params["head.weight"].grad.to_dense()
    optimizer.step()


@pytest.mark.parametrize("name", ["SGD", "AdamW", "AdamP"])
def test_a_gradient_that_is_sparse_in_its_entries_is_a_clear_error_that_changes_nothing(name):
    params = parameters()
    optimizer = getattr(gradtx.optim, name)(list(params.items()))
    descend(optimizer, params, 1)
    params["head.weight"].grad = params["head.weight"].detach().to_sparse()
    before = values(params)
    match = f"{name}: .*parameter 'head.weight' .*sparse.*to_dense"
    with pytest.raises(RuntimeError, match=match):
        optimizer.step()
    assert_equal(values(params), before)


def test_gradients_of_several_backward_passes_add_up_until_they_are_zeroed():
    params, others = parameters(), parameters()
    one, other = gradtx.optim.SGD(params.values(), lr=0.1), gradtx.optim.SGD(others.values(), lr=0.1)
    for _ in range(3):
        sum(param.sum() for param in params.values()).backward()
        one.step()
    for scale in (1.0, 2.0, 3.0):
        for param in others.values():
            param.grad = torch.full_like(param, scale)
        other.step()
    assert_equal(values(params), values(others))


# Errors in the middle of a step.


def test_an_error_in_a_rule_leaves_every_parameter_either_before_or_after_its_step():
    fail = []

    @gradtx.per_tensor(compiles=False)  # without a program, it is called at every step
    def count():
        def init(param):
            return {"seen": torch.zeros_like(param)}

        def update(update, state, param, ctx):
            if fail and param.ndim == 0:
                raise RuntimeError("out of memory")
            return -update, {"seen": state["seen"] + 1}

        return init, update

    params, others = parameters(), parameters()
    optimizer = gradtx.as_optimizer(count(), list(params.items()))
    descend(optimizer, params, 1)
    fail.append(True)
    with pytest.raises(RuntimeError, match="out of memory"):
        descend(optimizer, params, 1, start=1)
    fail.clear()
    states = [optimizer.state[param] for param in params.values()]
    assert all((state["seen"] == state["step"]).all() for state in states)
    descend(gradtx.as_optimizer(count(), list(others.items())), others, 2)
    done = [state["step"].item() == 2 for state in states]
    assert_equal([p for p, d in zip(values(params), done, strict=True) if d], values(others)[: sum(done)])


def test_an_error_in_a_chain_with_a_sum_changes_nothing_at_all():
    @gradtx.per_tensor
    def fail_late():
        def update(update, state, param, ctx):
            total = yield {"size": update.abs().sum()}
            if param.ndim == 0:
                raise RuntimeError("out of memory")
            yield update * total["size"], state

        return update

    params = parameters()
    optimizer = gradtx.as_optimizer(
        gradtx.chain(gradtx.trace(0.9), fail_late(), gradtx.clip_by_global_norm(1.0)), params.values()
    )
    set_gradients(params)
    with unchanged(optimizer), pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step()
