"""Solvers inside functions that `torch.compile` traces: one node of the graph, which runs the solver itself.

A graph has no loops that read values. A node is an operator of tensors, `gradtx::compute`, whose key names a function;
it runs when the graph runs, as without a compiler. The derivatives of a node, and nodes under `vmap`, are nodes with
other keys.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp

from gradtx.base import torch_names as _torch
from gradtx.meta.root import pulled, push, pushed
from gradtx.pure import structures as _trees

_KEYS = itertools.count()
Tensors = Sequence[Tensor]


@dataclass(eq=False)
class Computation:
    """A function of tensors that graphs call by its key.

    Attributes:
        key: Its name in graphs.
        function: Returns the results.
        count: The number of tensors that it takes.
        by: Those of the tensors by which results have derivatives.
        like: Those of the tensors that the results look like, one each.
        pull: Returns gradients by the tensors at `by`, given results, tensors and gradients of the results; None
            differentiates `function`.
        push: Returns tangents of the results, given results, tensors and tangents of the tensors at `by`.
        batched: Under `vmap`, whether each tensor has a leading dimension of the members; the results have one.
    """

    key: str
    function: Callable[[Tensors], Tensors]
    count: int
    by: list[int]
    like: list[int]
    pull: Callable[[Tensors, Tensors, Tensors], Tensors] | None = None
    push: Callable[[Tensors, Tensors, Tensors], Tensors] | None = None
    batched: tuple[bool, ...] = ()
    derived: dict[str, Computation] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _COMPUTATIONS[self.key] = self

    def empty(self, tensors: Tensors) -> list[Tensor]:
        """Return new tensors with the shapes, strides and dtypes of the results."""
        if not self.batched:
            return [torch.empty_like(tensors[i]) for i in self.like]
        size = next(
            t.shape[0] for t, is_so in zip(tensors, self.batched, strict=True) if is_so
        )
        results: list[Tensor] = []
        for i in self.like:
            shape = tensors[i].shape[1:] if self.batched[i] else tensors[i].shape
            results.append(tensors[i].new_empty((size, *shape)))
        return results

    def pulls(self) -> Computation:
        """Return the computation of gradients: of results, tensors, and gradients of results."""
        size = len(self.like)

        def function(tensors: Tensors) -> Tensors:
            results, inner, vectors = self._parts(tensors)
            if self.pull is not None:
                return self.pull(results, inner, vectors)
            return vjp(self._by(inner), *self._primals(inner))[1](tuple(vectors))

        vectors = range(size + self.count, 2 * size + self.count)
        return self._derive("pull", function, vectors, self._inner_by())

    def pushes(self) -> Computation:
        """Return the computation of tangents: of results, tensors, and tangents of tensors."""
        size = len(self.like)

        def function(tensors: Tensors) -> Tensors:
            results, inner, vectors = self._parts(tensors)
            if self.push is not None:
                return self.push(results, inner, vectors)
            return push(self._by(inner), self._primals(inner), tuple(vectors))

        start = size + self.count
        vectors = range(start, start + len(self.by))
        return self._derive("push", function, vectors, list(range(size)))

    def members(self, batched: tuple[bool, ...], randomness: str) -> Computation:
        """Return the computation for members of a `vmap`, whose tensors have a leading dimension if `batched`."""
        name = f"vmap {batched} {randomness}"
        if name not in self.derived:
            dims = tuple(0 if is_batched else None for is_batched in batched)
            function = torch.vmap(
                self._as_tuple,
                in_dims=dims,
                randomness=randomness,
            )
            self.derived[name] = Computation(
                f"{self.key}/{name}",
                lambda tensors: function(*tensors),
                self.count,
                self.by,
                self.like,
                batched=batched,
            )
        return self.derived[name]

    def _as_tuple(self, *tensors: Any) -> tuple[Tensor, ...]:
        return tuple(self.function(tensors))

    def _derive(
        self, name: str, function: Any, vectors: range, like: list[int]
    ) -> Computation:
        if name not in self.derived:
            size = len(self.like)
            by = [*range(size), *self._inner_by(), *vectors]
            key = f"{self.key}/{name}"
            count = size + self.count + len(vectors)
            self.derived[name] = Computation(key, function, count, by, like)
        return self.derived[name]

    def _inner_by(self) -> list[int]:
        return [len(self.like) + i for i in self.by]

    def _parts(self, tensors: Tensors) -> tuple[Tensors, Tensors, Tensors]:
        """Split the tensors of a derivative into results, tensors, and vectors."""
        start = len(self.like)
        end = start + self.count
        return tensors[:start], tensors[start:end], tensors[end:]

    def _primals(self, tensors: Tensors) -> tuple[Tensor, ...]:
        return tuple(tensors[i] for i in self.by)

    def _by(self, tensors: Tensors) -> Callable[..., Any]:
        """Return the function of the tensors at `by`."""

        def function(*values: Tensor) -> tuple[Tensor, ...]:
            inputs = list(tensors)
            for i, value in zip(self.by, values, strict=True):
                inputs[i] = value
            return tuple(self.function(inputs))

        return function


# Graphs do not keep computations alive; the solvers do.
_COMPUTATIONS: weakref.WeakValueDictionary[str, Computation] = (
    weakref.WeakValueDictionary()
)


# Dynamo traces this function, and calls those that it names.


def solution(
    args: tuple[Any, ...], node_key: Callable[[Any, tuple[bool, ...]], str]
) -> tuple[Any] | None:
    """Return the solution from a node, in a tuple; None if the graph must be in two parts.

    Args:
        args: The start and the arguments.
        node_key: Calls `node_key_of` with a solver.
    """
    tensors: list[Tensor] = []
    try:
        structure = _trees.structure_of(args, tensors)
    except _trees.UnsuitableError:
        return None
    are_real = tuple(tensor.is_floating_point() for tensor in tensors)
    key = node_key(structure, are_real)
    if not key:
        return None
    results = _node(key, tensors)
    _, (of_start, *_) = structure
    return (_trees.tree_of(of_start, iter(results)),)


def node_key_of(implicit: Any, structure: Any, are_real: tuple[bool, ...]) -> str:
    """Return the key of a node; empty if there is none."""
    torch.compiler.allow_in_graph(_node)
    _, parts = structure
    size, *sizes = map(_trees.count_of, parts)
    if implicit.has_aux or not size:
        return ""  # the solution is not known before the solver has run
    flags = implicit.differentiable(sizes)
    by = [i for i in range(size, len(are_real)) if are_real[i] and flags[i - size]]

    def call_of(tensors: Tensors) -> Any:
        start, *args = _trees.tree_of(structure, iter(tensors))
        return implicit.call_like_start(start, tuple(args))

    def solved(tensors: Tensors) -> Tensors:
        call = call_of(tensors)
        names = call.names
        found = call.solution(tensors)
        shapes = [leaf.shape for leaf in tensors[:size]]
        if call.names != names or [leaf.shape for leaf in found] != shapes:
            raise ValueError(
                f"{call.who}: inside torch.compile, start must be a tree like the solution, with its shapes"
            )
        call.check(list(found), tensors[size:])
        return found

    def pull(results: Tensors, tensors: Tensors, vectors: Tensors) -> Tensors:
        return pulled(call_of(tensors), results, tensors, vectors, by)

    def push(results: Tensors, tensors: Tensors, vectors: Tensors) -> Tensors:
        changes = dict(zip(by, vectors, strict=True))
        return pushed(call_of(tensors), results, tensors, changes)

    like = list(range(size))
    key = f"solution {next(_KEYS)}"
    computation = Computation(key, solved, len(are_real), by, like, pull, push)
    implicit.computations.append(computation)
    return key


def _node(key: str, tensors: list[Tensor]) -> list[Tensor]:
    if _torch.forward_levels(tensors) > 1:
        raise RuntimeError(
            "torch has no forward mode of forward mode for a solution; use torch.func.grad for one of the two "
            "derivatives"
        )
    return list(_Node.apply(key, *tensors))


class _Node(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(key: str, *tensors: Tensor) -> Any:
        return tuple(torch.ops.gradtx.compute(key, list(tensors)))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.key, *tensors = inputs
        ctx.save_for_backward(*output, *tensors)
        ctx.save_for_forward(*output, *tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        computation = _COMPUTATIONS[ctx.key]
        pull = computation.pulls().key
        found = _Node.apply(pull, *ctx.saved_tensors, *cotangents)
        gradients: list[Tensor | None] = [None] * computation.count
        for i, gradient in zip(computation.by, found, strict=True):
            gradients[i] = gradient
        return (None, *gradients)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        computation = _COMPUTATIONS[ctx.key]
        tensors = ctx.saved_tensors[len(computation.like) :]
        vectors: list[Tensor] = []
        for i in computation.by:
            tangent = tangents[1 + i]
            still = tangent is None
            vectors.append(torch.zeros_like(tensors[i]) if still else tangent)
        return _Node.apply(computation.pushes().key, *ctx.saved_tensors, *vectors)


# The operator.


@_torch.not_traced
def _computed(key: str, tensors: list[Tensor]) -> list[Tensor]:
    computation = _COMPUTATIONS[key]
    with _torch.as_at_top_level():
        inputs = [tensor.detach() for tensor in tensors]
        found = computation.function(inputs)
    # In the strides that the operator has announced, and no view of an argument.
    results = computation.empty(inputs)
    return [
        result.copy_(leaf.detach()) for result, leaf in zip(results, found, strict=True)
    ]


def _empty(key: str, tensors: list[Tensor]) -> list[Tensor]:
    return _COMPUTATIONS[key].empty(tensors)


def _of_members(info: Any, in_dims: Any, key: str, tensors: list[Tensor]) -> Any:
    dims = in_dims[1]
    moved = [
        tensor if dim is None else tensor.movedim(dim, 0)
        for tensor, dim in zip(tensors, dims, strict=True)
    ]
    batched = tuple(dim is not None for dim in dims)
    members = _COMPUTATIONS[key].members(batched, info.randomness)
    results = torch.ops.gradtx.compute(members.key, moved)
    return results, [0] * len(results)


_LIBRARY = torch.library.Library("gradtx", "FRAGMENT")
_LIBRARY.define("compute(str key, Tensor[] tensors) -> Tensor[]")
_LIBRARY.impl("compute", _computed, "CompositeExplicitAutograd")
torch.library.register_fake("gradtx::compute", _empty, lib=_LIBRARY)
torch.library.register_vmap("gradtx::compute", _of_members, lib=_LIBRARY)
