"""The plot of what was seen: the relative step of each leaf, the effect of each link, numbers of groups, the loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gradtx.watching.figures import STEP
from gradtx.watching.sample import Sample

LINES = 10  # in the panel of groups
# The first ten colors of tab20 are its dark ones, as tab10 has them; then its light ones.
SHADES = (*range(0, 20, 2), *range(1, 20, 2))
DASHES = ("-", "--", ":", "-.")  # of each ten lines; the whole step is black
HEIGHT, TALLEST = 8.0, 16.0  # of the figure, in inches
NAME_HEIGHT, MARGIN = 0.16, 1.2  # of the name of a leaf, and around all of them
WIDTH_OF_NAME = 36  # characters
# Update / weight where nothing was measured, and the decades that colors show, at least and at most.
USUAL = (1e-4, 1e-2)
FEWEST_DECADES, MOST_DECADES = 2, 6


def plot_of(samples: Sequence[Sample]) -> Any:
    """Return the figure of measured steps."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(
            "Seen.plot needs matplotlib: pip install matplotlib"
        ) from None
    steps = [sample.step for sample in samples]
    count = len({leaf for sample in samples for leaf in sample.of_leaves})
    height = min(max(HEIGHT, MARGIN + NAME_HEIGHT * count), TALLEST)
    figure = Figure(figsize=(14, height), layout="constrained")
    panels: Any = figure.subplot_mosaic(
        [["leaves", "links"], ["leaves", "groups"], ["leaves", "loss"]],
        height_ratios=[1.4, 1, 1],
    )
    leaves, links = panels["leaves"], panels["links"]
    groups, loss = panels["groups"], panels["loss"]
    _draw_leaves(figure, leaves, samples)
    _draw_links(links, steps, samples)
    _draw_groups(groups, steps, samples)
    _draw_loss(loss, steps, samples)
    for axes in (links, groups, loss):
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
    return figure


def _draw_leaves(figure: Any, axes: Any, samples: Sequence[Sample]) -> None:
    """Draw update / weight of each leaf at each measured step; a leaf that does not move is gray."""
    from matplotlib.colors import LogNorm

    names = list(dict.fromkeys(leaf for sample in samples for leaf in sample.of_leaves))
    rows = [
        [_of(sample.of_leaves.get(name), "update_to_weight") for sample in samples]
        for name in names
    ]
    moves = [[value if value > 0 else math.nan for value in row] for row in rows]
    axes.set_facecolor("0.75")
    edges = [sample.step - 0.5 for sample in samples]
    last_width = edges[-1] - edges[-2] if len(edges) > 1 else 1
    edges.append(edges[-1] + last_width)
    image = axes.pcolormesh(
        edges,
        [i - 0.5 for i in range(len(names) + 1)],
        moves,
        norm=LogNorm(*_decades(moves)),
        cmap="viridis",
    )
    room = int((figure.get_figheight() - MARGIN) / NAME_HEIGHT)
    stride = max(1, math.ceil(len(names) / room))
    shown = [_shortened(name) for name in names[::stride]]
    axes.set_yticks(range(0, len(names), stride), shown, fontsize=9)
    if stride > 1:
        axes.set_ylabel(f"one leaf of {stride} is named")
    axes.invert_yaxis()
    axes.set(
        xlabel="step",
        title="update / weight of each leaf (gray: no update, or weights of 0)",
    )
    figure.colorbar(image, ax=axes, extend="both", aspect=40)


def _draw_links(axes: Any, steps: list[int], samples: Sequence[Sample]) -> None:
    """Draw what each link does to the norm over all leaves, and what the whole chain does."""
    links = list(dict.fromkeys(link for sample in samples for link in sample.of_links))
    links.sort(key=STEP.__eq__)
    for i, link in enumerate(links):
        change = [
            _of(sample.of_links.get(link), "change") or math.nan for sample in samples
        ]
        style = _style(i)
        if link == STEP:
            style = {"color": "black", "linestyle": "--"}
        # Each line is thinner than the one before, so that coinciding lines remain visible.
        width = 3.5 - 2.0 * i / max(1, len(links) - 1)
        marker = "o" if len(steps) == 1 else None
        label = link.removeprefix("partition.")
        axes.plot(steps, change, label=label, linewidth=width, marker=marker, **style)
    axes.set(title="norm after / before each link, all leaves")
    drawn = [v for line in axes.lines for v in line.get_ydata() if math.isfinite(v)]
    if drawn and max(drawn) < 10 * min(drawn):
        # One decade at least: matplotlib cannot scale a line that is level but for rounding.
        axes.set_ylim(min(drawn) / 3, max(drawn) * 3)
    axes.set_yscale("log")
    columns = math.ceil(len(links) / 16)
    place = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
    axes.legend(fontsize=9, ncols=columns, **place)


def _draw_groups(axes: Any, steps: list[int], samples: Sequence[Sample]) -> None:
    """Draw the rates, and other numbers that change; groups with the same values share a line."""
    names = list(dict.fromkeys(name for sample in samples for name in sample.groups))
    names_of: dict[tuple[float, ...], list[str]] = {}
    for name in names:
        values = tuple(sample.groups.get(name, math.nan) for sample in samples)
        if _is_rate(name) or len(set(values)) > 1:
            names_of.setdefault(values, []).append(name)
    lines = list(names_of.items())[:LINES]
    for i, (values, of_line) in enumerate(lines):
        label = ", ".join(of_line[:2])
        if len(of_line) > 2:
            label += f" and {len(of_line) - 2} more"
        if len(set(values)) == 1:
            label += f" = {values[0]:.3g}"
        marker = "o" if len(steps) == 1 else None
        axes.plot(steps, values, label=label, linewidth=2, marker=marker, **_style(i))
    only_rates = all(_is_rate(name) for names in names_of.values() for name in names)
    title = "learning rate" if only_rates else "learning rate, and numbers that change"
    if len(names_of) > LINES:
        title += f" ({LINES} of {len(names_of)} lines)"
    is_wide = _spans_decades([values for values, _ in lines])
    axes.set(title=title, yscale="log" if is_wide else "linear")
    if lines:
        axes.legend(fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _is_rate(name: str) -> bool:
    return name.rpartition(".")[2] == "lr"


def _spans_decades(lines: Sequence[Sequence[float]]) -> bool:
    """Whether a linear axis would flatten a line beside another, or most of one."""
    positive = [sorted(value for value in line if value > 0) for line in lines]
    positive = [values for values in positive if values]
    if not positive or any(value < 0 for line in lines for value in line):
        return False
    largest = [values[-1] for values in positive]
    # Quartiles, because a warm-up or a decay to 0 has small values at its ends.
    spreads = [v[3 * (len(v) - 1) // 4] / v[(len(v) - 1) // 4] for v in positive]
    return max(max(largest) / min(largest), *spreads) > 10


def _draw_loss(axes: Any, steps: list[int], samples: Sequence[Sample]) -> None:
    losses = [sample.loss_or_nan() for sample in samples]
    finite = [loss for loss in losses if math.isfinite(loss)]
    if finite:
        axes.plot(steps, losses, color="C3", marker="o" if len(steps) == 1 else None)
        # Losses of one sign and several orders of magnitude
        is_wide = min(finite) > 0 and max(finite) > 10 * min(finite)
        axes.set_yscale("log" if is_wide else "linear")
        axes.set_title("loss")
        return
    axes.set_title("norm of the gradient (no loss was noted)")
    norms = [_of(sample.of_links.get(STEP), "norm_before") for sample in samples]
    axes.plot(steps, norms, color="C3")
    axes.set_yscale("log")


def _of(row: dict[str, float] | None, name: str) -> float:
    return math.nan if row is None else row[name]


def _style(i: int) -> dict[str, Any]:
    """Return the color and the dashes of a line, which no other of the first forty has."""
    from matplotlib import colormaps

    shades: Any = colormaps["tab20"]
    return {
        "color": shades(SHADES[i % len(SHADES)]),
        "linestyle": DASHES[i // 10 % len(DASHES)],
    }


def _decades(rows: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Return the round decades around all but the smallest and largest fiftieth of the values."""
    values = sorted(v for row in rows for v in row if math.isfinite(v))
    if not values:
        return USUAL
    cut = len(values) // 50
    high = math.ceil(math.log10(values[-1 - cut]))
    low = math.floor(math.log10(values[cut]))
    low = min(max(low, high - MOST_DECADES), high - FEWEST_DECADES)
    return 10.0**low, 10.0**high


def _shortened(name: str) -> str:
    """Return the end of a long name, which tells leaves apart."""
    return name if len(name) <= WIDTH_OF_NAME else f"...{name[3 - WIDTH_OF_NAME :]}"
