"""Compare pure updates with TorchOpt: `update` and `apply_updates` of AdamW on trees of small tensors, in one run.

pip install torchopt==0.7.3
python benchmarks/pure_updates.py
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
import torchopt  # pyright: ignore[reportMissingImports]
from common import interleaved, machine

import gradtx

ROUNDS, REPEATS = 30, 10
TREES = {
    "4 leaves of 16 x 16": (4, 16),
    "16 leaves of 64 x 64": (16, 64),
    "161 leaves of 64 x 64": (161, 64),
}


def tree(count: int, size: int, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        f"layers.{i}.weight": torch.randn(size, size, generator=generator)
        for i in range(count)
    }


def ours(
    params: dict[str, torch.Tensor], gradients: dict[str, torch.Tensor]
) -> Callable[[], object]:
    tx = gradtx.adamw(lr=1e-3)
    state = tx.init(params)

    def step() -> None:
        for _ in range(REPEATS):
            updates, _ = tx.update(gradients, state, params)
            gradtx.apply_updates(params, updates)

    return step


def theirs(
    params: dict[str, torch.Tensor], gradients: dict[str, torch.Tensor]
) -> Callable[[], object]:
    tx: Any = torchopt.adamw(lr=1e-3)
    state = tx.init(params)

    def step() -> None:
        for _ in range(REPEATS):
            updates, _ = tx.update(gradients, state, params=params, inplace=False)
            torchopt.apply_updates(params, updates, inplace=False)

    return step


def main() -> None:
    print(machine(), f"torchopt {torchopt.__version__}", sep=", ")
    print("\n| tree | gradtx, ms | TorchOpt, ms | ratio |\n|---|---|---|---|")
    for name, (count, size) in TREES.items():
        params, gradients = tree(count, size, 0), tree(count, size, 1)
        times = interleaved(
            {"gradtx": ours(params, gradients), "TorchOpt": theirs(params, gradients)},
            ROUNDS,
        )
        own, other = (
            1e3 * statistics.median(each) / REPEATS for each in times.values()
        )
        print(f"| {name} | {own:.3f} | {other:.3f} | {own / other:.2f} |")


if __name__ == "__main__":
    main()
