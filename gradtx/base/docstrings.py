"""Docstrings of factories and classes: entries for the arguments that their decorators add."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping

# The entries of a section are indented more than its title.
_ARGS = re.compile(r"^( *)Args:\n(?:\1 +\S.*\n|\n(?=\1 +\S))*", re.MULTILINE)
_RETURNS = re.compile(r"^( *)Returns:\n", re.MULTILINE)


def with_arguments(docstring: str | None, entries: Mapping[str, str]) -> str | None:
    """Return a docstring with further entries, name -> text, at the end of its section `Args`."""
    if docstring is None or not entries:
        return docstring
    args = _ARGS.search(docstring)
    if args is not None:
        return _with(docstring, args.end(), _lines(entries, args[1]))
    returns = _RETURNS.search(docstring)
    if returns is None:
        return docstring
    indent = returns[1]
    section = f"{indent}Args:\n{_lines(entries, indent)}\n"
    return _with(docstring, returns.start(), section)


def _with(text: str, position: int, part: str) -> str:
    return text[:position] + part + text[position:]


def _lines(entries: Mapping[str, str], indent: str) -> str:
    wrapper = textwrap.TextWrapper(
        width=120,
        initial_indent=f"{indent}    ",
        subsequent_indent=f"{indent}        ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    lines = [wrapper.fill(f"{name}: {told}") for name, told in entries.items()]
    return "\n".join(lines) + "\n"
