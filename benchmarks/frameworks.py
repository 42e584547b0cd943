"""Measure AdamW's step as frameworks call it, relative to torch's, on 4, 16 and 161 leaves of 64 x 64.

In each cell: the default over torch's foreach step, `compile=True` over torch's fused step, all called alike and in
turn. A row is what happens around steps: a closure (Lightning, skorch, Composer), a frozen parameter (peft), a
scheduler, new gradients (`zero_grad`), and weights in new memory (`param.data = ...`: FSDP, BoTorch, pykeen).

python benchmarks/frameworks.py [rows]
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from typing import Any

import torch
from common import Shapes, interleaved, machine, parameters, ratio

import gradtx

LEAVES = (4, 16, 161)
SHAPE, ROUNDS, WARM = (64, 64), 60, 10
STEPS_OF_A_ROUND = 400  # of one leaf; fewer of more leaves
Step = Callable[[], object]
Make = Callable[[list[torch.Tensor]], Any]
CONTESTANTS: dict[str, Make] = {
    "foreach": lambda params: torch.optim.AdamW(params, foreach=True),
    "default": lambda params: gradtx.optim.AdamW(params),
    "fused": lambda params: torch.optim.AdamW(params, fused=True),
    "compiled": lambda params: gradtx.optim.AdamW(params, compile=True),
}


def bare_loop(make: Make, params: list[torch.Tensor]) -> Step:
    return make(params).step


def closure(make: Make, params: list[torch.Tensor]) -> Step:
    optimizer, loss = make(params), torch.tensor(1.0)
    return lambda: optimizer.step(lambda: loss)


def frozen_parameter(make: Make, params: list[torch.Tensor]) -> Step:
    frozen = torch.zeros(SHAPE, requires_grad=False)
    return make([*params, torch.nn.Parameter(frozen, requires_grad=False)]).step


def lambda_lr(make: Make, params: list[torch.Tensor]) -> Step:
    optimizer = make(params)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: 1 / (1 + t * 1e-3)
    )

    def step() -> None:
        optimizer.step()
        scheduler.step()

    return step


def new_gradients(make: Make, params: list[torch.Tensor]) -> Step:
    optimizer = make(params)
    turns = [[torch.clone(param.grad) for param in params] for _ in range(2)]  # type: ignore[arg-type]

    def step() -> None:
        turns.reverse()
        for param, gradient in zip(params, turns[0], strict=True):
            param.grad = gradient
        optimizer.step()

    return step


def new_memory(make: Make, params: list[torch.Tensor]) -> Step:
    optimizer = make(params)
    turns = [[param.detach().clone() for param in params] for _ in range(2)]

    def step() -> None:
        turns.reverse()
        for param, weights in zip(params, turns[0], strict=True):
            param.data = weights
        optimizer.step()

    return step


ROWS = (
    bare_loop,
    closure,
    frozen_parameter,
    lambda_lr,
    new_gradients,
    new_memory,
)


def repeated(step: Step, count: int) -> Step:
    def steps() -> None:
        for _ in range(count):
            step()

    return steps


def cell(row: Callable[[Make, list[torch.Tensor]], Step], leaves: int) -> str:
    """Return both ratios of a row."""
    shapes: Shapes = [SHAPE] * leaves
    steps: dict[str, Step] = {}
    for name, make in CONTESTANTS.items():
        step = row(make, parameters(shapes))
        steps[name] = repeated(step, max(1, STEPS_OF_A_ROUND // (leaves + 10)))
    gc.collect()
    gc.disable()
    times = interleaved(steps, ROUNDS, WARM)
    gc.enable()
    default = ratio(times["default"], times["foreach"])
    compiled = ratio(times["compiled"], times["fused"])
    return f"{default:.2f}, {compiled:.2f}"


def main(names: list[str]) -> None:
    print(machine())
    print("\nDefault over foreach, compiled over fused.\n")
    print("| | " + " | ".join(f"{leaves} leaves" for leaves in LEAVES) + " |")
    print("|---|" + "---|" * len(LEAVES))
    for row in ROWS:
        if names and row.__name__ not in names:
            continue
        cells = [cell(row, leaves) for leaves in LEAVES]
        title = row.__name__.replace("_", " ")
        print(f"| {title} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
