"""What to say of a name that is no optimizer."""

from __future__ import annotations

from collections.abc import Mapping

from gradtx import algorithms, combinators
from gradtx.base.counterparts import counterpart, plain
from gradtx.base.messages import close
from gradtx.optim.classes import CLASSES


def class_names() -> dict[str, str]:
    """Map the plain names of all optimizers and of their classes to the class."""
    class_of: dict[str, str] = {}
    for alias, cls in CLASSES.items():
        class_of[plain(alias)] = cls.__name__
        class_of[plain(cls.__name__)] = cls.__name__
    return class_of


def optimizer_hint(name: str, name_of: Mapping[str, str]) -> str:
    """Say what to use instead of an unknown optimizer, or how to list all.

    Args:
        name: The unknown name.
        name_of: The name to suggest for each plain name.
    """
    use = counterpart(name)
    if use is not None:
        return use
    for link in (*combinators.__all__, *algorithms.__all__):
        if plain(link) == plain(name):
            return f"gradtx.{link} is a link, not an optimizer: chain it with one, or wrap one with it"
    meant = close(plain(name), name_of, 0.8)
    if meant is not None:
        return f"did you mean {name_of[meant]!r}?"
    return "gradtx.get_supported_optimizers() lists all names"
