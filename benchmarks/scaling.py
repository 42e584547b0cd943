"""Measure how AdamW's cost grows with the number of leaves, from 10 to 10,000, and on one leaf of 2^24 entries.

python benchmarks/scaling.py
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from common import Shapes, interleaved, machine, parameters, seconds

import gradtx

SHAPES: dict[str, Shapes] = {
    "10 of 16 x 16": [(16, 16)] * 10,
    "100": [(16, 16)] * 100,
    "1,000": [(16, 16)] * 1000,
    "5,000": [(16, 16)] * 5000,
    "10,000": [(16, 16)] * 10_000,
    "1 of 2^24": [(4096, 4096)],
}
ROUNDS = 10


def pure_step(params: list[torch.Tensor]) -> Callable[[], object]:
    tx = gradtx.adamw(lr=1e-3)
    tree = {str(i): param.detach() for i, param in enumerate(params)}
    gradients = {str(i): param.grad for i, param in enumerate(params)}
    state: Any = tx.init(tree)
    return lambda: tx.update(gradients, state, tree)


def once(shapes: Shapes) -> tuple[float, float, float]:
    """Return the seconds of the constructor, of the first step and of `load_state_dict`."""
    params = parameters(shapes)
    start = time.perf_counter()
    optimizer = gradtx.optim.AdamW(params, lr=1e-3)
    built = time.perf_counter() - start
    first = seconds(optimizer.step)
    saved = copy.deepcopy(optimizer.state_dict())
    return built, first, seconds(lambda: optimizer.load_state_dict(saved))


def steps_of(shapes: Shapes) -> dict[str, Callable[[], object]]:
    ours = gradtx.optim.AdamW
    return {
        "loop": torch.optim.AdamW(parameters(shapes), foreach=False).step,
        "foreach": torch.optim.AdamW(parameters(shapes), foreach=True).step,
        "fused": torch.optim.AdamW(parameters(shapes), fused=True).step,
        "default": ours(parameters(shapes), lr=1e-3).step,
        "compiled": ours(parameters(shapes), lr=1e-3, compile=True).step,
        "pure": pure_step(parameters(shapes)),
    }


def main() -> None:
    print(machine())
    once([(16, 16)] * 10)  # imports and programs
    modes = list(steps_of(SHAPES["10 of 16 x 16"]))
    columns = ["leaves", "constructor, s", "first step, s", "load, s", *modes]
    print("\nSteps in us per leaf.\n")
    print("| " + " | ".join(columns) + " |\n|---|" + "---:|" * (len(columns) - 1))
    for name, shapes in SHAPES.items():
        cells = [f"{value:.3f}" for value in once(shapes)]
        for times in interleaved(steps_of(shapes), ROUNDS).values():
            cells.append(f"{1e6 * statistics.median(times) / len(shapes):.1f}")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
