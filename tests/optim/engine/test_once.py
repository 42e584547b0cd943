"""What is done once for a structure, and once for all leaves that are alike."""

import contextlib
import copy
import threading
from collections import Counter

import pytest
import torch

import gradtx
from tests.optim.engine.test_walk import walk_of

WAYS = pytest.mark.parametrize("options", [{}, {"compile": True}], ids=["lists", "compiled"])


def parameters(shapes):
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator)
    return params


def built_and_stepped(shapes, options):
    optimizer = gradtx.as_optimizer(gradtx.adamw(), parameters(shapes), **options)
    optimizer.step()
    return optimizer


OF_A_MODEL = [(8, 4), (8,), (2, 8), (2,)]


def names_of(calls):
    return Counter(name for _, name in calls)


@WAYS
def test_a_second_optimizer_of_a_structure_records_nothing(options):
    built_and_stepped(OF_A_MODEL, options)
    calls, _ = walk_of(lambda: built_and_stepped(OF_A_MODEL, options))
    names = names_of(calls)
    assert names["LeafFunction.record"] == 0
    # When it is built: for any values, and for first slots.
    assert names["Route.of"] <= 2
    assert names["adamw"] <= 2


@WAYS
def test_the_first_step_of_a_known_structure_expands_nothing(options):
    built_and_stepped(OF_A_MODEL, options)
    optimizer = gradtx.as_optimizer(gradtx.adamw(), parameters(OF_A_MODEL), **options)
    calls, _ = walk_of(optimizer.step)
    assert not {"Route.of", "Spec.body", "FactoryCall.__init__"} & names_of(calls).keys()
    assert len(calls) <= (2600 if options else 2300)
    assert len(set(calls)) <= (420 if options else 370)


@WAYS
def test_a_first_step_expands_the_chain_for_the_program_of_each_shape_alone(options):
    optimizer = gradtx.as_optimizer(gradtx.adamw(betas=(0.87, 0.99)), parameters(OF_A_MODEL), **options)
    calls, _ = walk_of(optimizer.step)
    names = names_of(calls)
    assert names["Route.of"] <= len(OF_A_MODEL)
    assert names["adamw"] <= len(OF_A_MODEL)


@WAYS
def test_a_first_step_calls_few_functions_for_each_of_many_leaves_that_are_alike(options):
    built_and_stepped([(3, 3)] * 2, options)
    counts = []
    for leaves in (16, 48):
        calls, _ = walk_of(lambda leaves=leaves: built_and_stepped([(3, 3)] * leaves, options))
        counts.append(len(calls))
    assert (counts[1] - counts[0]) / 32 <= (100 if options else 65)


def test_slots_are_initialized_once_for_leaves_that_are_alike():
    calls, _ = walk_of(lambda: built_and_stepped([(3, 3)] * 32, {}))
    # When the optimizer is built, without memory, and at the first step.
    assert names_of(calls)["StageState.init_slots"] <= 2 * len(("exp_avg", "exp_avg_sq"))


CHAINS = {
    "adamw": gradtx.adamw,
    "adagrad": lambda: gradtx.adagrad(initial_accumulator_value=0.3),
    "rmsprop": lambda: gradtx.rmsprop(centered=True, momentum=0.9),
    "nadam": gradtx.nadam,
    "prodigy": gradtx.prodigy,
    "lion in bits": lambda: gradtx.lion(state_dtype=torch.bfloat16),
    "adamw in codes": lambda: gradtx.adamw(state_dtype={"exp_avg*": "int8"}),
    "schedule_free": gradtx.schedule_free_adamw,
    "lookahead": lambda: gradtx.chain(gradtx.adam(), gradtx.lookahead()),
    "muon": gradtx.muon,
    "soap": gradtx.soap,
}


@pytest.mark.parametrize("make", CHAINS.values(), ids=CHAINS)
def test_leaves_that_are_alike_start_as_each_does_alone(make):
    shapes = [(64, 64)] * 3
    params = parameters(shapes)
    params[1].data = params[1].data.t()  # another layout
    together = gradtx.as_optimizer(make(), params).state_dict()["state"]
    for i, param in enumerate(params):
        [alone] = gradtx.as_optimizer(make(), [(f"{i}", param)]).state_dict()["state"].values()
        assert list(together[i]) == list(alone)
        for key, value in alone.items():
            ours = together[i][key]
            assert torch.equal(ours, value), key
            assert (ours.dtype, ours.stride()) == (value.dtype, value.stride())


def test_leaves_that_are_alike_share_no_memory():
    optimizer = built_and_stepped([(3, 3)] * 4, {})
    tensors = [tensor for state in optimizer.state.values() for tensor in state.values()]
    assert len({tensor.data_ptr() for tensor in tensors}) == len(tensors) == 12


def test_selectors_treat_leaves_that_are_alike_differently():
    params = parameters([(3, 3)] * 6)
    masked = gradtx.masked(gradtx.trace(0.9), "a*"), gradtx.masked(gradtx.scale_by_adam(), ("a*", "b*"))
    tx = gradtx.chain(*masked, gradtx.freeze("c*"), gradtx.sgd())
    named = list(zip(("a1", "b1", "c1", "a2", "b2", "c2"), params, strict=True))
    optimizer = gradtx.as_optimizer(tx, named)
    before = [param.detach().clone() for param in params]
    optimizer.step()
    kept = [sorted(optimizer.state[param]) for param in params]
    assert kept[:3] == kept[3:]
    assert kept[0] == ["exp_avg", "exp_avg_sq", "momentum_buffer", "step"]
    assert kept[1] == ["exp_avg", "exp_avg_sq", "step"]
    for i in (2, 5):
        assert torch.equal(params[i], before[i])


def test_a_parameter_that_differs_from_its_like_is_seen_in_the_plan():
    params = parameters([(4, 4)] * 4)
    memory = torch.zeros(8, 4)
    params[1].data, params[2].data = memory[:4], memory[2:6]  # these overlap
    params[3].grad = params[3].grad.t()
    copies = copy.deepcopy(params)
    optimizer = gradtx.as_optimizer(gradtx.adamw(lr=0.1), params)
    optimizer.step()
    assert str(optimizer.explain()).count("it shares memory with another parameter") > 0
    for i in (0, 3):
        copies[i].grad = params[i].grad
        gradtx.as_optimizer(gradtx.adamw(lr=0.1), [copies[i]]).step()
        assert torch.equal(copies[i], params[i])


def test_two_threads_build_and_step_the_same_structure():
    expected = [param.detach() for param in built_and_stepped(OF_A_MODEL, {}).param_groups[0]["params"]]
    results, errors = [], []

    def work(seed):
        try:
            for _ in range(5):
                tx = gradtx.chain(gradtx.clip_by_global_norm(1e9 + seed), gradtx.adamw())
                optimizer = gradtx.as_optimizer(tx, parameters(OF_A_MODEL))
                optimizer.step()
                results.append(optimizer.param_groups[0]["params"])
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for params in results:
        for param, value in zip(params, expected, strict=True):
            torch.testing.assert_close(param.detach(), value)


# Bodies of factories.


def test_a_body_of_a_user_may_rely_on_the_errors_of_what_it_calls():
    @gradtx.alias
    def careful(lr: gradtx.Scalar = 0.1, weight_decay: gradtx.Scalar = 0.0):
        owner = gradtx.prodigy(lr)
        try:
            return gradtx.chain(owner, gradtx.scale_by_learning_rate(lr))
        except ValueError:
            return gradtx.sgd(lr)

    param = torch.nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    gradtx.as_optimizer(careful(), [param]).step()
    torch.testing.assert_close(param.detach(), torch.full((3,), 0.9))


@pytest.mark.parametrize("eagerly", [True, False])
def test_a_number_that_is_written_between_updates_reaches_what_an_alias_creates(eagerly):
    rate, inner = torch.tensor(1.0), torch.tensor(1.0)
    passed = gradtx.scale(inner)

    @gradtx.alias
    def scaled(tx: gradtx.GradientTransformation, lr: gradtx.Scalar = 0.1):
        return gradtx.chain(tx, gradtx.scale_by_learning_rate(lr))

    tx = scaled(passed, rate)
    params = {"w": torch.ones(2)}
    state = tx.init(params)
    with gradtx.eagerly() if eagerly else contextlib.nullcontext():
        for number, factor in ((1.0, 1.0), (0.5, 3.0), (0.25, 2.0)):
            rate.fill_(number)
            inner.fill_(factor)
            updates, state = tx.update({"w": torch.ones(2)}, state, params)
            torch.testing.assert_close(updates["w"], torch.full((2,), -number * factor))


# Pure use.


def counting():
    """A rule that counts its runs with values, and the list of the counts."""
    runs = []

    @gradtx.per_tensor(elementwise=True)
    def counted(factor: gradtx.Scalar = 1.0):
        def update(update, state, param, ctx):
            if not update.is_meta:
                runs.append(update)
            return factor * update, {"total": state["total"] + update}

        return {"total": gradtx.slots.linear()}, update

    return counted(2.0), runs


def test_the_first_update_computes_its_result_once():
    tx, runs = counting()
    params = {"a": torch.ones(2), "b": torch.ones(3)}
    state = tx.init(params)
    updates, _ = tx.update(params, state, params)
    assert torch.equal(updates["b"], torch.full((3,), 2.0))
    assert not runs  # a program ran


def without(state, *path):
    state = copy.deepcopy(state)
    inner = state
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return state


def put(value, state, *path):
    state = copy.deepcopy(state)
    inner = state
    for key in path[:-1]:
        inner = inner.setdefault(key, {})
    inner[path[-1]] = value
    return state


@gradtx.per_tensor
def sum_of_last():
    def update(update, state, param, ctx):
        last = [*state["last"][1:], update]
        return sum(last), {"last": last}

    return {"last": gradtx.slots.window(3)}, update


ADAM = gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw())
WRONG_STATES = {
    "missing slot": (ADAM, lambda state: without(state, "scale_by_adam", "exp_avg", "b")),
    "missing stage": (ADAM, lambda state: without(state, "scale_by_adam")),
    "foreign slot": (ADAM, lambda state: put(torch.ones(3), state, "scale_by_adam", "other", "b")),
    "slot of another shape": (ADAM, lambda state: put(torch.ones(5), state, "scale_by_adam", "exp_avg", "b")),
    "slot that broadcasts": (ADAM, lambda state: put(torch.ones(1), state, "scale_by_adam", "exp_avg", "b")),
    "slot of integers": (
        ADAM,
        lambda state: put(torch.ones(3, dtype=torch.int64), state, "scale_by_adam", "exp_avg", "b"),
    ),
    "slot of a link without any": (
        gradtx.chain(gradtx.scale(2.0), gradtx.adamw()),
        lambda state: put({"b": torch.ones(3)}, state, "scale_by_learning_rate", "other"),
    ),
    "missing entry of a list that may have any length": (
        gradtx.chain(sum_of_last(), gradtx.sgd()),
        lambda state: without(state, "sum_of_last", "last_2", "a"),
    ),
    "missing entry of a list": (gradtx.shampoo(), lambda state: without(state, "scale_by_shampoo", "pre_cond_1", "a")),
}


def error_of(call):
    try:
        call()
    except Exception as error:
        return type(error), str(error), [str(cause) for cause in (error.__cause__, error.__context__) if cause]
    return None


@pytest.mark.parametrize(("tx", "wrong"), WRONG_STATES.values(), ids=WRONG_STATES)
def test_the_first_update_of_an_invalid_call_has_the_error_of_the_definition(tx, wrong):
    params = {"a": torch.randn(3, 3), "b": torch.randn(3)}
    state = tx.init(params)
    invalid = wrong(state)
    with gradtx.eagerly():
        expected = error_of(lambda: tx.update(params, invalid, params))
    for _ in range(2):
        assert error_of(lambda: tx.update(params, invalid, params)) == expected
    tx.update(params, state, params)


def test_an_update_that_fails_leaves_no_tensor_alive():
    import gc
    import weakref

    gc.disable()
    try:
        gradient = torch.randn(3)
        alive = weakref.ref(gradient)
        state = ADAM.init({"b": torch.randn(3)})
        invalid = put(torch.ones(5), state, "scale_by_adam", "exp_avg", "b")
        with pytest.raises(ValueError, match="exp_avg"):
            ADAM.update({"b": gradient}, invalid, {"b": torch.randn(3)})
        del gradient
        assert alive() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("name", ["ASGD", "NAdam", "AdaBound"])
def test_parameters_that_start_later_have_slots_of_their_own(name):
    """Numbers of the chain are first values: each parameter has a copy, whenever it starts."""
    params = [torch.nn.Parameter(torch.ones(2, 2)) for _ in range(3)]
    optimizer = getattr(gradtx.optim, name)(params)
    for i, param in enumerate(params):
        param.grad = torch.ones(2, 2)
        optimizer.step()
        states = [optimizer.state[started] for started in params[: i + 1]]
        tensors = [value for state in states for value in state.values() if isinstance(value, torch.Tensor)]
        assert len({tensor.data_ptr() for tensor in tensors}) == len(tensors)
