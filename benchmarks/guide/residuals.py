"""Run methods that take residuals on the guide's physics problem: `python -m benchmarks.guide.residuals`.

They have no place in the guide's grid, whose sweep passes gradients. Here they get the problem's batches, seeds and
number of steps; what is tuned is the damping, or for SPRING the rate. Results are stored in
benchmarks/guide/results/residuals.json, after each method.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import gradtx
from benchmarks.guide.results import FOLDER
from benchmarks.guide.tasks import TASKS, physics_residuals

Method = Callable[[float], gradtx.GradientTransformation]

TASK, SEEDS = TASKS["physics"], (0, 1, 2)
DAMPINGS = [10.0**k for k in range(-3, 4)]
RATES = [3.0**-k for k in range(7)]
FILE = FOLDER / "residuals.json"
LAST = 20  # a run's result is the mean of the last part of its losses, one of so many

METHODS: dict[str, tuple[list[float], Method]] = {
    "gauss_newton": (
        DAMPINGS,
        lambda x: gradtx.gauss_newton(damping=x, reduction="mean"),
    ),
    "gauss_newton in line_search": (
        DAMPINGS,
        lambda x: gradtx.line_search(gradtx.gauss_newton(damping=x, reduction="mean")),
    ),
    "levenberg_marquardt": (
        DAMPINGS,
        lambda x: gradtx.levenberg_marquardt(damping=x, reduction="mean"),
    ),
    "natural_gradient": (DAMPINGS, lambda x: gradtx.natural_gradient(damping=x)),
    "hessian_free": (
        DAMPINGS,
        lambda x: gradtx.hessian_free(damping=x, max_steps=20, reduction="mean"),
    ),
    "spring": (
        RATES,
        lambda x: gradtx.spring(lr=x, damping=1e-3, mu=0.9, norm_constraint=None),
    ),
}


def final_losses(tx: gradtx.GradientTransformation) -> tuple[list[float], float]:
    """Return the mean of the last losses for each seed, and the seconds of a step of all seeds."""
    params = gradtx.stack([TASK.params(seed) for seed in SEEDS])
    state = torch.vmap(tx.init)(params)
    losses: list[Tensor] = []

    def stepped(params: Any, state: Any, batch: Tensor) -> Any:
        def residual_fn(params: Any) -> Tensor:
            return physics_residuals(params, batch)

        loss = residual_fn(params).square().mean()
        updates, state = tx.update(params, state, params, residual_fn=residual_fn)
        return gradtx.apply_updates(params, updates), state, loss

    step_of_all = torch.vmap(stepped, in_dims=(0, 0, None))
    began = time.perf_counter()
    for step in range(TASK.steps):
        params, state, loss = step_of_all(params, state, TASK.batch(step))
        losses.append(loss)
    seconds = (time.perf_counter() - began) / TASK.steps
    means = torch.stack(losses[-TASK.steps // LAST :]).mean(0)
    return means.nan_to_num(math.inf).tolist(), seconds


def measured(settings: list[float], make: Method) -> dict[str, Any]:
    """Return the best setting, its final loss for each seed, and the milliseconds of a step of all seeds."""
    runs = {setting: final_losses(make(setting)) for setting in settings}
    best = min(runs, key=lambda setting: statistics.fmean(runs[setting][0]))
    losses, seconds = runs[best]
    final = [float(f"{loss:.5g}") for loss in losses]
    return {"setting": best, "final": final, "ms": round(1000 * seconds, 1)}


def main() -> None:
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    if FILE.exists():  # what the file has is not run again
        results = json.loads(FILE.read_text(encoding="utf-8"))
    for name, (settings, make) in tqdm(METHODS.items(), disable=None):
        if name not in results:
            results[name] = measured(settings, make)
            text = json.dumps({key: results[key] for key in METHODS if key in results})
            FILE.write_text(text + "\n", encoding="utf-8")
    print(f"wrote {FILE}")


if __name__ == "__main__":
    main()
