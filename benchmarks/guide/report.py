"""Write docs/guide.md and its figures from the results: `python -m benchmarks.guide.report`.

The prose stands in guide.template.md. `{{expression}}` there calls a method of `Page`, so that no number is typed.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch

import gradtx
from benchmarks.guide.results import NEAR_ZERO, REFERENCE, Best, Results, best_of
from benchmarks.guide.tasks import TASKS
from benchmarks.guide.toys import TOYS

FOLDER = Path(__file__).parent
DOCS = FOLDER.parent.parent / "docs"
KNOWN = ("adamw", "sgd", "lion", "muon", "soap", "prodigy", "schedule_free_adamw")
SEEDS = 3
WIDEST = 100  # in figures
MARKS = {"better": "**", "same": "*", "worse": ""}


def quoted(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"


def spoken(task: str) -> str:
    return task.replace("_", " ")


def number(x: float) -> str:
    """Return a ratio with two digits after the point, or few digits if it is large or small."""
    if not math.isfinite(x):
        return "–"
    return f"{x:.2f}" if 0.095 < x < 9.95 else f"{x:.2g}" if x < 99.5 else ">99"


def spanned(ratios: Iterable[float]) -> str:
    """Return the least and the largest."""
    known = sorted(ratios)
    return f"{number(known[0])} to {number(known[-1])}"


def with_spread(best: Best) -> str:
    return f"{best.mean:.2g} ± {best.std:.1g}"


class Page:
    """What the template may call."""

    def __init__(self, results: Results):
        self.results = results
        self.by_task = results.by_task
        self.bounds = results.bounds
        self.names = results.names
        self.passed = results.passed

    # Single numbers.

    def runs(self) -> int:
        return len(list(self.results.pairs()))

    def settings(self) -> int:
        return sum(best.settings for _, _, best in self.results.pairs())

    def across(self, verdict: str) -> int:
        """Return in how many tunings an optimizer other than AdamW has this verdict."""
        return sum(
            self.results.verdict(name, task) == verdict
            for task, name, _ in self.results.pairs()
            if name != REFERENCE
        )

    def relative(self, optimizer: str, task: str) -> str:
        """Return the loss relative to AdamW's, or that the two cannot be told apart."""
        ratio = number(self.results.ratio(optimizer, task))
        is_same = self.results.verdict(optimizer, task) == "same"
        return f"{ratio} (within the spread)" if is_same else ratio

    def ratios(self, optimizer: str) -> str:
        """Return the range of losses over settled tasks, relative to AdamW's."""
        tasks = self.results.settled(optimizer)
        return spanned(self.results.ratio(optimizer, task) for task in tasks)

    def ratios_at(self, optimizer: str, rate: float) -> str:
        """Return the same at one rate."""
        tasks = self.results.settled(optimizer)
        return spanned(self.results.ratio_at(optimizer, task, rate) for task in tasks)

    def loss(self, optimizer: str, task: str) -> str:
        return with_spread(self.by_task[task][optimizer])

    def factor(self, optimizer: str) -> str:
        return f"×{self.results.width(optimizer):.1f}"

    def median_cost(self) -> str:
        """Return what three times the best rate costs."""
        costs = [
            best.at_three_times()
            for task, _, best in self.results.pairs()
            if task not in NEAR_ZERO
        ]
        cost = statistics.median(cost for cost in costs if not math.isnan(cost))
        return f"{100 * (cost - 1):.0f}%"

    def median_gap(self) -> str:
        """Return how much the median tuning ends above AdamW."""
        ratios = [
            self.results.ratio(name, task)
            for task, name, _ in self.results.pairs()
            if task not in NEAR_ZERO
        ]
        return f"{100 * (statistics.median(ratios) - 1):.0f}%"

    def beaten(self) -> str:
        """Return how many methods end below AdamW by more than the spread, by problem."""
        counts = {
            task: sum(self.results.verdict(name, task) == "better" for name in bests)
            for task, bests in self.by_task.items()
        }
        return f"{min(counts.values())} to {max(counts.values())} of {len(self.names)}"

    def by_chance(self) -> int:
        """Return how many of these would end below AdamW by more than the spread if they were AdamW with other seeds.

        Of a normal loss with three seeds each; the choice of the best setting is not in it.
        """
        normal = torch.randn(
            2, 10**6, SEEDS, generator=torch.Generator().manual_seed(0)
        )
        ours, theirs = normal.mean(-1)
        share = (ours - theirs < -normal.std(-1).sum(0)).double().mean()
        return round(self.others() * float(share))

    def others(self) -> int:
        return self.runs() - len(self.by_task)

    def registered(self) -> int:
        """Return the number of optimizers; some run in two ways."""
        return len({name.partition(" ")[0] for name in self.names})

    def counted(self, n: int) -> str:
        return ("no", "one", "two", "three", "four", "five", "six")[n]

    def missing(self) -> str:
        known = {name.partition(" ")[0] for name in self.names}
        return quoted(
            name for name in gradtx.get_supported_optimizers() if name not in known
        )

    def adaptive(self) -> str:
        """Return how methods that find their own rate end, as their authors run them."""
        rows = [
            f"`{name}` {self.ratios(name)}"
            for name in self.names
            if name.startswith(("prodigy", "dadapt_", "dog", "dowg", "cocob"))
            and name.endswith("(no schedule)")
        ]
        return ", ".join(rows)

    def sizes(self) -> str:
        """Return the numbers of weights of the networks."""
        counts = [
            sum(weight.numel() for weight in TASKS[task].params(0).values())
            for task in self.by_task
        ]
        return f"{min(counts):,} to {max(counts):,} weights"

    def widened(self) -> int:
        return sum(best.entry["widened"] > 0 for _, _, best in self.results.pairs())

    def diverged(self) -> int:
        return sum(best.diverged for _, _, best in self.results.pairs())

    # Lists.

    def never_worse(self) -> str:
        common = filter(self.results.is_common, self.names)
        return quoted(
            name
            for name in common
            if name != REFERENCE
            and all(
                self.results.verdict(name, task) != "worse"
                for task in self.results.of(name)
            )
        )

    def ever_better(self, least: int) -> str:
        """Return the optimizers that are better than AdamW on at least this many tasks."""
        counts = Counter(
            name
            for task, name, _ in self.results.pairs()
            if self.results.verdict(name, task) == "better"
        )
        return ", ".join(
            f"`{name}` ({count})"
            for name, count in sorted(
                counts.items(), key=lambda item: (-item[1], item[0])
            )
            if count >= least
        )

    def widest(self, n: int) -> str:
        """Return the widest methods that end less than 10% above AdamW on all settled tasks."""
        sound = [
            name
            for name in filter(self.results.is_common, self.names)
            if all(
                self.results.ratio(name, task) < 1.1
                for task in self.results.settled(name)
            )
        ]
        ranked = sorted(sound, key=lambda name: -self.results.width(name))
        return ", ".join(f"`{name}` ({self.factor(name)})" for name in ranked[:n])

    def at_edge(self) -> str:
        edges = [
            f"`{name}` on {spoken(task)}"
            for task, name, best in self.results.pairs()
            if best.entry["at_edge"]
        ]
        return ", ".join(edges) or "none"

    def left_out(self) -> str:
        by_reason: dict[str, list[str]] = {}
        for task, reasons in self.results.skipped.items():
            for name, reason in reasons.items():
                by_reason.setdefault(reason, []).append(f"`{name}` on {spoken(task)}")
        rows = [f"{', '.join(names)} ({reason})" for reason, names in by_reason.items()]
        return "; ".join(rows) or "none"

    def again(self) -> str:
        """Compare the second runs of some methods, with other seeds, with the first."""
        parts: list[str] = []
        for path in sorted((FOLDER / "results" / "again").glob("*.json")):
            first = self.by_task[path.stem]
            content = json.loads(path.read_text(encoding="utf-8"))
            for name, entry in content["optimizers"].items():
                second = best_of(entry)
                assert second is not None
                differs = second.differs_from(first[name])
                parts.append(
                    f"`{name}` on {spoken(path.stem)} {with_spread(second)} against {with_spread(first[name])} "
                    f"({'more than' if differs else 'within'} the spread)"
                )
        return "; ".join(parts)

    def machines(self) -> str:
        found = {
            f"torch {m['torch']}, Python {m['python']}, {m['processor']}, one thread"
            for m in self.results.machines.values()
        }
        dates = sorted(m["date"] for m in self.results.machines.values())
        return f"{'; '.join(sorted(found))}; {dates[0]} to {dates[-1]}"

    # Tables and figures.

    def figures(self) -> str:
        return "\n\n".join(
            f"![{TASKS[task].title}](guide-{task}.png)" for task in self.by_task
        )

    def table(self) -> str:
        """Return the table over all optimizers."""
        head = [
            "optimizer",
            *map(spoken, self.by_task),
            "width",
            "gradients",
            "toys",
            "state",
        ]
        lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
        lines += [f"| {' | '.join(self._row(name))} |" for name in self.names]
        return "\n".join(lines)

    def _row(self, name: str) -> list[str]:
        results = self.results
        cells = [f"`{name}`"]
        for task in self.by_task:
            if name in self.by_task[task]:
                mark = MARKS[results.verdict(name, task)]
                cells.append(f"{mark}{number(results.ratio(name, task))}{mark}")
            else:
                cells.append("")
        gradients = results.gradients(name)
        cells.append(f"{results.width(name):.1f}")
        cells.append(f"{100 * gradients:.0f}%" if math.isfinite(gradients) else "–")
        cells.append(str(results.passed(name)) if name in results.errors else "")
        cells.append(f"{results.state(name):.2g}")
        return cells

    def residual_table(self) -> str:
        """Return what methods that take residuals reach on the physics problem."""
        path = FOLDER / "results" / "residuals.json"
        reference = self.by_task["physics"][REFERENCE].mean
        lines = [
            "| method | damping, or rate of SPRING | final loss | relative to AdamW's | ms a step |",
            "|---|---:|---:|---:|---:|",
        ]
        for name, row in json.loads(path.read_text(encoding="utf-8")).items():
            mean = statistics.fmean(row["final"])
            spread = statistics.stdev(row["final"])
            cells = [
                f"`{name}`" if " " not in name else name,
                f"{row['setting']:.2g}",
                f"{mean:.2g} ± {spread:.1g}",
                f"{mean / reference:.2g}",
                f"{row['ms']:g}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)

    def toy_table(self) -> str:
        """Return how many optimizers pass each toy, and which of the best known fail."""
        all_errors = self.results.errors
        lines = [
            f"| toy | what it is | passed by, of {len(all_errors)} | of the best known, failed by |",
            "|---|---|---:|---|",
        ]
        for toy in TOYS:
            count = sum(errors[toy.name] <= toy.bound for errors in all_errors.values())
            failed = [name for name in KNOWN if toy.name in self.results.failed(name)]
            names = quoted(failed) if failed else ""
            lines.append(f"| {toy.name} | {toy.about} | {count} | {names} |")
        return "\n".join(lines)

    def measured(self, optimizer: str) -> str:
        """Return a sentence about an optimizer, for its entry in the reference."""
        words = {
            "better": "below AdamW's",
            "same": "like AdamW's",
            "worse": "above AdamW's",
        }
        parts: list[str] = []
        for verdict, word in words.items():
            tasks = [
                f"{spoken(task)} ({number(self.results.ratio(optimizer, task))})"
                for task in self.results.of(optimizer)
                if self.results.verdict(optimizer, task) == verdict
            ]
            if tasks and optimizer != REFERENCE:
                parts.append(f"{word} on {', '.join(tasks)}")
        told = f"final loss {'; '.join(parts)}; " if parts else ""
        return f"{told}rates within 5% of the best span {self.factor(optimizer)}."


def page(results: Results) -> str:
    """Return the text of docs/guide.md."""
    template = (FOLDER / "guide.template.md").read_text(encoding="utf-8")
    content = Page(results)
    names = {name: getattr(content, name) for name in dir(content) if name[0] != "_"}
    return re.sub(r"\{\{(.+?)\}\}", lambda match: str(eval(match[1], names)), template)


def draw_task(results: Results, task: str, path: Path) -> None:
    """Draw the best loss of each optimizer on a task against its width."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    bests = results.by_task[task]
    limit = 2.5 * bests[REFERENCE].mean
    shown = {name: best for name, best in bests.items() if best.mean <= limit}
    ranked = sorted(shown, key=lambda name: shown[name].mean)
    axes.scatter(
        [min(best.width, WIDEST) for best in shown.values()],
        [best.mean for best in shown.values()],
        s=14,
        alpha=0.5,
    )
    axes.set_xscale("log")
    ticks = (1, 2, 5, 10, 20, 50)
    labels = [f"×{tick}" for tick in ticks]
    axes.set_xticks([*ticks, WIDEST], [*labels, f"≥ ×{WIDEST}"])
    axes.set_xticks([], minor=True)
    if limit > 10 * shown[ranked[0]].mean:
        axes.set_yscale("log")
    to_pixels = axes.transData
    last = -math.inf
    for name in ranked:
        if name not in (*ranked[:4], *KNOWN):
            continue
        best = shown[name]
        width = min(best.width, WIDEST)
        axes.errorbar(width, best.mean, best.std, fmt="o", color="C1", markersize=4)
        x, y = to_pixels.transform((width, best.mean))
        last = max(y, last + 12)  # labels do not overlap
        axes.annotate(
            name,
            (width, best.mean),
            xytext=tuple(to_pixels.inverted().transform((x + 16, last))),
            fontsize=8,
            arrowprops={"arrowstyle": "-", "lw": 0.4},
        )
    hidden = len(bests) - len(shown)
    note = f" ({hidden} worse ones not shown)" if hidden else ""
    axes.set_title(f"{TASKS[task].title}{note}", fontsize=10)
    axes.set_xlabel("width: factor between rates 5% above the best loss")
    axes.set_ylabel("final loss, mean over seeds")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=80)


def draw_all(results: Results, path: Path) -> None:
    """Draw the losses of all optimizers relative to AdamW's, one row per task."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    low, high = 0.4, 2.5
    tasks = list(results.by_task)
    for row, task in enumerate(tasks):
        ratios = {name: results.ratio(name, task) for name in results.by_task[task]}
        inside = [min(max(ratio, low), high) for ratio in ratios.values()]
        heights = [row + 0.12 * (i % 5 - 2) for i in range(len(inside))]
        axes.scatter(inside, heights, s=9, color="0.6", alpha=0.6, zorder=1)
    for i, (name, marker) in enumerate(zip(KNOWN[1:], "sDvP^X", strict=True)):
        rows = [row for row, task in enumerate(tasks) if name in results.by_task[task]]
        ratios = [results.ratio(name, tasks[row]) for row in rows]
        inside = [min(max(ratio, low), high) for ratio in ratios]
        axes.scatter(
            inside, rows, s=42, marker=marker, color=f"C{i}", label=name, zorder=2
        )
    axes.axvline(1.0, color="black", lw=1)
    axes.set_xscale("log")
    ticks = [low, 0.7, 1.0, 1.4, high]
    axes.set_xticks(ticks, ["≤ 0.4", "0.7", "AdamW", "1.4", "≥ 2.5"])
    axes.set_xticks([], minor=True)
    axes.set_yticks(range(len(tasks)), [TASKS[task].title for task in tasks])
    axes.invert_yaxis()
    axes.set_xlabel("final loss at the best rate, relative to AdamW's")
    figure.legend(loc="outside upper center", ncols=6, fontsize=9, frameon=False)
    figure.savefig(path, dpi=90)


def main(arguments: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.guide.report", description=__doc__
    )
    parser.parse_args(None if arguments is None else list(arguments))
    results = Results()
    (DOCS / "guide.md").write_text(page(results), encoding="utf-8")
    draw_all(results, DOCS / "guide.png")
    for task in results.by_task:
        draw_task(results, task, DOCS / f"guide-{task}.png")
    print(f"wrote docs/guide.md and {1 + len(results.by_task)} figures")


if __name__ == "__main__":
    main()
