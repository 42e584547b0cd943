"""The result of a sweep: records of all members, the best settings, a table and a plot."""

from __future__ import annotations

import csv
import importlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from gradtx.arguments import is_number
from gradtx.base.messages import aligned, describe, nearest
from gradtx.sweeps.members import Records, Trial
from gradtx.sweeps.settings import Setting, by_key

__all__ = ["Sweep"]

ROWS = 10  # of the table
NOT_MEASURED = ("seed", "step", "diverged", "optimizer")


@dataclass(frozen=True)
class Training:
    """The training of one member.

    Attributes:
        setting: Its setting; in a sum of sweeps, with the name of the optimizer.
        seed: Its seed.
        records: What was recorded.
        weights: The final weights.
    """

    setting: Setting
    seed: int
    records: list[dict[str, Any]]
    weights: Any


class Sweep:
    """The records of a sweep, created by `gradtx.sweep`. `len` is the number of records, `repr` a table, best first.

    `a + b` has the records of both, with a column `optimizer`: the name of the callable.

    Attributes:
        finished: Whether all members were trained to the end; False after Ctrl-C.

    Example:
        >>> loss_fn = lambda params, batch: (params["w"] - 1).square()
        >>> start = {"w": torch.zeros(())}
        >>> over = {"lr": [0.1, 0.5]}
        >>> result = gradtx.sweep(loss_fn, gradtx.sgd, start, range(8), over, steps=8)
        >>> result
        sweep of sgd: 2 settings, 1 seed, 8 steps
           lr    loss  std  diverged
          0.5   0.125    0         0
          0.1  0.3374    0         0
        >>> result.best()
        [{'lr': 0.5, 'mean': 0.125, 'std': 0.0, 'diverged': 0}]
        >>> result.params({"lr": 0.5})["w"]
        tensor(1.)
    """

    def __init__(
        self, optimizer: str, runs: Sequence[Training] = (), finished: bool = False
    ):
        self._optimizer = optimizer
        self._runs = list(runs)
        self.finished = finished

    @property
    def records(self) -> list[dict[str, Any]]:
        """A dict for each member and recorded step.

        It has the names of the setting, `seed`, `step`, `loss` (the mean of the batch losses since the last record),
        what `eval_fn` returned (`eval`, if that was a single tensor), and `diverged`.
        """
        return [record for run in self._runs for record in run.records]

    def __len__(self) -> int:
        return sum(len(run.records) for run in self._runs)

    def __add__(self, other: Sweep) -> Sweep:
        if not isinstance(other, Sweep):
            return NotImplemented
        runs = [*self._with_optimizer(), *other._with_optimizer()]
        optimizer = f"{self._optimizer}, {other._optimizer}"
        return Sweep(optimizer, runs, self.finished and other.finished)

    def _with_optimizer(self) -> list[Training]:
        runs = []
        for run in self._runs:
            column = {"optimizer": self._optimizer}
            records = [{**column, **record} for record in run.records]
            runs.append(
                Training({**column, **run.setting}, run.seed, records, run.weights)
            )
        return runs

    # The best settings.

    def best(
        self, key: str = "loss", by: str = "last", n: int = 1
    ) -> list[dict[str, Any]]:
        """Return the best settings, those whose members all survived first.

        Args:
            key: What to compare: `loss`, or a name that `eval_fn` returned. The smallest is the best.
            by: "last" record of each member, "mean" or "min" of all.
            n: The number of settings.

        Returns:
            Dicts of the setting, `mean` and `std` over seeds (the sample deviation; 0 for one seed) of the members that
            did not diverge, and `diverged`, the number of those that did. `mean` is NaN if all did.

        Raises:
            ValueError: If `by` is unknown, or `key` was not recorded.
        """
        rows = [
            {**setting, **self._statistics(runs, key, by)}
            for setting, runs in by_key((run.setting, run) for run in self._runs)
        ]

        def rank(row: dict[str, Any]) -> tuple[bool, int, float]:
            return math.isnan(row["mean"]), row["diverged"], row["mean"]

        return sorted(rows, key=rank)[:n]

    def _statistics(self, runs: list[Training], key: str, by: str) -> dict[str, Any]:
        functions = {"last": lambda values: values[-1], "mean": fmean, "min": min}
        if by not in functions:
            raise ValueError(f"best: by must be 'last', 'mean' or 'min', got {by!r}")
        survived = [
            run for run in runs if run.records and not run.records[-1]["diverged"]
        ]
        for run in runs:
            for record in run.records[:1]:
                measured = record.keys() - run.setting.keys() - set(NOT_MEASURED)
                if key not in measured:
                    raise ValueError(
                        f"best: {key!r} was not recorded; {nearest(key, measured)}"
                    )
        numbers = [
            float(functions[by]([record[key] for record in run.records]))
            for run in survived
        ]
        return {
            "mean": fmean(numbers) if numbers else math.nan,
            "std": stdev(numbers) if len(numbers) > 1 else 0.0,
            "diverged": sum(bool(run.records) for run in runs) - len(survived),
        }

    @property
    def at_edge(self) -> list[str]:
        """The names to widen: their best value, by the last loss, is the smallest or the largest of three or more."""
        best = self.best()
        if not best or "optimizer" in best[0] or math.isnan(best[0]["mean"]):
            return []
        names = []
        for name in self._runs[0].setting:
            values = self.values(name)
            numeric = len(values) > 2 and all(map(is_number, values))
            if numeric and best[0][name] in (min(values), max(values)):
                names.append(name)
        return names

    def values(self, name: str) -> list[Any]:
        """Return the different values of a name, in order."""
        values = []
        for run in self._runs:
            if name in run.setting and run.setting[name] not in values:
                values.append(run.setting[name])
        return values

    def params(self, setting: dict[str, Any], seed: int | None = None) -> Any:
        """Return the final weights of a member: the last finite ones, if it diverged.

        Args:
            setting: Its setting, as in `over`; entries of `best` may be passed too.
            seed: Its seed; None if there is only one.

        Raises:
            KeyError: If there is no such member.
        """
        for run in self._runs:
            wanted = {name: setting.get(name) for name in run.setting}
            if wanted == run.setting and seed in (None, run.seed):
                if seed is None and len({run.seed for run in self._runs}) > 1:
                    raise KeyError("params: there are several seeds; pass one")
                return run.weights
        raise KeyError(
            f"params: no member has the setting {describe(setting)} and the seed {seed}"
        )

    # Other forms.

    def __repr__(self) -> str:
        steps = max((record["step"] for record in self.records), default=0)
        seeds = len({run.seed for run in self._runs})
        rows = self.best(n=len(self._runs)) if self._runs else []
        head = f"sweep of {self._optimizer}: {_counted(len(rows), 'setting')}, {_counted(seeds, 'seed')}, {steps} steps"
        if not self.finished:
            head += ", not finished"
        edge = self.at_edge
        if edge:
            head += f"; the best {' and '.join(edge)} is at the edge: widen the grid"
        names = list(dict.fromkeys(name for run in self._runs for name in run.setting))
        table = [[*names, "loss", "std", "diverged"]]
        for row in rows[:ROWS]:
            cells = [_shown(row.get(name, "")) for name in names]
            table.append(
                [*cells, _shown(row["mean"]), _shown(row["std"]), str(row["diverged"])]
            )
        for name in edge:
            table[1][names.index(name)] += "*"
        lines = aligned(table, str.rjust)
        if len(rows) > ROWS:
            lines.append(f"... and {_counted(len(rows) - ROWS, 'more setting')}")
        return "\n  ".join([head, *lines])

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the records to a CSV file."""
        records = self.records
        columns = list(dict.fromkeys(name for record in records for name in record))
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(records)

    def frame(self) -> Any:
        """Return the records as a `pandas.DataFrame`.

        Raises:
            ImportError: If pandas is not installed.
        """
        try:
            pandas = importlib.import_module("pandas")
        except ImportError:
            raise ImportError(
                "Sweep.frame needs pandas: pip install pandas; or use to_csv"
            ) from None
        return pandas.DataFrame(self.records)

    def plot(
        self, path: str | os.PathLike[str] | None = None, key: str = "loss"
    ) -> Any:
        """Plot the final values against the settings, and the curves of the best few.

        One numeric axis gives a line with a band over seeds, two a heat map. Values of other names get lines of their
        own. Settings with diverged members are marked.

        Args:
            path: Where to save the plot, for example "sweep.png"; None to only return it.
            key: What to plot, as in `best`.

        Returns:
            The `matplotlib` figure.

        Raises:
            ImportError: If matplotlib is not installed.
        """
        from gradtx.sweeps.plot import (
            plot_of,
        )  # here, because matplotlib takes a second to import

        figure = plot_of(self, key)
        if path is not None:
            figure.savefig(path, dpi=110)
        return figure


def training_of(
    setting: Setting, member: Trial, i: int, records: Records, weights: Any
) -> Training:
    """Return the run of the i-th member of a chunk."""
    rows: list[dict[str, Any]] = []
    for step, values in records.items():
        measured = {name: value[i].item() for name, value in values.items()}
        rows.append(
            {
                **setting,
                "seed": member.seed,
                "step": step,
                **measured,
                "diverged": math.isnan(measured["loss"]),
            }
        )
    return Training(setting, member.seed, rows, weights)


def _shown(value: Any) -> str:
    """Return a value for the table; an absent one is shown as nothing."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if value == "" else describe(value)


def _counted(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"
