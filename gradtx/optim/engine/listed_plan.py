"""The plan of the rows that sparse gradients list, which are other rows in each step."""

from __future__ import annotations

from typing import Any

from gradtx.optim.engine.step_plan import fingerprint_of
from gradtx.optim.listed import ListedMember
from gradtx.optim.step import Step
from gradtx.plans.plan import Plan


class ListedPlan(Plan[Any]):
    """The bundles of the rows that sparse gradients list in one step, and the rows that step eagerly.

    The next step has other rows, in other memory, and often another number of them. Its bundles are those of this plan
    with other members.

    Args:
        fingerprint: What the plan depends on.
        members: The rows of each parameter.
        bundles: Those that programs run.
        rest: The others.

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

    def of_others(self, members: list[ListedMember]) -> ListedPlan | None:
        """Return the plan of the rows of a later step with this fingerprint; None if theirs may be another one."""
        if self.rest:
            return None
        rows_of = {id(member.table): member for member in members}
        bundles: list[Any] = []
        for bundle in self.bundles:
            rows = [rows_of[id(member.table)] for member in bundle.members]
            is_resized = all(member.ignores_sizes for member in rows)
            other = bundle.resized(rows) if is_resized else bundle.of_others(rows)
            if other is None:
                return None
            bundles.append(other)
        plan = ListedPlan(self.fingerprint, members, bundles, [])
        plan.reasons = self.reasons
        return plan


def listed_fingerprint(step: Step, members: list[ListedMember]) -> Any:
    """Return what the plan of rows depends on."""
    kinds = [member.kinds_of_rows() for member in members]
    return fingerprint_of(step, [member.table for member in members], None), kinds
