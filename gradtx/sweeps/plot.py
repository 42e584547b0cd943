"""The plot of a sweep: final losses against the settings, and the curves of the best."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from gradtx.arguments import is_number
from gradtx.base.messages import describe

CURVES = 5  # of the best settings


def plot_of(result: Any, key: str) -> Any:
    """Return the figure of a sweep."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(
            "Sweep.plot needs matplotlib: pip install matplotlib"
        ) from None
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    ends, curves = figure.subplots(1, 2)
    rows = result.best(key, n=len(result))
    measured = ("mean", "std", "diverged")
    names = [
        name for name in dict.fromkeys(itertools.chain(*rows)) if name not in measured
    ]
    axes = [name for name in names if _is_axis(result.values(name))]
    if len(axes) == 2 and len(names) == 2:
        _draw_map(figure, ends, result, rows, axes, key)
    else:
        _draw_lines(ends, result, rows, axes[0] if axes else None, names, key)
    _draw_curves(curves, result, rows[:CURVES], names, key)
    return figure


def _is_axis(values: Sequence[Any]) -> bool:
    return len(values) > 1 and all(map(is_number, values))


def _draw_lines(
    axes: Any,
    result: Any,
    rows: list[dict[str, Any]],
    axis: str | None,
    names: list[str],
    key: str,
) -> None:
    """Draw a line for each combination of the other names, against a numeric one."""
    if axis is None:
        labels = [_label(row, names) for row in rows]
        axes.barh(labels[::-1], [row["mean"] for row in rows][::-1])
        axes.set(xlabel=f"final {key}")
        return
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if axis in row:
            others = [name for name in names if name != axis]
            lines.setdefault(_label(row, others), []).append(row)
    for label, of_line in lines.items():
        of_line.sort(key=lambda row: row[axis])
        at = [row[axis] for row in of_line]
        means = [row["mean"] for row in of_line]
        (line,) = axes.plot(at, means, "o-", label=label or None)
        low = [row["mean"] - row["std"] for row in of_line]
        high = [row["mean"] + row["std"] for row in of_line]
        axes.fill_between(at, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        for row in of_line:
            if row["diverged"]:
                axes.axvline(
                    row[axis], color=line.get_color(), alpha=0.3, linestyle=":"
                )
    values = result.values(axis)
    if 0 < 10 * min(values) <= max(values):
        axes.set_xscale("log")
    _scale_losses(axes, [row["mean"] for row in rows])
    diverged = any(row["diverged"] for row in rows)
    note = " (dotted: some seeds diverged)" if diverged else ""
    axes.set(
        xlabel=axis, ylabel=f"final {key}", title=f"mean and deviation over seeds{note}"
    )
    axes.grid(alpha=0.3)
    if any(lines):
        axes.legend(fontsize="small")


def _scale_losses(axes: Any, losses: Sequence[float]) -> None:
    """Use a log scale for positive values that differ by a factor of 3 or more."""
    finite = [loss for loss in losses if math.isfinite(loss)]
    if finite and min(finite) > 0 and max(finite) > 3 * min(finite):
        axes.set_yscale("log")


def _draw_map(
    figure: Any,
    axes: Any,
    result: Any,
    rows: list[dict[str, Any]],
    names: list[str],
    key: str,
) -> None:
    """Draw a heat map over two numeric names."""
    across, up = names
    columns, lines = sorted(result.values(across)), sorted(result.values(up))
    grid = [[math.nan] * len(columns) for _ in lines]
    for row in rows:
        grid[lines.index(row[up])][columns.index(row[across])] = row["mean"]
    image = axes.imshow(grid, origin="lower", aspect="auto", cmap="viridis_r")
    for row in rows:
        if row["diverged"]:
            cell = columns.index(row[across]), lines.index(row[up])
            axes.annotate("×", cell, ha="center", va="center", color="red")
    diverged = any(row["diverged"] for row in rows)
    note = " (×: some seeds diverged)" if diverged else ""
    axes.set_xticks(
        range(len(columns)), [f"{value:g}" for value in columns], rotation=45
    )
    axes.set_yticks(range(len(lines)), [f"{value:g}" for value in lines])
    axes.set(xlabel=across, ylabel=up, title=f"final {key}{note}")
    figure.colorbar(image, ax=axes, label="mean over seeds")


def _draw_curves(
    axes: Any, result: Any, rows: list[dict[str, Any]], names: list[str], key: str
) -> None:
    """Draw the mean over seeds of the best settings against the step."""
    drawn: list[float] = []
    for row in rows:
        by_step: dict[int, list[float]] = {}
        for record in result.records:
            if all(record.get(name) == row.get(name) for name in names):
                by_step.setdefault(record["step"], []).append(record[key])
        values = [fmean(values) for values in by_step.values()]
        drawn += values
        axes.plot(list(by_step), values, label=_label(row, names))
    axes.set(xlabel="step", ylabel=key, title=f"the best {len(rows)}")
    _scale_losses(axes, drawn)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def _label(row: dict[str, Any], names: Sequence[str]) -> str:
    parts: list[str] = []
    for name in names:
        if name in row:
            value = row[name]
            parts.append(f"{name} {value:.4g}" if is_number(value) else describe(value))
    return ", ".join(parts)
