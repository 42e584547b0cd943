"""Changes that users make to optimizers behind their backs, with `compile=True`: the same results as eagerly."""

import contextlib

import pytest
import torch

import gradtx

F64 = torch.float64
each = pytest.mark.parametrize


def line(size, factor=1.0, dtype=F64):
    return torch.linspace(-1.0, 1.3, size, dtype=dtype) * factor


def parameter(*shape, dtype=F64):
    return torch.nn.Parameter(line(torch.Size(shape).numel()).view(shape).to(dtype))


def step(optimizer, factor=1.0, **extras):
    for group in optimizer.param_groups:
        for param in group["params"]:
            param.grad = ((param.detach() * 2).sin() + 0.1) * factor
    optimizer.step(**extras)


def assert_same(run, tolerance=1e-12):
    """Assert that `run` yields equal parameters and state in both modes, and that the engine ran."""
    eager, compiled = run(False), run(True)
    assert not compiled._core.back_ends[0].failed
    for group, other in zip(eager.param_groups, compiled.param_groups, strict=True):
        for param, twin in zip(group["params"], other["params"], strict=True):
            torch.testing.assert_close(twin, param, rtol=tolerance, atol=tolerance)
            state, found = eager.state[param], compiled.state[twin]
            assert list(state) == list(found)
            for key in state:
                torch.testing.assert_close(found[key], state[key], rtol=tolerance, atol=tolerance)


# Memory.

SHARED = {
    "the same": lambda memory: (memory, memory),
    "overlapping": lambda memory: (memory[:6], memory[3:]),
    "apart": lambda memory: (memory[:4], memory[4:]),
}


@each("name", SHARED)
def test_parameters_in_one_memory_see_what_the_others_wrote(name):
    def run(compile):
        params = [torch.nn.Parameter(part) for part in SHARED[name](line(9))]
        optimizer = gradtx.optim.SGD(params, lr=0.1, momentum=0.5, compile=compile)
        for i in range(3):
            step(optimizer, i + 1)
        if compile:
            assert len(optimizer._core.back_ends[0].plans[None].bundles) == (name == "apart")
        return optimizer

    assert_same(run)


CHANGED = {
    "smaller": ((6,), lambda data: data[:3]),
    "reshaped": ((3, 4), lambda data: data.view(4, 3)),
    "transposed": ((3, 3), lambda data: data.t()),
    "double": ((3, 4), lambda data: data.double()),
}


@each("name", CHANGED)
def test_data_that_is_laid_out_otherwise_in_the_same_place_is_noticed(name):
    shape, change = CHANGED[name]

    def run(compile):
        param = parameter(*shape, dtype=torch.float32)
        momentum = {"momentum": 0.9} if name == "transposed" else {}
        tx = gradtx.chain(gradtx.centralize(), gradtx.sgd(lr=0.1, **momentum))
        optimizer = gradtx.as_optimizer(tx, [param], compile=compile)
        step(optimizer)
        param.grad = None
        param.data = change(param.data)
        step(optimizer)
        return optimizer

    assert_same(run, 1e-6)


def test_gradients_that_change_their_dtype_are_noticed():
    def run(compile):
        param = parameter(5)
        optimizer = gradtx.optim.SGD([param], lr=0.1, compile=compile)
        step(optimizer)
        param.grad.data = param.grad.data.float()
        optimizer.step()
        optimizer.step()
        step(optimizer)
        return optimizer

    assert_same(run, 1e-7)


def negated(values):
    """Return a view with these values whose memory has the other sign; autograd returns such gradients."""
    view = torch.complex(torch.zeros_like(values), -values).conj().imag
    assert view.is_neg()
    return view


@each("compile", [False, True])
@each("place", ["gradient", "slot", "parameter"])
def test_memory_with_the_other_sign_is_not_taken_for_the_values(place, compile):
    param, twin = parameter(1), parameter(1)
    if place == "parameter":
        param.data = negated(param.data)
    ours = gradtx.optim.SGD([param], lr=0.1, momentum=0.5, compile=compile)
    theirs = torch.optim.SGD([twin], lr=0.1, momentum=0.5)
    for t in range(4):
        twin.grad = (twin.detach() * (t + 2)).cos()
        param.grad = negated(twin.grad) if place == "gradient" and t % 2 else twin.grad.clone()
        if place == "slot" and t == 2:
            ours.state[param]["momentum_buffer"] = negated(ours.state[param]["momentum_buffer"])
        ours.step()
        theirs.step()
        torch.testing.assert_close(param, twin, rtol=1e-12, atol=1e-12)


def without_memory(values):
    """Return zeros as forward mode returns them for what does not depend on its input."""
    zeros = torch._efficientzerotensor(values.shape, dtype=values.dtype)
    assert zeros._is_zerotensor()
    return zeros


@each("compile", [False, True])
@each("at", [0, 1])
def test_gradients_and_extras_without_memory_are_zeros(at, compile):
    results = []
    for zeros in (torch.zeros_like, without_memory):
        params = [parameter(3), parameter(5)]
        tx = gradtx.chain(add_other(), gradtx.adamw(lr=0.1))
        optimizer = gradtx.as_optimizer(tx, params, compile=compile)
        for t in range(3):
            for param in params:
                param.grad = param.detach().cos()
            if t == at:
                params[0].grad = zeros(params[0])
            optimizer.step(other={"0": zeros(params[0]), "1": line(5)})
        results.append([*params, *optimizer.state[params[0]].values()])
    assert all(map(torch.equal, *results))


def test_a_graph_that_saved_the_weights_before_a_step_is_refused_after_it():
    param = parameter(5)
    optimizer = gradtx.optim.SGD([param], lr=0.1, compile=True)
    loss = param.square().sum()
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# Rules that read sizes or branch on values.


def test_fixed_polynomials_are_no_numbers_of_a_group():
    def run(compile):
        optimizer = gradtx.as_optimizer(gradtx.muon(lr=0.1), [parameter(3, 4)], compile=compile)
        for _ in range(3):
            step(optimizer)
        return optimizer

    assert_same(run)


# Extras and state: other dtypes, missing, or wrong.


def test_the_value_of_a_closure_may_come_and_go_and_change_its_dtype():
    def run(compile):
        optimizer = gradtx.as_optimizer(gradtx.alig(max_lr=1.0), [parameter(5)], compile=compile)
        for value in (1.0, torch.tensor(2.0), torch.tensor(1.5, dtype=torch.bfloat16)):
            step(optimizer, value=value)
        return optimizer

    def plain(compile):
        optimizer = gradtx.optim.SGD([parameter(5)], lr=0.1, compile=compile)
        for value in (None, torch.tensor(2.0), None):
            step(optimizer, **({} if value is None else {"value": value}))
        return optimizer

    assert_same(run, 1e-6)
    assert_same(plain)


@gradtx.per_tensor(elementwise=True, extras={"other": "leaf"})
def add_other():
    def update(update, state, param, ctx):
        return update + ctx.other, state

    return update


def test_extras_by_leaf_change_dtype_and_wrong_ones_are_refused_as_eagerly():
    def run(compile):
        tx = gradtx.chain(add_other(), gradtx.sgd(lr=0.1))
        optimizer = gradtx.as_optimizer(tx, [parameter(5, dtype=torch.float32)], compile=compile)
        for other in (line(4), line(5), line(5).float(), line(4), line(10)[::2], line(5).half()):
            wrong = pytest.raises(ValueError, match=r"other: leaf '0' has shape \(4,\), needs \(5,\)")
            with wrong if len(other) == 4 else contextlib.nullcontext():
                step(optimizer, other=[other])
        return optimizer

    assert_same(run, 1e-6)


# Environment.


@each("inside", [(0,), (0, 1, 3), (2,)])
def test_steps_inside_and_outside_of_inference_mode(inside):
    def run(compile):
        optimizer = gradtx.optim.AdamW([parameter(5)], lr=0.1, compile=compile)
        for i in range(5):
            with torch.inference_mode(i in inside):
                step(optimizer)
        return optimizer

    assert_same(run)


def test_what_was_written_before_an_eager_leaf_raised_is_counted():
    failing = []

    @gradtx.whole_tree()
    def moody():
        def update(updates, state, params, ctx):
            if failing:
                raise KeyError("no")
            return updates, state

        return update

    def run(compile):
        arms = {"x": gradtx.adamw(lr=0.1), "y": gradtx.chain(moody(), gradtx.sgd(lr=0.1))}
        tx = gradtx.partition(arms, {"x": lambda name, leaf: leaf.ndim == 1, "y": "*"})
        optimizer = gradtx.as_optimizer(tx, [parameter(5), parameter(2, 3)], compile=compile)
        for i in range(4):
            failing[:] = [True] * (i == 2)
            with contextlib.suppress(KeyError):
                step(optimizer)
        return optimizer

    assert_same(run)


# Eigenvalues.


EXACT = {
    "polargrad": lambda: gradtx.polargrad(lr=0.1, method="exact", fallback=gradtx.adamw(lr=0.1)),
    "scale_by_nuclear_norm": lambda: gradtx.partition(
        {"m": gradtx.chain(gradtx.scale_by_nuclear_norm("exact"), gradtx.sgd(lr=0.1)), "v": gradtx.adamw(lr=0.1)},
        lambda name, param: "m" if param.ndim == 2 else "v",
    ),
}


@each("dtype", [torch.float32, F64])
@each("make", EXACT.values(), ids=list(EXACT))
@each("factor", [1.0, float("nan")])
def test_the_exact_polar_factor_leaves_other_leaves_compiled_and_gives_nan_for_nan(make, dtype, factor):
    def run(compile):
        params = [parameter(8, 4, dtype=dtype), parameter(16, dtype=dtype), parameter(4, 8, dtype=dtype)]
        optimizer = gradtx.as_optimizer(make(), params, compile=compile)
        step(optimizer)
        for param in params:
            param.grad = param.detach().cos()
        params[0].grad[0, 0] *= factor
        optimizer.step()
        if compile:
            assert {way.name: way.way for way in optimizer.explain()} == {"0": "lists", "1": "kernels", "2": "lists"}
        assert params[0].isnan().any() == (factor != 1.0)
        assert not params[2].isnan().any()
        return optimizer

    eager, compiled = run(False), run(True)
    for group, other in zip(eager.param_groups, compiled.param_groups, strict=True):
        for param, twin in zip(group["params"], other["params"], strict=True):
            torch.testing.assert_close(twin, param, equal_nan=True)
