"""Parameters with sparse gradients: the rows that these list step in place of the parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gradtx.execution.execute import Operation
from gradtx.execution.listed_rows import (
    DENSE,
    ListedRows,
    check_takes_rows,
    has_rows,
    missing_rows,
    moving_slots,
    put_rows,
    with_zeros,
    zeros_add_nothing,
)
from gradtx.optim.run import Member, kinds_of
from gradtx.state.layout import State

# The key of the plan of listed rows among those that an engine keeps.
LISTED = "listed"


@dataclass(eq=False, kw_only=True)
class ListedMember(Member):
    """The listed rows of a parameter, which take part in one step as a parameter of their own.

    Attributes:
        table: The parameter.
        index: The positions of the rows.
        row_keys: The slots that have rows.
        gradient_bytes: Those of the gradient of the rows.
        added: The number of rows of zeros behind them, whose results are dropped.
        ignores_sizes: Whether programs for another number of rows run these, too.
        has_program: Whether programs may run them: few are enough for any number of rows.
    """

    table: Member
    index: Tensor
    row_keys: list[str]
    gradient_bytes: int
    added: int
    ignores_sizes: bool
    has_program: bool

    @classmethod
    def of(cls, who: str, table: Member, operations: list[Operation]) -> ListedMember:
        """Return the rows of a parameter that its gradient lists, or that move without a gradient.

        Raises:
            RuntimeError, ValueError: If the gradient does not consist of rows of the parameter, or if an operation
                needs all rows.
        """
        check_takes_rows(who, table.name, operations)
        _check_codes(who, table)
        what = f"{who}: the gradient of parameter {table.name!r}"
        gradient: Any = table.param.grad
        rows = ListedRows.of(what, gradient, table.param)
        keys = table.layout.slots
        moving = [
            _slot_in_parts(table, keys[path][slot])
            for path, slot in moving_slots(operations)
        ]
        if moving:
            rows = rows.with_moving(moving)
        ignores_sizes = not table.layout.codes and all(map(_ignores_sizes, operations))
        fills_up = not ignores_sizes and zeros_add_nothing(operations)
        added = missing_rows(len(rows.index)) if fills_up else 0
        return cls._taken(table, rows, added, ignores_sizes, ignores_sizes or fills_up)

    @classmethod
    def _taken(
        cls,
        table: Member,
        rows: ListedRows,
        added: int,
        ignores_sizes: bool,
        has_program: bool,
    ) -> ListedMember:
        index, count = rows.index, len(table.param)
        param = with_zeros(table.param.detach().index_select(0, index), added)
        param.grad = with_zeros(rows.values, added)
        row_keys = [
            key for key in table.layout.slot_keys if has_rows(table.state[key], count)
        ]
        state = dict(table.state)
        for key in row_keys:
            state[key] = with_zeros(table.state[key].index_select(0, index), added)
        return cls(
            name=table.name,
            param=param,
            choices=table.choices,
            layout=table.layout,
            made_for=table.made_for,
            state=state,
            count=table.count,
            device_count=table.device_count,
            group=table.group,
            kinds=kinds_of(param, table.layout, state),
            table=table,
            index=index,
            row_keys=row_keys,
            gradient_bytes=rows.values.nbytes,
            added=added,
            ignores_sizes=ignores_sizes,
            has_program=has_program,
        )

    def rows_of(self, value: Any) -> Any:
        """Return the rows of an extra of the parameter, if it has a row for each of these."""
        if not has_rows(value, len(self.table.param)):
            return value
        return with_zeros(value.index_select(0, self.index), self.added)

    def kinds_of_rows(self) -> list[Any]:
        """Return dtypes and shapes of the gradient, the parameter and the slots; the number of rows, if it matters."""
        gradient: Any = self.param.grad
        kinds: list[Any] = [gradient.dtype, gradient.is_contiguous(), self.choices]
        kinds.append(None if self.ignores_sizes else len(self.param))
        for key, kind in self.kinds.items():
            has_rows = key is None or key in self.row_keys
            kinds.append((key, kind.shape[1:] if has_rows else kind.shape, kind[1:]))
        return kinds

    @property
    def moved_bytes(self) -> tuple[int, int]:
        """The bytes that a step of these rows reads and writes."""
        tensors = [self.param, *map(self.state.__getitem__, self.row_keys)]
        count = len(self.index)
        written = sum(tensor[:count].nbytes for tensor in tensors)
        return written + self.gradient_bytes, written

    def put_back(self) -> None:
        """Write the rows into the parameter and its slots, and its count."""
        table, index, count = self.table, self.index, len(self.index)
        put_rows(table.param.detach(), index, self.param[:count])
        for key, value in self.state.items():
            if key in self.row_keys:
                put_rows(table.state[key], index, value[:count])
            else:
                table.state[key] = value
        table.count, table.device_count = self.count, self.device_count


def _ignores_sizes(operation: Operation) -> bool:
    """Whether programs of an operation run any number of rows."""
    return operation.ignores_sizes and not operation.traits.positional


def _check_codes(who: str, table: Member) -> None:
    """Check that slots of a parameter can be stored row by row.

    Raises:
        RuntimeError: If a code covers several rows.
    """
    for key, codec in table.layout.coded_keys.items():
        if not codec.codes_rows_alone(table.param.ndim):
            raise RuntimeError(
                f"{who}: parameter {table.name!r} has a sparse gradient, but the code {codec.label!r} of its slot "
                f"{key!r} covers several rows; omit state_dtype for it, or {DENSE}"
            )


def _slot_in_parts(table: Member, key: str) -> Iterable[Tensor] | Tensor:
    """Return a slot; of a coded one, its decoded rows, part by part."""
    codec = table.layout.coded_keys.get(key)
    if codec is None:
        return table.state[key]
    packed = {
        suffix: table.state[f"{key}.{suffix}" if suffix else key]
        for suffix in codec.extents
    }
    return codec.unpacked_parts(packed, tuple(table.param.shape))


def listed_states(
    states: Mapping[Any, State], listed: Iterable[ListedMember]
) -> Mapping[Any, State]:
    """Return the states of an optimizer, with those of listed rows."""
    return {**states, **{member.param: member.state for member in listed}}
