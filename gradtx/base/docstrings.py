"""Docstrings of factories and classes: a section for the arguments that their decorators add."""

from __future__ import annotations

import inspect
from collections.abc import Mapping


def with_arguments(docstring: str | None, entries: Mapping[str, str]) -> str | None:
    """Return a docstring with a section for further arguments, name -> text, at the end."""
    if docstring is None or not entries:
        return docstring
    lines = [f"    {name}: {text}" for name, text in entries.items()]
    return "\n".join([inspect.cleandoc(docstring), "", "Keyword Args:", *lines])
