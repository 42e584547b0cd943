"""`Seen`, what a watch has measured: records, tables, a plot, logs and findings."""

from __future__ import annotations

import csv
import math
import os
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from gradtx.base import torch_names as _torch
from gradtx.base.exact import Schedule
from gradtx.base.messages import aligned, describe
from gradtx.watching.figures import FIGURES, STEP
from gradtx.watching.findings import Finding, finite_median
from gradtx.watching.links import Link
from gradtx.watching.noise_scale import NoiseScale, noise_scale_of
from gradtx.watching.sample import Sample
from gradtx.watching.trained import CallsWithGradient

__all__ = ["Seen"]

LEAVES = 20  # of a table of leaves, at most
SHOWN = ("norm_before", "norm_after", "change", "decided", "cos_grad")


@dataclass
class Sink:
    """What takes measured steps, such as a `SummaryWriter`, and the number of those that it has."""

    writer: Any
    logged: int = 0


class Seen:
    """What `gradtx.watch` has measured. `print` shows what each link does, over all leaves and measured steps.

    Attributes:
        samples: The measured steps, the oldest first.
        links: What is known of each link, by its name.
        every: The number of steps from one sample to the next.
        calls: The number of calls of `step`.
        begun: Those of them that no GradScaler skipped on the host.
        skipped: Those of these that it skipped on the device.
        rounds: The rounds of training that were to call `step` once each, as far as `gradtx.diagnose` knows.
        evaluations: How often evaluation weights were asked for (`optimizer.eval()`, `eval_params()`).
        schedules: The schedules of the groups, named as the numbers of `samples`.
        uncounted: The calls that were to be measured, but in which a combinator only collected gradients.
        notes_come_first: Whether losses are noted before their step; None until the first note shows it.
        log_to: What a watch logs to, if anything.
        with_gradient: How often each leaf had a gradient.
        classes: The number of classes, if a loss that was noted is a mean cross-entropy.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> optimizer = gradtx.optim.SGD([("w", weight)], lr=0.1)
        >>> with gradtx.watch(optimizer, every=1) as seen:
        ...     for _ in range(3):
        ...         optimizer.zero_grad()
        ...         loss = weight.square().sum()
        ...         loss.backward()
        ...         optimizer.step()
        ...         seen.note(loss)
        >>> print(seen)
        3 of 3 steps measured, 1 leaf, loss 5 to 2.05
          link                    norm before  norm after  change  decided  cos grad
          scale_by_learning_rate         3.58       0.358     0.1                 -1
          step                           3.58       0.358     0.1                 -1
    """

    def __init__(self, optimizer: Any, every: int = 1):
        self._optimizer = weakref.ref(optimizer)
        self.samples: list[Sample] = []
        self.links: dict[str, Link] = {}
        self.every = every
        self.calls = self.begun = self.uncounted = self.evaluations = 0
        self.skipped: Any = 0
        self.rounds = 0
        self._params: dict[str, weakref.ref[Tensor]] = {}
        self.schedules: dict[str, Schedule] = {}
        self.notes_come_first: bool | None = None
        self.log_to: Any = None
        self.with_gradient = CallsWithGradient()
        self.classes: int | None = None
        self._noted: Any = None
        self._notes_precede = False
        self._sinks: list[Sink] = []
        self._close: Callable[[], None] | None = None

    # What a watch does with it.

    def _add(self, sample: Sample, links: Mapping[str, Link]) -> None:
        """Take the measurements of a step, and what is known of its links."""
        self.links = {**links, **self.links}
        if self._noted is not None and (sample.loss is None or self._notes_precede):
            sample.loss, self._noted = self._noted, None
        self.samples.append(sample)

    def _note_params(self, params: Mapping[str, Tensor]) -> None:
        """Note the parameters of the optimizer, which this does not keep alive."""
        self._params = {name: weakref.ref(param) for name, param in params.items()}

    def _on_close(self, close: Callable[[], None]) -> None:
        """Set what ends the watch."""
        self._close = close

    @property
    def optimizer(self) -> Any:
        """The optimizer, as long as something else keeps it.

        Raises:
            ValueError: If nothing does.
        """
        optimizer = self._optimizer()
        if optimizer is None:
            raise ValueError(
                "diagnose: the optimizer that was watched is gone; call diagnose while it exists"
            )
        return optimizer

    @property
    def params(self) -> dict[str, Tensor]:
        """The parameters by name, as long as something else keeps them."""
        params = {name: param() for name, param in self._params.items()}
        return {name: param for name, param in params.items() if param is not None}

    @property
    def updates(self) -> int:
        """The calls of `step` that no GradScaler skipped."""
        return self.begun - int(self.skipped)

    # What a user does with it.

    def __enter__(self) -> Seen:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def close(self) -> None:
        """End the watch; what was measured stays."""
        if self._close is not None:
            self._close()
            self._close = None
            if self.log_to is not None:
                self.log(self.log_to)

    def note(self, loss: Any) -> None:
        """Say the loss of each step, before or after it, unless `step` gets it with a closure or as `value=`.

        A loss that is noted before each step precedes that of a closure, which trainers divide by the number of
        micro-batches. With several before a step, the last one is that of the step.
        """
        if isinstance(loss, Tensor) and self.classes is None:
            self.classes = _torch.classes_of(loss)
        if hasattr(loss, "detach"):
            loss = loss.detach()
        is_of_last = self._lacks_loss()
        if self.notes_come_first is None:
            self._notes_precede = self.calls == 0
            has_other_loss = self._is_last_measured() and not is_of_last
            self.notes_come_first = self.calls == 0 or has_other_loss
        if is_of_last:
            self.samples[-1].loss = loss
            self._log_finished()
        elif self.notes_come_first:
            self._noted = loss

    def _is_last_measured(self) -> bool:
        """Whether the last call of `step` was measured."""
        return bool(self.samples) and self.samples[-1].at_call == self.calls - 1

    def _lacks_loss(self) -> bool:
        """Whether the last call of `step` was measured, and its loss is not known."""
        return self._is_last_measured() and self.samples[-1].loss is None

    @property
    def steps(self) -> list[int]:
        """The numbers of the measured steps."""
        return [sample.step for sample in self.samples]

    @property
    def records(self) -> list[dict[str, Any]]:
        """A dict for each measured step, leaf and link: `step`, `leaf`, `link`, and the figures; see `watch`."""
        records: list[dict[str, Any]] = []
        for sample in self.samples:
            for i, (leaf, link) in enumerate(sample.rows):
                row = {name: values[i] for name, values in sample.figures.items()}
                records.append({"step": sample.step, "leaf": leaf, "link": link, **row})
        return records

    @property
    def solves(self) -> list[dict[str, Any]]:
        """A dict for each measured step and link with a linear system: `step`, `link`, and what `watch` lists."""
        return [
            {"step": sample.step, "link": link, **measured}
            for sample in self.samples
            for link, measured in sample.solves.items()
        ]

    @property
    def losses(self) -> list[float]:
        """The loss of each measured step; NaN where it is not known."""
        return [sample.loss_or_nan() for sample in self.samples]

    def __repr__(self) -> str:
        if not self.samples:
            return f"no step measured in {self.calls} calls of step"
        leaves = {leaf for sample in self.samples for leaf, _ in sample.rows}
        count = "1 leaf" if len(leaves) == 1 else f"{len(leaves)} leaves"
        head = f"{len(self.samples)} of {self.calls} steps measured, {count}"
        losses = [loss for loss in self.losses if not math.isnan(loss)]
        if losses:
            head += f", loss {losses[0]:.3g} to {losses[-1]:.3g}"
        table = [["link", *(name.replace("_", " ") for name in SHOWN)]]
        links = dict.fromkeys(
            link for sample in self.samples for link in sample.of_links
        )
        for link in links:
            rows = [
                sample.of_links[link]
                for sample in self.samples
                if link in sample.of_links
            ]
            table.append([link, *(_median_of(rows, name) for name in SHOWN)])
        return "\n  ".join([head, *_with_names_left(table), *_solves_in_words(self)])

    def table(self) -> str:
        """Return the medians of each leaf's steps as a table, the largest update / weight first.

        Example:
            >>> model = torch.nn.Linear(2, 1)
            >>> optimizer = gradtx.optim.SGD(model.named_parameters(), lr=0.0)
            >>> with gradtx.watch(optimizer) as seen:
            ...     model(torch.ones(2)).sum().backward()
            ...     optimizer.step()
            >>> print(seen.table())
            leaf    gradient  update  update to weight  cos grad  cos last  lost
            weight      1.41       0                 0
            bias           1       0                 0
        """
        shown = {
            "gradient": "norm_before",
            "update": "norm_after",
            "update to weight": "update_to_weight",
            "cos grad": "cos_grad",
            "cos last": "cos_last",
            "lost": "lost",
        }
        rows_of: dict[str, list[dict[str, float]]] = {}
        for sample in self.samples:
            for leaf, row in sample.of_leaves.items():
                rows_of.setdefault(leaf, []).append(row)

        def size(leaf: str) -> float:
            return -finite_median([row["update_to_weight"] for row in rows_of[leaf]])

        leaves = sorted(rows_of, key=size)
        table = [["leaf", *shown]]
        for leaf in leaves[:LEAVES]:
            rows = rows_of[leaf]
            table.append([leaf, *(_median_of(rows, name) for name in shown.values())])
        lines = _with_names_left(table)
        if len(leaves) > LEAVES:
            lines.append(f"... and {len(leaves) - LEAVES} more leaves")
        return "\n".join(lines)

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the records to a CSV file; figures that were not measured are empty."""
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ("step", "leaf", "link", *FIGURES))
            writer.writeheader()
            for record in self.records:
                writer.writerow(
                    {
                        name: "" if value != value else value
                        for name, value in record.items()
                    }
                )

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Plot update / weight of each leaf, what each link does to the norm, learning rates, and the loss.

        Args:
            path: Where to save the plot, for example "run.png"; None to only return it.

        Returns:
            The `matplotlib` figure.

        Raises:
            ImportError: If matplotlib is not installed.
            ValueError: If no step was measured.
        """
        self._check_measured("plot")
        from gradtx.watching.plot import plot_of  # matplotlib takes a second to import

        figure = plot_of(self.samples)
        if path is not None:
            figure.savefig(path, dpi=100)
        return figure

    def _check_measured(self, who: str) -> None:
        """Check that a step was measured.

        Raises:
            ValueError: If none was.
        """
        if self.samples:
            return
        why = f"step was called {self.calls} times"
        if self.uncounted:
            why += f", and none of {self.uncounted} calls updated weights: accumulate(every=...) never completed"
        raise ValueError(
            f"{who}: no step was measured; {why}; train inside the block of gradtx.watch(optimizer)"
        )

    def diagnose(self, model: nn.Module | None = None) -> list[Finding]:
        """Return what is wrong with the run in plain words, the worst first; `print` shows a numbered list.

        Args:
            model: The model, from which the roles of its matrices are known; by default the modules in memory that hold
                the parameters. Without any, names tell the roles.

        Returns:
            The findings; see `gradtx.Finding`. A healthy run has none.

        Raises:
            ValueError: If no step was measured.

        Example:
            >>> weight = torch.nn.Parameter(torch.eye(3))
            >>> tx = gradtx.chain(gradtx.clip_by_global_norm(0.001), gradtx.sgd(lr=1.0))
            >>> optimizer = gradtx.as_optimizer(tx, [("w", weight)])
            >>> with gradtx.watch(optimizer, every=1) as seen:
            ...     for _ in range(3):
            ...         optimizer.zero_grad()
            ...         weight.square().sum().backward()
            ...         optimizer.step()
            >>> print(seen.diagnose()[0].kind)
            bound always acts
        """
        from gradtx.watching.faults import findings_of

        return findings_of(self, model)

    def noise_scale(self, batch_size: int) -> NoiseScale:
        """Return the noise scale of the gradient, from the micro-batches that `accumulate` averages in measured steps.

        As `gradtx.noise_scale`, of whose formula only the squared norms of the gradients and of their mean are needed,
        so that no gradient is kept. Noise and square are means over the measured steps; the error is that of a
        jackknife over them, from three on.

        Args:
            batch_size: The number of examples of each micro-batch.

        Returns:
            A `NoiseScale`, with the leaves that `accumulate` receives as they are.

        Raises:
            ValueError: If no measured step has averaged gradients, or `batch_size` is below 1.

        Example:
            >>> weight = torch.nn.Parameter(torch.zeros(2))
            >>> tx = gradtx.accumulate(gradtx.sgd(lr=0.1), every=2)
            >>> optimizer = gradtx.as_optimizer(tx, [("w", weight)])
            >>> with gradtx.watch(optimizer, every=1) as seen:
            ...     for gradient in ([1.0, 1.0], [1.0, 3.0]):
            ...         weight.grad = torch.tensor(gradient)
            ...         optimizer.step()
            >>> result = seen.noise_scale(batch_size=8)
            >>> result.noise, result.square  # 8 (1 + 1), and 1 + 4 - 16 / 16
            (16.0, 4.0)
        """
        return noise_scale_of(self.samples, batch_size)

    def log(self, writer: Any) -> None:
        """Log the measured steps that this writer does not have yet.

        The keys are `watch/loss`, `watch/group/<name>`, `watch/link/<link>/<figure>`, over all leaves together, and
        `watch/leaf/<leaf>/<figure>`, of a leaf's whole step.

        Args:
            writer: A TensorBoard `SummaryWriter`, or any function that takes a dict of floats, which then also has the
                number of the step as "watch/step".

        Raises:
            TypeError: If `writer` is neither.
        """
        check_writer("log", writer)
        self._log_until(len(self.samples), writer)

    def _log_finished(self) -> None:
        """Log the measured steps as a watch does: once the loss of a step is known, or if no note of it is expected."""
        if self.log_to is not None:
            may_be_noted = self.notes_come_first is False or self.calls == 1
            waits = self._lacks_loss() and may_be_noted
            self._log_until(len(self.samples) - waits, self.log_to)

    def _log_until(self, end: int, writer: Any) -> None:
        sink = next((sink for sink in self._sinks if sink.writer == writer), None)
        if sink is None:
            sink = Sink(writer)
            self._sinks.append(sink)
        add_scalar = getattr(writer, "add_scalar", None)
        for sample in self.samples[sink.logged : end]:
            sink.logged += 1
            values = _logged_values(sample)
            if add_scalar is None:
                writer({**values, "watch/step": float(sample.step)})
                continue
            for name, value in values.items():
                add_scalar(name, value, sample.step)

    def postfix(self) -> dict[str, str]:
        """Return the last measurement in a few words, for a progress bar: `bar.set_postfix(seen.postfix())`."""
        if not self.samples:
            return {}
        last, words = self.samples[-1], {}
        if not math.isnan(last.loss_or_nan()):
            words["loss"] = f"{last.loss_or_nan():.3g}"
        step = last.of_links.get(STEP)
        if step is not None:
            words["grad"] = f"{step['norm_before']:.2g}"
            words["update/weight"] = f"{step['update_to_weight']:.1e}"
        return words


def check_writer(who: str, writer: Any) -> None:
    """Check that something takes what is logged.

    Raises:
        TypeError: If it does not.
    """
    if not (callable(writer) or hasattr(writer, "add_scalar")):
        raise TypeError(
            f"{who}: needs a SummaryWriter or a function that takes a dict of floats, got {describe(writer)}"
        )


def _logged_values(sample: Sample) -> dict[str, float]:
    """Return the values of a step by their names in a log, without those that were not measured."""
    values = {"watch/loss": sample.loss_or_nan()}
    for name, number in sample.groups.items():
        values[f"watch/group/{name}"] = number
    kinds = (
        ("link", sample.of_links),
        ("link", sample.solves),
        ("leaf", sample.of_leaves),
    )
    for kind, rows in kinds:
        for owner, row in rows.items():
            for name, value in row.items():
                values[f"watch/{kind}/{owner}/{name}"] = value
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _solves_in_words(seen: Seen) -> list[str]:
    """Return a line for each link with a linear system: the first and last values, and how many trials failed."""
    by_link: dict[str, list[dict[str, Any]]] = {}
    for record in seen.solves:
        by_link.setdefault(record["link"], []).append(record)
    lines: list[str] = []
    for link, records in by_link.items():
        parts: list[str] = []
        for name in ("damping", "radius", "condition", "products"):
            if name in records[-1]:
                first, last = records[0].get(name, math.nan), records[-1][name]
                parts.append(f"{name} {first:.2g} to {last:.2g}")
        if "rejected" in records[-1]:
            rejected = sum(map(bool, (record["rejected"] for record in records)))
            parts.append(f"{rejected} of {len(records)} trials rejected")
        lines.append(f"{link}: {', '.join(parts)}")
    return lines


def _median_of(rows: list[dict[str, float]], name: str) -> str:
    """Return the median of a figure as text; nothing if it was not measured."""
    value = finite_median([row[name] for row in rows])
    return "" if math.isnan(value) else f"{value:.3g}"


def _with_names_left(table: list[list[str]]) -> list[str]:
    """Return the lines of a table with names to the left, and numbers to the right."""
    width = max(len(row[0]) for row in table)
    return aligned([[row[0].ljust(width), *row[1:]] for row in table], str.rjust)
