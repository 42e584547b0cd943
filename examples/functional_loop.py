"""A realistic functional loop: gradient accumulation, a broken batch, averaged weights, a crash, and a checkpoint from
which the run continues bit for bit.

Data: scikit-learn's digits, 1000 for training, the rest held out. One batch has NaN pixels. The run is stopped halfway
and continued from its file with new trees. A second run is not interrupted, and a third one runs without
`skip_nonfinite`. Run: `python examples/functional_loop.py`. Prints a table and writes out/functional_loop.png.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

import gradtx

TRAIN, BATCH, EVERY = 1000, 16, 4  # an update for every 64 images
LR, DECAY = 1e-2, 0.97
NOISE = 0.5  # standard deviation of the pixel noise, drawn again for every batch
MEASURES = 40  # measurements per run

Params = dict[str, Tensor]


class Digits:
    """Batches as a function of their index, so that a resumed run trains on the same ones."""

    def __init__(self, broken: int):
        pixels, labels = map(torch.as_tensor, load_digits(return_X_y=True))
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        self.x, self.y, self.broken = pixels[order].float() / 16, labels[order], broken

    def batch(self, number: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(number)
        chosen = torch.randint(TRAIN, (BATCH,), generator=generator)
        x = self.x[chosen] + NOISE * torch.randn((BATCH, 64), generator=generator)
        if number == self.broken:
            x[0, :8] = float("nan")
        return x, self.y[chosen]

    def held_out(self) -> tuple[Tensor, Tensor]:
        x = self.x[TRAIN:]
        return x + NOISE * torch.randn(
            x.shape, generator=torch.Generator().manual_seed(0)
        ), self.y[TRAIN:]


MODEL = nn.Sequential(
    nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)
)


def first_params() -> Params:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(p.shape, generator=generator) * (2 / p.shape[-1]) ** 0.5
        if p.ndim > 1
        else torch.zeros_like(p)
        for name, p in MODEL.named_parameters()
    }


def loss_fn(params: Params, x: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(functional_call(MODEL, params, (x,)), y)


def accuracy(params: Params, x: Tensor, y: Tensor) -> float:
    return (
        100
        * (functional_call(MODEL, params, (x,)).argmax(1) == y).float().mean().item()
    )


def transformation(batches: int, careful: bool) -> gradtx.GradientTransformation:
    """Return the chain. Inside `accumulate`, the schedule and the average count updates, not batches."""
    updates = batches // EVERY
    tx = gradtx.accumulate(
        gradtx.chain(
            gradtx.clip_by_global_norm(1.0),
            gradtx.adamw(
                lr=gradtx.warmup_cosine_schedule(
                    updates, max_lr=LR, warmup_steps=updates // 10
                )
            ),
            gradtx.average(DECAY),
        ),
        every=EVERY,
    )
    return gradtx.skip_nonfinite(tx) if careful else tx


class Run:
    """The parameters, state and measurements of a run."""

    def __init__(self, data: Digits, batches: int, careful: bool = True):
        self.data, self.batches = data, batches
        self.tx = transformation(batches, careful)
        self.params = first_params()
        self.state = self.tx.init(self.params)
        self.log: list[tuple[int, float, float, float, float]] = []

    def train(self, start: int, stop: int, bar: tqdm) -> Run:
        step = gradtx.train_step(loss_fn, self.tx)
        held_out, total, counted = self.data.held_out(), 0.0, 0
        for number in range(start, stop):
            self.params, self.state, loss = step(
                self.params, self.state, *self.data.batch(number)
            )
            if loss.isfinite():
                total, counted = total + loss.item(), counted + 1
            bar.update()
            if (
                number + 1
            ) * MEASURES // self.batches > number * MEASURES // self.batches:
                averaged = self.tx.eval_params(self.state, self.params)
                right = accuracy(self.params, *held_out), accuracy(averaged, *held_out)
                rate = gradtx.learning_rate(self.tx, self.state).item()
                self.log.append(
                    (number + 1, total / counted if counted else math.nan, *right, rate)
                )
                total, counted = 0.0, 0
        return self

    def column(self, i: int) -> list[float]:
        return [row[i] for row in self.log]


def identical(one: Any, other: Any) -> bool:
    pairs = zip(tree_leaves(one), tree_leaves(other), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def plot(whole: Run, halves: tuple[Run, Run], careless: Run, path: Path) -> None:
    figure, panels = plt.subplots(1, 3, figsize=(15, 4.6), layout="constrained")
    first, second = halves
    for axes, i in ((panels[0], 1), (panels[1], 2)):
        axes.plot(whole.column(0), whole.column(i), color="C0", label="without a stop")
        axes.plot(
            first.column(0),
            first.column(i),
            "o",
            color="C2",
            markersize=4,
            label="until the stop",
        )
        axes.plot(
            second.column(0),
            second.column(i),
            "o",
            color="C1",
            markersize=4,
            label="continued from the file",
        )
    panels[1].plot(
        whole.column(0), whole.column(3), color="C4", label="averaged weights"
    )
    panels[1].plot(
        careless.column(0),
        careless.column(2),
        color="C3",
        linestyle="--",
        label="no skip_nonfinite",
    )
    panels[2].plot(
        whole.column(0), whole.column(4), ".-", color="C0", label="next update"
    )
    panels[0].set(title="Loss since the last point", ylabel="training loss (nats)")
    panels[1].set(title="Accuracy on held-out images", ylabel="right answers (%)")
    panels[2].set(
        title="The rate that learning_rate(tx, state) tells", ylabel="learning rate"
    )
    for axes in panels:
        axes.axvline(
            whole.data.broken,
            color="grey",
            linestyle=":",
            label="batch that is not finite",
        )
        axes.set_xlabel("batches")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=95)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=1500)
    parser.add_argument("--plot", type=Path, default=Path("out/functional_loop.png"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # more threads do not help for tensors this small
    # In the middle of an accumulation.
    batches, stop = options.batches, options.batches // 2 + 1
    data = Digits(broken=batches // 3)
    with tqdm(total=3 * batches, unit=" batches", leave=False, disable=None) as bar:
        whole = Run(data, batches).train(0, batches, bar)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "run.safetensors"
            first = Run(data, batches).train(0, stop, bar)
            gradtx.save(file, first.params, first.state)
            size = file.stat().st_size / 1e6
            second = Run(data, batches)
            second.params, second.state = gradtx.load(file, second.params, second.state)
        second.train(stop, batches, bar)
        careless = Run(data, batches, careful=False).train(0, batches, bar)
    same = identical((second.params, second.state), (whole.params, whole.state))
    skipped, updates = (
        gradtx.get(whole.state, name) for name in ("skipped", "accumulate.step")
    )
    held_out = data.held_out()
    averaged = accuracy(whole.tx.eval_params(whole.state, whole.params), *held_out)
    print(
        f"{batches} batches: {skipped} skipped, {updates} updates; checkpoint after {stop}: {size:.1f} MB\n"
    )
    print(f"{'held-out accuracy':28}{'weights':>9}{'averaged':>10}")
    print(
        f"{'with skip_nonfinite':28}{accuracy(whole.params, *held_out):8.1f}%{averaged:9.1f}%"
    )
    print(f"{'without':28}{accuracy(careless.params, *held_out):8.1f}%")
    plot(whole, (first, second), careless, options.plot)
    print(
        f"\nplot: {options.plot}\nthe resumed run ends {'bit for bit' if same else 'NOT'} where the other one does"
    )


if __name__ == "__main__":
    main()
