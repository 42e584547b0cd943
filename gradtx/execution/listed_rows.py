"""Sparse gradients: the rows that one lists are a leaf, with the same rows of the weights and of the slots."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradtx.base.dtensor import is_sharded
from gradtx.base.torch_names import kept_from_dynamo
from gradtx.execution.execute import Operation
from gradtx.execution.leaf_rule import RuleOperation

DENSE = "call to_dense() on it, which takes the memory of the whole table"


@dataclass(frozen=True)
class ListedRows:
    """The rows that a sparse gradient lists.

    Attributes:
        index: Their positions along the first dimension of the parameter, in order, each once.
        values: The rows of the gradient.
    """

    index: Tensor
    values: Tensor

    @classmethod
    def of(cls, what: str, gradient: Tensor, param: Tensor | None) -> ListedRows:
        """Return the rows of a gradient; those that it lists more than once are added up.

        Args:
            what: The gradient, in words, for errors.
            gradient: A tensor with a sparse layout.
            param: Its parameter, if it is known.

        Raises:
            RuntimeError: If it does not consist of rows.
            ValueError: If it does not fit the parameter.
        """
        _check(what, gradient, param)
        gradient = gradient.detach()
        # Before torch reads them: a negative one may end the process.
        _check_range(what, gradient._indices()[0], len(gradient))
        # A tensor that claims to be coalesced need not be.
        if gradient.is_coalesced() and not _is_in_order(gradient.indices()[0]):
            gradient = gradient._coalesced_(False)
        gradient = gradient.coalesce()
        index = gradient.indices()[0]
        return cls(index, gradient.values())

    def with_moving(self, slots: Iterable[Tensor | Iterable[Tensor]]) -> ListedRows:
        """Return these rows and those in which some slot is not 0, whose gradient is 0.

        Args:
            slots: Slots; of a coded one, its decoded rows, part by part.
        """
        moving = [_nonzero_rows(slot) for slot in slots]
        index = torch.cat([self.index, *moving]).unique()
        if len(index) == len(self.index):
            return self
        values = self.values.new_zeros((len(index), *self.values.shape[1:]))
        values[torch.searchsorted(index, self.index)] = self.values
        return ListedRows(index, values)


def _check(what: str, gradient: Tensor, param: Tensor | None) -> None:
    """Check that a gradient consists of rows of its parameter.

    Raises:
        RuntimeError, ValueError: As in `ListedRows.of`.
    """
    if gradient.layout != torch.sparse_coo:
        raise RuntimeError(
            f"{what} has layout {gradient.layout}, but only rows of torch.sparse_coo can be updated alone, as "
            f"nn.Embedding(sparse=True) returns them; {DENSE}"
        )
    if gradient.sparse_dim() != 1:
        raise RuntimeError(
            f"{what} is sparse in {gradient.sparse_dim()} dimensions, but only rows can be updated alone, which are "
            f"sparse in the first; {DENSE}"
        )
    if param is None:
        return
    if is_sharded(param):
        raise RuntimeError(
            f"{what} is sparse, but its parameter is sharded; {DENSE}, or keep the parameter whole on each rank"
        )
    if gradient.shape != param.shape:
        raise ValueError(
            f"{what} has shape {tuple(gradient.shape)}, but its parameter has shape {tuple(param.shape)}"
        )
    if gradient.device != param.device:
        raise ValueError(
            f"{what} is on {gradient.device}, but its parameter is on {param.device}"
        )


def _check_range(what: str, index: Tensor, count: int) -> None:
    """Check that rows are among the `count` rows of a parameter.

    Raises:
        ValueError: If one is not.
    """
    if not len(index):
        return
    first, last = torch.stack(index.aminmax()).tolist()
    if first < 0 or last >= count:
        raise ValueError(
            f"{what} lists row {first if first < 0 else last}, but its parameter has rows 0 to {count - 1}"
        )


def _is_in_order(index: Tensor) -> bool:
    return bool((index[1:] > index[:-1]).all())


def _nonzero_rows(slot: Tensor | Iterable[Tensor]) -> Tensor:
    """Return the rows of a slot that are not 0, with little memory."""
    found: list[Tensor] = []
    start = 0
    for part in _in_parts(slot) if isinstance(slot, Tensor) else slot:
        found.append(_largest_of_rows(part).nonzero()[:, 0] + start)
        start += len(part)
    return torch.cat(found)


def _in_parts(slot: Tensor) -> Sequence[Tensor]:
    """Return a slot in parts that fit into a cache; on an accelerator, in few."""
    width = max(math.prod(slot.shape[1:]), 1)
    entries = 2**18 if slot.device.type == "cpu" else 2**26
    return slot.split(max(entries // width, 1))


def _largest_of_rows(part: Tensor) -> Tensor:
    """Return the largest magnitude of each row."""
    rows = part.reshape(len(part), math.prod(part.shape[1:]))
    if not rows.numel():
        return rows.new_zeros(len(rows))
    return rows.abs().amax(1)


# The words that rows are copied in, the widest first: torch copies one at a time.
WORDS = (torch.complex128, torch.float64)


def put_rows(tensor: Tensor, index: Tensor, rows: Tensor) -> None:
    """Write rows into a tensor in place, without a graph."""
    if tensor.itemsize == 1:  # torch copies no rows of float8
        tensor, rows = tensor.view(torch.uint8), rows.view(torch.uint8)
    if tensor.ndim > 1 and tensor.is_contiguous() and rows.is_contiguous():
        for word in WORDS:
            if _consists_of(tensor, word) and _consists_of(rows, word):
                tensor, rows = tensor.view(word), rows.view(word)
                break
    tensor.index_copy_(0, index, rows)


def _consists_of(tensor: Tensor, word: torch.dtype) -> bool:
    """Whether a contiguous tensor can be seen as wider words."""
    # The strides of dimensions of size 1 may be any.
    entries = tensor.shape[-1], tensor.storage_offset(), *tensor.stride()[:-1]
    is_whole = not any(count * tensor.itemsize % word.itemsize for count in entries)
    return is_whole and tensor.itemsize < word.itemsize


@kept_from_dynamo
def with_rows_added(what: str, param: Tensor, update: Tensor) -> Tensor:
    """Return a parameter with a sparse update, rounded once to its dtype; other rows keep their bits.

    Raises:
        RuntimeError, ValueError: As in `ListedRows.of`.
    """
    listed = ListedRows.of(what, update, param)
    rows = param.index_select(0, listed.index) + listed.values
    return param.index_copy(0, listed.index, rows.to(param.dtype))


def check_takes_rows(
    who: str, leaf: str, operations: Sequence[Operation], what: str = "parameter"
) -> None:
    """Check that all operations of a leaf may update some of its rows without the others.

    Raises:
        RuntimeError: If one may not.
    """
    for operation in operations:
        reason = operation.traits.needs_all_rows
        if reason:
            raise RuntimeError(
                f"{who}: {what} {leaf!r} has a sparse gradient, but {operation.path[-1]} cannot update its rows alone: "
                f"{reason}; use another optimizer for it, such as sparse_adam in a partition, or {DENSE}"
            )


def moving_slots(operations: Iterable[Operation]) -> list[tuple[Any, str]]:
    """Return (path, slot) of the slots whose rows move rows without a gradient."""
    slots = {}  # once each: both ends of a frame have the slots of the frame
    for operation in operations:
        if operation.traits.moving_slot is not None:
            slots[operation.path, operation.traits.moving_slot] = None
    return list(slots)


# The least number of rows that a leaf is filled up to.
LEAST_ROWS = 16


def missing_rows(count: int) -> int:
    """Return how many rows of zeros to add, so that few programs run leaves of any number of rows."""
    return max(1 << (count - 1).bit_length(), LEAST_ROWS) - count


def with_zeros(rows: Tensor, added: int) -> Tensor:
    """Return rows with some rows of zeros behind them."""
    if not added:
        return rows
    return torch.cat([rows, rows.new_zeros((added, *rows.shape[1:]))])


def zeros_add_nothing(operations: Iterable[Operation]) -> bool:
    """Whether rows of zeros add nothing to sums: these are sums of gradients, which no link has changed."""
    rules = [x for x in operations if isinstance(x, RuleOperation)]
    have_sums = [operation.traits.has_sums for operation in rules]
    return have_sums == sorted(have_sums, reverse=True)  # those with sums come first


def has_rows(value: Any, count: int) -> bool:
    """Whether a slot has a row for each row of a parameter with `count` of them."""
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == count
