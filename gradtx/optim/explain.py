"""Reports how each parameter of an optimizer is updated: by a compiled program, over lists, or alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradtx.base.ambient import runs_eagerly

if TYPE_CHECKING:
    from gradtx.optim.core import Core

ALONE, FROZEN, NOT_YET = "alone", "frozen", "not yet"


@dataclass(frozen=True)
class Way:
    """How one parameter was updated in the last step.

    Attributes:
        name: The parameter's name.
        way: "kernels" (Triton kernels, each one launch for all such parameters), "compiled" (a program built by torch's
            compiler), "lists" (a program over lists of tensors), "alone" (its rules ran for this parameter only),
            "frozen" (it requires no gradient, or a link freezes it), or "not yet" (it had no gradient, or there was no
            step).
        reason: Why no faster program updates it; empty otherwise.
    """

    name: str
    way: str
    reason: str


class Explanation(list[Way]):
    """A list with one `Way` per parameter. Its printed form counts the parameters for each way and reason."""

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
        return "\n".join(lines)


def explain(core: Core) -> Explanation:
    """Report how each parameter was updated in the last step."""
    if runs_eagerly():
        names = core.members.names()
        return Explanation(Way(name, ALONE, "gradtx.eagerly() is on") for name in names)
    ways: dict[str, str] = {}
    reasons: dict[str, str] = {}
    for engine in core.back_ends:
        reasons.update(engine.reasons)
        for plan in engine.plans.values():
            for bundle in plan.bundles:
                for member in bundle.members:
                    ways.setdefault(member.name, engine.way)
            for member in plan.rest:
                reasons.setdefault(member.name, "")
    explanation = Explanation()
    for member in core.members.by_param.values():
        way, reason = ways.get(member.name), reasons.get(member.name)
        if way is None and member.count_in(core.states.of(member.param)) == 0:
            # A step that left this one alone would have counted.
            is_frozen = not member.param.requires_grad or reason is not None
            way, reason = (FROZEN if is_frozen else NOT_YET), ""
        elif way is None:
            way = ALONE
            reason = "it currently has no gradient" if reason is None else reason
        explanation.append(Way(member.name, way, reason or ""))
    return explanation
