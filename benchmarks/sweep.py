"""Time `gradtx.sweep` against a loop over `torch.optim.AdamW`: 64 members of a small network, in turns.

Run: `python benchmarks/sweep.py`. Prints milliseconds per step of all members, and ratios. Both ways end at the same
losses.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable

import torch
from common import machine  # first, because it sets the allocator
from torch import Tensor, nn
from torch.func import functional_call
from tqdm import tqdm

import gradtx

RATES, SEEDS, BATCH = 16, 4, 64
WARM = 10  # steps that are not timed
Params = dict[str, Tensor]


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))


def weights(seed: int) -> Params:
    torch.manual_seed(seed)
    return {name: p.detach() for name, p in network().named_parameters()}


def batch_of(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(BATCH, 64, generator=generator)
    return x, torch.randint(10, (BATCH,), generator=generator)


MODEL = network()


def loss_fn(params: Params, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    return nn.functional.cross_entropy(functional_call(MODEL, params, (x,)), y)


def by_sweep(
    rates: list[float], steps: int, compiled: bool
) -> tuple[list[float], float]:
    """Return the mean loss of each member, and the median seconds of a step of all members."""
    starts: list[float] = []

    def timed_batch(step: int) -> tuple[Tensor, Tensor]:
        starts.append(time.perf_counter())
        return batch_of(step)

    result = gradtx.sweep(
        loss_fn,
        gradtx.adamw,
        weights,
        timed_batch,
        {"lr": rates},
        seeds=SEEDS,
        steps=steps,
        every=steps,
        compile=compiled,
        progress=False,
    )
    losses = [record["loss"] for record in result.records]
    laps = [end - start for start, end in itertools.pairwise(starts[WARM:])]
    return losses, statistics.median(laps)


def by_loop(rates: list[float], steps: int) -> tuple[list[float], float]:
    """Return the same of a loop over members."""
    losses: list[float] = []
    seconds = 0.0
    for rate in rates:
        for seed in range(SEEDS):
            model = network()
            model.load_state_dict(weights(seed))
            optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
            total = 0.0
            start = time.perf_counter()
            for step in range(steps):
                x, y = batch_of(step)
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(x), y)
                loss.backward()
                optimizer.step()
                total += loss.item()
            seconds += time.perf_counter() - start
            losses.append(total / steps)
    return losses, seconds / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rates = torch.logspace(-4, -1, RATES).tolist()
    ways: dict[str, Callable[[], tuple[list[float], float]]] = {
        "loop over torch.optim.AdamW": lambda: by_loop(rates, options.steps),
        "gradtx.sweep": lambda: by_sweep(rates, options.steps, False),
        "gradtx.sweep, compiled": lambda: by_sweep(rates, options.steps, True),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in tqdm(range(options.rounds), leave=False, disable=None):
        expected: list[float] = []
        for name, way in ways.items():
            losses, seconds = way()
            expected = expected or losses
            torch.testing.assert_close(losses, expected, rtol=1e-3, atol=0)
            times[name].append(seconds)
    print(
        f"{RATES * SEEDS} members, batch {BATCH}, {options.rounds} rounds; {machine()}\n"
    )
    loop, *_ = times.values()
    for name, values in times.items():
        ratio = statistics.median(a / b for a, b in zip(loop, values, strict=True))
        print(
            f"{name:30}{1e3 * statistics.median(values):8.2f} ms a step{ratio:8.1f} times as fast"
        )


if __name__ == "__main__":
    main()
