"""Changes that users of torch.optim make to its optimizers behind their backs."""

import re

import pytest
import torch

import gradtx
from tests.optim.chains import scale_by_mean_of_trees
from tests.optim.problems import (
    assert_close,
    assert_equal,
    both,
    descend,
    gradient,
    parameters,
    set_gradients,
    twins,
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


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("kind", [torch.nn.Parameter, OwnParameter, lambda value: value.as_subclass(OwnTensor)])
@pytest.mark.parametrize("place", ["parameter", "gradient", "slot"])
def test_tensors_of_another_class_step_as_plain_ones(place, kind, compile, uncompiled):
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


@pytest.mark.parametrize("compile", [False, True])
def test_packed_weights_of_a_quantized_model_are_carried_along_as_in_torch(compile, uncompiled):
    def run(module):
        model = torch.nn.Linear(2, 2).double()
        torch.nn.init.ones_(model.weight)
        torch.nn.init.zeros_(model.bias)
        model.packed = torch.nn.Parameter(torch.arange(4, dtype=torch.uint8), requires_grad=False)
        options = {"compile": compile} if module is gradtx.optim else {}
        optimizer = module.AdamW(model.parameters(), lr=0.1, **options)
        for _ in range(2):
            saved = optimizer.state_dict()
            optimizer = module.AdamW(model.parameters(), lr=0.1, **options)
            optimizer.load_state_dict(saved)
            optimizer.zero_grad()
            model(torch.ones(1, 2).double()).square().sum().backward()
            optimizer.step()
        return list(model.parameters()), sorted(optimizer.state_dict()["state"])

    (ours, entries), (theirs, expected) = both(run)
    assert_close(ours[:2], theirs[:2], TOLERANCE)
    assert torch.equal(ours[2], torch.arange(4, dtype=torch.uint8))
    assert entries == expected


def test_a_tensor_of_integers_that_is_no_parameter_is_refused():
    with pytest.raises(TypeError, match="needs a floating-point one"):
        gradtx.optim.AdamW([torch.arange(3)])


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


# Chains that point in the wrong direction.


@gradtx.alias
def twice(lr: gradtx.Scalar = 0.1):
    return gradtx.chain(gradtx.sgd(lr), gradtx.adam(lr))


BOTH = "and both scale by a learning rate, which flips the sign twice, so the loss increases; remove one of them"
DECAYS = "which has already flipped the sign, so it pulls the weights the wrong way; move it before the learning rate"
SGD = gradtx.sgd(lr=0.1)
WRONG = {
    "two aliases": (f"adam follows sgd, {BOTH}", gradtx.chain(SGD, gradtx.adam())),
    "the same one twice": (f"sgd follows sgd, {BOTH}", gradtx.chain(SGD, SGD)),
    "a link behind an alias": (
        f"scale_by_learning_rate follows sgd, {BOTH}",
        gradtx.chain(gradtx.centralize(), SGD, gradtx.trace(0.9), gradtx.scale_by_learning_rate(0.1)),
    ),
    "an owner of the rate": (f"prodigy follows sgd, {BOTH}", gradtx.chain(SGD, gradtx.prodigy())),
    "inside a wrapper": (f"adam follows sgd, {BOTH}", gradtx.accumulate(gradtx.chain(SGD, gradtx.adam()), every=2)),
    "inside an alias": (f"adam follows sgd, {BOTH}", gradtx.chain(gradtx.centralize(), twice())),
    "a decay": (
        f"add_decayed_weights follows sgd, {DECAYS}, or pass fixed=True to it",
        gradtx.chain(SGD, gradtx.add_decayed_weights(0.1)),
    ),
    "a pull to the start": (
        f"regenerate_towards_init follows sgd, {DECAYS}",
        gradtx.chain(SGD, gradtx.regenerate_towards_init(0.1)),
    ),
}


@pytest.mark.parametrize(("doubt", "tx"), WRONG.values(), ids=WRONG)
def test_a_chain_that_turns_the_sign_twice_is_warned_of_once(doubt, tx):
    with pytest.warns(UserWarning, match=f"^as_optimizer: {re.escape(doubt)}$") as found:
        gradtx.as_optimizer(tx, parameters().values())
    assert [(warning.filename, len(found)) for warning in found] == [(__file__, 1)]


EARLY = {
    "average": ("average", "scale_by_learning_rate", gradtx.chain(gradtx.average(0.9), SGD)),
    "behind other links": (
        *("lookahead", "add_decayed_weights"),
        gradtx.chain(gradtx.lookahead(), gradtx.centralize(), gradtx.adamw()),
    ),
    "a wrapper behind it": (
        *("map_after_step", "accumulate"),
        gradtx.chain(gradtx.map_after_step(torch.relu), gradtx.accumulate(SGD, every=2)),
    ),
    "inside a branch": (
        *("average", "scale_by_learning_rate"),
        gradtx.partition({"a": gradtx.chain(gradtx.average(0.9), SGD), "b": SGD}, {"a": "0", "b": "*"}),
    ),
}


@pytest.mark.parametrize(("early", "late", "tx"), EARLY.values(), ids=EARLY)
def test_a_link_for_finished_steps_in_front_of_a_rate_is_warned_of_once(early, late, tx):
    doubt = f"{early} needs the finished step, but {late} follows it, .*; move {early} after {late}"
    with pytest.warns(UserWarning, match=f"^as_optimizer: {doubt}$") as found:
        gradtx.as_optimizer(tx, parameters().values())
    assert [(warning.filename, len(found)) for warning in found] == [(__file__, 1)]


RIGHT = {
    "a decay of fixed size": gradtx.chain(SGD, gradtx.add_decayed_weights(0.1, fixed=True)),
    "a decay that is off": gradtx.chain(SGD, gradtx.add_decayed_weights(0.0)),
    "branches": gradtx.partition({"a": SGD, "b": gradtx.adam()}, {"a": "0", "b": "*"}),
    "one after another": gradtx.chain(gradtx.masked(SGD, "0"), gradtx.masked(gradtx.adam(), "1")),
    "a wrapper's, whose leaves may be others": gradtx.chain(SGD, gradtx.masked(gradtx.adam(), lambda name, p: False)),
    "a sign that is turned back": gradtx.chain(SGD, gradtx.scale(-1.0), gradtx.adam()),
    "one that maximizes": gradtx.chain(gradtx.sgd(lr=0.1, maximize=True), gradtx.adam()),
    "links that come last": gradtx.chain(SGD, gradtx.clip_by_value(1.0), gradtx.lookahead(), gradtx.average()),
    "a wrapper and its clock": gradtx.chain(gradtx.accumulate(SGD, every=2), gradtx.lookahead()),
}


@pytest.mark.parametrize("tx", RIGHT.values(), ids=RIGHT)
def test_a_chain_that_may_be_meant_is_not_warned_of(tx):
    gradtx.as_optimizer(tx, parameters().values())  # warnings are errors in these tests


# Names.


def two_models(tx, **options):
    """Return one optimizer of two models with equal parameter names; the gradients of the second are larger."""
    models = [torch.nn.Linear(2, 2, dtype=torch.float64) for _ in range(2)]
    groups = [{"params": model.named_parameters(), **options} for model in models]
    optimizer = gradtx.as_optimizer(tx, groups)
    for model, size in zip(models, (1.0, 10.0), strict=True):
        for param in model.parameters():
            param.grad = torch.full_like(param, size)
    return optimizer, [dict(model.named_parameters()) for model in models]


def test_equal_names_in_two_groups_are_no_obstacle_to_functions_of_whole_trees():
    optimizer, (first, second) = two_models(gradtx.chain(scale_by_mean_of_trees(-1.0)))
    before = values(first), values(second)
    optimizer.step()
    moved = [(param.detach() - old).abs() for param, old in zip(first.values(), before[0], strict=True)]
    others = [(param.detach() - old).abs() for param, old in zip(second.values(), before[1], strict=True)]
    # Both are scaled by the same factor, and the gradients are ten times as large.
    assert_close(others, [10 * move for move in moved], 1e-9)


def test_equal_names_in_two_groups_get_random_numbers_of_their_own():
    @gradtx.per_tensor(random=True)
    def noise(seed: int = 0):
        def update(update, state, param, ctx):
            return ctx.rng.normal(update), state

        return update

    optimizer, (first, second) = two_models(noise())
    with torch.no_grad():
        for param in [*first.values(), *second.values()]:
            param.zero_()
    optimizer.step()
    assert not torch.equal(first["weight"], second["weight"])


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


@pytest.mark.parametrize("name", ["SGD", "AdamW", "AdamP"])
def test_a_sparse_gradient_is_a_clear_error_that_changes_nothing(name):
    params = parameters()
    optimizer = getattr(gradtx.optim, name)(list(params.items()))
    descend(optimizer, params, 1)
    params["head.weight"].grad = params["head.weight"].detach().to_sparse()
    before = values(params)
    with pytest.raises(RuntimeError, match=f"{name}: parameter 'head.weight' has a sparse gradient.*to_dense"):
        optimizer.step()
    assert_equal(values(params), before)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # from torch's own Adagrad
@pytest.mark.parametrize("name", ["SGD", "Adagrad"])
def test_a_sparse_gradient_made_dense_as_the_error_says_gives_the_steps_of_torchs_sparse_one(name):
    embeddings = [torch.nn.Embedding(5, 2, sparse=True).double() for _ in range(2)]
    embeddings[1].load_state_dict(embeddings[0].state_dict())
    ours, theirs = getattr(gradtx.optim, name), getattr(torch.optim, name)
    for embedding, optimizer in zip(
        embeddings,
        (ours(embeddings[0].parameters(), lr=0.1), theirs(embeddings[1].parameters(), lr=0.1)),
        strict=True,
    ):
        for rows in ([1, 1, 3], [0, 3, 3]):
            optimizer.zero_grad()
            embedding(torch.tensor(rows)).square().sum().backward()
            if optimizer.__class__ is ours:
                embedding.weight.grad = embedding.weight.grad.to_dense()
            optimizer.step()
    torch.testing.assert_close(embeddings[0].weight, embeddings[1].weight, rtol=0, atol=1e-14)  # float64 rounding


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


def test_a_number_written_over_none_makes_the_slots_that_it_needs():
    params = parameters()
    items = list(params.values())
    tx = gradtx.chain(gradtx.add_decayed_weights(0.1), gradtx.scale_by_learning_rate(0.1))
    optimizer = gradtx.as_optimizer(tx, [{"params": items[:2]}, {"params": items[2:]}])
    descend(optimizer, params, 1)
    optimizer.param_groups[1]["relative_to"] = 0.1
    expected = twins(params)
    set_gradients(params, 1)
    optimizer.step()  # in that group the decay is now divided by 0.1, with fresh slots
    for param, old, size in zip(items, expected.values(), (0.1, 0.1, 1.0, 1.0), strict=True):
        assert_close([param], [old.detach() - 0.1 * (gradient(old, 1) + size * old.detach())], TOLERANCE)
