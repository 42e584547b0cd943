"""The links of a chain by their stages, and which entries of an update a bound or an eps decides."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gradtx.base.errors import Path
from gradtx.base.exact import python_scalar
from gradtx.execution.leaf_rule import RuleOperation
from gradtx.rules import FactoryCall
from gradtx.transform import GradientTransformation
from gradtx.watching.figures import holds

# In place of eps: so small that it decides no entry, and its inverse is finite in float32.
TINY = 1e-30


class Link:
    """A link of a chain, and its arguments by name.

    Args:
        tx: The link.
        typed: The function that the user typed: an optimizer around the link, or the link.
    """

    def __init__(self, tx: GradientTransformation, typed: str):
        self.tx = tx
        self.name = tx._name
        self.typed = typed
        self.arguments: dict[str, Any] = {}
        self._defaults: dict[str, Any] = {}
        for name, value, argument in tx._own_entries():
            self.arguments[name], self._defaults[name] = value, argument.default

    def value_of(self, name: str, default: float = math.nan) -> float:
        """Return an argument as a number; NaN for a schedule, whose value differs from step to step."""
        value = python_scalar(self.arguments.get(name, default))
        return value if isinstance(value, int | float) else math.nan

    def exceeds_default(self, name: str, factor: float) -> bool:
        """Whether a number exceeds its default by a factor; not if it has none."""
        default = python_scalar(self._defaults.get(name))
        return (
            isinstance(default, int | float) and self.value_of(name) > factor * default
        )

    def is_default(self, name: str) -> bool:
        """Whether a number, named as in `values`, is the default of its argument."""
        return self.values().get(name) == _numeric(self._defaults).get(name)

    def pair_of(
        self, name: str, of_default: bool = False
    ) -> tuple[float, float] | None:
        """Return the two numbers of an argument, or of its default; None if it has not two numbers."""
        pair = (self._defaults if of_default else self.arguments).get(name)
        if not isinstance(pair, tuple) or len(pair) != 2:
            return None
        first, second = map(python_scalar, pair)
        if not (isinstance(first, float) and isinstance(second, float)):
            return None
        return first, second

    def values(self) -> dict[str, float]:
        """Return all arguments that are numbers, and those in tuples as `betas[0]`."""
        return _numeric(self.arguments)

    @property
    def bounds(self) -> bool:
        """Whether it is a clip: it shortens the updates that exceed a bound, and passes the others."""
        return self.tx._length == "bounds"

    @property
    def is_elementwise(self) -> bool:
        """Whether the entries of a leaf are independent."""
        tx = self.tx
        return isinstance(tx, FactoryCall) and bool(
            tx._spec.option("elementwise", tx._arguments)
        )

    @property
    def sets_length(self) -> bool:
        """Whether the length of its updates does not depend on that of what it receives."""
        return self.tx._length == "sets"

    def decided(
        self, before: Tensor, after: Tensor, without_eps: Tensor | None
    ) -> tuple[Tensor, Tensor] | None:
        """Return 1 for entries that a bound or eps may decide, and 1 for those it does; None if the link has neither.

        Args:
            before: The update before the link.
            after: The update after it.
            without_eps: The update after the same link with almost no eps, if it has one.
        """
        if self.bounds:
            free = holds(torch.ne, before, 0)
            return free, free * holds(torch.ne, after, before)
        if self.name == "scale_by_atan2":
            largest = self.arguments["a"] * (math.pi / 4 * 1.001)
            # Where the mean exceeds the root, the arc tangent bounds the step.
            return holds(torch.ne, after, 0), holds(torch.gt, after.abs(), largest)
        if (
            self.name == "scale_by_trust_ratio"
        ):  # a ratio of 1 is a bound, or stands for none
            free = holds(torch.ne, before, 0)
            return free, free * holds(torch.eq, after, before)
        if without_eps is None:
            return None
        size = without_eps.abs()
        free = holds(torch.gt, size, 0)  # neither 0 nor NaN
        return free, holds(torch.lt, after.abs(), size.mul_(0.5))


def _numeric(arguments: Mapping[str, Any]) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for name, argument in arguments.items():
        items = argument if isinstance(argument, tuple) else [argument]
        for i, item in enumerate(items):
            value = python_scalar(item)
            if isinstance(value, float):
                key = f"{name}[{i}]" if isinstance(argument, tuple) else name
                numbers[key] = value
    return numbers


def links_by_stage(
    tx: GradientTransformation, stages: Mapping[Path, str]
) -> dict[Path, Link]:
    """Return the link of each stage: the n-th link of a name has the n-th stage of this name."""
    links: dict[str, list[Link]] = defaultdict(list)
    for typed, link in tx._typed_links():
        links[link._name].append(Link(link, typed))
    seen: Counter[str] = Counter()
    by_stage: dict[Path, Link] = {}
    for path, name in stages.items():
        number = seen[name]
        seen[name] += 1
        if number < len(links[name]):
            by_stage[path] = links[name][number]
    return by_stage


def without_eps(operation: RuleOperation, is_copy: bool) -> RuleOperation | None:
    """Return an operation with almost no eps; None if its rule has none, or cannot be called once more.

    Args:
        operation: The operation.
        is_copy: Whether it runs on copies of leaves that a program processes, so that its rule is a pure function.
    """
    rule, eps = operation.rule, operation.rule.arguments.get("eps")
    # Elsewhere, a user's rule may draw from torch's streams, or count its calls.
    is_pure = rule.factory is not None and (rule.factory.is_ours or is_copy)
    if not is_pure or rule.seed is not None or operation.traits.waits:
        return None
    if not isinstance(eps, float | Tensor):
        return None
    # A literal 0.0 may select other formulas, and stays.
    if isinstance(eps, Tensor):
        eps = torch.full_like(eps, TINY)
    elif eps > 0:
        eps = TINY
    return RuleOperation(rule.with_arguments(eps=eps), operation.stage)
