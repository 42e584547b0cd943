"""Compare compiled steps that reduce rows, columns and channels with compiled AdamW on the same tensors, in one run.

AdamW moves seven arrays of entries through memory and reduces none. Matrices and filters are rows of the table.

    python benchmarks/columns.py [names]     # prints a table
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from common import Shapes, gpt, interleaved, machine, parameters, ratio, resnet50
from tqdm import tqdm

import gradtx

ROUNDS = 41
NAMES = ("SM3", "AdaFactor", "CAME", "AdamMini", "AdaTAM", "factored")
SHAPES: dict[str, Shapes] = {
    "GPT": gpt(),
    "2048 x 2048": [(2048, 2048)],
    "1000 x 2048": [(1000, 2048)],
    "16 x 3 x 224 x 224": [(16, 3, 224, 224)],
    "ResNet-50": resnet50(),
    "512 x 512 x 3 x 3": [(512, 512, 3, 3)],
    "64 x 64 x 3 x 3": [(64, 64, 3, 3)],
    "64 x 3 x 7 x 7": [(64, 3, 7, 7)],
}
# Shorter steps are repeated, so that the clock's resolution does not matter.
LEAST_ENTRIES = 2_000_000


def optimizer_of(name: str, params: list[torch.Tensor]) -> Any:
    if name == "factored":
        tx = gradtx.chain(gradtx.scale_by_factored_rms(), gradtx.scale(-1e-3))
        return gradtx.as_optimizer(tx, params, compile=True)
    return getattr(gradtx.optim, name)(params, compile=True)


def row_of(shapes: Shapes, names: list[str]) -> list[str]:
    """Return a cell for each name: the time over AdamW's."""
    params = {name: parameters(shapes) for name in ("AdamW", *names)}
    entries = sum(param.numel() for param in params["AdamW"])
    repeats = max(LEAST_ENTRIES // entries, 1)

    def stepper(name: str) -> Any:
        step = optimizer_of(name, params[name]).step
        return lambda: [step() for _ in range(repeats)]

    times = interleaved({name: stepper(name) for name in params}, ROUNDS)
    return [f"{ratio(times[name], times['AdamW']):.2f}" for name in names]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "names", nargs="*", help=f"classes of gradtx.optim; by default {NAMES}"
    )
    names: list[str] = parser.parse_args().names or [*NAMES]
    print(machine())
    print(f"| compiled, over compiled AdamW | {' | '.join(names)} |")
    print(f"|---|{'---:|' * len(names)}")
    for label, shapes in tqdm(SHAPES.items(), desc="shapes", disable=None):
        tqdm.write(f"| {label} | {' | '.join(row_of(shapes, names))} |")


if __name__ == "__main__":
    main()
