"""Combinators that choose leaves: `partition`, `masked`, `freeze`; and `map_after_step`."""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from gradtx._arguments import describe
from gradtx._program import Block, Branch, Path, Scope
from gradtx.core import GradientTransformation, chain, check_transformation
from gradtx.factories import Combinator, combinator, per_tensor

__all__ = ["freeze", "map_after_step", "masked", "partition"]

Where = str | tuple[str, ...] | Callable[[str, Tensor], bool]


@torch.compiler.assume_constant_result
def _first_match(name: str, patterns: tuple[tuple[str, ...], ...]) -> int:
    """The index of the first group of patterns that the name matches, or -1."""
    return next((i for i, group in enumerate(patterns) if any(fnmatch.fnmatchcase(name, p) for p in group)), -1)


class Selector:
    """Chooses a label for a leaf: the first whose patterns match, or whose predicate is true.

    Patterns decide by name, at any time; what a predicate said about the parameter at init is remembered.
    """

    def __init__(self, owner: str, labels: Any, wheres: Any):
        self.owner, self.labels, self._wheres = owner, labels, wheres
        self.by_name = isinstance(wheres, tuple) and all(isinstance(where, tuple) for where in wheres)

    @classmethod
    def of(cls, owner: str, where: Any) -> Selector:
        """A choice between True, where `where` holds, and False."""
        return cls(owner, (True,), (_patterns(owner, where),))

    def choose(self, name: str, tensor: Any) -> Any:
        if self.by_name:
            found = _first_match(name, self._wheres)
        elif isinstance(self._wheres, tuple):
            found = -1
            for i, where in enumerate(self._wheres):
                if _first_match(name, (where,)) == 0 if isinstance(where, tuple) else where(name, tensor):
                    found = i
                    break
        else:
            label = self._wheres(name, tensor)
            if label not in self.labels:
                raise ValueError(f"{self.owner}: leaf {name!r} has label {label!r}; labels: {_listed(self.labels)}")
            return label
        if found >= 0:
            return self.labels[found]
        if self.labels == (True,):
            return False
        raise ValueError(
            f"{self.owner}: leaf {name!r} has no label; add a pattern that matches it, such as '*' for the rest"
        )

    def mark(self, path: Path, label: Any) -> Path:
        """Where the state marks a leaf as having this label."""
        return (*path, "members" if label else "others") if self.labels == (True,) else (*path, label, "members")

    def recall(self, path: Path, marked: Callable[[Path], bool]) -> Any:
        """The label by the marks in the state, or None."""
        labels = (True, False) if self.labels == (True,) else self.labels
        return next((label for label in labels if marked(self.mark(path, label))), None)

    def check_used(self, names: list[str]) -> None:
        for where in self._wheres if isinstance(self._wheres, tuple) else ():
            for pattern in where if isinstance(where, tuple) else ():
                if names and not any(fnmatch.fnmatchcase(name, pattern) for name in names):
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


class _Fork(Combinator):
    def __init__(self, name: str, selector: Selector, txs: Mapping[Any, GradientTransformation], levels: bool):
        self._name, self.selector, self._txs, self._levels = name, selector, txs, levels

    def expand(self, scope: Scope) -> list[Any]:
        path = scope.claim(self._name)
        scope.run.selectors.append(self.selector)
        blocks = {}
        for i, (label, tx) in enumerate(self._txs.items()):
            inside = scope.branch((*path, label) if self._levels else path, i)
            blocks[label] = Block(tx._expand(inside), inside.frozen)
        return [Branch(path, self.selector, blocks)]


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
        selector = Selector(
            "partition", tuple(labels), tuple(_patterns("partition", where) for where in labels.values())
        )
    elif _is_function(labels):
        selector = Selector("partition", tuple(transforms), labels)
    else:
        raise TypeError(f"partition: labels must be a dict or a function (name, tensor), got {describe(labels)}")
    return _Fork("partition", selector, transforms, True)


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
    return _Fork("masked", Selector.of("masked", where), {True: tx, False: chain()}, False)


class _Freeze(Combinator):
    def __init__(self, selector: Selector):
        self._selector = selector

    def expand(self, scope: Scope) -> list[Any]:
        scope.run.selectors.append(self._selector)
        scope.frozen.append((scope.claim("freeze"), self._selector))
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
    return _Freeze(Selector.of("freeze", where))


@per_tensor(needs=("params",), static=("fn",), example={"fn": torch.tanh})
def map_after_step(fn: Callable[[Tensor], Tensor], before: bool = False):
    r"""Make the parameter after the step go through a function: constraints, projections, prox steps.

    $u \mapsto f(p + u) - p$, or with `before` $u \mapsto f(f(p) + u) - p$. Stands after the learning rate.

    Args:
        fn: A function of one tensor, in torch operations that keep its shape.
        before: Whether the parameter goes through `fn` before the step as well.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Raises:
        TypeError: `fn` is no function.
        ValueError: missing `params`.

    Example:
        >>> tx = gradtx.chain(gradtx.sgd(lr=1.0), gradtx.map_after_step(torch.relu))
        >>> params = {"w": torch.tensor([1.0, 2.0])}
        >>> updates, _ = tx.update({"w": torch.tensor([3.0, 1.0])}, tx.init(params), params)
        >>> gradtx.apply_updates(params, updates)["w"]
        tensor([0., 1.])
    """
    if not callable(fn):
        raise TypeError(f"map_after_step: fn must be a function of a tensor, got {describe(fn)}")

    def update(update, state, param, ctx):
        start = fn(param) if before else param
        return fn(start + update) - param, state

    return update
