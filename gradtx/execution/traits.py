"""What combinators and back ends may assume of an operation, and of a chain of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

import torch

# Why the rows of a leaf cannot be updated without the others.
READS_LEAF = "it computes with the whole leaf"
SUMS_ROWS = "it sums over all rows"
READS_EXTRA = "it reads a tensor of the whole leaf besides the gradient"
SYNCHRONIZES = "it synchronizes all rows in the same steps"
RESTARTS = "it restarts all rows in the same steps"
# Why programs may not run an operation.
DRAWS = "it draws random numbers, which follow from the name of a leaf"
ONLY_LISTS = "it is declared for programs over lists, which skip work that is not due"


def reason_for_all_rows(by_rows: bool | str) -> str:
    """Return why all rows are needed, from the option `by_rows`; empty if they are not."""
    if isinstance(by_rows, str):
        return by_rows
    return "" if by_rows else READS_LEAF


def empty_dict() -> dict[str, Any]:
    """Return an empty dict; as the default of a field, dynamo accepts this function, but not `dict[str, Any]`."""
    return {}


# How a trait is declared: with its default, and with what a chain makes of those of its operations. With a default
# alone, it means nothing for a chain, which keeps the default.


def any_of() -> bool:
    """Declare a trait that a chain has if any of its operations has it."""
    return field(default=False, metadata={"of_chain": any})


def all_of() -> bool:
    """Declare a trait that a chain has if all of its operations have it."""
    return field(default=True, metadata={"of_chain": all})


def first_of() -> str:
    """Declare a text, of which a chain has the first that is not empty."""
    return field(default="", metadata={"of_chain": _first})


def union_of() -> Mapping[str, Any]:
    """Declare values by name, of which a chain has all names."""
    return field(default_factory=empty_dict, metadata={"of_chain": _union})


def _first(texts: Iterable[str]) -> str:
    return next(filter(None, texts), "")


def _union(mappings: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
    union = empty_dict()
    for mapping in mappings:
        union.update(mapping)
    return union


@dataclass(frozen=True)
class Traits:
    """The traits of an operation, or of a chain of operations.

    Those of an operation are declared once, from a decorator's options, and read by all that run it; an operation that
    wraps others derives its own from theirs. Those of a chain are `combined` as each trait declares.

    Attributes:
        elementwise: Whether the entries of a leaf are independent, except for sums over leaves.
        takes_complex: Whether it may process real views of complex leaves: it depends neither on rows nor on the
            number of dimensions.
        takes_none: Whether it processes a leaf without a gradient; otherwise such a leaf skips it.
        template_slot: A slot with the parameter's shape, if the operation itself needs leaves without a gradient.
        refusal: Why programs may not run it for all leaves, in words; empty if they may. See `Operation.refusal`.
        skippable: Whether they may nevertheless, if they skip work that is not due.
        capturable: Whether a CUDA graph may replay it: it reads no value on the host, and no factorization in it has
            the host wait.
        waits_at_first: Whether this holds only from the second update of a leaf on.
        compares_rates: Whether it keeps the learning rate of construction, to compare later ones with it.
        agree: Hyperparameters that must be the same in all groups of an optimizer.
        keeps_slots: Whether it keeps slots.
        constants: The slots that no step changes.
        random: Whether it draws random numbers.
        positional: Whether results depend on an entry's index in the whole tensor.
        checks_extras: Whether its `check` may raise an error.
        waits: Whether it needs all leaves at once: for a sum over leaves, or as a rule for whole trees.
        sums_late: Whether it sums over all leaves for its next step, without waiting in the current one.
        of_leaf: Whether a sharded leaf waits at it for its own shards only, which ranks exchange without other leaves.
        exchanges: Whether it needs tensors of other ranks in this step, which no program runs then.
        has_clock: Whether it starts an inner clock, whose values are stored at its path.
        restarts_inner: Whether the operations after it may restart from their initial state.
        hessian_period: The number of steps from one read of `hessian_diag` to the next, starting with the first step;
            0 if it never reads it.
        at_owner: Whether the owner of a sharded leaf runs it, on the whole tensor.
        begins_at_owner: Whether it is the first that the owner runs: no program merges it with what comes before.
        needs_shape: Whether entries are independent, but their results depend on the shape of the whole leaf.
        owner_reads: The tensors of a leaf, "param" or "grad", that its owner needs in addition to the update.
        wire: The dtype of messages with its input and its result, if both fit without loss; None for their own.
        makes_gradient: Whether its result replaces the gradient that later links read, which it computes from other
            inputs; its sums over leaves may be vectors.
        prepares: Whether its `prepare` is called with all leaves before any is processed.
        closure_extra: The extra as which it takes the closure of an optimizer's step, which then calls no backward:
            "value_fn", "residual_fn"; empty if it takes none.
        needs_all_rows: Why it cannot update some rows of a leaf, along the first dimension, without the others, in
            words; empty if it can. A sparse gradient has some rows.
        moving_slot: The slot whose rows, unless they are 0, move rows without a gradient, as a momentum does.
    """

    elementwise: bool = all_of()
    takes_complex: bool = all_of()
    takes_none: bool = any_of()
    template_slot: str | None = None
    refusal: str = first_of()
    skippable: bool = False
    capturable: bool = all_of()
    waits_at_first: bool = any_of()
    compares_rates: bool = any_of()
    agree: Mapping[str, Any] = union_of()
    keeps_slots: bool = any_of()
    constants: tuple[str, ...] = ()
    random: bool = any_of()
    positional: bool = any_of()
    checks_extras: bool = any_of()
    waits: bool = any_of()
    sums_late: bool = any_of()
    of_leaf: bool = any_of()
    exchanges: bool = any_of()
    has_clock: bool = any_of()
    restarts_inner: bool = any_of()
    hessian_period: int = 0
    at_owner: bool = any_of()
    begins_at_owner: bool = False
    needs_shape: bool = any_of()
    owner_reads: tuple[str, ...] = ()
    wire: torch.dtype | None = None
    makes_gradient: bool = any_of()
    prepares: bool = any_of()
    closure_extra: str = first_of()
    needs_all_rows: str = first_of()
    moving_slot: str | None = None

    @property
    def compiles(self) -> bool:
        """Whether programs may run it for all leaves."""
        return not self.refusal

    @property
    def has_sums(self) -> bool:
        """Whether it sums over leaves, for this step or for the next one."""
        return self.waits or self.sums_late

    @staticmethod
    def combined(links: Iterable[Traits]) -> Traits:
        """Return the traits of a chain of operations with these traits."""
        links = list(links)
        values: dict[str, Any] = {}
        for name, of_chain in OF_CHAIN.items():
            values[name] = of_chain([getattr(link, name) for link in links])
        return Traits(**values)


# The traits that a chain has, and how it combines those of its operations.
OF_CHAIN: Final[dict[str, Callable[[list[Any]], Any]]] = {
    trait.name: trait.metadata["of_chain"]
    for trait in fields(Traits)
    if "of_chain" in trait.metadata
}
