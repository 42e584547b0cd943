"""The structures of trees, which belong to plans, and the tensors of one call, which are data.

None among updates is absence: which leaves have a gradient may be different in each call of one structure.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator, Mapping, Set
from types import NoneType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradtx.base import tree as _tree
from gradtx.base.exact import is_stored_only
from gradtx.base.plain import SHAPE, TYPES, is_plain
from gradtx.state.nested import LEAF_STEPS

NOTHING: frozenset[int] = frozenset()
NDIM, DEVICE_TYPE = operator.attrgetter("ndim"), operator.attrgetter("device.type")
STRINGS = frozenset((str,))
ON_HOST = frozenset(("cpu",))


class UnsuitableError(Exception):
    """Raised for a call that no plan can run."""


def is_scalar(value: Any) -> bool:
    """Whether an extra is a number, or a tensor of one, that programs take as an argument."""
    if is_plain(value):
        return value.ndim == 0 and not value.requires_grad
    return type(value) is float


def structure_of(
    tree: Any, tensors: list[Any], types: Set[type] = TYPES, opens: bool = False
) -> Any:
    """Return the structure of a tree of dicts, lists and tuples, and append its tensors in order to `tensors`.

    Args:
        tree: The tree.
        tensors: Receives its tensors.
        types: Their types.
        opens: Whether it may be a tensor, and have containers of any registered type, whose structure is that of dicts
            and rebuilds them.

    Raises:
        UnsuitableError: If the tree contains anything else.
    """
    head: Any = type(tree)  # torch 2.15 does not trace `__class__` of a dict
    values = tree
    if head is dict:
        head, values = tuple(tree), tree.values()
    elif opens and head in types:
        tensors.append(tree)
        return None
    elif tree is None:
        return "None"
    elif head is tuple or head is list:
        head = head.__name__  # dynamo has no constants that are types
    elif opens:
        head, values = _opened(tree)
    else:
        raise UnsuitableError
    # No instruction per tensor: dynamo takes 0.1 ms for each.
    if type(head) is not str and frozenset(map(type, values)) <= types:
        tensors.extend(values)
        return head, None
    children: list[Any] = []
    for value in values:
        if type(value) in types:
            tensors.append(value)
            children.append(None)
        else:
            children.append(structure_of(value, tensors, types, opens))
    return head, tuple(children)


def _opened(tree: Any) -> tuple[_tree.Keys, list[Any]]:
    """Return the keys and the children of a container.

    Raises:
        UnsuitableError: If there are none, or if the container cannot tell them.
    """
    try:
        container = _tree.opened(tree)
    except Exception as error:  # of a user's functions, it may be any
        raise UnsuitableError from error
    if container is None:
        raise UnsuitableError
    return container


def plain(structure: Any) -> Any:
    """Return a structure with dicts in place of other containers, of which it keeps nothing but the keys."""
    if structure is None or structure == "None":
        return structure
    head, children = structure
    if type(head) is _tree.Keys:
        head = tuple(head)
    return head, None if children is None else tuple(map(plain, children))


def count_of(structure: Any) -> int:
    """Return the number of tensors of a tree."""
    if structure is None:
        return 1
    if structure == "None":
        return 0
    keys, children = structure
    return len(keys) if children is None else sum(map(count_of, children))


def is_flat(structure: Any) -> bool:
    """Whether a tree is a dict of tensors, or another container of these, by strings."""
    if structure is None:
        return True
    keys, children = structure
    return children is None and STRINGS.issuperset(map(type, keys))


def have_own_names(structure: Any) -> bool:
    """Whether no two leaves of a tree have the same dotted name, as "a.b" beside "a" with "b"."""
    names = names_of(structure)
    return len(set(names)) == len(names)


def names_of(structure: Any, prefix: str = "") -> list[str]:
    """Return the dotted name of each leaf of a tree, after a prefix."""
    if structure is None or structure == "None":
        return [prefix]
    keys, children = structure
    if children is None:
        return [f"{prefix}.{key}" for key in keys]
    names: list[str] = []
    if isinstance(keys, str):
        keys = range(len(children))
    for key, child in zip(keys, children, strict=True):
        names += names_of(child, f"{prefix}.{key}")
    return names


def tree_of(structure: Any, leaves: Iterator[Any], opens: bool = False) -> Any:
    """Return a tree with this structure.

    Args:
        structure: The structure.
        leaves: The tensors.
        opens: Whether it may have other containers than dicts, lists and tuples.
    """
    if structure is None:
        return next(leaves)
    if structure == "None":
        return None
    kind, children = structure
    if opens and isinstance(kind, _tree.Keys):
        if children is None:
            return kind.rebuilt(list(itertools.islice(leaves, len(kind))))
        return kind.rebuilt([tree_of(child, leaves, opens) for child in children])
    if children is None:  # a dict of tensors
        return dict(zip(kind, leaves, strict=False))
    values = [tree_of(child, leaves, opens) for child in children]
    if kind == "list":
        return values
    if kind == "tuple":
        return tuple(values)
    return dict(zip(kind, values, strict=True))


class TensorSpec(NamedTuple):
    """What plans and compilers know of a tensor."""

    dtype: torch.dtype
    device: torch.device
    shape: torch.Size
    stride: tuple[int, ...]
    requires_grad: bool

    @classmethod
    def of(cls, tensor: Tensor) -> TensorSpec:
        return cls(
            tensor.dtype,
            tensor.device,
            tensor.shape,
            tensor.stride(),
            tensor.requires_grad,
        )

    def empty(self) -> Tensor:
        return torch.empty_strided(
            self.shape, self.stride, dtype=self.dtype, device=self.device
        )

    def stand_in(self) -> Tensor:
        """Return a tensor like this, without memory."""
        tensor = self.empty()
        tensor.untyped_storage().resize_(0)
        return tensor.requires_grad_(self.requires_grad)


class Trees(NamedTuple):
    """The trees of a call: updates, state and parameters.

    Attributes:
        structure: Their structure.
        tensors: Their tensors in order, and None in place of each update that is absent.
        absent: The indices of the latter.
        counts: The counts of leaves that have their own, in order; None if there are none, or all may be taken for
            equal.
        count_of_updates: How many updates there are, absent ones included.
    """

    structure: Any
    tensors: list[Any]
    absent: Set[int]
    counts: list[int] | None
    count_of_updates: int

    @classmethod
    def of(
        cls,
        updates: Any,
        state: Any,
        params: Any,
        counts: list[int] | None,
        types: Set[type] = TYPES,
    ) -> Trees:
        """Return the trees of a call with these counts, whose tensors have these types.

        Raises:
            UnsuitableError: If no plan takes them.
        """
        # Without parameters, nothing tells the shape of an absent leaf: which are absent is part of the structure.
        or_none = types if params is None else types | {NoneType}
        tensors: list[Any] = []
        of_updates = structure_of(updates, tensors, or_none, opens=True)
        absent = NOTHING
        if NoneType in map(type, tensors):
            absent = frozenset([i for i, x in enumerate(tensors) if x is None])
        count = len(tensors)
        of_state = structure_of(state, tensors, types)
        of_params = structure_of(params, tensors, types, opens=True)
        structure = "tuple", (of_updates, of_state, of_params)
        return cls(structure, tensors, absent, counts, count)

    def shapes(self) -> tuple[torch.Size, ...]:
        """Return the shapes of parameters and state, or if there are no parameters, of all tensors."""
        _, (*_, of_params) = self.structure
        start = 0 if of_params == "None" else self.count_of_updates
        return tuple(map(SHAPE, self.tensors[start:]))

    def present(self) -> list[Tensor]:
        """Return the tensors without those that are absent; this may be the same list."""
        if not self.absent:
            return self.tensors
        return [tensor for tensor in self.tensors if tensor is not None]

    def of_updates(self) -> list[Any]:
        """Return the updates in order, and None in place of each that is absent."""
        return self.tensors[: self.count_of_updates]

    def updates(self) -> Any:
        """Return the tree of updates."""
        return self.with_updates(self.of_updates())

    def with_updates(self, updates: list[Any]) -> Any:
        """Return the tree of updates with others in their place."""
        _, (of_updates, *_) = self.structure
        return tree_of(of_updates, iter(updates), opens=True)

    def filled(self, tensors: Mapping[int, Tensor]) -> Trees:
        """Return the trees with these tensors, by their indices, in place of absent updates."""
        filled = self.tensors.copy()
        for i, tensor in tensors.items():
            filled[i] = tensor
        return self._replace(tensors=filled, absent=self.absent - tensors.keys())

    def with_likely_updates(self, seen: Mapping[int, TensorSpec]) -> Trees:
        """Return the trees with a stand-in for each absent update that may be there in another call.

        Leaves without a parameter, or with one that torch only stores, never have one.

        Args:
            seen: What updates were in earlier calls.
        """
        if not self.absent:
            return self
        indices = iter(range(len(self.tensors)))
        updates, _, params = tree_of(plain(self.structure), indices)
        index_of_param: dict[str, int | None] = _tree.named(params)
        param_of: dict[int, Tensor] = {}
        for name, i in _tree.named(updates).items():
            index = index_of_param.get(name)
            if index is not None and not is_stored_only(self.tensors[index].dtype):
                param_of[i] = self.tensors[index]
        # Parameters of one dtype have gradients of one dtype.
        dtype_of = {
            param.dtype: self.tensors[i].dtype
            for i, param in param_of.items()
            if i not in self.absent
        }
        specs: dict[int, TensorSpec] = {}
        for i in self.absent & param_of.keys():
            param = param_of[i]
            spec = seen.get(i)
            if spec is None or spec.shape != param.shape:
                dtype = dtype_of.get(param.dtype, param.dtype)
                # As autograd lays out gradients.
                stride = torch.empty_like(param, device="meta").stride()
                spec = TensorSpec(dtype, param.device, param.shape, stride, False)
            specs[i] = spec
        # With memory, though values say nothing: leaves of 16 bits are converted, as those of a call are.
        return self.filled(
            {
                i: spec.empty().requires_grad_(spec.requires_grad)
                for i, spec in specs.items()
            }
        )


def counts_of(state: Any) -> list[int] | None:
    """Return the counts in a state with one count per leaf; else None.

    Raises:
        UnsuitableError: If the host cannot read them without waiting.
    """
    counts = state.get(LEAF_STEPS) if isinstance(state, dict) else None
    if not isinstance(counts, dict) or not counts:
        return None
    values = counts.values()
    are_plain = TYPES.issuperset(map(type, values)) and not any(map(NDIM, values))
    if not are_plain or not ON_HOST.issuperset(map(DEVICE_TYPE, values)):
        raise UnsuitableError
    return list(map(int, values))
