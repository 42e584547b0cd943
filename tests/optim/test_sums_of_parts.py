"""Sums over leaves whose terms are not sums over entries: large leaves are then not updated in parts."""

import pytest
import torch

import gradtx
from gradtx._lists import bundle
from gradtx.optim.engine import lists, windows
from tests.conformance import plain_cases, step_extras

TERMS = {
    "sum": lambda update: update.sum() / 3,
    "mean": lambda update: update.square().mean(),
    "sum of shares": lambda update: (update / update.numel()).sum(),
    "sum of units": lambda update: (update / update.norm()).sum(),
    "root of a sum": lambda update: update.square().sum().sqrt(),
    "maximum": lambda update: update.abs().amax(),
    "constant": lambda update: torch.ones((), device=update.device),
    "count": lambda update: update.numel(),
    "more than a sum": lambda update: update.sum() + 1,
    "difference": lambda update: update.sum() - update.abs().sum() * 0.5,
    "product": lambda update: update.sum() * update.sum(),
    "inverse": lambda update: 1 / update.abs().sum(),
}


def noise(seed, shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def dividing_by_sum(term):
    """Divide by the sum of the leaves' terms in this step."""

    @gradtx.per_tensor(elementwise=True)
    def rule():
        def update(update, state, param, ctx):
            total = yield {"total": term(update)}
            yield update / total["total"], state

        return update

    return rule()


def dividing_by_sum_of_before(term):
    """Divide by 1 plus the sum of the leaves' terms in the previous step."""

    @gradtx.per_tensor(elementwise=True, shared={"total": 0.0}, summed={"total": lambda total: total})
    def rule():
        def update(update, state, param, ctx):
            return update / (1 + state["total"]), {"total": term(update)}

        return update

    return rule()


def expected(make, term, gradients):
    """Return the small leaf after SGD with momentum 0.5 on the divided gradients."""
    before, momentum, small = 0.0, 0.0, torch.zeros(5)
    for step in gradients:
        total = sum(float(term(gradient)) for gradient in step)
        divisor = total if make is dividing_by_sum else 1 + before
        before = total
        momentum = 0.5 * momentum + step[1] / divisor
        small = small - momentum
    return small


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("code", [None, "int8"])
@pytest.mark.parametrize("make", [dividing_by_sum, dividing_by_sum_of_before])
@pytest.mark.parametrize("name", TERMS)
def test_a_sum_has_one_term_per_leaf_however_large(name, make, code, compile, uncompiled, monkeypatch):
    monkeypatch.setattr(bundle, "CHUNK", 1024)
    monkeypatch.setattr(windows, "WINDOW", 1024 // torch.get_num_threads())
    params = [torch.nn.Parameter(torch.zeros(64, 128)), torch.nn.Parameter(torch.zeros(5))]
    tx = gradtx.chain(make(TERMS[name]), gradtx.sgd(1.0, momentum=0.5, state_dtype=code))
    optimizer = gradtx.as_optimizer(tx, params, compile=compile)
    gradients = [[noise(10 * step + i, param.shape) + 0.5 for i, param in enumerate(params)] for step in range(3)]
    for step in gradients:
        for param, gradient in zip(params, step, strict=True):
            param.grad = gradient.clone()
        optimizer.step()
    torch.testing.assert_close(params[1].detach(), expected(make, TERMS[name], gradients), rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("name", ["adai", "adams", "avagrad"])
def test_a_mean_over_all_entries_counts_those_of_large_coded_leaves(name, monkeypatch):
    """Programs for parts have another number of entries than the leaf."""
    make = {
        "adai": lambda: gradtx.adai(0.1, state_dtype="int8"),
        "adams": lambda: gradtx.adams(0.1, weight_decay=0.1, state_dtype="int8"),
        "avagrad": lambda: gradtx.avagrad(0.1, state_dtype="int8"),
    }[name]
    results = []
    for most in (1024, 2**18):
        monkeypatch.setattr(bundle, "CHUNK", most)
        params = [torch.nn.Parameter(noise(i, shape)) for i, shape in enumerate([(64, 128), (5,)])]
        optimizer = gradtx.as_optimizer(make(), params)
        for step in range(3):
            for i, param in enumerate(params):
                param.grad = noise(10 * step + i, param.shape)
            optimizer.step()
        results.append([param.detach() for param in params])
    torch.testing.assert_close(*results)


COUNTING = {"adai", "adams", "avagrad"}  # their means need the number of entries of a leaf


@pytest.mark.parametrize(("code", "whole"), [(None, set()), ("int8", COUNTING)])
def test_large_leaves_of_the_library_s_own_chains_are_updated_in_parts(code, whole, monkeypatch):
    """Otherwise their temporaries would be as large as a leaf."""
    monkeypatch.setattr(bundle, "CHUNK", 1024)
    found = {}
    original = lists.ListEngine._runs_in_parts

    def noted(engine, *arguments):
        found[case.factory.__name__] = original(engine, *arguments)
        return found[case.factory.__name__]

    monkeypatch.setattr(lists.ListEngine, "_runs_in_parts", noted)
    for case in plain_cases():
        if case.factory.spec.kind != "alias":
            continue
        param = torch.nn.Parameter(noise(3, (64, 128)))
        param.grad = noise(4, (64, 128))
        tx = case.make() if code is None else gradtx.with_state_dtype(case.make(), code)
        if {"grad_fn", "value_fn"}.isdisjoint(tx.needs):
            optimizer = gradtx.as_optimizer(tx, [("0", param)])
            optimizer.step(**step_extras(optimizer._tx, {"0": param}))
    assert len(found) > 40
    assert {name for name, in_parts in found.items() if not in_parts} == whole


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("read", [lambda update: update.numel(), lambda update: update.numel() ** 0.5])
def test_a_rule_reads_the_number_of_entries_of_the_leaf(read, compile, uncompiled, monkeypatch):
    monkeypatch.setattr(bundle, "CHUNK", 1024)
    monkeypatch.setattr(windows, "WINDOW", 1024 // torch.get_num_threads())

    @gradtx.per_tensor(elementwise=True)
    def divide_by_size():
        return lambda update, state, param, ctx: (update / read(update), state)

    param = torch.nn.Parameter(torch.zeros(64, 128))
    tx = gradtx.chain(divide_by_size(), gradtx.sgd(1.0, momentum=0.5, state_dtype="int8"))
    optimizer = gradtx.as_optimizer(tx, [param], compile=compile)
    for _ in range(2):
        param.grad = torch.ones(64, 128)
        optimizer.step()
    torch.testing.assert_close(param.detach(), torch.full((64, 128), -2.5 / read(param)), rtol=1e-4, atol=0.0)
