"""Steps of large embeddings whose sparse gradients list few rows, beside torch's optimizers and dense steps.

    python benchmarks/sparse_rows.py                        # all parts
    python benchmarks/sparse_rows.py --part optimizers      # one or several of optimizers, dense, sizes, memory
    python benchmarks/sparse_rows.py --rounds 9             # fewer rounds of timing

Prints the tables of docs/howto/sparse-embeddings.md. Tables are float32, with 64 columns. Each step has new random
rows, as `nn.Embedding(sparse=True)` returns them: in any order, perhaps some of them twice. All contestants of a part
step in turn, by the same gradients. One thread. No part takes more than 6 GB.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import torch
from common import SEED, interleaved, machine, ratio
from torch import Tensor

import gradtx
from tests.memory import most_of, sizes_of

WIDTH, TABLE, ROWS = 64, 1_000_000, 1024
GRADIENTS = 8  # which all contestants take in turn
MIB = 2**20
Make = Callable[[list[torch.nn.Parameter]], Any]
PARTS: dict[str, Callable[[int], None]] = {}


def part(function: Callable[[int], None]) -> Callable[[int], None]:
    PARTS[function.__name__] = function
    return function


def ours(tx: gradtx.GradientTransformation, compile: bool = False) -> Make:
    return lambda params: gradtx.as_optimizer(tx, params, compile=compile)


def theirs(name: str, **options: Any) -> Make:
    return lambda params: getattr(torch.optim, name)(params, **options)


def lazy() -> gradtx.GradientTransformation:
    return gradtx.lazy_rows(gradtx.adamw(lr=1e-3), catch_up=True)


def gradients(table: int, rows: int) -> list[Tensor]:
    """Return gradients that list random rows of a table."""
    draw = torch.Generator().manual_seed(SEED)
    shape = torch.Size((table, WIDTH))
    return [
        torch.sparse_coo_tensor(
            torch.randint(table, (1, rows), generator=draw),
            torch.randn(rows, WIDTH, generator=draw),
            shape,
            check_invariants=True,
        )
        for _ in range(GRADIENTS)
    ]


@dataclass
class Contestant:
    """An optimizer of one table, and the gradients that it takes in turn."""

    optimizer: Any
    param: torch.nn.Parameter
    gradients: list[Tensor]
    count: int = 0

    @classmethod
    def of(cls, make: Make, gradients: list[Tensor]) -> Contestant:
        param = torch.nn.Parameter(torch.zeros(gradients[0].shape))
        return cls(make([param]), param, gradients)

    def step(self) -> None:
        self.param.grad = self.gradients[self.count % len(self.gradients)]
        self.optimizer.step()
        self.count += 1


def timed(
    makes: Mapping[str, tuple[Make, list[Tensor]]], rounds: int
) -> dict[str, list[float]]:
    """Return the seconds per round of each contestant."""
    contestants = {name: Contestant.of(*entry) for name, entry in makes.items()}
    steps = {name: each.step for name, each in contestants.items()}
    times = interleaved(steps, rounds, warm=GRADIENTS)
    steps.clear()
    contestants.clear()
    release()
    return times


def release() -> None:
    """Return freed memory to the system, which the allocator keeps as set by `common`."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def show(times: Mapping[str, list[float]], references: Mapping[str, str]) -> None:
    """Print the median of each contestant, and the ratio to its reference."""
    for name, of_name in times.items():
        middle = 1e3 * statistics.median(of_name)
        reference = references.get(name)
        line = f"  {name:44}{middle:>10.3f} ms"
        if reference is not None:
            line += f"{ratio(of_name, times[reference]):>8.2f}"
        print(line)


@part
def optimizers(rounds: int) -> None:
    """Optimizers that torch also has for sparse gradients."""
    listed = gradients(TABLE, ROWS)
    methods = {
        "SparseAdam": gradtx.sparse_adam(),
        "Adagrad": gradtx.adagrad(),
        "SGD": gradtx.sgd(1e-2),
        "SGD with momentum": gradtx.sgd(1e-2, momentum=0.9),
    }
    options = {
        "SparseAdam": {},
        "Adagrad": {},
        "SGD": {"lr": 1e-2},
        "SGD with momentum": {"lr": 1e-2, "momentum": 0.9},
    }
    print(f"{TABLE:,} x {WIDTH}, {ROWS:,} rows a step; the last column is over torch's")
    for method, tx in methods.items():
        reference = f"{method}, torch"
        makes = {
            reference: theirs(method.partition(" ")[0], **options[method]),
            f"{method}, gradtx": ours(tx),
            f"{method}, gradtx, compiled": ours(tx, compile=True),
        }
        if method == "SGD with momentum":
            makes["lazy_rows of it"] = ours(gradtx.lazy_rows(tx))
            makes["lazy_rows of it, compiled"] = ours(
                gradtx.lazy_rows(tx), compile=True
            )
        times = timed({name: (make, listed) for name, make in makes.items()}, rounds)
        show(times, dict.fromkeys(makes, reference))


@part
def dense(rounds: int) -> None:
    """`lazy_rows` on rows, and AdamW on the same gradient, made dense."""
    listed = gradients(TABLE, ROWS)
    whole = [listed[0].to_dense()]
    reference = "lazy_rows(adamw, catch_up), rows"
    rows = {
        reference: (ours(lazy()), listed),
        f"{reference}, compiled": (ours(lazy(), True), listed),
    }
    tx = gradtx.adamw(lr=1e-3)
    pairs = {  # two at a time, for memory
        "torch": {"": theirs("AdamW"), ", fused": theirs("AdamW", fused=True)},
        "gradtx": {"": ours(tx), ", compiled": ours(tx, compile=True)},
    }
    print(
        f"{TABLE:,} x {WIDTH}, {ROWS:,} rows a step; the last column is over lazy_rows"
    )
    for library, pair in pairs.items():
        makes = {f"AdamW, dense, {library}{x}": (pair[x], whole) for x in pair}
        times = timed({**makes, **rows}, max(rounds // 3, 3))
        show(times, dict.fromkeys(times, reference))


CONTEST = {
    "SparseAdam, torch": theirs("SparseAdam"),
    "SparseAdam, gradtx": ours(gradtx.sparse_adam()),
    "SparseAdam, gradtx, compiled": ours(gradtx.sparse_adam(), compile=True),
    "lazy_rows(adamw, catch_up)": ours(lazy()),
    "lazy_rows(adamw, catch_up), compiled": ours(lazy(), compile=True),
}


def _by_size(sizes: list[tuple[int, int]], rounds: int) -> None:
    columns: dict[str, list[float]] = {name: [] for name in CONTEST}
    for table, count in sizes:
        listed = gradients(table, count)
        makes = {name: (make, listed) for name, make in CONTEST.items()}
        for name, times in timed(makes, rounds).items():
            columns[name].append(1e3 * statistics.median(times))
    for name, values in columns.items():
        print(f"  {name:38}" + "".join(f"{value:>11.3f}" for value in values))


@part
def sizes(rounds: int) -> None:
    """Time by the rows of the table, and by the rows of the gradient."""
    tables = [10_000, 100_000, 1_000_000]
    print(f"ms, {ROWS:,} rows a step; rows of the table:")
    print(" " * 40 + "".join(f"{table:>11,}" for table in tables))
    _by_size([(table, ROWS) for table in tables], rounds)
    counts = [64, 256, 1024, 4096, 16384]
    print(f"ms, a table of {TABLE:,} rows; rows a step:")
    print(" " * 40 + "".join(f"{count:>11,}" for count in counts))
    _by_size([(TABLE, count) for count in counts], rounds)


@part
def memory(rounds: int) -> None:
    """The most bytes that a step holds, besides weights, gradient and state."""
    del rounds
    listed = gradients(TABLE, ROWS)
    whole = [listed[0].to_dense()]
    of_rows = ROWS * WIDTH * 4
    makes = {
        **{name: (make, listed) for name, make in CONTEST.items()},
        "Adagrad, gradtx": (ours(gradtx.adagrad()), listed),
        "SGD with momentum, gradtx": (ours(gradtx.sgd(1e-2, momentum=0.9)), listed),
        "AdamW, dense, torch": (theirs("AdamW"), whole),
        "AdamW, dense, torch, fused": (theirs("AdamW", fused=True), whole),
        "AdamW, dense, gradtx": (ours(gradtx.adamw(lr=1e-3)), whole),
    }
    print(f"{TABLE:,} x {WIDTH}, {ROWS:,} rows a step: {of_rows / MIB:.2f} MiB of rows")
    print(f"{'':46}{'MiB':>9}{'rows of the gradient':>23}")
    for name, (make, own) in makes.items():
        contestant = Contestant.of(make, own)
        for _ in range(3):
            contestant.step()
        most = most_of(sizes_of(contestant.step))
        print(f"  {name:44}{most / MIB:>9.2f}{most / of_rows:>23.1f}")
        del contestant
        release()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", nargs="+", choices=sorted(PARTS), default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=41)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(machine())
    for name in options.part:
        print()
        PARTS[name](options.rounds)


if __name__ == "__main__":
    main()
