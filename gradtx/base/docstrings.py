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


# What an optimizer passes to the chain itself.
_NEEDS_PARAMS = re.compile(
    r"(?:, or if|, if|If) `params` is missing(?: although weights\s+decay)?(?=[,.])"
)


def of_class(docstring: str, example: str) -> str:
    """Return the docstring of a factory as that of the optimizer's class.

    Args:
        docstring: That of the factory.
        example: The section `Example` of the class.
    """
    parts = re.split(r"^(?=(?:Returns|Raises|Example|Source):)", docstring, flags=re.M)
    kept: list[str] = []
    for part in parts:
        if part.startswith("Returns:"):
            state = re.search(r"\bState:.*", part, re.DOTALL)
            part = f"{' '.join(state[0].split())}\n\n" if state else ""
            part = textwrap.fill(part, 120) + "\n\n" if part else ""
        elif part.startswith("Raises:"):
            part = _without_params(part)
        elif part.startswith("Example:"):
            part = f"{example}\n"
        kept.append(part)
    return "".join(kept).rstrip()


def _without_params(section: str) -> str:
    """Return a section `Raises` without the errors of a call that lacks the parameters."""
    lines: list[str] = []
    for name, cause in _ENTRY.findall(section.replace(" or `params` is", " is")):
        text = _NEEDS_PARAMS.sub("", " ".join(cause.split())).lstrip(", ")
        if text in ("", "."):
            continue
        text = re.sub(r"^(?:or )?if ", "If ", text)
        if ", or if " not in text:
            text = ", or if ".join(text.rsplit(", if ", 1))
        lines.append(_entry(name, text))
    return "\n".join(["Raises:", *lines, "", ""]) if lines else ""


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
