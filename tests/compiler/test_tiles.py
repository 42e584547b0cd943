"""Compiled steps of filters, whose last axes are short: tiles with vectors of lanes give what lists give."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gradtx
from gradtx.compiler.axes import Tile, tile_of
from tests.compiler.problems import CHANNELS, FACTORED, moved, rule
from tests.tiers import by_day

# Several tiles in a chunk, several chunks, a last tile that is not full, and lanes behind a leading group.
FILTERS = [(67, 64, 3, 3), (200, 70, 3, 3), (64, 3, 7, 7), (9, 130, 5), (300, 2, 2, 2, 3), (1000, 31), (33, 17, 5)]
# A text of filters takes g++ a second.
IN_FLOAT32_BY_DAY = ("adafactor", "adam_mini", "clip and sm3", "factored")
each = pytest.mark.parametrize


def stepped(chain, params, gradients, compile=True):
    """Return the parameters and slots after a step for each list of gradients, and the ways in which they ran."""
    params = [torch.nn.Parameter(param.clone()) for param in params]
    optimizer = gradtx.as_optimizer(chain, params, compile=compile)
    for of_step in gradients:
        for param, gradient in zip(params, of_step, strict=True):
            param.grad = gradient.clone()
        optimizer.step()
    slots = [slot for param in params for slot in optimizer.state[param].values()]
    return [*(param.detach() for param in params), *slots], {item.way for item in optimizer.explain()}


def random(shapes, dtype=torch.float64, steps=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = [[torch.randn(s, generator=generator, dtype=dtype) for s in shapes] for _ in range(steps + 1)]
    return values[0], values[1:]


@pytest.mark.parametrize(
    ("sizes", "tile"),
    [
        ([2048, 2048], None),
        ([512, 512, 3, 3], Tile(1, 64)),
        ([262144, 3, 3], Tile(0, 64)),
        ([64, 3, 7, 7], Tile(0, 16)),
        ([8, 3, 3], None),  # no group has as many indices as a vector
        ([1000, 40], None),
    ],
)
def test_lanes_are_the_last_group_that_fills_vectors(sizes, tile):
    assert tile_of(sizes) == tile


@each("dtype", [torch.float64, torch.float32], ids=str)
@each("name", FACTORED)
@by_day(  # each chain in one dtype: not in that of its matrices in test_cpp_kernels.py
    *(f"{name}-torch.float32" for name in IN_FLOAT32_BY_DAY),
    *(f"{name}-torch.float64" for name in FACTORED if name not in IN_FLOAT32_BY_DAY),
)
def test_steps_of_filters_are_those_of_lists(name, dtype):
    start, gradients = random(FILTERS, dtype)
    found, ways = stepped(FACTORED[name](), start, gradients)
    assert ways == {"kernels"}
    expected, _ = stepped(FACTORED[name](), start, gradients, compile=False)
    tolerance = 1e-12 if dtype is torch.float64 else 1e-6
    for value, wanted in zip(found, expected, strict=True):
        scale = max(float(wanted.abs().max()), 1.0)
        torch.testing.assert_close(value, wanted, rtol=tolerance, atol=tolerance * scale)


@each("name", FACTORED)
def test_texts_of_filters_have_tiles(name, texts):
    moved(FACTORED[name](), [torch.ones(64, 32, 3, 3)])
    assert any("take_in(p" in text for text in texts) == (name != "adam_mini")


def test_sums_over_the_entries_of_a_small_matrix_need_no_kernel_of_their_own(texts):
    moved(FACTORED["factored"](), [torch.ones(64, 32, 3, 3)])
    (text,) = texts
    assert "void last_stage" in text
    assert "void stage0" not in text
    assert "void combine0" not in text


def test_a_slot_whose_old_value_is_read_later_is_not_written_early():
    def init(param):
        return {name: torch.zeros_like(param[..., 0]) for name in ("first", "second")}

    @gradtx.per_tensor()
    def follow():
        def update(update, state, param, ctx):
            first, second = state["first"], state["second"]
            new = {"first": first + update.sum(-1), "second": second + first}
            result = update * (1 + new["first"][..., None]) + second[..., None] + update.sum(-2, keepdim=True)
            return result / result.square().mean().sqrt(), new

        return init, update

    start, gradients = random([(64, 32, 3, 3)])
    found, ways = stepped(gradtx.chain(follow(), gradtx.scale(-0.1)), start, gradients)
    assert ways == {"kernels"}
    expected, _ = stepped(gradtx.chain(follow(), gradtx.scale(-0.1)), start, gradients, compile=False)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=3).flatmap(
        lambda rest: st.integers(1, 90).map(lambda first: (first, *rest))
    ),
    name=st.sampled_from([*CHANNELS, *FACTORED]),
    seed=st.integers(0, 5),
)
def test_filters_of_any_shape(shape, name, seed):
    if name in CHANNELS and len(shape) != 4:
        return
    chain = (lambda: rule(CHANNELS[name])) if name in CHANNELS else FACTORED[name]
    start, gradients = random([shape], seed=seed, steps=2)
    found, _ = stepped(chain(), start, gradients)
    expected, _ = stepped(chain(), start, gradients, compile=False)
    for value, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-11, atol=1e-11, equal_nan=True)


@each("name", FACTORED)
@by_day(*IN_FLOAT32_BY_DAY)  # whose texts are there
def test_threads_change_no_bit_of_filters(name):
    start, gradients = random(FILTERS, torch.float32)
    threads = torch.get_num_threads()
    try:
        runs = []
        for count in (1, 2, 3, 8):
            torch.set_num_threads(count)
            runs.append(stepped(FACTORED[name](), start, gradients)[0])
    finally:
        torch.set_num_threads(threads)
    for run in runs[1:]:
        assert all(map(torch.equal, run, runs[0]))


@each("value", [math.nan, math.inf, -math.inf, 1e-40])
@each("name", ["sm3", "adafactor", "came", "adam_mini", "factored"])
def test_what_is_not_finite_is_so_in_the_same_places(name, value):
    start, gradients = random([(67, 64, 3, 3), (40, 5, 5)], torch.float32, steps=2)
    gradients[1][0][5, 7, 1, 2] = value
    gradients[1][1][39, 4] = value
    found, _ = stepped(FACTORED[name](), start, gradients)
    expected, _ = stepped(FACTORED[name](), start, gradients, compile=False)
    for this, that in zip(found, expected, strict=True):
        for test in (torch.isnan, torch.isposinf, torch.isneginf):
            assert torch.equal(test(this), test(that))


@pytest.mark.parametrize("shape", [(0, 3, 4), (3, 0, 5), (4, 3, 0, 0)], ids=str)
@pytest.mark.parametrize("name", ["AdaFactor", "CAME", "SM3"])
def test_an_empty_filter_beside_others_changes_nothing(name, shape):
    shapes = [(4, 3, 3, 3), (16, 32)]
    params, gradients = random(shapes, steps=2)
    alone, _ = stepped(getattr(gradtx, name.lower())(), params, gradients)
    empty = torch.empty(shape, dtype=torch.float64)
    both, _ = stepped(getattr(gradtx, name.lower())(), [empty, *params], [[empty, *of_step] for of_step in gradients])
    for one, other in zip(alone[:2], both[1:3], strict=True):
        assert torch.equal(one, other)
