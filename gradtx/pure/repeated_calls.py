"""Calls whose operations are the same: those of the definition, recorded once and repeated without its Python.

Operations that follow from structures, shapes and dtypes alone keep their bits, and their derivatives.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from gradtx.base import torch_names as _torch
from gradtx.base.ambient import runs_eagerly
from gradtx.base.errors import UnknownInProgramError
from gradtx.base.exact import exact_dtype
from gradtx.base.forward import Transformation
from gradtx.base.plain import DEVICE, TYPES, are_dense
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

# A function of tensors; it returns tensors, and their structure.
OfTensors: TypeAlias = Callable[[list[Tensor]], tuple[list[Tensor], Any]]

# Calls of a kind before its operations are recorded, which takes as long as several calls.
CALLS_BEFORE = 3
MOST_OPERATIONS = 2**16  # of all kinds that are kept
MOST_TENSORS = 2**12  # of a call: Python compiles a few lines for each


def repeats(tx: Transformation) -> bool:
    """Whether the operations of a chain may be repeated: rules are this library's, and nothing observes them."""
    return not (
        torch.compiler.is_compiling()
        or runs_eagerly()
        or _torch.is_intercepted()
        or _torch.forward_mode_active()
        or tx._once("structure", tx._structure) is None
    )


def are_suitable(tensors: list[Tensor]) -> bool:
    """Whether operations may be repeated with these arguments: plain, real and contiguous ones on one device."""
    return (
        len(tensors) <= MOST_TENSORS
        and TYPES.issuperset(map(type, tensors))
        and are_dense(tensors)
        and all(map(Tensor.is_contiguous, tensors))
        and not any(map(Tensor.is_complex, tensors))
        and not any(map(Tensor.is_neg, tensors))
        and len(set(map(DEVICE, tensors))) == 1
        and exact_dtype(tensors[0]) is torch.float64
    )


@dataclass
class RepeatedCalls:
    """Calls whose operations are the same.

    Attributes:
        count: How many there were.
        operations: The operations; None before they are recorded, and where they cannot be.
        structure: The structure of the results.
    """

    count: int = 0
    operations: Repeated | None = None
    structure: Any = None

    def results(
        self, function: OfTensors, tensors: list[Tensor]
    ) -> tuple[Tensor, ...] | None:
        """Return the tensors that a function returns; None if it has to run itself.

        Args:
            function: The function, whose operations are the same in all calls.
            tensors: Its arguments.
        """
        self.count += 1
        if self.count == CALLS_BEFORE + 1:
            # A rule may refuse what has no values with any error.
            with contextlib.suppress(Exception):
                self._record(function, tensors)
        return None if self.operations is None else self.operations(tensors)

    def _record(self, function: OfTensors, tensors: list[Tensor]) -> None:
        def results(tensors: list[Tensor]) -> list[Tensor]:
            results, self.structure = function(tensors)
            return results

        self.operations = Repeated(results, tensors)


ALL_CALLS: Recent[Any, RepeatedCalls] = Recent()


def repeated(
    key: Any,
    function: OfTensors,
    tensors: list[Tensor],
    known: Recent[Any, RepeatedCalls] = ALL_CALLS,
) -> tuple[tuple[Tensor, ...], Any] | None:
    """Return the results of calls with an equal key, and their structure; None if the function has to run itself.

    Args:
        key: What the operations depend on besides layouts.
        function, tensors: As in `RepeatedCalls.results`.
        known: The calls by their keys, those that were used last.
    """
    records = records_gradients(tensors, ())
    flags = [tensor.requires_grad for tensor in tensors] if records else ()
    layouts = [(tensor.dtype, tensor.shape) for tensor in tensors]
    # `are_suitable` has seen that all are on one device.
    key = key, *layouts, *flags, tensors[0].device, torch.get_default_dtype()
    try:
        calls = known.get(key) or RepeatedCalls()
    except TypeError:  # an option that cannot be hashed
        return None
    with torch.set_grad_enabled(records):
        results = calls.results(function, tensors)
    if calls.count <= CALLS_BEFORE + 1:
        size = 1 if calls.operations is None else calls.operations.size
        known.put(key, calls, size=size, most=MOST_OPERATIONS)
    return None if results is None else (results, calls.structure)


# Updates.


class RepeatedUpdate:
    """An update as a function of the tensors of its call.

    Args:
        call: The call.

    Attributes:
        trees: Its trees.
        tensors: The tensors of the trees, of extras and of hyperparameters.
        key: What the operations depend on besides layouts.

    Raises:
        UnsuitableError: If its operations cannot be repeated.
    """

    def __init__(self, call: UpdateCall):
        self._call = call
        self.trees = Trees.of(call.updates, call.state, call.params, None)
        self._scalars = _scalar_extras(call.extras)
        hyperparameters = hyperparameters_of(call.tx)
        if hyperparameters.scheduled:
            raise UnsuitableError
        self._values = hyperparameters.values
        self._structure = hyperparameters.structure
        self.tensors = [
            *self.trees.present(),
            *self._scalars.values(),
            *hyperparameters.tensors,
        ]
        self.key = (
            call.tx._once("structure", call.tx._structure),
            self._structure,
            tuple([None if isinstance(x, Tensor) else x for x in self._values]),
            plain(self.trees.structure),
            self.trees.absent,
            (tuple(self._scalars), tuple(call.extras)),
        )

    def __call__(self, tensors: list[Tensor]) -> tuple[list[Tensor], Any]:
        """Return the tensors of the results, and which updates there are with the structure of the new state."""
        values = iter(tensors)
        trees = self.trees
        leaves = [None if x is None else next(values) for x in trees.tensors]
        updates, state, params = tree_of(trees.structure, iter(leaves), opens=True)
        extras: dict[str, Any] = dict.fromkeys(self._call.extras, uncalled)
        extras |= {name: next(values) for name in self._scalars}
        numbers = [
            next(values) if isinstance(value, Tensor) else value
            for value in self._values
        ]
        tx = ChainOf(self._call.tx, self._structure)(numbers)
        updates, state = _pure.update(UpdateCall(tx, updates, state, params, extras))
        returned = Trees.of(updates, state, params, None)
        updates = returned.of_updates()
        results = [x for x in updates if x is not None]
        # A combinator may return an update of a leaf without a gradient.
        are_there = [x is not None for x in updates]
        return results, (are_there, structure_of(state, results))

    def returned(self, results: Iterable[Tensor], structure: Any) -> tuple[Any, Any]:
        """Return the tensors of the results as trees."""
        are_there, of_state = structure
        leaves = iter(results)
        updates = [next(leaves) if is_there else None for is_there in are_there]
        return self.trees.with_updates(updates), tree_of(of_state, leaves)


def uncalled(*arguments: Any) -> Any:
    """Stand for an extra that is a function, where operations that do not call it are recorded."""
    raise UnknownInProgramError("a rule calls a function of the caller")


def _is_by_entry(tx: Transformation) -> bool:
    """Whether the rules of a chain look at single entries, and at sums over leaves.

    Derivatives of factorizations are added up in an order that depends on the memory of their results.
    """
    run = _pure.TreeRun(tx, {}, None)
    traits = run.route.traits()
    run.release()
    return traits.elementwise


def recorded_update(call: UpdateCall) -> Any:
    """Return the result of an update that autograd records, as the definition does; None if that is to run."""
    is_by_entry = functools.partial(_is_by_entry, call.tx)
    if not repeats(call.tx) or not call.tx._once("is by entry", is_by_entry):
        return None
    try:
        function = RepeatedUpdate(call)
    except UnsuitableError:
        return None
    if not are_suitable(function.tensors):
        return None
    _pure.warn_of_graphs(call.state, call.params)
    found = repeated(function.key, function, function.tensors)
    return None if found is None else function.returned(*found)


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
