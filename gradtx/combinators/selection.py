"""Combinators that choose leaves: `partition`, `masked`, `freeze`."""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from gradtx import _torch
from gradtx._errors import Path
from gradtx._execution import Block, Branch
from gradtx._messages import describe
from gradtx._runs import Scope
from gradtx.core import GradientTransformation, chain, check_transformation
from gradtx.factories import Combinator, combinator

__all__ = ["freeze", "masked", "partition"]

Where = str | tuple[str, ...] | Callable[[str, Tensor], bool]


@_torch.assume_constant
def _first_match(name: str, groups: tuple[tuple[str, ...], ...]) -> int:
    """The index of the first group of patterns that the name matches, or -1."""
    for i, patterns in enumerate(groups):
        for pattern in patterns:
            if fnmatch.fnmatchcase(name, pattern):
                return i
    return -1


class Selector:
    """Chooses a label for a leaf: the first whose patterns match, or whose predicate is true.

    Patterns decide by name, at any time; what a predicate said about the parameter at init is remembered.

    Attributes:
        labels: The labels, in the order in which they are tried.
        branches: The labels in the order of the branches; None if this chooses between True and False.
        by_name: Whether names alone decide.
    """

    def __init__(self, owner: str, labels: tuple[Any, ...], wheres: Any, branches: tuple[str, ...] | None = None):
        self.owner = owner
        self.labels = labels
        self.branches = branches
        self.by_name = isinstance(wheres, tuple) and all(isinstance(where, tuple) for where in wheres)
        self._wheres = wheres

    @classmethod
    def of(cls, owner: str, where: Any) -> Selector:
        """A choice between True, where `where` holds, and False."""
        return cls(owner, (True,), (_patterns(owner, where),))

    @property
    def names_branches(self) -> bool:
        """Whether the labels are names of branches."""
        return self.branches is not None

    def choose(self, name: str, tensor: Any) -> Any:
        if not isinstance(self._wheres, tuple):
            return self._called(name, tensor)
        index = _first_match(name, self._wheres) if self.by_name else self._first_where(name, tensor)
        if index >= 0:
            return self.labels[index]
        if self.branches is None:
            return False
        raise ValueError(
            f"{self.owner}: leaf {name!r} has no label; add a pattern that matches it, such as '*' for the rest"
        )

    def _called(self, name: str, tensor: Any) -> Any:
        """The label that a function gives."""
        label = self._wheres(name, tensor)
        if label not in self.labels:
            raise ValueError(f"{self.owner}: leaf {name!r} has label {label!r}; labels: {_listed(self.labels)}")
        return label

    def _first_where(self, name: str, tensor: Any) -> int:
        """The index of the first pattern that matches, or predicate that is true; or -1."""
        for i, where in enumerate(self._wheres):
            holds = _first_match(name, (where,)) == 0 if isinstance(where, tuple) else where(name, tensor)
            if holds:
                return i
        return -1

    def mark(self, path: Path, label: Any) -> Path:
        """The place where the state marks a leaf as having this label."""
        if self.branches is None:
            return (*path, "members" if label else "others")
        return (*path, label, "members")

    def recall(self, path: Path, marked: Callable[[Path], bool]) -> Any:
        """The label by the marks in the state, or None."""
        for label in (True, False) if self.branches is None else self.labels:
            if marked(self.mark(path, label)):
                return label
        return None

    def check_used(self, names: list[str]) -> None:
        """Raise an error for a pattern that matches no leaf."""
        if not names or not isinstance(self._wheres, tuple):
            return
        for where in self._wheres:
            for pattern in where if isinstance(where, tuple) else ():
                if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
                    raise ValueError(f"{self.owner}: {pattern!r} matches no leaf; leaves: {_listed(names)}")


def _patterns(owner: str, where: Any) -> Any:
    if isinstance(where, str):
        return (where,)
    if isinstance(where, list | tuple) and where and all(isinstance(item, str) for item in where):
        return tuple(where)
    if _is_function(where):
        return where
    remedy = "; a module's parameters go by its name in the model, as in 'encoder.*'"
    raise TypeError(
        f"{owner}: select leaves with a name pattern, a tuple of patterns or a function (name, tensor) -> bool, "
        f"got {describe(where)}{remedy if isinstance(where, torch.nn.Module) else ''}"
    )


def _is_function(where: Any) -> bool:
    """Whether it may be called with a name and a tensor; modules and classes are callable, too."""
    if not callable(where) or isinstance(where, type | torch.nn.Module | GradientTransformation):
        return False
    try:
        if not torch.compiler.is_compiling():  # dynamo does not trace this
            inspect.signature(where).bind("name", None)
    except TypeError:
        return False
    except ValueError:
        pass  # a function of C that does not say what it takes
    return True


def _listed(items: Iterable[Any], most: int = 8) -> str:
    items = [str(item) for item in items]
    return ", ".join(items[:most]) + (f", ... ({len(items)} in all)" if len(items) > most else "")


class Fork(Combinator):
    """Sends every leaf through the transformation of its label."""

    def __init__(self, selector: Selector, txs: Mapping[Any, GradientTransformation]):
        self._fork = selector
        self._txs = txs
        self.selector = selector if selector.names_branches else None  # the hyperparameters of branches have its labels

    def expand(self, scope: Scope, name: str) -> list[Any]:
        path = scope.claim(name)
        scope.run.selectors.append(self._fork)
        blocks = {}
        for i, (label, tx) in enumerate(self._txs.items()):
            inside = scope.branch((*path, label) if self._fork.names_branches else path, i)
            blocks[label] = Block(tx._expand(inside), inside.frozen)
        return [Branch(path, self._fork, blocks)]


@combinator(static=("labels",), example=lambda tx: {"transforms": {"a": tx}, "labels": {"a": "*"}})
def partition(transforms: Mapping[str, GradientTransformation], labels: Mapping[str, Where] | Callable[..., str]):
    """Send every leaf through the transformation of its label.

    Sums over leaves inside a branch see that branch only.

    Args:
        transforms: label -> transformation.
        labels: label -> selector, tried in order (`"*"` for the rest), or a function `(name, tensor) -> label`.
            A selector is a name pattern (`fnmatch` on the dotted leaf name, `*` crosses dots), a tuple of them or a
            function `(name, tensor) -> bool`, which sees the parameter at init.

    Returns:
        A transformation whose state has one entry a label, with the entries of its transformation.

    Raises:
        TypeError: something that is no transformation, or no selector.
        ValueError: a leaf has no label, a pattern matches no leaf at init, or the two sets of labels differ.

    Example:
        >>> transforms = {"head": gradtx.sgd(lr=1.0), "rest": gradtx.freeze("*")}
        >>> tx = gradtx.partition(transforms, {"head": "head.*", "rest": "*"})
        >>> grads = {"head": {"w": torch.ones(2)}, "body": {"w": torch.ones(2)}}
        >>> tx.update(grads, tx.init(grads))[0]
        {'head': {'w': tensor([-1., -1.])}, 'body': {'w': tensor([0., 0.])}}
    """
    if not isinstance(transforms, Mapping) or not transforms:
        raise TypeError(f"partition: transforms must be a dict of label -> transformation, got {describe(transforms)}")
    for label, tx in transforms.items():
        check_transformation("partition", f"transforms[{label!r}]", tx)
        if not isinstance(label, str) or "." in label:
            raise ValueError(f"partition: label {label!r} must be a string without dots")
    if isinstance(labels, Mapping):
        if set(labels) != set(transforms):
            raise ValueError(f"partition: labels are {_listed(labels)}, transforms are {_listed(transforms)}")
        wheres = tuple(_patterns("partition", where) for where in labels.values())
        selector = Selector("partition", tuple(labels), wheres, branches=tuple(transforms))
    elif _is_function(labels):
        selector = Selector("partition", tuple(transforms), labels, branches=tuple(transforms))
    else:
        raise TypeError(f"partition: labels must be a dict or a function (name, tensor), got {describe(labels)}")
    return Fork(selector, transforms)


@combinator(static=("where",), example=lambda tx: {"tx": tx, "where": "*"})
def masked(tx: GradientTransformation, where: Where):
    """Send only some leaves through a transformation; the others pass unchanged.

    Args:
        tx: What the selected leaves go through. Sums over leaves see these only.
        where: A selector, as in `partition`.

    Returns:
        A transformation with the entries of `tx`, for the selected leaves.

    Raises:
        ValueError: a pattern matches no leaf at init.

    Example:
        >>> tx = gradtx.masked(gradtx.scale(10.0), "*.bias")
        >>> grads = {"l": {"weight": torch.ones(1), "bias": torch.ones(1)}}
        >>> tx.update(grads, tx.init(grads))[0]
        {'l': {'weight': tensor([1.]), 'bias': tensor([10.])}}
    """
    check_transformation("masked", "tx", tx)
    return Fork(Selector.of("masked", where), {True: tx, False: chain()})


class Frozen(Combinator):
    """Takes leaves out of the chain around it."""

    def __init__(self, where: Selector):
        self._where = where

    def expand(self, scope: Scope, name: str) -> list[Any]:
        scope.run.selectors.append(self._where)
        scope.frozen.append((scope.claim(name), self._where))
        return []


@combinator(static=("where",), example=lambda tx: {"where": "*"})
def freeze(where: Where):
    """Keep some leaves exactly as they are.

    Covers the whole chain it stands in, wherever it stands: frozen leaves are taken out before the first link (no
    slots, not in norms) and get an exactly zero update. Inside a branch of `partition` it covers that branch.

    Args:
        where: A selector, as in `partition`.

    Returns:
        A transformation without slots.

    Raises:
        ValueError: a pattern matches no leaf at init.

    Example:
        >>> tx = gradtx.chain(gradtx.adam(lr=0.1), gradtx.freeze("embed.*"))
        >>> grads = {"embed": {"w": torch.ones(1)}, "head": {"w": torch.ones(1)}}
        >>> state = tx.init(grads)
        >>> list(state["scale_by_adam"]["exp_avg"])
        ['head.w']
        >>> tx.update(grads, state)[0]
        {'embed': {'w': tensor([0.])}, 'head': {'w': tensor([-0.1000])}}
    """
    return Frozen(Selector.of("freeze", where))
