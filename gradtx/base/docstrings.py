"""Docstrings of factories and classes: entries for the arguments that their decorators add."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Mapping, Sequence

_ENTRY = re.compile(r"^ {4}(\w+(?:, \w+)*): (.*(?:\n {8}.*)*)", re.MULTILINE)
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


def with_errors(docstring: str, causes: Mapping[str, Sequence[str]]) -> str:
    """Return a docstring whose section `Raises` begins with further causes, name of the error -> clauses.

    The causes that it has, "If ..., or if ...", follow these.
    """
    text = inspect.cleandoc(docstring)
    section = re.search(r"^Raises:\n((?: +.*\n?)+)", text, re.MULTILINE)
    told = _ENTRY.findall(section[1]) if section else []
    clauses = {name: [*added] for name, added in causes.items() if added}
    for name, cause in told:
        own = " ".join(cause.split()).removeprefix("If ").rstrip(".")
        clauses.setdefault(name, []).append(own)
    if not clauses:
        return text
    entries = [
        _entry(name, _sentence(entries_of_name))
        for name, entries_of_name in clauses.items()
    ]
    lines = "\n".join(["Raises:", *entries])
    if section is not None:
        return f"{text[: section.start()]}{lines}\n{text[section.end() :]}"
    later = re.search(r"^(Example|Source):", text, re.MULTILINE)
    at = len(text) if later is None else later.start()
    parts = [text[:at].rstrip(), lines, text[at:].lstrip()]
    return "\n\n".join(filter(None, parts))


def _sentence(clauses: Sequence[str]) -> str:
    """Return "If a, if b, or if c." of clauses, of which the last may be a list of its own."""
    *most, last = clauses
    if not most:
        return f"If {last}."
    has_list = re.search(r", (or )?if |, unless ", last)
    between = ", if " if has_list else ", or if "
    return f"If {', if '.join(most)}{between}{last}."


def _entry(name: str, told: str) -> str:
    """Return an entry of a section in lines of the docstrings' width."""
    return textwrap.fill(
        f"{name}: {told}", 116, initial_indent=" " * 4, subsequent_indent=" " * 8
    )
