"""Compose an optimizer, train with it as a torch optimizer and as pure functions, and compare it with other optimizers.

Data: scikit-learn's digits, 1797 real scans of 8 by 8 pixels. Run `make demo` or `python examples/digits.py`.
The script prints a table and writes out/digits.png.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

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

SEED, BATCH, MEASURE_EVERY = 0, 64, 20
LINKS = ("gradient", "clipped", "centralized", "atan2", "projected", "scaled")


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return training images and labels, and test images and labels (a quarter of the data)."""
    images, labels = load_digits(return_X_y=True)
    split = train_test_split(
        images / 16, labels, test_size=0.25, random_state=SEED, stratify=labels
    )
    train_x, test_x, train_y, test_y = map(torch.as_tensor, split)
    return (
        train_x.float().view(-1, 1, 8, 8),
        train_y,
        test_x.float().view(-1, 1, 8, 8),
        test_y,
    )


def network() -> nn.Module:
    torch.manual_seed(SEED)
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


def custom(steps: int) -> gradtx.GradientTransformation:
    """Return a custom chain, with a record after each link."""
    schedule = gradtx.warmup_cosine_schedule(
        steps, max_lr=3e-3, warmup_steps=steps // 20
    )
    return gradtx.chain(
        gradtx.record(LINKS[0]),
        gradtx.clip_by_global_norm(1.0),
        gradtx.record(LINKS[1]),
        gradtx.centralize(),
        gradtx.record(LINKS[2]),
        gradtx.scale_by_atan2(betas=(0.9, 0.99)),
        gradtx.record(LINKS[3]),
        gradtx.project_scale_invariant(weight_decay=0.01),
        gradtx.record(LINKS[4]),
        gradtx.scale_by_learning_rate(schedule),
        gradtx.record(LINKS[5]),
        gradtx.lookahead(k=5, alpha=0.5),
    )


def batches(epochs: int, count: int) -> list[Tensor]:
    """Return the indices of every batch, which are the same for every optimizer."""
    generator = torch.Generator().manual_seed(SEED)
    whole = count - count % BATCH
    return [
        i
        for _ in range(epochs)
        for i in torch.randperm(count, generator=generator)[:whole].split(BATCH)
    ]


def loss_of(
    model: nn.Module, params: dict[str, Tensor], x: Tensor, y: Tensor
) -> Tensor:
    return nn.functional.cross_entropy(functional_call(model, params, (x,)), y)


def accuracy(
    model: nn.Module, params: dict[str, Tensor], x: Tensor, y: Tensor
) -> float:
    with torch.no_grad():
        return (
            (functional_call(model, params, (x,)).argmax(1) == y).float().mean().item()
        )


class Run:
    """A training run and its measurements."""

    def __init__(
        self,
        name: str,
        data: tuple[Tensor, Tensor, Tensor, Tensor],
        steps: list[Tensor],
    ):
        self.name, self.data, self.steps = name, data, steps
        self.losses: list[float] = []
        self.accuracies: list[tuple[int, float]] = []
        self.norms: dict[str, list[float]] = {link: [] for link in LINKS}
        self.seconds, self.params = 0.0, {}

    def train(
        self,
        step: Callable[[Tensor, Tensor], tuple[Tensor, dict[str, Any]]],
        evaluate: Callable[[], Any],
    ) -> Run:
        """Call `step(x, y) -> (loss, norms by link)` for every batch; `evaluate()` returns the weights to test."""
        train_x, train_y, test_x, test_y = self.data
        model, start = network(), time.perf_counter()
        with tqdm(self.steps, desc=f"{self.name:24}", leave=False, disable=None) as bar:
            for i, batch in enumerate(bar, 1):
                loss, norms = step(train_x[batch], train_y[batch])
                self.losses.append(loss.item())
                for link, norm in norms.items():
                    self.norms[link].append(norm.item())
                if i % MEASURE_EVERY == 0 or i == len(self.steps):
                    self.params = evaluate()
                    self.accuracies.append(
                        (i, accuracy(model, self.params, test_x, test_y))
                    )
                    bar.set_postfix(
                        loss=f"{self.losses[-1]:.4f}",
                        accuracy=f"{self.accuracies[-1][1]:.1%}",
                    )
        self.seconds = time.perf_counter() - start
        return self


def train_as_optimizer(run: Run, make: Callable[[Any], torch.optim.Optimizer]) -> Run:
    """Train with the usual training loop."""
    model = network()
    optimizer = make(model.named_parameters())

    def step(x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Any]]:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        shared = optimizer.state[next(model.parameters())]
        return loss.detach(), {link: shared[link] for link in LINKS if link in shared}

    return run.train(
        step, lambda: {name: p.detach().clone() for name, p in model.named_parameters()}
    )


def train_functional(run: Run, tx: gradtx.GradientTransformation) -> Run:
    """Train with a loop of pure functions."""
    model = network()
    params = {name: p.detach().clone() for name, p in model.named_parameters()}
    state = tx.init(params)
    gradients = grad_and_value(lambda params, x, y: loss_of(model, params, x, y))

    def step(x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Any]]:
        nonlocal params, state
        grads, loss = gradients(params, x, y)
        updates, state = tx.update(grads, state, params)
        params = gradtx.apply_updates(params, updates)
        records = [
            entry for stage, entry in state.items() if stage.startswith("record")
        ]
        return loss, {link: norm for entry in records for link, norm in entry.items()}

    return run.train(step, lambda: params)


def plot(runs: list[Run], path: Path) -> None:
    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(15, 4.5), layout="constrained"
    )
    for i, run in enumerate(runs):
        # Some runs nearly coincide. The later one is dashed, so that the earlier one remains visible.
        style: dict[str, Any] = {
            "color": f"C{i}",
            "linestyle": (0, (4, 3)) if i in (1, 4) else "-",
            "alpha": 0.9,
        }
        window = torch.tensor(run.losses).unfold(0, MEASURE_EVERY, 1).mean(-1)
        left.plot(
            range(MEASURE_EVERY, len(run.losses) + 1), window, label=run.name, **style
        )
        middle.plot(*zip(*run.accuracies, strict=True), label=run.name, **style)
    for link, norms in runs[0].norms.items():
        right.plot(
            range(1, len(norms) + 1),
            norms,
            label=link,
            linewidth=3.0 if link == "atan2" else 0.9,
        )
    left.set(
        title=f"Training loss (mean of {MEASURE_EVERY} steps)",
        xlabel="step",
        yscale="log",
    )
    middle.set(title="Test accuracy", xlabel="step", ylim=(0.9, 1.0))
    right.set(
        title="Norm of the update after each link of the chain",
        xlabel="step",
        yscale="log",
    )
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--plot", type=Path, default=Path("out/digits.png"))
    options = parser.parse_args()
    torch.set_num_threads(1)  # more threads do not help for tensors this small
    data = digits()
    steps = batches(options.epochs, len(data[0]))
    tx = custom(len(steps))
    print(
        f"{len(data[0])} training images, {len(data[2])} test images, {len(steps)} steps of {BATCH}\n\n{tx}\n"
    )

    def run(name: str) -> Run:
        return Run(name, data, steps)

    runs = [
        train_as_optimizer(
            run("custom chain"), lambda named: gradtx.as_optimizer(tx, named)
        ),
        train_functional(run("custom chain, functional"), tx),
        train_as_optimizer(
            run("AdamW"), lambda named: gradtx.optim.AdamW(named, lr=1e-3)
        ),
        train_as_optimizer(
            run("SGD"), lambda named: gradtx.optim.SGD(named, lr=0.05, momentum=0.9)
        ),
        train_as_optimizer(
            run("AdamP"),
            lambda named: gradtx.optim.AdamP(named, lr=1e-3, weight_decay=1e-2),
        ),
        train_as_optimizer(
            run("AdamAtan2"), lambda named: gradtx.optim.AdamAtan2(named, lr=1e-3)
        ),
    ]
    print(f"{'':26}{'loss':>8}{'test accuracy':>15}{'seconds':>9}")
    for each in runs:
        loss = sum(each.losses[-MEASURE_EVERY:]) / MEASURE_EVERY
        print(
            f"{each.name:26}{loss:8.4f}{each.accuracies[-1][1]:15.2%}{each.seconds:9.1f}"
        )
    apart = max(
        (runs[0].params[name] - w).abs().max().item()
        for name, w in runs[1].params.items()
    )
    print(f"\nlargest difference of a weight between the first two: {apart:.1e}")
    plot(runs, options.plot)
    print(f"plot: {options.plot}")
    # float32: the two sum gradients in the same order, so they barely differ.
    if apart > 1e-5:
        raise SystemExit(
            "the optimizer and the functional loop did not end at the same weights"
        )
    if runs[0].accuracies[-1][1] < 0.97:
        raise SystemExit("the custom chain stayed below 97% test accuracy")


if __name__ == "__main__":
    main()
