"""Fine-tune a transformer without a backward pass: gradients estimated from losses alone (MeZO), beside backprop.

Data: scikit-learn's digits. A small transformer reads the rows of an image as tokens and learns the digits. Then all
images are shifted by one pixel, and it is fine-tuned on 256 of them: by Adam on gradients, and by Adam on estimates
from 2 or 8 losses per step, `estimate_gradient(samples=1 or 4)`, whose `step(closure)` calls no `backward`. Directions
come again from seeds and weights are moved in place, so that a step holds no activations of earlier layers, no
gradients, and no copy of the weights.
Run: `python examples/zero_order.py`. Prints a table and writes out/zero_order.png.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from tqdm import tqdm

import gradtx

WIDTH, PRETRAINING, IMAGES, MEASURES = 32, 300, 256, 20
# The learning rate of each variant, and the losses that it computes in a step; backward counts as two.
VARIANTS = {
    "backprop": (3e-3, 3),
    "zero-order, 1 direction": (1e-3, 2),
    "zero-order, 4 directions": (2e-3, 8),
}

Data = tuple[Tensor, Tensor]


class Transformer(nn.Module):
    """Classifies an image whose rows are tokens."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Linear(8, WIDTH)
        self.places = nn.Parameter(0.1 * torch.randn(8, WIDTH))
        block = nn.TransformerEncoderLayer(
            WIDTH, 4, 2 * WIDTH, dropout=0.0, batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, 1, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.blocks(self.embed(images) + self.places).mean(1))


def digits(seed: int) -> tuple[Data, Data]:
    """Return images and labels for training and for tests; rows of an image are tokens."""
    images, labels = map(torch.as_tensor, load_digits(return_X_y=True))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    images, labels = images[order].float().reshape(-1, 8, 8) / 16, labels[order]
    return (images[:1300], labels[:1300]), (images[1300:], labels[1300:])


def accuracy(model: nn.Module, data: Data) -> float:
    with torch.no_grad():
        return 100 * (model(data[0]).argmax(-1) == data[1]).double().mean().item()


def pretrained(seed: int, data: Data) -> Transformer:
    model = Transformer(seed)
    optimizer = gradtx.optim.AdamW(model.parameters(), lr=3e-3)
    batches = torch.Generator().manual_seed(seed)
    for _ in range(PRETRAINING):
        chosen = torch.randint(len(data[0]), (128,), generator=batches)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data[0][chosen]), data[1][chosen]).backward()
        optimizer.step()
    return model


def transformation(
    variant: str, steps: int, seed: int
) -> gradtx.GradientTransformation:
    rate, losses = VARIANTS[variant]
    adam = gradtx.adam(lr=gradtx.linear_schedule(rate, 1.0, 0.0, steps))
    if variant == "backprop":
        return adam
    return gradtx.chain(
        gradtx.estimate_gradient(
            samples=losses // 2, distribution="rademacher", seed=seed
        ),
        adam,
    )


class Run:
    """A variant that fine-tunes a copy of a model within a budget of computed losses."""

    def __init__(self, variant: str, seed: int):
        self.variant, self.seed = variant, seed
        self.spent: list[int] = []
        self.accuracy: list[float] = []

    def train(
        self, model: nn.Module, data: Data, test: Data, budget: int, bar: tqdm
    ) -> Run:
        model = copy.deepcopy(model)
        _, losses = VARIANTS[self.variant]
        steps = max(budget // losses, 1)
        tx = transformation(self.variant, steps, self.seed)
        optimizer = gradtx.as_optimizer(tx, model.named_parameters())
        bar.set_description(f"{self.variant}, seed {self.seed}")

        def closure() -> Tensor:
            loss = nn.functional.cross_entropy(model(data[0]), data[1])
            if self.variant == "backprop":
                optimizer.zero_grad()
                loss.backward()
            return loss

        for step in range(steps):
            if step % max(steps // MEASURES, 1) == 0:
                self._measure(model, test, step * losses)
            optimizer.step(closure)
            bar.update(losses)
        self._measure(model, test, steps * losses)
        return self

    def _measure(self, model: nn.Module, test: Data, spent: int) -> None:
        self.spent.append(spent)
        self.accuracy.append(accuracy(model, test))


def plot(runs: list[Run], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 4.8), layout="constrained")
    for i, variant in enumerate(VARIANTS):
        same = [run for run in runs if run.variant == variant]
        curves = torch.tensor([run.accuracy for run in same])
        axes.plot(same[0].spent, curves.mean(0), color=f"C{i}", label=variant)
        axes.fill_between(
            same[0].spent, curves.amin(0), curves.amax(0), color=f"C{i}", alpha=0.15
        )
    axes.set(
        title="Fine-tuning on shifted images: mean and range over seeds",
        xlabel="losses computed (a backward pass counts as two)",
        ylabel="right answers on test images (%)",
    )
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", type=int, default=3000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--plot", type=Path, default=Path("out/zero_order.png"))
    options = parser.parse_args(argv)
    torch.set_num_threads(1)  # more threads do not help for tensors this small
    runs: list[Run] = []
    before: list[float] = []
    total = len(VARIANTS) * options.seeds * options.budget
    with tqdm(total=total, unit=" losses", leave=False, disable=None) as bar:
        for seed in range(options.seeds):
            (images, labels), (test_images, test_labels) = digits(seed)
            model = pretrained(seed, (images, labels))
            moved = images[:IMAGES].roll(1, -1), labels[:IMAGES]
            test = test_images.roll(1, -1), test_labels
            before.append(accuracy(model, test))
            runs += [
                Run(variant, seed).train(model, moved, test, options.budget, bar)
                for variant in VARIANTS
            ]
    print(
        f"right answers on shifted test images, mean of {options.seeds} seeds, after {options.budget} losses\n"
    )
    start = sum(before) / len(before)
    print(f"{'before':26}{start:8.1f}%")
    closing = [f"before {start:.1f}%"]
    for variant in VARIANTS:
        ends = [run.accuracy[-1] for run in runs if run.variant == variant]
        mean = sum(ends) / len(ends)
        print(f"{variant:26}{mean:8.1f}%  ({min(ends):.1f}-{max(ends):.1f}%)")
        closing.append(f"{variant} {mean:.1f}%")
    plot(runs, options.plot)
    print(f"\nplot: {options.plot}\ntest accuracy: {'; '.join(closing)}")


if __name__ == "__main__":
    main()
