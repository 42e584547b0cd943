"""Fine-tune a network on new classes from a few images, with different weights frozen and different rates.

Data: scikit-learn's digits. A small residual network learns the digits 0 to 4, then 5 to 9 from a few images each, with
a new head and five variants: the head alone or head and norms (`freeze` keeps the rest), all weights at one rate, all
with a tenth of the rate for the trunk (`partition`), and all from scratch. Frozen weights have no state and remain
bitwise unchanged. With the old head restored, the script measures the remaining accuracy on 0 to 4.
Run: `python examples/finetune_digits.py`. Prints a table and writes out/finetune_digits.png.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from tqdm import tqdm

import gradtx

WIDTH, BLOCKS, CLASSES = 16, 2, 5
PER_CLASS, PRETRAINING, RATE, MEASURES = 4, 300, 3e-3, 10

Data = tuple[Tensor, Tensor, Tensor, Tensor]


class Block(nn.Module):
    """Adds a convolution of the normalized input to the input."""

    def __init__(self) -> None:
        super().__init__()
        # No running averages, which `freeze` cannot keep.
        self.norm = nn.GroupNorm(1, WIDTH)
        self.conv = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.conv(self.norm(x)))


class Network(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Conv2d(1, WIDTH, 3, padding=1)
        self.blocks = nn.Sequential(*(Block() for _ in range(BLOCKS)))
        self.norm, self.head = nn.GroupNorm(1, WIDTH), nn.Linear(WIDTH * 4 * 4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.blocks(self.embed(x)))
        return self.head(nn.functional.max_pool2d(x, 2).flatten(1))


def trunk(name: str, param: Tensor) -> bool:
    return not name.startswith("head.")


def trunk_but_norms(name: str, param: Tensor) -> bool:
    return trunk(name, param) and "norm" not in name


def adamw(rate: float, steps: int) -> gradtx.GradientTransformation:
    return gradtx.adamw(gradtx.cosine_schedule(rate, T_max=steps), weight_decay=0.01)


CHAINS: dict[str, Callable[[int], gradtx.GradientTransformation]] = {
    "head alone": lambda steps: gradtx.chain(gradtx.freeze(trunk), adamw(RATE, steps)),
    "head and norms": lambda steps: gradtx.chain(
        gradtx.freeze(trunk_but_norms), adamw(RATE, steps)
    ),
    "all, one rate": lambda steps: adamw(RATE, steps),
    "all, trunk at a tenth": lambda steps: gradtx.partition(
        {"trunk": adamw(RATE / 10, steps), "head": adamw(RATE, steps)},
        {"trunk": trunk, "head": "head.*"},
    ),
    "all, from scratch": lambda steps: adamw(RATE, steps),
}


def digits(seed: int) -> tuple[Data, Data]:
    """Return training and test images and labels, of the digits 0 to 4 and of 5 to 9, which are also labeled 0 to 4."""
    images, labels = map(torch.as_tensor, load_digits(return_X_y=True))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    images, labels = images[order].float().view(-1, 1, 8, 8) / 16, labels[order]
    both = []
    for first, count in ((0, 100), (CLASSES, PER_CLASS)):
        of_class = [(labels == first + i).nonzero().flatten() for i in range(CLASSES)]
        train, test = (
            torch.cat([i[:count] for i in of_class]),
            torch.cat([i[100:] for i in of_class]),
        )
        both.append(
            (images[train], labels[train] - first, images[test], labels[test] - first)
        )
    return both[0], both[1]


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return 100 * (model(x).argmax(1) == y).float().mean().item()


def steps_of(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Data,
    batches: list[Tensor],
    bar: tqdm,
):
    """Train, and yield after every step."""
    for batch in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data[0][batch]), data[1][batch]).backward()
        optimizer.step()
        bar.update()
        yield


def batches_of(count: int, size: int, steps: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randperm(count, generator=generator)[:size] for _ in range(steps)]


def pretrained(data: Data, steps: int, seed: int, bar: tqdm) -> Network:
    model = Network(seed)
    optimizer = gradtx.as_optimizer(adamw(RATE, steps), model.named_parameters())
    bar.set_description(f"0 to 4, seed {seed}")
    for _ in steps_of(
        model, optimizer, data, batches_of(len(data[0]), 50, steps, seed), bar
    ):
        pass
    return model


class Run:
    """A fine-tuning run and its measurements."""

    def __init__(self, name: str, seed: int):
        self.name, self.seed = name, seed
        self.steps: list[int] = []
        self.accuracies: list[float] = []

    def train(
        self, before: Network, old: Data, new: Data, steps: int, bar: tqdm
    ) -> Run:
        model = Network(self.seed + 1000)  # provides the new head
        if self.name != "all, from scratch":
            kept = {
                name: p
                for name, p in before.state_dict().items()
                if not name.startswith("head.")
            }
            model.load_state_dict(kept, strict=False)
        start = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer = gradtx.as_optimizer(
            CHAINS[self.name](steps), model.named_parameters()
        )
        bar.set_description(f"{self.name}, seed {self.seed}")
        batches = batches_of(len(new[0]), 20, steps, self.seed)
        for i, _ in enumerate(steps_of(model, optimizer, new, batches, bar), 1):
            if i * MEASURES // steps > (i - 1) * MEASURES // steps:
                self.steps.append(i)
                self.accuracies.append(accuracy(model, new[2], new[3]))
        self.weights = sum(p.numel() for p in model.parameters())
        self.same = sum(
            p.numel()
            for name, p in model.named_parameters()
            if torch.equal(p, start[name])
        )
        # Step counts are excluded: each tensor has one, whether it is frozen or not.
        slots = [
            slot
            for entry in optimizer.state.values()
            for name, slot in entry.items()
            if name != "step"
        ]
        self.state_bytes = sum(slot.numel() * slot.element_size() for slot in slots)
        model.head.load_state_dict(before.head.state_dict())
        self.remembered = accuracy(model, old[2], old[3])
        return self


def of(runs: list[Run], name: str) -> list[Run]:
    return [run for run in runs if run.name == name]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def plot(runs: list[Run], before: float, path: Path) -> None:
    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(14, 4.6), layout="constrained"
    )
    names = list(CHAINS)
    for i, name in enumerate(names):
        same = of(runs, name)
        values = torch.tensor([run.accuracies for run in same])
        left.plot(same[0].steps, values.mean(0), color=f"C{i}", label=name)
        middle.barh(i, mean([run.remembered for run in same]), color=f"C{i}")
        right.barh(i, same[0].state_bytes / 1024, color=f"C{i}")
    left.set(
        title=f"5 to 9, from {PER_CLASS} images each",
        xlabel="step",
        ylabel="right answers on the test images (%)",
    )
    left.legend(fontsize=8)
    middle.axvline(before, color="grey", linestyle=":", label="before fine-tuning")
    middle.set(
        title="0 to 4, with the old head put back",
        xlabel="right answers on the test images (%)",
        xlim=(0, 105),
    )
    middle.legend(fontsize=8, loc="lower right")
    right.set(title="Memory of the optimizer's state", xlabel="KiB")
    middle.set_yticks(range(len(names)), names)
    right.set_yticks(range(len(names)), [""] * len(names))
    for axes in (middle, right):
        axes.invert_yaxis()
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
    figure.suptitle("Means of the seeds", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--plot", type=Path, default=Path("out/finetune_digits.png"))
    options = parser.parse_args(argv)
    torch.set_num_threads(1)  # more threads do not help for tensors this small
    pretraining = min(PRETRAINING, 2 * options.steps)
    total = options.seeds * (pretraining + len(CHAINS) * options.steps)
    runs, known = [], []
    with tqdm(total=total, unit=" steps", leave=False, disable=None) as bar:
        for seed in range(options.seeds):
            old, new = digits(seed)
            before = pretrained(old, pretraining, seed, bar)
            known.append(accuracy(before, old[2], old[3]))
            runs += [
                Run(name, seed).train(before, old, new, options.steps, bar)
                for name in CHAINS
            ]
    print(
        f"0 to 4 before fine-tuning: {mean(known):.1f}%; mean of {options.seeds} seeds (range) after:\n"
    )
    print(
        f"{'':24}{'5 to 9 (range)':>22}{'0 to 4, old head':>18}{'bitwise the same':>18}{'state':>11}"
    )
    closing = []
    for name in CHAINS:
        same = of(runs, name)
        last = [run.accuracies[-1] for run in same]
        cell = f"{mean(last):.1f}% ({min(last):.1f}-{max(last):.1f}%)"
        kept = f"{same[0].same} of {same[0].weights}"
        remembered = mean([run.remembered for run in same])
        print(
            f"{name:24}{cell:>22}{remembered:17.1f}%{kept:>18}{same[0].state_bytes / 1024:7.1f} KiB"
        )
        closing.append(f"{name} {mean(last):.1f}%")
    plot(runs, mean(known), options.plot)
    print(f"\nplot: {options.plot}\naccuracy on 5 to 9: {'; '.join(closing)}")


if __name__ == "__main__":
    main()
