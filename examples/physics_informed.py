"""Solve Burgers' equation with a network that obeys it, by Adam, by L-BFGS, and by Gauss-Newton on its residuals.

The solution of u_t + u u_x = nu u_xx on -1 <= x <= 1 and 0 <= t <= 1, with both ends at 0, starts as -sin(pi x) and
steepens in the middle. It is known (Cole 1951), and so are the errors. There are no measurements: a small network
u(x, t), exact at the start and at both ends by construction, is fitted to the equation alone, at fixed points. The
loss is smooth and has no noise, which suits L-BFGS. `gradtx.line_search(gradtx.lbfgs(), conditions="strong_wolfe")`
runs as a torch optimizer, next to `torch.optim.LBFGS` with the same history and the same line search conditions, and to
Adam. A step of gradtx's L-BFGS begins by calling the closure where the last trial of the previous step ended, so the
closure caches its last evaluation.

The loss is a mean of squares, so Gauss-Newton fits: its closure returns the residuals, and does not call `backward`.
Its Jacobian would take a backward pass of all points for each residual. But a residual depends on one point alone, so
`PerPoint` computes all rows in one batched pass, which is as much work as one gradient of the loss. An evaluation is
one loss with its gradient: the Jacobian counts as one, and so does each trial of the search, which is a loss alone.
Run: `python examples/physics_informed.py`. Prints a table and writes out/physics_informed.png.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from torch import Tensor
from torch.func import jvp
from tqdm import tqdm

import gradtx

VISCOSITY, WIDTH, COLLOCATED, HISTORY, TRIALS = 0.05, 20, 400, 20, 20
ADAM_RATE = 1e-2  # the best of 3e-3, 1e-2 and 3e-2 with other seeds
DAMPING = 1e-7  # the best of 1e-8, 1e-7 and 1e-6 with other seeds

Params = Mapping[str, Tensor]


def initial(x: Tensor) -> Tensor:
    return -torch.sin(math.pi * x)


def solution(x: Tensor, t: Tensor, nodes: int = 100) -> Tensor:
    """Compute Cole's integrals by Gauss-Hermite quadrature, with nodes from the eigenvalues of its Jacobi matrix."""
    off = torch.sqrt(torch.arange(1, nodes, dtype=torch.float64) / 2)
    places, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    moved = x[..., None] - 2 * torch.sqrt(VISCOSITY * t)[..., None] * places
    exponent = -torch.cos(math.pi * moved) / (2 * math.pi * VISCOSITY)
    weights = vectors[0].square() * torch.exp(
        exponent - exponent.amax(-1, keepdim=True)
    )
    return -(weights * torch.sin(math.pi * moved)).sum(-1) / weights.sum(-1)


def start(seed: int) -> Params:
    generator = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int) -> Tensor:
        return torch.randn(
            rows, columns, generator=generator, dtype=torch.float64
        ) / math.sqrt(columns)

    return {
        "in.weight": 2 * matrix(WIDTH, 2),
        "in.bias": matrix(1, WIDTH)[0],
        "middle.weight": matrix(WIDTH, WIDTH),
        "middle.bias": torch.zeros(WIDTH, dtype=torch.float64),
        "out.weight": matrix(1, WIDTH),
    }


def network(params: Params, x: Tensor, t: Tensor) -> Tensor:
    """Return the value at every (x, t), which is exact at t = 0 and at both ends for any weights."""
    y = torch.stack([x, 2 * t - 1], dim=-1)
    y = torch.tanh(y @ params["in.weight"].T + params["in.bias"])
    y = torch.tanh(y @ params["middle.weight"].T + params["middle.bias"])
    y = (y @ params["out.weight"].T).squeeze(-1)
    return initial(x) + (1 - x.square()) * t * y


def residual(params: Params, x: Tensor, t: Tensor) -> Tensor:
    """Return the residual of the equation, u_t + u u_x - nu u_xx, at every (x, t)."""
    ones = torch.ones_like(x)

    def slope(x: Tensor) -> Tensor:
        return jvp(lambda x: network(params, x, t), (x,), (ones,))[1]

    u, (u_x, u_xx) = network(params, x, t), jvp(slope, (x,), (ones,))[:2]
    u_t = jvp(lambda t: network(params, x, t), (t,), (ones,))[1]
    return u_t + u * u_x - VISCOSITY * u_xx


class PerPoint(torch.autograd.Function):
    """Compute a function at every point, with a backward pass that knows each value to depend on one point alone.

    `PerPoint.apply(function, points, *leaves)` returns `function(leaves, *point)` for all points. The first backward
    pass computes the derivatives at all points together, and later ones multiply with them.
    """

    @staticmethod
    def forward(
        function: Callable[..., Tensor], points: tuple[Tensor, ...], *leaves: Tensor
    ) -> Tensor:
        return function(leaves, *points)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.function, ctx.points, *leaves = inputs
        ctx.leaves = tuple(leaf.detach() for leaf in leaves)
        ctx.rows = None

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        if ctx.rows is None:
            in_dims = (None, *[0] * len(ctx.points))
            slopes = torch.vmap(torch.func.grad(ctx.function), in_dims=in_dims)(
                ctx.leaves, *ctx.points
            )
            ctx.rows = [slope.flatten(1) for slope in slopes]
        products = [
            (gradient @ rows).reshape(leaf.shape)
            for rows, leaf in zip(ctx.rows, ctx.leaves, strict=True)
        ]
        return None, None, *products


def adam(params: Params, evaluations: int) -> torch.optim.Optimizer:
    rate = gradtx.cosine_schedule(ADAM_RATE, T_max=evaluations)
    return gradtx.as_optimizer(gradtx.adam(rate), params.items())


def our_lbfgs(params: Params, evaluations: int) -> torch.optim.Optimizer:
    tx = gradtx.line_search(
        gradtx.lbfgs(history=HISTORY), max_steps=TRIALS, conditions="strong_wolfe"
    )
    return gradtx.as_optimizer(tx, params.items())


def torchs_lbfgs(params: Params, evaluations: int) -> torch.optim.Optimizer:
    """Return torch's L-BFGS, for which one call of `step` runs all iterations, up to the last evaluation."""
    return torch.optim.LBFGS(
        params.values(),
        lr=1.0,
        max_iter=evaluations,
        max_eval=evaluations,
        tolerance_grad=0.0,
        tolerance_change=0.0,
        history_size=HISTORY,
        line_search_fn="strong_wolfe",
    )


def gauss_newton(params: Params, evaluations: int) -> torch.optim.Optimizer:
    tx = gradtx.line_search(
        gradtx.gauss_newton(damping=DAMPING, reduction="mean"), max_steps=30
    )
    return gradtx.as_optimizer(tx, params.items())


METHODS: dict[str, Callable[[Params, int], torch.optim.Optimizer]] = {
    "Adam": adam,
    "torch L-BFGS": torchs_lbfgs,
    "gradtx L-BFGS": our_lbfgs,
    "Gauss-Newton": gauss_newton,
}


class SpentError(Exception):
    """Raised when the evaluations are used up."""


class Run:
    """A run of one method from one seed, until its evaluations are used up.

    Attributes:
        costs: The evaluations so far, at each loss.
        times: The seconds so far.
        losses: The lowest loss so far.
        best: The parameters with that loss.
    """

    def __init__(self, name: str, seed: int, evaluations: int):
        self.name, self.seed, self.evaluations = name, seed, evaluations
        self.costs: list[int] = []
        self.times: list[float] = []
        self.losses: list[float] = []
        self.best: Params = {}

    def train(self, bar: tqdm) -> Run:
        draw = torch.Generator().manual_seed(1000 + self.seed)
        x, t = torch.rand(2, COLLOCATED, generator=draw, dtype=torch.float64)
        self.points = 2 * x - 1, t
        self.params = {
            name: torch.nn.Parameter(value) for name, value in start(self.seed).items()
        }
        self.optimizer = METHODS[self.name](self.params, self.evaluations)
        self.cost, self.began = 0, time.perf_counter()
        if self.name == "Gauss-Newton":
            self._by_residuals(bar)
        else:
            self._by_losses(bar)
        return self

    def _by_residuals(self, bar: tqdm) -> None:
        names = list(self.params)

        def function(leaves: tuple[Tensor, ...], x: Tensor, t: Tensor) -> Tensor:
            return residual(dict(zip(names, leaves, strict=True)), x, t)

        def closure() -> Tensor:
            residuals = PerPoint.apply(function, self.points, *self.params.values())
            self._note(residuals.square().mean().item(), cost=1)
            return residuals

        while self.cost < self.evaluations:
            before = self.cost
            self.optimizer.step(closure)  # type: ignore[call-overload]  # torch declares that closures return floats
            self.cost += 1  # the Jacobian
            bar.update(self.cost - before)
        self._note(residual(self.params, *self.points).square().mean().item(), cost=0)

    def _by_losses(self, bar: tqdm) -> None:
        # Weights, and their loss and gradients.
        last: tuple[list[Tensor], Tensor, list[Tensor | None]] | None = None

        def closure() -> Tensor:
            nonlocal last
            weights = list(self.params.values())
            if last is None or not all(map(torch.equal, weights, last[0])):
                loss = evaluated()
                last = (
                    [weight.detach().clone() for weight in weights],
                    loss,
                    [weight.grad for weight in weights],
                )
            for weight, gradient in zip(weights, last[2], strict=True):
                weight.grad = gradient
            return last[1]

        def evaluated() -> Tensor:
            if self.cost == self.evaluations:
                raise SpentError
            for param in self.params.values():
                param.grad = None
            loss = residual(self.params, *self.points).square().mean()
            loss.backward()
            self._note(loss.item(), cost=1)
            bar.update()
            return loss.detach()

        try:
            while self.cost < self.evaluations:
                before = self.cost
                self.optimizer.step(closure)  # type: ignore[call-overload]  # as above
                if self.cost == before:  # torch's L-BFGS stops at its limits
                    break
        except SpentError:
            # gradtx restores the weights from before this step; the best ones are recorded.
            pass
        bar.update(self.evaluations - self.cost)

    def _note(self, loss: float, cost: int) -> None:
        if not self.losses or loss < self.losses[-1]:
            self.best = {
                name: param.detach().clone() for name, param in self.params.items()
            }
        self.cost += cost
        self.costs.append(self.cost)
        self.times.append(time.perf_counter() - self.began)
        self.losses.append(min([loss, *self.losses[-1:]]))

    def on_grid(self, sides: int = 61) -> tuple[Tensor, Tensor]:
        """Return the values of the network and the exact values at (x, t)."""
        axes = (
            torch.linspace(-1, 1, sides, dtype=torch.float64),
            torch.linspace(0, 1, sides, dtype=torch.float64),
        )
        x, t = torch.meshgrid(*axes, indexing="ij")
        with torch.no_grad():
            return network(self.best, x, t), solution(x, t)

    def error(self) -> float:
        u, exact = self.on_grid()
        return (u - exact).square().mean().sqrt().item()


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def draw_losses(axes: Axes, runs: dict[str, list[Run]], over: str) -> None:
    """Draw the lowest loss so far over the "costs" or the "times" of runs."""
    for i, (name, of_method) in enumerate(runs.items()):
        places = [
            torch.tensor(getattr(run, over), dtype=torch.float64) for run in of_method
        ]
        first = max(place[0].item() for place in places)
        last = max(place[-1].item() for place in places)
        grid = torch.logspace(
            math.log10(first), math.log10(last), 300, dtype=torch.float64
        )
        rows: list[Tensor] = []
        for run, place in zip(of_method, places, strict=True):
            losses = torch.tensor(run.losses, dtype=torch.float64)
            passed = torch.searchsorted(place, grid * (1 + 1e-9), right=True) - 1
            rows.append(losses[passed.clamp(min=0)])
        seeds = torch.stack(rows)
        axes.plot(grid, seeds.log().mean(0).exp(), color=f"C{i}", label=name)
        band = seeds.amin(0), seeds.amax(0)
        axes.fill_between(grid, *band, color=f"C{i}", alpha=0.15, linewidth=0)
    axes.set(xscale="log", yscale="log", ylabel="mean square of the residual")
    axes.grid(alpha=0.3)


def plot(runs: dict[str, list[Run]], path: Path) -> None:
    figure, panels = plt.subplots(2, 2, figsize=(11, 7.6), layout="constrained")
    (over_costs, over_times), (lines, picture) = panels
    draw_losses(over_costs, runs, "costs")
    over_costs.set(
        title="Loss by evaluations", xlabel="evaluations of loss and gradient"
    )
    draw_losses(over_times, runs, "times")
    over_times.set(
        title="Loss by time", xlabel="seconds, one thread", xlim=(1e-2, None)
    )
    over_times.legend(fontsize=8, loc="lower left")
    run = next(reversed(runs.values()))[0]
    u, exact = run.on_grid()
    axis = torch.linspace(-1, 1, u.shape[0])
    for i, column in enumerate((0, u.shape[1] // 3, u.shape[1] - 1)):
        time_shown = column / (u.shape[1] - 1)
        lines.plot(axis, u[:, column], color=f"C{i}", label=f"t = {time_shown:.2g}")
        lines.plot(
            axis,
            exact[:, column],
            color="black",
            linestyle=":",
            label="exact" if i == 0 else None,
        )
    lines.set(title=f"u(x) at three times ({run.name})", xlabel="x", ylabel="u")
    lines.legend(fontsize=8)
    image = picture.imshow(
        u.T.numpy(), origin="lower", extent=(-1, 1, 0, 1), aspect="auto", cmap="RdBu_r"
    )
    picture.set(title=f"u(x, t) ({run.name}, first seed)", xlabel="x", ylabel="t")
    figure.colorbar(image, ax=picture)
    figure.suptitle(
        f"Lines: geometric mean of {len(next(iter(runs.values())))} seeds; bands: least to greatest",
        fontsize=10,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--evaluations", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--plot", type=Path, default=Path("out/physics_informed.png"))
    options = parser.parse_args(argv)
    torch.set_num_threads(1)  # more threads do not help for tensors this small
    runs: dict[str, list[Run]] = {}
    total = len(METHODS) * options.seeds * options.evaluations
    with tqdm(total=total, unit=" evaluations", leave=False, disable=None) as bar:
        for name in METHODS:
            bar.set_description(name)
            runs[name] = [
                Run(name, seed, options.evaluations).train(bar)
                for seed in range(options.seeds)
            ]
    print(
        f"after {options.evaluations} evaluations, {options.seeds} seeds: mean (range)\n"
    )
    print(f"{'':16}{'loss':>30}{'error of u':>30}{'evaluations':>13}{'seconds':>10}")
    closing: list[str] = []
    for name, of_method in runs.items():
        cells: list[str] = []
        for values in (
            [run.losses[-1] for run in of_method],
            [run.error() for run in of_method],
        ):
            cells.append(
                f"{geometric_mean(values):.2g} ({min(values):.2g}-{max(values):.2g})"
            )
        cost = sum(run.cost for run in of_method) / options.seeds
        seconds = sum(run.times[-1] for run in of_method) / options.seeds
        print(f"{name:16}{cells[0]:>30}{cells[1]:>30}{cost:>13.0f}{seconds:>10.1f}")
        closing.append(
            f"{name} {geometric_mean([run.error() for run in of_method]):.2g}"
        )
    plot(runs, options.plot)
    print(f"\nplot: {options.plot}\nerror of u: {', '.join(closing)}")


if __name__ == "__main__":
    main()
