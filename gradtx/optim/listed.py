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
    moving_slots,
    put_rows,
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
    """

    table: Member
    index: Tensor
    row_keys: list[str]
    gradient_bytes: int

    @classmethod
    def of(
        cls, who: str, table: Member, operations: Iterable[Operation]
    ) -> ListedMember:
        """Return the rows of a parameter that its gradient lists, or that move without a gradient.

        Raises:
            RuntimeError, ValueError: If the gradient does not consist of rows of the parameter, or if an operation
                needs all rows.
        """
        operations = list(operations)
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
        return cls._taken(table, rows)

    @classmethod
    def _taken(cls, table: Member, rows: ListedRows) -> ListedMember:
        index, count = rows.index, len(table.param)
        param = table.param.detach().index_select(0, index)
        param.grad = rows.values
        row_keys = [
            key for key in table.layout.slot_keys if has_rows(table.state[key], count)
        ]
        state = dict(table.state)
        for key in row_keys:
            state[key] = table.state[key].index_select(0, index)
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
        )

    def rows_of(self, value: Any) -> Any:
        """Return the rows of an extra of the parameter, if it has a row for each of these."""
        if not has_rows(value, len(self.table.param)):
            return value
        return value.index_select(0, self.index)

    def kinds_of_rows(self) -> list[Any]:
        """Return dtypes and shapes of the gradient, the parameter and the slots, without the number of rows."""
        gradient: Any = self.param.grad
        kinds: list[Any] = [gradient.dtype, gradient.is_contiguous(), self.choices]
        for key, kind in self.kinds.items():
            has_rows = key is None or key in self.row_keys
            kinds.append((key, kind.shape[1:] if has_rows else kind.shape, kind[1:]))
        return kinds

    @property
    def bytes(self) -> tuple[int, int]:
        """The bytes that a step of these rows reads and writes."""
        written = self.param.nbytes
        written += sum(self.state[key].nbytes for key in self.row_keys)
        return written + self.gradient_bytes, written

    def put_back(self) -> None:
        """Write the rows into the parameter and its slots, and its count."""
        table, index = self.table, self.index
        put_rows(table.param.detach(), index, self.param)
        for key, value in self.state.items():
            if key in self.row_keys:
                put_rows(table.state[key], index, value)
            else:
                table.state[key] = value
        table.count, table.device_count = self.count, self.device_count


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
