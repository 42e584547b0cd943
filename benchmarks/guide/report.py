"""Write docs/guide.md and its figures from the results: `python -m benchmarks.guide.report`.

The prose stands in guide.template.md. `{{expression}}` there calls a function of `Results`, so that no number is typed.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import gradtx
from benchmarks.guide.tasks import TASKS

FOLDER = Path(__file__).parent
DOCS = FOLDER.parent.parent / "docs"
CLOSE = 1.05  # of the best loss, for the width
SHOWN = (
    "adamw",
    "sgd",
    "lion",
    "muon",
    "soap",
    "prodigy",
    "schedule_free_adamw (no schedule)",
)


@dataclass(frozen=True)
class Best:
    """The best setting of an optimizer on a task.

    Attributes:
        mean, std: The final loss over seeds; infinity if all settings diverged.
        rate, decay: The setting.
        width: The factor between the largest and the smallest rate within 5% of the mean, at this weight decay.
        state: Floats of state per entry.
        diverged, settings: How many settings diverged, of how many.
        entry: The whole result.
    """

    mean: float
    std: float
    rate: float
    decay: float
    width: float
    state: float
    diverged: int
    settings: int
    entry: dict[str, Any]

    def differs_from(self, other: Best) -> bool:
        """Whether two means differ by more than the spread over seeds."""
        return abs(self.mean - other.mean) > self.std + other.std


def mean_of(row: dict[str, Any]) -> float:
    return math.inf if None in row["final"] else statistics.fmean(row["final"])


def width_of(rows: list[dict[str, Any]], best: dict[str, Any]) -> float:
    """Return the factor between the rates around the best at which the loss is 5% above it.

    Between two rates of the grid, the loss is interpolated against the logarithm of the rate.
    """
    bound = CLOSE * mean_of(best)
    line = sorted(
        (math.log(row["rate"]), mean_of(row))
        for row in rows
        if row["decay"] == best["decay"]
    )
    start = [rate for rate, _ in line].index(math.log(best["rate"]))
    ends: list[float] = []
    for step in (-1, 1):
        i = start
        while 0 <= i + step < len(line) and line[i + step][1] <= bound:
            i += step
        rate, loss = line[i]
        if 0 <= i + step < len(line) and math.isfinite(line[i + step][1]):
            next_rate, next_loss = line[i + step]
            rate += (next_rate - rate) * (bound - loss) / (next_loss - loss)
        ends.append(rate)
    return math.exp(ends[1] - ends[0])


def best_of(entry: dict[str, Any]) -> Best | None:
    """Return the best setting of a result; None if the optimizer did not run, or always diverged."""
    if "rows" not in entry:
        return None
    full = max(len(row["final"]) for row in entry["rows"])
    best = min((row for row in entry["rows"] if len(row["final"]) == full), key=mean_of)
    mean = mean_of(best)
    if not math.isfinite(mean):
        return None
    diverged = sum(None in row["final"] for row in entry["rows"])
    std = statistics.stdev(best["final"]) if full > 1 else 0.0
    return Best(
        mean,
        std,
        best["rate"],
        best["decay"],
        width_of(entry["rows"], best),
        entry["state"],
        diverged,
        len(entry["rows"]),
        entry,
    )


class Results:
    """All results, and the sentences and tables made of them."""

    def __init__(self, folder: Path = FOLDER / "results"):
        self.by_task: dict[str, dict[str, Best]] = {}
        self.skipped: dict[str, dict[str, str]] = {}
        self.machines: dict[str, dict[str, str]] = {}
        for name in TASKS:
            path = folder / f"{name}.json"
            if not path.exists():
                continue
            content = json.loads(path.read_text(encoding="utf-8"))
            self.machines[name] = content["machine"]
            for optimizer, entry in content["optimizers"].items():
                best = best_of(entry)
                if best is not None:
                    self.by_task.setdefault(name, {})[optimizer] = best
                else:
                    reason = entry.get("skipped", "all settings diverged")
                    self.skipped.setdefault(name, {})[optimizer] = reason
        toys = json.loads((folder / "toys.json").read_text(encoding="utf-8"))
        self.bounds: dict[str, float] = toys["bounds"]
        self.toys: dict[str, dict[str, float]] = {
            name: row["errors"]
            for name, row in toys["optimizers"].items()
            if "errors" in row
        }

    # Single numbers.

    def best(self, optimizer: str, task: str) -> Best:
        return self.by_task[task][optimizer]

    def loss(self, optimizer: str, task: str) -> str:
        best = self.best(optimizer, task)
        return f"{best.mean:.3g} ± {best.std:.1g}"

    def passed(self, optimizer: str) -> int:
        errors = self.toys[optimizer]
        return sum(errors[toy] <= bound for toy, bound in self.bounds.items())

    def failed(self, optimizer: str) -> list[str]:
        errors = self.toys[optimizer]
        return [toy for toy, bound in self.bounds.items() if not errors[toy] <= bound]

    def verdict(self, optimizer: str, task: str, against: str = "adamw") -> str:
        """Return "better", "worse" or "same", by the spread over seeds; "" if one did not run."""
        ours, theirs = (
            self.by_task.get(task, {}).get(name) for name in (optimizer, against)
        )
        if ours is None or theirs is None:
            return ""
        if not ours.differs_from(theirs):
            return "same"
        return "better" if ours.mean < theirs.mean else "worse"

    def ratio(self, optimizer: str, task: str) -> float:
        return self.best(optimizer, task).mean / self.best("adamw", task).mean

    def width(self, optimizer: str) -> float:
        """Return the median width over tasks."""
        return statistics.median(
            results[optimizer].width
            for results in self.by_task.values()
            if optimizer in results
        )

    def steps_to_adamw(self, optimizer: str, task: str) -> str:
        """Return the gradients until the mean curve of the best setting is below AdamW's last value, in percent."""
        final = self.best("adamw", task).entry["curve"][-1]
        curve = self.best(optimizer, task).entry["curve"]
        for i, value in enumerate(curve):
            if value <= final:
                return f"{100 * (i + 1) / len(curve):.0f}%"
        return "not reached"

    # Lists.

    def top(self, task: str, n: int = 5) -> str:
        """Return the n best optimizers of a task."""
        ranked = sorted(self.by_task[task], key=lambda name: self.best(name, task).mean)
        return ", ".join(f"`{name}` ({self.loss(name, task)})" for name in ranked[:n])

    def count(self, verdict: str, task: str) -> int:
        return sum(self.verdict(name, task) == verdict for name in self.by_task[task])

    def total(self, task: str) -> int:
        return len(self.by_task[task])

    def ever_better(self, least: int) -> str:
        """Return the optimizers that are better than AdamW on at least this many tasks."""
        counts: dict[str, int] = {}
        for task in self.by_task:
            for name in self.by_task[task]:
                counts[name] = counts.get(name, 0) + (
                    self.verdict(name, task) == "better"
                )
        chosen = sorted(
            (-count, name) for name, count in counts.items() if count >= least
        )
        return ", ".join(f"`{name}` ({-count})" for count, name in chosen)

    def widest(self, n: int = 8) -> str:
        """Return the optimizers with the largest median width among those never worse than AdamW by 20%."""
        candidates = [name for name in self.names if self._is_sound(name)]
        ranked = sorted(candidates, key=lambda name: (-self.width(name), name))
        return ", ".join(f"`{name}` (×{self.width(name):.1f})" for name in ranked[:n])

    def _is_sound(self, name: str) -> bool:
        ran = [task for task in self.by_task if name in self.by_task[task]]
        return len(ran) >= len(self.by_task) - 1 and all(
            self.ratio(name, task) < 1.2 for task in ran
        )

    def sound(self) -> str:
        return ", ".join(f"`{name}`" for name in self.names if self._is_sound(name))

    def widened(self) -> int:
        return sum(
            best.entry["widened"] > 0
            for results in self.by_task.values()
            for best in results.values()
        )

    def runs(self) -> int:
        return sum(len(results) for results in self.by_task.values())

    def settings(self) -> int:
        return sum(
            best.settings
            for results in self.by_task.values()
            for best in results.values()
        )

    def diverged(self) -> int:
        return sum(
            best.diverged
            for results in self.by_task.values()
            for best in results.values()
        )

    def at_edge(self) -> str:
        names = [
            f"`{name}` on {task}"
            for task, results in self.by_task.items()
            for name, best in results.items()
            if best.entry["at_edge"]
        ]
        return ", ".join(names) or "none"

    def left_out(self) -> str:
        rows = [
            f"`{name}` on {task}: {reason}"
            for task, reasons in self.skipped.items()
            for name, reason in reasons.items()
        ]
        return "; ".join(rows) or "none"

    @cached_property
    def names(self) -> list[str]:
        """All optimizers, by the mean of the logarithms of their ratios to AdamW."""

        def score(name: str) -> float:
            ratios = [
                math.log(self.ratio(name, task))
                for task in self.by_task
                if name in self.by_task[task]
            ]
            return statistics.fmean(ratios)

        names = {name for results in self.by_task.values() for name in results}
        return sorted(names, key=lambda name: (score(name), name))

    def table(self) -> str:
        """Return the table over all optimizers: losses relative to AdamW's."""
        tasks = list(self.by_task)
        head = [
            "optimizer",
            *(task.replace("_", " ") for task in tasks),
            "width",
            "toys",
            "state",
        ]
        lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
        for name in self.names:
            cells = [f"`{name}`"]
            for task in tasks:
                if name not in self.by_task[task]:
                    cells.append("")
                    continue
                ratio = self.ratio(name, task)
                text = f"{ratio:.2f}" if ratio < 99.5 else ">99"
                mark = {"better": "**", "worse": "", "same": "*", "": ""}[
                    self.verdict(name, task)
                ]
                cells.append(f"{mark}{text}{mark}")
            cells.append(f"{self.width(name):.1f}")
            cells.append(str(self.passed(name)) if name in self.toys else "")
            states = [
                results[name].state
                for results in self.by_task.values()
                if name in results
            ]
            cells.append(f"{statistics.median(states):.2g}")
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)

    def toy_table(self) -> str:
        """Return how many optimizers pass each toy, and which of the best known fail."""
        lines = [
            "| toy | what it is | passed by | of the best known, failed by |",
            "|---|---|---|---|",
        ]
        from benchmarks.guide.toys import TOYS

        for toy in TOYS:
            passed = sum(errors[toy.name] <= toy.bound for errors in self.toys.values())
            failed = ", ".join(
                f"`{name}`" for name in SHOWN if toy.name in self.failed(name)
            )
            lines.append(
                f"| {toy.name} | {toy.about} | {passed} of {len(self.toys)} | {failed} |"
            )
        return "\n".join(lines)

    def measured(self, optimizer: str) -> str:
        """Return one sentence about an optimizer, for its reference entry."""
        parts: list[str] = []
        for verdict in ("better", "same", "worse"):
            tasks = [
                f"{task.replace('_', ' ')} ({self.ratio(optimizer, task):.2f})"
                for task in self.by_task
                if self.verdict(optimizer, task) == verdict
            ]
            if tasks and optimizer != "adamw":
                word = {
                    "better": "below AdamW's on",
                    "same": "like AdamW's on",
                    "worse": "above AdamW's on",
                }[verdict]
                parts.append(f"{word} {', '.join(tasks)}")
        told = f"Final loss {'; '.join(parts)}. " if parts else ""
        return f"{told}Median width ×{self.width(optimizer):.1f}."


def written(template: str, results: Results) -> str:
    """Return a template with the values of its expressions."""
    names = {
        name: getattr(results, name)
        for name in dir(results)
        if not name.startswith("_")
    }
    return re.sub(
        r"\{\{(.+?)\}\}", lambda match: str(eval(match[1], {}, names)), template
    )


def page(results: Results) -> str:
    """Return the text of docs/guide.md."""
    return written((FOLDER / "guide.template.md").read_text(encoding="utf-8"), results)


def draw(results: Results, task: str, path: Path) -> None:
    """Draw the best loss of each optimizer on a task against its width."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    bests = results.by_task[task]
    limit = 2.5 * bests["adamw"].mean
    shown = {name: best for name, best in bests.items() if best.mean <= limit}
    axes.scatter(
        [best.width for best in shown.values()],
        [best.mean for best in shown.values()],
        s=14,
        alpha=0.5,
    )
    ranked = sorted(shown, key=lambda name: shown[name].mean)
    labelled = [name for name in ranked if name in (*ranked[:4], *SHOWN)]
    low, high = axes.get_ylim()
    last = -math.inf
    for name in labelled:
        best = shown[name]
        axes.errorbar(
            best.width, best.mean, best.std, fmt="o", color="C1", markersize=4
        )
        last = max(best.mean, last + 0.045 * (high - low))  # labels do not overlap
        label = name.replace(" (no schedule)", "")
        axes.annotate(
            label,
            (best.width, best.mean),
            xytext=(best.width * 1.1, last),
            fontsize=8,
            arrowprops={"arrowstyle": "-", "lw": 0.4},
        )
    hidden = len(bests) - len(shown)
    note = f" ({hidden} worse ones not shown)" if hidden else ""
    axes.set(
        xscale="log",
        xlabel="width: factor between rates 5% above the best loss",
        ylabel="final loss, mean over seeds",
    )
    axes.set_title(f"{TASKS[task].title}{note}", fontsize=10)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=80)


def main(arguments: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.guide.report", description=__doc__
    )
    parser.parse_args(None if arguments is None else list(arguments))
    results = Results()
    (DOCS / "guide.md").write_text(page(results), encoding="utf-8")
    for task in results.by_task:
        draw(results, task, DOCS / f"guide-{task}.png")
    print(
        f"wrote docs/guide.md and {len(results.by_task)} figures; gradtx {gradtx.__version__}"
    )


if __name__ == "__main__":
    main()
