"""Pure updates with sparse gradients: the rows that these list are updated as leaves of their own, in smaller trees."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from gradtx.base import torch_names as _torch
from gradtx.base import tree as _tree
from gradtx.base.ambient import runs_eagerly
from gradtx.base.errors import Path, lacking
from gradtx.base.plain import are_strided
from gradtx.execution.execute import Leaf, Operation
from gradtx.execution.extras import FUNCTION_KINDS, FUNCTIONS, is_by_leaf
from gradtx.execution.listed_rows import (
    DENSE,
    ListedRows,
    check_takes_rows,
    has_rows,
    missing_rows,
    moving_slots,
    with_zeros,
    zeros_add_nothing,
)
from gradtx.pure import tree_plan as _plans
from gradtx.pure import tree_run as _pure
from gradtx.pure.tree_run import TreeRun, UpdateCall
from gradtx.state.nested import NestedState


class ListedTable(NamedTuple):
    """A leaf with a sparse gradient.

    Attributes:
        name: Its name.
        shape: Its shape.
        rows: The rows that take part in the update.
        added: The number of rows of zeros that take part as well, whose results are dropped.
    """

    name: str
    shape: torch.Size
    rows: ListedRows
    added: int

    def gradient(self) -> Tensor:
        """Return the rows of the gradient."""
        return with_zeros(self.rows.values, self.added)

    def rows_of(self, value: Any) -> Any:
        """Return the rows of a tensor that has one for each row of the leaf, or any other value as it is."""
        if not has_rows(value, self.shape[0]):
            return value
        return with_zeros(value.index_select(0, self.rows.index), self.added)

    def with_rows(self, old: Any, rows: Any) -> Any:
        """Return a tensor with new rows; in place of any other value, the new one."""
        if not has_rows(old, self.shape[0]):
            return rows
        index = self.rows.index
        dtype, rows = old.dtype, rows[: len(index)]
        if dtype.itemsize == 1:  # torch copies bytes, but no codes of float8
            old, rows = old.view(torch.uint8), rows.view(torch.uint8)
        return old.index_copy(0, index, rows).view(dtype)

    def sparse(self, rows: Tensor) -> Tensor:
        """Return a sparse tensor with these rows."""
        index = self.rows.index.clone()
        return torch.sparse_coo_tensor(
            index[None],
            rows[: len(index)],
            self.shape,
            is_coalesced=True,
            check_invariants=False,
        )


def computed(call: UpdateCall) -> tuple[Any, dict[str, Any]]:
    """Return the result of a call without sparse gradients."""
    return _plans.update(call) or _pure.update(call)


def update(
    call: UpdateCall,
    compute: Callable[[UpdateCall], Any] = computed,
    adds_rows: bool = True,
) -> tuple[Any, dict[str, Any]] | None:
    """Return the result of a call with sparse gradients; None if there are none, or if the definition refuses them.

    Args:
        call: The call.
        compute: Returns the result of a call without them.
        adds_rows: Whether rows of zeros may take part, so that plans for other numbers of rows run this call.

    Raises:
        RuntimeError, ValueError: As in `check_takes_rows` and `ListedRows.of`.
    """
    if are_strided(_tree.tensors(call.updates)) or _torch.inside_transform():
        return None
    return _updated(call, compute, adds_rows and not runs_eagerly())


@_torch.kept_from_dynamo
def _updated(
    call: UpdateCall, compute: Callable[[UpdateCall], Any], adds_rows: bool
) -> tuple[Any, dict[str, Any]]:
    """Return the result of a call with sparse gradients."""
    run = _begun(call)
    tables = _tables(call, run, adds_rows)
    stages, opaque = run.stages, run.opaque
    run.release()
    old = NestedState(call.state, stages)
    rows = _call_of_rows(call, tables, old, opaque)
    try:
        updates, state = compute(rows)
    except (RuntimeError, IndexError, ValueError) as error:
        if call.params is not None:
            _pure.blame_state(call.tx, call.params, call.state, error)
        raise
    sparse = _in_tree(tables, updates, ListedTable.sparse)
    return sparse, _whole_state(tables, old, NestedState(state, stages), opaque)


def _call_of_rows(
    call: UpdateCall, tables: list[ListedTable], old: NestedState, opaque: set[Path]
) -> UpdateCall:
    """Return a call for trees with the rows of tables in their place."""

    def rows_of(path: Path, key: str, entry: Any) -> Any:
        if not isinstance(entry, dict):  # a shared value
            return entry
        return {**entry, **_of_tables(tables, entry, ListedTable.rows_of)}

    return call._replace(
        updates=_in_tree(tables, call.updates, lambda table, _: table.gradient()),
        state=old.rebuilt(rows_of, {}, opaque),
        params=_in_tree(tables, call.params, ListedTable.rows_of),
        extras=_rows_of_extras(call, tables),
    )


def _whole_state(
    tables: list[ListedTable], old: NestedState, new: NestedState, opaque: set[Path]
) -> dict[str, Any]:
    """Return the old state of tables with their new rows, in the new state."""

    def whole(path: Path, key: str, entry: Any) -> Any:
        before = old.tree(path).get(key)
        if not isinstance(entry, dict) or before is None:
            return entry
        slots = {
            table.name: table.with_rows(before[table.name], entry[table.name])
            for table in tables
            if table.name in entry
        }
        return {**entry, **slots}

    return new.rebuilt(whole, {}, opaque)


def _of_tables(
    tables: list[ListedTable],
    leaves: dict[str, Any],
    function: Callable[[ListedTable, Any], Any],
) -> dict[str, Any]:
    """Return what a function returns for each leaf that is a table and not None, by name."""
    return {
        table.name: function(table, leaves[table.name])
        for table in tables
        if leaves.get(table.name) is not None
    }


def _in_tree(
    tables: list[ListedTable], tree: Any, function: Callable[[ListedTable, Any], Any]
) -> Any:
    """Return a tree with what a function returns for each table that is in it."""
    leaves, unflatten = _tree.flatten_any(tree, "updates")
    return unflatten({**leaves, **_of_tables(tables, leaves, function)})


# What takes part.


def _begun(call: UpdateCall) -> TreeRun:
    """Return the run of a call, which knows its stages and the operations of leaves, but computes nothing."""
    gradients, unflatten = _tree.flatten_any(call.updates, "updates")
    by_name: dict[str, Any] = {}
    if call.params is not None:
        by_name, _ = _tree.flatten(call.params, "params")
        _tree.check_names(by_name, gradients, "params", "updates")
    state = {} if call.state is None else call.state
    run = TreeRun(call.tx, by_name or gradients, unflatten, state)
    run.check(gradients)
    return run


def _tables(call: UpdateCall, run: TreeRun, adds_rows: bool) -> list[ListedTable]:
    """Return the leaves with sparse gradients, whose operations may update their rows alone.

    Raises:
        RuntimeError, ValueError: As in `update`.
    """
    who = call.tx._name
    gradients = {
        name: gradient
        for name, gradient in _tree.named(call.updates).items()
        if gradient is not None and not are_strided([gradient])
    }
    moving: dict[str, list[Tensor]] = {}
    adds_rows = adds_rows and zeros_add_nothing(run.route.walk())
    for name, gradient in gradients.items():
        leaf = _outline(run, name, gradient)
        operations = run.route.for_leaf(leaf)
        check_takes_rows(who, name, operations, "leaf")
        _check_codes(who, leaf, operations)
        moving[name] = list(_moving(leaf, operations))
    tables: list[ListedTable] = []
    for name, gradient in gradients.items():
        what = f"{who}: the gradient of leaf {name!r}"
        param = None if call.params is None else run.names[name]
        rows = ListedRows.of(what, gradient, param)
        if moving[name]:
            rows = rows.with_moving(moving[name])
        # A table without rows has nothing that tells its slots from the empty marks of selectors.
        adds = adds_rows and len(gradient) > 0
        added = missing_rows(len(rows.index)) if adds else 0
        tables.append(ListedTable(name, gradient.shape, rows, added))
    return tables


def _outline(run: TreeRun, name: str, gradient: Tensor) -> Leaf:
    """Return a leaf without memory, whose operations are those of the leaf with this gradient."""
    param = run.names[name]
    dtype = gradient.dtype if param is None else param.dtype
    like = torch.empty(gradient.shape, dtype=dtype, device="meta")
    return Leaf(run, name, None, None, {}, run.clock, like)


def _check_codes(who: str, leaf: Leaf, operations: list[Operation]) -> None:
    """Check that the codes of slots are those of rows.

    Raises:
        RuntimeError: If one is not.
    """
    for operation in operations:
        store = leaf.run.stores.get(operation.path)
        if store is None:
            continue
        codecs = store.codecs_of(leaf.run.slots(operation.path, leaf), leaf)
        for slot, codec in codecs.items():
            # A code without parts is told by the size of a leaf, which has fewer rows here.
            if not (codec.codes_rows_alone(len(leaf.shape)) and codec.suffixes):
                raise RuntimeError(
                    f"{who}: leaf {leaf.name!r} has a sparse gradient, but the code {codec.name!r} of its slot "
                    f"{slot!r} is not one of rows; pass another state_dtype, such as 'int8', or {DENSE}"
                )


def _moving(leaf: Leaf, operations: list[Operation]) -> Iterator[Tensor]:
    """Yield the slots whose rows move rows without a gradient."""
    for path, slot in moving_slots(operations):
        slots = leaf.run.slots(path, leaf)
        if slot not in slots:
            raise lacking(path, leaf.name)
        store = leaf.run.stores.get(path)
        yield slots[slot] if store is None else store.value_of(slot, slots, leaf)


def _rows_of_extras(call: UpdateCall, tables: list[ListedTable]) -> dict[str, Any]:
    """Return the extras of a call for the rows of tables."""
    kinds, _ = call.tx._requirements()
    extras = dict(call.extras)
    for extra, value in call.extras.items():
        kind = kinds.get(extra, "")
        if value is None:
            continue
        if extra in FUNCTIONS or kind in FUNCTION_KINDS:
            extras[extra] = _refusing(call.tx._name, extra, value)
        elif is_by_leaf(kind):
            leaves = _tree.named(value)
            for table in tables:
                _check_extra(extra, table, leaves.get(table.name))
            extras[extra] = _in_tree(tables, value, ListedTable.rows_of)
    return extras


def _check_extra(extra: str, table: ListedTable, value: Any) -> None:
    if isinstance(value, Tensor) and value.shape != table.shape:
        raise ValueError(
            f"{extra}: leaf {table.name!r} has shape {tuple(value.shape)}, needs {tuple(table.shape)}"
        )


def _refusing(who: str, extra: str, function: Any) -> Any:
    """Return a function in place of one of the caller's, which takes whole trees."""
    if not callable(function):
        return function

    def refused(*arguments: Any) -> NoReturn:
        raise RuntimeError(
            f"{who}: sparse gradients cannot be used here: the chain calls {extra} at other weights, where other rows "
            "may have gradients; omit sparse=True in nn.Embedding, or call to_dense() on them"
        )

    return refused
