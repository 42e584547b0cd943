"""Fit a decay with errors as scipy does, and ten thousand decays at once, by the shape of the data alone.

Data: the example of scipy's curve_fit, 2.5 exp(-1.3 x) + 0.5 with noise at 50 points; then series of 25 points, each
with a rate and a noise of its own. A loop over scipy fits the same series, for the time and the losses.
Run: `python examples/curve_fit.py`. Prints a table and writes out/curve_fit.png.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.optimize import curve_fit
from torch import Tensor
from tqdm import tqdm

import gradtx

START = {"a": 1.0, "b": 1.0, "c": 0.0}
NOISE = 0.05


def decay(x: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return a * torch.exp(-b * x) + c


def decay_of_arrays(x: Any, a: float, b: float, c: float) -> Any:
    return a * np.exp(-b * x) + c


def one_series() -> tuple[Tensor, Tensor]:
    """The data of scipy's documentation, from another stream of random numbers."""
    generator = torch.Generator().manual_seed(0)
    x = torch.linspace(0, 4, 50, dtype=torch.float64)
    noise = torch.randn(50, generator=generator, dtype=torch.float64)
    return x, 2.5 * torch.exp(-1.3 * x) + 0.5 + 0.2 * noise


def many_series(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Points, series [count, 25], and their true rates."""
    generator = torch.Generator().manual_seed(1)
    x = torch.linspace(0, 4, 25, dtype=torch.float64)
    a, b, c = torch.rand(3, count, 1, generator=generator, dtype=torch.float64)
    rates = 0.5 + 2 * b
    noise = torch.randn(count, 25, generator=generator, dtype=torch.float64)
    return x, (1 + 2 * a) * torch.exp(-rates * x) + c + NOISE * noise, rates[:, 0]


def by_scipy(x: Tensor, series: Tensor) -> Tensor:
    """Return the sum of squares of each fit of a loop; inf where scipy finds none."""
    points, losses = x.numpy(), []
    for y in tqdm(series.numpy(), unit=" fits of scipy", leave=False, disable=None):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                params, _ = curve_fit(decay_of_arrays, points, y, [*START.values()])
            except RuntimeError:  # no minimum within its steps
                losses.append(float("inf"))
                continue
        losses.append(float(((decay_of_arrays(points, *params) - y) ** 2).sum()))
    return torch.tensor(losses, dtype=torch.float64)


def draw(path: Path, one: gradtx.Fit, many: gradtx.Fit, rates: Tensor) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    x, y = one.x, one.y
    fine = torch.linspace(0, 4, 200, dtype=torch.float64)
    curve, band = one.predict(fine), one.band(fine)
    left.plot(x, y, "o", markersize=3, label="data")
    left.plot(fine, curve, color="C3", label="fit")
    left.fill_between(
        fine,
        curve - 2 * band,
        curve + 2 * band,
        color="C3",
        alpha=0.2,
        label="± two standard errors",
    )
    left.set(xlabel="x", ylabel="y", title="one fit")
    left.legend()
    found, errors = many.params["b"], many.errors["b"]
    z = ((found - rates) / errors)[many.converged]
    bins = torch.linspace(-4, 4, 33, dtype=torch.float64)
    right.hist(z, bins=bins.tolist(), density=True, label="fits")
    normal = torch.exp(-(bins**2) / 2) / (2 * torch.pi) ** 0.5
    right.plot(bins, normal, color="black", label="normal distribution")
    right.set(
        xlabel="(rate - true rate) / standard error",
        title=f"the errors of {len(rates)} fits",
    )
    right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=75)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fits", type=int, default=10_000)
    parser.add_argument("--plot", type=Path, default=Path("out/curve_fit.png"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # as scipy

    x, y = one_series()
    one = gradtx.curve_fit(decay, x, y, START)
    print(one)

    x, series, rates = many_series(options.fits)
    gradtx.curve_fit(decay, x, series[:2], START)  # torch loads what it needs
    start = time.perf_counter()
    many = gradtx.curve_fit(decay, x, series, START)
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    losses = by_scipy(x, series)
    seconds_of_scipy = time.perf_counter() - start
    excess = many.residuals.square().sum(1) / losses - 1

    draw(options.plot, one, many, rates)
    within = ((many.params["b"] - rates).abs() < many.errors["b"]).double().mean()
    print(f"{'':24}{'gradtx':>10}{'scipy':>10}")
    print(f"{'ms for all fits':24}{1e3 * seconds:10.0f}{1e3 * seconds_of_scipy:10.0f}")
    print(
        f"{'fits that converged':24}{int(many.converged.sum()):10d}{int(losses.isfinite().sum()):10d}"
    )
    print(f"largest loss relative to scipy's: 1 + {excess.max().item():.0e}")
    print(f"plot: {options.plot}")
    print(f"rates within one standard error of the true ones: {within:.0%}")


if __name__ == "__main__":
    main()
