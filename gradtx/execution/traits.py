"""What combinators and back ends may assume of an operation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

# Why programs may not run an operation.
DRAWS = "it draws random numbers, which follow from the name of a leaf"
ONLY_LISTS = "it is declared for programs over lists, which skip work that is not due"


def empty_dict() -> dict[str, Any]:
    """Return an empty dict; as the default of a field, dynamo accepts this function, but not `dict[str, Any]`."""
    return {}


@dataclass(frozen=True)
class Traits:
    """The traits of an operation: declared once, from a decorator's options, and read by all that run it.

    An operation that wraps others derives its own from theirs.

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
    """

    elementwise: bool = True
    takes_complex: bool = True
    takes_none: bool = False
    template_slot: str | None = None
    refusal: str = ""
    skippable: bool = False
    capturable: bool = True
    waits_at_first: bool = False
    compares_rates: bool = False
    agree: Mapping[str, Any] = field(default_factory=empty_dict)
    keeps_slots: bool = False
    constants: tuple[str, ...] = ()
    random: bool = False
    positional: bool = False
    checks_extras: bool = False
    waits: bool = False
    sums_late: bool = False
    of_leaf: bool = False
    exchanges: bool = False
    has_clock: bool = False
    restarts_inner: bool = False
    hessian_period: int = 0
    at_owner: bool = False
    begins_at_owner: bool = False
    needs_shape: bool = False
    owner_reads: tuple[str, ...] = ()
    wire: torch.dtype | None = None
    makes_gradient: bool = False
    prepares: bool = False

    @property
    def compiles(self) -> bool:
        """Whether programs may run it for all leaves."""
        return not self.refusal

    @property
    def has_sums(self) -> bool:
        """Whether it sums over leaves, for this step or for the next one."""
        return self.waits or self.sums_late
