"""Remove operations that leave a tensor unchanged, and detect flags that are the same for all leaves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Graph, Node

from gradtx.programs.contract import (
    argument_like,
    arguments_of,
    dtype_of,
    is_list,
    same_meta,
    writers,
)
from gradtx.programs.needs import FILLING, is_read_after_writing
from gradtx.programs.record import META

aten = torch.ops.aten

SAME = (aten.detach.default, aten.alias.default)
VIEWS = (
    aten.view.default,
    aten.reshape.default,
    aten.squeeze.dim,
    aten.unsqueeze.default,
)
# The results of all of these have the entries of the operand.
SAME_ENTRIES = (
    *SAME,
    *VIEWS,
    aten._unsafe_view.default,
    aten.clone.default,
    aten.expand.default,
)
# The positions of the dimensions of reductions over rows.
DIMENSIONS: dict[Any, int] = {
    aten.sum.dim_IntList: 1,
    aten.mean.dim: 1,
    aten.amax.default: 1,
    aten.amin.default: 1,
    aten.linalg_vector_norm.default: 2,
}
FLAGS: dict[Any, bool] = {aten.ones_like.default: True, aten.zeros_like.default: False}


def simplify(graph: Graph) -> None:
    """Simplify a graph whose nodes have `meta["kind"]`, without changing values."""
    flags: dict[Any, bool] = {}
    for node in list(graph.nodes):
        if node.target in FLAGS and _is_flag(node):
            flags[node] = FLAGS[node.target]
        elif node.target in FILLING:
            _take_shape_of_argument(node)
        elif node.target is aten.copy_.default:
            _copy_directly(node)
            # Such as a slot that is set only in the first step.
            if node.args[0] is node.args[1]:
                graph.erase_node(node)
                continue
            _convert_by_writing(node)
        same = _same(node, flags)
        if same is not None:
            if is_list(same) and is_read_after_writing(node, arguments_of(same)):
                same = _clone(same, node)
            node.replace_all_uses_with(same)
            graph.erase_node(node)


def _clone(argument: Node, node: Node) -> Node:
    """Return the value that an argument, which is written later, has before a node."""
    with node.graph.inserting_before(node):
        clone = node.graph.call_function(aten.clone.default, (argument,))
    clone.meta = dict(argument.meta)
    return clone


def _is_flag(node: Any) -> bool:
    if not isinstance(node, Node):
        return False
    value = node.meta["val"]
    return value.dtype == torch.bool and not value.ndim


def _take_shape_of_argument(node: Node) -> None:
    """Fill a list like an argument of the same shape, so that it does not depend on a computed list."""
    argument = argument_like(node) if is_list(node) else None
    if argument is not None:
        node.args = (argument, *node.args[1:])


def _copy_directly(node: Node) -> None:
    """Copy an argument instead of its clone, unless the argument is written before."""
    target, source = node.args[:2]
    if not isinstance(source, Node) or source.target is not aten.clone.default:
        return
    cloned: Any = source.args[0]
    if cloned.op != "placeholder":
        return
    if not any(writer < node for writer in writers(cloned)):
        node.args = (target, cloned)


def _convert_by_writing(node: Node) -> None:
    """Remove a conversion that feeds a copy, because the copy converts as well."""
    target, source = node.args[:2]
    if (
        not isinstance(source, Node)
        or not is_conversion(source)
        or len(source.users) != 1
    ):
        return
    before: Any = source.args[0]
    is_computed = before.op == "call_function" and before.target not in VIEWS
    if not is_computed or dtype_of(source) != dtype_of(target):
        return  # an argument might be overwritten before the copy
    source.replace_all_uses_with(before)
    source.graph.erase_node(source)


def is_conversion(node: Node) -> bool:
    """Whether an operation converts the tensors of a list to another dtype."""
    if node.target is not aten._to_copy.default or "dtype" not in node.kwargs:
        return False
    stays = {"dtype": node.kwargs["dtype"], "device": META}  # the device of the leaf
    return node.kwargs.items() <= stays.items() and is_list(node.args[0])


def reduced_dimensions(node: Node) -> Sequence[int]:
    """Return the dimensions over which a reduction goes; none if it is over all entries."""
    position = DIMENSIONS.get(node.target, len(node.args))
    dims: Any = node.args[position : position + 1]
    return dims[0] or [] if dims else []


def _same(node: Node, flags: dict[Any, bool]) -> Any:
    """Return the operand that an operation returns unchanged; None if there is none."""
    if node.target in SAME:
        return node.args[0]
    if node.target in (aten.mul.Tensor, aten.div.Tensor):
        return _same_as_factor(node)
    if node.target is aten.bitwise_and.Tensor and _is_flag(node):
        x, y = node.args
        if flags.get(x):
            return y
        return x if flags.get(y) else None
    if node.target is aten.where.self:
        return _same_as_selection(node, flags)
    return None


def _same_as_factor(node: Node) -> Any:
    """The operand that a product or a quotient multiplies or divides by 1."""
    x, y = node.args
    if _is_one(y) and same_meta(node, x):
        return x
    if node.target is aten.mul.Tensor and _is_one(x) and same_meta(node, y):
        return y
    return None


def _is_one(value: Any) -> bool:
    return isinstance(value, int | float) and value == 1


def _same_as_selection(node: Node, flags: dict[Any, bool]) -> Any:
    condition, x, y = node.args
    if x in flags and y in flags:
        if flags[x] == flags[y]:
            return x
        if flags[x] and _is_flag(condition):
            return condition
    if condition not in flags:
        return None
    chosen: Any = x if flags[condition] else y
    return chosen if same_meta(chosen, node) else None
