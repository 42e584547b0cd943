"""Recordings with which engines plan: of a leaf, of its first entries, and of the leaf as a vector."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from gradtx.base.complex_views import as_real
from gradtx.base.dtensor import is_sharded, local
from gradtx.execution.execute import Leaf
from gradtx.execution.phases import phases_of
from gradtx.optim._member import Member
from gradtx.optim._step_input import StepInput
from gradtx.optim.engine.base import stand_ins
from gradtx.optim.engine.signature import Signature
from gradtx.optim.engine.trace import BundleFunction
from gradtx.optim.engine.windows import cut
from gradtx.programs.bundle import ListPhase
from gradtx.programs.planner import probes
from gradtx.programs.terms import numbers_in


def arguments_of(
    member: Member, signature: Signature, step_input: StepInput, leaf: Leaf
) -> list[Tensor]:
    """Return the arguments of a leaf, of which only dtypes and shapes matter."""
    tensors: list[Any] = [
        member.param,
        *(member.state[key] for key in signature.slots_by_leaf),
        member.param.grad,
    ]
    tensors.extend(
        tree[leaf.name]
        for tree in step_input.trees.values()
        if tree[leaf.name] is not None
    )
    return [as_real(local(tensor)) for tensor in tensors]


def first_entries(tensors: list[Tensor], count: int) -> list[Tensor]:
    """Return the arguments for the first entries of a leaf, as vectors."""
    size = tensors[0].numel()
    flat = [tensor.reshape(-1) if tensor.ndim else tensor for tensor in tensors]
    return [cut(tensor, slice(0, count), size) for tensor in flat]


def recorded(
    signature: Signature, member: Member, step_input: StepInput, tensors: list[Tensor]
) -> list[ListPhase]:
    """Record the program for these arguments; return an empty list if that is impossible."""
    structure = step_input.structures[member.group]
    make_chain = step_input.views[member.group].chain_of(structure)
    function = BundleFunction(signature, make_chain)
    try:
        return phases_of(function, stand_ins(signature), tensors, ListPhase)
    except (
        Exception
    ):  # where a program is required, recording it again raises the error
        return []


def numbers_of(phases: list[ListPhase]) -> list[Any]:
    """Return the operations of a program with their Python scalars; see `numbers_in`."""
    return [numbers_in(each.recording.graph) for each in phases]


def reads_shape(
    member: Member, signature: Signature, step_input: StepInput, leaf: Leaf
) -> bool:
    """Whether the program of an elementwise leaf depends on its shape beyond the number of entries.

    The program of a shard must not depend on that number either, since it is not that of the whole leaf.
    """
    one = dataclasses.replace(signature, width=1, padded=False)
    tensors = arguments_of(member, one, step_input, leaf)
    # The slots of coded leaves have several shapes, so there are no examples in other shapes.
    examples = [tensors] if signature.layout.codes else list(probes(tensors))
    compared: list[tuple[list[Tensor], list[Tensor]]] = []
    for example in examples if tensors[0].ndim > 1 else ():
        compared.append((example, first_entries(example, example[0].numel())))
    if is_sharded(member.param):
        compared.append((tensors, examples[-1]))
    for pair in compared:
        one_way, other_way = (recorded(one, member, step_input, each) for each in pair)
        if numbers_of(one_way) != numbers_of(other_way):
            return True
    return False
