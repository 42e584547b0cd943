"""Compose an optimizer of four links, train with it as a torch optimizer and as pure functions, and compare it.

Data: scikit-learn's digits, 1797 real scans of 8 by 8 pixels: 1000 to learn from, 347 that choose each method's rate,
450 for the figures. Every method has five rates, and the same seeds, batches and schedule.

Run `make demo` or `python examples/digits.py`. The script prints a table and writes out/digits.png.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value
from tqdm import tqdm

import gradtx

BATCH, TRAINING = 50, 1000
RATES = {
    "chain": (0.01, 0.02, 0.03, 0.06, 0.1),
    "AdamW": (0.01, 0.02, 0.03, 0.06, 0.1),
    "SGD": (0.05, 0.1, 0.15, 0.3, 0.5),
}


def falling(rate: float, steps: int) -> gradtx.Schedule:
    return gradtx.warmup_cosine_schedule(steps, rate, warmup_steps=steps // 20)


def chain(rate: float, steps: int) -> gradtx.GradientTransformation:
    return gradtx.chain(
        gradtx.clip_by_global_norm(1.0),
        gradtx.centralize(),
        gradtx.adamw(falling(rate, steps), weight_decay=0.1),
        gradtx.lookahead(k=5, alpha=0.5),
    )


METHODS: dict[str, Callable[[float, int], gradtx.GradientTransformation]] = {
    "chain": chain,
    "AdamW": lambda rate, steps: gradtx.adamw(falling(rate, steps), weight_decay=0.1),
    "SGD": lambda rate, steps: gradtx.sgd(falling(rate, steps), momentum=0.9),
}


@dataclass
class Split:
    """Images and their labels."""

    images: Tensor
    labels: Tensor


def digits() -> tuple[Split, Split, Split]:
    """Return what networks learn from, what chooses rates, and what figures are of."""
    pixels, labels = load_digits(return_X_y=True)
    images = torch.as_tensor(pixels / 16).float().view(-1, 1, 8, 8)
    indices = range(len(labels))
    rest, test = train_test_split(
        indices, test_size=450, random_state=0, stratify=labels
    )
    train, held_out = train_test_split(
        rest, train_size=TRAINING, random_state=0, stratify=labels[rest]
    )
    labels = torch.as_tensor(labels)
    train, held_out, test = (
        Split(images[i], labels[i]) for i in (train, held_out, test)
    )
    return train, held_out, test


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def batches(epochs: int, seed: int) -> list[Tensor]:
    """Return the indices of every batch, which are the same for every method."""
    generator = torch.Generator().manual_seed(seed)
    return [
        batch
        for _ in range(epochs)
        for batch in torch.randperm(TRAINING, generator=generator).split(BATCH)
    ]


@dataclass
class Run:
    """A network in training, and what was measured."""

    model: nn.Module
    losses: list[float] = field(default_factory=list[float])
    seconds: float = 0.0

    def on(self, split: Split) -> tuple[float, float]:
        """Return the loss and the accuracy on a split."""
        with torch.no_grad():
            scores = self.model(split.images)
        loss = nn.functional.cross_entropy(scores, split.labels)
        return loss.item(), (scores.argmax(1) == split.labels).float().mean().item()


def train(
    tx: gradtx.GradientTransformation, data: Split, epochs: int, seed: int
) -> Run:
    """Train in the usual way, with a torch optimizer."""
    run = Run(network(seed))
    optimizer = gradtx.as_optimizer(tx, run.model.named_parameters())
    start = time.perf_counter()
    for batch in batches(epochs, seed):
        optimizer.zero_grad()
        scores = run.model(data.images[batch])
        loss = nn.functional.cross_entropy(scores, data.labels[batch])
        loss.backward()
        optimizer.step()
        run.losses.append(loss.item())
    run.seconds = time.perf_counter() - start
    return run


def train_functional(
    tx: gradtx.GradientTransformation, data: Split, epochs: int, seed: int
) -> dict[str, Tensor]:
    """Train with pure functions, and return the weights."""
    model = network(seed)
    params = {name: p.detach().clone() for name, p in model.named_parameters()}
    state = tx.init(params)

    def loss_of(params: dict[str, Tensor], batch: Tensor) -> Tensor:
        scores = functional_call(model, params, (data.images[batch],))
        return nn.functional.cross_entropy(scores, data.labels[batch])

    for batch in batches(epochs, seed):
        gradients, _ = grad_and_value(loss_of)(params, batch)
        updates, state = tx.update(gradients, state, params)
        params = gradtx.apply_updates(params, updates)
    return params


Runs = dict[tuple[str, float], list[Run]]  # of each seed, by method and rate


def plot(runs: Runs, best: dict[str, float], held_out: Split, path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for i, (name, rates) in enumerate(RATES.items()):
        losses = [mean(run.on(held_out)[0] for run in runs[name, r]) for r in rates]
        relative = [rate / best[name] for rate in rates]
        left.plot(relative, losses, marker="o", color=f"C{i}", label=name)
        curves = torch.tensor([run.losses for run in runs[name, best[name]]])
        window = curves.mean(0).unfold(0, 10, 1).mean(-1)
        steps = range(10, len(window) + 10)
        label = f"{name}, rate {best[name]:g}"
        right.plot(steps, window, color=f"C{i}", label=label)
    left.set(
        title="Loss on held-out images by rate",
        xlabel="rate relative to the method's best",
        xscale="log",
        yscale="log",
    )
    right.set(
        title="Training loss at the best rate (mean of 10 steps)",
        xlabel="step",
        yscale="log",
    )
    ticks = (0.2, 0.5, 1, 2)
    left.set_xticks(ticks, map(str, ticks))
    left.set_xticks((), minor=True)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--plot", type=Path, default=Path("out/digits.png"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # more threads do not help for tensors this small
    data, held_out, test = digits()
    epochs = options.epochs
    steps = len(batches(epochs, 0))
    settings = [(name, rate) for name, rates in RATES.items() for rate in rates]
    runs: Runs = {}
    for name, rate in tqdm(settings, leave=False, disable=None):
        tx = METHODS[name](rate, steps)
        runs[name, rate] = [
            train(tx, data, epochs, seed) for seed in range(options.seeds)
        ]
    best = {
        name: min(
            rates, key=lambda r: mean(run.on(held_out)[0] for run in runs[name, r])
        )
        for name, rates in RATES.items()
    }
    tx = chain(best["chain"], steps)
    print(
        f"{tx}\n\n{len(data.labels)} images, {steps} steps of {BATCH}, {options.seeds} seeds"
    )
    print(
        f"{'':8}{'best rate':>10}{'test loss':>11}{'accuracy':>10}{'ms per step':>13}"
    )
    for name, rate in best.items():
        on_test = [run.on(test) for run in runs[name, rate]]
        loss, accuracy = map(mean, zip(*on_test, strict=True))
        # The least of the runs: the others waited for other programs.
        time_of_step = min(run.seconds for run in runs[name, rate]) / steps * 1e3
        print(f"{name:8}{rate:10g}{loss:11.4f}{accuracy:10.2%}{time_of_step:13.1f}")
    plot(runs, best, held_out, options.plot)
    weights = dict(runs["chain", best["chain"]][0].model.named_parameters())
    again = train_functional(tx, data, epochs, seed=0)
    apart = max((weights[name] - w).abs().max().item() for name, w in again.items())
    print(f"\nplot: {options.plot}")
    print(f"the same chain as pure functions: weights differ by {apart:.1e}")
    # float32: the two sum gradients in the same order, so they barely differ.
    if apart > 1e-5:
        raise SystemExit(
            "the optimizer and the pure functions did not end at the same weights"
        )


if __name__ == "__main__":
    main()
