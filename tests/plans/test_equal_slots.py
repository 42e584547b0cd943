"""0-d slots that are equal in all leaves: one number stands for them in a program over lists."""

import pytest
import torch

import gradtx
from gradtx.compiler import record
from gradtx.compiler.record import PhaseResult
from gradtx.plans.planner import slots_from_scalars

F64 = torch.float64


def written_slots(function):
    """The positions found in a recording of `function(number, param, a, b, grad)`, which returns new `a` and `b`."""

    def run(arguments):
        _, _, a, b, _ = arguments
        new_a, new_b = function(*arguments)

        def write():
            if new_a is not None:
                a.copy_(new_a)
            if new_b is not None:
                b.copy_(new_b)

        return PhaseResult([], (), None, write)

    return slots_from_scalars(record(run, [F64], [(F64, (3,)), (F64, ()), (F64, ()), (F64, (3,))]))


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda number, param, a, b, grad: (a * number, a + b), [1, 2]),
        (lambda number, param, a, b, grad: (a * number, b + grad.sum()), [1]),
        (lambda number, param, a, b, grad: (a * b, b + grad.sum()), []),  # a follows from b
        (lambda number, param, a, b, grad: (a + param.numel(), None), [1]),  # b is never written
    ],
)
def test_only_slots_that_follow_from_numbers_are_numbers(function, expected):
    assert written_slots(function) == expected


def parameters(sizes=(3, 5, (), 2, 0), seed=0):
    generator = torch.Generator().manual_seed(seed)
    params = [torch.nn.Parameter(torch.randn(size, generator=generator, dtype=F64)) for size in sizes]
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator, dtype=F64)
    return params


MAKERS = [
    lambda params: gradtx.optim.ASGD(params, lr=0.1, t0=2.0),
    lambda params: gradtx.optim.NAdam(params, lr=0.1),
    lambda params: gradtx.optim.ScheduleFreeSGD(params, lr=0.1, warmup_steps=3),
    lambda params: gradtx.optim.ScheduleFreeAdamW(params, lr=0.1, warmup_steps=3),
    lambda params: gradtx.optim.AdamC(params, lr=0.1),
]


@pytest.fixture(params=MAKERS, ids=["ASGD", "NAdam", "ScheduleFreeSGD", "ScheduleFreeAdamW", "AdamC"])
def make(request):
    return request.param


def stepped_alone(make, params, edits=()):
    """The same parameters, each with an optimizer of its own, after six steps."""
    for i, param in enumerate(params):
        optimizer = make([param])
        for step in range(6):
            for at, index, slot, value in edits:
                if (at, index) == (step, i):
                    optimizer.state[param][slot].fill_(value)
            optimizer.step()
    return params


def test_leaves_together_step_as_each_would_alone(make):
    together, alone = parameters(), stepped_alone(make, parameters())
    optimizer = make(together)
    for _ in range(6):
        optimizer.step()
    for param, other in zip(together, alone, strict=True):
        torch.testing.assert_close(param, other, rtol=1e-13, atol=1e-14)


def test_large_leaves_go_in_parts_and_their_numbers_move_once(make, parts_of):
    whole, parts = parameters((40, 3, 64)), parameters((40, 3, 64))
    optimizer = make(whole)
    for _ in range(4):
        optimizer.step()
    parts_of(16)
    in_parts = make(parts)
    for _ in range(4):
        in_parts.step()
    for param, other in zip(whole, parts, strict=True):
        assert torch.equal(param, other)
        for key, value in optimizer.state[param].items():
            assert torch.equal(value, in_parts.state[other][key]), key


def test_equal_numbers_are_no_columns_of_the_program(make, bundled):
    optimizer = make(parameters())
    optimizer.step()
    for signature, splits in bundled:
        assert signature.equal
        assert splits
        assert not set(signature.equal) & set(signature.slots_by_leaf)


def test_slots_of_leaves_have_memory_of_their_own(make):
    params = parameters()
    optimizer = make(params)
    for _ in range(3):
        optimizer.step()
    slots = [slot for param in params for slot in optimizer.state[param].values() if slot.numel()]
    addresses = [slot.data_ptr() for slot in slots]
    assert len(set(addresses)) == len(addresses)


@gradtx.per_tensor
def divide_by_total():
    """Count the updates of matrices; sum the norms of other leaves."""

    def update(update, state, param, ctx):
        total = state["total"] + (1 if update.ndim == 2 else update.norm().double())
        return update / total, {"total": total}

    return {"total": gradtx.slots.scalar(0.0)}, update


def test_slots_that_are_numbers_in_leaves_of_some_shapes_only_stay_apart():
    params = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((4, 4), 1, 1)]
    optimizer = gradtx.as_optimizer(gradtx.chain(divide_by_total(), gradtx.scale_by_learning_rate(1.0)), params)
    for _ in range(2):
        for param, value in zip(params, (1.0, 1.0, 100.0), strict=True):
            param.grad = torch.full_like(param, value)
        optimizer.step()
    assert [optimizer.state[param]["total"].item() for param in params] == [2.0, 2.0, 200.0]
    assert [param.flatten()[0].item() for param in params] == [-1.5, -1.5, -1.5]
