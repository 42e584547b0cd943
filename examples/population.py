"""Population-based training: bad members copy the weights and the state of a good one and continue with slightly
changed hyperparameters. The result is a network and the schedule that trained it.

Data: scikit-learn's digits with new noise in every batch; 900 images for training, 400 for ranking members, the rest
for the table. All members take each step together, in one vmapped call; learning rate and momentum are tensors. For
comparison, random search has the same members with the same initial hyperparameters, which remain constant.
Run: `python examples/population.py`. Prints a table and writes out/population.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map
from tqdm import tqdm

import gradtx

TRAIN, JUDGE, BATCH = 900, 400, 16
NOISE = 0.5  # standard deviation of the pixel noise
REPLACED = 0.25  # share of the members replaced in each round
# Initial learning rates and 1 - momentum, drawn log-uniformly.
RATES, SLOWNESS = (1e-3, 1.0), (0.01, 0.5)

MODEL = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


class Data:
    def __init__(self, seed: int):
        pixels, labels = map(torch.as_tensor, load_digits(return_X_y=True))
        self.generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(labels), generator=self.generator)
        self.x, self.y = pixels[order].float() / 16, labels[order]

    def noisy(self, chosen: Any) -> tuple[Tensor, Tensor]:
        x = self.x[chosen]
        return x + NOISE * torch.randn(x.shape, generator=self.generator), self.y[
            chosen
        ]

    def batch(self) -> tuple[Tensor, Tensor]:
        return self.noisy(torch.randint(TRAIN, (BATCH,), generator=self.generator))


def member(generator: torch.Generator) -> dict[str, Tensor]:
    return {
        name: torch.randn(p.shape, generator=generator) / p.shape[-1] ** 0.5
        if p.ndim > 1
        else torch.zeros_like(p)
        for name, p in MODEL.named_parameters()
    }


def drawn(least: float, most: float, count: int, generator: torch.Generator) -> Tensor:
    return least * (most / least) ** torch.rand(count, generator=generator)


def loss_fn(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(functional_call(MODEL, params, (x,)), y)


def transformation(lr: Any, slowness: Any) -> gradtx.GradientTransformation:
    return gradtx.sgd(lr=lr, momentum=1 - slowness)


def step(
    params: Any, state: Any, hyper: dict[str, Tensor], x: Tensor, y: Tensor
) -> tuple[Any, Any, Tensor]:
    return gradtx.train_step(loss_fn, transformation(**hyper))(params, state, x, y)


steps = torch.vmap(step, in_dims=(0, 0, 0, None, None))
losses = torch.vmap(loss_fn, in_dims=(0, None, None))


class Look(NamedTuple):
    """The record of a round: validation losses, hyperparameters, and the source of each member."""

    losses: Tensor
    hyper: dict[str, Tensor]
    source: Tensor


class Population:
    def __init__(self, members: int, seed: int, evolves: bool, length: int):
        generator = torch.Generator().manual_seed(seed)
        self.params = gradtx.stack([member(generator) for _ in range(members)])
        self.hyper = {
            "lr": drawn(*RATES, members, generator),
            "slowness": drawn(*SLOWNESS, members, generator),
        }
        self.state = torch.vmap(
            lambda params, hyper: transformation(**hyper).init(params)
        )(self.params, self.hyper)
        self.data, self.generator, self.evolves, self.length = (
            Data(seed),
            generator,
            evolves,
            length,
        )
        self.judged = self.data.noisy(slice(TRAIN, TRAIN + JUDGE))
        self.tested = self.data.noisy(slice(TRAIN + JUDGE, None))
        self.looks: list[Look] = []

    def train(self, rounds: int, bar: tqdm) -> Population:
        for i in range(rounds):
            for _ in range(self.length):
                self.params, self.state, _ = steps(
                    self.params, self.state, self.hyper, *self.data.batch()
                )
                bar.update()
            found = losses(self.params, *self.judged).nan_to_num(torch.inf)
            source = torch.arange(len(found))
            if self.evolves and i + 1 < rounds:
                order, few = found.argsort(), max(1, int(REPLACED * len(found)))
                source[order[-few:]] = order[:few]
            self.looks.append(Look(found, self.hyper, source))
            bar.set_postfix(best=f"{found.min():.3f}")
            self.follow(source)
        return self

    def follow(self, source: Tensor) -> None:
        """Continue each member from its source; a copied member gets changed hyperparameters."""
        # One index of the stacked trees selects the weights, momentum and count of a member.
        self.params, self.state = tree_map(
            lambda leaf: leaf[source], (self.params, self.state)
        )
        copied = source != torch.arange(len(source))

        def tried(values: Tensor) -> Tensor:
            factor = 1.5 ** (
                2 * torch.randint(0, 2, values.shape, generator=self.generator) - 1
            )
            return torch.where(copied, values[source] * factor, values)

        self.hyper = {
            "lr": tried(self.hyper["lr"]),
            "slowness": tried(self.hyper["slowness"]).clamp(max=1),
        }

    def best(self) -> int:
        return int(self.looks[-1].losses.argmin())

    def lineage(self, name: str) -> list[float]:
        """Return the hyperparameter of each round that trained the best member's weights."""
        index, values = self.best(), []
        for i, look in reversed(list(enumerate(self.looks))):
            if i + 1 < len(self.looks):
                index = int(look.source[index])
            values.append(look.hyper[name][index].item())
        return values[::-1]

    def accuracy(self) -> float:
        x, y = self.tested
        params = gradtx.unstack(self.params)[self.best()]
        return (
            100
            * (functional_call(MODEL, params, (x,)).argmax(1) == y)
            .float()
            .mean()
            .item()
        )


def plot(evolved: Population, fixed: Population, path: Path) -> None:
    figure, panels = plt.subplots(1, 3, figsize=(15, 4.8), layout="constrained")
    steps_done = [evolved.length * (i + 1) for i in range(len(evolved.looks))]
    for population, color, name in (
        (fixed, "C1", "random search"),
        (evolved, "C0", "population"),
    ):
        found = torch.stack([look.losses for look in population.looks])
        panels[0].plot(steps_done, found, color=color, alpha=0.2, linewidth=0.7)
        panels[0].plot(
            steps_done,
            found.amin(1),
            color=color,
            linewidth=2,
            label=f"{name}: its best member",
        )
        panels[0].plot(
            [], [], color=color, alpha=0.3, linewidth=0.7, label=f"{name}: all members"
        )
    low = min(look.losses.min().item() for look in evolved.looks)
    panels[0].set(
        title="Loss on the images that judge",
        ylabel="loss (nats)",
        ylim=(0.9 * low, 2.5),
    )
    for axes, name, title in (
        (panels[1], "lr", "Learning rate"),
        (panels[2], "slowness", "1 - momentum"),
    ):
        values = torch.stack([look.hyper[name] for look in evolved.looks])
        axes.plot(steps_done, values, ".", color="grey", alpha=0.4, markersize=3)
        axes.plot([], [], ".", color="grey", label="all members")
        used = evolved.lineage(name)
        axes.step(
            [0, *steps_done],
            [used[0], *used],
            color="C0",
            linewidth=2,
            label="what made the best one",
        )
        axes.axhline(
            fixed.looks[0].hyper[name][fixed.best()],
            color="C1",
            linestyle="--",
            label="best of random search",
        )
        axes.set(
            title=f"{title}: the schedule that was found",
            ylabel=title.lower(),
            yscale="log",
        )
    for axes in panels:
        axes.set_xlabel("steps")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--length", type=int, default=200, help="steps in a round")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--plot", type=Path, default=Path("out/population.png"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # more threads do not help for tensors this small
    runs: dict[bool, list[Population]] = {False: [], True: []}
    with tqdm(
        total=2 * options.seeds * options.rounds * options.length,
        unit=" steps",
        leave=False,
        disable=None,
    ) as bar:
        for seed in range(options.seeds):
            for evolves, found in runs.items():
                bar.set_description(
                    f"{'population' if evolves else 'random search'}, seed {seed}"
                )
                found.append(
                    Population(options.members, seed, evolves, options.length).train(
                        options.rounds, bar
                    )
                )
    count = f"after {options.rounds * options.length} steps, mean of {options.seeds} seeds (range)"
    print(f"best of {options.members} members {count}\n")
    print(f"{'':16}{'judged loss':>24}{'test accuracy':>28}")
    figures = []
    for name, evolves in (("random search", False), ("population", True)):
        judged = [run.looks[-1].losses.min().item() for run in runs[evolves]]
        right = [run.accuracy() for run in runs[evolves]]
        loss = f"{sum(judged) / len(judged):.3f} ({min(judged):.3f}-{max(judged):.3f})"
        accuracy = (
            f"{sum(right) / len(right):.1f}% ({min(right):.1f}-{max(right):.1f}%)"
        )
        print(f"{name:16}{loss:>24}{accuracy:>28}")
        figures.append(f"{name} {sum(judged) / len(judged):.3f}")
    first = runs[True][0]
    rates = ", ".join(f"{rate:.2g}" for rate in first.lineage("lr"))
    print(f"\nlearning rates that made the best member of seed 0: {rates}")
    plot(first, runs[False][0], options.plot)
    print(f"\nplot: {options.plot}\njudged loss: {', '.join(figures)}")


if __name__ == "__main__":
    main()
