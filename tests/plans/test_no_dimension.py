"""Weights of no dimension: gates, temperatures, scales of quantized layers."""

import pytest
import torch

import gradtx
from tests.optim.problems import assert_close

OPTIMIZERS = {
    "AdamW": lambda weights: gradtx.optim.AdamW(weights, lr=0.1, weight_decay=0.125),
    "SGD": lambda weights: gradtx.optim.SGD(weights, lr=0.1, momentum=0.9, nesterov=True),
    "RMSprop": lambda weights: gradtx.optim.RMSprop(weights, lr=0.1),
    "Lion": lambda weights: gradtx.optim.Lion(weights, lr=0.1),
    "Adamax": lambda weights: gradtx.optim.Adamax(weights, lr=0.1),
    "clipped": lambda weights: gradtx.as_optimizer(
        gradtx.chain(gradtx.clip_by_value(0.5), gradtx.adam(lr=0.1)), weights
    ),
}


def scalars(count, dtype=torch.float32):
    return [torch.nn.Parameter(value.to(dtype)) for value in torch.linspace(-2, 3, count, dtype=torch.float64)]


def set_gradients(weights, step):
    for i, weight in enumerate(weights):
        weight.grad = ((weight.detach() + 1) * 10.0 ** (i % 7 - 3)).to(weight.dtype)
        if step > 1 and i % 5 == step:
            weight.grad = None
        elif i == 3:
            weight.grad = torch.zeros_like(weight)
        elif i == 6 and step == 3:
            weight.grad = torch.full_like(weight, torch.inf)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_many_weights_step_as_they_would_alone_bit_for_bit(name, dtype):
    make, together, apart = OPTIMIZERS[name], scalars(11, dtype), scalars(11, dtype)
    optimizer, of_each = make(together), [make([weight]) for weight in apart]
    for step in range(5):
        set_gradients(together, step)
        set_gradients(apart, step)
        optimizer.step()
        for alone in of_each:
            alone.step()
    for weight, other, alone in zip(together, apart, of_each, strict=True):
        torch.testing.assert_close(weight, other, rtol=0, atol=0, equal_nan=True)
        state, expected = optimizer.state[weight], alone.state[other]
        torch.testing.assert_close(dict(state), dict(expected), rtol=0, atol=0, equal_nan=True)


def test_many_weights_step_as_torchs_adamw_steps_them():
    weights, references = scalars(50, torch.float64), scalars(50, torch.float64)
    optimizer, reference = gradtx.optim.AdamW(weights, lr=0.1), torch.optim.AdamW(references, lr=0.1)
    for _ in range(5):
        for weight, other in zip(weights, references, strict=True):
            weight.grad, other.grad = weight.detach().sin(), other.detach().sin()
        optimizer.step()
        reference.step()
    assert_close(weights, references, 1e-12)


def test_a_step_of_many_weights_calls_as_many_operations_as_one_of_few():
    calls = []
    for count in (10, 100):
        weights = scalars(count)
        optimizer = gradtx.optim.AdamW(weights)
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        optimizer.step()
        with torch.profiler.profile() as profile:
            optimizer.step()
        events = profile.key_averages()
        calls.append(
            {event.key: event.count for event in events if event.key in ("aten::mul", "aten::sqrt_", "aten::div_")}
        )
    assert calls[0] == calls[1]
    assert calls[0]


def test_state_and_weights_keep_their_memory():
    weights = scalars(9)
    optimizer = gradtx.optim.AdamW(weights)
    addresses = []
    for _ in range(3):
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        optimizer.step()
        tensors = [*weights, *(optimizer.state[weight]["exp_avg"] for weight in weights)]
        assert all(tensor.shape == () for tensor in tensors)
        addresses.append([tensor.data_ptr() for tensor in tensors])
    assert addresses[0] == addresses[1] == addresses[2]
