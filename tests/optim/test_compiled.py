"""`compile=True`: equal to eager steps, in place, and nothing compiles twice."""

import functools

import pytest
import torch

import gradtx
from gradtx.optim import _engine
from tests.conformance import all_cases, extras, noise, plain_cases

SHAPES = {"conv": (2, 3, 2, 2), "matrix": (3, 4), "vector": (5,), "scalar": (), "ones": (3, 1, 2), "empty": (0, 2)}
ALIASES = [case for case in plain_cases() if case.factory.spec.kind == "alias"]
CHAINS = {
    "norm": lambda: gradtx.chain(gradtx.clip_by_global_norm(0.5), gradtx.adamw(lr=0.01)),
    "two sums": lambda: gradtx.skip_nonfinite(gradtx.chain(gradtx.clip_by_global_norm(0.5), gradtx.sgd(lr=0.01))),
    "recorded": lambda: gradtx.chain(gradtx.record("raw"), gradtx.adamp(lr=0.01, weight_decay=0.1)),
    "accumulated": lambda: gradtx.accumulate(
        gradtx.chain(gradtx.clip_by_global_norm(0.5), gradtx.adamw(lr=gradtx.cosine_schedule(0.1, 5))), every=2
    ),
    "branches": lambda: gradtx.partition(
        {"kernels": gradtx.adamp(lr=0.01), "rest": gradtx.sgd(lr=0.1, momentum=0.9)},
        {"kernels": ("conv", "matrix"), "rest": "*"},
    ),
    "masked": lambda: gradtx.chain(
        gradtx.masked(gradtx.centralize(), lambda name, leaf: leaf.ndim > 1), gradtx.sgd(lr=0.1), gradtx.freeze("ones")
    ),
    "average": lambda: gradtx.chain(gradtx.sgd(lr=0.1, momentum=0.5), gradtx.lookahead(2), gradtx.average(0.9)),
}

each = functools.partial(pytest.mark.parametrize, ids=str)
uncompiled = pytest.fixture(name="uncompiled")


@uncompiled
def _uncompiled(monkeypatch):
    """Programs are traced, but run as they were traced: all of the engine but torch's compiler, and quick."""
    monkeypatch.setattr(torch._inductor, "compile", lambda graph, arguments, options: graph)


def optimizers(make, dtype=torch.float64, shapes=SHAPES, options=True):
    """Two optimizers of the same start: eager and compiled."""
    start = noise(3, shapes, dtype)
    made = []
    for compile in (False, options):
        params = {name: torch.nn.Parameter(value.clone()) for name, value in start.items()}
        made.append((params, gradtx.as_optimizer(make(), list(params.items()), compile=compile)))
    return made


def walk(params, optimizer, steps, missing=None):
    """Steps along a smooth field; some leaf may lack its gradient for a step."""
    for i in range(steps):
        for (name, param), grad in zip(params.items(), gradients(params).values(), strict=True):
            param.grad = None if missing == (i, name) else grad
        given = {key: value for key, value in extras(optimizer._tx, values(params)).items() if key != "grad_fn"}
        optimizer.step(functools.partial(closure, params) if "grad_fn" in optimizer._tx.needs else None, **given)


def values(params):
    return {name: param.detach() for name, param in params.items()}


def gradients(params):
    """As the field of the conformance tests, for any names."""
    return {name: (0.5 * p + 0.3 * (2 * p).sin() + 0.1).to(p.dtype) for name, p in values(params).items()}


def closure(params):
    for name, grad in gradients(params).items():
        params[name].grad = grad
    return sum(value.square().sum() for value in values(params).values())


def assert_equal(eager, compiled, tolerance):
    (params, one), (others, two) = eager, compiled
    for name in params:
        torch.testing.assert_close(others[name], params[name], rtol=tolerance, atol=tolerance)
        state, other = one.state[params[name]], two.state[others[name]]
        assert list(state) == list(other)
        for key in state:
            assert (other[key].dtype, other[key].shape) == (state[key].dtype, state[key].shape)
            torch.testing.assert_close(other[key], state[key], rtol=10 * tolerance, atol=10 * tolerance)


@each("case", all_cases())
def test_every_transformation_steps_as_eagerly_however_its_leaves_are_bundled(case, uncompiled):
    eager, compiled = optimizers(case.make)
    for pair in (eager, compiled):
        walk(*pair, steps=4, missing=(2, "vector"))
    assert not compiled[1]._engine._broken
    assert_equal(eager, compiled, 1e-12)


@each("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 2e-6)])
@each("case", ALIASES)
def test_every_alias_compiled_equals_eager(case, dtype, tolerance, monkeypatch):
    monkeypatch.setattr(_engine, "WIDTH", 2)  # small programs compile sooner
    shapes = {"matrix": (3, 4), "vector": (5,), "other": (7,)}
    eager, compiled = optimizers(case.make, dtype, shapes)
    for pair in (eager, compiled):
        walk(*pair, steps=3)
    assert not compiled[1]._engine._broken
    assert_equal(eager, compiled, tolerance)


@pytest.mark.parametrize("name", CHAINS)
def test_every_kind_of_chain_compiled_equals_eager(name, monkeypatch):
    monkeypatch.setattr(_engine, "WIDTH", 2)
    eager, compiled = optimizers(CHAINS[name])
    for pair in (eager, compiled):
        walk(*pair, steps=5, missing=(3, "vector"))
    assert not compiled[1]._engine._broken
    assert_equal(eager, compiled, 1e-12)
