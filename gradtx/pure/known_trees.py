"""The plans that transformations keep: those that were used last, of any structure and layout, within a limit."""

from __future__ import annotations

import weakref
from typing import Any

from gradtx.base.forward import Transformation, TreePlan
from gradtx.base.recent import Recent
from gradtx.pure.structures import Trees, plain

# Tensors in the trees of all plans that are kept. A plan takes half a kB for each: 32 MiB.
MOST_TENSORS = 2**16


class Layouts(list[TreePlan]):
    """The plans for trees of one structure.

    Args:
        recent: The plans that were used last, of all structures.

    Attributes:
        last: The plan of these that was used last.
        unrecorded: The chain of a call of which autograd has recorded nothing, and which tensors required gradients.
    """

    last: TreePlan | None = None
    unrecorded: tuple[weakref.ref[Any], list[bool]] | None = None

    def __init__(self, recent: Recent[Any, Any]):
        super().__init__()
        self._recent = recent
        self._by_shapes: dict[Any, list[TreePlan]] = {}

    def fitting(self, trees: Trees) -> TreePlan | None:
        """Return the plan for the trees of a call; None if there is none."""
        last = self.last
        if last is not None and last.have_same_layout(*last.completed(trees)):
            return last
        for plan in self.of_shapes(trees):
            if plan.fits(trees):
                self.last = plan
                self._recent.get(plan)
                return plan
        return None

    def of_shapes(self, trees: Trees) -> list[TreePlan]:
        """Return the plans for trees of these shapes, oldest first."""
        return self._by_shapes.get(trees.shapes(), [])

    def add(self, plan: TreePlan, shapes: Any) -> None:
        """Add a plan for trees of these shapes."""
        self.append(plan)
        self._by_shapes.setdefault(shapes, []).append(plan)

    def drop(self, plan: TreePlan, shapes: Any) -> None:
        """Remove a plan for trees of these shapes."""
        self.remove(plan)
        self._by_shapes[shapes].remove(plan)
        if not self._by_shapes[shapes]:
            del self._by_shapes[shapes]
        if self.last is plan:
            self.last = None


NO_LAYOUTS = Layouts(Recent())


class KnownTrees(dict[Any, Any]):
    """The `Layouts` for each structure of trees and extras of a chain; None where no plan runs them.

    Args:
        recent: What was used last; chains may share it.
    """

    def __init__(self, recent: Recent[Any, Any]):
        super().__init__()
        self._recent = recent

    def keep(self, key: Any, plan: TreePlan, trees: Trees) -> None:
        """Keep a new plan for trees like these."""
        key, shapes = _without_containers(key), trees.shapes()
        layouts = self.setdefault(key, Layouts(self._recent))
        if layouts is None:  # in another thread, there was none
            return
        layouts.add(plan, shapes)
        layouts.last = plan
        self._note(plan, (self, key, shapes), len(trees.tensors))

    def refuse(self, key: Any, trees: Trees) -> None:
        """Note that no plan runs trees of this structure."""
        key = _without_containers(key)
        for plan in self.get(key) or ():
            self._recent.drop(plan)
        self[key] = None
        self._note((id(self), key), (self, key, None), len(trees.tensors))

    def _note(self, item: Any, place: tuple[KnownTrees, Any, Any], size: int) -> None:
        """Note that a plan, or a structure without one, was used, and forget those that were used long ago."""
        dropped = self._recent.put(item, place, size=size, most=MOST_TENSORS)
        for oldest, (kept, key, shapes) in dropped:
            kept.forget(oldest, key, shapes)

    def forget(self, plan: TreePlan, key: Any, shapes: Any) -> None:
        """Forget a plan for trees of these shapes; if there are no shapes, that there is no plan."""
        layouts = self.get(key)
        if layouts and shapes is not None:
            layouts.drop(plan, shapes)
        if not layouts:
            self.pop(key, None)


def _without_containers(key: Any) -> Any:
    """Return a key that keeps nothing of a user's containers alive."""
    structure, *others = key
    return plain(structure), *others


class SharedTrees:
    """What is known of the trees of the most recently used structures of chains."""

    def __init__(self) -> None:
        self._of_chains: Recent[Any, KnownTrees] = Recent()
        self._recent: Recent[Any, Any] = Recent()

    def of_chain(self, tx: Transformation) -> KnownTrees:
        """Return the plans of a transformation, which it shares with others that differ only in scalars.

        Plans that hold functions or tensors of the user belong to one transformation, and are freed with it.
        """
        structure = tx._once("structure", tx._structure)
        if structure is None:
            return KnownTrees(Recent())
        kept = self._of_chains.get(structure)
        if kept is None:
            kept = KnownTrees(self._recent)
            self._of_chains.put(structure, kept)
        return kept
