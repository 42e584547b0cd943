"""The arguments of every public factory and schedule, recorded in signatures.txt: `python -m tests.signatures`."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradtx
from tests.conformance import example, factories

RECORD = Path(__file__).with_suffix(".txt")
VALID = r"(?:in ([\[(].*?[\])])|(.*'.*|\d+ or \d+))"  # an interval, or words or counts


def signatures() -> list[str]:
    """A line for each: names and defaults, then the intervals and the words that its errors name."""
    schedules = [getattr(gradtx, name) for name in gradtx.schedules.__all__ if name[0].islower()]
    lines = [_line(factory, example(factory)) for factory in factories()]
    return sorted(lines + [_line(schedule, {}) for schedule in schedules])


def _line(factory: Any, given: dict[str, Any]) -> str:
    parameters = inspect.signature(factory).parameters.values()
    names = (name.name if name.default is name.empty else f"{name.name}={name.default!r}" for name in parameters)
    told = dict(_valid_values(factory, given))
    return f"{factory.__name__}({', '.join(names)}) {' '.join(f'{name} {told[name]}' for name in told)}".rstrip()


def _valid_values(factory: Any, given: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What is said of numbers that are in no interval, NaN and for counts a large negative one, and of no word."""
    for name, parameter in inspect.signature(factory).parameters.items():
        value = given.get(name, parameter.default)
        tuples = (
            [(*value[:i], math.nan, *value[i + 1 :]) for i in range(len(value))] if isinstance(value, tuple) else []
        )
        for wrong in (*tuples, math.nan, -(10**9), "?"):
            try:
                factory(**{**given, name: wrong})
            except (TypeError, ValueError) as error:
                if told := re.search(rf"({name}\S*) must be {VALID}, got", str(error)):
                    yield told[1], told[2] or told[3]


if __name__ == "__main__":
    RECORD.write_text("\n".join(signatures()) + "\n", encoding="utf-8")
