"""Selectors: name patterns and predicates that choose leaves, and the names that they see."""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, TypeAlias, TypeGuard

import torch

from gradtx.base import torch_names as _torch
from gradtx.base import tree as _tree
from gradtx.base.errors import Path
from gradtx.base.inputs import accepts, as_builtin
from gradtx.base.messages import describe, shortly

# Or a tree of bools, or a function of the tree of parameters that returns one.
Where = str | tuple[str, ...] | list[str] | Callable[..., Any] | Mapping[str, Any]
Patterns: TypeAlias = tuple[str, ...]
Predicate: TypeAlias = Callable[[str, Any], Any]


# Of torch.compile, FSDP1 and activation checkpoints: parts that these insert anywhere in a name.
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def without_wrappers(name: str) -> str:
    """Return a parameter's name without the parts that wrappers of modules insert, except DistributedDataParallel."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def in_model(names: Iterable[str]) -> list[str]:
    """Return the names that a model's parameters have without wrappers of modules.

    DistributedDataParallel puts `module.` before all names. Elsewhere it is a child of that name.
    """
    bare = list(map(without_wrappers, names))
    while bare and all(name.startswith("module.") for name in bare):
        bare = [name.removeprefix("module.") for name in bare]
    return bare


def named_in_model(model: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    """Return the parameters with their names in the model without wrappers."""
    named = dict(model.named_parameters())
    return list(zip(in_model(named), named.values(), strict=True))


class NumberedName(str):
    """The number of a parameter that was passed without a name, in place of its name."""


class MissingName:
    """What a function receives as the name of a parameter without one; reading it raises an error.

    Not a string: regular expressions and other functions in C would read that without a trace.
    """

    def _read(self, *_: Any) -> Any:
        name = type(self).__name__
        raise TypeError(f"{name} was read: pass model.named_parameters()")

    __str__ = __repr__ = __hash__ = __eq__ = __ne__ = __bool__ = _read


PREDICATE = "bool, for one leaf, such as lambda name, tensor: tensor.ndim > 1"
LABELS = "label, for one leaf; with one argument, it gets all parameters and returns a tree of labels"


def check_signature(
    who: str, function: Callable[..., Any], arguments: tuple[str, ...], returns: str
) -> None:
    """Raise an error for a function of leaves that cannot be called with these arguments.

    Args:
        who: What the function was passed to.
        function: The user's function.
        arguments: The names of the arguments that it will receive.
        returns: What it must return, for the message.

    Raises:
        TypeError: If it takes other arguments, as the functions of a whole tree of optax and torch's hooks do.
    """
    # Dynamo does not trace `inspect`; the call itself raises Python's error there.
    if torch.compiler.is_compiling() or accepts(function, *arguments):
        return
    raise TypeError(
        f"{who}: a function here is called as ({', '.join(arguments)}) and returns a {returns}; "
        f"{describe(function)} takes {inspect.signature(function)}"
    )


def answer(who: str, function: Callable[..., Any], name: str, *others: Any) -> Any:
    """Call a user's function of a leaf's name.

    Raises:
        ValueError: If it reads the name of a leaf without one.
    """
    is_missing = isinstance(name, NumberedName)
    shown = MissingName() if is_missing else without_wrappers(name)
    try:
        return function(shown, *others)
    except (TypeError, AttributeError) as error:
        if is_missing and MissingName.__name__ in str(error):
            raise ValueError(
                f"{who}: {describe(function)} reads the names of parameters, which were passed without names; pass "
                "model.named_parameters()"
            ) from error
        received = "the name and the tensor" if others else "the name"
        error.add_note(
            f"{who}: {describe(function)} gets {received} of a leaf, here {name!r}"
        )
        raise


@_torch.assume_constant
def _matches(name: str, group: Patterns) -> bool:
    """Whether a name matches one of several patterns."""
    name = without_wrappers(name)
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in group)


class Selector:
    """Choose a label for a leaf: the first label whose pattern matches or whose predicate is true.

    Patterns depend only on the name and are evaluated at any time. A predicate sees the parameter at init, and the
    state stores its decision.

    Attributes:
        labels: The labels, in the order in which they are tried.
        branches: The labels in the order of the branches; None if the choice is between True and False.
        by_name: Whether the choice depends only on names.
    """

    def __init__(
        self,
        who: str,
        labels: tuple[Any, ...],
        wheres: tuple[Where, ...] | Predicate | LabelTree | TreeFunction,
        branches: tuple[str, ...] | None = None,
    ):
        self.who = who
        self.labels = labels
        self.branches = branches
        if isinstance(wheres, tuple):
            wheres = tuple(patterns(who, where) for where in wheres)
        elif not isinstance(wheres, LabelTree | TreeFunction):
            check_signature(who, wheres, ("name", "tensor"), LABELS)
        # Of each label, or a function that returns the label.
        self._wheres: Any = wheres
        by_label = wheres if isinstance(wheres, tuple) else (wheres,)
        self.by_name = all(isinstance(where, tuple | LabelTree) for where in by_label)

    @classmethod
    def of(cls, who: str, where: Any, trees: bool = False) -> Selector:
        """Create a selector that chooses True where `where` matches, else False.

        `trees` allows a tree of bools with the structure of the parameters or of a prefix of it, or a function of
        the whole tree of parameters that returns one.
        """
        if trees and takes_tree(where):
            return cls(who, (True, False), TreeFunction(where))
        if trees and isinstance(where, Mapping):
            return cls(who, (True, False), LabelTree(_flags(who, where), who))
        return cls(who, (True, False), (where, "*"))

    @property
    def needs_tree(self) -> bool:
        """Whether it asks a function of the whole tree; see `resolved`."""
        return isinstance(self._wheres, TreeFunction)

    def resolved(self, params: Any) -> Selector:
        """Return the selector that a function of the whole tree determines for these parameters."""
        function = self._wheres.function
        try:
            tree = function(params)
        except Exception as error:
            error.add_note(
                f"{self.who}: {describe(function)} has one argument, so it gets the tree of all parameters; a function "
                "for one leaf takes (name, tensor)"
            )
            raise
        if self.branches is None:
            labels = _flags(self.who, tree)
        else:
            labels = {"": tree} if isinstance(tree, str) else _tree.strings(tree)
        if not labels:
            raise TypeError(
                f"{self.who}: {describe(function)} must return a tree of labels with the structure of the parameters, "
                f"got {describe(tree)}"
            )
        return Selector(
            self.who, self.labels, LabelTree(labels, self.who), self.branches
        )

    @property
    def key(self) -> Hashable:
        """A key that is equal for selectors that choose alike, such as those of an alias that rebuilds its chain."""
        if isinstance(self._wheres, LabelTree):
            return self.labels, tuple(self._wheres.labels.items())
        if isinstance(self._wheres, TreeFunction):
            return self.labels, id(self._wheres.function)
        if not isinstance(self._wheres, tuple):
            return self.labels, id(self._wheres)
        return self.labels, tuple(
            where if isinstance(where, tuple) else id(where) for where in self._wheres
        )

    def choose(self, name: str, tensor: Any) -> Any:
        if not isinstance(self._wheres, tuple):
            label = self._answer(self._wheres, name, tensor)
            if label not in self.labels:
                raise ValueError(
                    f"{self.who}: leaf {name!r} has the unknown label {label!r}; labels: {listed(self.labels)}"
                )
            return label
        for label, where in zip(self.labels, self._wheres, strict=True):
            if self._answer(where, name, tensor):
                return label
        raise ValueError(
            f"{self.who}: leaf {name!r} has no label; add a pattern that matches it, such as '*' for the rest"
        )

    def _answer(self, where: Any, name: str, tensor: Any) -> Any:
        """Return what patterns or a function say about a leaf."""
        if isinstance(where, tuple):
            return _matches(name, where)
        if isinstance(where, LabelTree):
            return where(name)
        found = answer(self.who, where, name, tensor)
        if found is None:
            raise TypeError(
                f"{self.who}: {describe(where)} returned None for leaf {name!r}; it must return a "
                f"{'label' if where is self._wheres else 'bool'}"
            )
        return found

    def mark(self, path: Path, label: Any) -> Path:
        """Return the path at which the state marks a leaf as having this label."""
        if self.branches is None:
            return (*path, "members" if label else "others")
        return (*path, label, "members")

    def recall(self, path: Path, marked: Callable[[Path], bool]) -> Any:
        """Return the label that the state marks, or None."""
        for label in self.labels:
            if marked(self.mark(path, label)):
                return label
        return None

    def check_used(self, names: list[str]) -> None:
        """Raise an error for a pattern that matches no leaf."""
        if not names:
            return
        names = list(map(without_wrappers, names))
        groups = self._wheres if isinstance(self._wheres, tuple) else ()
        for group in groups:
            for pattern in group if isinstance(group, tuple) else ():
                if not any(_matches(name, (pattern,)) for name in names):
                    raise ValueError(
                        f"{self.who}: {pattern!r} matches no leaf; leaves: {listed(names)}"
                    )


class LabelTree:
    """Map a leaf's name to a label: the leaf's own, or that of the nearest enclosing subtree with a label.

    Args:
        labels: The labels by dotted path.
        who: Whose labels they are.
    """

    def __init__(self, labels: Mapping[str, Any], who: str = "partition"):
        self.labels = labels
        self._who = who

    def __call__(self, name: str) -> Any:
        path = name
        while path not in self.labels:
            if not path:
                raise ValueError(
                    f"{self._who}: leaf {name!r} has no label in the tree of labels: {listed(self.labels)}"
                )
            path = path.rpartition(".")[0]
        return self.labels[path]


class TreeFunction:
    """A function of the whole tree of parameters that returns a tree of labels."""

    def __init__(self, function: Callable[[Any], Any]):
        self.function = function


def takes_tree(where: Any) -> bool:
    """Whether this is a function of one argument, the whole tree, rather than of a leaf's name and tensor."""
    return (
        is_function(where)
        and not accepts(where, "name", "tensor")
        and accepts(where, "params")
    )


def _flags(who: str, tree: Any) -> dict[str, bool]:
    """Return the bools of a tree, or of a prefix of one, by dotted path."""
    flags = _tree.named(tree)
    for path, flag in flags.items():
        if not isinstance(flag, bool):
            raise TypeError(
                f"{who}: a tree that selects leaves must have bools as leaves, got {describe(flag)} at {path!r}"
            )
    return flags


def patterns(who: str, where: Any) -> Patterns | Predicate:
    """Return a selector as a tuple of patterns or as a predicate.

    Raises:
        TypeError: If `where` is neither patterns nor a function.
    """
    where = as_builtin(where)
    if isinstance(where, str):
        return (where,)
    if isinstance(where, tuple | list) and all(isinstance(item, str) for item in where):
        return tuple(where)
    if is_function(where):
        check_signature(who, where, ("name", "tensor"), PREDICATE)
        return where
    raise TypeError(
        f"{who}: select leaves by their names in the model with a pattern such as 'encoder.*', a tuple of patterns, "
        f"or a function (name, tensor) -> bool, got {shortly(where)}"
    )


def check_not_empty(who: str, where: Any) -> None:
    """Raise an error for an empty selection, for links that are useless without leaves."""
    if isinstance(where, tuple | list) and not where:
        raise ValueError(
            f"{who}: {where!r} selects no leaves; pass a name pattern, such as '*' for all leaves, or omit it"
        )


def is_function(where: Any) -> TypeGuard[Predicate]:
    """Whether `where` is a function; modules and classes are callable but not one."""
    return callable(where) and not isinstance(where, type | torch.nn.Module)


def listed(items: Iterable[Any], most: int = 8) -> str:
    names = [str(item) for item in items]
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown}, ... ({len(names)} in all)"
