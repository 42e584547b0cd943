"""Train a network per learning rate and seed in one sweep, and plot the loss by rate.

Data: scikit-learn's digits, 1000 images for training and 797 held out. benchmarks/sweep.py compares the time with a
loop over torch.optim.
Run: `python examples/ensemble_rates.py`. Prints a table and writes out/ensemble_rates.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.func import functional_call

import gradtx

TRAIN, BATCH = 1000, 32
NUMBERS, LABELS = map(torch.as_tensor, load_digits(return_X_y=True))
ORDER = torch.randperm(len(LABELS), generator=torch.Generator().manual_seed(0))
X, Y = NUMBERS[ORDER].float() / 16, LABELS[ORDER]
Params = dict[str, Tensor]


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))


MODEL = network(0)


def weights(seed: int) -> Params:
    return {name: p.detach() for name, p in network(seed).named_parameters()}


def loss_fn(params: Params, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    return nn.functional.cross_entropy(functional_call(MODEL, params, (x,)), y)


def held_out(params: Params) -> dict[str, Tensor]:
    return {"held out": loss_fn(params, (X[TRAIN:], Y[TRAIN:]))}


def batch_of(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    rows = torch.randint(TRAIN, (BATCH,), generator=generator)
    return X[rows], Y[rows]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument(
        "--rates", type=int, default=17, help="how many, from 1e-4 to 1"
    )
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--plot", type=Path, default=Path("out/ensemble_rates.png"))
    options = parser.parse_args(arguments)
    result = gradtx.sweep(
        loss_fn,
        gradtx.adamw,
        weights,
        batch_of,
        over={"lr": torch.logspace(-4, 0, options.rates).tolist()},
        seeds=options.seeds,
        steps=options.steps,
        eval_fn=held_out,
        every=max(options.steps // 20, 1),
    )
    print(result)
    options.plot.parent.mkdir(parents=True, exist_ok=True)
    result.plot(options.plot, key="held out")
    best = result.best(key="held out")[0]
    print(f"\nplot: {options.plot}")
    print(
        f"held-out loss {best['mean']:.3f} (deviation {best['std']:.3f}) after {options.steps} steps; "
        f"best of the rates: {best['lr']:.2g}"
    )


if __name__ == "__main__":
    main()
