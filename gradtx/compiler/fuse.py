"""Shorten recorded graphs: merge equal operations, and fuse a product that is added with the sum.

Every operation on lists reads and writes whole tensors, so each operation saved reduces memory traffic.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Node

from gradtx.base import torch_names as _torch
from gradtx.compiler import scalar_operations
from gradtx.compiler.graph import (
    args_of,
    arguments_of,
    computes,
    is_list,
    is_on_device,
    is_on_host,
    is_scalar,
    same_meta,
    writers,
)

aten = torch.ops.aten

_Call = tuple[Any, tuple[Any, ...], dict[str, Any]]


def merge_equal(graph: Graph) -> None:
    """Compute equal operations only once."""
    first: dict[str, Node] = {}
    for node in list(graph.nodes):
        if not computes(node):
            continue
        operation = f"{node.target} {node.args} {node.kwargs}"
        equal = first.setdefault(operation, node)
        if equal is not node:
            node.replace_all_uses_with(equal)
            graph.erase_node(node)


def remove_unused(graph: Graph) -> None:
    """Remove operations without users and effects; torch's own function checks the whole graph as well."""
    for node in reversed(graph.nodes):
        if computes(node) and not node.users:
            graph.erase_node(node)


def fuse(graph: Graph) -> None:
    """Fuse operations for which torch has a single one; those that take scalars take only Python scalars."""
    for change in (
        _Fusion.canonicalize,
        _Fusion.join,
        _Fusion.move_weight_first,
    ):
        written: set[Node] = set()
        fusion = _Fusion(written)
        for node in list(graph.nodes):
            if not node.meta.get("as_written"):
                change(fusion, node)
            if _torch.writes(node.target):
                written.add(node.args[0])
        # A replaced operation no longer counts as a user of its operands.
        remove_unused(graph)


@dataclass(frozen=True)
class _Term:
    """A term of a sum: a multiple of a list, or of the product or quotient of two.

    Attributes:
        target: The operation that adds it to another list.
        lists: One or two lists.
        factor: A scalar, as a node or a constant.
        saved: The number of operations saved by fusing the term into the sum.
    """

    target: Any
    lists: list[Node]
    factor: Any = 1
    saved: int = 1


class _Fusion:
    """Changes operations in the order of the graph.

    Args:
        written: The arguments that earlier operations write.
    """

    def __init__(self, written: Set[Node]):
        self._written = written

    def _are_unchanged(self, *lists: Node) -> bool:
        """Whether lists still have their values here, so that an operation that reads them may move here."""
        return not self._written or self._written.isdisjoint(arguments_of(*lists))

    # Replacing single operations.

    def canonicalize(self, node: Node) -> None:
        """Use operations available for lists: products for squares and quotients, single bounds, one factor for two."""
        if node.op != "call_function" or not any(map(is_list, node.all_input_nodes)):
            return
        if node.target is aten.pow.Tensor_Scalar and node.args[1] == 2:
            base = node.args[0]
            _replace(node, aten.mul.Tensor, (base, base))
        elif node.target is aten.pow.Tensor_Tensor:
            self._use_scalar_exponent(node)
        elif node.target is aten.div.Tensor:
            self._multiply_instead(node)
        elif node.target is aten.neg.default:
            self._negate_factor(node)
        elif node.target in (aten.sum.default, aten.sum.dim_IntList):
            self._sum_without_factor(node)
        elif node.target in (aten.clamp.default, aten.clamp.Tensor):
            self._split_clamp(node)
        if node.target is aten.mul.Tensor:
            self._merge_factors(node)
            self._move_factors_out(node)

    def _use_scalar_exponent(self, node: Node) -> None:
        """Replace a power with a scalar tensor as exponent by one with a scalar."""
        base, exponent = args_of(node)
        if is_list(base) and is_on_host(exponent) and same_meta(node, base):
            _replace(node, aten.pow.Tensor_Scalar, node.args)

    def _negate_factor(self, node: Node) -> None:
        """Replace -(a x) by (-a) x for a scalar a."""
        factor, inner = self._absorbable_factor_of(node.args[0], node)
        if inner is not None:
            _replace(
                node,
                aten.mul.Tensor,
                (inner, _scalar(aten.neg.default, (factor,), node)),
            )

    def _sum_without_factor(self, node: Node) -> None:
        """Replace the sum of a x by a times the sum of x, for a scalar a."""
        scaled: Any = node.args[0]
        factor, inner = _factor_of(scaled)
        if inner is None or node.kwargs or not _can_absorb(scaled, node):
            return
        if not same_meta(scaled, inner) or not self._are_unchanged(inner):
            return
        total = _list(node.target, (inner, *node.args[1:]), node)
        _replace(node, aten.mul.Tensor, (total, factor))

    def _multiply_instead(self, node: Node) -> None:
        """Replace a quotient by a scalar by a product; take factors out of a quotient of lists."""
        dividend, divisor = args_of(node)
        if is_list(dividend) and _has_inverse(divisor):
            inverse = _scalar(aten.reciprocal.default, (divisor,), node)
            _replace(node, aten.mul.Tensor, (dividend, inverse))
        elif _divides_lists(node) and same_meta(node, dividend, divisor):
            self._scale_quotient(node)

    def _scale_quotient(self, node: Node) -> None:
        """Turn (c a) / b into c (a / b): other operations can include the factor there."""
        dividend, divisor = args_of(node)
        factor = self._without_root(divisor, node)
        inner_factor, inner = self._absorbable_factor_of(dividend, node)
        if inner is not None:
            dividend = inner
            if factor is not None:
                factors = factor, inner_factor
                inner_factor = _scalar(aten.mul.Tensor, factors, node)
            factor = inner_factor
        if factor is None:
            return
        quotient = _list(aten.div.Tensor, (dividend, divisor), node)
        _replace(node, aten.mul.Tensor, (quotient, factor))

    def _without_root(self, divisor: Node, quotient: Node) -> Any:
        """Turn the divisor b / r + e into b + r e, where r is the root of a number, as in bias corrections.

        Other values may be infinite, and the second form is then NaN.

        Returns:
            r, by which the quotient is to be multiplied; None if the divisor has another form.
        """
        if divisor.target is not aten.add.Tensor or divisor.kwargs:
            return None
        if not _can_absorb(divisor, quotient):
            return None
        scaled, shift = divisor.args
        inverse, b = _factor_of(scaled)
        if b is None or not is_scalar(shift):
            return None
        if not _can_absorb(scaled, divisor) or not same_meta(divisor, b):
            return None
        root = _root_inverted_by(inverse)
        if root is None:
            return None
        scaled_shift = _scalar(aten.mul.Tensor, (shift, root), divisor)
        _replace(divisor, aten.add.Tensor, (b, scaled_shift))
        return root

    def _split_clamp(self, node: Node) -> None:
        """Replace `clamp` with scalar bounds by `clamp_min` and `clamp_max`."""
        x, *bounds = node.args
        if node.kwargs or not all(map(is_on_host, bounds)):
            return
        if not is_list(x) or not same_meta(node, x):
            return
        least, *rest = bounds
        most = rest[0] if rest else None
        if most is None:
            _replace(node, aten.clamp_min.default, (x, least))
            return
        if least is not None:
            x = _list(aten.clamp_min.default, (x, least), node)
        _replace(node, aten.clamp_max.default, (x, most))

    def _merge_factors(self, node: Node) -> None:
        """Replace a * (b * x) by (a * b) * x for scalars a and b."""
        factor, scaled = _factor_of(node)
        inner_factor, inner = self._absorbable_factor_of(scaled, node)
        if inner is not None:
            both_factors = _scalar(aten.mul.Tensor, (factor, inner_factor), node)
            _replace(node, aten.mul.Tensor, (inner, both_factors))

    def _absorbable_factor_of(self, scaled: Any, user: Node) -> tuple[Any, Any]:
        """Return `(scalar, list)` if an operand is their product and its user may read the list instead.

        Else return `(None, None)`.
        """
        factor, inner = _factor_of(scaled)
        if inner is None or not _can_absorb(scaled, user):
            return None, None
        if not same_meta(user, inner) or not self._are_unchanged(inner):
            return None, None
        return factor, inner

    def _move_factors_out(self, node: Node) -> None:
        """Replace (a / x) y and (a x) y by a (y / x) and a (x y), for a scalar a and lists x and y."""
        x, y = args_of(node)
        if x is y or not is_list(x) or not is_list(y):
            return
        if not self._move_factor_out(node, x, y):
            self._move_factor_out(node, y, x)

    def _move_factor_out(self, node: Node, scaled: Node, other: Node) -> bool:
        """Take the factor out of one operand of a product; return whether it has one."""
        if not _can_absorb(scaled, node):
            return False
        if scaled.target is aten.div.Tensor and is_scalar(scaled.args[0]):
            factor, inner = args_of(scaled)
            target, lists = aten.div.Tensor, (other, inner)
        else:
            factor, inner = _factor_of(scaled)
            target, lists = aten.mul.Tensor, (inner, other)
        if inner is None:
            return False
        if not same_meta(node, inner, other) or not self._are_unchanged(inner):
            return False
        unscaled = _list(target, lists, node)
        _replace(node, aten.mul.Tensor, (unscaled, factor))
        node.graph.erase_node(scaled)
        self.canonicalize(unscaled)
        self._merge_factors(node)
        return True

    # Sums.

    def join(self, node: Node) -> None:
        """Fuse a term of a sum into the operation that adds it.

        Not by `lerp`, which computes a + w (b - a) for (1 - w) a + w b: once a is infinite, that is not a number.
        """
        if node.target not in (aten.add.Tensor, aten.sub.Tensor):
            return
        x, y, *_ = args_of(node)
        if node.kwargs or not is_list(x) or not is_list(y):
            return
        if not same_meta(node, x, y):
            return
        if node.target is aten.sub.Tensor:
            self._join_best(node, [(x, y)])
        else:
            self._join_best(node, [(x, y), (y, x)])

    def _join_best(self, node: Node, candidates: list[tuple[Node, Node]]) -> None:
        """Fuse the term that saves most operations, if any; `candidates` are pairs of the rest of a sum and a term."""
        best: tuple[Node, _Term] | None = None
        for rest, added in candidates:
            term = _term_of(added, node)
            if term is None or _scales_in_place(node, rest, term):
                continue
            if is_on_device(term.factor):
                continue
            if not self._are_unchanged(*term.lists):
                continue
            if best is None or term.saved > best[1].saved:
                best = rest, term
        if best is not None:
            self._absorb(node, *best)

    def _absorb(self, node: Node, rest: Node, term: _Term) -> None:
        factor = term.factor
        if node.target is aten.sub.Tensor:
            factor = _scalar(aten.neg.default, (factor,), node)
        option = _FACTORS[term.target]
        _replace(node, term.target, (rest, *term.lists), {option: factor})

    def move_weight_first(self, update: Node) -> None:
        """Save an operation of a step p + s u whose update u pulls the weight p.

        With u = c p + y, the weight p + (s c) p takes s y in place; with u = c (x - p) + y, `lerp(p, x, s c)` does. y
        is a list, or a product or quotient of two. Not (1 + s c) p: a small s c would be lost in the rounding of 1.
        """
        if len(update.users) != 1 or not is_list(update):
            return
        step = next(iter(update.users))
        weight = _weight_of(step, update)
        if weight is None or not self._are_unchanged(weight):
            return
        pull, rest = _parts_of(update, weight)
        if pull is None:
            return
        size = step.kwargs.get("alpha", 1)
        factors = (size, pull.factor, 1 if rest is None else rest.factor)
        if any(map(is_on_device, factors)):
            return
        if rest is None and size == pull.factor == 1 and _replaces(pull.goal, weight):
            goal: Any = pull.goal
            step.replace_all_uses_with(goal)
            step.graph.erase_node(step)
            return
        _move_before(update, size)
        target, args, kwargs = _pulled(weight, pull, size, update)
        if rest is not None:
            pulled = _list(target, args, update, kwargs)
            target, args = rest.target, (pulled, *rest.lists)
            factor = _scalar(aten.mul.Tensor, (size, rest.factor), update)
            kwargs = {_FACTORS[target]: factor}
        _replace(update, target, args, kwargs)
        step.replace_all_uses_with(update)
        step.graph.erase_node(step)


def _has_inverse(scalar: Any) -> bool:
    """Whether a scalar has an inverse: not a literal zero, nor a whole number on a device, which loses digits."""
    if is_on_device(scalar):
        return scalar.meta["val"].is_floating_point()
    return is_scalar(scalar) and scalar != 0


def _pulled(weight: Node, pull: _Pull, size: Any, user: Node) -> _Call:
    """Return the call that adds a pull, times a scalar, to a weight."""
    factor = _scalar(aten.mul.Tensor, (size, pull.factor), user)
    if pull.goal is None:
        return aten.add.Tensor, (weight, weight), {"alpha": factor}
    return aten.lerp.Scalar, (weight, pull.goal, factor), {}


def _move_before(node: Node, scalar: Any) -> None:
    """Move a scalar, and those that it is computed from, before a node."""
    if isinstance(scalar, Node) and scalar.op == "call_function" and node < scalar:
        node.prepend(scalar)
        for argument in scalar.all_input_nodes:
            _move_before(scalar, argument)


# Nodes.


def _scalar(target: Any, args: tuple[Any, ...], user: Node) -> Any:
    """Insert an operation on scalars before a node; return its result if they are constants."""
    if not any(isinstance(operand, Node) for operand in args):
        return scalar_operations.IN_PYTHON[target.overloadpacket](*args)
    with user.graph.inserting_before(user):
        node = user.graph.call_function(target, args)
    node.meta["val"] = torch.empty((), dtype=torch.float64, device="meta")
    node.meta["kind"] = "scalar"
    node.meta["on_device"] = any(map(is_on_device, args))
    return node


def _list(
    target: Any,
    args: tuple[Any, ...],
    user: Node,
    kwargs: dict[str, Any] | None = None,
) -> Node:
    """Insert an operation on lists before a node whose result has the same shape and dtype."""
    with user.graph.inserting_before(user):
        node = user.graph.call_function(target, args, kwargs)
    node.meta = dict(user.meta)
    return node


def _replace(
    node: Node,
    target: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None = None,
) -> None:
    node.target = target
    node.args = args
    node.kwargs = kwargs or {}


@dataclass(frozen=True)
class _Pull:
    """A term `factor * p` of the update of a weight p, or `factor * (goal - p)`.

    Attributes:
        factor: A scalar.
        goal: A list or None.
    """

    factor: Any
    goal: Node | None


# The argument of operations that multiplies what they add.
_FACTORS = {
    aten.add.Tensor: "alpha",
    aten.addcmul.default: "value",
    aten.addcdiv.default: "value",
}


def _weight_of(step: Node, update: Node) -> Node | None:
    """Return the weight p if a node is the step p + s u, with an update u, and written into p."""
    if step.target is not aten.add.Tensor or step.meta.get("as_written"):
        return None
    weight, added = args_of(step)
    if added is not update or not is_list(weight):
        return None
    is_next = any(
        user.target is aten.copy_.default and user.args[0] is weight
        for user in step.users
    )
    return weight if is_next and same_meta(step, weight, update) else None


def _parts_of(update: Node, weight: Node) -> tuple[_Pull | None, _Term | None]:
    """Return the term of a fused update that depends on the weight, if it has this form, and the rest if any."""
    pull = _pull_of(update, weight)
    target: Any = update.target
    if pull is not None or target not in _FACTORS or not all(map(is_list, update.args)):
        return pull, None
    first, *rest = args_of(update)
    factor = update.kwargs.get(_FACTORS[target], 1)
    pull = _pull_of(first, weight) if _can_absorb(first, update) else None
    if pull is not None:
        return pull, _Term(target, rest, factor)
    if target is aten.add.Tensor and rest == [weight]:  # y + c p
        return _Pull(factor, None), _Term(target, [first])
    return None, None


def _pull_of(term: Node, weight: Node) -> _Pull | None:
    """Return a term of a weight's update as a pull, if it is one."""
    factor, inner = _factor_of(term)
    if inner is weight:
        return _Pull(factor, None)
    if inner is None:
        factor, inner = 1, term
    elif not _can_absorb(inner, term):
        return None
    if inner.target is not aten.sub.Tensor or inner.kwargs:
        return None
    goal, subtracted = args_of(inner)
    if subtracted is not weight:
        return None
    return _Pull(factor, goal) if is_list(goal) and same_meta(inner, goal) else None


def _replaces(goal: Any, weight: Node) -> bool:
    """Whether p + (x - p) is x: x is computed from the weight p, so that it is not a number where p is none."""
    if goal is None or arguments_of(goal):
        return False  # an argument may be written before the weight is
    unvisited, seen = [goal], {goal}
    while unvisited:
        operands = set(unvisited.pop().all_input_nodes) - seen
        unvisited.extend(operands)
        seen |= operands
    return weight in seen


def _factor_of(node: Any) -> tuple[Any, Any]:
    """Return `(scalar, list)` if a node is their product, else `(None, None)`."""
    if not isinstance(node, Node) or node.target is not aten.mul.Tensor:
        return None, None
    x, y = node.args
    if is_scalar(x) and is_list(y):
        return x, y
    if is_scalar(y) and is_list(x):
        return y, x
    return None, None


def _root_inverted_by(scalar: Any) -> Any:
    """Return r if a scalar is 1 / r, where r is the root of a scalar; else None."""
    if not isinstance(scalar, Node) or scalar.target is not aten.reciprocal.default:
        return None
    root = scalar.args[0]
    if not isinstance(root, Node) or root.target is not aten.sqrt.default:
        return None
    return root


def _divides_lists(node: Node) -> bool:
    return node.target is aten.div.Tensor and all(map(is_list, node.args))


def _term_of(added: Node, user: Node) -> _Term | None:
    """Return a term of a sum that may be fused with it, if nothing else uses the term."""
    if not _can_absorb(added, user):
        return None
    if added.target is aten.neg.default:
        factor, inner = -1, args_of(added)[0]
    else:
        factor, inner = _factor_of(added)
    if inner is None:
        return _product_of_lists(1, added, 1)
    if not same_meta(added, inner):
        return None
    product = None
    if _can_absorb(inner, added):
        product = _product_of_lists(factor, inner, 2)
    return product or _Term(aten.add.Tensor, [inner], factor)


def _product_of_lists(factor: Any, node: Node, saved: int) -> _Term | None:
    """Return a scalar times a quotient or a product of lists, if a node is one of these."""
    target = aten.addcmul.default
    if _divides_lists(node):
        target = aten.addcdiv.default
    elif node.target is not aten.mul.Tensor or _factor_of(node)[1] is not None:
        return None
    lists = list(args_of(node))
    return _Term(target, lists, factor, saved) if same_meta(node, *lists) else None


def _can_absorb(node: Any, user: Node) -> bool:
    """Whether an operation may become part of its user: nothing else reads it, and it may be joined with others."""
    return list(node.users) == [user] and not node.meta.get("as_written")


def _scales_in_place(node: Node, rest: Node, term: _Term) -> bool:
    """Whether a sum may overwrite its scaled term, an argument such as a momentum, but not the rest, a gradient.

    Scaling and adding in place then takes as many operations as a fused sum and a copy, and no temporary. A negative
    gradient is treated like a gradient, so that `maximize` changes no other bit.
    """
    argument, *others = term.lists
    if others:
        return False
    unsigned: Any = rest.args[0] if rest.target is aten.neg.default else rest
    if unsigned.op != "placeholder" or argument.op != "placeholder":
        return False
    written = [writer.args[1] for writer in writers(argument)]
    return written == [node] and len(argument.users) == 2  # the product, and the copy
