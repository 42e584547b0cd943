"""The results of the guide's benchmark: the best setting of each optimizer on each task, and verdicts."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.guide.tasks import TASKS

FOLDER = Path(__file__).parent / "results"
CLOSE = 1.05  # of the best loss, for the width
REFERENCE = "adamw"
# Their best losses approach 0, where ratios and widths vary by orders of magnitude between seeds.
NEAR_ZERO = ("digits", "physics")


@dataclass(frozen=True)
class Best:
    """The best setting of an optimizer on a task.

    Attributes:
        mean, std: The final loss over seeds.
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

    def at_three_times(self) -> float:
        """Return the loss at three times the best rate, relative to the best; NaN if it was not trained."""
        for row in self.entry["rows"]:
            is_next = math.isclose(row["rate"], 3 * self.rate, rel_tol=1e-3)
            if is_next and row["decay"] == self.decay:
                return mean_of(row) / self.mean
        return math.nan


def mean_of(row: dict[str, Any]) -> float:
    """Return the mean over seeds, which is infinite if one diverged."""
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
    return Best(
        mean,
        statistics.stdev(best["final"]) if full > 1 else 0.0,
        best["rate"],
        best["decay"],
        width_of(entry["rows"], best),
        entry["state"],
        sum(None in row["final"] for row in entry["rows"]),
        len(entry["rows"]),
        entry,
    )


class Results:
    """All results.

    Attributes:
        by_task: The best settings, by task and optimizer.
        skipped: Why an optimizer has none, by task and optimizer.
        machines: Where each task ran.
        bounds: The bound of each toy.
        errors: The error on each toy, by optimizer.
    """

    def __init__(self, folder: Path = FOLDER):
        self.by_task: dict[str, dict[str, Best]] = {}
        self.skipped: dict[str, dict[str, str]] = {}
        self.machines: dict[str, dict[str, str]] = {}
        for name in TASKS:
            path = folder / f"{name}.json"
            if path.exists():
                self._read(name, json.loads(path.read_text(encoding="utf-8")))
        toys = json.loads((folder / "toys.json").read_text(encoding="utf-8"))
        self.bounds: dict[str, float] = toys["bounds"]
        self.errors: dict[str, dict[str, float]] = {
            name: row["errors"]
            for name, row in toys["optimizers"].items()
            if "errors" in row
        }

    def _read(self, task: str, content: dict[str, Any]) -> None:
        self.machines[task] = content["machine"]
        bests = self.by_task[task] = {}
        reasons = self.skipped[task] = {}
        for optimizer, entry in content["optimizers"].items():
            best = best_of(entry)
            if best is None:
                reasons[optimizer] = entry.get("skipped", "all settings diverged")
            else:
                bests[optimizer] = best

    # One optimizer.

    def of(self, optimizer: str) -> dict[str, Best]:
        """Return the best settings of an optimizer by task."""
        return {
            task: bests[optimizer]
            for task, bests in self.by_task.items()
            if optimizer in bests
        }

    def ratio(self, optimizer: str, task: str) -> float:
        """Return the loss relative to AdamW's."""
        bests = self.by_task[task]
        return bests[optimizer].mean / bests[REFERENCE].mean

    def ratio_at(self, optimizer: str, task: str, rate: float) -> float:
        """Return the same at one rate, at the best weight decay; infinite if the run diverged or was not tried."""
        bests = self.by_task[task]
        means = [
            mean_of(row)
            for row in bests[optimizer].entry["rows"]
            if math.isclose(row["rate"], rate)
        ]
        return min(means, default=math.inf) / bests[REFERENCE].mean

    def verdict(self, optimizer: str, task: str) -> str:
        """Return "better", "worse" or "same" as AdamW, by the spread over seeds."""
        ours, theirs = (self.by_task[task][name] for name in (optimizer, REFERENCE))
        if not ours.differs_from(theirs):
            return "same"
        return "better" if ours.mean < theirs.mean else "worse"

    def settled(self, optimizer: str) -> dict[str, Best]:
        """Return the same without the tasks whose best losses approach 0; all if it ran on no others."""
        bests = self.of(optimizer)
        return {t: best for t, best in bests.items() if t not in NEAR_ZERO} or bests

    def width(self, optimizer: str) -> float:
        """Return the median width over settled tasks."""
        return statistics.median(
            best.width for best in self.settled(optimizer).values()
        )

    def state(self, optimizer: str) -> float:
        return statistics.median(best.state for best in self.of(optimizer).values())

    def gradients(self, optimizer: str) -> float:
        """Return the gradients until the loss is AdamW's at the end, relative to its number: a median over tasks."""
        return statistics.median(
            self._gradients(optimizer, task) for task in self.settled(optimizer)
        )

    def _gradients(self, optimizer: str, task: str) -> float:
        bests = self.by_task[task]
        final = bests[REFERENCE].entry["curve"][-1]
        curve = bests[optimizer].entry["curve"]
        for i, value in enumerate(curve):
            if value is not None and value <= final:
                return (i + 1) / len(curve)
        return math.inf

    def passed(self, optimizer: str) -> int:
        errors = self.errors[optimizer]
        return sum(errors[toy] <= bound for toy, bound in self.bounds.items())

    def failed(self, optimizer: str) -> list[str]:
        errors = self.errors[optimizer]
        return [toy for toy, bound in self.bounds.items() if not errors[toy] <= bound]

    # All of them.

    def pairs(self) -> Iterator[tuple[str, str, Best]]:
        for task, bests in self.by_task.items():
            for optimizer, best in bests.items():
                yield task, optimizer, best

    def is_common(self, optimizer: str) -> bool:
        """Whether it ran on all tasks but at most one."""
        return len(self.of(optimizer)) >= len(self.by_task) - 1

    @cached_property
    def names(self) -> list[str]:
        """All optimizers, by the median of their ratios to AdamW."""

        def score(name: str) -> float:
            return statistics.median(
                self.ratio(name, task) for task in self.settled(name)
            )

        names = {name for bests in self.by_task.values() for name in bests}
        return sorted(names, key=lambda name: (score(name), name))
