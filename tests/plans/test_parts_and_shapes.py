"""Elementwise rules that read more than entries: a mean or a norm for a sum over leaves, the size, the shape."""

import pytest
import torch

import gradtx
from gradtx.optim.engine import lists
from tests.conformance import chosen_aliases, plain_cases, step_extras
from tests.tiers import by_day

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


@pytest.mark.slow
@by_day(  # terms of each kind in the ways to run that differ; each of the others in one
    "*-None-False", "sum-*-int8-*", "constant-*-int8-True", "root of a sum-*-int8-True", "count-*-int8-True",
    "more than a sum-*-int8-True", "sum of units-*-None-True",
)  # fmt: skip
@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("code", [None, "int8"])
@pytest.mark.parametrize("make", [dividing_by_sum, dividing_by_sum_of_before])
@pytest.mark.parametrize("name", TERMS)
def test_a_sum_has_one_term_per_leaf_however_large(name, make, code, compile, parts_of):
    parts_of(1024)
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
def test_a_mean_over_all_entries_counts_those_of_large_coded_leaves(name, parts_of):
    """Programs for parts have another number of entries than the leaf."""
    make = {
        "adai": lambda: gradtx.adai(0.1, state_dtype="int8"),
        "adams": lambda: gradtx.adams(0.1, weight_decay=0.1, state_dtype="int8"),
        "avagrad": lambda: gradtx.avagrad(0.1, state_dtype="int8"),
    }[name]
    results = []
    for most in (1024, 2**18):
        parts_of(most)
        params = [torch.nn.Parameter(noise(i, shape)) for i, shape in enumerate([(64, 128), (5,)])]
        optimizer = gradtx.as_optimizer(make(), params)
        for step in range(3):
            for i, param in enumerate(params):
                param.grad = noise(10 * step + i, param.shape)
            optimizer.step()
        results.append([param.detach() for param in params])
    torch.testing.assert_close(*results)


# The leaves of these tests have hundreds of blocks of the examples' size.
IN_TINY_BLOCKS = (gradtx.scalable_shampoo, gradtx.distributed_shampoo)
COUNTING = {"adai", "adams", "avagrad"}  # their means need the number of entries of a leaf
each_set_of_aliases = pytest.mark.parametrize(
    "cases", [chosen_aliases, pytest.param(plain_cases, marks=pytest.mark.nightly)]
)


@pytest.mark.slow
@each_set_of_aliases
@pytest.mark.parametrize(("code", "whole"), [(None, set()), ("int8", COUNTING)])
def test_large_leaves_of_the_library_s_own_chains_are_updated_in_parts(code, whole, cases, parts_of, monkeypatch):
    """Otherwise their temporaries would be as large as a leaf."""
    parts_of(1024)
    found = {}
    original = lists.ListEngine._runs_in_parts

    def noted(engine, *arguments):
        found[case.factory.__name__] = original(engine, *arguments)
        return found[case.factory.__name__]

    monkeypatch.setattr(lists.ListEngine, "_runs_in_parts", noted)
    for case in cases():
        if case.factory.spec.kind != "alias" or case.factory in IN_TINY_BLOCKS:
            continue
        param = torch.nn.Parameter(noise(3, (64, 128)))
        param.grad = noise(4, (64, 128))
        tx = case.make() if code is None else gradtx.with_state_dtype(case.make(), code)
        if {"grad_fn", "value_fn"}.isdisjoint(tx.needs):
            optimizer = gradtx.as_optimizer(tx, [("0", param)])
            optimizer.step(**step_extras(optimizer._tx, {"0": param}))
    assert len(found) > len(cases()) / 8
    assert {name for name, in_parts in found.items() if not in_parts} == whole & set(found)


@pytest.mark.slow
@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("read", [lambda update: update.numel(), lambda update: update.numel() ** 0.5])
def test_a_rule_reads_the_number_of_entries_of_the_leaf(read, compile, parts_of):
    parts_of(1024)

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


SHAPES = [(2, 2), (50,), (100, 100), (7, 3), (30, 1), (3, 4, 5)]
READS = {
    "dimensions": lambda leaf: 2.0 if leaf.ndim > 1 else 1.0,
    "many dimensions": lambda leaf: 2.0 if leaf.ndim > 2 else 1.0,
    "rows": lambda leaf: float(len(leaf)),
    "one number of rows": lambda leaf: 2.0 if leaf.ndim > 1 and len(leaf) == 30 else 1.0,
    "ratio": lambda leaf: max(1.0, leaf.shape[0] ** 2 / leaf.numel()),
    "size": lambda leaf: 2.0 if leaf.numel() > 60 else 1.0,
    "nothing": lambda leaf: 3.0,
}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["default", "compiled", "pure"])
@pytest.mark.parametrize("name", READS)
def test_a_rule_reads_the_shape_of_its_leaf(name, mode):
    """The smallest and the largest leaf have two dimensions and equal ratios; others do not."""

    @gradtx.per_tensor(elementwise=True)
    def multiply():
        return lambda update, state, param, ctx: (update * READS[name](update), state)

    tx = gradtx.chain(multiply(), gradtx.sgd(1.0, momentum=0.5))
    params = {str(i): torch.nn.Parameter(noise(i, shape)) for i, shape in enumerate(SHAPES)}
    gradients = {leaf: noise(10 + int(leaf), param.shape) for leaf, param in params.items()}
    expected = {leaf: param.detach() - 2.5 * READS[name](param) * gradients[leaf] for leaf, param in params.items()}
    if mode == "pure":
        params = {leaf: param.detach() for leaf, param in params.items()}
        state = tx.init(params)
        for _ in range(2):
            updates, state = tx.update(gradients, state, params)
            params = gradtx.apply_updates(params, updates)
    else:
        optimizer = gradtx.as_optimizer(tx, list(params.items()), compile=mode == "compiled")
        for _ in range(2):
            for leaf, param in params.items():
                param.grad = gradients[leaf].clone()
            optimizer.step()
        if mode == "compiled":
            assert {way.way for way in optimizer.explain()} == {"kernels"}
    for leaf, param in params.items():
        torch.testing.assert_close(param.detach(), expected[leaf])


@pytest.mark.slow
@pytest.mark.parametrize("compile", [False, True])
def test_coded_leaves_of_equal_size_may_have_different_shapes(compile):
    together = [torch.nn.Parameter(noise(i, shape)) for i, shape in enumerate([(64, 128), (32, 256), (64, 128)])]
    alone = [torch.nn.Parameter(param.detach().clone()) for param in together]
    optimizers = [gradtx.optim.AdamW(group, state_dtype="int8", compile=compile) for group in (together, *zip(alone))]
    for step in range(3):
        for i in range(3):
            together[i].grad = noise(10 * step + i, together[i].shape)
            alone[i].grad = together[i].grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("code", [None, "int8"])
@pytest.mark.parametrize("compile", [False, True])
def test_a_rule_reads_the_fan_in_of_leaves_in_parts(code, compile, parts_of):
    """The largest leaf has no fan-in, so that only the others show that the rule reads it."""
    parts_of(4096)

    @gradtx.per_tensor(elementwise=True)
    def momentum_by_fan_in():
        def update(update, state, param, ctx):
            momentum = 0.9 * state["momentum"] + update
            return (momentum / update[0].numel() if update.ndim == 4 else momentum), {"momentum": momentum}

        return {"momentum": gradtx.slots.linear()}, update

    params = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((200, 128), (32, 64, 3, 3))]
    tx = gradtx.chain(momentum_by_fan_in(state_dtype=code or torch.float32), gradtx.scale_by_learning_rate(1.0))
    optimizer = gradtx.as_optimizer(tx, params, compile=compile)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    torch.testing.assert_close(params[0].detach(), torch.full((200, 128), -1.0))
    torch.testing.assert_close(params[1].detach(), torch.full((32, 64, 3, 3), -1 / 576))


# What an elementwise rule may do with shapes, and whether the program of a leaf is right for its parts.
WITH_SHAPES = {
    "a view and back": (lambda update: update.reshape(-1).reshape(update.shape), False),
    "rows": (lambda update: (2 * update.reshape(-1, 32)).reshape(update.shape), False),
    "a tensor of the shape": (lambda update: update + torch.ones(update.shape, device=update.device), False),
    "transposes": (lambda update: (2 * update.T).T, False),
    "the number of rows": (lambda update: update * len(update), True),
    "one like the leaf": (lambda update: update + torch.ones_like(update), True),
}


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("name", WITH_SHAPES)
def test_the_program_of_a_leaf_that_has_its_sizes_is_not_that_of_its_parts(name, compile, parts_of, monkeypatch):
    parts_of(1024)
    function, is_in_parts = WITH_SHAPES[name]

    @gradtx.per_tensor(elementwise=True)
    def rule():
        return lambda update, state, param, ctx: (function(update), state)

    param = torch.nn.Parameter(torch.zeros(64, 64))
    optimizer = gradtx.as_optimizer(gradtx.chain(rule(), gradtx.scale(-1.0)), [param], compile=compile)
    seen = []
    original = lists._parts_of

    def noted(*arguments):
        parts = original(*arguments)
        seen.extend(parts.pieces)
        return parts

    monkeypatch.setattr(lists, "_parts_of", noted)
    param.grad = noise(0, param.shape)
    optimizer.step()
    torch.testing.assert_close(param.detach(), -function(param.grad))
    if not compile:
        assert len(seen) == (4 if is_in_parts else 1)


# What a rule must not do that promises to be elementwise.
MIXING = {
    "norm": lambda update: update / update.norm(),
    "norms of rows": lambda update: update / update.norm(dim=-1, keepdim=True),
    "largest entry": lambda update: update / update.abs().amax(),
    "order": lambda update: update.flatten().sort().values.view_as(update),
    "reversed sums": lambda update: update.flip(0).cumsum(0),
}


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("shape", [(128, 64), (64, 64), (8192,)])
@pytest.mark.parametrize("name", MIXING)
def test_a_leaf_whose_entries_interact_is_not_divided_although_its_rule_promises_they_do_not(
    name, shape, compile, parts_of
):
    parts_of(4096)

    @gradtx.per_tensor(elementwise=True)
    def rule():
        return lambda update, state, param, ctx: (MIXING[name](update), state)

    param = torch.nn.Parameter(torch.zeros(shape))
    tx = gradtx.chain(rule(), gradtx.trace(0.5), gradtx.scale(-1.0))
    optimizer = gradtx.as_optimizer(tx, [param], compile=compile)
    param.grad = noise(0, shape)
    optimizer.step()
    torch.testing.assert_close(param.detach(), -MIXING[name](param.grad), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("compile", [False, True])
def test_a_term_that_adds_up_for_vectors_only_is_not_summed_over_parts_of_matrices(compile, parts_of):
    parts_of(1024)
    tx = dividing_by_sum(lambda update: update.square().sum().sqrt() if update.ndim == 2 else update.sum())
    params = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((64, 64), (6,))]
    optimizer = gradtx.as_optimizer(gradtx.chain(tx, gradtx.scale_by_learning_rate(1.0)), params, compile=compile)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    for param in params:
        torch.testing.assert_close(param.detach(), torch.full_like(param, -1 / (64 + 6)))
