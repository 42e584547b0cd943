"""The plan of a call: its leaves in bundles, each with a program, as long as what they depend on stays."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

from gradtx.plans.bundle import ListBundle
from gradtx.plans.families import F, LeafKind, M

B = TypeVar("B", bound=ListBundle)


class Plan(Generic[B]):
    """The leaves of a call in bundles, each of which a program runs.

    An optimizer or a pure update adds when the plan is valid, and which leaves run alone: `TreePlan` compares the
    layouts of all tensors of a call, whose results are new tensors; `StepPlan` also compares where parameters and slots
    are, which it writes.

    Attributes:
        bundles: The bundles.
    """

    bundles: list[B]


def planned(
    leaves: Iterable[tuple[Any, LeafKind, M]],
    first: Callable[[LeafKind, M], F],
    bundles_of: Callable[[F], Iterable[B]],
) -> list[B]:
    """Return the bundles of leaves, each given with the structure of its chain and its kind.

    Args:
        leaves: The leaves; the structure may be any key.
        first: Returns the family of a first leaf, still without members.
        bundles_of: Returns the bundles of a family; it may leave out leaves.
    """
    families: dict[Any, F] = {}
    for structure, kind, leaf in leaves:
        if (structure, kind) not in families:
            families[structure, kind] = first(kind, leaf)
        families[structure, kind].members.append(leaf)
    bundles: list[B] = []
    for family in families.values():
        bundles += bundles_of(family)
    return bundles
