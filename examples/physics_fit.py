"""Estimate the diffusivity of a rod from noisy temperatures, with a network that obeys the heat equation.

u_t = k u_xx on 0 <= x <= 1, with both ends at 0 and known initial values, has a closed-form solution, so errors are
known. The data are 30 noisy temperatures from early times. A small network u(x, t) is fitted to them and, everywhere,
to the equation, with derivatives by `torch.func.jvp`, nested for u_xx; log k is a parameter next to the network's
weights. `partition` builds three chains: Adam, Muon or SOAP for the network's matrices, and Adam for its biases and, at
a larger rate, for log k. One `vmap` trains a member per seed, which determines the weights and the noise. The rates of
the matrices are the best of 3e-3, 1e-2 and 3e-2 with other seeds.
Run: `python examples/physics_fit.py`. Prints a table and writes out/physics_fit.png.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor
from torch.func import grad_and_value, jvp
from tqdm import tqdm

import gradtx

DIFFUSIVITY, GUESS, NOISE = 0.05, 0.2, 0.02
MEASURED, COLLOCATED, WIDTH, EVERY = 30, 100, 16, 10
RATES = {"Adam": 1e-2, "Muon": 1e-2, "SOAP": 3e-3}
WEIGHT = 0.03  # weight of the equation relative to the measurements
# Adam's rates; log k has to move by 1.4, which is more than a weight.
BIAS_RATE, K_RATE = 1e-2, 5e-2

Params = dict[str, Tensor]


def initial(x: Tensor) -> Tensor:
    return torch.sin(math.pi * x) + 0.5 * torch.sin(2 * math.pi * x)


def solution(x: Tensor, t: Tensor) -> Tensor:
    decay = torch.exp(-DIFFUSIVITY * math.pi**2 * t)
    return decay * torch.sin(math.pi * x) + 0.5 * decay**4 * torch.sin(2 * math.pi * x)


def start(seed: int) -> Params:
    generator = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int) -> Tensor:
        return torch.randn(
            rows, columns, generator=generator, dtype=torch.float64
        ) / math.sqrt(columns)

    zeros = torch.zeros(WIDTH, dtype=torch.float64)
    return {
        "net.in.weight": 2 * matrix(WIDTH, 2),
        "net.in.bias": matrix(1, WIDTH)[0],
        "net.middle.weight": matrix(WIDTH, WIDTH),
        "net.middle.bias": zeros,
        "net.out.weight": matrix(1, WIDTH),
        "physics.log_k": torch.tensor(math.log(GUESS), dtype=torch.float64),
    }


def network(params: Params, x: Tensor, t: Tensor) -> Tensor:
    """Return the temperature at every (x, t), which is exact at t = 0 and at both ends for any weights."""
    y = torch.stack([2 * x - 1, 2 * t - 1], dim=-1)
    y = torch.tanh(y @ params["net.in.weight"].T + params["net.in.bias"])
    y = torch.tanh(y @ params["net.middle.weight"].T + params["net.middle.bias"])
    y = (y @ params["net.out.weight"].T).squeeze(-1)
    return initial(x) + 4 * x * (1 - x) * t * y


def residual(params: Params, x: Tensor, t: Tensor) -> Tensor:
    """Return the residual of the equation, u_t - k u_xx, at every (x, t)."""
    ones = torch.ones_like(x)

    def slope(x: Tensor) -> Tensor:
        return jvp(lambda x: network(params, x, t), (x,), (ones,))[1]

    u_t = jvp(lambda t: network(params, x, t), (t,), (ones,))[1]
    return u_t - params["physics.log_k"].exp() * jvp(slope, (x,), (ones,))[1]


def transformation(name: str, steps: int) -> gradtx.GradientTransformation:
    def falling(rate: float) -> gradtx.Schedule:
        return gradtx.cosine_schedule(rate, T_max=steps)

    matrices = {
        "Adam": lambda rate: gradtx.adam(falling(rate)),
        "Muon": lambda rate: gradtx.muon(
            falling(rate), weight_decay=0.0, ns_dtype=None
        ),
        "SOAP": lambda rate: gradtx.soap(falling(rate), weight_decay=0.0),
    }
    return gradtx.partition(
        {
            "matrices": matrices[name](RATES[name]),
            "biases": gradtx.adam(falling(BIAS_RATE)),
            "physics": gradtx.adam(falling(K_RATE)),
        },
        {"matrices": "net.*.weight", "biases": "net.*.bias", "physics": "physics.*"},
    )


class Run:
    """A chain, trained with all seeds at once."""

    def __init__(self, name: str, seeds: range):
        self.name, self.seeds = name, seeds
        self.steps: list[int] = []
        self.residuals: list[Tensor] = []  # each with one value per seed
        self.errors: list[Tensor] = []
        self.found: list[Tensor] = []

    def train(self, steps: int, bar: tqdm) -> Run:
        draw = torch.Generator().manual_seed(self.seeds[0])
        x, t = torch.rand(2, MEASURED, generator=draw, dtype=torch.float64)
        t = t / 2  # there are no measurements in the second half
        noise = torch.randn(
            len(self.seeds), MEASURED, generator=draw, dtype=torch.float64
        )
        measured = solution(x, t) + NOISE * noise
        everywhere = torch.rand(2, COLLOCATED, generator=draw, dtype=torch.float64)
        axis = torch.linspace(0, 1, 41, dtype=torch.float64)
        grid = torch.meshgrid(axis, axis, indexing="ij")
        tx = transformation(self.name, steps)

        def loss_of(params: Params, measured: Tensor) -> Tensor:
            misfit = (network(params, x, t) - measured).square().mean()
            return misfit + WEIGHT * residual(params, *everywhere).square().mean()

        def step(
            params: Params, state: Any, measured: Tensor
        ) -> tuple[Params, Any, Tensor]:
            grads, loss = grad_and_value(loss_of)(params, measured)
            updates, state = tx.update(grads, state, params)
            return gradtx.apply_updates(params, updates), state, loss

        def measure(params: Params) -> tuple[Tensor, Tensor]:
            error = (network(params, *grid) - solution(*grid)).square().mean().sqrt()
            return error, residual(
                params, *(each.flatten() for each in grid)
            ).square().mean().sqrt()

        members = [start(seed) for seed in self.seeds]
        params = {
            name: torch.stack([each[name] for each in members]) for name in members[0]
        }
        state = torch.vmap(tx.init)(params)
        bar.set_description(self.name)
        for i in range(1, steps + 1):
            params, state, _ = torch.vmap(step)(params, state, measured)
            if i % EVERY == 0 or i == steps:
                error, rest = torch.vmap(measure)(params)
                self.steps.append(i)
                self.errors.append(error)
                self.residuals.append(rest)
                self.found.append(params["physics.log_k"].exp())
            bar.update()
        self.x, self.t = x.numpy(), t.numpy()  # for matplotlib
        # One row per time.
        self.picture = network(
            {name: p[0] for name, p in params.items()}, *grid
        ).T.numpy()
        return self


def gathered(values: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the geometric mean, the minimum and the maximum over the seeds, for every measured step."""
    each = torch.stack(values)
    return each.log().mean(1).exp(), each.amin(1), each.amax(1)


def plot(runs: list[Run], path: Path) -> None:
    figure, axes = plt.subplots(1, 4, figsize=(17, 4.4), layout="constrained")
    panels: list[Any] = list(axes)
    for i, run in enumerate(runs):
        for panel, values in zip(
            panels, (run.residuals, run.errors, run.found), strict=False
        ):
            mean, low, high = gathered(values)
            panel.plot(run.steps, mean, color=f"C{i}", label=run.name)
            panel.fill_between(
                run.steps, low, high, color=f"C{i}", alpha=0.15, linewidth=0
            )
    panels[0].set(
        title="What is left of the equation",
        ylabel="root mean square of u_t - k u_xx",
        yscale="log",
    )
    panels[1].set(
        title="Distance to the solution",
        ylabel="root mean square of the error",
        yscale="log",
    )
    panels[2].axhline(DIFFUSIVITY, color="grey", linestyle=":", label="true")
    panels[2].set(title="The diffusivity k that was found", ylabel="k", yscale="log")
    for panel in panels[:3]:
        panel.set_xlabel("step")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    image = panels[3].imshow(
        runs[-1].picture,
        origin="lower",
        extent=(0, 1, 0, 1),
        aspect="auto",
        cmap="magma",
    )
    panels[3].scatter(
        runs[-1].x, runs[-1].t, s=14, color="white", edgecolor="black", label="measured"
    )
    panels[3].set(
        title=f"u(x, t) as found ({runs[-1].name}, first seed)", xlabel="x", ylabel="t"
    )
    panels[3].legend(fontsize=8, loc="upper right")
    figure.colorbar(image, ax=panels[3], label="temperature")
    figure.suptitle(
        f"Lines: geometric mean of {len(runs[0].seeds)} seeds; bands: least to greatest",
        fontsize=10,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--plot", type=Path, default=Path("out/physics_fit.png"))
    options = parser.parse_args(argv)
    torch.set_num_threads(1)  # more threads do not help for tensors this small
    with tqdm(
        total=len(RATES) * options.steps, unit=" steps", leave=False, disable=None
    ) as bar:
        runs = [
            Run(name, range(options.seeds)).train(options.steps, bar) for name in RATES
        ]
    print(
        f"after {options.steps} steps, {options.seeds} seeds: mean (range); k is {DIFFUSIVITY:g}\n"
    )
    print(f"{'':8}{'error of u':>30}{'left of the equation':>30}{'k':>28}")
    closing = []
    for run in runs:
        cells = [
            f"{mean[-1]:.2g} ({low[-1]:.2g}-{high[-1]:.2g})"
            for mean, low, high in map(gathered, (run.errors, run.residuals))
        ]
        k, low, high = (each[-1].item() for each in gathered(run.found))
        print(
            f"{run.name:8}{cells[0]:>30}{cells[1]:>30}{f'{k:.4f} ({low:.4f}-{high:.4f})':>28}"
        )
        closing.append(f"{run.name} {gathered(run.errors)[0][-1]:.2g}")
    plot(runs, options.plot)
    print(f"\nplot: {options.plot}\nerror of u: {', '.join(closing)}")


if __name__ == "__main__":
    main()
