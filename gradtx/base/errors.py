"""Paths of state entries, and errors that several rooms raise or catch."""

from __future__ import annotations

from collections.abc import Iterable

Path = tuple[str, ...]
StateKey = tuple[Path, str]  # of a slot or of a shared value, by name

OWN_STATE = "pass the state made by this chain's own init, with these parameters"


def lacking(path: Iterable[str], leaf: str | None = None) -> ValueError:
    """Return the error for a state that lacks an entry of this chain, for one leaf or for all."""
    whose = "" if leaf is None else f" of leaf {leaf!r}"
    return ValueError(f"state lacks {'.'.join(path)!r}{whose}; {OWN_STATE}")


def foreign(path: Iterable[str]) -> ValueError:
    """Return the error for a state with an entry that this chain does not keep."""
    return ValueError(
        f"state has {'.'.join(path)!r}, which this chain does not use; {OWN_STATE}"
    )


class UnknownInProgramError(Exception):
    """A rule reads what a program does not know, such as a leaf's name; other ways of running it know it."""
