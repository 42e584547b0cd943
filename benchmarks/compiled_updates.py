"""Time functional updates inside `torch.compile`: the first call, of which dynamo's part, and later calls.

python benchmarks/compiled_updates.py

Each line is a process of its own, with an empty cache and one thread, after torch's compiler has started. The leaves
have different sizes. Later calls stand beside those of the optimizer, which writes in place.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

import torch
from common import interleaved, machine
from tqdm import tqdm

import gradtx

CHAINS = {
    "adamw": lambda: gradtx.adamw(lr=1e-3),
    "clip + adamw": lambda: gradtx.chain(
        gradtx.clip_by_global_norm(1.0), gradtx.adamw(lr=1e-3)
    ),
    "lion": lambda: gradtx.lion(lr=1e-3),
    "sgd": lambda: gradtx.sgd(lr=1e-3, momentum=0.9),
}
# The number of leaves, and their width.
SIZES = {
    "64 of 16 x 16": (64, 16),
    "161 of 16 x 16": (161, 16),
    "64 of 256 x 256": (64, 256),
}
ROUNDS = 50


def tree(count: int, width: int, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        f"layers.{i}.weight": torch.randn(width, width + i, generator=generator)
        for i in range(count)
    }


def start_compiler() -> float:
    """Compile an empty function; return the seconds."""
    start = time.perf_counter()
    torch.compile(lambda x: x + 1)(torch.ones(7))
    return time.perf_counter() - start


def seconds_in_dynamo() -> float:
    """Return the seconds that dynamo took to trace the last function."""
    times = torch._dynamo.utils.compilation_time_metrics["bytecode_tracing"]
    return times[-1]


def functional(
    tx: gradtx.GradientTransformation,
    params: dict[str, torch.Tensor],
    gradients: dict[str, torch.Tensor],
) -> Callable[[], object]:
    """Return a compiled step of functions."""

    @torch.compile(fullgraph=True)
    def stepped(gradients, state, params):
        updates, state = tx.update(gradients, state, params)
        return gradtx.apply_updates(params, updates), state

    at = [params, tx.init(params)]

    def step() -> None:
        at[:] = stepped(gradients, at[1], at[0])

    return step


def in_place(
    tx: gradtx.GradientTransformation,
    params: dict[str, torch.Tensor],
    gradients: dict[str, torch.Tensor],
) -> Callable[[], object]:
    """Return the step of a compiled optimizer."""
    weights = {name: torch.nn.Parameter(x.clone()) for name, x in params.items()}
    for name, weight in weights.items():
        weight.grad = gradients[name]
    return gradtx.as_optimizer(tx, weights.items(), compile=True).step


def measure(chain: str, size: str) -> None:
    """Print one line of the table."""
    torch.set_num_threads(1)
    start_compiler()
    params, gradients = (tree(*SIZES[size], seed) for seed in (0, 1))
    step = functional(CHAINS[chain](), params, gradients)
    start = time.perf_counter()
    step()
    first, traced = time.perf_counter() - start, seconds_in_dynamo()
    steps = {
        "functional": step,
        "in place": in_place(CHAINS[chain](), params, gradients),
    }
    later, fused = (1e3 * min(each) for each in interleaved(steps, ROUNDS).values())
    print(
        f"| {chain} | {size} | {first:.1f} | {traced:.1f} | {later:.2f} | {fused:.2f} |"
    )


def print_table(
    script: str, columns: Sequence[str], lines: Sequence[tuple[str, ...]]
) -> None:
    """Print a table; each line is printed by a process of its own, with an empty cache."""
    print(machine())
    print(f"\n| {' | '.join(columns)} |")
    print(f"|{'---|' * len(columns)}", flush=True)
    for line in tqdm(lines, desc="processes", disable=None, leave=False):
        with tempfile.TemporaryDirectory() as cache:
            environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
            command = [sys.executable, script, *line]
            subprocess.run(command, env=environment, check=True)


COLUMNS = (
    *("chain", "leaves", "first call, s", "in dynamo, s"),
    *("later, ms", "optimizer, ms"),
)


def main() -> None:
    print_table(
        __file__, COLUMNS, [(chain, size) for size in SIZES for chain in CHAINS]
    )


if __name__ == "__main__":
    measure(*sys.argv[1:]) if len(sys.argv) > 1 else main()
