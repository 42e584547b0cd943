"""Find Adam's rate on a narrow network and keep it for wide ones: muP and standard parametrization compared.

Data: scikit-learn's digits. `gradtx.sweep` trains a perceptron of every width at every rate, with weights, rates and
readout as torch has them, and with those of `init_for_width` and `scale_by_width` relative to width 64.
Run: `python examples/mup.py`. Prints a table and writes out/mup.png.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.func import functional_call

import gradtx

BASE, WIDTHS, BATCH = 64, (64, 256, 512), 64
READOUT = "4"  # the name of the last layer
NUMBERS, LABELS = map(torch.as_tensor, load_digits(return_X_y=True))
X = NUMBERS.float() / 16
Params = dict[str, Tensor]


def network(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(64, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, 10),
    )


def batch_of(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    rows = torch.randint(len(X), (BATCH,), generator=generator)
    return X[rows], LABELS[rows]


class Parametrization:
    """A network of some width, standard or muP: its initial weights, its loss and its optimizer."""

    def __init__(self, width: int, is_mup: bool):
        self.width, self.is_mup = width, is_mup
        self.model = network(width)
        with torch.device("meta"):
            self.widths = gradtx.width_multipliers(
                network(width), network(BASE), network(2 * BASE)
            )

    def weights(self, seed: int) -> Params:
        torch.manual_seed(seed)
        params = {n: p.detach() for n, p in network(self.width).named_parameters()}
        if self.is_mup:
            return gradtx.init_for_width(params, self.widths, READOUT)
        return params

    def loss(self, params: Params, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        if self.is_mup:
            # The readout is linear: dividing its weight is dividing its input.
            readout = f"{READOUT}.weight"
            params = {**params, readout: params[readout] * BASE / self.width}
        return nn.functional.cross_entropy(functional_call(self.model, params, (x,)), y)

    def adam(self, lr: float) -> gradtx.GradientTransformation:
        return gradtx.chain(
            gradtx.scale_by_adam(),
            gradtx.scale_by_width(self.widths) if self.is_mup else gradtx.chain(),
            gradtx.scale_by_learning_rate(lr),
        )

    def train(self, rates: list[float], seeds: int, steps: int) -> Tensor:
        """Return the mean loss of the last quarter at each rate."""
        result = gradtx.sweep(
            self.loss,
            self.adam,
            self.weights,
            batch_of,
            over={"lr": rates},
            seeds=seeds,
            steps=steps,
            every=max(steps // 4, 1),
        )
        mean = {row["lr"]: row["mean"] for row in result.best(n=len(rates))}
        return torch.tensor([mean[rate] for rate in rates])


def plot(losses: dict[str, dict[int, Tensor]], rates: list[float], path: Path) -> None:
    figure, panels = plt.subplots(
        1, 2, figsize=(9, 3.6), sharey=True, layout="constrained"
    )
    for axes, (name, by_width) in zip(panels, losses.items(), strict=True):
        for i, (width, loss) in enumerate(by_width.items()):
            axes.plot(rates, loss, color=f"C{i}", label=f"width {width}")
            best = int(loss.argmin())
            axes.plot(rates[best], loss[best], "o", color=f"C{i}")
        axes.set(title=name, xlabel="learning rate", xscale="log", yscale="log")
        axes.grid(alpha=0.3)
    finest = min(
        loss.min().item() for each in losses.values() for loss in each.values()
    )
    panels[0].set(ylabel="training loss", ylim=(finest / 2, 3))
    panels[0].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument(
        "--rates", type=int, default=10, help="how many, from 1e-3 to 0.2"
    )
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--plot", type=Path, default=Path("out/mup.png"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rates = torch.logspace(-3, math.log10(0.2), options.rates).tolist()
    losses: dict[str, dict[int, Tensor]] = {}
    costs: list[str] = []
    print(f"{'':22}{'best rate':>10}{'its loss':>10}{'at the rate of 64':>19}")
    for name, is_mup in (("standard", False), ("muP", True)):
        by_width = losses[name] = {}
        for width in WIDTHS:
            loss = by_width[width] = Parametrization(width, is_mup).train(
                rates, options.seeds, options.steps
            )
            best, carried = int(loss.argmin()), int(by_width[BASE].argmin())
            print(
                f"{name:9} width {width:4}   {rates[best]:10.2g}{loss[best]:10.4f}{loss[carried]:19.4f}"
            )
        widest, carried = by_width[WIDTHS[-1]], int(by_width[BASE].argmin())
        ratio = widest[carried] / widest.min()
        costs.append(f"{name} {ratio:.2f}")
    plot(losses, rates, options.plot)
    print(f"\nplot: {options.plot}")
    print(
        f"loss at width {WIDTHS[-1]} with the best rate of width {BASE}, over the least: {', '.join(costs)}"
    )


if __name__ == "__main__":
    main()
