"""Write gradtx/optim/classes.pyi, the type stubs of the optimizer classes, from the aliases: `make docs-tables`."""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path
from typing import Any

import algorithms

from gradtx.optim.classes import CLASSES

STUB = Path(__file__).parent.parent / "gradtx" / "optim" / "classes.pyi"

HEAD = '''"""Types of the classes of aliases, written by docs/class_stubs.py: run `make docs-tables`."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from gradtx._arguments import Betas, Scalar
from gradtx._selectors import Where
from gradtx._storage import StateDtype
from gradtx.core import GradientTransformation
from gradtx.optim.adapter import ChainOptimizer
from gradtx.transforms._polynomials import Coefficients

'''

BASE = """class AliasOptimizer(ChainOptimizer):
    _alias: Callable[..., GradientTransformation]
    _seeded: bool

CLASSES: dict[str, type[AliasOptimizer]]
"""


def default(value: Any) -> str:
    """Return the source text of a default."""
    if isinstance(value, str):
        return json.dumps(value)  # in double quotes, as ruff writes them
    return 'float("inf")' if value == float("inf") else repr(value)


def argument(parameter: inspect.Parameter) -> str:
    if parameter.annotation is parameter.empty:
        typed = f"{parameter.name}: Any"
    else:
        typed = f"{parameter.name}: {parameter.annotation}"
    if parameter.default is parameter.empty:
        return typed
    return f"{typed} = {default(parameter.default)}"


def stub(cls: Any) -> str:
    """Return the declaration of a class, with one argument per line."""
    lines = ["self"]
    keyword_only = False
    for parameter in inspect.signature(cls).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
            lines.append("*")
            keyword_only = True
        lines.append(argument(parameter))
    arguments = "".join(f"        {line},\n" for line in lines)
    summary = algorithms.first_sentence(cls._alias)
    quotes = 'r"""' if "\\" in summary else '"""'
    return (
        f'class {cls.__name__}(AliasOptimizer):\n    {quotes}{summary}."""\n\n'
        f"    def __init__(\n{arguments}    ) -> None: ...\n"
    )


def page() -> str:
    """The whole stub file."""
    classes = sorted(
        CLASSES.values(), key=lambda cls: (not cls.__name__.isupper(), cls.__name__)
    )
    names = "".join(f'    "{cls.__name__}",\n' for cls in classes)
    exported = f"__all__ = [\n{names}]\n\n"
    return HEAD + exported + "\n".join([BASE, *map(stub, classes)])


if __name__ == "__main__":
    STUB.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"wrote {STUB}\n")
