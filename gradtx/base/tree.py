"""Trees of tensors and the dotted names of their leaves. The only module that touches torch.utils._pytree."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, namedtuple
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree

from gradtx.base.complex_views import check_complex, check_real

# Leaves by dotted name, and a function that rebuilds the tree from them.
Flat: TypeAlias = tuple[dict[str, Any], Callable[[Mapping[str, Any]], Any]]


def flatten(tree: Any, what: str) -> Flat:
    """Return the leaves of `tree` by dotted name, in tree order, and a function that rebuilds the tree from them.

    `None` is a leaf. A bare tensor has the empty name.

    Raises:
        TypeError: If a leaf is neither a floating-point or complex tensor nor None.
        ValueError: If two leaves have the same dotted name.
    """
    leaves, unflatten = flatten_any(tree, what)
    for name, leaf in leaves.items():
        check_leaf(name, leaf, what)
    return leaves, unflatten


def flatten_real(tree: Any, what: str) -> Flat:
    """Like `flatten`, but raise an error for complex leaves."""
    leaves, unflatten = flatten(tree, what)
    for name, leaf in leaves.items():
        check_real(name, leaf, what)
    return leaves, unflatten


def flatten_any(tree: Any, what: str) -> Flat:
    """Like `flatten`, for tensors of any dtype."""
    paths, spec = _pytree.tree_flatten_with_path(tree)
    names = [_dotted(path) for path, _ in paths]
    leaves = {name: leaf for name, (_, leaf) in zip(names, paths, strict=True)}
    if len(leaves) != len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise ValueError(
            f"{what}: two leaves are both named {twice!r}; rename a key, because leaves are identified by dotted name"
        )
    for name, leaf in leaves.items():
        if leaf is not None and not isinstance(leaf, Tensor):
            raise TypeError(
                f"{what}: leaf {name!r} is a {type(leaf).__name__}, needs a tensor or None; pass a tree of tensors, "
                "such as dict(model.named_parameters())"
            )

    def unflatten(values: Mapping[str, Any]) -> Any:
        return _pytree.tree_unflatten([values[name] for name in names], spec)

    return leaves, unflatten


class Keys(tuple[Any, ...]):
    """The keys of a container of any registered type, equal to those of a dict with the same ones.

    Attributes:
        rebuilt: Returns such a container of other children.
    """

    rebuilt: Callable[[Iterable[Any]], Any]


MAPPINGS = frozenset((OrderedDict, defaultdict))


def opened(tree: Any) -> tuple[Keys, list[Any]] | None:
    """Return the keys and the children of a container whose type is registered; None for anything else."""
    kind = _pytree._get_node_type(tree)
    node = _pytree.SUPPORTED_NODES.get(kind)
    if node is None:
        return None
    children, context = node.flatten_fn(tree)
    if kind in MAPPINGS:  # a shortcut, here and below
        keys = Keys(tree)
    elif kind is namedtuple:
        keys = Keys(tree._fields)
    elif node.flatten_with_keys_fn is not None:
        entries, _ = node.flatten_with_keys_fn(tree)
        keys = Keys(_key(key) for key, _ in entries)
    else:
        return None
    keys.rebuilt = lambda values: node.unflatten_fn(values, context)
    return keys, children


def check_leaf(name: str, leaf: Tensor | None, what: str) -> None:
    if leaf is None:
        return
    if leaf.layout is not torch.strided:
        raise TypeError(
            f"{what}: leaf {name!r} has layout {leaf.layout}, needs a dense tensor; call to_dense() on it"
        )
    if leaf.dtype.is_complex:
        check_complex(name, leaf, what)
    elif not leaf.dtype.is_floating_point:
        raise TypeError(
            f"{what}: leaf {name!r} has dtype {leaf.dtype}, needs a floating-point one; "
            "remove integer tensors from the tree, or pass it as the state if it is one"
        )


def match(tree: Any, names: Collection[str], what: str, of: str) -> dict[str, Any]:
    """Return the leaves of `tree` by name. The names must be exactly `names`, in any order, and the leaves real."""
    leaves, _ = flatten_real(tree, what)
    check_names(leaves, names, what, of)
    return leaves


def check_names(
    names: Collection[str], expected: Collection[str], what: str, of: str
) -> None:
    known, present = set(expected), set(names)
    for name in expected:
        if name not in present:
            raise ValueError(
                f"{what}: leaf {name!r} is missing, but is in {of}; leaves are matched by name"
            )
    for name in names:
        if name not in known:
            raise ValueError(
                f"{what}: leaf {name!r} is not in {of}; leaves are matched by name"
            )


def named(tree: Any) -> dict[str, Any]:
    """Return the leaves of a tree by dotted name, without checking their types."""
    paths, _ = _pytree.tree_flatten_with_path(tree)
    return {_dotted(path): leaf for path, leaf in paths}


def strings(tree: Any) -> dict[str, str]:
    """Return the leaves of a tree by dotted path if all of them are strings; else an empty dict."""
    leaves = named(tree)
    return leaves if all(isinstance(leaf, str) for leaf in leaves.values()) else {}


def tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in _pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def split(tree: Any) -> tuple[list[Tensor], Callable[[Sequence[Any]], Any]]:
    """Return the tensors of a tree of anything, and a function that puts others in their place."""
    leaves, spec = _pytree.tree_flatten(tree)
    indices = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def rebuild(tensors: Sequence[Any]) -> Any:
        values = list(leaves)
        for i, tensor in zip(indices, tensors, strict=True):
            values[i] = tensor
        return _pytree.tree_unflatten(values, spec)

    return [leaves[i] for i in indices], rebuild


def map_tensors(function: Callable[..., Any], *trees: Any) -> Any:
    """Map `function` over the tensors of trees with the same structure, such as a user's state."""
    return _pytree.tree_map(
        lambda *leaves: (
            function(*leaves) if isinstance(leaves[0], Tensor) else leaves[0]
        ),
        *trees,
    )


def register(kind: type, children: Sequence[str], constants: Sequence[str]) -> None:
    """Make a dataclass a tree, which `torch.vmap` may return.

    Args:
        kind: The class.
        children: Its fields that are trees.
        constants: Its other fields.
    """

    def names_in(instance: Any) -> list[str]:
        # None would be a leaf, which torch.vmap does not return.
        return [name for name in children if getattr(instance, name) is not None]

    def flatten_fields(instance: Any) -> tuple[list[Any], Any]:
        names = names_in(instance)
        others = {name: getattr(instance, name) for name in constants}
        return [getattr(instance, name) for name in names], (names, others)

    def with_keys(instance: Any) -> tuple[list[tuple[Any, Any]], Any]:
        trees, (names, others) = flatten_fields(instance)
        keys = map(_pytree.GetAttrKey, names)
        return list(zip(keys, trees, strict=True)), (names, others)

    def rebuilt(trees: Iterable[Any], context: Any) -> Any:
        names, others = context
        fields = dict.fromkeys(children) | dict(zip(names, trees, strict=True))
        return kind(**fields, **others)

    _pytree.register_pytree_node(
        kind, flatten_fields, rebuilt, flatten_with_keys_fn=with_keys
    )


def _dotted(path: Sequence[Any]) -> str:
    """Return the name of a leaf; a single key that is a string stays the same object."""
    keys = list(map(_key, path))
    return keys[0] if len(keys) == 1 else ".".join(keys)


def _key(key: Any) -> str:
    for attribute in ("key", "idx", "name"):
        if hasattr(key, attribute):
            value = getattr(key, attribute)
            return value if isinstance(value, str) else str(value)
    raise TypeError(f"unknown kind of tree key: {key!r}")
