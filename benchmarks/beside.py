"""Measure what training does beside warm steps: loads, starts, groups, containers, 16 bits, odd memory, watching.

One thread. Each figure is a median of rounds in which all contestants take turns. Default steps are compared with
torch's foreach steps and compiled ones with its fused steps, pure updates with TorchOpt's, if it is installed. Peaks of
memory are those of processes of their own.

python benchmarks/beside.py [--quick] [--only TABLE ...]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import beside_pure as pure
import beside_starts as starts
import beside_steps as steps
import rows  # first, because it sets the allocator
import torch
from common import TUNED, machine, ratio
from rows import MODES, Comparison, Extent, Row
from tqdm import tqdm

QUICK = Extent(share=0.2, entries=2_000_000)


def table(
    title: str, contents: list[Row], comparisons: list[Comparison]
) -> Callable[[Extent], None]:
    return lambda extent: print_rows(title, contents, comparisons, extent)


def print_rows(
    title: str, contents: list[Row], comparisons: list[Comparison], extent: Extent
) -> None:
    heads = [f"{name}, ms | over {reference}" for name, reference in comparisons]
    print(f"\n{title}\n\n| | {' | '.join(heads)} |\n|---|{'---:|---:|' * len(heads)}")
    for row in contents:
        times = rows.times_of(row, extent)
        cells: list[str] = []
        for name, reference in comparisons:
            over = "no TorchOpt"
            if reference in times:
                over = f"{ratio(times[name], times[reference]):.2f}"
            cells += [f"{1e3 * statistics.median(times[name]):.3g}", over]
        print(f"| {row.title} | {' | '.join(cells)} |", flush=True)


# Memory


def peak(case: str, mode: str, dtype: str, entries: int) -> int:
    """Return the bytes that a case needs at its peak in a process whose allocator returns what is freed."""
    environment = {
        name: value for name, value in os.environ.items() if name not in TUNED
    }
    environment |= {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    script = str(Path(__file__).with_name("beside_memory.py"))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", script, case, mode, dtype, str(entries)],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    return int(done.stdout.split()[-1])


def print_memory(extent: Extent) -> None:
    modes = ["default", "compiled", "foreach", "fused"]
    print(f"\nPeaks of memory over the weights', {extent.entries} entries\n")
    print(f"| | {' | '.join(modes)} |\n|---|{'---:|' * len(modes)}")
    titles = {"load": "load_state_dict and a step", "first": "first step"}
    for case, title in titles.items():
        for dtype in ("float32", "bfloat16", "float16"):
            size = extent.entries * getattr(torch, dtype).itemsize
            cells = [
                f"{peak(case, mode, dtype, extent.entries) / size:.2f}"
                for mode in tqdm(
                    modes, desc=f"{title}, {dtype}", disable=None, leave=False
                )
            ]
            print(f"| {title}, {dtype} | {' | '.join(cells)} |", flush=True)


TABLES: dict[str, Callable[[Extent], None]] = {
    "memory": print_memory,
    "starts": table("Starts, AdamW", starts.STARTS, MODES),
    "groups": table("Groups, AdamW", starts.GROUPS, MODES),
    "forms": table("Steps of AdamW", steps.FORMS, MODES),
    "sgd": table("Steps of SGD", steps.FEWEST_PASSES, MODES),
    "containers": table("AdamW's update, 160 leaves", pure.IN_CONTAINERS, pure.OVER_DICT),
    "requiring": table(
        "AdamW's update, 160 leaves", pure.REQUIRING, pure.OVER_DETACHED
    ),
    "turns": table("AdamW's update of trees in turn", pure.TURNS, pure.OVER_ONE),
    "torchopt": table("AdamW's update", pure.BESIDE_TORCHOPT, pure.OVER_TORCHOPT),
    "sweep": table("gradtx.sweep", pure.SWEEPS, pure.OVER_HAND),
    "watch": table("gradtx.watch, AdamW", steps.MEASURED, steps.OVER_PLAIN),
    "cycle": table("torch's schedulers, AdamW", steps.SCHEDULED, MODES),
    "lbfgs": table("L-BFGS", steps.LBFGS, steps.OVER_TORCH),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds of each row")
    parser.add_argument(
        "--only", nargs="+", choices=TABLES, default=list(TABLES), metavar="TABLE",
        help=f"tables to print, of {', '.join(TABLES)}",
    )  # fmt: skip
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    for name in arguments.only:
        TABLES[name](QUICK if arguments.quick else Extent())


if __name__ == "__main__":
    main()
