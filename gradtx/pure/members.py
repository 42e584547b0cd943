"""Pure updates under `torch.vmap`, of all members at once: below the transform, the definition's operations repeated.

What the definition does under `vmap` follows from structures, shapes and dtypes alone, because it cannot read values
there. So later calls repeat its operations, with the same bits, without its Python.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from gradtx.base import torch_names as _torch
from gradtx.base.ambient import runs_eagerly
from gradtx.base.errors import UnknownInProgramError
from gradtx.base.exact import exact_dtype
from gradtx.base.forward import Transformation
from gradtx.base.plain import is_usual
from gradtx.base.recent import Recent
from gradtx.compiler.repeat import Repeated
from gradtx.execution.extras import as_scalar
from gradtx.plans.hyperparameters import ChainOf, hyperparameters_of
from gradtx.pure import tree_run as _pure
from gradtx.pure.structures import (
    Trees,
    UnsuitableError,
    is_scalar,
    plain,
    structure_of,
    tree_of,
)
from gradtx.pure.tree_run import UpdateCall, records_gradients

# A tensor of all members, and their dimension; None if it is the same for all members.
Members: TypeAlias = tuple[Tensor, int | None]
# A function of the tensors of one member; it returns tensors, and their structure.
OfMember: TypeAlias = Callable[[list[Tensor]], tuple[list[Tensor], Any]]

# Calls of a kind before its operations are recorded, which takes as long as several calls.
CALLS_BEFORE = 2
MOST_OPERATIONS = 2**16  # of all kinds that are kept


def repeats(tx: Transformation) -> bool:
    """Whether the operations of a chain may be repeated: rules are this library's, and nothing observes them."""
    return not (
        torch.compiler.is_compiling()
        or runs_eagerly()
        or _torch.is_intercepted()
        or _torch.forward_mode_active()
        or tx._once("structure", tx._structure) is None
    )


@dataclass
class RepeatedCalls:
    """Calls whose operations are the same.

    Attributes:
        count: How many there were.
        operations: The operations; None before they are recorded, and where they cannot be.
        dims: The dimension of members in each result.
        structure: The structure of the results.
    """

    count: int = 0
    operations: Repeated | None = None
    dims: list[int | None] = field(default_factory=list[int | None])
    structure: Any = None

    def results(
        self, function: OfMember, arguments: Sequence[Members], members: int
    ) -> list[Members] | None:
        """Return the tensors that a function of one member returns for all; None if it has to run itself.

        Args:
            function: The function, whose operations are the same in all calls.
            arguments: Its arguments.
            members: The number of members.
        """
        self.count += 1
        if self.count == CALLS_BEFORE + 1:
            # A rule may refuse what has no values with any error.
            with contextlib.suppress(Exception):
                self._record(function, arguments, members)
        if self.operations is None:
            return None
        tensors = [tensor for tensor, _ in arguments]
        with torch.no_grad():
            return list(zip(self.operations(tensors), self.dims, strict=True))

    def _record(
        self, function: OfMember, arguments: Sequence[Members], members: int
    ) -> None:
        def of_all(tensors: list[Tensor]) -> list[Tensor]:
            with _torch.new_vmap(members) as level:
                of_member = [
                    _torch.of_member(tensor, dim, level)
                    for tensor, (_, dim) in zip(tensors, arguments, strict=True)
                ]
                results, self.structure = function(of_member)
                of_all = list(map(_torch.members_of, results))
            self.dims = [dim for _, dim in of_all]
            return [tensor for tensor, _ in of_all]

        self.operations = Repeated(of_all, [tensor for tensor, _ in arguments])


def are_suitable(arguments: Sequence[Members]) -> bool:
    """Whether operations may be repeated with these arguments."""
    tensors = [tensor for tensor, _ in arguments]
    first = tensors[0]
    return (
        not any(dim for _, dim in arguments)
        and all(map(is_usual, tensors))
        and len({tensor.device for tensor in tensors}) == 1
        and exact_dtype(first) is torch.float64
        and not records_gradients(tensors, ())
    )


def layout_of(arguments: Iterable[Members]) -> tuple[Any, ...]:
    """Return what operations depend on besides the function."""
    layouts = [(x.dtype, x.shape, dim) for x, dim in arguments]
    return (*layouts, torch.get_default_dtype())


ALL_CALLS: Recent[Any, RepeatedCalls] = Recent()


def repeated(
    key: Any,
    function: OfMember,
    arguments: Sequence[Members],
    members: int,
    known: Recent[Any, RepeatedCalls] = ALL_CALLS,
) -> tuple[list[Members], Any] | None:
    """Return the results of calls with an equal key, and their structure; None if the function has to run itself.

    Args:
        key: What the operations depend on besides layouts.
        function, arguments, members: As in `RepeatedCalls.results`.
        known: The calls by their keys, those that were used last.
    """
    key = key, members, layout_of(arguments)
    try:
        calls = known.get(key) or RepeatedCalls()
    except TypeError:  # an option that cannot be hashed
        return None
    results = calls.results(function, arguments, members)
    if calls.count <= CALLS_BEFORE + 1:
        size = 1 if calls.operations is None else calls.operations.size
        known.put(key, calls, size=size, most=MOST_OPERATIONS)
    return None if results is None else (results, calls.structure)


def update(call: UpdateCall) -> Any:
    """Return the result of `_pure.update` under `torch.vmap`; None if the definition is to run."""
    vmap = _torch.only_vmap()
    hyperparameters = hyperparameters_of(call.tx)
    if vmap is None or hyperparameters.scheduled or not repeats(call.tx):
        return None
    level, members = vmap
    try:
        trees = Trees.of(call.updates, call.state, call.params, None)
        scalars = _scalar_extras(call.extras)
    except UnsuitableError:
        return None
    tensors = [*trees.present(), *scalars.values(), *hyperparameters.tensors]
    arguments = list(map(_torch.members_of, tensors))
    if not are_suitable(arguments):
        return None
    numbers = [None if isinstance(x, Tensor) else x for x in hyperparameters.values]
    key = (
        call.tx._once("structure", call.tx._structure),
        hyperparameters.structure,
        tuple(numbers),
        plain(trees.structure),
        trees.absent,
        (tuple(scalars), tuple(call.extras)),
    )
    function = _function_of(call, trees, scalars)
    with _torch.outside_transforms():
        found = repeated(key, function, arguments, members)
    if found is None:
        return None
    results, of_state = found
    leaves = iter([_torch.of_member(x, dim, level) for x, dim in results])
    of_updates = [None if x is None else next(leaves) for x in trees.of_updates()]
    return trees.with_updates(of_updates), tree_of(of_state, leaves)


def uncalled(*arguments: Any) -> Any:
    """Stand for an extra that is a function, where operations that do not call it are recorded."""
    raise UnknownInProgramError("a rule calls a function of the caller")


def _scalar_extras(extras: dict[str, Any]) -> dict[str, Tensor]:
    """Return the extras that are scalars; no rule calls the others, which are functions.

    Raises:
        UnsuitableError: If there are others.
    """
    scalars: dict[str, Tensor] = {}
    for name, value in extras.items():
        if is_scalar(value):
            scalars[name] = as_scalar(name, value)
        elif not callable(value):
            raise UnsuitableError
    return scalars


def _function_of(
    call: UpdateCall, trees: Trees, scalars: dict[str, Tensor]
) -> OfMember:
    """Return the update of a member as a function of its tensors, with the structure of its state."""

    def update(tensors: list[Tensor]) -> tuple[list[Tensor], Any]:
        values = iter(tensors)
        leaves = [None if x is None else next(values) for x in trees.tensors]
        updates, state, params = tree_of(trees.structure, iter(leaves), opens=True)
        extras: dict[str, Any] = dict.fromkeys(call.extras, uncalled)
        extras |= {name: next(values) for name in scalars}
        hyperparameters = hyperparameters_of(call.tx)
        numbers = [
            next(values) if isinstance(value, Tensor) else value
            for value in hyperparameters.values
        ]
        tx = ChainOf(call.tx, hyperparameters.structure)(numbers)
        updates, state = _pure.update(UpdateCall(tx, updates, state, params, extras))
        returned = Trees.of(updates, state, params, None)
        results = [x for x in returned.of_updates() if x is not None]
        of_state = structure_of(state, results)
        return results, of_state

    return update
