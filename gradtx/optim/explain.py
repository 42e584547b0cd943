"""Reports how each parameter of an optimizer is updated: by kernels, over lists, or alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradtx.base.ambient import runs_eagerly
from gradtx.base.messages import in_bytes

if TYPE_CHECKING:
    from gradtx.optim.core import Core

ALONE, ABSENT, FROZEN, NOT_YET = "alone", "absent", "frozen", "not yet"


@dataclass(frozen=True)
class Way:
    """How one parameter was updated in the last step.

    Attributes:
        name: The parameter's name.
        way: "kernels" (compiled, each for all such parameters), "lists" (a program over lists of tensors), "alone" (its
            rules ran for this parameter only), "absent" (it had no gradient in the last step), "frozen" (it requires no
            gradient, or a link freezes it), or "not yet" (it never had a gradient, or there was no step).
        reason: Why no faster program updates it; empty otherwise.
    """

    name: str
    way: str
    reason: str


@dataclass(frozen=True)
class Launch:
    """The launch of a kernel in each step.

    Attributes:
        kernel: The kernel's name: "stage0", "stage1", ... compute partial sums over each parameter, "combine0", ... add
            these, "last_stage" writes parameters and state, "finish" writes numbers of each parameter. Kernels that
            share a launch are joined by "_".
        parameters: The number of parameters that it processes.
        read: The bytes of parameters, gradients, state and extras that it reads. Numbers of each parameter, such as
            norms, and what kernels keep for later ones, such as partial sums, count as none.
        written: The bytes that it writes.
        again: The bytes it reads that an earlier launch has read in the same step.
    """

    kernel: str
    parameters: int
    read: int
    written: int
    again: int

    def __str__(self) -> str:
        read, written = map(in_bytes, (self.read, self.written))
        return f"{self.kernel}: {read} read, {written} written"


@dataclass(frozen=True)
class MovedRows:
    """The rows of a parameter that the last step updated, since its gradient is sparse.

    Attributes:
        name: The parameter's name.
        rows: Their number.
        of: The number of all rows.
        read: The bytes of weights, gradient and slots that the step reads.
        written: The bytes that it writes.
    """

    name: str
    rows: int
    of: int
    read: int
    written: int

    def __str__(self) -> str:
        read, written = map(in_bytes, (self.read, self.written))
        return f"{self.name}: {self.rows:,} of {self.of:,} rows, {read} read, {written} written"


class Explanation(list[Way]):
    """A list with one `Way` per parameter. Its printed form counts the parameters for each way and reason.

    Attributes:
        launches: The launches of kernels in each step, of parameters that kernels update.
        bytes: The bytes that these read and write.
        least_bytes: What they had to move if each tensor were read once and written once.
        rows: The rows of parameters with sparse gradients, and the bytes that these move.
        solves: How links have solved their linear systems, with the memory of these, by the link's place in the state.
    """

    def __init__(self) -> None:
        super().__init__()
        self.solves: dict[str, str] = {}
        self.rows: list[MovedRows] = []
        self.launches: list[Launch] = []

    @property
    def bytes(self) -> int:
        return sum(launch.read + launch.written for launch in self.launches)

    @property
    def least_bytes(self) -> int:
        return self.bytes - sum(launch.again for launch in self.launches)

    def __repr__(self) -> str:
        names_of_way: dict[tuple[str, str], list[str]] = {}
        for item in self:
            names_of_way.setdefault((item.way, item.reason), []).append(item.name)
        lines: list[str] = []
        for (way, reason), names in names_of_way.items():
            shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            parameters = "parameter" if len(names) == 1 else "parameters"
            because = f": {reason}" if reason else ""
            lines.append(f"{way}: {len(names)} {parameters} ({shown}){because}")
        lines.extend(map(str, self.rows))
        lines.extend(f"{link}: {solve}" for link, solve in self.solves.items())
        lines.extend(map(str, self.launches))
        if self.launches:
            total, least = map(in_bytes, (self.bytes, self.least_bytes))
            count = len(self.launches)
            what = "kernel launch moves" if count == 1 else "kernel launches move"
            lines.append(
                f"{count} {what} {total}; reading and writing each tensor once would move {least}"
            )
        return "\n".join(lines)


def explain(core: Core) -> Explanation:
    """Report how each parameter was updated in the last step."""
    explanation = Explanation()
    explanation.rows = [
        MovedRows(
            member.name, len(member.index), len(member.table.param), *member.moved_bytes
        )
        for member in core.listed
    ]
    if runs_eagerly():
        for name in core.members.names():
            explanation.append(Way(name, ALONE, "gradtx.eagerly() is on"))
        return explanation
    ways: dict[str, str] = {}
    reasons: dict[str, str] = {}
    absent: set[str] = set()
    for engine in core.back_ends:
        reasons.update(engine.reasons)
        for plan in engine.plans.values():
            for task in plan.tasks:
                explanation.launches.extend(engine.launches(task))
                for member in task.stepping:
                    ways.setdefault(member.name, engine.way)
            for member in plan.rest:
                reasons.setdefault(member.name, "")
            absent.update(member.name for member in plan.absent)
    for name in absent:
        reasons.pop(name, None)
    for name in core.alone:
        reasons[name] = core.traits.refusal
    explanation.solves = {".".join(path): way for path, way in core.ways.items()}
    for member in core.members.by_param.values():
        way, reason = ways.get(member.name), reasons.get(member.name)
        if way is None and member.count_in(core.states.of(member.param)) == 0:
            # A step that left this one alone would have counted.
            is_frozen = not member.param.requires_grad or reason is not None
            way, reason = (FROZEN if is_frozen else NOT_YET), ""
        elif way is None and reason is None:
            way, reason = ABSENT, ""
        elif way is None:
            way = ALONE
        explanation.append(Way(member.name, way, reason or ""))
    return explanation
