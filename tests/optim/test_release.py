"""Gradients that are released during backward, and gradients that a step consumes."""

import copy
import gc
import itertools
import math
import weakref

import pytest
import torch

import gradtx
from gradtx import chain
from tests.optim.chains import CHAINS

STEPS = 5


def model(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    layers = [torch.nn.Linear(6, 10), torch.nn.LayerNorm(10), torch.nn.Linear(10, 10), torch.nn.Linear(10, 3)]
    return torch.nn.Sequential(*layers).to(dtype)


def batch(i, dtype=torch.float64):
    generator = torch.Generator().manual_seed(100 + i)
    return torch.randn(4, 6, generator=generator, dtype=torch.float64).to(dtype)


def backward(net, i):
    loss = net(batch(i, next(net.parameters()).dtype)).square().mean()
    loss.backward()
    return loss.detach()


def trained(tx, released, steps=STEPS, dtype=torch.float64, calls=1, scheduler=None, **options):
    net = model(dtype=dtype)
    optimizer = gradtx.as_optimizer(tx, net.named_parameters(), **options)
    schedule = None if scheduler is None else scheduler(optimizer)
    if released:
        optimizer.release_gradients()
    number = itertools.count()
    for _ in range(steps):
        for _ in range(calls):
            backward(net, next(number))
        optimizer.step()
        optimizer.zero_grad()
        if schedule is not None:
            schedule.step()
    return net, optimizer


def tensors(net, optimizer):
    everything = {name: p.detach() for name, p in net.named_parameters()}
    for name, param in net.named_parameters():
        for key, value in optimizer.state[param].items():
            everything[f"{name} {key}"] = value
    return everything


def assert_same_bits(first, second):
    first, second = tensors(*first), tensors(*second)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


RELEASABLE = {
    "sgd": lambda: gradtx.sgd(lr=0.1, momentum=0.9, nesterov=True),
    "adamw": lambda: gradtx.adamw(lr=0.01, weight_decay=0.1),
    "adamw8": lambda: gradtx.adamw(lr=0.01, state_dtype={"exp_avg": "int8", "exp_avg_sq": "int8"}),
    "lion": lambda: gradtx.lion(lr=0.01, weight_decay=0.1),
    "lamb": lambda: gradtx.lamb(lr=0.01),
    "muon": lambda: gradtx.muon(lr=0.01, fallback=gradtx.adamw(lr=0.01)),
    "soap": lambda: gradtx.soap(lr=0.01, precondition_frequency=2),
    "schedule": lambda: gradtx.adamw(lr=gradtx.schedules.linear_schedule(0.1, 0.01, 4)),
    "schedule_free": lambda: gradtx.schedule_free_adamw(lr=0.01),
    "stochastic": lambda: chain(gradtx.adamw(lr=0.01), gradtx.round_stochastically()),
    "compensated": lambda: chain(gradtx.adamw(lr=0.01), gradtx.compensate_rounding()),
    "lookahead": lambda: gradtx.with_lookahead(gradtx.adamw(lr=0.01), 2),
    "accumulate": lambda: gradtx.accumulate(gradtx.adamw(lr=0.01), 2),
    "noise": lambda: chain(gradtx.add_noise(0.1, 0.55, seed=3), gradtx.adamw(lr=0.01)),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", RELEASABLE)
def test_numbers_equal_those_of_ordinary_steps_bit_for_bit(name, dtype):
    ordinary = trained(RELEASABLE[name](), False, dtype=dtype)
    released = trained(RELEASABLE[name](), True, dtype=dtype)
    assert_same_bits(ordinary, released)
    assert ordinary[1].param_groups[0]["lr"] == released[1].param_groups[0]["lr"]
