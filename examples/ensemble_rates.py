"""Train an ensemble in one vmapped step, with one learning rate per member, and plot the loss by rate.

Data: scikit-learn's digits, 1000 images for training and 797 held out. Every rate trains one network per seed; a seed
determines the initial weights and the batches, which are the same for all rates. Then the vmapped step and Python loops
over the members train 16 of these networks. All must end at the same weights; the steps are timed in turn, in one
thread.
Run: `python examples/ensemble_rates.py`. Prints two tables and writes out/ensemble_rates.png. torch.compile needs a
C++ compiler; without one, set TORCH_COMPILE_DISABLE=1, and the rows named "compiled" are eager.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.func import functional_call
from tqdm import tqdm

import gradtx

TRAIN, BATCH, MEMBERS = 1000, 32, 16
# Of the comparison, which starts all from the same weights; STEPS also per timed turn.
STEPS, TOLERANCE = 10, 1e-8
VMAP, LOOP, TORCH = (
    "vmapped step",
    "loop over gradtx.train_step",
    "loop over torch.optim.AdamW",
)

Params = dict[str, Tensor]


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))


MODEL = network(0)


def loss_fn(params: Params, x: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(functional_call(MODEL, params, (x,)), y)


def member_step(
    lr: Tensor, params: Params, state: dict, x: Tensor, y: Tensor
) -> tuple[Params, dict, Tensor]:
    """Take one training step of one network, or of all networks under vmap."""
    return gradtx.train_step(loss_fn, gradtx.adamw(lr=lr))(params, state, x, y)


def digits(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return images and labels for training, and held-out ones."""
    numbers, labels = map(torch.as_tensor, load_digits(return_X_y=True))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    images, labels = numbers[order].float() / 16, labels[order]
    return images[:TRAIN], labels[:TRAIN], images[TRAIN:], labels[TRAIN:]


def first_weights(seeds: int) -> list[Params]:
    return [
        {name: p.detach().clone() for name, p in network(seed).named_parameters()}
        for seed in range(seeds)
    ]


def batches(seeds: int, steps: int) -> Tensor:
    """Return the image indices of each seed's batches, (steps, seeds, BATCH)."""
    generators = [torch.Generator().manual_seed(seed) for seed in range(seeds)]
    drawn = [
        torch.randint(TRAIN, (steps, BATCH), generator=generator)
        for generator in generators
    ]
    return torch.stack(drawn, 1)


def losses_by_rate(
    data: tuple[Tensor, ...], rates: Tensor, seeds: int, marks: list[int], bar: tqdm
) -> Tensor:
    """Return the losses at the marked steps, (marks, training or held out, rates, seeds)."""
    train_x, train_y, test_x, test_y = data
    lr = rates.repeat_interleave(seeds)
    params = gradtx.stack(first_weights(seeds) * len(rates))
    state = torch.vmap(gradtx.adamw().init)(params)
    step = torch.vmap(member_step)
    loss_of_all = torch.vmap(loss_fn, in_dims=(0, None, None))
    measured = []
    for n, drawn in enumerate(batches(seeds, marks[-1]), 1):
        batch = drawn.repeat(len(rates), 1)
        params, state, _ = step(lr, params, state, train_x[batch], train_y[batch])
        bar.update()
        if n in marks:
            both = [
                loss_of_all(params, train_x, train_y),
                loss_of_all(params, test_x, test_y),
            ]
            measured.append(torch.stack(both).reshape(2, len(rates), seeds))
    return torch.stack(measured)


class Trainer(Protocol):
    """Sixteen networks in training, with a step of all of them and their stacked weights."""

    def step(self, x: Tensor, y: Tensor) -> Any: ...

    def weights(self) -> Params: ...


class Vmapped:
    """Steps all members in one call."""

    def __init__(
        self, rates: Tensor, params: list[Params], compiled: Callable | None = None
    ):
        self.rates, self.params = rates, gradtx.stack(params)
        self.state = torch.vmap(gradtx.adamw().init)(self.params)
        self.call = compiled or torch.vmap(member_step)

    def step(self, x: Tensor, y: Tensor) -> None:
        self.params, self.state, _ = self.call(
            self.rates, self.params, self.state, x, y
        )

    def weights(self) -> Params:
        return self.params


class Looped:
    """Steps each member in a separate call. Uncompiled, rates are floats and chains are built once, which is faster."""

    def __init__(
        self, rates: Tensor, params: list[Params], compiled: Callable | None = None
    ):
        self.params, self.states = params, [gradtx.adamw().init(p) for p in params]
        self.calls = [
            partial(compiled, lr)
            if compiled
            else gradtx.train_step(loss_fn, gradtx.adamw(lr=lr.item()))
            for lr in rates
        ]

    def step(self, x: Tensor, y: Tensor) -> None:
        done = [
            call(*rest)
            for call, *rest in zip(
                self.calls, self.params, self.states, x, y, strict=True
            )
        ]
        self.params, self.states = (
            [params for params, _, _ in done],
            [state for _, state, _ in done],
        )

    def weights(self) -> Params:
        return gradtx.stack(self.params)


class TorchLooped:
    """Trains each member with a module and an optimizer."""

    def __init__(self, rates: Tensor, params: list[Params], fused: bool | None = None):
        self.models = [network(0).to(rates.dtype) for _ in params]
        for model, start in zip(self.models, params, strict=True):
            model.load_state_dict(start)
        self.optimizers = [
            torch.optim.AdamW(model.parameters(), lr=lr.item(), fused=fused)
            for model, lr in zip(self.models, rates, strict=True)
        ]

    def step(self, x: Tensor, y: Tensor) -> None:
        for model, optimizer, images, labels in zip(
            self.models, self.optimizers, x, y, strict=True
        ):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()

    def weights(self) -> Params:
        return gradtx.stack(
            [
                {n: p.detach().clone() for n, p in model.named_parameters()}
                for model in self.models
            ]
        )


def trainers(rates: Tensor, compiled: dict[str, Callable]) -> dict[str, Trainer]:
    """Return every method of training the members, at its start. `compiled` has the steps of one and of all members."""
    params = [
        {name: p.to(rates.dtype) for name, p in first.items()}
        for first in first_weights(len(rates))
    ]
    return {
        VMAP: Vmapped(rates, params),
        f"{VMAP}, compiled": Vmapped(rates, params, compiled[VMAP]),
        LOOP: Looped(rates, params),
        f"{LOOP}, compiled": Looped(rates, params, compiled[LOOP]),
        TORCH: TorchLooped(rates, params),
        f"{TORCH}, fused": TorchLooped(rates, params, fused=True),
    }


def checked(ways: dict[str, Trainer], x: Tensor, y: Tensor, bar: tqdm) -> float:
    """Train all from the same start; return the final distance of weights, relative to the largest of their tensor."""
    for trainer in ways.values():
        for images, labels in zip(x, y, strict=True):
            trainer.step(images, labels)
        bar.update()
    expected = ways[VMAP].weights()
    worst = 0.0
    for name, trainer in ways.items():
        weights = trainer.weights()
        apart = max(
            ((weights[n] - w).abs().max() / w.abs().max()).item()
            for n, w in expected.items()
        )
        if not apart <= TOLERANCE:
            raise RuntimeError(
                f"{name} ends at other weights than the {VMAP}: {apart:.1e} apart"
            )
        worst = max(worst, apart)
    return worst


def timed(
    ways: dict[str, Trainer], x: Tensor, y: Tensor, rounds: int, bar: tqdm
) -> dict[str, list[float]]:
    """Return milliseconds per step of each method in each round. They take turns, so noise affects all equally."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, trainer in ways.items():
            start = time.perf_counter()
            for images, labels in zip(x, y, strict=True):
                trainer.step(images, labels)
            times[name].append((time.perf_counter() - start) / len(x) * 1e3)
        bar.update()
    return times


def ratio(times: dict[str, list[float]], slow: str, quick: str) -> float:
    """Return the ratio of two step times, as the median over rounds."""
    return median(a / b for a, b in zip(times[slow], times[quick], strict=True))


def plot(
    rates: Tensor,
    losses: Tensor,
    marks: list[int],
    times: dict[str, list[float]],
    path: Path,
) -> None:
    figure, (ends, budgets, speeds) = plt.subplots(
        1, 3, figsize=(16, 4.8), layout="constrained"
    )
    for what, label, color in (
        (0, "training images", "C0"),
        (1, "held-out images", "C1"),
    ):
        at_end = losses[-1, what]
        ends.plot(rates, at_end.mean(-1), color=color, label=label)
        ends.fill_between(
            rates, at_end.amin(-1), at_end.amax(-1), color=color, alpha=0.2, linewidth=0
        )
    ends.set(
        title=f"Loss after {marks[-1]} steps (mean and range of {losses.shape[-1]} seeds)"
    )
    for i, steps in enumerate(marks):
        mean = losses[i, 1].mean(-1)
        best = mean.argmin()
        budgets.plot(
            rates,
            mean,
            color=f"C{i + 2}",
            label=f"{steps} steps, best at {rates[best]:.2g}",
        )
        budgets.plot(rates[best], mean[best], "o", color=f"C{i + 2}")
    budgets.set(title="Held-out loss by length of training (mean)")
    for axes in (ends, budgets):
        axes.set(
            xlabel="learning rate of AdamW",
            ylabel="cross-entropy (nats)",
            xscale="log",
            yscale="log",
        )
        axes.grid(alpha=0.3)
        axes.legend()
    names = list(times)[::-1]
    middle = [median(times[name]) for name in names]
    bars = speeds.barh(
        names, middle, color=["C0" if VMAP in name else "grey" for name in names]
    )
    speeds.bar_label(bars, fmt="%.2g", padding=3)
    speeds.set(
        title=f"One step of {MEMBERS} networks",
        xlabel="milliseconds (median)",
        xlim=(0, 1.12 * max(middle)),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument(
        "--rates", type=int, default=25, help="how many, from 1e-4 to 1"
    )
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15, help="of the timing")
    parser.add_argument("--plot", type=Path, default=Path("out/ensemble_rates.png"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # more threads do not help for tensors this small
    data = digits(0)
    rates = torch.logspace(-4, 0, options.rates)
    marks = sorted(
        {max(options.steps // 16, 1), max(options.steps // 4, 1), options.steps}
    )
    few = torch.logspace(-4, 0, MEMBERS)
    drawn = batches(MEMBERS, STEPS)
    x, y = data[0][drawn], data[1][drawn]
    compiled = {
        VMAP: torch.compile(torch.vmap(member_step)),
        LOOP: torch.compile(member_step),
    }
    with tqdm(
        total=options.steps + 6 + options.rounds,
        unit=" steps",
        leave=False,
        disable=None,
    ) as bar:
        bar.set_description(f"{options.rates} rates, {options.seeds} seeds")
        losses = losses_by_rate(data, rates, options.seeds, marks, bar)
        bar.set_description("comparing and compiling")
        # float64 shows that the arithmetic is the same; in float32, training at large rates amplifies rounding errors.
        apart = checked(trainers(few.double(), compiled), x.double(), y, bar)
        bar.set_description("timing")
        times = timed(trainers(few, compiled), x, y, options.rounds, bar)

    print(
        f"cross-entropy after {options.steps} steps, mean (range) of {options.seeds} seeds\n"
    )
    print(f"{'rate':>9}{'training':>26}{'held out':>26}")
    for i, rate in enumerate(rates):
        cells = [
            f"{s.mean():.4f} ({s.min():.4f}-{s.max():.4f})" for s in losses[-1, :, i]
        ]
        print(f"{rate:9.2g}{cells[0]:>26}{cells[1]:>26}")
    print(
        f"\none step of {MEMBERS} networks, median of {options.rounds} rounds in turns; after {STEPS} steps in"
    )
    print(f"float64, all weights are equal to {apart:.0e} of the largest\n")
    print(f"{'':40}{'ms':>7}{'/ ' + VMAP:>17}{'/ compiled':>13}")
    for name in times:
        against = [ratio(times, name, VMAP), ratio(times, name, f"{VMAP}, compiled")]
        print(
            f"{name:40}{median(times[name]):7.2f}{against[0]:17.2f}{against[1]:13.2f}"
        )
    plot(rates, losses, marks, times, options.plot)
    best = rates[losses[-1, 1].mean(-1).argmin()]
    faster = f"{ratio(times, LOOP, VMAP):.1f} times as fast as a loop"
    print(
        f"\nplot: {options.plot}\n{MEMBERS} networks in one vmapped step: {faster}; best of the rates: {best:.2g}"
    )


if __name__ == "__main__":
    main()
