"""Elementwise chains process large leaves in parts, without a visible difference."""

import re

import pytest
import torch

import gradtx
from gradtx.plans import bundle as lists
from tests.optim.chains import CHAINS
from tests.optim.problems import assert_close, assert_equal, descend, functional, parameters, saved_and_loaded, values

# Sums over parts round differently from sums over leaves, in float64 throughout.
TOLERANCE = 1e-12

EXTRA = {
    "0-d slot": gradtx.chain(
        gradtx.add_decayed_weights(0.1, relative_to=0.01), gradtx.record("n"), gradtx.adam(lr=0.01)
    ),
    "amsgrad": gradtx.adam(lr=0.01, amsgrad=True, maximize=True),
    "clipped momentum": gradtx.chain(gradtx.clip_by_global_norm(0.3), gradtx.sgd(lr=0.1, momentum=0.9, dampening=0.5)),
    "accumulate with 0-d slots": gradtx.accumulate(
        gradtx.chain(gradtx.add_decayed_weights(0.1, relative_to=0.01), gradtx.adam(lr=0.01)), every=2
    ),
}


@pytest.fixture
def small_parts(parts_of):
    """Make leaves of more than 4 entries count as large."""
    parts_of(4)


@pytest.mark.parametrize("name", [*CHAINS, *EXTRA])
def test_steps_in_parts_equal_the_functional_loop(name, small_parts):
    tx, params = {**CHAINS, **EXTRA}[name], parameters()
    descend(gradtx.as_optimizer(tx, list(params.items())), params, 12)
    expected, _ = functional(tx, parameters(), 12)
    assert_close(params.values(), expected.values(), TOLERANCE)


@pytest.mark.parametrize("name", EXTRA)
def test_state_of_a_step_in_parts_equals_that_of_a_step_in_one(name, parts_of):
    states = []
    for size in (4, lists.CHUNK):
        parts_of(size)
        params = parameters()
        optimizer = gradtx.as_optimizer(EXTRA[name], list(params.items()))
        descend(optimizer, params, 6)
        states.append([dict(optimizer.state[param]) for param in params.values()])
    for parts, one in zip(*states, strict=True):
        assert parts.keys() == one.keys()
        assert_close(parts.values(), one.values(), TOLERANCE)


SHAPES = {"beyond": (2**9, 2**9 + 1), "small": (3,), "exactly": (2**18,)}


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-6), (torch.bfloat16, 1e-2), (torch.float16, 1e-3)],  # one rounding of the dtype
)
def test_leaves_beyond_a_part_equal_the_functional_loop(dtype, tolerance):
    tx = gradtx.chain(
        gradtx.clip_by_global_norm(1.0), gradtx.record("norm"), gradtx.adamw(lr=0.01), gradtx.lookahead(k=2)
    )
    params = parameters(dtype, SHAPES)
    descend(gradtx.as_optimizer(tx, list(params.items())), params, 3)
    expected, _ = functional(tx, parameters(dtype, SHAPES), 3)
    assert_close(params.values(), expected.values(), tolerance)


def test_a_large_elementwise_chain_equals_the_functional_loop_to_rounding():
    params = parameters(torch.float32, SHAPES)
    descend(gradtx.as_optimizer(gradtx.adamw(lr=0.01), list(params.items())), params, 2)
    expected, _ = functional(gradtx.adamw(lr=0.01), parameters(torch.float32, SHAPES), 2)
    assert_close(params.values(), expected.values(), 3e-7)  # the adapter fuses the rate with the addition


@pytest.mark.parametrize("strided", ["parameter", "gradient", "state"])
def test_large_leaves_with_odd_strides_equal_plain_ones(strided, small_parts):
    tx = gradtx.chain(gradtx.clip_by_global_norm(0.5), gradtx.adamw(lr=0.1))
    results = []
    for odd in (False, True):
        start = parameters()["body.weight"].detach()
        start = start.t().contiguous().t() if odd and strided == "parameter" else start
        param = torch.nn.Parameter(start)
        optimizer = gradtx.as_optimizer(tx, [param])
        for t in range(5):
            gradient = torch.full_like(param, 0.1 * t) + param.detach()
            param.grad = gradient.t().contiguous().t() if odd and strided == "gradient" else gradient
            optimizer.step()
            if t == 0 and odd and strided == "state":
                state = optimizer.state[param]
                state["exp_avg"] = state["exp_avg"].t().contiguous().t()
        results.append(param.detach())
    assert_close(results[1:], results[:1], TOLERANCE)


def test_a_gradient_that_is_the_parameter_itself_is_read_before_it_is_written(small_parts):
    params = parameters(shapes={"w": (4, 4)})
    (param,) = params.values()
    expected = 0.5 * param.detach()
    param.grad = param.detach()
    gradtx.as_optimizer(gradtx.sgd(lr=0.5), [param]).step()
    assert_equal(param.detach(), expected)


def test_extras_by_leaf_are_cut_like_their_leaf(small_parts):
    @gradtx.per_tensor(elementwise=True, needs=("hessian_diag",))
    def newton():
        def update(update, state, param, ctx):
            return -update / ctx.hessian_diag, state

        return update

    params = parameters()
    optimizer = gradtx.as_optimizer(newton(), params.values())
    before = values(params)
    diagonal = [torch.arange(1.0, param.numel() + 1).view(param.shape) for param in params.values()]
    for param in params.values():
        param.grad = torch.ones_like(param)
    optimizer.step(hessian_diag=diagonal)
    moved = [param.detach() - old for param, old in zip(params.values(), before, strict=True)]
    # The difference of two parameters is rounded.
    assert_close(moved, [-1 / h.to(torch.float64) for h in diagonal], TOLERANCE)


def test_a_checkpoint_of_a_large_leaf_is_not_tied_to_the_running_state(small_parts):
    params = parameters()
    optimizer = gradtx.optim.AdamW(params.values())
    descend(optimizer, params, 2)
    saved = saved_and_loaded(optimizer.state_dict())
    optimizer.load_state_dict(saved)
    kept = saved_and_loaded(saved)
    descend(optimizer, params, 2)
    assert_equal(saved, kept)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_leaves_of_16_bits_have_smaller_parts_and_the_same_steps(dtype, parts_of):
    weights = []
    for most in (lists.CHUNK, 64):
        parts_of(most)
        weight = torch.nn.Parameter(torch.linspace(-1, 1, 40).to(dtype))
        optimizer = gradtx.optim.AdamW([weight], lr=0.1)
        for step in range(3):
            weight.grad = torch.linspace(-2, 1, 40).to(dtype) * (step + 1)
            optimizer.step()
        weights.append(weight.detach())
        assert lists.entries_of_a_call(torch.device("cpu"), dtype=dtype) == most // 4
    assert torch.equal(*weights)


@pytest.fixture
def sources(monkeypatch, forget_programs):
    """The texts of the programs that a test writes."""
    texts, original = [], lists.list_function

    def noted(*args, **options):
        function = original(*args, **options)
        texts.append(function.source)
        return function

    forget_programs()
    monkeypatch.setattr(lists, "list_function", noted)
    return texts


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_lists_convert_an_argument_of_16_bits_once(dtype, sources):
    """A weight that is read twice would be converted again by a sum of two dtypes, which torch computes slowly."""
    weight = torch.nn.Parameter(torch.linspace(-1, 1, 40).to(dtype))
    optimizer = gradtx.optim.AdamW([weight], lr=0.1, weight_decay=0.125)
    weight.grad = torch.ones(40, dtype=dtype)
    optimizer.step()
    [source] = sources
    sums = re.findall(r"foreach_add_\((\w+), (\w+)", source)
    converted = re.findall(r"converted\((leaf\d)", source)
    assert len(converted) == len(set(converted)) >= 3
    assert not any("leaf" in operand for pair in sums for operand in pair)


def test_moments_of_16_bits_are_written_before_their_roots_so_that_these_need_no_memory(sources):
    weight = torch.nn.Parameter(torch.linspace(-1, 1, 40).to(torch.bfloat16))
    optimizer = gradtx.optim.AdamW([weight], lr=0.1)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    [source] = sources
    assert "foreach_sqrt_(" in source
    assert source.index("foreach_copy_(leaf2") < source.index("foreach_sqrt_(")


def test_parts_of_a_leaf_share_one_copy_of_its_transposed_gradient(parts_of):
    """Copied for each of its parts, a gradient would take a time that grows with the square of its size."""
    weight = torch.nn.Parameter(torch.linspace(-1, 1, 64).view(8, 8))
    optimizer, reference = gradtx.optim.AdamW([weight]), torch.nn.Parameter(weight.detach().clone())
    by_torch = torch.optim.AdamW([reference])
    parts_of(8)
    for step in range(3):
        reference.grad = torch.linspace(-1, 2, 64).view(8, 8).t() * (step + 1)
        weight.grad = reference.grad
        by_torch.step()
        if not step:
            optimizer.step()
            continue
        with torch.profiler.profile(record_shapes=True) as profile:
            optimizer.step()
        copies = [
            event for event in profile.events() if event.name == "aten::copy_" and event.input_shapes[0] == [8, 8]
        ]
        assert len(copies) <= 1
    assert_close([weight], [reference], 1e-6)


def test_calls_of_other_sizes_convert_into_memory_of_their_own(parts_of):
    parts_of(8)
    weights, references = [], []
    for size in (20, 8, 3, 17, 20):
        values = torch.linspace(-1, 1, size).to(torch.bfloat16)
        weights.append(torch.nn.Parameter(values.clone()))
        references.append(torch.nn.Parameter(values.clone()))
    together = gradtx.optim.AdamW(weights, lr=0.1)
    alone = [gradtx.optim.AdamW([reference], lr=0.1) for reference in references]
    for _ in range(3):
        for weight, reference in zip(weights, references, strict=True):
            weight.grad = weight.detach().square()
            reference.grad = weight.grad.clone()
        together.step()
        for optimizer in alone:
            optimizer.step()
    assert_equal(weights, references)
