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
