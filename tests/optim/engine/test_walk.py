"""What warm steps and pure updates without features call: links and features that are absent cost nothing."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gradtx

PACKAGE = Path(gradtx.__file__).parent


def walk_of(step):
    """The functions of the package that one step calls, in order and by file, and how deep the calls are nested."""
    calls, depth, deepest = [], 0, 0

    def observe(frame, event, argument):
        nonlocal depth, deepest
        code = frame.f_code
        if not Path(code.co_filename).is_relative_to(PACKAGE):
            return
        if event == "call":
            depth += 1
            deepest = max(deepest, depth)
            calls.append((code.co_filename, code.co_qualname))
        elif event == "return":
            depth -= 1

    before = sys.getprofile()
    sys.setprofile(observe)
    try:
        step()
    finally:
        sys.setprofile(before)
    return calls, deepest


def warm(tx, leaves, **options):
    params = [torch.nn.Parameter(torch.ones(3, 3)) for _ in range(leaves)]
    optimizer = gradtx.as_optimizer(tx, params, **options)
    for param in params:
        param.grad = torch.ones(3, 3)
    for _ in range(4):
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("leaves", [1, 16])
def test_a_warm_step_of_adamw_is_short(leaves):
    calls, deepest = walk_of(warm(gradtx.adamw(), leaves).step)
    assert len(calls) <= 45
    assert len({file for file, _ in calls}) <= 11
    assert deepest <= 10


FIRST_STEP = """
import torch, gradtx
from tests.optim.engine.test_walk import walk_of
params = [torch.nn.Parameter(torch.ones(3, 3)) for _ in range(4)]
optimizer = gradtx.optim.AdamW(params)
for param in params:
    param.grad = torch.ones(3, 3)
calls, _ = walk_of(optimizer.step)
print(len(set(calls)), len({file for file, _ in calls}))
"""


def test_a_first_step_of_adamw_meets_a_bounded_part_of_the_package():
    """What a reader of a first step has to know; in a new process, in which nothing was planned or recorded before."""
    command = [sys.executable, "-c", FIRST_STEP]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr
    functions, files = map(int, done.stdout.split())
    assert functions <= 677
    assert files <= 67


RATE = gradtx.cosine_schedule(1e-3, T_max=1000)


def clipped(tx):
    return gradtx.chain(gradtx.clip_by_global_norm(1.0), tx)


@pytest.mark.parametrize(
    ("tx", "most"),
    [(gradtx.adamw(RATE), 50), (clipped(gradtx.adamw()), 75), (clipped(gradtx.adamw(RATE)), 85)],
    ids=["schedule", "clip", "both"],
)
@pytest.mark.parametrize("leaves", [1, 16])
def test_a_schedule_and_a_clip_add_a_few_calls_for_all_leaves(tx, most, leaves):
    calls, _ = walk_of(warm(tx, leaves).step)
    assert len(calls) <= most


@pytest.mark.parametrize("leaves", [1, 16])
def test_a_warm_step_of_compiled_adamw_is_short(leaves):
    calls, _ = walk_of(warm(gradtx.adamw(), leaves, compile=True).step)
    assert len(calls) <= 55


def test_a_pure_update_of_trees_that_were_seen_calls_nothing_for_each_leaf():
    lengths = set()
    for leaves in (2, 32):
        params = {f"layers.{i}.weight": torch.ones(3, 3) for i in range(leaves)}
        gradients = {name: param.clone() for name, param in params.items()}
        tx = gradtx.adamw()
        state = tx.init(params)

        def step(tx=tx, state=state, params=params, gradients=gradients):
            updates, _ = tx.update(gradients, state, params)
            gradtx.apply_updates(params, updates)

        for _ in range(2):
            step()
        calls, _ = walk_of(step)
        lengths.add(len(calls))
    assert len(lengths) == 1
    assert max(lengths) <= 75


@pytest.mark.parametrize("options", [{}, {"compile": True}], ids=["lists", "compiled"])
def test_a_warm_step_with_a_closure_calls_a_few_functions_more(options):
    optimizer = warm(gradtx.adamw(), 16, **options)
    plain, _ = walk_of(optimizer.step)

    def closure():
        return torch.tensor(1.0)

    for _ in range(2):
        optimizer.step(closure)
    calls, _ = walk_of(lambda: optimizer.step(closure))
    assert len(calls) <= len(plain) + 15
