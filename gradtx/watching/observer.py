"""An observer of `execute`: it measures every leaf before and after each of its links."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradtx.base.complex_views import as_real
from gradtx.base.dtensor import local
from gradtx.base.errors import Path
from gradtx.base.plain import is_usual
from gradtx.execution.execute import Leaf, Operation
from gradtx.execution.leaf_rule import RuleCall, RuleOperation
from gradtx.optim.listed import ListedMember
from gradtx.watching.figures import STEP, LeafSums, Measured, Row, holds
from gradtx.watching.links import Link, without_eps

# Of each leaf, the cosine with the last update is that of at most so many entries.
SAMPLE = 4096


@dataclass
class Passage:
    """A leaf that is in one of its operations.

    Attributes:
        operation: The operation.
        before: The update before it; None of a leaf without gradient, to which a combinator may give one.
        square: The sum of squares of this.
    """

    operation: Operation
    before: Tensor | None = None
    square: Any = None


class LastRow(NamedTuple):
    """What was measured last of a leaf: often the update of the whole chain, too."""

    update: Tensor
    gradient: Tensor | None
    row: Row


class LinkObserver:
    """Measures each leaf at each link; one at a time, or a few that are alike, so that it keeps sums only.

    Args:
        links_of: Returns the link of each stage of a leaf's chain.
        last: A sample of the weights of each leaf before the last step, by name.

    Attributes:
        rows: For each leaf and link, the sums that it has measured; for leaves that were measured together, vectors.
        links: What is known of each link, by its name in the rows.
    """

    def __init__(
        self,
        links_of: Callable[[Leaf], Mapping[Path, Link]],
        last: Mapping[str, Tensor] | None = None,
    ):
        self._links_of = links_of
        self._last = {} if last is None else last
        self.links: dict[str, Link] = {}
        self.rows: dict[tuple[Measured, str], Row] = {}
        self._together: dict[str, tuple[str, ...]] = {}
        self._sums: dict[str, LeafSums] = {}
        self._common: dict[str, dict[str, Any]] = {}
        self._last_rows: dict[str, LastRow] = {}
        self._gradients: dict[str, Tensor] = {}
        self._passages: dict[str, Passage] = {}
        self._stages: dict[str, Mapping[Path, Link]] = {}
        self._without_eps: dict[RuleOperation, RuleOperation | None] = {}

    def expect(self, leaf: Leaf, names: tuple[str, ...]) -> None:
        """Expect a leaf that has the entries of several leaves, one after another."""
        self._together[leaf.name] = names

    def _count(self, leaf: Leaf) -> int:
        """Return the number of leaves whose entries a leaf has."""
        return len(self._together.get(leaf.name, (leaf.name,)))

    def enter(self, leaf: Any, operation: Operation) -> None:
        """Measure what the operation before this one has returned."""
        if not isinstance(leaf, Leaf):
            return  # many leaves in a program
        passage = self._passages.get(leaf.name)
        if passage is not None and passage.operation is operation:
            return  # it goes on after a wait
        if not self._is_measured(leaf):
            self._passages[leaf.name] = Passage(operation)
            return
        square = self._leave(leaf)
        if leaf.update is None or not operation.path:
            return
        if square is None:
            square = self._sums[leaf.name].square(leaf.update)
        self._note_gradient(leaf, leaf.update, square)
        self._passages[leaf.name] = Passage(operation, leaf.update, square)
        leaf.probed = None

    def check(self, leaf: Any) -> None:
        """Measure the last link and the whole step of a leaf."""
        if not isinstance(leaf, Leaf) or not self._is_measured(leaf):
            return
        self._leave(leaf)
        update, param = leaf.result(), leaf.inputs[1]
        if update is not None:
            if leaf.name not in self._gradients and leaf.has_gradient:  # no link
                gradient = leaf.inputs[0].to(leaf.compute_dtype)
                square = self._sums[leaf.name].square(gradient)
                self._note_gradient(leaf, gradient, square)
            row = self._row(leaf, update)
            row["before"] = row.get("gradient", row["after"])
            if param is not None:
                row |= self._movement(leaf, update, param)
            self._add(leaf, STEP, row)
        values_by_leaf: tuple[dict[str, Any], ...] = (
            self._sums,
            self._common,
            self._gradients,
            self._stages,
            self._last_rows,
            self._together,
        )
        for values in values_by_leaf:
            values.pop(leaf.name, None)

    def _add(self, leaf: Leaf, link: str, row: Row) -> None:
        self.rows[self._together.get(leaf.name, leaf.name), link] = row

    def _is_measured(self, leaf: Leaf) -> bool:
        """Whether a leaf has an update; a leaf without gradient may get one from a combinator."""
        if leaf.name not in self._sums and leaf.update is not None:
            self._begin(leaf)
        return leaf.name in self._sums

    def _begin(self, leaf: Leaf) -> None:
        gradient, param = leaf.inputs
        like: Tensor = next(t for t in (param, gradient, leaf.update) if t is not None)
        leaf.probe = self._update_without_eps
        self._stages[leaf.name] = self._links_of(leaf)
        sums = self._sums[leaf.name] = LeafSums(like, self._count(leaf))
        common = self._common[leaf.name] = {}
        if param is not None:
            common["weight"] = sums.square(param.to(leaf.compute_dtype))

    def _update_without_eps(
        self, operation: RuleOperation, call: RuleCall
    ) -> Tensor | None:
        """Return the update of a rule with almost no eps; None if it has none, or waits for a sum."""
        if operation not in self._without_eps:
            is_copy = call.leaf.only_follows
            self._without_eps[operation] = without_eps(operation, is_copy)
        other = self._without_eps[operation]
        return None if other is None else other.update_of(call)

    def _note_gradient(self, leaf: Leaf, gradient: Tensor, square: Any) -> None:
        """Note what the first link receives: the gradient, without the scale of a GradScaler."""
        if leaf.name not in self._gradients:
            self._gradients[leaf.name] = gradient
            self._common[leaf.name]["gradient"] = square

    def _leave(self, leaf: Leaf) -> Any:
        """Measure the link that a leaf has passed; return the sum of squares of its update, if it did."""
        passage = self._passages.pop(leaf.name, None)
        if passage is None or leaf.update is None or not passage.operation.path:
            return None
        operation, before = passage.operation, passage.before
        name = ".".join(operation.path)
        if operation.role == "enter":
            if leaf.update is before:
                return passage.square
            name = f"{name}.enter"
        if operation.traits.makes_gradient:
            self._gradients[leaf.name] = leaf.grad
            square = self._sums[leaf.name].square(leaf.grad)
            self._common[leaf.name]["gradient"] = square
            if leaf.grad is not leaf.update:  # it has made a direction of it, too
                passage.square = square
        row = self._row(leaf, leaf.update)
        link = self._stages[leaf.name].get(operation.path)
        if link is not None:
            self.links.setdefault(name, link)
        if before is not None:
            row["before"] = passage.square
            row |= {} if link is None else self._decision(leaf, before, link)
            if isinstance(operation, RuleOperation):
                row |= self._coding(leaf, operation, before)
        self._add(leaf, name, row)
        return row["after"]

    def _row(self, leaf: Leaf, update: Tensor) -> Row:
        """Return what is measured of any update."""
        sums, gradient = self._sums[leaf.name], self._gradients.get(leaf.name)
        last = self._last_rows.get(leaf.name)
        if last is not None and last.update is update and last.gradient is gradient:
            return dict(last.row)
        row = dict(self._common[leaf.name])
        row["after"] = sums.square(update)
        if gradient is not None and gradient.shape == update.shape:
            row["along_gradient"] = sums.product(update, gradient)
        elif gradient is not None:
            # In a space of fewer dimensions, which the gradient is not in.
            row.pop("gradient", None)
        self._last_rows[leaf.name] = LastRow(update, gradient, dict(row))
        return row

    def _decision(self, leaf: Leaf, before: Tensor, link: Link) -> dict[str, Any]:
        """Return how many entries a bound or eps decides."""
        sums, other = self._sums[leaf.name], leaf.probed
        decision = link.decided(
            sums.here(before),
            sums.here(leaf.update),
            None if other is None else sums.here(other),
        )
        if decision is None:
            return {}
        free, decided = decision
        return {"free": sums.sum(free), "decided": sums.sum(decided)}

    def _coding(
        self, leaf: Leaf, operation: RuleOperation, before: Tensor
    ) -> dict[str, Any]:
        """Return how many entries of coded slots have the smallest code although the link received something there."""
        stored = leaf.new.get(operation.path)
        if stored is None:
            return {}
        row: dict[str, Any] = {}
        codecs = operation.stage.store.codecs_of(stored, leaf)
        if not codecs:
            return row
        sums = self._sums[leaf.name]
        received = sums.here(before) != 0
        for slot, codec in codecs.items():
            if codec.per_block or codec.per_leaf:  # any code may stand for 0
                continue
            codes = local(stored[slot])
            # Of integers, one for each entry; nonzero values have codes of at least 1.
            if codes.shape == received.shape and not codes.dtype.is_floating_point:
                crushed = received & (codes.abs() <= 1)
                row["coded"] = _plus(row.get("coded"), sums.sum(received))
                row["crushed"] = _plus(row.get("crushed"), sums.sum(crushed))
        return row

    def _movement(self, leaf: Leaf, update: Tensor, param: Tensor) -> dict[str, Any]:
        """Return how many weights move, and how the update goes on with that of the last step."""
        sums = self._sums[leaf.name]
        here, weights = sums.here(update), local(param)
        moves = holds(torch.ne, here, 0)
        stays = holds(torch.eq, (weights + here).to(weights.dtype), weights)
        row = {"moving": sums.sum(moves), "lost": sums.sum(moves.mul_(stays))}
        last = self._last_sample_of(leaf)
        if last is not None:
            count = self._count(leaf)
            now = _sampled(here, count).reshape(-1)
            change = _sampled(weights, count).reshape(-1) - last
            row["along_last"] = sums.sum(now * change)
            row["sampled"] = sums.sum_of_squares(now)
            row["sampled_last"] = sums.sum_of_squares(change)
        return row

    def _last_sample_of(self, leaf: Leaf) -> Tensor | None:
        """Return the sample of the last weights of a leaf, or of leaves, one after another; None if it is unknown.

        It is that of all rows, of which a sparse gradient lists others in each step.
        """
        if isinstance(leaf.key, ListedMember):
            return None
        names = self._together.get(leaf.name)
        if names is None:
            return self._last.get(leaf.name)
        if not all(name in self._last for name in names):
            return None
        return torch.cat([self._last[name] for name in names])


def _plus(total: Any, term: Any) -> Any:
    return term if total is None else total + term


def samples_of(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return a sample of the entries of each tensor that this process has, in float32 at least.

    Those of one dtype and device share memory.
    """
    alike: dict[Any, list[int]] = defaultdict(list)
    entries = [
        tensor.detach().reshape(-1)
        if is_usual(tensor) and tensor.numel() <= SAMPLE
        else _sampled(tensor, 1).reshape(-1)
        for tensor in tensors
    ]
    for i, sampled in enumerate(entries):
        alike[sampled.dtype, sampled.device].append(i)
    samples = entries
    for (dtype, _), places in alike.items():
        joined = torch.cat([entries[i] for i in places])
        joined = joined.to(torch.promote_types(dtype, torch.float32))
        sizes = [entries[i].numel() for i in places]
        for i, sample in zip(places, joined.split(sizes), strict=True):
            samples[i] = sample
    return samples


def _sampled(tensor: Tensor, count: int) -> Tensor:
    """Return some of the entries of each leaf, a row for each."""
    tensor = tensor.detach()
    if tensor.is_complex():
        tensor = as_real(tensor)
    entries = local(tensor).reshape(count, -1)
    stride = max(1, -(-entries.shape[1] // SAMPLE))
    return entries[:, ::stride]
