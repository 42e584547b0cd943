"""The plan of the rows that sparse gradients list, which are other rows in each step."""

from __future__ import annotations

from typing import Any

from gradtx.execution.execute import Leaf
from gradtx.execution.owners import has_regions
from gradtx.optim.engine.step_plan import fingerprint_of
from gradtx.optim.engine.views import is_positional
from gradtx.optim.listed import ListedMember
from gradtx.optim.step import Step
from gradtx.plans.plan import Plan


class ListedPlan(Plan[Any]):
    """The bundles of the rows that sparse gradients list in one step, and the rows that step eagerly.

    The next step has rows of other sizes, in other memory. If no operation looks at the number of rows, its bundles are
    those of this plan with other members.

    Args:
        fingerprint: What the plan depends on, except the number of rows.
        members: The rows of each parameter.
        bundles: Those that programs run.
        rest: The others.
        leaves: The leaves of some of the members, of each kind one.

    Attributes:
        taking_part, tasks, absent, reasons, needs_run, gradients_are_as_planned: As in `StepPlan`.
    """

    gradients_are_as_planned = True

    def __init__(
        self,
        fingerprint: Any,
        members: list[ListedMember],
        bundles: list[Any],
        rest: list[ListedMember],
        leaves: list[Leaf],
    ):
        self.fingerprint = fingerprint
        self.members = members
        self.bundles = bundles
        self.rest = rest
        self.taking_part: list[Any] = []
        self.tasks: list[Any] = []
        self.absent: list[Any] = []
        self.reasons: dict[str, str] = {}
        self.needs_run = any(bundle.needs_run() for bundle in bundles)
        self._ignores_sizes = not rest and all(map(_ignores_rows, leaves))

    def of_others(
        self, members: list[ListedMember], fingerprint: Any
    ) -> ListedPlan | None:
        """Return the plan of the rows of a later step; None if theirs may be another one."""
        if not self._ignores_sizes or fingerprint != self.fingerprint:
            return None
        rows_of = {id(member.table): member for member in members}
        bundles: list[Any] = []
        for bundle in self.bundles:
            rows = [rows_of[id(member.table)] for member in bundle.members]
            resized = bundle.resized(rows)
            if resized is None:
                return None
            bundles.append(resized)
        plan = ListedPlan(fingerprint, members, bundles, [], [])
        plan.reasons = self.reasons
        return plan


def listed_fingerprint(step: Step, members: list[ListedMember]) -> Any:
    """Return what the plan of rows depends on, except their number."""
    kinds = [member.kinds_of_rows() for member in members]
    return fingerprint_of(step, [member.table for member in members], None), kinds


def _ignores_rows(leaf: Leaf) -> bool:
    """Whether the program of a leaf does not depend on the number of its rows."""
    operations = leaf.operations
    if leaf.layout.codes or is_positional(operations) or has_regions(operations):
        return False
    return all(operation.ignores_sizes for operation in operations)
