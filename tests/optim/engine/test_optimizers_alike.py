"""Optimizers like an earlier one: they take over its plan, and step as they would without it."""

import gc
import weakref

import pytest
import torch

import gradtx
from gradtx.optim.engine import Engine

WAYS = pytest.mark.parametrize("compile", [False, True], ids=["lists", "compiled"])
SHAPES = [(3, 4), (3, 4), (5,), (2, 2)]


def parameters(shapes=SHAPES, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def give_gradients(params, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator, dtype=param.dtype)


def trained(optimizer, params, steps=3):
    for i in range(steps):
        give_gradients(params, seed=i)
        optimizer.step()
    return [param.detach().clone() for param in params]


def torch_adamw(shapes=SHAPES, seed=0, **options):
    params = parameters(shapes, seed)
    return trained(torch.optim.AdamW(params, foreach=False, **options), params)


@pytest.fixture
def planned(monkeypatch):
    """The parameters of each plan that is made from scratch."""
    made, make = [], Engine._make_plan

    def counted(self, fingerprint, members, *others):
        made.append(len(members))
        return make(self, fingerprint, members, *others)

    monkeypatch.setattr(Engine, "_make_plan", counted)
    return made


@WAYS
def test_an_optimizer_like_an_earlier_one_plans_nothing_and_steps_as_in_torch(compile, planned):
    for seed in range(4):
        params = parameters(seed=seed)
        rate = 0.1 / (seed + 1)
        trained_weights = trained(gradtx.optim.AdamW(params, lr=rate, compile=compile), params)
        torch.testing.assert_close(trained_weights, torch_adamw(seed=seed, lr=rate))
        if seed == 0:
            planned.clear()
    assert not planned


@WAYS
def test_a_cleared_state_is_planned_no_second_time(compile, planned):
    params = parameters()
    optimizer = gradtx.optim.AdamW(params, lr=0.1, compile=compile)
    trained(optimizer, params)
    planned.clear()
    optimizer.state.clear()
    for param, weights in zip(params, parameters(seed=7), strict=True):
        param.data.copy_(weights)
    torch.testing.assert_close(trained(optimizer, params), torch_adamw(seed=7, lr=0.1))
    assert not planned


def transposed(params):
    params[0].data = params[0].data.clone().t().contiguous().t()


def with_gaps(params):
    params[2].data = params[2].data.repeat_interleave(2)[::2]


def halved(params):
    params[3].data = params[3].data.bfloat16()


def sharing_memory(params):
    params[1].data = params[0].data


def without_a_gradient(params):
    params[1].requires_grad_(False)


@pytest.mark.parametrize("change", [transposed, with_gaps, halved, sharing_memory, without_a_gradient])
@WAYS
def test_an_optimizer_whose_parameters_differ_steps_as_if_it_were_the_first(compile, change):
    weights = []
    for seed in (5, 5):
        plain = parameters()
        trained(gradtx.optim.AdamW(plain, lr=0.1, compile=compile), plain)
        params = parameters(seed=seed)
        change(params)
        optimizer = gradtx.optim.AdamW(params, lr=0.1, compile=compile)
        if not weights:  # nothing is known
            for engine in optimizer._core.back_ends:
                engine._precedents = lambda *_: None
        for i in range(3):
            give_gradients(params, seed=i)
            for param in params:
                if not param.requires_grad:
                    param.grad = None
            optimizer.step()
        weights.append([param.detach().clone() for param in params])
    for first, second in zip(*weights, strict=True):
        assert torch.equal(first, second)


@WAYS
def test_slots_that_the_user_has_made_wider_keep_their_dtype_beside_known_plans(compile):
    params, wide = parameters(), parameters()
    trained(gradtx.optim.AdamW(params, lr=0.1, compile=compile), params)
    optimizer = gradtx.optim.AdamW(wide, lr=0.1, compile=compile)
    trained(optimizer, wide, steps=1)
    for param in wide:
        state = optimizer.state[param]
        state["exp_avg_sq"] = state["exp_avg_sq"].double()
    trained(optimizer, wide)
    assert all(optimizer.state[param]["exp_avg_sq"].dtype == torch.float64 for param in wide)


@WAYS
def test_what_is_kept_for_later_optimizers_holds_no_parameter_gradient_or_slot(compile):
    gone = []
    for _ in range(2):
        params = parameters()
        optimizer = gradtx.optim.AdamW(params, lr=0.1, compile=compile)
        trained(optimizer, params)
        tensors = [*params, *(param.grad for param in params)]
        for param in params:
            tensors += optimizer.state[param].values()
        gone += map(weakref.ref, tensors)
        del params, optimizer, tensors, param
    gc.collect()
    assert all(tensor() is None for tensor in gone)


@WAYS
def test_groups_and_names_are_those_of_each_optimizer(compile):
    for prefix, rates in (("a", (0.1, 0.2)), ("b", (0.3, 0.4))):
        params, theirs = parameters(), parameters()
        named = [(f"{prefix}{i}", param) for i, param in enumerate(params)]
        groups = [{"params": named[:2], "lr": rates[0]}, {"params": named[2:], "lr": rates[1]}]
        optimizer = gradtx.optim.AdamW(groups, compile=compile)
        weights = trained(optimizer, params)
        split = [{"params": theirs[:2], "lr": rates[0]}, {"params": theirs[2:], "lr": rates[1]}]
        torch.testing.assert_close(weights, trained(torch.optim.AdamW(split, foreach=False), theirs))
        assert [way.name for way in optimizer.explain()] == [f"{prefix}{i}" for i in range(len(SHAPES))]
