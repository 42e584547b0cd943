"""Combinators that select leaves: `partition`, `masked`, `freeze`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, cast

from torch import Tensor

from gradtx.arguments import Static
from gradtx.base import tree as _tree
from gradtx.base.inputs import as_builtin
from gradtx.base.messages import describe
from gradtx.base.selectors import (
    LabelTree,
    Selector,
    TreeFunction,
    Where,
    is_function,
    listed,
    takes_tree,
)
from gradtx.execution.execute import Branch, Route
from gradtx.execution.runs import Scope
from gradtx.rules import Combinator, combinator
from gradtx.transform import GradientTransformation, chain, check_transformation

__all__ = ["freeze", "masked", "partition"]


class Fork(Combinator):
    """Send every leaf through the transformation of its label."""

    def __init__(self, selector: Selector, txs: Mapping[Any, GradientTransformation]):
        self.selector = selector
        self._txs = txs

    def expand(self, scope: Scope, name: str) -> list[Any]:
        path = scope.claim(name)
        scope.run.selectors.append(self.selector)
        routes = {}
        for i, (label, tx) in enumerate(self._txs.items()):
            of_label = path if self.selector.branches is None else (*path, label)
            inside = scope.inside(of_label, i)
            # A freeze inside covers only this branch.
            inside.frozen = []
            routes[label] = Route(tx._expand(inside), inside.frozen)
        return [Branch(path, self.selector, routes)]

    def rejects(self) -> tuple[str, ...]:
        return ()


@combinator
def partition(
    transforms: Mapping[str, GradientTransformation],
    labels: Static[Mapping[str, Any] | Callable[[str, Tensor], str]],
):
    """Send every leaf through the transformation of its label.

    Sums over leaves inside a branch include only the leaves of that branch.

    Args:
        transforms: label -> transformation.
        labels: label -> selector, tried in order (`"*"` for the rest); a function `(name, tensor) -> label`; or, as in
            optax, a tree of labels with the structure of the parameters or of a prefix of it, or a function of one
            argument that returns such a tree for the tree of parameters (in an optimizer, a dict by name).
            A selector is a name pattern (`fnmatch` on the dotted leaf name, where `*` matches dots), a tuple of
            patterns, or a function `(name, tensor) -> bool`, which receives the parameter at init. Names are those of
            the model without the parts that `torch.compile`, DistributedDataParallel and FSDP insert.

    Returns:
        A transformation whose state has one entry per label, with the entries of its transformation.

    Raises:
        TypeError: If an item is not a transformation or not a selector.
        ValueError: If a label is not a string without dots, if the two sets of labels differ, if a leaf has no label,
            if a pattern matches no leaf at init, or if a function reads the name of a parameter that an optimizer
            received without a name.

    Example:
        >>> transforms = {"head": gradtx.sgd(lr=1.0), "rest": gradtx.freeze("*")}
        >>> tx = gradtx.partition(transforms, {"head": "head.*", "rest": "*"})
        >>> grads = {"head": {"w": torch.ones(2)}, "body": {"w": torch.ones(2)}}
        >>> tx.update(grads, tx.init(grads))[0]
        {'head': {'w': tensor([-1., -1.])}, 'body': {'w': tensor([0., 0.])}}
    """
    if not isinstance(transforms, Mapping) or not transforms:
        raise TypeError(
            f"partition: transforms must be a dict of label -> transformation, got {describe(transforms)}"
        )
    for label, tx in transforms.items():
        check_transformation("partition", f"transforms[{label!r}]", tx)
        if not isinstance(label, str) or "." in label:
            raise ValueError(
                f"partition: label {label!r} must be a string without dots"
            )
    return Fork(_selector_of(labels, tuple(transforms)), transforms)


def _selector_of(labels, branches: tuple[str, ...]) -> Selector:
    """Return the selector for the `labels` of `partition`: a tree of labels, a dict of selectors or a function."""
    have_same_keys = isinstance(labels, Mapping) and set(labels) == set(branches)
    # A tree whose labels are its own keys, {"encoder": "encoder", ...}, is a tree.
    if have_same_keys and list(labels) != list(map(as_builtin, labels.values())):
        wheres = tuple(labels.values())
        return Selector("partition", tuple(labels), wheres, branches=branches)
    label_of_leaf = {} if isinstance(labels, str) else _tree.strings(labels)
    if label_of_leaf and set(label_of_leaf.values()) <= set(branches):
        tree = LabelTree(label_of_leaf)
        return Selector("partition", branches, tree, branches=branches)
    if isinstance(labels, Mapping):
        keys = f"{listed(labels)} and {listed(branches)}"
        raise ValueError(
            f"partition: labels and transforms must have the same keys, got {keys}"
        )
    if takes_tree(labels):
        return Selector(
            "partition", branches, TreeFunction(cast("Any", labels)), branches=branches
        )
    if is_function(labels):
        return Selector("partition", branches, labels, branches=branches)
    raise TypeError(
        f"partition: labels must be a dict or a function (name, tensor), got {describe(labels)}"
    )


@combinator
def masked(tx: GradientTransformation, where: Static[Where]):
    """Send only some leaves through a transformation; the others pass unchanged.

    Args:
        tx: The transformation of the selected leaves. Sums over leaves include only these.
        where: A selector, as in `partition`; or, as in optax, a tree of bools with the structure of the parameters or
            of a prefix of it, or a function of one argument, the tree of parameters, that returns such a tree.

    Returns:
        A transformation with the entries of `tx`, for the selected leaves.

    Raises:
        TypeError: If `tx` is not a transformation, or if `where` is not a selector.
        ValueError: If a pattern matches no leaf at init.

    Example:
        >>> tx = gradtx.masked(gradtx.scale(10.0), "*.bias")
        >>> grads = {"l": {"weight": torch.ones(1), "bias": torch.ones(1)}}
        >>> tx.update(grads, tx.init(grads))[0]
        {'l': {'weight': tensor([1.]), 'bias': tensor([10.])}}
    """
    return Fork(Selector.of("masked", where, trees=True), {True: tx, False: chain()})


@dataclasses.dataclass(frozen=True)
class Frozen(Combinator):
    """Exclude leaves from the enclosing chain."""

    where: Selector

    def expand(self, scope: Scope, name: str) -> list[Any]:
        scope.run.selectors.append(self.where)
        scope.frozen.append((scope.claim(name), self.where))
        return []


@combinator(sign="neutral")
def freeze(where: Static[Where]):
    """Leave some leaves exactly unchanged.

    Applies to the entire enclosing chain, regardless of its position in it: frozen leaves are removed before the first
    link (they have no slots and are not part of norms) and get an exactly zero update. Inside a branch of `partition`,
    it applies to that branch.

    Args:
        where: A selector, or a tree of bools or a function that returns one, as in `masked`.

    Returns:
        A transformation without slots.

    Raises:
        TypeError: If `where` is not a selector.
        ValueError: If a pattern matches no leaf at init.

    Example:
        >>> tx = gradtx.chain(gradtx.adam(lr=0.1), gradtx.freeze("embed.*"))
        >>> grads = {"embed": {"w": torch.ones(1)}, "head": {"w": torch.ones(1)}}
        >>> state = tx.init(grads)
        >>> list(state["scale_by_adam"]["exp_avg"])
        ['head.w']
        >>> tx.update(grads, state)[0]
        {'embed': {'w': tensor([0.])}, 'head': {'w': tensor([-0.1000])}}
    """
    return Frozen(Selector.of("freeze", where, trees=True))
