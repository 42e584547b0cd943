"""Least squares against scipy's MINPACK and torch's L-BFGS: evaluations, NIST's certified digits, and time.

    python benchmarks/least_squares.py                  # all parts
    python benchmarks/least_squares.py --part nist      # one or several of evaluations, nist, times, batch
    python benchmarks/least_squares.py --rounds 3       # fewer rounds of timing

Prints the tables of docs/howto/least-squares.md. Contestants whose package is absent (scipy, optimistix, jaxopt) are
left out, and named.
"""

from __future__ import annotations

import argparse
import importlib
import math
import statistics
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import torch
from common import interleaved, machine, ratio
from torch import Tensor
from torch.func import jacfwd
from tqdm import tqdm

import gradtx
from tests.least_squares_problems import CLASSIC, NIST, Problem

MOST = 1000  # steps, or evaluations
CLOSE = 1e-8  # of the minimum: the sum of squares relative to it, or what is left of the first where it is 0
FIT, POINTS = 1000, 25
POLISHING = 8  # the most Gauss-Newton steps behind a fit
PARTS: dict[str, Callable[[argparse.Namespace], None]] = {}


def part(function: Callable[[argparse.Namespace], None]) -> Callable[..., None]:
    PARTS[function.__name__] = function
    return function


def package(name: str) -> Any:
    """Return a package, or None if it is absent."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


optimize = package("scipy.optimize")


@dataclass
class Tally:
    """What a run of a method computed."""

    evaluations: int = 0
    jacobians: int = 0
    params: Tensor | None = None
    reached: bool = False

    def __str__(self) -> str:
        if not self.reached:
            return "never"
        return f"{self.evaluations} / {self.jacobians}"


class Enough(Exception):  # noqa: N818  # it ends a run, and is no error
    """Raised where the minimum is reached."""


class Counted:
    """The residuals of a problem, and their Jacobian, counted until the loss is close to the minimum."""

    def __init__(self, problem: Problem, start: Tensor, close: float | None = CLOSE):
        self.problem, self.run, self.close = problem, Tally(), close
        first = problem.loss(start).item()
        scale = problem.minimum if problem.minimum > 1e-12 else first
        self.bound = problem.minimum + (close or 0.0) * scale

    def residual(self, params: Tensor) -> Tensor:
        residual = self.problem.residual(params)
        self.run.evaluations += 1
        if self.close is not None and residual.square().sum() <= self.bound:
            self.run.reached = True
            raise Enough
        return residual

    def jacobian(self, params: Tensor) -> Tensor:
        self.run.jacobians += 1
        return jacfwd(self.problem.residual)(params)


def by_gradtx(
    tx: gradtx.GradientTransformation, steps: int = MOST
) -> Callable[..., None]:
    """Return a method that steps by a chain. Each step computes a Jacobian, but behind a rejected trial."""

    def run(problem: Problem, start: Tensor, counted: Counted) -> None:
        param = torch.nn.Parameter(start.clone())
        optimizer = gradtx.as_optimizer(tx, [("p", param)])

        def closure() -> Tensor:
            with torch.no_grad():
                counted.residual(param.detach())
            return problem.residual(param)

        counted.run.params = param.data
        for _ in range(steps):
            counted.run.jacobians += 1
            optimizer.step(closure)

    return run


def by_scipy(method: str, **options: Any) -> Callable[..., None]:
    def run(problem: Problem, start: Tensor, counted: Counted) -> None:
        def residual(p: Any) -> Any:
            return counted.residual(torch.as_tensor(p)).numpy()

        def jacobian(p: Any) -> Any:
            return counted.jacobian(torch.as_tensor(p)).numpy()

        result = optimize.least_squares(
            residual, start.numpy(), jacobian, method=method, max_nfev=MOST, **options
        )
        counted.run.params = torch.as_tensor(result.x)

    return run


def by_torchs_lbfgs(problem: Problem, start: Tensor, counted: Counted) -> None:
    param = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.LBFGS(
        [param],
        max_iter=MOST,
        max_eval=MOST,
        tolerance_grad=0.0,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )
    counted.run.params = param.data

    def closure() -> Tensor:
        optimizer.zero_grad()
        counted.residual(param.detach())
        loss = problem.loss(param) / 2
        loss.backward()
        counted.run.jacobians += 1  # a gradient
        return loss

    optimizer.step(closure)


LM = gradtx.levenberg_marquardt
METHODS: dict[str, Callable[..., None]] = {
    "levenberg_marquardt": by_gradtx(LM()),
    "  scaling='running'": by_gradtx(LM(scaling="running")),
    "  as in curve_fit": by_gradtx(
        LM(damping=1e-2, rule="thresholds", scaling="running")
    ),
    "dogleg": by_gradtx(gradtx.dogleg()),
    "gauss_newton(damping=0.0)": by_gradtx(gradtx.gauss_newton(damping=0.0)),
    "torch L-BFGS": by_torchs_lbfgs,
}
if optimize is not None:
    METHODS["scipy lm"] = by_scipy("lm", xtol=1e-15, ftol=1e-15, gtol=1e-15)


def counts_of(method: Callable[..., None], problem: Problem, start: Tensor) -> Tally:
    counted = Counted(problem, start)
    try:
        method(problem, start, counted)
    except Enough:
        pass
    except (
        RuntimeError,
        ValueError,
    ):  # a matrix without a factor, or values that are not finite
        counted.run.reached = False
    return counted.run


@part
def evaluations(options: argparse.Namespace) -> None:
    print(
        f"Residuals / Jacobians (L-BFGS: gradients) until the sum of squares is within {CLOSE:g} of the minimum\n"
    )
    problems = [
        CLASSIC[name]
        for name in ("Rosenbrock", "Powell singular", "Bard", "Osborne 1", "Decay")
    ]
    print(f"{'':28}" + "".join(f"{problem.name:>17}" for problem in problems))
    for name, method in METHODS.items():
        cells = [
            str(counts_of(method, problem, problem.starts[0])) for problem in problems
        ]
        print(f"{name:28}" + "".join(f"{cell:>17}" for cell in cells))


def digits_by_front_door(problem: Problem, start: Tensor) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = gradtx.least_squares(problem.residual, start, steps=MOST, tolerance=1e-13)
    return problem.digits(fit.params)


def digits_by_scipy(problem: Problem, start: Tensor) -> float:
    counted = Counted(problem, start, close=None)
    by_scipy("lm", xtol=1e-15, ftol=1e-15, gtol=1e-15, x_scale="jac")(
        problem, start, counted
    )
    assert counted.run.params is not None
    return problem.digits(counted.run.params)


def digits_by_lbfgs(problem: Problem, start: Tensor) -> float:
    counted = Counted(problem, start, close=None)
    by_torchs_lbfgs(problem, start, counted)
    assert counted.run.params is not None
    return problem.digits(counted.run.params)


def digits_by_polish(problem: Problem, start: Tensor) -> float:
    """The digits of `least_squares`, after Gauss-Newton steps of least norm for as long as these become shorter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = gradtx.least_squares(problem.residual, start, steps=MOST, tolerance=1e-13)
    tx, params, last = gradtx.gauss_newton(damping=0.0), fit.params, math.inf
    state = tx.init(params)
    for _ in range(POLISHING):
        updates, state = tx.update(params, state, params, residual_fn=problem.residual)
        relative = (updates / params).abs().max().item()
        if not relative < last:
            break
        params, last = gradtx.apply_updates(params, updates), relative
    return problem.digits(params)


@part
def nist(options: argparse.Namespace) -> None:
    """Print the digits of the worst parameter, from both starts."""
    methods: dict[str, Callable[[Problem, Tensor], float]] = {
        "least_squares": digits_by_front_door,
        "and gauss_newton": digits_by_polish,
    }
    if optimize is not None:
        methods["scipy lm"] = digits_by_scipy
    methods["torch L-BFGS"] = digits_by_lbfgs
    print(
        "Digits of the worst parameter that agree with NIST's (11 are certified), from the far and the near start\n"
    )
    print(
        f"{'':10}{'level':>9}{'parameters':>12}"
        + "".join(f"{name:>21}" for name in methods)
    )
    right = dict.fromkeys(methods, 0)
    passed = dict.fromkeys(methods, 0)
    for problem in tqdm(NIST.values(), disable=None, leave=False):
        cells: list[str] = []
        for name, method in methods.items():
            both: list[float] = []
            for start in problem.starts:
                try:
                    both.append(method(problem, start))
                except (RuntimeError, ValueError):
                    both.append(0.0)
            right[name] += sum(digits >= 6 for digits in both)
            passed[name] += all(digits >= 9 for digits in both)
            cells.append(" / ".join(f"{digits:.1f}" for digits in both))
        head = f"{problem.name:10}{problem.level:>9}{len(problem.solution):>12}"
        tqdm.write(head + "".join(f"{cell:>21}" for cell in cells))
    print(
        f"{'6 digits, of 54 starts':31}"
        + "".join(f"{count:>21}" for count in right.values())
    )
    print(
        f"{'9 digits from both, of 27':31}"
        + "".join(f"{count:>21}" for count in passed.values())
    )


@part
def times(options: argparse.Namespace) -> None:
    print(f"Milliseconds a fit, medians of {options.rounds} interleaved rounds\n")
    problems = [CLASSIC["Decay"], NIST["Gauss1"], NIST["Thurber"]]
    for problem in problems:
        start = problem.starts[-1]

        def by_scipy_(problem: Problem = problem, start: Tensor = start) -> None:
            by_scipy("lm")(problem, start, Counted(problem, start, close=None))

        def by_gradtx_(problem: Problem = problem, start: Tensor = start) -> None:
            gradtx.least_squares(problem.residual, start)

        contest: dict[str, Callable[[], object]] = {"gradtx.least_squares": by_gradtx_}
        if optimize is not None:
            contest["scipy lm"] = by_scipy_
        show(
            f"{problem.name}, {len(problem.solution)} parameters",
            contest,
            options.rounds,
        )


def exponentials() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.linspace(0, 4, POINTS, dtype=torch.float64)
    a, k, c = torch.rand(3, FIT, 1, generator=generator, dtype=torch.float64)
    noise = torch.randn(FIT, POINTS, generator=generator, dtype=torch.float64)
    return x, (1 + a) * torch.exp(-(0.5 + 1.5 * k) * x) + c + 0.02 * noise


def curve(x: Any, a: Any, k: Any, c: Any) -> Any:
    return c + a * torch.exp(-k * x)


@part
def batch(options: argparse.Namespace) -> None:
    print(
        f"\n{FIT:,} fits of {POINTS} points and 3 parameters, medians of {options.rounds} interleaved rounds\n"
    )
    x, y = exponentials()
    start = {"a": 1.0, "k": 1.0, "c": 0.0}
    found: dict[str, Tensor] = {}

    def at_once() -> None:
        fit = gradtx.curve_fit(curve, x, y, start)
        found["gradtx.curve_fit, one call"] = torch.stack(list(fit.params.values()), -1)

    contest: dict[str, Callable[[], object]] = {"gradtx.curve_fit, one call": at_once}
    if optimize is not None:
        import numpy as np

        xs, ys = x.numpy(), y.numpy()

        def in_numpy(x: Any, a: Any, k: Any, c: Any) -> Any:
            return c + a * np.exp(-k * x)

        def one_by_one() -> None:
            rows = [
                optimize.curve_fit(in_numpy, xs, row, p0=(1.0, 1.0, 0.0))[0]
                for row in ys
            ]
            found["scipy.optimize.curve_fit, a loop"] = torch.as_tensor(np.stack(rows))

        contest["scipy.optimize.curve_fit, a loop"] = one_by_one
    show("", contest, options.rounds)
    results = list(found.values())
    if len(results) > 1:
        print(
            f"greatest difference of a parameter: {(results[0] - results[1]).abs().max():.1e}"
        )


def show(title: str, contest: Mapping[str, Callable[[], object]], rounds: int) -> None:
    times = interleaved(contest, rounds, warm=1)
    if title:
        print(title)
    reference = list(times.values())[-1]
    for name, of_name in times.items():
        middle = 1e3 * statistics.median(of_name)
        print(f"  {name:36}{middle:>10.1f} ms{ratio(of_name, reference):>8.2f}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", nargs="+", choices=sorted(PARTS), default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(machine())
    absent = [
        name for name in ("scipy", "optimistix", "jaxopt") if package(name) is None
    ]
    if absent:
        print(f"absent: {', '.join(absent)}")
    for name in options.part:
        print()
        PARTS[name](options)


if __name__ == "__main__":
    main()
