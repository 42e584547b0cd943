"""Hyperparameters that apply to all leaves jointly, which must be equal in all groups."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from gradtx.arguments import has_schedule
from gradtx.base.errors import Path
from gradtx.base.exact import CPU, python_scalar
from gradtx.execution.execute import Route
from gradtx.optim.core import Core
from gradtx.optim.groups import (
    UNSEEN,
    Values,
    are_floats,
    are_identical,
    has_any,
    is_same,
)
from gradtx.optim.run import Member, OptimizerRun
from gradtx.plans.hyperparameters import each_item

FLOAT32_EPS = torch.finfo(torch.float32).eps


def check_groups(
    core: Core, values: list[Values], rows: list[list[Member]], count: int | Tensor
) -> None:
    """Check that hyperparameters that apply to all leaves jointly are equal in all groups.

    Args:
        core: The core of the optimizer.
        values: The values of each group.
        rows: The parameters of each group.
        count: The number of finished updates.

    Raises:
        ValueError: If some differ.
    """
    before, free = core.agreed, core.members.independent_names
    if are_identical(values, before):
        return
    agree = len(before) == len(values) and _still_agree(values, before, free)
    if not agree:
        _compare(core, values, rows, count if isinstance(count, int) else 0)
        agree = _agree_for_good(values, free)
    core.agreed = values if agree else []


def _compare(
    core: Core, values_of_groups: list[Values], rows: list[list[Member]], count: int
) -> None:
    first = {}
    groups = zip(core.members.groups, values_of_groups, rows, strict=True)
    for settings, values, row in groups:
        # On the host, which need not wait then.
        run = OptimizerRun({}, core.members.by_param, initial=True)
        route = Route.of(settings.chain(values, CPU), run, count)
        # The selectors' decisions that are the same for all members of the group.
        labels: dict[Path, set[Any]] = defaultdict(set)
        for member in row:
            for path, label in member.choices.items():
                labels[path].add(label)
        common = {path: min(all_) for path, all_ in labels.items() if len(all_) == 1}
        for operation in route.walk(common):
            for name, value in operation.traits.agree.items():
                expected = first.setdefault((operation.path, name), value)
                if not _agree(expected, value):
                    stage = ".".join(operation.path)
                    raise ValueError(
                        f"{stage}: {name} must agree across groups, got {_shown(expected)!r} and {_shown(value)!r}"
                    )


def _still_agree(
    values_of_groups: list[Values], before: list[Values], free: Collection[str]
) -> bool:
    """Whether values agree if those before did: only numbers differ, which need not agree, or are equal in all groups.

    Args:
        values_of_groups: The values of each group.
        before: Those that agreed.
        free: As for `_agree_for_good`.
    """
    for values, agreed in zip(values_of_groups, before, strict=True):
        for name, value in values.items():
            if value is agreed.get(name, UNSEEN):
                continue
            if not are_floats(value):
                return False
            others = (other[name] for other in values_of_groups if name in other)
            is_free = name.rpartition(".")[2] in free
            if not (is_free or all(is_same(value, other) for other in others)):
                return False
    return True


def _agree_for_good(values_of_groups: list[Values], free: Collection[str]) -> bool:
    """Whether values that agree now always will: tensors may be written, and schedules may differ at later counts.

    Args:
        values_of_groups: The values of each group.
        free: The names of those that need not agree.
    """
    for values in values_of_groups:
        if has_any(Tensor, values.values()):
            return False
        for name, value in values.items():
            if name.rpartition(".")[2] in free or not has_schedule(value):
                continue
            others = [other[name] for other in values_of_groups if name in other]
            if not all(is_same(value, other) for other in others):
                return False
    return True


def _agree(a: Any, b: Any) -> bool:
    """Whether two values are equal, up to the rounding of a float32 tensor."""
    if a is b:
        return True
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_agree, a, b))
    a, b = python_scalar(a), python_scalar(b)
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=FLOAT32_EPS)
    return bool(a == b)


def _shown(value: Any) -> Any:
    return each_item(python_scalar, value)
