"""Write the type stubs of names that decorators create: `make docs-tables`.

Decorators add arguments (`mask`, `maximize`, `state_dtype`, ...) that no type checker can derive from the function.
"""

from __future__ import annotations

import inspect
import itertools
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import algorithms

import gradtx
from gradtx import arguments, schedules
from gradtx.base.names import HOMES
from gradtx.optim.classes import CLASSES
from gradtx.schedules._factory import COMMON_WORDS, word_for

ROOT = Path(__file__).parent.parent / "gradtx"
TITLE = '''"""Types of this module, written by docs/stubs.py: run `make docs-tables`."""
'''
# Types of ranges that are not public.
RANGES = (
    "AtLeastFour",
    "AtLeastOne",
    "AtLeastOneOrInf",
    "FractionOffAtOne",
    "NonPositive",
    "OpenFraction",
    "PositiveOrInf",
)
# Of what annotations and defaults refer to.
IMPORTS = {
    "Callable": "from collections.abc import Callable\n",
    "Mapping": "from collections.abc import Mapping\n",
    "Sequence": "from collections.abc import Sequence\n",
    "Annotated": "from typing import Annotated\n",
    "Any": "from typing import Any\n",
    "Literal": "from typing import Literal\n",
    "overload": "from typing import overload\n",
    "torch": "import torch\n",
    "Tensor": "from torch import Tensor\n",
    "Params": "from gradtx.base.inputs import Params\n",
    "Betas": "from gradtx.base.exact import Betas\n",
    "Scalar": "from gradtx.base.exact import Scalar\n",
    "Schedule": "from gradtx.base.exact import Schedule\n",
    "Where": "from gradtx.base.selectors import Where\n",
    **{
        name: f"from gradtx.arguments import {name}\n"
        for name in sorted({*arguments.__all__, *RANGES} - {"is_off"})
    },
    "StateDtype": "from gradtx.state.storage import StateDtype\n",
    "GradientTransformation": "from gradtx.transform import GradientTransformation\n",
    "Engine": "from gradtx.optim.engine import Engine\n",
    "ChainOptimizer": "from gradtx.optim.optimizer import ChainOptimizer\n",
    **{
        name: f"from gradtx.combinators.coordinates import {name}\n"
        for name in ("Bases", "Carry", "Side")
    },
    **{
        name: f"from gradtx.maths.polynomials import {name}\n"
        for name in ("Coefficients", "Mixture", "StaticCoefficients", "Steps")
    },
    **{
        name: f"from gradtx.{module} import {name}\n"
        for module, names in {
            "links.orthogonal": ("Adjustment", "View"),
            "algorithms.muon_eq": ("Sides",),
            "algorithms.psgd": ("Mode",),
            "algorithms.sinkgd": ("Order",),
            "algorithms.zero_order": ("Distribution", "Method"),
            "curvature.fisher": ("Likelihood",),
            "curvature.solves": ("Solve",),
            "curvature.terms": ("Reduction", "Weights"),
            "links.record": ("Quantity",),
            "links.lmo": ("Kind",),
            "algorithms.scalable_shampoo": ("Graft",),
            "links.width": ("Multipliers",),
        }.items()
        for name in names
    },
}

BASE = """class AliasOptimizer(ChainOptimizer):
    _alias: Callable[..., GradientTransformation]

    def __init__(self, params: Params, *args: Any, **kwargs: Any) -> None: ...

CLASSES: Mapping[str, type[AliasOptimizer]]
ALIASES: dict[str, str]

def class_of_user(alias: Any) -> type[AliasOptimizer]: ...
def classes_of_users() -> Mapping[str, type[AliasOptimizer]]: ...
"""


def default(value: Any) -> str:
    """Return the source text of a default."""
    if isinstance(value, str):
        return json.dumps(value)  # in double quotes, as ruff writes them
    return 'float("inf")' if value == float("inf") else repr(value)


def argument(parameter: inspect.Parameter) -> str:
    """Return the source text of a parameter of an alias, a link or a class."""
    # Classes have types, which frameworks look up, in place of some texts.
    typed = f"{parameter.name}: {str(parameter.annotation).removeprefix('gradtx.')}"
    if parameter.default is parameter.empty:
        return typed
    return f"{typed} = {default(parameter.default)}"


def declaration(
    head: str,
    parameters: Iterable[inspect.Parameter],
    result: str,
    first: tuple[str, ...] = (),
) -> str:
    """Return the declaration of a function, with one argument per line."""
    indent = " " * (len(head) - len(head.lstrip()))
    lines = list(first)
    keyword_only = False
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
            lines.append("*")
            keyword_only = True
        lines.append(argument(parameter))
    arguments = "".join(f"{indent}    {line},\n" for line in lines)
    return f"{head}(\n{arguments}{indent}) -> {result}: ...\n"


def common_words(arguments: arguments.Arguments) -> dict[str, tuple[str, ...]]:
    """Return the common keywords that a schedule accepts in place of its own names, by own name."""
    words: dict[str, tuple[str, ...]] = {}
    for common in COMMON_WORDS:
        own = word_for(common, arguments)
        if own != common:
            words[own] = (*words.get(own, ()), common)
    return words


def function(name: str, value: Any) -> str:
    """Return the declaration of a factory; of a schedule's factory, one for each combination of its words."""
    parameters = list(inspect.signature(value).parameters.values())
    if hasattr(value, "spec"):
        return declaration(f"def {name}", parameters, "GradientTransformation")
    words = common_words(value.arguments)
    if not words:
        return declaration(f"def {name}", parameters, "Schedule")
    overloads: list[str] = []
    for chosen in itertools.product(*((own, *others) for own, others in words.items())):
        word_of = dict(zip(words, chosen, strict=True))
        renamed = [
            parameter.replace(name=word_of.get(parameter.name, parameter.name))
            for parameter in parameters
        ]
        overloads.append(
            "@overload\n" + declaration(f"def {name}", renamed, "Schedule")
        )
    return "".join(overloads)


def class_(cls: Any) -> str:
    """Return the declaration of the class of an alias."""
    parameters = inspect.signature(cls).parameters.values()
    summary = algorithms.first_sentence(cls._alias)
    quotes = 'r"""' if "\\" in summary else '"""'
    init = declaration("    def __init__", parameters, "None", ("self",))
    return f'class {cls.__name__}(AliasOptimizer):\n    {quotes}{summary}."""\n\n{init}'


def page(names: Iterable[str], body: str, others: str = "") -> str:
    """Return a stub file.

    Args:
        names: The names that it exports.
        body: Its declarations.
        others: The imports of names that it exports as other modules define them.
    """
    imports = "".join(
        line for name, line in IMPORTS.items() if re.search(rf"[ \[(@]{name}\b", body)
    )
    exported = "".join(f'    "{name}",\n' for name in sorted(names))
    return f"{TITLE}\n{imports}{others}\n__all__ = [\n{exported}]\n\n{body}"


def root_stub() -> str:
    """Return the stub of `gradtx`.

    It declares all factories itself. In their packages, mypy would confuse functions with modules of the same name.
    """
    body = "__version__: str\n"
    others = ""
    for name in gradtx.__all__:
        value = getattr(gradtx, name)
        if hasattr(value, "spec"):
            body += function(name, value)
        else:
            source = "gradtx" if isinstance(value, ModuleType) else module_of(name)
            others += f"from {source} import {name} as {name}\n"
    return page(gradtx.__all__, body, others)


def module_of(name: str) -> str:
    """Return the module that defines a public name; of a schedule, its package, whose stub has the overloads."""
    module = HOMES[name]
    return "gradtx.schedules" if module.startswith("gradtx.schedules.") else module


def schedules_stub() -> str:
    """Return the stub of `gradtx.schedules`."""
    body = ""
    others = ""
    for name in schedules.__all__:
        value = getattr(schedules, name)
        if hasattr(value, "arguments"):
            body += function(name, value)
        else:
            others += f"from {HOMES[name]} import {name} as {name}\n"
    return page(schedules.__all__, body, others)


def classes_stub() -> str:
    """Return the stub of the module of classes."""
    classes = sorted(CLASSES.values(), key=lambda cls: cls.__name__)
    names = [cls.__name__ for cls in classes]
    return page(names, "\n".join([BASE, *map(class_, classes)]))


def stubs() -> dict[Path, str]:
    """Return the text of each stub file."""
    return {
        ROOT / "__init__.pyi": root_stub(),
        ROOT / "schedules" / "__init__.pyi": schedules_stub(),
        ROOT / "optim" / "classes.pyi": classes_stub(),
    }


if __name__ == "__main__":
    for path, text in stubs().items():
        path.write_text(text, encoding="utf-8")
        sys.stdout.write(f"wrote {path}\n")
