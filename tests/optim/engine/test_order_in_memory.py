"""Leaves whose entries have another order in memory, transposed or channels_last, step as contiguous ones do."""

import copy

import pytest
import torch

import gradtx
from tests.tiers import by_day

ORDERS = {
    "transposed": lambda: [torch.randn(300, 70).t(), torch.randn(130, 57).t(), torch.randn(5, 4, 3).transpose(0, 2)],
    "channels_last": lambda: [
        torch.randn(32, 24, 3, 3).to(memory_format=torch.channels_last),
        torch.randn(70, 7, 5, 5).to(memory_format=torch.channels_last),
        torch.randn(6),
    ],
}
# torch divides sums of so many entries among threads.
LARGE = {
    "transposed": lambda: [torch.randn(700, 300).t(), torch.randn(1300, 257).t()],
    "channels_last": lambda: [torch.randn(128, 96, 3, 3).to(memory_format=torch.channels_last)],
}
CHAINS = {
    "adamw": lambda: gradtx.adamw(lr=0.01),
    "lamb": lambda: gradtx.lamb(lr=0.01),
    "came": lambda: gradtx.came(lr=0.01),
    "adafactor": gradtx.adafactor,
    "novograd": lambda: gradtx.novograd(lr=0.01),
    "ranger21": lambda: gradtx.ranger21(100),
    "sm3": lambda: gradtx.sm3(lr=0.01),
    "adamp": lambda: gradtx.adamp(lr=0.01),
    "clip and adafactor": lambda: gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adafactor()),
}
STEPS = 3
# Each chain in kernels in one order, and over lists in the other.
BY_DAY = [
    (order, name, compile)
    for i, name in enumerate(CHAINS)
    for order, compile in zip(ORDERS, (i % 2 == 0, i % 2 == 1), strict=True)
]


def made(name, leaves, compile):
    params = [torch.nn.Parameter(leaf.detach().clone(memory_format=torch.preserve_format)) for leaf in leaves]
    return gradtx.as_optimizer(CHAINS[name](), params, compile=compile), params


def train(optimizer, params, steps=range(STEPS), like=None):
    """Step with gradients in the order of their parameters, or of those in `like`."""
    for t in steps:
        generator = torch.Generator().manual_seed(t)
        for param, other in zip(params, like or params, strict=True):
            values = torch.randn(param.shape, generator=generator, dtype=param.dtype)
            param.grad = torch.empty_like(other, dtype=param.dtype).copy_(values)
        optimizer.step()


def everything(optimizer, params):
    slots = [slot for param in params for slot in optimizer.state[param].values()]
    return [*(param.detach() for param in params), *slots]


@pytest.fixture(params=ORDERS)
def leaves(request):
    torch.manual_seed(0)
    return [leaf.double() for leaf in ORDERS[request.param]()]


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("name", CHAINS)
@by_day(*(f"{order}-{name}-{compile}" for order, name, compile in BY_DAY))
def test_steps_are_those_of_contiguous_leaves_in_memory_that_stays(name, compile, leaves):
    optimizer, params = made(name, leaves, compile)
    strides, addresses = [p.stride() for p in params], [p.data_ptr() for p in params]
    train(optimizer, params)
    expected, contiguous = made(name, [leaf.contiguous() for leaf in leaves], compile)
    train(expected, contiguous)
    for found, wanted in zip(everything(optimizer, params), everything(expected, contiguous), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    assert [p.stride() for p in params] == strides
    assert [p.data_ptr() for p in params] == addresses
    ways = {item.way for item in optimizer.explain()}
    assert ways == ({"kernels"} if compile else {"lists"})


@pytest.mark.parametrize("name", ["lamb", "came", "adafactor"])
def test_an_empty_leaf_beside_them_runs_in_programs(name, leaves):
    optimizer, params = made(name, [*leaves, torch.zeros(3, 0, dtype=torch.float64)], False)
    train(optimizer, params)
    assert {item.way for item in optimizer.explain()} == {"lists"}


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("order", LARGE)
@by_day(*(f"{order}-{name}-True" for order, name, compile in BY_DAY if compile), "*-came-False")
def test_threads_change_no_bit(name, compile, order):
    torch.manual_seed(0)
    leaves = LARGE[order]()
    threads, runs = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 8):
            torch.set_num_threads(count)
            optimizer, params = made(name, leaves, compile)
            train(optimizer, params)
            runs.append(everything(optimizer, params))
    finally:
        torch.set_num_threads(threads)
    for run in runs[1:]:
        assert all(map(torch.equal, run, runs[0]))


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("name", ["lamb", "came", "sm3", "clip and adafactor"])
def test_gradients_in_another_order_and_loaded_slots_change_nothing(name, compile, leaves):
    optimizer, params = made(name, leaves, compile)
    train(optimizer, params)
    train(optimizer, params, range(STEPS, 2 * STEPS), like=[param.contiguous() for param in params])
    again, others = made(name, leaves, compile)
    train(again, others)
    saved = copy.deepcopy(again.state_dict())
    for entry in saved["state"].values():
        entry.update({key: slot.contiguous() for key, slot in entry.items()})
    resumed, copies = made(name, others, compile)
    resumed.load_state_dict(saved)
    train(resumed, copies, range(STEPS, 2 * STEPS))
    for found, wanted in zip(everything(resumed, copies), everything(optimizer, params), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("compile", [False, True], ids=["lists", "compiled"])
@pytest.mark.parametrize("name", ["adafactor", "lamb", "adamw"])
def test_gradients_that_are_lazily_negated_views_step_as_their_values(name, compile):
    torch.manual_seed(0)
    leaves = [torch.randn(16, 12), torch.randn(16, 12).t(), torch.randn(6)]
    optimizers = [made(name, leaves, compile) for _ in range(2)]
    for step in range(3):
        if step == 2:  # the memory of slots and weights is found again
            for optimizer, params in optimizers:
                optimizer.state.clear()
                params[1].data = params[1].data.clone(memory_format=torch.preserve_format)
        gradients = [torch.randn(*leaf.shape, dtype=torch.complex64).conj().imag for leaf in leaves]
        assert all(map(torch.Tensor.is_neg, gradients))
        for (optimizer, params), resolved in zip(optimizers, (False, True), strict=True):
            for param, gradient in zip(params, gradients, strict=True):
                param.grad = gradient.resolve_neg() if resolved else gradient
            optimizer.step()
    for one, other in zip(optimizers[0][1], optimizers[1][1], strict=True):
        assert torch.equal(one, other)
