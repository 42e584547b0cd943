"""Docstrings of factories and classes: entries for the arguments that their decorators add."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Mapping

# Sections that follow `Args`, in their order.
_LATER = re.compile(r"^(Returns|Raises|Example|Source):", re.MULTILINE)


def with_arguments(docstring: str | None, entries: Mapping[str, str]) -> str | None:
    """Return a docstring whose section `Args` ends with further arguments, name -> text."""
    if docstring is None or not entries:
        return docstring
    text = inspect.cleandoc(docstring)
    lines = "".join(f"{_entry(name, told)}\n" for name, told in entries.items())
    arguments = re.search(
        r"^Args:\n(?:(?: +\S.*)?\n)*?(?=\n*^\S|\n*\Z)", f"{text}\n", re.MULTILINE
    )
    if arguments is not None:
        end = arguments.end()
        return f"{text[:end].rstrip()}\n{lines}\n{text[end:].lstrip()}".rstrip()
    later = _LATER.search(text)
    at = len(text) if later is None else later.start()
    parts = [text[:at].rstrip(), f"Args:\n{lines}".rstrip(), text[at:].lstrip()]
    return "\n\n".join(filter(None, parts))


def _entry(name: str, told: str) -> str:
    """Return an entry of a section in lines of the docstrings' width."""
    return textwrap.fill(
        f"{name}: {told}", 116, initial_indent=" " * 4, subsequent_indent=" " * 8
    )
