"""Read two overlapping digits with one small network, whose two tasks conflict, with PCGrad and with summed losses.

Data: pairs of scikit-learn's digits in one image of 8 by 12 pixels, in which they overlap in the middle. The tasks
share a small trunk; one head classifies the left digit and another the right one. Both methods start from the same
weights and train on the same pairs, at the best of three learning rates (0.01, 0.03, 0.1) for the sum with other seeds.
The table shows how often the gradients conflict (their inner product is negative), how far PCGrad moves the summed
gradient relative to its length, and the accuracy of each task.
Run: `python examples/pcgrad_digits.py`. Prints a table and writes out/pcgrad_digits.png.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from tqdm import tqdm

import gradtx

TASKS, METHODS = ("left", "right"), ("sum of losses", "PCGrad")
TRAIN, TESTS, BATCH, UNITS, LR = 1200, 2000, 64, 16, 0.03
EVERY = 50

Pairs = tuple[Tensor, Tensor]


def pairs_of(
    images: Tensor, labels: Tensor, count: int, generator: torch.Generator
) -> Pairs:
    """Return images of two digits each, and a row of labels per task."""
    left, right = torch.randint(len(images), (2, count), generator=generator)
    canvas = torch.zeros(count, 8, 12)
    canvas[:, :, :8] = images[left]
    canvas[:, :, 4:] = torch.maximum(canvas[:, :, 4:], images[right])
    return canvas.flatten(1), torch.stack([labels[left], labels[right]])


class TwoReaders(nn.Module):
    """A shared trunk with one head per task."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Linear(8 * 12, UNITS), nn.ReLU(), nn.Linear(UNITS, UNITS), nn.ReLU()
        )
        self.heads = nn.ModuleList(nn.Linear(UNITS, 10) for _ in TASKS)

    def forward(self, x: Tensor) -> list[Tensor]:
        shared = self.trunk(x)
        return [head(shared) for head in self.heads]


class Run:
    """A training run and its measurements."""

    def __init__(self, method: str, seed: int, steps: int):
        self.method, self.seed = method, seed
        torch.manual_seed(seed)
        self.model = TwoReaders()
        self.params = list(self.model.parameters())
        self.optimizer = gradtx.optim.SGD(
            self.params, lr=gradtx.cosine_schedule(LR, T_max=steps), momentum=0.9
        )
        self.order = torch.Generator().manual_seed(seed)  # order of the projections
        self.conflicts: list[bool] = []
        # Relative change of the summed gradient by PCGrad.
        self.changes: list[float] = []
        self.steps: list[int] = []
        self.accuracies: list[list[float]] = []  # percent, by task

    def step(self, x: Tensor, y: Tensor) -> None:
        losses = [
            nn.functional.cross_entropy(*pair)
            for pair in zip(self.model(x), y, strict=True)
        ]
        # For measurement: pcgrad_backward computes its own.
        left, right = (self._gradient(loss) for loss in losses)
        if self.method == "PCGrad":
            gradtx.pcgrad_backward(
                losses, self.params, reduction="sum", generator=self.order
            )
        else:
            self.optimizer.zero_grad()
            torch.stack(losses).sum().backward()
        chosen = torch.cat(
            [p.grad.flatten() for p in self.params if p.grad is not None]
        )
        self.optimizer.step()
        self.conflicts.append(bool(left @ right < 0))
        self.changes.append(
            ((chosen - left - right).norm() / (left + right).norm()).item()
        )

    def _gradient(self, loss: Tensor) -> Tensor:
        grads = torch.autograd.grad(
            loss, self.params, retain_graph=True, materialize_grads=True
        )
        return torch.cat([g.flatten() for g in grads])

    def evaluate(self, x: Tensor, y: Tensor) -> None:
        with torch.no_grad():
            named = [logits.argmax(1) for logits in self.model(x)]
        self.steps.append(len(self.conflicts))
        self.accuracies.append(
            [
                100 * (a == b).float().mean().item()
                for a, b in zip(named, y, strict=True)
            ]
        )


def train(seed: int, steps: int, bar: tqdm) -> list[Run]:
    """Run each method on the same pairs."""
    pixels, labels = map(torch.as_tensor, load_digits(return_X_y=True))
    images, generator = (
        pixels.float().view(-1, 8, 8) / 16,
        torch.Generator().manual_seed(seed),
    )
    train, test = torch.randperm(len(images), generator=generator).split(
        [TRAIN, len(images) - TRAIN]
    )
    unseen = pairs_of(images[test], labels[test], TESTS, generator)
    runs = [Run(method, seed, steps) for method in METHODS]
    for step in range(1, steps + 1):
        pairs = pairs_of(images[train], labels[train], BATCH, generator)
        for run in runs:
            run.step(*pairs)
        bar.update()
        if step % EVERY == 0 or step == steps:
            for run in runs:
                run.evaluate(*unseen)
            bar.set_postfix(seed=seed, conflicts=f"{share(runs[0].conflicts):.0f}%")
    return runs


def share(values: Sequence[float]) -> float:
    return 100 * sum(values) / len(values)


def shares(runs: list[Run], what: str) -> tuple[range, Tensor]:
    """Return percentages by step, averaged over the last EVERY steps and all seeds."""
    values = 100 * torch.tensor([getattr(run, what) for run in runs]).float().mean(0)
    means = values.unfold(0, min(EVERY, len(values)), 1).mean(-1)
    return range(len(values) - len(means) + 1, len(values) + 1), means


def plot(runs: dict[str, list[Run]], path: Path) -> None:
    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(15, 4.5), layout="constrained"
    )
    for i, (method, own) in enumerate(runs.items()):
        left.plot(
            *shares(own, "conflicts"),
            color=f"C{i}",
            label=f"{method}: steps whose gradients conflict",
        )
        if method == "PCGrad":
            left.plot(
                *shares(own, "changes"),
                color="C2",
                label="change of the gradient by PCGrad (% of its length)",
            )
        accuracies = torch.tensor([run.accuracies for run in own])
        for j, task in enumerate(TASKS):
            style = {"color": f"C{i}", "linestyle": ("-", "--")[j]}
            middle.plot(
                own[0].steps,
                accuracies[:, :, j].mean(0),
                label=f"{method}: {task} digit",
                **style,
            )
    ends = {
        method: torch.tensor([run.accuracies[-1] for run in own])
        for method, own in runs.items()
    }
    for j, task in enumerate(TASKS):
        points = [ends[method][:, j] for method in METHODS]
        right.scatter(
            *points,
            color=f"C{2 + j}",
            marker="os"[j],
            label=f"{task} digit, one point a seed",
        )
    values = torch.cat(list(ends.values()))
    low, high = values.min().item() - 1, values.max().item() + 1
    right.plot([low, high], [low, high], color="grey", linewidth=0.8, label="level")
    seeds = len(runs[METHODS[0]])
    left.set(
        title=f"Conflicts (mean of {EVERY} steps and {seeds} seeds)",
        xlabel="step",
        ylim=(0, 100),
    )
    left.set_ylabel("steps, or change of the gradient (%)")
    middle.set(
        title=f"Accuracy on pairs of test images (mean of {seeds} seeds)",
        ylabel="right answers (%)",
    )
    middle.set(xlabel="step", ylim=(60, 100))
    right.set(title="Accuracy at the end", xlabel="sum of losses: right answers (%)")
    right.set(
        ylabel="PCGrad: right answers (%)",
        aspect="equal",
        xlim=(low, high),
        ylim=(low, high),
    )
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--plot", type=Path, default=Path("out/pcgrad_digits.png"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # more threads do not help for tensors this small
    runs: dict[str, list[Run]] = {method: [] for method in METHODS}
    with tqdm(total=options.seeds * options.steps, leave=False, disable=None) as bar:
        for seed in range(options.seeds):
            for run in train(seed, options.steps, bar):
                runs[run.method].append(run)
    print(
        f"{'':15}{'conflicts':>11}{'change':>9}{'left':>8}{'right':>8}   (mean of {options.seeds} seeds)"
    )
    for method, own in runs.items():
        conflicts, change = (
            share([x for run in own for x in getattr(run, what)])
            for what in ("conflicts", "changes")
        )
        left, right = torch.tensor([run.accuracies[-1] for run in own]).mean(0).tolist()
        print(f"{method:15}{conflicts:10.1f}%{change:8.1f}%{left:7.1f}%{right:7.1f}%")
    ends = [
        torch.tensor([run.accuracies[-1] for run in own]).mean(1)
        for own in runs.values()
    ]
    gains = ends[1] - ends[0]
    plot(runs, options.plot)
    conflicts = share([flag for run in runs[METHODS[0]] for flag in run.conflicts])
    gained = f"{gains.mean():+.2f} points of accuracy ({gains.min():+.2f} to {gains.max():+.2f} by seed)"
    print(
        f"\nplot: {options.plot}\ngradients conflict in {conflicts:.0f}% of the steps; PCGrad gains {gained}"
    )


if __name__ == "__main__":
    main()
