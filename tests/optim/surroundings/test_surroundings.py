"""Optimizers alongside each other, over many steps, and under other dtypes, devices and modes."""

import contextlib
import gc

import pytest
import torch

import gradtx
from tests.conformance import assert_same
from tests.optim.chains import CHAINS
from tests.optim.problems import assert_close, assert_equal, descend, functional, parameters, set_gradients, values
from tests.tiers import by_day

TOLERANCE = 1e-12  # the same float64 sums in a different order


def test_two_optimizers_on_one_model_do_not_meet():
    params, others = parameters(), parameters()
    split = list(params.items())
    pair = gradtx.optim.SGD(dict(split[:2]).values(), lr=0.1), gradtx.optim.AdamW(dict(split[2:]).values(), lr=0.1)
    tx = gradtx.partition({"a": gradtx.sgd(lr=0.1), "b": gradtx.adamw(lr=0.1)}, {"a": "body.*", "b": "*"})
    one = gradtx.as_optimizer(tx, list(others.items()))
    for t in range(4):
        set_gradients(params, t)
        for optimizer in pair:
            optimizer.step()
        descend(one, others, 1, start=t)
    assert_equal(values(params), values(others))


def test_one_transformation_serves_many_optimizers():
    tx = CHAINS["design"]
    first, second = parameters(), parameters()
    one, other = gradtx.as_optimizer(tx, first.values()), gradtx.as_optimizer(tx, second.values())
    other.param_groups[0]["delta"] = 0.5
    descend(one, first, 3)
    expected, _ = functional(tx, parameters(), 3)
    assert_close(first.values(), expected.values(), TOLERANCE)


@contextlib.contextmanager
def only_new_objects():
    """The garbage collector sees no objects of other tests, which would take it seconds."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def test_a_thousand_steps_keep_no_more_objects_than_ten():
    params = {"w": torch.nn.Parameter(torch.ones(2))}
    tx = gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.sgd(lr=gradtx.cosine_schedule(0.1, 1000), momentum=0.9))
    optimizer = gradtx.as_optimizer(tx, list(params.items()))
    with only_new_objects():
        for step in range(1000):
            params["w"].grad = torch.ones(2)
            optimizer.step()
            if step == 9:
                gc.freeze()
        gc.collect()
        assert len(gc.get_objects()) < 100


@by_day("with lookahead", "adamp", "whole tree")
@pytest.mark.parametrize("name", ["with lookahead", "record", "adamp", "skip", "whole tree", "accumulate"])
def test_a_step_leaves_no_tensor_to_the_garbage_collector(name):
    # Tensors in reference cycles live until the garbage collector runs: one copy of the state per step, if it runs
    # rarely.
    params = parameters()
    optimizer = gradtx.as_optimizer(CHAINS[name], list(params.items()))
    for t in range(5):
        set_gradients(params, t)  # caches the noise
    descend(optimizer, params, 2)
    counts = []
    with only_new_objects():
        gc.disable()
        try:
            for t in range(2, 5):
                descend(optimizer, params, 1, start=t)
                counts.append(sum(issubclass(type(found), torch.Tensor) for found in gc.get_objects()))
        finally:
            gc.enable()
    assert counts[2] <= counts[0]


def test_a_step_under_autocast_is_a_plain_step():
    params, others = parameters(torch.float32), parameters(torch.float32)
    tx = CHAINS["design"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        descend(gradtx.as_optimizer(tx, list(params.items())), params, 3)
    descend(gradtx.as_optimizer(tx, list(others.items())), others, 3)
    assert_equal(values(params), values(others))


SENSITIVE = {  # to the precision of products, or to where 0-d tensors are made
    "soap": lambda: gradtx.soap(lr=0.1, precondition_frequency=2),
    "psgd": lambda: gradtx.psgd_kron(lr=0.1),
    "lbfgs": lambda: gradtx.lbfgs(lr=0.1),
    "graft": lambda: gradtx.chain(gradtx.graft(gradtx.scale_by_adam(), gradtx.trace(0.9)), gradtx.scale(-0.1)),
    "trac": lambda: gradtx.trac(gradtx.adamw(lr=0.1)),
    "skip": lambda: gradtx.skip_nonfinite(gradtx.accumulate(gradtx.adamw(lr=0.1), 2)),
    "sam": lambda: gradtx.sam(gradtx.soap(lr=0.1, precondition_frequency=2), rho=0.1),
}
SURROUNDINGS = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "default device": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("around", list(SURROUNDINGS.values()), ids=SURROUNDINGS)
@pytest.mark.parametrize("make", list(SENSITIVE.values()), ids=SENSITIVE)
def test_autocast_and_a_default_device_change_nothing_but_the_callers_own_functions(make, around):
    seen = []

    def grad_fn(params):
        seen.append(((x @ x).dtype, torch.empty(0).device.type))
        return {name: p.sin() for name, p in params.items()}

    def advance(tx, params, state):
        extras = {"grad_fn": grad_fn} if "grad_fn" in tx.needs else {}
        gradients = {name: p.sin() for name, p in params.items()}
        updates, state = tx.update(gradients, state, params, **extras)
        return gradtx.apply_updates(params, updates), state

    x, tx = torch.ones(2, 2), make()
    plain = start = {"w": torch.linspace(-1, 1, 12).reshape(4, 3), "b": torch.linspace(0.5, 1, 3)}
    stepped = {name: torch.nn.Parameter(p.clone()) for name, p in start.items()}
    optimizer = gradtx.as_optimizer(tx, list(stepped.items()))

    def closure():
        seen.append(((x @ x).dtype, torch.empty(0).device.type))
        for p in stepped.values():
            p.grad = p.detach().sin()

    plain_state = tx.init(plain)
    for _ in range(3):
        plain, plain_state = advance(tx, plain, plain_state)
    seen.clear()
    with around():
        params, state = start, tx.init(start)
        for _ in range(3):
            params, state = advance(tx, params, state)
            optimizer.step(closure)
        inside = ((x @ x).dtype, torch.empty(0).device.type)
    assert_same((params, state), (plain, plain_state))
    assert_close(stepped.values(), plain.values(), 1e-5)  # sums of float32 in another order
    assert set(seen) == {inside}


def test_a_compiled_update_under_autocast_is_the_plain_one():
    torch._dynamo.reset()
    tx, params = SENSITIVE["soap"](), {"w": torch.linspace(-1, 1, 12).reshape(4, 3)}
    state = tx.init(params)
    compiled = torch.compile(tx.update, backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = compiled(params, state, params)
    expected = tx.update(params, state, params)
    assert_close(found[0].values(), expected[0].values(), 1e-6)  # float32


def test_a_step_with_gradients_enabled_or_in_inference_mode_records_nothing():
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        params = parameters()
        optimizer = gradtx.optim.AdamP(params.values())
        set_gradients(params)
        with mode():
            optimizer.step()
        optimizer.step()
        assert all(param.is_leaf and param.requires_grad for param in params.values())
        assert not any(value.requires_grad for state in optimizer.state.values() for value in state.values())


def test_a_default_device_of_new_tensors_does_not_matter_to_a_step():
    params, others = parameters(), parameters()
    one, other = gradtx.optim.AdamW(params.values()), gradtx.optim.AdamW(others.values())
    descend(other, others, 2)
    descend(one, params, 1)
    set_gradients(params, 1)
    with torch.device("meta"):
        one.step()
    assert_equal(values(params), values(others))


BUILT = {
    "class": lambda params: gradtx.optim.AdamW(params, lr=0.1),
    "class with kernels": lambda params: gradtx.optim.Lion(params, lr=0.1, compile=True),
    "as_optimizer": lambda params: gradtx.as_optimizer(
        gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.sgd(lr=0.1)), params
    ),
    "by name": lambda params: gradtx.create_optimizer(torch.nn.ParameterList(params), "adamp", lr=0.1),
    "whole model": lambda params: gradtx.muon_for(torch.nn.ParameterList(params)),
}


@pytest.mark.slow
@pytest.mark.parametrize("make", BUILT.values(), ids=BUILT)
def test_an_optimizer_may_be_built_inside_a_compiled_function_as_torchs(make):
    def step(param, x):
        optimizer = make([param])
        (param * x).square().sum().backward()
        optimizer.step()
        return param.detach().clone()

    def start():
        return torch.nn.Parameter(torch.tensor([1.0, -2.0]))

    compiled = torch.compile(step, backend="eager")
    assert torch.equal(compiled(start(), torch.tensor(1.0)), step(start(), torch.tensor(1.0)))
