"""Findings: faults of a run in plain words, and the evidence that they follow from."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from torch import Tensor, nn

from gradtx.base.exact import Schedule, python_scalar
from gradtx.watching.figures import STEP
from gradtx.watching.links import Link
from gradtx.watching.micro_batches import ENTER
from gradtx.watching.modules import modules_with, outermost, roles_in
from gradtx.watching.sample import ALL, Sample, prefixes_of
from gradtx.watching.trained import CallsWithGradient

__all__ = ["Finding"]

# Links that pull weights back at every k-th step, against the steps before.
PULLS_BACK = ("lookahead", "outer")

Row = dict[str, float]
Rows = dict[int, Row]


@dataclass(frozen=True)
class Finding:
    """A fault of a run; `str(finding)` is a sentence with the link, the figure and the remedy.

    Attributes:
        kind: What it is, such as "bound always acts".
        severity: Its place among others, from 0 to 100.
        link: The link, as it is named in the records; empty if no single link is to blame.
        leaves: The leaves that it concerns; empty for all.
        steps: The measured steps in which it was seen.
        figure: The number that shows it.
        text: What happens, with the figure.
        remedy: What to do.
    """

    kind: str
    severity: float
    link: str
    leaves: tuple[str, ...]
    steps: tuple[int, ...]
    figure: float
    text: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.text}; {self.remedy}"


class Findings(list[Finding]):
    """Findings, the worst first; `print` shows a numbered list.

    Args:
        findings: The findings, in any order.
        measured: The number of measured steps.
    """

    def __init__(self, findings: Iterable[Finding], measured: int):
        super().__init__(sorted(findings, key=lambda finding: -finding.severity))
        self._measured = measured

    def __repr__(self) -> str:
        if not self:
            return f"no findings in {self._measured} measured steps"
        return "\n".join(
            f"{i}. {finding.kind}: {finding}" for i, finding in enumerate(self, 1)
        )


class Evidence:
    """What a watch has seen, in the forms that faults are read from.

    Args:
        seen: A `Seen`.
        model: The model; by default, those in memory that hold the parameters.

    Attributes:
        samples: The measured steps.
        steps: Their numbers.
        links: What is known of each link.
        calls, updates, every, rounds, uncounted, evaluations, params, schedules: As in `Seen`.
        with_gradient: How often each leaf had a gradient.
        classes: The number of classes of a mean cross-entropy, if the loss is known to be one.
        groups: The parameter groups.
        run: The number of calls of `step` that no GradScaler skipped.
    """

    def __init__(self, seen: Any, model: nn.Module | None = None):
        self.samples: list[Sample] = seen.samples
        self.steps = tuple(sample.step for sample in self.samples)
        self.links: dict[str, Link] = seen.links
        self._model = model
        self.calls, self.updates, self.every = seen.calls, seen.updates, seen.every
        self.rounds: int = seen.rounds
        self.uncounted: int = seen.uncounted
        self.evaluations: int = seen.evaluations
        self.groups: list[dict[str, Any]] = seen.optimizer.param_groups
        self.params: dict[str, Tensor] = seen.params
        self.schedules: dict[str, Schedule] = seen.schedules
        self.with_gradient: CallsWithGradient = seen.with_gradient
        self.classes: int | None = seen.classes
        self.run = max(self.updates, self.steps[-1] if self.steps else 0)

    @functools.cached_property
    def leaf_rows(self) -> dict[str, dict[str, Rows]]:
        """The rows of each leaf at each link: link -> leaf -> index of the sample -> row.

        A leaf that took no step in a sample has no row of it.
        """
        rows: dict[str, dict[str, Rows]] = {}
        for number, sample in enumerate(self.samples):
            for i, (leaf, link) in enumerate(sample.rows):
                row = {name: values[i] for name, values in sample.figures.items()}
                rows.setdefault(link, {}).setdefault(leaf, {})[number] = row
        return rows

    def of_trained(self, link: str) -> list[Row]:
        """Return the rows of a link over those leaves whose gradient is not 0, of the steps in which any has one.

        Only the norms and their ratio: what a link does to the steps of leaves that nothing trains says little.
        """
        squares: dict[int, tuple[float, float]] = {}
        for leaf, rows in self.leaf_rows[link].items():
            steps = self.leaf_rows[STEP].get(leaf, {})
            for number, row in rows.items():
                if number in steps and steps[number]["norm_before"] > 0:
                    before, after = squares.get(number, (0.0, 0.0))
                    before += row["norm_before"] ** 2
                    squares[number] = before, after + row["norm_after"] ** 2
        return [
            {
                "norm_before": math.sqrt(before),
                "norm_after": math.sqrt(after),
                "change": math.sqrt(after / before) if before > 0 else math.nan,
            }
            for before, after in squares.values()
        ]

    def of_link(self, link: str) -> list[Row]:
        """Return the rows of a link over all leaves, of the steps in which it ran."""
        return [
            sample.of_links[link] for sample in self.samples if link in sample.of_links
        ]

    def links_named(self, *names: str) -> Iterator[tuple[str, Link]]:
        """Yield the links of some names."""
        for path, link in self.links.items():
            if link.name in names:
                yield path, link

    def median(self, link: str, figure: str) -> float:
        """Return the median of a figure of a link over all leaves; NaN if it was never measured."""
        return finite_median(row[figure] for row in self.of_link(link))

    def leaf_medians(self, figure: str, link: str = STEP) -> dict[str, float]:
        """Return the median of a figure of each leaf; leaves in which it was never measured are left out."""
        medians = {
            leaf: finite_median(row[figure] for row in rows.values())
            for leaf, rows in self.leaf_rows.get(link, {}).items()
        }
        return {leaf: value for leaf, value in medians.items() if not math.isnan(value)}

    def is_matrix(self, leaf: str) -> bool:
        """Whether a leaf has two or more dimensions; all leaves together count as one."""
        return leaf == ALL or (leaf in self.params and self.params[leaf].ndim >= 2)

    def entries_of(self, leaf: str) -> int:
        """Return the number of entries of a leaf, or of all leaves together."""
        params = self.params.values() if leaf == ALL else [self.params[leaf]]
        return sum(param.numel() for param in params)

    def ratios_of_matrices(self) -> Iterator[list[float]]:
        """Yield update / weight of each matrix, of one measured step after another."""
        for sample in self.samples:
            ratios = [
                row["update_to_weight"]
                for leaf, row in sample.of_leaves.items()
                if self.is_matrix(leaf) and math.isfinite(row["update_to_weight"])
            ]
            if ratios:
                yield ratios

    def growth_of_matrices(self) -> float:
        """Return by how much the norms of matrices have grown over the run, in the median of those that were not 0."""
        growths: list[float] = []
        for leaf, rows in self.leaf_rows.get(STEP, {}).items():
            norms = [
                row["norm_after"] / row["update_to_weight"]
                for row in rows.values()
                if row["update_to_weight"] > 0
            ]
            if norms and self.is_matrix(leaf):
                growths.append(norms[-1] / norms[0])
        return finite_median(growths)

    @functools.cached_property
    def roles(self) -> dict[Tensor, str]:
        """The role of each parameter in its model."""
        if self._model is not None:
            return roles_in([self._model])
        return roles_in(outermost(modules_with(self.params.values())))

    def role_of(self, leaf: str) -> str | None:
        """Return the role of a leaf, if its model is known."""
        return self.roles.get(self.params[leaf]) if leaf in self.params else None

    def cycle_of(self, leaf: str) -> int:
        """Return how many calls of `step` `accumulate` makes one update of for a leaf."""
        cycle = 1
        for path, link in self.links.items():
            if link.name == "accumulate" and path.endswith(ENTER):
                every = link.value_of("every")
                if leaf in self.leaf_rows[path] and every > 1:
                    cycle *= int(every)
        return cycle

    def updates_of(self, leaf: str) -> int:
        """Return about how many updates of the run a leaf took part in: those in which it had a gradient."""
        calls = self.run if leaf == ALL else self.with_gradient.of(leaf)
        return min(calls, self.run // self.cycle_of(leaf))

    @property
    def whole_run(self) -> int:
        """The number of updates of the leaf with the most, which schedules follow."""
        cycles = [self.cycle_of(leaf) for leaf in self.leaf_rows.get(STEP, {})]
        return self.run // min(cycles, default=1)

    def rate_behind(self, decay: str, leaf: str) -> float:
        """Return the factor that links behind a decay apply to it, in the mean over the measured steps of a leaf."""
        paths = list(self.links)
        branch = decay.rpartition(".")[0]
        behind = [
            path
            for path in paths[paths.index(decay) + 1 :]
            if path.rpartition(".")[0] == branch
        ]
        factors: list[float] = []
        for number in self.leaf_rows[decay][leaf]:
            factor = 1.0
            for path in behind:
                row = self.leaf_rows.get(path, {}).get(leaf, {}).get(number)
                if row is not None:
                    factor *= row["change"]
            factors.append(factor)
        finite = list(filter(math.isfinite, factors))  # NaN where a link received 0
        return sum(finite) / len(finite) if finite else math.nan

    def group_of(self, leaf: str) -> int | None:
        """Return the index of a leaf's parameter group."""
        param = self.params.get(leaf)
        for i, group in enumerate(self.groups):
            if any(member is param for member in group["params"]):
                return i
        return None

    def rates(self) -> dict[str, list[float]]:
        """Return the learning rate of each group and measured step, by the name in the samples."""
        names = dict.fromkeys(name for sample in self.samples for name in sample.groups)
        return {
            name: [sample.groups.get(name, math.nan) for sample in self.samples]
            for name in names
            if name.rpartition(".")[2] in ("lr", "max_lr")
        }

    def group_named(self, name: str) -> dict[str, Any]:
        """Return the parameter group to which a name of `rates` belongs; an empty one if it has changed since."""
        prefix = name.removesuffix(name.rpartition(".")[2])
        groups = zip(prefixes_of(self.groups), self.groups, strict=True)
        return next((group for other, group in groups if other == prefix), {})

    @functools.cached_property
    def losses(self) -> list[float]:
        """The finite losses of the measured steps, in their order."""
        losses = [sample.loss_or_nan() for sample in self.samples]
        return list(filter(math.isfinite, losses))


def curve(schedule: Schedule, steps: int, most: int = 200) -> list[float]:
    """Return the values of a schedule at equal distances over some steps, at most so many."""
    stride = max(1, steps // most)
    return [float(python_scalar(schedule.at(i))) for i in range(0, steps, stride)]


def finite_median(values: Iterable[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return median(finite) if finite else math.nan


def quantile(values: Iterable[float], share: float) -> float:
    """Return the value that a share of the finite values does not exceed."""
    finite = sorted(value for value in values if math.isfinite(value))
    return (
        finite[min(int(share * len(finite)), len(finite) - 1)] if finite else math.nan
    )


def largest_first(figures: dict[str, float]) -> tuple[str, ...]:
    """Return the names of leaves by their figures."""
    return tuple(sorted(figures, key=lambda leaf: -figures[leaf]))


def named(leaves: Sequence[str]) -> str:
    """Return a few names of leaves, for a sentence."""
    shown = ", ".join(leaves[:3])
    return shown if len(leaves) <= 3 else f"{shown} and {len(leaves) - 3} more"


def percent(share: float) -> str:
    return f"{100 * share:.3g}%" if share < 10 else f"{100 * share:.0f}%"


def about(value: float) -> str:
    """Return one digit of a number, as in "about 80"."""
    return f"{float(f'{value:.1g}'):g}"


def called(path: str, link: Link) -> str:
    """Return a link as a user knows it: its name, with the optimizer that it belongs to."""
    return link.name if link.typed == link.name else f"{link.name} (of {link.typed})"
