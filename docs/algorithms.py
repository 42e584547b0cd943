"""Write docs/algorithms.md from the docstrings and from the states of the optimizers: `make docs-tables`."""

from __future__ import annotations

import inspect
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

import gradtx
from gradtx.optim.classes import CLASSES

PAGE = Path(__file__).with_suffix(".md")

HISTORY = 10  # the default of L-BFGS
RANK = 128  # the default of the low-rank methods
ROWS, COLUMNS, ENTRIES = 48, 40, 29  # distinct, so that a slot's size says what it is of; one block for Shampoo
MATRIX = {
    ROWS * COLUMNS: "",
    ROWS: "row",
    COLUMNS: "column",
    ROWS**2: "row²",
    COLUMNS**2: "column²",
    (ROWS * COLUMNS) ** 2: "row² column²",
    RANK * ROWS: "rank row",
    RANK * COLUMNS: "rank column",
    HISTORY**2: "history²",
}
VECTOR = {ENTRIES: "", ENTRIES**2: "n²", HISTORY**2: "history²"}

INTRO = """# Algorithms

<!-- Written by docs/algorithms.py from the docstrings; `make docs-tables` rewrites it. -->

`help(gradtx.<name>)` gives the equation, all arguments with their ranges, the state, an example, the paper and
departures from it. So does the site that `make docs` builds.

## Optimizers

Each is a function, `gradtx.adamw(lr=1e-3)`, for `chain`, pure use and `as_optimizer`, and a class with the same
arguments, `gradtx.optim.AdamW(model.parameters(), lr=1e-3)`.

- **Memory**: floats of state for a matrix, counted in the state itself: "2" is two per entry, "row" one per row, "row²"
  a square matrix whose side is the number of rows. State of constant size is left out. First with default options, then
  with options that change it, then for vectors (of length n) if they differ.
- **Needs**: further inputs of `update` besides gradients and state, with default options.
- **Rate**: "owns" marks those that return a finished step: no link that scales by a learning rate or decays may follow.
- **Works on**: "entries" for elementwise rules; "entries, sums" for elementwise rules with sums over all parameters;
  "tensors" for rules on whole tensors (norms, means, factorizations).
"""

PIECES = """
## Transformations and combinators

The links of the optimizers, for `chain`.
"""


# From docstrings.


def first_sentence(factory: Any) -> str:
    line = (inspect.getdoc(factory) or "").splitlines()[0]
    return re.split(r"\.(?:\s|$)", line)[0]


def when(factory: Any) -> str:
    """When to use an optimizer, as a sentence."""
    found = re.search(r"^When to use: (.*?)\n\n", inspect.getdoc(factory) or "", re.DOTALL | re.MULTILINE)
    if not found:
        raise AssertionError(f"{factory.__name__}: its docstring lacks `When to use:`")
    text = " ".join(found[1].split())
    return text[0].upper() + text[1:]


def paper(factory: Any) -> str:
    """The first sentence of `Source`, without what it says of single options, and with links to arXiv."""
    found = re.search(r"Source: (.*?)(?:\n\n|\Z)", inspect.getdoc(factory) or "", re.DOTALL)
    text = " ".join(found[1].split()) if found else ""
    text = re.split(r"(?<!et al)\.(?= [A-Z(]|$)", text)[0]
    text = re.split(r"; [^;:]*: ", text)[0]
    return re.sub(r"([A-Z][\w. -]*? \d{4}), arXiv:(\d{4}\.\d{4,5})", r"[\1](https://arxiv.org/abs/\2)", text)


# From states.


def required(factory: Any) -> dict[str, Any]:
    """Arguments for those without a default."""
    return {argument.name: factory.spec.example[argument.name] for argument in arguments(factory) if argument.required}


def arguments(factory: Any) -> list[Any]:
    return factory.spec.arguments.all


def memory(factory: Any) -> str:
    """State for every entry of a matrix, with the options that change it; for a vector where that differs."""
    tx = factory(**required(factory))
    usual, others = amount(tx, (ROWS, COLUMNS), MATRIX), defaultdict(list)
    for argument in arguments(factory):
        found = amount_with(factory, argument)
        if found not in (None, usual):
            others[found].append(f"`{argument.name}=False`" if argument.default is True else f"`{argument.name}`")
    text = "; ".join([usual, *(f"{found} with {' or '.join(names)}" for found, names in others.items())])
    try:
        vector = amount(tx, (ENTRIES,), VECTOR)
    except ValueError:
        return f"{text}; matrices only"
    return text if vector == usual else f"{text}; vectors {vector}"


def amount_with(factory: Any, argument: Any) -> str | None:
    """The state of a matrix with an option that is off by default switched on; None where there is no such thing."""
    if argument.kind == "bool":
        value: Any = not argument.default
    elif argument.kind == "scalar" and argument.default in (None, argument.range.off):
        value = 0.5
    else:
        return None
    try:
        return amount(factory(**required(factory), **{argument.name: value}), (ROWS, COLUMNS), MATRIX)
    except (TypeError, ValueError):  # options may exclude each other
        return None


def amount(tx: gradtx.GradientTransformation, shape: tuple[int, ...], units: Mapping[int, str]) -> str:
    counts = Counter(size for size in sizes(tx.init({"leaf": torch.ones(shape)})) if size > 1)
    if unknown := set(counts) - set(units):
        raise AssertionError(f"{tx}: no unit for slots of {sorted(unknown)} entries")
    terms = [(counts[size], unit) for size, unit in units.items() if counts[size]]
    return " + ".join(unit if n == 1 and unit else f"{n} {unit}".strip() for n, unit in terms) or "0"


def sizes(state: Mapping[str, Any]) -> Iterator[int]:
    """The sizes of all tensors of a state."""
    for value in state.values():
        if isinstance(value, Mapping):
            yield from sizes(value)
        else:
            yield value.numel()


def rules(tx: Any) -> list[Any]:
    """All rules that a transformation comes down to, those of branches too."""
    found = list(tx._links())
    for link in found:
        found.extend(link._inner_links())
    return [link for link in found if link._spec.kind == "rule"]


def works_on(tx: Any) -> str:
    for rule in rules(tx):
        elementwise = rule._spec.elementwise
        if not (elementwise(rule._arguments) if callable(elementwise) else elementwise):
            return "tensors"
    # A rule that yields asks for sums over all leaves.
    sums = any(inspect.isgeneratorfunction(rule._body.update) for rule in rules(tx))
    return "entries, sums" if sums else "entries"


# The page.


def row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def table(titles: list[str], rows: Iterable[Iterable[str]]) -> list[str]:
    return ["", row(titles), row(["---"] * len(titles)), *map(row, rows)]


def named(factory: Any) -> str:
    """The name of a factory, as a link to its module."""
    return f"[`{factory.__name__}`](../{module(factory).replace('.', '/')}.py)"


def classes() -> dict[Any, str]:
    """Alias -> the name of its class."""
    names = {}
    for cls in CLASSES.values():
        names[cls._alias] = cls.__name__
    return names


def module(factory: Any) -> str:
    return factory.spec.function.__module__


def public(chosen: Callable[[str], bool]) -> dict[str, list[Any]]:
    """Public factories of the kinds that are chosen, by module."""
    found = defaultdict(list)
    for name in gradtx.__all__:
        factory = getattr(gradtx, name)
        if hasattr(factory, "spec") and chosen(factory.spec.kind):
            found[module(factory)].append(factory)
    return found


def optimizer(factory: Any, class_name: str) -> list[str]:
    tx = factory(**required(factory))
    return [
        f"{named(factory)}<br>`{class_name}`",
        f"{first_sentence(factory)}. *{when(factory)}*",
        memory(factory),
        ", ".join(f"`{need}`" for need in tx.needs),
        "owns" if any(link._lr_role == "owner" for link in tx._links()) else "",
        works_on(tx),
        paper(factory),
    ]


def families() -> dict[str, str]:
    """Module of `gradtx.optimizers` -> title, from its docstring; in the order of the package's imports."""
    titles = {}
    for cls in CLASSES.values():
        place = module(cls._alias)
        summary = sys.modules[place].__doc__ or ""
        titles[place.rpartition(".")[2]] = summary.partition(":")[0]
    return titles


def optimizers() -> list[str]:
    """One table; a family begins with a row of its title, which links can point to."""
    by_module, names = public(lambda kind: kind == "alias"), classes()
    titles = ["function, class", "what it does, *when to use it*", "memory", "needs", "rate", "works on", "source"]
    rows = []
    for family, title in families().items():
        rows.append([f'<a id="{family}"></a>**{title}**', *[""] * (len(titles) - 1)])
        for factory in by_module[f"gradtx.optimizers.{family}"]:
            rows.append(optimizer(factory, names[factory]))
    return table(titles, rows)


def pieces() -> list[str]:
    rows = [
        [f"`{place.removeprefix('gradtx.')}`", named(factory), first_sentence(factory)]
        for place, factories in sorted(public(lambda kind: kind != "alias").items())
        for factory in factories
    ]
    return table(["module", "function", "what it does"], rows)


def page() -> str:
    """The whole page."""
    return "\n".join([INTRO.strip(), *optimizers(), PIECES.rstrip(), *pieces(), ""])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"wrote {PAGE}\n")
