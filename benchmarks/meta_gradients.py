"""Measure ways to differentiate a loss after training by the initial weights: time, memory and error, by inner steps.

The inner problem is iMAML's (Rajeswaran et al. 2019): ten points of a sine wave, a perceptron of 1,761 weights, and a
decay towards the initial weights, from which gradient descent starts. The outer loss is that of other points. The error
is the length of the difference to the gradient at the exact minimum, which the implicit way gives in float64, divided
by its length.

Time: one thread, since more do not help for tensors this small; the ways take turns in each round. Memory: the most
bytes of tensors alive, beyond those before, as torch's dispatcher sees them.
Run: `python benchmarks/meta_gradients.py`. Prints a table and writes docs/meta-gradients.png.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Restarts the process with other settings of the allocator, before torch is loaded.
from common import SEED, interleaved, machine, ratio

# isort: split
import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import gradtx

STEPS = (10, 100, 500)
FEW = 20  # steps through which the truncated way differentiates
PULL = 1.0  # of the decay towards the initial weights
RATE = 0.05
CLOSE = 1e-5  # norm of the gradient at which the implicit way stops to train
LONG = 10_000

Params = dict[str, Tensor]
Way = Callable[[Params, int], Params]

torch.manual_seed(SEED)
MODEL = nn.Sequential(
    nn.Linear(1, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 1)
)
START = {name: p.detach() for name, p in MODEL.named_parameters()}
X = 10 * torch.rand(20, 1) - 5
Y = 2 * X.sin()
TX = gradtx.sgd(RATE, momentum=0.9)


def fit(params: Params, x: Tensor, y: Tensor) -> Tensor:
    return (functional_call(MODEL, params, (x,)) - y).square().mean()


def inner(params: Params, initial: Params) -> Tensor:
    x, y = X.to(params["0.bias"].dtype), Y.to(params["0.bias"].dtype)
    distance = sum((params[name] - initial[name]).square().sum() for name in params)
    return fit(params, x[:10], y[:10]) + PULL / 2 * distance


def outer(params: Params) -> Tensor:
    x, y = X.to(params["0.bias"].dtype), Y.to(params["0.bias"].dtype)
    return fit(params, x[10:], y[10:])


STEP = gradtx.train_step(inner, TX)


def trained(initial: Params, params: Params, steps: int, state: Any = None) -> Any:
    state = TX.init(params) if state is None else state
    for _ in range(steps):
        params, state, _ = STEP(params, state, initial)
    return params, state


def unrolled(initial: Params, steps: int) -> Params:
    return grad(lambda initial: outer(trained(initial, initial, steps)[0]))(initial)


def truncated(initial: Params, steps: int) -> Params:
    """Differentiate through the last steps only."""
    first = max(steps - FEW, 0)
    params, state = trained(initial, initial, first)
    return grad(
        lambda initial: outer(trained(initial, params, steps - first, state)[0])
    )(initial)


def first_order(initial: Params, steps: int) -> Params:
    """FOMAML: the outer gradient at the trained weights."""
    return grad(outer)(trained(initial, initial, steps)[0])


def reptile(initial: Params, steps: int) -> Params:
    """Reptile's direction, for which the outer points are not needed; as long as the other gradients are, or not."""
    params, _ = trained(initial, initial, steps)
    return {name: initial[name] - params[name] for name in initial}


def implicit(initial: Params, steps: int) -> Params:
    start = tree_map(Tensor.detach, initial)

    def after(initial: Params) -> Tensor:
        return outer(
            gradtx.minimize(
                *(TX, inner, start, initial),
                steps=steps,
                until=CLOSE,
                unconverged="ignore",
            )
        )

    return grad(after)(initial)


WAYS: dict[str, Way] = {
    "unrolled": unrolled,
    "truncated": truncated,
    "implicit": implicit,
    "first-order": first_order,
    "Reptile": reptile,
}
CONSTANT = ("implicit",)  # of which the memory does not grow, measured for LONG too


class Live(TorchDispatchMode):
    """Counts the bytes of all tensors that operations have made and that are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.now += storage.nbytes()
                weakref.finalize(tensor, self.forget, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return out

    def forget(self, size: int) -> None:
        self.now -= size


def peak_bytes(way: Way, steps: int) -> int:
    with Live() as live:
        way(START, steps)
    return live.peak


def exact() -> Params:
    """Return the gradient at the exact minimum."""
    start = {name: leaf.double() for name, leaf in START.items()}

    def after(initial: Params) -> Tensor:
        reached = gradtx.minimize(
            TX, inner, tree_map(Tensor.detach, start), initial, steps=LONG, until=1e-12
        )
        return outer(reached)

    return grad(after)(start)


def error(found: Params, expected: Params) -> float:
    vectors = [
        torch.cat([tree[n].double().reshape(-1) for n in START])
        for tree in (found, expected)
    ]
    return ((vectors[0] - vectors[1]).norm() / vectors[1].norm()).item()


def plot(rows: dict[str, dict[int, tuple[float, int, float]]], path: Path) -> None:
    figure, panels = plt.subplots(1, 3, figsize=(15, 4.5), layout="constrained")
    titles = ("time, ms", "memory, MiB", "error, relative to the exact gradient")
    for axes, title, i, scale in zip(
        panels, titles, range(3), (1e3, 2**-20, 1.0), strict=True
    ):
        for name, row in rows.items():
            values = [scale * entry[i] for entry in row.values()]
            axes.plot(list(row), values, "o-", markersize=4, label=name)
        axes.set(title=title, xlabel="inner steps", xscale="log", yscale="log")
        axes.grid(alpha=0.3)
    panels[0].legend(fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=75)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--plot", type=Path, default=Path("docs/meta-gradients.png"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # few steps do not reach the minimum, on purpose
    expected = exact()
    rows: dict[str, dict[int, tuple[float, int, float]]] = {name: {} for name in WAYS}
    print(
        f"{sum(p.numel() for p in START.values())} weights; {machine()}; here one thread\n"
    )
    print(
        "| steps | way | ms | of unrolled | MiB | error |\n|---:|---|---:|---:|---:|---:|"
    )
    for steps in (*STEPS, LONG):
        ways = {n: w for n, w in WAYS.items() if steps in STEPS or n in CONSTANT}
        calls = {n: functools.partial(way, START, steps) for n, way in ways.items()}
        rounds = options.rounds if steps in STEPS else 1
        times = interleaved(calls, rounds, warm=1 if steps in STEPS else 0)
        for name, way in ways.items():
            seconds = statistics.median(times[name])
            peak = peak_bytes(way, steps)
            distance = error(way(START, steps), expected)
            rows[name][steps] = seconds, peak, distance
            share = (
                f"{ratio(times[name], times['unrolled']):.2f}" if steps in STEPS else ""
            )
            print(
                f"| {steps} | {name} | {1e3 * seconds:.0f} | {share} | {peak / 2**20:.2f} | {distance:.1e} |",
                flush=True,
            )
    plot(rows, options.plot)
    print(f"\nplot: {options.plot}")


if __name__ == "__main__":
    main()
