"""Plots of what changes over steps: schedules, and values that a run has recorded."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from gradtx.base.exact import Schedule
from gradtx.base.messages import describe

__all__ = ["plot"]

Curves: TypeAlias = dict[str, tuple[Sequence[int], Sequence[float]]]


def plot(
    values: Schedule | Mapping[str, Schedule] | Sequence[Mapping[str, float]],
    steps: int | None = None,
    path: str | os.PathLike[str] | None = None,
) -> Any:
    """Plot a schedule, several of them, or what a run has recorded, against the step.

    Args:
        values: A schedule; a dict label -> schedule; or a list with a dict for each step, as `gradtx.recorded` and
            `optimizer.recorded()` return them. A step may lack a name.
        steps: The number of steps of schedules, >= 1; omit it for a list.
        path: Where to save the plot, for example "lr.png"; None to only return it.

    Returns:
        The `matplotlib` figure. In a list, each group of names before the last slash has axes of its own.

    Raises:
        TypeError: If `values` is something else, or if `steps` is missing for a schedule or passed with a list.
        ValueError: If `steps` is less than 1, or if there is nothing to plot.
        ImportError: If matplotlib is not installed.

    Example:
        >>> figure = gradtx.plot(
        ...     {
        ...         "cosine": gradtx.warmup_cosine_schedule(100, 1.0, warmup_steps=10),
        ...         "linear": gradtx.warmup_linear_schedule(100, 1.0, warmup_steps=10),
        ...     },
        ...     steps=120,
        ... )
        >>> [line.get_label() for line in figure.axes[0].lines]
        ['cosine', 'linear']
    """
    if isinstance(values, Schedule):
        values = {"": values}
    if isinstance(values, Mapping):
        panels = {"value": _of_schedules(values, steps)}
    elif isinstance(values, Sequence) and not isinstance(values, str):
        if steps is not None:
            raise TypeError(
                "plot: steps is the number of steps of a schedule; omit it for records"
            )
        panels = _of_records(values)
    else:
        raise TypeError(
            f"plot: needs a schedule, a dict of schedules or a list of records, got {describe(values)}"
        )
    figure = _drawn(panels)
    if path is not None:
        figure.savefig(path, dpi=110)
    return figure


def _of_schedules(schedules: Mapping[str, Any], steps: int | None) -> Curves:
    """Return the values of each schedule at each step."""
    if steps is None:
        raise TypeError("plot: pass steps, the number of steps to plot")
    if steps < 1:
        raise ValueError(f"plot: steps must be at least 1, got {steps}")
    if not schedules:
        raise ValueError("plot: got no schedule")
    at = range(steps)
    curves: Curves = {}
    for label, schedule in schedules.items():
        if not isinstance(schedule, Schedule):
            raise TypeError(
                f"plot: {label!r} must be a gradtx.Schedule, got {describe(schedule)}"
            )
        curves[label] = at, [float(schedule(step)) for step in at]
    return curves


def _of_records(records: Sequence[Any]) -> dict[str, Curves]:
    """Return the recorded values of each name, in a panel for each beginning of names."""
    panels: dict[str, dict[str, tuple[list[int], list[float]]]] = {}
    for step, record in enumerate(records):
        if not isinstance(record, Mapping):
            raise TypeError(
                f"plot: each record must be a dict of name -> value, got {describe(record)}"
            )
        for name, value in record.items():
            beginning, _, label = name.rpartition("/")
            curves = panels.setdefault(beginning or name, {})
            at, values = curves.setdefault(label, ([], []))
            at.append(step)
            values.append(float(value))
    if not panels:
        raise ValueError("plot: the records are empty")
    return {title: dict(curves) for title, curves in panels.items()}


def _drawn(panels: Mapping[str, Curves]) -> Any:
    """Draw each panel below the other."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("plot needs matplotlib: pip install matplotlib") from None
    size = 7.0, 1.0 + 2.2 * len(panels)
    figure = Figure(figsize=size, layout="constrained")
    rows = figure.subplots(len(panels), 1, sharex=True, squeeze=False)
    for (axes,), (title, curves) in zip(rows, panels.items(), strict=True):
        for label, (at, values) in curves.items():
            axes.plot(at, values, label=label)
        axes.set_ylabel(title)
        axes.grid(alpha=0.3)
        if len(curves) > 1:
            axes.legend(fontsize="small")
    rows[-1][0].set_xlabel("step")
    return figure
