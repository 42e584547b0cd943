"""The plot of what was seen: the relative step of each leaf, the effect of each link, numbers of groups, the loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gradtx.watching.figures import STEP
from gradtx.watching.sample import Sample

NAMES = 24  # of leaves at an axis
LINES = 10  # in a panel
COLORS = 10  # of lines
# The range of update / weight that colors show: below, a leaf stands still; above, a step replaces it.
LEAST, MOST = 1e-6, 1.0


def plot_of(samples: Sequence[Sample]) -> Any:
    """Return the figure of measured steps."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(
            "Seen.plot needs matplotlib: pip install matplotlib"
        ) from None
    steps = [sample.step for sample in samples]
    figure = Figure(figsize=(13, 8), layout="constrained")
    (leaves, links), (groups, loss) = figure.subplots(2, 2)
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
        norm=LogNorm(LEAST, MOST),
        cmap="viridis",
    )
    stride = max(1, math.ceil(len(names) / NAMES))
    axes.set_yticks(range(0, len(names), stride), names[::stride], fontsize=7)
    axes.invert_yaxis()
    axes.set(
        xlabel="step",
        title="update / weight of each leaf (gray: none)",
    )
    figure.colorbar(image, ax=axes, extend="both")


def _draw_links(axes: Any, steps: list[int], samples: Sequence[Sample]) -> None:
    """Draw what each link does to the norm over all leaves, and what the whole chain does."""
    links = list(dict.fromkeys(link for sample in samples for link in sample.of_links))
    links.sort(key=STEP.__eq__)
    for i, link in enumerate(links):
        change = [
            _of(sample.of_links.get(link), "change") or math.nan for sample in samples
        ]
        # Colors repeat after the first ten.
        style = {"linestyle": "-" if i < COLORS else ":"}
        if link == STEP:
            style = {"color": "black", "linestyle": "--"}
        # Each line is thinner than the one before, so that coinciding lines remain visible.
        width = max(1.0, 3.0 - 0.4 * i)
        marker = "o" if len(steps) == 1 else None
        label = link.removeprefix("partition.")
        axes.plot(steps, change, label=label, linewidth=width, marker=marker, **style)
    axes.set(title="norm after / before each link, all leaves", yscale="log")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _draw_groups(axes: Any, steps: list[int], samples: Sequence[Sample]) -> None:
    """Draw the rates, and other numbers that change, relative to the largest value of each."""
    names = list(dict.fromkeys(name for sample in samples for name in sample.groups))
    lines = {
        name: [sample.groups.get(name, math.nan) for sample in samples]
        for name in names
    }
    shown = {
        name: values
        for name, values in lines.items()
        if name.rpartition(".")[2] == "lr" or len(set(values)) > 1
    }
    for i, (name, values) in enumerate(list(shown.items())[:LINES]):
        marker = "o" if len(steps) == 1 else None
        width = max(1.0, 3.0 - 0.8 * i)  # rates that coincide remain visible
        axes.plot(steps, values, label=name, linewidth=width, marker=marker)
    positive = all(value > 0 for values in shown.values() for value in values)
    axes.set(
        title="numbers of the groups", yscale="log" if positive and shown else "linear"
    )
    if shown:
        axes.legend(fontsize=7)


def _draw_loss(axes: Any, steps: list[int], samples: Sequence[Sample]) -> None:
    losses = [sample.known_loss() for sample in samples]
    known = [loss for loss in losses if math.isfinite(loss)]
    if known:
        axes.plot(steps, losses, color="C3", marker="o" if len(steps) == 1 else None)
        # Losses of one sign and several orders of magnitude
        is_wide = min(known) > 0 and max(known) > 10 * min(known)
        axes.set_yscale("log" if is_wide else "linear")
        axes.set_title("loss")
        return
    axes.set_title("norm of the gradient (no loss was noted)")
    norms = [_of(sample.of_links.get(STEP), "norm_before") for sample in samples]
    axes.plot(steps, norms, color="C3")
    axes.set_yscale("log")


def _of(row: dict[str, float] | None, name: str) -> float:
    return math.nan if row is None else row[name]
