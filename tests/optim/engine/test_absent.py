"""What `explain` says of parameters that come and go."""

import pytest
import torch

import gradtx


@pytest.mark.parametrize("compile", [False, True], ids=["lists", "compiled"])
def test_a_parameter_without_a_gradient_is_absent_and_not_alone(compile):
    params = [torch.nn.Parameter(torch.ones(4)) for _ in range(2)]
    optimizer = gradtx.optim.AdamW(params, compile=compile)
    ways = []
    for present in (params[:1], params, params[:1], params):
        for param in params:
            param.grad = torch.ones(4) if any(param is other for other in present) else None
        optimizer.step()
        ways.append([item.way for item in optimizer.explain()])
    program = "kernels" if compile else "lists"
    assert ways == [[program, "not yet"], [program] * 2, [program, "absent"], [program] * 2]
    assert "absent" not in str(optimizer.explain())
