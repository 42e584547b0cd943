"""The cases of a product that run by day, as patterns of their ids at the test; the others get the mark `nightly`.

`make quick` has every other case of long products.
"""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Callable
from typing import Any

import pytest

MANY = 8
_CHOSEN = "cases_by_day"


def by_day(*patterns: str) -> Callable[[Any], Any]:
    """Leave the cases of a test whose ids match none of the patterns to the night."""

    def decorated(test: Any) -> Any:
        setattr(test, _CHOSEN, patterns)
        return test

    return decorated


def mark_every_other_slow(items: list[pytest.Item]) -> None:
    """Leave every other case of a test with many cases by day to the tests that `make quick` leaves out."""
    by_day = (item for item in items if item.get_closest_marker("nightly") is None)
    for _, group in itertools.groupby(by_day, lambda item: getattr(item, "function", None)):
        cases = list(group)
        if len(cases) >= MANY:
            for item in cases[1::2]:
                item.add_marker(pytest.mark.slow)


def mark_nightly(items: list[pytest.Item], are_all: bool = True) -> None:
    """Mark what `by_day` leaves out, and refuse a pattern that is no case of its test, if all its cases are here."""
    unmatched: dict[Any, set[str]] = {}
    for item in items:
        patterns = getattr(getattr(item, "function", None), _CHOSEN, None)
        if patterns is None:
            continue
        name = item.callspec.id  # type: ignore[attr-defined]
        matched = {pattern for pattern in patterns if fnmatch.fnmatchcase(name, pattern)}
        unmatched.setdefault(item.function, set(patterns)).difference_update(matched)  # type: ignore[attr-defined]
        if not matched:
            item.add_marker(pytest.mark.nightly)
    for test, patterns in unmatched.items():
        if patterns and are_all:
            raise pytest.UsageError(
                f"by_day of {test.__name__} in {test.__module__}: no case matches {sorted(patterns)}; "
                "remove them from its list, or put the cases' new ids there"
            )
