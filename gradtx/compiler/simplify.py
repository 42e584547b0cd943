"""Remove operations that leave a tensor unchanged, and detect flags that are the same for all leaves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Graph, Node

from gradtx.compiler.graph import (
    args_of,
    argument_like,
    arguments_of,
    dtype_of,
    is_list,
    same_meta,
    writers,
)
from gradtx.compiler.liveness import FILLING, is_read_after_writing
from gradtx.compiler.record import META

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


def skip_inner_selections(graph: Graph) -> None:
    """Replace where(c, f(where(c, x, y)), z) by where(c, f(x), z), for an operation f on entries.

    The inner selection keeps derivatives finite, which programs do not compute.
    """
    for node in list(graph.nodes):
        if node.target is not aten.where.self or not is_list(node):
            continue
        condition, x, _ = node.args
        if not is_list(x) or not same_meta(node, x):
            continue
        if is_read_after_writing(node, arguments_of(x)):
            continue
        for user in list(node.users):
            if _is_selected_by(user, condition):
                user.replace_input_with(node, x)


def _is_selected_by(node: Node, condition: Any) -> bool:
    """Whether all that reads an operation on entries is a selection of it by a condition."""
    is_pointwise = torch.Tag.pointwise in getattr(node.target, "tags", ())
    return is_pointwise and all(
        user.target is aten.where.self
        and user.args[:2] == (condition, node)
        and user.args[2] is not node
        for user in node.users
    )


def select_sums(graph: Graph) -> None:
    """Replace the new weight p + where(c, 0, u) by where(c, p, p + u), so that the sum can be fused with the rest of u.

    The condition is one for all leaves. The sum may include a multiple of the selection.
    """
    for node in list(graph.nodes):
        if node.target is not aten.add.Tensor or len(node.users) != 1:
            continue
        weight, update = node.args
        (copy,) = node.users
        if copy.target is not aten.copy_.default or copy.args[0] is not weight:
            continue
        if node.meta.get("as_written") or not isinstance(update, Node):
            continue
        if same_meta(node, weight, update):
            _select_sum(node, update)


def _select_sum(node: Node, update: Node) -> None:
    weight: Any = node.args[0]
    is_multiple = update.target is aten.neg.default or (
        update.target is aten.mul.Tensor and not all(map(is_list, update.args))
    )
    selection: Any = update
    if is_multiple:
        (selection,) = filter(is_list, update.args)
    if selection.target is not aten.where.self or len(selection.users) != 1:
        return
    condition, *branches = selection.args
    if is_list(condition) or len(update.users) != 1:
        return
    if sum(map(_is_zero, branches)) != 1:
        return
    (chosen,) = (branch for branch in branches if not _is_zero(branch))
    if not is_list(chosen) or not same_meta(node, chosen):
        return
    if is_read_after_writing(selection, arguments_of(chosen)):
        return
    graph = node.graph
    with graph.inserting_before(node):
        if is_multiple:
            update.replace_input_with(selection, chosen)
            chosen = update
        total = graph.call_function(aten.add.Tensor, (weight, chosen), node.kwargs)
    total.meta = dict(node.meta)
    sums = [weight if _is_zero(branch) else total for branch in branches]
    node.target, node.args, node.kwargs = aten.where.self, (condition, *sums), {}


def _is_zero(value: Any) -> bool:
    """Whether a value is the literal number 0, or a tensor of zeros."""
    if not isinstance(value, Node):
        return isinstance(value, int | float) and value == 0
    if value.target is aten.scalar_tensor.default:
        number: Any = value.args[0]
        return bool(number == 0)
    return value.target is aten.zeros_like.default


# A norm over more entries than these, added one after the other, loses digits of float32.
ROW = 1024


def use_norms(graph: Graph, of_rows: bool) -> None:
    """Replace sums of squares by squares of norms, and the roots of these by the norms: one pass over memory.

    Args:
        graph: The graph.
        of_rows: Whether to do so for sums over short rows, too, not only for those over a leaf.
    """
    for node in list(graph.nodes):
        if node.target not in (aten.sum.default, aten.sum.dim_IntList) or node.kwargs:
            continue
        x = _base_of_square(node.args[0])
        if x is None or not same_meta(node.args[0], x):
            continue
        if x.meta["val"].numel() == 1:  # torch's norm does not square it: no underflow
            continue
        if node.meta.get("as_written") or node.args[0].meta.get("as_written"):
            continue
        if is_read_after_writing(node.args[0], arguments_of(x)):
            continue
        options: tuple[Any, ...] = ()
        if node.target is aten.sum.dim_IntList:
            if not of_rows or not _is_short_row(x, *node.args[1:2]):
                continue
            options = (2, *node.args[1:])
        with graph.inserting_before(node):
            norm = graph.call_function(aten.linalg_vector_norm.default, (x, *options))
        norm.meta = dict(node.meta)
        node.target, node.args = aten.mul.Tensor, (norm, norm)
        for user in list(node.users):
            if user.target is aten.sqrt.default:
                user.replace_all_uses_with(norm)
                graph.erase_node(user)


def _base_of_square(squares: Any) -> Node | None:
    """Return the list of which an operand is the square, if it is one."""
    if not isinstance(squares, Node) or len(squares.args) < 2:
        return None
    base, other, *_ = args_of(squares)
    is_product = squares.target is aten.mul.Tensor and base is other
    is_power = squares.target is aten.pow.Tensor_Scalar and other == 2
    return base if (is_product or is_power) and is_list(base) else None


def _is_short_row(x: Any, dims: Any) -> bool:
    """Whether some dimensions are the last ones, and have few entries."""
    shape = x.meta["val"].shape
    if not dims or not shape:
        return False
    last = range(len(shape) - len(dims), len(shape))
    is_last = sorted(dim % len(shape) for dim in dims) == list(last)
    return is_last and math.prod(shape[last.start :]) <= ROW
