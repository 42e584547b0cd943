"""What a warm step of an optimizer without features calls: links and features that are absent cost nothing."""

import sys
from pathlib import Path

import pytest
import torch

import gradtx

PACKAGE = Path(gradtx.__file__).parent


def walk_of(optimizer):
    """The functions of the package that one step calls, by file, and how deep the calls are nested."""
    functions, depth, deepest = set(), 0, 0

    def observe(frame, event, argument):
        nonlocal depth, deepest
        code = frame.f_code
        if not Path(code.co_filename).is_relative_to(PACKAGE):
            return
        if event == "call":
            depth += 1
            deepest = max(deepest, depth)
            functions.add((code.co_filename, code.co_qualname))
        elif event == "return":
            depth -= 1

    before = sys.getprofile()
    sys.setprofile(observe)
    try:
        optimizer.step()
    finally:
        sys.setprofile(before)
    return functions, deepest


@pytest.mark.parametrize("leaves", [1, 16])
def test_a_warm_step_of_adamw_is_short(leaves):
    params = [torch.nn.Parameter(torch.ones(3, 3)) for _ in range(leaves)]
    optimizer = gradtx.optim.AdamW(params)
    for param in params:
        param.grad = torch.ones(3, 3)
    for _ in range(4):
        optimizer.step()
    functions, deepest = walk_of(optimizer)
    assert len(functions) <= 50
    assert len({file for file, _ in functions}) <= 12
    assert deepest <= 10
