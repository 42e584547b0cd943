"""What is known of one measured step."""

from __future__ import annotations

import functools
import itertools
import math
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradtx.base.dtensor import local
from gradtx.distributed.sums import stacked
from gradtx.watching.figures import FIGURES, STEP, SUMS, Measured, names_of

Sums = Mapping[tuple[Measured, str], Mapping[str, Any]]
ALL = "all"  # the name of all leaves together


class Sample:
    """The measurements of one step. They stay on the device until they are read.

    Args:
        step: The number of the step.
        sums: The sums of each leaf at each link.
        groups: The numbers of the parameter groups, by name.
        loss: The loss of the step, if it is known.
        without_gradient: The names of the leaves that have no gradient.
        at_call: The number of calls of `step` before this one.
        per: "leaf", or "all" for the rows of all leaves together.
        micro_batches: The number of gradients that `accumulate` has averaged, if they were measured.
        kept: The products of the gradients with those before, if nothing has reset these; see `StepGradients`.
        earlier: The leaves that had a gradient in the step before this one, and the squares of samples of these, if
            that step is known and was not measured.
        order: The leaves whose rows come first, in their order.
        solves: What links with a linear system have measured of it, by link.

    Attributes:
        step, groups, loss, without_gradient, at_call, micro_batches, kept: As above.
        rows: The leaf and the link of each row, in the order of the leaves and links.
    """

    def __init__(
        self,
        step: int,
        sums: Sums,
        groups: Mapping[str, float],
        loss: Any = None,
        without_gradient: Sequence[str] = (),
        at_call: int = 0,
        per: str = "leaf",
        micro_batches: int = 1,
        kept: Tensor | None = None,
        earlier: tuple[list[str], Tensor] | None = None,
        order: Sequence[str] = (),
        solves: Mapping[str, Mapping[str, Tensor]] | None = None,
    ):
        self._solves = {} if solves is None else solves
        self.kept = kept
        self._earlier = earlier
        self.micro_batches = micro_batches
        self.at_call = at_call
        self.step = step
        self.groups = dict(groups)
        self.loss = loss
        self.without_gradient = list(without_gradient)
        self.rows = _rows_of(tuple(sums), tuple(order), per)
        numbers = {row: i for i, row in enumerate(self.rows)}
        columns = {name: j for j, name in enumerate(SUMS)}
        places: list[tuple[list[int], int]] = []
        terms: list[Any] = []
        for (leaves, link), row in sums.items():
            names = (ALL,) * len(names_of(leaves)) if per == "all" else names_of(leaves)
            rows = [numbers[name, link] * len(SUMS) for name in names]
            for name, term in row.items():
                places.append((rows, columns[name]))
                terms.append(term)
        self._table: Tensor = torch.zeros(0)
        if terms:
            self._table = _added_up(terms, places, len(self.rows) * len(SUMS))

    @functools.cached_property
    def sums(self) -> Tensor:
        """The sums, a row for each of `rows` and a column for each of `SUMS`."""
        return self._table.to("cpu", torch.float64).view(-1, len(SUMS))

    @functools.cached_property
    def figures(self) -> dict[str, list[float]]:
        """Each figure of each row."""
        return figures_of(self.sums)

    @functools.cached_property
    def solves(self) -> dict[str, dict[str, float]]:
        """What links with a linear system have measured of it, by link."""
        return {
            link: {name: float(value) for name, value in measured.items()}
            for link, measured in self._solves.items()
        }

    @functools.cached_property
    def of_links(self) -> dict[str, dict[str, float]]:
        """The figures of each link, and of the whole step, over all leaves together."""
        names = list(dict.fromkeys(link for _, link in self.rows))
        names.sort(key=STEP.__eq__)  # last
        index = torch.tensor([names.index(link) for _, link in self.rows])
        total = torch.zeros(len(names), len(SUMS), dtype=torch.float64)
        total.index_add_(0, index.to(torch.int64), self.sums)
        figures = figures_of(total)
        return {
            link: {name: values[i] for name, values in figures.items()}
            for i, link in enumerate(names)
        }

    @functools.cached_property
    def of_leaves(self) -> dict[str, dict[str, float]]:
        """The figures of the whole step of each leaf."""
        of_leaves: dict[str, dict[str, float]] = {}
        for i, (leaf, link) in enumerate(self.rows):
            if link == STEP:
                of_leaves[leaf] = {
                    name: values[i] for name, values in self.figures.items()
                }
        return of_leaves

    @functools.cached_property
    def active_before(self) -> set[str]:
        """The leaves that are known to have had a gradient other than 0 in the step before this one."""
        if self._earlier is None:
            return set()
        leaves, squares = self._earlier
        pairs = zip(leaves, squares.tolist(), strict=True)
        return {leaf for leaf, square in pairs if square != 0}

    def loss_or_nan(self) -> float:
        """Return the loss as a number; NaN if it is not known."""
        if isinstance(self.loss, Tensor):
            self.loss = self.loss.item()
        return math.nan if self.loss is None else float(self.loss)


def prefixes_of(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what precedes the names of each group's numbers: nothing, its label, or its index."""
    if len(groups) == 1:
        return [""]
    labels = [str(group.get("label", i)) for i, group in enumerate(groups)]
    return [
        f"{label}." if labels.count(label) == 1 else f"{label}_{i}."
        for i, label in enumerate(labels)
    ]


def figures_of(sums: Tensor) -> dict[str, list[float]]:
    """Return the figures of each row of a table of sums."""
    columns = dict(zip(SUMS, sums.unbind(1), strict=True))
    return {name: figure(columns).tolist() for name, figure in FIGURES.items()}


# Steps of a run share their rows: Python's garbage collector looks at all that a run keeps.
@functools.lru_cache(maxsize=32)
def _rows_of(
    measured: tuple[tuple[Measured, str], ...], order: tuple[str, ...], per: str
) -> tuple[tuple[str, str], ...]:
    """Return the leaf and the link of each row, by leaf."""
    rows = [(leaf, link) for leaves, link in measured for leaf in names_of(leaves)]
    if per == "all":
        return tuple(dict.fromkeys((ALL, link) for _, link in rows))
    if order:
        place_of = {leaf: i for i, leaf in enumerate(order)}
        rows.sort(key=lambda row: place_of.get(row[0], len(order)))
    return tuple(rows)


def _added_up(
    terms: list[Any], places: list[tuple[list[int], int]], size: int
) -> Tensor:
    """Return a table with the sum of the terms at each place, on their device, by one message for each layout.

    Args:
        terms: The terms, each a number or a vector.
        places: Where the rows of each begin, and its column.
        size: The entries of the table.
    """
    device = local(terms[0]).device
    is_alone = [not term.shape for term in terms]
    alone = [term.to(device) for term in itertools.compress(terms, is_alone)]
    parts = [stacked(alone)] if alone else []
    parts += [term.to(device) for term in terms if term.shape]
    index: list[int] = []
    for of_number in (True, False):
        for (rows, column), is_number in zip(places, is_alone, strict=True):
            if is_number is of_number:
                index += [row + column for row in rows]
    values = torch.cat(parts)
    # The host does not wait for the device: it has copied the places before this returns.
    # An array is several times faster to convert than a list.
    where = torch.frombuffer(array("q", index), dtype=torch.int64)
    where = where.to(device, non_blocking=True)
    return torch.zeros(size, dtype=values.dtype, device=device).index_add_(
        0, where, values
    )
