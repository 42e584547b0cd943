"""Write gradtx/base/table.py, which says where each public name is defined: `make docs-tables`.

It reads source files and imports none of them, so that a new method is found before the table has it.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent / "gradtx"
TABLE = ROOT / "base" / "table.py"
# What the root of the package offers: all public names of these modules, and of all modules of these packages.
SOURCES = (
    *("algorithms", "links", "combinators", "schedules", "sweeps", "meta", "watching"),
    *("transform", "rules", "arguments", "base.exact", "base.ambient"),
    *("execution.context", "state.codes", "functional", "checkpoint", "hessian"),
    *("model_memory", "models", "multitask", "registry"),
)
OTHERS = {"as_optimizer": "optim"}


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Yield the name of each module of `SOURCES`, and its syntax tree."""
    for source in SOURCES:
        place = ROOT / source.replace(".", "/")
        files = (
            sorted(place.glob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
        )
        for file in files:
            if file.stem != "__init__":
                name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
                yield name, ast.parse(file.read_text(encoding="utf-8"))


def public_names(tree: ast.Module) -> list[str]:
    """Return the `__all__` of a module."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return []


def class_name(function: ast.FunctionDef) -> str | None:
    """Return the name of the class of an alias; None for other functions."""
    for decorator in function.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "alias":
            for option in decorator.keywords:
                if option.arg == "class_name":
                    return ast.literal_eval(option.value)
        if ast.unparse(decorator).partition("(")[0] == "alias":
            return "".join(map(str.capitalize, function.name.split("_")))
    return None


def table() -> str:
    """Return the text of the table."""
    homes, classes = dict(OTHERS), {}
    for module, tree in modules():
        names = public_names(tree)
        homes.update(dict.fromkeys(names, module))
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name in names:
                found = class_name(node)
                if found is not None:
                    classes[node.name] = found
    return "\n".join(
        [
            '"""Where each public name is defined, written by docs/table.py: run `make docs-tables`."""',
            "",
            "# Name -> module of gradtx.",
            "MODULES = {",
            *(f'    "{name}": "{homes[name]}",' for name in sorted(homes)),
            "}",
            "# Optimizer -> its class in `gradtx.optim`.",
            "CLASSES = {",
            *(f'    "{name}": "{classes[name]}",' for name in sorted(classes)),
            "}",
            "",
        ]
    )


if __name__ == "__main__":
    TABLE.write_text(table(), encoding="utf-8")
    sys.stdout.write(f"wrote {TABLE}\n")
