"""Compare the step time of each algorithm, default and compiled, with pytorch_optimizer's class of the same name.

Matrices (a GPT) and filters (a ResNet-50) have columns of their own, as sums over rows and columns of filters are
another task for kernels than those of matrices. All measurements are from one run. Such steps are limited by memory
traffic, so the table also shows the bandwidth that a compiled step reaches as a share of that of torch's fused AdamW in
the same rounds, from the bytes that it has to move (parameters and state read and written once, gradients read once).
Matrix methods are left out, because factorizations dominate their time.

    python benchmarks/algorithms.py [names]     # prints a table, writes out/algorithms-speed.png
"""

from __future__ import annotations

import argparse
import inspect
import itertools
import math
import re
import statistics
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytorch_optimizer
import torch
from common import (
    Shapes,
    gpt,
    interleaved,
    log_ticks,
    machine,
    parameters,
    ratio,
    resnet50,
)
from tqdm import tqdm

import gradtx

ROUNDS, WARM = 9, 12  # AdaShift has its window of gradients after ten steps
MODELS = {"GPT": gpt(), "ResNet-50": resnet50()}
COLORS = {"GPT": "tab:blue", "ResNet-50": "tab:orange"}
ELSEWHERE = {"SGDS": "SGD"}  # an option of the class there
LEFT_OUT = (
    "ASGD",  # another rule there than torch's
    *(
        "Muon",
        "MuonAdamAtan2",
        "PolarAdamAtan2",
        "AdaMuon",
        "NorMuon",
        "Scion",
        "SpectralSphere",
        "Shampoo",
        "ScalableShampoo",
        "SOAP",
    ),
    *("Conda", "SPlus", "Fira", "GaLore", "LBFGS", "AdaHessian", "SophiaH"),
)


def plain(name: str) -> str:
    return re.sub(r"[-_]", "", name).lower()


THEIRS = {
    plain(name): getattr(pytorch_optimizer, name)
    for name in dir(pytorch_optimizer)
    if inspect.isclass(getattr(pytorch_optimizer, name))
    and issubclass(getattr(pytorch_optimizer, name), torch.optim.Optimizer)
}


def options(function: Any) -> dict[str, Any]:
    """Return values for required arguments and for momentum, which these methods are usually run with."""
    empty = inspect.Parameter.empty
    others = {
        "lr": (empty, 1e-3),
        "num_iterations": (empty, 1000),
        "momentum": (0.0, 0.9),
    }
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
    }
    return {
        name: value
        for name, (default, value) in others.items()
        if name in defaults and defaults[name] == default
    }


def stepper(optimizer: Any) -> Any:
    """Return a step that passes a constant loss, which some methods read."""
    return lambda: optimizer.step(lambda: torch.tensor(1.0))


def peer(cls: Any, shapes: Shapes) -> Any:
    """Build an optimizer of pytorch_optimizer, whose AdamMini requires a model instead of parameters."""
    params = parameters(shapes)
    if "model" not in inspect.signature(cls).parameters:
        return cls(params, **options(cls))
    model = torch.nn.ParameterList(params)
    for held, param in zip(model, params, strict=True):
        held.grad = param.grad
    return cls(model, **options(cls))


def bytes_moved(optimizer: Any) -> int:
    """Return the bytes of one read and one write of parameters and state, and one read of the gradients."""
    moved = 0
    for param in optimizer.param_groups[0]["params"]:
        state = [
            value
            for value in optimizer.state[param].values()
            if value.ndim > 0 or param.ndim == 0
        ]
        moved += 3 * param.nbytes + 2 * sum(value.nbytes for value in state)
    return moved


def their_class(name: str) -> Any:
    return THEIRS.get(plain(ELSEWHERE.get(name, name)))


def measure(name: str, shapes: Shapes) -> dict[str, float]:
    """Return the figures of an algorithm on tensors of these shapes; ratios to a class that there is not are NaN."""
    cls = getattr(gradtx.optim, name)
    their = their_class(name)
    default, compiled = (
        cls(parameters(shapes), compile=compile, **options(cls))
        for compile in (False, True)
    )
    fused = torch.optim.AdamW(parameters(shapes), fused=True)
    start = time.perf_counter()
    stepper(compiled)()
    cold = time.perf_counter() - start
    steps = {
        "default": stepper(default),
        "compiled": stepper(compiled),
        "fused": fused.step,
    }
    if their is not None:
        steps["theirs"] = stepper(peer(their, shapes))
    times = interleaved(steps, ROUNDS, WARM)
    rate = bytes_moved(compiled) / statistics.median(times["compiled"])
    best = bytes_moved(fused) / statistics.median(times["fused"])
    figures = {
        "first step, s": cold,
        "compiled, ms": 1e3 * statistics.median(times["compiled"]),
        "share of fused bandwidth": rate / best,
    }
    for mode in ("default", "compiled"):
        is_known = their is not None
        figures[mode] = ratio(times["theirs"], times[mode]) if is_known else math.nan
    return figures


SHOWN = (
    "compiled, ms",
    "default",
    "compiled",
    "share of fused bandwidth",
    "first step, s",
)


def row_of(name: str, figures: dict[str, dict[str, float]]) -> str:
    """Return the row of the table."""
    cells = [f"{figures[model][key]:.2g}" for model in MODELS for key in SHOWN]
    return f"| {name} | {' | '.join(cells)} |".replace("nan", "–")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        help="classes of gradtx.optim; by default all in pytorch_optimizer except matrix methods",
    )
    names = parser.parse_args().names or [
        name
        for name in gradtx.optim.__all__
        if their_class(name) is not None and name not in LEFT_OUT
    ]
    warnings.filterwarnings("ignore")
    print(machine(), f"pytorch_optimizer {version('pytorch_optimizer')}", sep=", ")
    for model, shapes in MODELS.items():
        entries = sum(map(math.prod, shapes)) / 1e6
        print(f"{model}: {len(shapes)} tensors, {entries:.1f} million entries")
    print(f"{ROUNDS} rounds; default and compiled: times as fast as their class\n")
    head = [f"{model}: {key}" for model in MODELS for key in SHOWN]
    print(f"| algorithm | {' | '.join(head)} |\n|---|{'---|' * len(head)}")
    rows = {}
    for name in tqdm(names, desc="algorithms", disable=None):
        rows[name] = {model: measure(name, shapes) for model, shapes in MODELS.items()}
        tqdm.write(row_of(name, rows[name]))
    compared = {name: row for name, row in rows.items() if their_class(name)}
    for model, mode in itertools.product(MODELS, ("default", "compiled")):
        mean = statistics.geometric_mean(row[model][mode] for row in compared.values())
        print(f"{model}, {mode}: {mean:.2f} times as fast ({len(compared)} algorithms)")
    draw(compared)


def draw(rows: dict[str, dict[str, dict[str, float]]]) -> None:
    names = sorted(rows, key=lambda name: rows[name]["GPT"]["compiled"])
    figure, axes = plt.subplots(
        figsize=(7, 0.15 * len(names) + 1.2), layout="constrained"
    )
    places = range(len(names))
    for (model, color), shift in zip(COLORS.items(), (-0.15, 0.15), strict=True):
        for mode, mark in (("compiled", "o"), ("default", "|")):
            axes.plot(
                [rows[name][model][mode] for name in names],
                [place + shift for place in places],
                mark,
                color=color,
                markersize=4,
                label=f"{model}, {mode}",
            )
    axes.axvline(1, color="gray", linewidth=0.8)
    axes.set(
        xscale="log",
        xlabel="times as fast as pytorch_optimizer's class",
        ylim=(-0.7, len(names) - 0.3),
    )
    axes.set_yticks(places, names, fontsize=7)
    log_ticks(axes, [0.25, 0.5, 1, 2, 4, 8, 16])
    axes.legend(loc="lower right")
    Path("out").mkdir(exist_ok=True)
    figure.savefig("out/algorithms-speed.png", dpi=110)


if __name__ == "__main__":
    main()
