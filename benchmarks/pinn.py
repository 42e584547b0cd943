"""A physics-informed network for Poisson's equation, by all methods that suit it, each for the same seconds.

    python benchmarks/pinn.py                      # 15 s a method, one thread
    python benchmarks/pinn.py --only "Gauss-Newton" --seconds 30

The equation is -laplace(u) = f on the unit square, with u = 0 at the edge and the solution sin(pi x) sin(pi y). A tanh
network 2-32-32-1 in float64 has 1,185 parameters; the residuals are those of the equation at 400 points inside and of
the edge at 120 points. The loss is half of the sum of both means of squares, with a weight for the edge. Prints the
relative L2 error at 2,000 other points, at a third of the time and at the end. Trials of a search count as losses.
`PerPoint` of examples/physics_informed.py computes the Jacobian of residuals that depend on one point each in one
batched pass; `--by-rows` leaves that to gradtx, which needs a backward pass for each residual.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent / "examples"))

import torch
from common import machine
from physics_informed import PerPoint  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn

import gradtx

INNER, EDGE, TEST, WIDTH = 400, 120, 2000, 32
WEIGHTS = {"pde": 1.0, "boundary": 1.0}
DAMPING = 1e-8


def points() -> tuple[Tensor, Tensor, Tensor]:
    """Return points inside, at the edge, and for the test."""
    generator = torch.Generator().manual_seed(1)

    def drawn(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    along, side = drawn(EDGE), torch.arange(EDGE) % 4
    fixed = (side % 2).double()
    x = torch.where(side < 2, fixed, along)
    y = torch.where(side < 2, along, fixed)
    return drawn(INNER, 2), torch.stack([x, y], -1), drawn(TEST, 2)


def solution(points: Tensor) -> Tensor:
    return (math.pi * points).sin().prod(-1)


Leaves = tuple[Tensor, ...]  # weight and bias of each layer


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = nn.Linear(2, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh()
    return nn.Sequential(*layers, nn.Linear(WIDTH, 1)).double()


def value(leaves: Leaves, x: Tensor) -> Tensor:
    """Return the network at points [..., 2]."""
    y = x
    for i in range(0, len(leaves), 2):
        y = (y if i == 0 else y.tanh()) @ leaves[i].T + leaves[i + 1]
    return y[..., 0]


def laplace(leaves: Leaves, x: Tensor) -> Tensor:
    """Return the sum of second derivatives at points [..., 2], by those of each layer along both axes."""
    first, bias, *others = leaves
    y = x @ first.T + bias
    slopes = [first[:, axis].expand_as(y) for axis in range(2)]
    bend = torch.zeros_like(y)
    for i in range(0, len(others), 2):
        weight, bias = others[i], others[i + 1]
        activated = y.tanh()
        d1 = 1 - activated**2
        d2 = -2 * activated * d1
        bend = d2 * (slopes[0] ** 2 + slopes[1] ** 2) + d1 * bend
        slopes = [(d1 * slope) @ weight.T for slope in slopes]
        y, bend = activated @ weight.T + bias, bend @ weight.T
    return bend[..., 0]


class Run:
    """A network, its points, and the clock."""

    takes_residuals = False

    def __init__(self, seconds: float, by_rows: bool = False):
        self.by_rows = by_rows
        self.network, self.seconds = network(), seconds
        self.leaves = tuple(self.network.parameters())
        self.inner, self.edge, self.test = points()
        self.source = 2 * math.pi**2 * solution(self.inner)
        self.target = solution(self.test)
        self.calls = self.steps = 0
        self.early = math.nan

    def residuals(self) -> dict[str, Tensor]:
        self.calls += 1
        equation = self._at(laplace, self.inner) + self.source
        return {"pde": equation, "boundary": self._at(value, self.edge)}

    def _at(self, function: Callable[[Leaves, Tensor], Tensor], x: Tensor) -> Tensor:
        if self.takes_residuals and not self.by_rows:
            return PerPoint.apply(function, (x,), *self.leaves)
        return function(self.leaves, x)

    def loss(self) -> Tensor:
        terms = self.residuals()
        return sum(
            (WEIGHTS[name] / 2) * term.square().mean() for name, term in terms.items()
        )  # type: ignore[return-value]  # of tensors

    def closure(self) -> Tensor:
        for param in self.network.parameters():
            param.grad = None
        loss = self.loss()
        loss.backward()
        return loss

    def error(self) -> float:
        with torch.no_grad():
            difference = value(self.leaves, self.test) - self.target
        return (difference.norm() / self.target.norm()).item()

    def train(self, optimizer: Any, takes_residuals: bool) -> None:
        """Step until the time is over."""
        self.takes_residuals = takes_residuals
        closure: Callable[[], Any] = self.residuals if takes_residuals else self.closure
        began = time.perf_counter()
        while (passed := time.perf_counter() - began) < self.seconds:
            if math.isnan(self.early) and passed > self.seconds / 3:
                self.early = self.error()
            optimizer.step(closure)
            self.steps += 1


def chained(tx: gradtx.GradientTransformation) -> Callable[[nn.Module], Any]:
    return lambda network: gradtx.as_optimizer(tx, network.named_parameters())


def torchs_lbfgs(network: nn.Module) -> Any:
    return torch.optim.LBFGS(
        network.parameters(),
        max_iter=20,
        history_size=20,
        tolerance_grad=0.0,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )


def searched(
    tx: gradtx.GradientTransformation, **options: Any
) -> Callable[[nn.Module], Any]:
    return chained(gradtx.line_search(tx, max_steps=30, **options))


def curvature(factory: Callable[..., Any], **options: Any) -> Any:
    return factory(damping=DAMPING, weights=WEIGHTS, **options)


# By name: the optimizer, and whether its closure returns residuals.
METHODS: Mapping[str, tuple[Callable[[nn.Module], Any], bool]] = {
    **{
        f"Adam, lr={lr:g}": (chained(gradtx.adam(lr)), False)
        for lr in (1e-3, 3e-3, 1e-2)
    },
    **{f"SOAP, lr={lr:g}": (chained(gradtx.soap(lr)), False) for lr in (3e-3, 1e-2)},
    "torch L-BFGS, strong Wolfe": (torchs_lbfgs, False),
    "gradtx L-BFGS, strong Wolfe": (
        searched(gradtx.lbfgs(history=20), conditions="strong_wolfe"),
        False,
    ),
    "Gauss-Newton, search": (
        searched(curvature(gradtx.gauss_newton, reduction="mean")),
        True,
    ),
    "Levenberg-Marquardt": (
        chained(
            gradtx.levenberg_marquardt(
                damping=1e-4, rule="marquardt", weights=WEIGHTS, reduction="mean"
            )
        ),
        True,
    ),
    "SPRING, search": (
        searched(curvature(gradtx.spring, lr=1.0, mu=0.9, norm_constraint=None)),
        True,
    ),
    "SPRING, its defaults": (chained(gradtx.spring(lr=0.05, weights=WEIGHTS)), True),
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--only", default="", help="a part of the names")
    parser.add_argument("--by-rows", action="store_true")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(f"{machine()}, {options.seconds:g} s each")
    early = f"after {options.seconds / 3:g} s"
    print(f"\n{'':32}{early:>12}{'at the end':>12}{'steps':>8}{'losses':>8}")
    for name, (make, takes_residuals) in METHODS.items():
        if options.only.lower() not in name.lower():
            continue
        run = Run(options.seconds, options.by_rows)
        run.train(make(run.network), takes_residuals)
        print(
            f"{name:32}{run.early:>12.1e}{run.error():>12.1e}{run.steps:>8}{run.calls:>8}",
            flush=True,
        )


if __name__ == "__main__":
    main()
