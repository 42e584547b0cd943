"""Learn the factors of users and items from ratings, in tables of which a batch needs few rows.

Data: ratings of 500,000 users for 100,000 items, drawn from factors of rank 4 with a noise of 0.1, which is the least
error of any model. A few users and items are frequent and most are rare, much as by Zipf's law. `sparse_adam` and
`lazy_rows(adamw, catch_up=True)` update the rows that a batch needs (`nn.Embedding(sparse=True)`); AdamW takes dense
gradients of the same batches.
Run: `python examples/recommender.py`. Prints a table and writes out/recommender.png.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn
from tqdm import tqdm

import gradtx

USERS, ITEMS, RANK, NOISE = 500_000, 100_000, 4, 0.1
BATCH, HELD_OUT = 2048, 100_000
LR, BETAS, DECAY = 0.1, (0.5, 0.99), 1e-4
OFTEN = 100  # ratings of a user or an item from which its factors can be learned
MIB = 2**20

Ratings = tuple[Tensor, Tensor, Tensor]  # users, items, their ratings


class World:
    """The factors that ratings come from."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.users = torch.randn(USERS, RANK, generator=generator) / RANK**0.5
        self.items = torch.randn(ITEMS, RANK, generator=generator)

    def ratings(self, count: int, seed: int) -> Ratings:
        generator = torch.Generator().manual_seed(seed)
        users = popular(USERS, count, generator)
        items = popular(ITEMS, count, generator)
        exact = (self.users[users] * self.items[items]).sum(1)
        return users, items, exact + NOISE * torch.randn(count, generator=generator)


def popular(size: int, count: int, generator: torch.Generator) -> Tensor:
    """Draw from 0 to `size - 1`, small numbers most often: somewhat steeper than Zipf's law."""
    draws = torch.rand(count, generator=generator, dtype=torch.float64)
    return ((size + 1) ** (draws**1.5)).long() - 1


class Model(nn.Module):
    def __init__(self, sparse: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.users = nn.Embedding(USERS, RANK, sparse=sparse)
        self.items = nn.Embedding(ITEMS, RANK, sparse=sparse)
        for table in (self.users, self.items):
            nn.init.normal_(table.weight, std=0.3)

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        return (self.users(users) * self.items(items)).sum(1)


Make = Callable[[Model, Any], torch.optim.Optimizer]


def by_rows(name: str, model: Model, lr: gradtx.Schedule) -> torch.optim.Optimizer:
    chains = {
        "sparse_adam": gradtx.sparse_adam(lr, BETAS),
        "lazy_rows(adamw)": gradtx.lazy_rows(
            gradtx.adamw(lr, BETAS, weight_decay=DECAY), catch_up=True
        ),
    }
    return gradtx.as_optimizer(chains[name], model.named_parameters())


def dense(name: str, model: Model, lr: gradtx.Schedule) -> torch.optim.Optimizer:
    del name
    tx = gradtx.adamw(lr, BETAS, weight_decay=DECAY)
    return gradtx.as_optimizer(tx, model.named_parameters())


RUNS = {"sparse_adam": by_rows, "lazy_rows(adamw)": by_rows, "adamw, dense": dense}


@dataclass
class Run:
    """What one optimizer does.

    Attributes:
        steps: When held-out ratings were predicted.
        often: The errors of those whose user and item have many ratings, by step.
        all: The errors of all.
        seconds: Those of the optimizer's steps.
        bytes: The most that a backward pass and a step hold besides weights and state.
    """

    steps: list[int] = field(default_factory=list)
    often: list[float] = field(default_factory=list)
    all: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    bytes: int = 0


def squares(model: Model, ratings: Ratings) -> Tensor:
    users, items, values = ratings
    with torch.no_grad():
        return (model(users, items) - values).square()


def train(name: str, world: World, held_out: Ratings, steps: int, bar: Any) -> Run:
    make, run = RUNS[name], Run()
    model = Model(sparse=make is by_rows)
    optimizer = make(name, model, gradtx.cosine_schedule(LR, T_max=steps))
    counts = torch.zeros(USERS), torch.zeros(ITEMS)
    errors: list[Tensor] = []

    def backward(batch: Ratings) -> None:
        users, items, values = batch
        optimizer.zero_grad()
        (model(users, items) - values).square().mean().backward()

    for step in range(steps):
        batch = world.ratings(BATCH, 1 + step)
        for count, index in zip(counts, batch, strict=False):
            count.index_add_(0, index, torch.ones(BATCH))
        if step == steps - 1:
            run.bytes = peak(lambda batch=batch: (backward(batch), optimizer.step()))
        else:
            backward(batch)
            start = time.perf_counter()
            optimizer.step()
            run.seconds.append(time.perf_counter() - start)
        if step % max(steps // 20, 1) == 0 or step == steps - 1:
            run.steps.append(step + 1)
            errors.append(squares(model, held_out))
        bar.update()
    users, items, _ = held_out
    is_often = (counts[0][users] >= OFTEN) & (counts[1][items] >= OFTEN)
    for squared in errors:
        run.often.append(squared[is_often].mean().sqrt().item())
        run.all.append(squared.mean().sqrt().item())
    return run


def peak(call: Callable[[], object]) -> int:
    """Return the most bytes that a call holds at a time."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        call()
    results: Any = profile.profiler
    events = [e for e in results.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def plot(runs: dict[str, Run], path: Path) -> None:
    figure, (by_step, by_time, by_memory) = plt.subplots(
        1, 3, figsize=(15, 4.2), layout="constrained", width_ratios=(2, 1, 1)
    )
    for i, (name, run) in enumerate(runs.items()):
        by_step.plot(run.steps, run.often, color=f"C{i}", label=f"{name}, frequent")
        by_step.plot(run.steps, run.all, "--", color=f"C{i}", label=f"{name}, all")
        by_time.bar(i, 1e3 * statistics.median(run.seconds), color=f"C{i}")
        by_memory.bar(i, run.bytes / MIB, color=f"C{i}")
    by_step.axhline(NOISE, color="gray", linestyle=":", label="noise")
    by_step.set(title="Error of held-out ratings", xlabel="step", yscale="log")
    by_step.legend(fontsize=8, ncols=2)
    by_step.grid(alpha=0.3, which="both")
    by_time.set(title="Time of a step, ms", xticks=[])
    by_memory.set(title="Memory beyond state, MiB", xticks=[])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=75)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--plot", type=Path, default=Path("out/recommender.png"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    world = World()
    held_out = world.ratings(HELD_OUT, 0)
    total = len(RUNS) * options.steps
    with tqdm(total=total, unit=" steps", leave=False, disable=None) as bar:
        runs = {name: train(name, world, held_out, options.steps, bar) for name in RUNS}
    print(f"{'':18}{'ms a step':>11}{'MiB':>8}{'error: frequent':>18}{'all':>8}")
    for name, run in runs.items():
        middle = 1e3 * statistics.median(run.seconds)
        print(
            f"{name:18}{middle:11.2f}{run.bytes / MIB:8.2f}"
            f"{run.often[-1]:18.3f}{run.all[-1]:8.3f}"
        )
    print(f"\nfrequent: user and item with at least {OFTEN} ratings; noise: {NOISE}")
    plot(runs, options.plot)
    print(f"plot: {options.plot}")
    figures = ", ".join(f"{name} {run.often[-1]:.3f}" for name, run in runs.items())
    print(f"error with frequent users and items: {figures}")


if __name__ == "__main__":
    main()
