"""What every test of mistakes asserts: one answer, of ours, that names culprit and remedy."""

from __future__ import annotations

import re
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import gradtx

PACKAGE = str(Path(gradtx.__file__).parent)  # its clone has the same name
ERRORS = (TypeError, ValueError, RuntimeError, AttributeError, KeyError)


def answer_to(mistake: Callable[..., Any], *args: Any) -> Exception:
    """The one error or warning of a call, which gradtx itself raises or writes at the user's line."""
    error = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            mistake(*args)
        except ERRORS as raised:
            error = raised
    if error is None:
        assert len(caught) == 1, [str(warning.message) for warning in caught] or "silence"
        assert not caught[0].filename.startswith(PACKAGE)  # the line of the user
        return caught[0].message
    assert not caught
    assert traceback.extract_tb(error.__traceback__)[-1].filename.startswith(PACKAGE)
    return error


def assert_answered(answer: Exception, culprit: str, remedy: str) -> None:
    for part in (culprit, remedy):
        assert re.search(part, str(answer)), f"{answer} lacks {part!r}"


def each(mistakes: dict[str, tuple]) -> pytest.MarkDecorator:
    """Parametrize by (culprit, remedy, mistake)."""
    return pytest.mark.parametrize(("culprit", "remedy", "mistake"), mistakes.values(), ids=mistakes)
