"""Pure updates under `torch.vmap`, of all members at once: below the transform, the definition's operations repeated.

What the definition does under `vmap` follows from structures, shapes and dtypes alone, because it cannot read values
there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from torch import Tensor

from gradtx.base import torch_names as _torch
from gradtx.pure.repeated_calls import (
    OfTensors,
    RepeatedUpdate,
    are_suitable,
    repeated,
    repeats,
)
from gradtx.pure.structures import UnsuitableError
from gradtx.pure.tree_run import UpdateCall, records_gradients

# The dimension of members in a tensor; None if it is the same for all members.
Dims: TypeAlias = Sequence[int | None]


def over_members(function: OfTensors, dims: Dims, members: int) -> OfTensors:
    """Return a function of one member as that of all; its structure gets the dimensions of members in results.

    Args:
        function: The function.
        dims: The dimensions of members in its arguments.
        members: Their number.
    """

    def of_all(tensors: list[Tensor]) -> tuple[list[Tensor], Any]:
        with _torch.new_vmap(members) as level:
            arguments = [
                _torch.of_member(tensor, dim, level)
                for tensor, dim in zip(tensors, dims, strict=True)
            ]
            results, structure = function(arguments)
            pairs = list(map(_torch.members_of, results))
        return [x for x, _ in pairs], (structure, [dim for _, dim in pairs])

    return of_all


def update(call: UpdateCall) -> Any:
    """Return the result of `tree_run.update` under `torch.vmap`; None if the definition is to run."""
    vmap = _torch.only_vmap()
    if vmap is None or not repeats(call.tx):
        return None
    level, members = vmap
    try:
        function = RepeatedUpdate(call)
    except UnsuitableError:
        return None
    pairs = list(map(_torch.members_of, function.tensors))
    tensors, dims = [x for x, _ in pairs], [dim for _, dim in pairs]
    # Members that lie along another dimension leave results in other layouts.
    if any(dims) or not are_suitable(tensors) or records_gradients(tensors, ()):
        return None
    key = function.key, members, *dims
    with _torch.outside_transforms():
        found = repeated(key, over_members(function, dims, members), tensors)
    if found is None:
        return None
    results, (structure, dims) = found
    wrapped = map(_torch.of_member, results, dims, [level] * len(dims))
    return function.returned(wrapped, structure)
