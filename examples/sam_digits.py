"""Train on a few digits, many of them with wrong labels, with SGD and with SAM, which seeks flat minima.

Data: scikit-learn's digits. 400 images are for training, three in ten with a wrong label; the other 1397 are for
testing, with correct labels. SAM computes two gradients per step, so SGD runs with equally many steps and with equally
many gradients, and also at its best rate. Rates and rho were chosen with other seeds than those shown.
Run: `python examples/sam_digits.py`. Prints a table and writes out/sam_digits.png.
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
from tqdm import tqdm

import gradtx

TRAIN, BATCH, NOISE = 400, 50, 0.3
# Distance of SAM's perturbation in training, and radius for measuring sharpness.
RHO, RADIUS = 0.4, 0.3
MEASURES = 12  # measurements per run
WHAT = ("test accuracy", "training labels", "rise of the loss", "curvature")


class Method(NamedTuple):
    """A method, drawn as one line in the plot."""

    lr: float
    longer: int = 1  # number of steps relative to --steps
    sam: bool = False

    @property
    def gradients(self) -> int:
        """The number of gradients that a step computes."""
        return 2 if self.sam else 1


METHODS = {
    "SGD": Method(0.05),
    "SGD, twice the steps": Method(0.05, longer=2),
    "SGD, a fifth of the rate": Method(0.01),
    "SAM": Method(0.05, sam=True),
}

Data = tuple[Tensor, Tensor, Tensor, Tensor]


def digits(seed: int) -> Data:
    """Return training images and noisy labels, and test images and labels; the seed determines split and noise."""
    numbers, labels = map(torch.as_tensor, load_digits(return_X_y=True))
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    images, labels = numbers[order].float() / 16, labels[order]
    wrong = torch.rand(TRAIN, generator=generator) < NOISE
    other = (labels[:TRAIN] + torch.randint(1, 10, (TRAIN,), generator=generator)) % 10
    return (
        images[:TRAIN],
        torch.where(wrong, other, labels[:TRAIN]),
        images[TRAIN:],
        labels[TRAIN:],
    )


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(64, 128),
        nn.ReLU(),
        nn.Linear(128, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return (model(x).argmax(1) == y).float().mean().item()


def size(tree: dict[str, Tensor]) -> Tensor:
    return torch.stack([x.square().sum() for x in tree.values()]).sum().sqrt()


def sharpness(
    model: nn.Module, x: Tensor, y: Tensor, steps: int = 20
) -> tuple[float, float]:
    """Return the rise of the training loss within RADIUS of the weights, and the largest eigenvalue of its Hessian.

    The first is a lower bound from gradient ascent; the second is computed by power iteration.
    """
    params = {name: p.detach().clone() for name, p in model.named_parameters()}

    def loss(params: dict[str, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(functional_call(model, params, (x,)), y)

    ascent = torch.func.grad_and_value(loss)
    away = {name: torch.zeros_like(p) for name, p in params.items()}
    losses = []
    for _ in range(steps):
        grads, value = ascent({name: p + away[name] for name, p in params.items()})
        losses.append(value)
        stride = RADIUS / 4 / size(grads)
        away = {name: a + stride * grads[name] for name, a in away.items()}
        inside = (RADIUS / size(away)).clamp(max=1)
        away = {name: inside * a for name, a in away.items()}
    rise = max(losses) - losses[0]

    generator = torch.Generator().manual_seed(0)
    direction = {
        name: torch.randn(p.shape, generator=generator) for name, p in params.items()
    }
    # Product with the Hessian, which is symmetric.
    product = torch.func.vjp(torch.func.grad(loss), params)[1]
    unit = direction
    for _ in range(steps):
        length = size(direction)
        unit = {name: d / length for name, d in direction.items()}
        (direction,) = product(unit)
    return rise.item(), sum(
        (unit[name] * d).sum().item() for name, d in direction.items()
    )


class Run:
    """A training run and its measurements."""

    def __init__(self, name: str, seed: int):
        self.name, self.method, self.seed = name, METHODS[name], seed
        self.gradients: list[int] = []
        self.measured: dict[str, list[float]] = {what: [] for what in WHAT}

    def train(self, data: Data, steps: int, bar: tqdm) -> Run:
        train_x, train_y, test_x, test_y = data
        steps *= self.method.longer
        model = network(self.seed)
        sgd = gradtx.sgd(
            gradtx.cosine_schedule(self.method.lr, T_max=steps), momentum=0.9
        )
        tx = gradtx.sam(sgd, rho=RHO) if self.method.sam else sgd
        optimizer = gradtx.as_optimizer(tx, model.named_parameters())
        generator = torch.Generator().manual_seed(self.seed)
        order: list[Tensor] = []
        bar.set_description(f"{self.name}, seed {self.seed}")
        for step in range(1, steps + 1):
            order = order or list(
                torch.randperm(TRAIN, generator=generator).split(BATCH)
            )
            batch = order.pop()

            # SGD calls this once per step; SAM calls it again at the perturbed point.
            def closure(
                x: Tensor = train_x[batch], y: Tensor = train_y[batch]
            ) -> Tensor:
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(x), y)
                loss.backward()
                bar.update()
                return loss

            optimizer.step(closure)
            if step * MEASURES // steps > (step - 1) * MEASURES // steps:
                self.gradients.append(step * self.method.gradients)
                right = (
                    100 * accuracy(model, test_x, test_y),
                    100 * accuracy(model, train_x, train_y),
                )
                for what, value in zip(
                    WHAT, (*right, *sharpness(model, train_x, train_y)), strict=True
                ):
                    self.measured[what].append(value)
                bar.set_postfix(test=f"{right[0]:.1f}%")
        return self


def spread(runs: list[Run], name: str, what: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean, minimum and maximum over the seeds."""
    values = torch.tensor([run.measured[what] for run in runs if run.name == name])
    return values.mean(0), values.amin(0), values.amax(0)


def plot(runs: list[Run], seeds: int, path: Path) -> None:
    figure, grid = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    panels: list[Any] = list(grid.flat)
    for i, name in enumerate(METHODS):
        gradients = next(run.gradients for run in runs if run.name == name)
        for axes, what in zip(panels, WHAT, strict=True):
            mean, low, high = spread(runs, name, what)
            axes.plot(gradients, mean, color=f"C{i}", label=name)
            axes.fill_between(
                gradients, low, high, color=f"C{i}", alpha=0.15, linewidth=0
            )
    panels[0].set(title="Accuracy on the test images", ylabel="right answers (%)")
    panels[1].set(
        title="Reproduction of the training labels, noise included",
        ylabel="labels reproduced (%)",
    )
    panels[1].axhline(
        100 * (1 - NOISE),
        color="grey",
        linestyle=":",
        label="labels that are right (expected)",
    )
    panels[2].set(
        title=f"Sharpness: rise of the training loss within {RADIUS:g} of the weights",
        ylabel="rise (nats)",
        yscale="log",
    )
    panels[3].set(
        title="Curvature of the training loss",
        ylabel="largest eigenvalue of the Hessian",
        yscale="log",
    )
    for axes in panels:
        axes.set_xlabel("gradients computed (batches)")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.suptitle(
        f"Lines: mean of {seeds} seeds; bands: least to greatest", fontsize=10
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--plot", type=Path, default=Path("out/sam_digits.png"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # more threads do not help for tensors this small
    total = (
        options.seeds
        * options.steps
        * sum(method.longer * method.gradients for method in METHODS.values())
    )
    runs = []
    with tqdm(total=total, unit=" gradients", leave=False, disable=None) as bar:
        for seed in range(options.seeds):
            data = digits(seed)
            runs += [
                Run(name, seed).train(data, options.steps, bar) for name in METHODS
            ]
    print(f"at the end, mean of {options.seeds} seeds\n")
    print(f"{'':25}{WHAT[0] + ' (range)':>26}{WHAT[1]:>17}{WHAT[2]:>18}{WHAT[3]:>11}")
    figures = []
    for name in METHODS:
        (test, low, high), *rest = (
            [x[-1].item() for x in spread(runs, name, what)] for what in WHAT
        )
        train, rise, curvature = (mean for mean, _, _ in rest)
        accuracies = f"{test:.1f}% ({low:.1f}-{high:.1f}%)"
        print(f"{name:25}{accuracies:>26}{train:16.1f}%{rise:18.3f}{curvature:11.2f}")
        figures.append(f"{name} {test:.1f}% (rise {rise:.2f})")
    plot(runs, options.seeds, options.plot)
    print(f"\nplot: {options.plot}\ntest accuracy (sharpness): {', '.join(figures)}")


if __name__ == "__main__":
    main()
