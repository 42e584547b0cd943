"""Leaves whose counts, gradients and groups differ step together as each would alone."""

import pytest
import torch

import gradtx

SHAPES = [(3, 4), (5,), (2, 3), (4,)]
BOTH = pytest.mark.parametrize("compile", [False, True], ids=["lists", "compiled"])


def parameters():
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, dtype=torch.float64, generator=generator)) for shape in SHAPES]


@BOTH
@pytest.mark.parametrize(
    "make",
    [lambda: gradtx.asgd(lr=0.1, t0=3.0), lambda: gradtx.chain(gradtx.adamw(lr=0.1), gradtx.lookahead(k=3))],
    ids=["asgd", "lookahead"],
)
def test_rows_that_skip_work_in_other_steps_than_others_have_their_own_bits(make, compile):
    ours, single = parameters(), parameters()
    together = gradtx.as_optimizer(make(), ours, compile=compile)
    alone = [gradtx.as_optimizer(make(), [param], compile=compile) for param in single]
    generator = torch.Generator().manual_seed(1)
    for pattern in (0b1111, 0b0111, 0b0011, 0b0001, 0b1111, 0b1111, 0b1010, 0b1111):
        for i, (param, own) in enumerate(zip(ours, single, strict=True)):
            own.grad = param.grad = None
            if pattern >> i & 1:
                param.grad = torch.randn(SHAPES[i], dtype=torch.float64, generator=generator)
                own.grad = param.grad.clone()
        together.step()
        for optimizer, own in zip(alone, single, strict=True):
            if own.grad is not None:
                optimizer.step()
    for param, own in zip(ours, single, strict=True):
        assert torch.equal(param, own)


@BOTH
def test_a_parameter_whose_state_was_removed_starts_again_after_a_step_that_it_and_the_oldest_missed(compile):
    params = parameters()
    optimizer = gradtx.as_optimizer(gradtx.adamw(lr=0.1), params, compile=compile)

    def step(present):
        for i, param in enumerate(params):
            param.grad = torch.ones_like(param) if i in present else None
        optimizer.step()

    step({0, 1, 2, 3})
    step({0})
    optimizer.state.pop(params[3])
    step({1})
    step({0, 1, 2, 3})
    step({3})
    assert [int(optimizer.state[param]["step"]) for param in params] == [3, 3, 2, 2]


@BOTH
@pytest.mark.parametrize("make", [gradtx.soap, gradtx.adamw, gradtx.lion], ids=["soap", "adamw", "lion"])
def test_one_group_has_a_number_where_another_has_a_tensor_under_a_scaler(make, compile):
    both = []
    for kind in (float, torch.tensor):
        params = parameters()
        groups = [{"params": params[:2]}, {"params": params[2:]}]
        optimizer = gradtx.as_optimizer(make(lr=0.1), groups, compile=compile, amp_scaling=True)
        optimizer.param_groups[1]["lr"] = kind(0.25)
        for present in ({0, 1, 2, 3}, {1, 2}, {0, 2, 3}):
            for i, param in enumerate(params):
                param.grad = torch.linspace(1.0, 2.0, param.numel()).double().view_as(param) if i in present else None
            optimizer.found_inf, optimizer.grad_scale = torch.zeros(()), torch.ones(())
            optimizer.step()
        both.append(params)
    torch.testing.assert_close(*both, rtol=1e-12, atol=0)


@BOTH
def test_a_transposed_gradient_is_read_in_its_order_also_after_a_step_without_it(compile):
    ours, theirs = parameters(), parameters()
    optimizer = gradtx.optim.AdamW(ours, lr=0.1, compile=compile)
    reference = torch.optim.AdamW(theirs, lr=0.1)
    for present in ({0, 1, 2, 3}, {1, 2}, {0, 1}, {1, 3}, {0, 1, 2, 3}):
        for i, (param, other) in enumerate(zip(ours, theirs, strict=True)):
            param.grad = other.grad = None
            if i in present:
                gradient = torch.linspace(-1.0, 1.0, param.numel()).double().view_as(param)
                param.grad = gradient.mT.contiguous().mT if i == 0 else gradient
                other.grad = gradient.clone()
        optimizer.step()
        reference.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
