"""Decorators: forms of a rule, aliases, and links that own the learning rate."""

import inspect

import pytest
import torch

import gradtx
from gradtx import Betas, Scalar, Schedule, alias, chain, per_tensor
from gradtx.base.names import public_factories
from tests.conformance import noise
from tests.rules import count_init, made, ones, run

# Forms of a rule for one tensor.


def test_a_rule_may_be_a_bare_update():
    tx = made(lambda update, state, param, ctx: (2 * update, state))
    updates, state = run(tx, 1)
    assert torch.equal(updates["a"], torch.full((3,), 2.0))
    assert set(state) == {"step"}


def _count(update, state, param, ctx):
    return update, {"sum": state["sum"] + update}


def test_a_rule_may_be_init_and_update():
    _, state = run(made(_count, count_init), 3)
    assert torch.equal(state["rule"]["sum"]["b"], torch.full((2, 2), 3.0))


def test_a_rule_may_say_what_to_evaluate_with():
    tx = made(_count, count_init, lambda state, param: param - state["sum"])
    _, state = run(tx, 3)
    assert torch.equal(tx.eval_params(state, ones())["a"], torch.full((3,), -2.0))


def test_a_rule_that_returns_a_chain_is_replaced_by_it():
    @per_tensor
    def sometimes(factor: Scalar, keep: bool = True):
        return chain() if not keep else lambda update, state, param, ctx: (factor * update, state)

    assert torch.equal(run(sometimes(3.0), 1)[0]["a"], torch.full((3,), 3.0))
    assert torch.equal(run(sometimes(3.0, keep=False), 1)[0]["a"], torch.ones(3))


def test_a_list_is_kept_as_numbered_slots():
    def init(param):
        return {"axis": [param.new_zeros(n) for n in param.shape], "sum": torch.zeros_like(param)}

    def update(update, state, param, ctx):
        assert isinstance(state["axis"], list)
        return update, {"axis": [axis + i + 1 for i, axis in enumerate(state["axis"])], "sum": state["sum"]}

    _, state = run(made(update, init), 2, *(noise(1, {"w": (2, 3), "v": (5,)}),) * 2)
    assert set(state["rule"]) == {"axis_0", "axis_1", "sum"}
    assert torch.equal(state["rule"]["axis_1"]["w"], torch.full((3,), 4.0).double())
    assert set(state["rule"]["axis_1"]) == {"w"}  # v has one axis, hence no key


def test_a_list_that_is_empty_for_a_leaf_comes_back_empty():
    def update(update, state, param, ctx):
        assert len(state["axis"]) == update.ndim
        return update, state

    run(made(update, lambda param: {"axis": [param.new_zeros(n) for n in param.shape]}), 2)  # c is 0-d


# Who owns the learning rate.


@per_tensor(owns_lr=True)
def owner(lr: Scalar = 1.0):
    return lambda update, state, param, ctx: (-lr * update, state)


def test_an_owner_may_stand_after_clipping_and_before_lookahead():
    tx = chain(gradtx.clip_by_global_norm(1.0), owner(lr=2.0), gradtx.lookahead())
    assert tx.hyperparams["lr"] == 2.0


# Aliases.


@alias
def derived(lr: Scalar = 0.1, betas: Betas = (0.81, 0.9), weight_decay: Scalar = 0.0, momentum: Scalar = 0.5):
    root = betas[0] ** 0.5
    decay = weight_decay / (1 - momentum)
    return chain(gradtx.ema(root), gradtx.add_decayed_weights(decay), gradtx.scale_by_learning_rate(lr))


def test_values_that_an_alias_derives_are_derived_anew_at_every_step():
    rising = Schedule(lambda step: torch.where(torch.as_tensor(step) < 1, 0.25, 0.81).double())
    tx, state = derived(lr=1.0, betas=(rising, 0.9)), derived().init(ones())
    first, state = tx.update(ones(), state, ones())
    second, state = tx.update(ones(), state, ones())
    # float32 values: m = 0.5, then 0.9 * 0.5 + 0.1
    assert first["c"].item() == pytest.approx(-0.5, rel=1e-6)
    assert second["c"].item() == pytest.approx(-0.55, rel=1e-6)


def test_an_alias_of_an_alias_owns_its_names():
    @alias
    def outer(lr: Scalar = 0.1, factor: Scalar = 2.0):
        return chain(derived(lr=factor * lr))

    assert set(outer().hyperparams) == {"lr", "factor", "maximize"}
    assert repr(chain(outer(factor=3.0))) == "outer(factor=3.0)"


def test_maximize_negates_the_gradient_that_rules_see_too():
    @alias
    def plain_gradient(lr: Scalar = 1.0):
        return chain(gradtx.trace(0.9), made(lambda update, state, param, ctx: (lr * ctx.grad, state)))

    assert torch.equal(run(plain_gradient(maximize=True), 2)[0]["a"], -torch.ones(3))


def test_maximize_inside_a_chain_negates_what_comes_in():
    tx = chain(gradtx.trace(0.5), gradtx.sgd(lr=1.0, maximize=True))
    assert torch.equal(run(tx, 2)[0]["a"], torch.full((3,), 1.5))


@pytest.mark.parametrize(("options", "fault"), [({"shared": {"total": 0.0}}, "share values"), ({}, "yield sums")])
def test_rules_that_run_at_an_owner_take_part_in_nothing_that_all_ranks_do(options, fault):
    def scale_by_size(seed: int = 0):
        def summed(update, state, param, ctx):
            sums = yield {"size": update.abs().sum()}
            yield update / sums["size"], state

        def alone(update, state, param, ctx):
            return update / update.abs().sum(), state

        return alone if options else summed

    factory = per_tensor(whole=True, **options)(scale_by_size)
    with pytest.raises(
        TypeError, match=f"scale_by_size: a rule with whole=True runs only on the owner .* cannot {fault}"
    ):
        factory().init({"a": torch.ones(2, 2)})


# What frameworks look up.


def test_factories_say_what_they_return_and_classes_what_a_fallback_is():
    assert inspect.signature(gradtx.adamw).return_annotation is gradtx.GradientTransformation
    assert inspect.signature(gradtx.sam).return_annotation is gradtx.GradientTransformation
    assert gradtx.clip_by_global_norm.__annotations__["return"] is gradtx.GradientTransformation
    for optimizer_class in (gradtx.optim.Muon, gradtx.optim.AdaMuon, gradtx.optim.Scion):
        parameters = inspect.signature(optimizer_class).parameters
        if "fallback" in parameters:
            assert parameters["fallback"].annotation == gradtx.GradientTransformation | None


@pytest.mark.parametrize("name", ["bfloat16", "torch.bfloat16"])
def test_the_name_of_a_dtype_is_the_dtype(name):
    """As in a configuration file."""
    params = {"w": torch.ones(2, 2)}
    for stored in (name, {"exp_avg": name, "*": "float32"}):
        state = gradtx.adam(state_dtype=stored).init(params)
        assert state["scale_by_adam"]["exp_avg"]["w"].dtype == torch.bfloat16
    assert repr(gradtx.muon(ns_dtype=name)) == repr(gradtx.muon(ns_dtype=torch.bfloat16))
    updates, _ = gradtx.muon(ns_dtype="float32").update(params, gradtx.muon().init(params), params)
    expected, _ = gradtx.muon(ns_dtype=torch.float32).update(params, gradtx.muon().init(params), params)
    assert torch.equal(updates["w"], expected["w"])


def test_names_of_other_dtypes_are_refused():
    with pytest.raises(
        TypeError, match=r"state_dtype must be a floating-point torch.dtype of 16 bits or more, got 'int32"
    ):
        gradtx.adam(state_dtype="int32")
    with pytest.raises(TypeError, match=r"dtype must be a floating-point torch.dtype or None, got 'float33'"):
        gradtx.muon(ns_dtype="float33")


# Lengths.

# Links whose results do not grow with what they receive, and which may well follow a learning rate.
OF_THE_WEIGHTS = {
    "bound_norm",  # they change the step so that the weights meet a condition
    "keep_norm",
    "project_l2_ball",
    "radial_brake",
    "retract",
    "scale_by_gravity",  # falls with large gradients
    "scale_by_kate",
}


def _length(tx, factor):
    """The length of the last updates for gradients of this size."""
    shapes = {"w": (4, 4), "v": (4, 4)}
    params = noise(0, shapes)
    state = tx.init(params)
    for step in range(12):
        updates, state = tx.update(noise(step + 1, shapes, scale=factor), state, params)
    return float(sum(update.square().sum() for update in updates.values()).sqrt())


@pytest.mark.slow
def test_links_that_set_the_length_of_an_update_or_bound_it_say_so():
    wrong = []
    for factory in public_factories("algorithms", "links"):
        if factory.spec.kind != "rule" or factory.spec.lr_role or factory.__name__ in OF_THE_WEIGHTS:
            continue
        try:
            tx = factory(**factory.spec.arguments.sample())
            lengths = [_length(tx, factor) for factor in (4.0, 16.0)]
        except (TypeError, ValueError):  # it needs arguments, or inputs, that are not here
            continue
        grows = lengths[1] > 2 * lengths[0]
        if grows != (factory.spec.length == "keeps"):
            wrong.append((factory.__name__, factory.spec.length, lengths))
    assert wrong == []
