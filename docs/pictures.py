"""The plots of the reference: of each schedule, and of a family's methods on one test function."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gradtx

STEPS = 100
RESULTS = (
    Path(__file__).parent.parent / "benchmarks" / "guide" / "results" / "toys.json"
)
TEST_FUNCTION = "rosenbrock"
REFERENCE = "adamw"
LEAST, MOST = 1e-8, 1e2  # the ends of the axis; errors outside of it are shown there
CALLS = {
    "ademamix_alpha_schedule": "ademamix_alpha_schedule(2.0, 60)",
    "chebyshev_schedule": "chebyshev_schedule(1.0, num_epochs=16)",
    "constant_schedule": "constant_schedule(1.0, factor=0.3, total_iters=40)",
    "cosine_schedule": "cosine_schedule(1.0, T_max=100)",
    "cosine_warm_restarts_schedule": "cosine_warm_restarts_schedule(1.0, T_0=15, T_mult=2)",
    "cosine_warmup_restarts_schedule": "cosine_warmup_restarts_schedule(33, 1.0, 1.0, 0.0, 8, gamma=0.7)",
    "cyclic_schedule": 'cyclic_schedule(0.1, 1.0, step_size_up=12, mode="triangular2")',
    "explore_exploit_schedule": "explore_exploit_schedule(1.0, warmup_steps=10, explore_steps=50, total_steps=100)",
    "exponential_schedule": "exponential_schedule(1.0, gamma=0.96)",
    "half_life_schedule": "half_life_schedule(0.9999, 80, 0.9)",
    "join_schedules": "join_schedules([constant_schedule(1.0), cosine_schedule(1.0, T_max=60)], [40])",
    "linear_schedule": "linear_schedule(1.0, start_factor=0.1, total_iters=60)",
    "multistep_schedule": "multistep_schedule(1.0, milestones=[30, 60, 80], gamma=0.3)",
    "one_cycle_schedule": "one_cycle_schedule(1.0, 100)",
    "piecewise_constant_schedule": "piecewise_constant_schedule(1.0, {30: 0.5, 60: 0.2})",
    "piecewise_interpolate_schedule": "piecewise_interpolate_schedule('cosine', 1.0, {30: 0.5, 70: 0.2})",
    "polynomial_schedule": "polynomial_schedule(1.0, total_iters=90, power=2.0)",
    "proportion_schedule": "proportion_schedule(linear_schedule(1.0, 1.0, 0.0, 100), 1.0, 0.0, 0.4, 0.2)",
    "ranger21_schedule": "ranger21_schedule(1.0, 100)",
    "rectification_schedule": "rectification_schedule(1.0, beta2=0.99)",
    "restart_warmup_schedule": "restart_warmup_schedule(1.0, every=30, warmup_steps=10)",
    "sigmoid_schedule": "sigmoid_schedule(1.0, 0.0, total_steps=100, center=0.5, width=0.08)",
    "step_schedule": "step_schedule(1.0, step_size=30, gamma=0.3)",
    "untuned_exponential_warmup": "untuned_exponential_warmup(1.0, beta2=0.95)",
    "untuned_linear_warmup": "untuned_linear_warmup(1.0, beta2=0.98)",
    "warmup_cosine_schedule": "warmup_cosine_schedule(100, 1.0, warmup_steps=15)",
    "warmup_linear_schedule": "warmup_linear_schedule(100, 1.0, warmup_steps=15)",
    "warmup_poly_schedule": "warmup_poly_schedule(100, 1.0, warmup_steps=15)",
    "wsd_schedule": "wsd_schedule(1.0, 15, 50, 35)",
}


def figure_of(name: str) -> Any:
    """Return the figure of a schedule.

    Raises:
        AssertionError: If `CALLS` lacks it.
    """
    if name not in CALLS:
        raise AssertionError(f"docs/pictures.py: add a call of {name} to CALLS")
    schedule = eval(CALLS[name], {key: getattr(gradtx, key) for key in CALLS})
    steps = 16 if name == "chebyshev_schedule" else STEPS  # as many as it has
    figure = gradtx.plot(schedule, steps)
    figure.set_size_inches(5.0, 1.8)
    figure.axes[0].set_title(CALLS[name], fontsize=7, family="monospace")
    figure.axes[0].set_ylabel("")
    return figure


def errors_on_the_test_function() -> dict[str, float]:
    """Return the error after the steps of the guide's toy at the best rate, by optimizer."""
    optimizers = json.loads(RESULTS.read_text(encoding="utf-8"))["optimizers"]
    return {
        name: result["errors"][TEST_FUNCTION] for name, result in optimizers.items()
    }


def figure_of_family(names: Iterable[str]) -> Any:
    """Return a figure of the errors of a family's methods, the best one first; None if fewer than two were run."""
    from matplotlib.figure import Figure

    errors = errors_on_the_test_function()
    measured = sorted(
        (name for name in names if name in errors), key=errors.__getitem__, reverse=True
    )
    if len(measured) < 2:
        return None
    figure = Figure(figsize=(5.0, 0.9 + 0.2 * len(measured)), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.set_xlim(LEAST / 2, MOST * 2)
    shown = [min(max(errors[name], LEAST), MOST) for name in measured]
    axes.plot(shown, range(len(measured)), "o")
    axes.set_yticks(range(len(measured)), measured, fontsize=7, family="monospace")
    axes.axvline(errors[REFERENCE], color="gray", linewidth=1, linestyle=":")
    axes.text(
        errors[REFERENCE],
        len(measured) - 0.5,
        REFERENCE,
        fontsize=7,
        color="gray",
        ha="center",
        va="bottom",
    )
    axes.set_ylim(-0.5, len(measured) - 0.5)
    axes.tick_params(axis="x", labelsize=7)
    axes.set_xlabel(
        "error in Rosenbrock's curved valley, at the best rate (left is better)",
        fontsize=7,
    )
    axes.grid(axis="x", alpha=0.3)
    return figure
