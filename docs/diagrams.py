"""Draw the two data flows of docs/design.md: `python docs/diagrams.py` writes docs/design-update.png and -step.png."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

HERE = Path(__file__).parent
COLOURS = {
    "user": "#dbe9f6",
    "core": "#e3f1de",
    "optim": "#fbe8d3",
    "engine": "#eadcf0",
}

# (name, second line, column, row, kind); arrows join names.
UPDATE = {
    "boxes": [
        ("tx.update", "core.py", 0, 0, "user"),
        ("flatten", "_tree.py: leaves by name", 0, 1, "core"),
        ("expand", "factories.py, combinators/: operations", 0, 2, "core"),
        ("execute", "_execution.py: leaf by leaf", 1, 2, "core"),
        ("rule", "_rules.py: your (init, update)", 2, 1, "core"),
        ("combine", "sums over leaves, in name order", 2, 2, "core"),
        ("commit", "combinators keep or drop new values", 2, 3, "core"),
        ("rebuild", "_nested_state.py: the new state", 1, 3, "core"),
        ("(updates, state)", "", 0, 3, "user"),
    ],
    "arrows": [
        ("tx.update", "flatten"),
        ("flatten", "expand"),
        ("expand", "execute"),
        ("execute", "rule"),
        ("rule", "combine"),
        ("combine", "execute"),
        ("execute", "rebuild"),
        ("commit", "rebuild"),
        ("combine", "commit"),
        ("rebuild", "(updates, state)"),
    ],
}
STEP = {
    "boxes": [
        ("optimizer.step", "optim/optimizer.py", 0, 0, "user"),
        ("follow groups", "optim/_members.py", 0, 1, "optim"),
        ("check, prepare state", "optim/_step.py, _state.py", 0, 2, "optim"),
        ("plan", "optim/engine/base.py", 1, 1, "engine"),
        ("trace", "engine/trace.py: the core on stand-ins", 2, 0, "engine"),
        ("programs", "_lists/, or engine/inductor.py", 2, 1, "engine"),
        ("bundles", "engine/lists.py, bundle.py: in place", 2, 2, "engine"),
        ("single leaves", "_execution.py Leaf, one each", 1, 2, "core"),
        ("execute", "the same for bundles and leaves", 1, 3, "core"),
        ("write", "_step.py: slots, counts, weights", 0, 3, "optim"),
    ],
    "arrows": [
        ("optimizer.step", "follow groups"),
        ("follow groups", "check, prepare state"),
        ("check, prepare state", "single leaves"),
        ("check, prepare state", "plan"),
        ("plan", "trace"),
        ("trace", "programs"),
        ("programs", "bundles"),
        ("bundles", "execute"),
        ("single leaves", "execute"),
        ("execute", "write"),
    ],
}
WIDTH, HEIGHT = 3.1, 0.78


def draw(flow: dict, title: str, path: Path) -> None:
    """Draw the boxes and arrows of a flow and save the figure."""
    figure, axes = plt.subplots(figsize=(11, 4.6))
    axes.set_title(title, loc="left", fontsize=12)
    places = {
        name: (3.7 * column, -1.25 * row) for name, _, column, row, _ in flow["boxes"]
    }
    for start, end in flow["arrows"]:
        _arrow(axes, places[start], places[end])
    for name, text, _, _, kind in flow["boxes"]:
        x, y = places[name]
        shape = "round,pad=0.02,rounding_size=0.12"
        box = FancyBboxPatch(
            (x - WIDTH / 2, y - HEIGHT / 2),
            WIDTH,
            HEIGHT,
            shape,
            facecolor=COLOURS[kind],
            lw=0.8,
        )
        axes.add_patch(box)
        axes.text(
            x,
            y + (0.14 if text else 0),
            name,
            ha="center",
            va="center",
            fontsize=11,
            weight="bold",
        )
        axes.text(x, y - 0.18, text, ha="center", va="center", fontsize=8.5)
    axes.set_xlim(-1.8, 9.2)
    axes.set_ylim(-4.4, 0.6)
    axes.axis("off")
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Draw an arrow between the edges of two boxes."""
    (x0, y0), (x1, y1) = start, end
    if x0 == x1:
        edge = HEIGHT / 2 if y0 > y1 else -HEIGHT / 2
        begin, tip = (x0, y0 - edge), (x1, y1 + edge)
    else:
        edge = WIDTH / 2 if x1 > x0 else -WIDTH / 2
        begin, tip = (x0 + edge, y0), (x1 - edge, y1)
    axes.annotate(
        "", tip, begin, arrowprops={"arrowstyle": "-|>", "color": "#555555", "lw": 1.2}
    )


if __name__ == "__main__":
    draw(
        UPDATE,
        "Pure use: tx.update(updates, state, params)",
        HERE / "design-update.png",
    )
    draw(STEP, "A step of an optimizer, default and compiled", HERE / "design-step.png")
