"""Write docs/algorithms.md from the optimizers' docstrings and states: `make docs-tables`."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from families import FAMILIES

import gradtx
from gradtx.optim.classes import CLASSES

PAGE = Path(__file__).with_suffix(".md")

HISTORY = 10  # the default of L-BFGS
SLICE = 11  # of the statistics of `prodigy_schedule_free`
RANK = 8  # of the low-rank methods; their default of 128 is larger than the sample
# Distinct, so that the size of a slot identifies its shape; one block for Shampoo.
ROWS, COLUMNS, ENTRIES = 48, 40, 29
MATRIX = {
    ROWS * COLUMNS: "",
    ROWS: "row",
    COLUMNS: "column",
    ROWS**2: "row²",
    COLUMNS**2: "column²",
    (ROWS * COLUMNS) ** 2: "row² column²",
    RANK * ROWS: "rank row",
    RANK * COLUMNS: "rank column",
    RANK**2: "rank²",
    HISTORY**2: "history²",
    -(-ROWS * COLUMNS // SLICE): f"per {SLICE}",
}
VECTOR = {
    ENTRIES: "",
    ENTRIES**2: "n²",
    HISTORY**2: "history²",
    -(-ENTRIES // SLICE): f"per {SLICE}",
}

INTRO = """# Algorithms

<!-- Written by docs/algorithms.py from the docstrings; `make docs-tables` rewrites it. -->

`help(gradtx.<name>)` and the site that `make docs` builds show the equation, all arguments with their ranges, the
state, an example, the paper and departures from it.

## Optimizers

Each optimizer is a function, `gradtx.adamw(lr=1e-3)`, for `chain`, pure use and `as_optimizer`, and a class with the
same arguments, `gradtx.optim.AdamW(model.parameters(), lr=1e-3)`.

The column "state" has these facts, with default options:

- The floats in the state of a matrix, counted in the actual state. "2" means two per entry, "row" one per row, "row²" a
  square matrix with as many rows as the parameter, "2 per 11" two for every eleven entries. State of constant size is
  left out. Options that change the size follow, then vectors (of length n) if they differ.
- The inputs of `update` in addition to gradients and state, such as `params`.
- What the rules work on: single entries (if nothing is said), "sums" over all parameters, or "tensors" (norms, means,
  factorizations). "Owns the rate" marks optimizers that return a finished step: no link that scales by a learning rate
  or decays weights may follow them.
"""

# The other optimizers of a family follow these in alphabetical order.
BEST_KNOWN = (
    *("sgd", "sgdw", "qhm", "adamw", "adam", "rmsprop", "nadam", "lion", "signsgd"),
    *("signum", "radam", "adabelief", "ademamix", "adopt", "adam_atan2", "adabound"),
    *("adan", "stable_adamw", "yogi", "avagrad", "adagrad", "adadelta", "adamax"),
    *("lamb", "lars", "adafactor", "adam_mini", "muon", "galore", "normuon", "adamuon"),
    *("scion", "soap", "shampoo", "psgd_kron", "lbfgs", "sophia", "dadapt_adam"),
    *("prodigy", "dog", "momo_adam", "madgrad", "schedule_free_adamw", "stable_spam"),
    *("mars_adamw",),
)

PIECES = """
## Transformations and combinators

The links of the optimizers, for `chain`.
"""


# From docstrings.


def first_sentence(factory: Any) -> str:
    line = (inspect.getdoc(factory) or "").splitlines()[0]
    return re.split(r"\.(?:\s|$)", line)[0]


def when(factory: Any) -> str:
    """Return the sentence of a docstring on when to use an optimizer."""
    found = re.search(
        r"^When to use: (.*?)\n\n",
        inspect.getdoc(factory) or "",
        re.DOTALL | re.MULTILINE,
    )
    if not found:
        raise AssertionError(f"{factory.__name__}: its docstring lacks `When to use:`")
    text = " ".join(found[1].split())
    return text[0].upper() + text[1:]


def paper(factory: Any) -> str:
    """Return the first sentence of `Source`, without its parts on single options, and with links to arXiv."""
    found = re.search(
        r"Source: (.*?)(?:\n\n|\Z)", inspect.getdoc(factory) or "", re.DOTALL
    )
    text = " ".join(found[1].split()) if found else ""
    text = re.split(r"(?<!et al)(?<!\b[A-Z])\.(?= [A-Z(]|$)", text)[0]
    text = re.split(r"; [^;:]*: ", text)[0]
    return re.sub(
        r"([A-Z][\w. -]*? \d{4}), arXiv:(\d{4}\.\d{4,5})",
        r"[\1](https://arxiv.org/abs/\2)",
        text,
    )


# From states.


def _unscaled(state):
    return 1.0, state


def required(factory: Any) -> dict[str, Any]:
    """Return values for the arguments without a default, and a rank that fits the sample."""
    of_links = {
        "map_after_step": {"fn": torch.tanh},
        "map_tree_after_step": {"fn": gradtx.projections.non_negative},
        "measure": {"name": "size", "fn": len},
        "record": {"name": "norm"},
        "scale_by_stateful": {"step": _unscaled, "start": {}},
    }
    given = of_links.get(factory.__name__) or factory.spec.arguments.sample()
    rank = factory.spec.arguments.by_name.get("rank")
    return {**given, "rank": RANK} if rank is not None and rank.kind == "int" else given


def arguments(factory: Any) -> list[Any]:
    return factory.spec.arguments.all


def memory(factory: Any) -> str:
    """Describe the state of a matrix, with the options that change it, and that of a vector if it differs."""
    tx = factory(**required(factory))
    usual, others = amount(tx, (ROWS, COLUMNS), MATRIX), defaultdict(list)
    for argument in arguments(factory):
        found = amount_with(factory, argument)
        if found not in (None, usual):
            others[found].append(
                f"`{argument.name}=False`"
                if argument.default is True
                else f"`{argument.name}`"
            )
    text = "; ".join(
        [
            usual,
            *(f"{found} with {' or '.join(names)}" for found, names in others.items()),
        ]
    )
    try:
        vector = amount(tx, (ENTRIES,), VECTOR)
    except ValueError:
        return f"{text}; matrices only"
    return text if vector == usual else f"{text}; vectors {vector}"


def amount_with(factory: Any, argument: Any) -> str | None:
    """Describe the state of a matrix with one option toggled; None if the option cannot be toggled."""
    if argument.kind == "bool":
        value: Any = not argument.default
    elif argument.kind == "scalar" and argument.default in (None, argument.range.off):
        value = 0.5
    else:
        return None
    try:
        return amount(
            factory(**required(factory), **{argument.name: value}),
            (ROWS, COLUMNS),
            MATRIX,
        )
    except (TypeError, ValueError):  # options may exclude each other
        return None


def amount(
    tx: gradtx.GradientTransformation, shape: tuple[int, ...], units: Mapping[int, str]
) -> str:
    counts = Counter(
        size for size in sizes(tx.init({"leaf": torch.ones(shape)})) if size > 1
    )
    if unknown := set(counts) - set(units):
        raise AssertionError(f"{tx}: no unit for slots of {sorted(unknown)} entries")
    terms = [(counts[size], unit) for size, unit in units.items() if counts[size]]
    return (
        " + ".join(
            unit if n == 1 and unit else f"{n} {unit}".strip() for n, unit in terms
        )
        or "0"
    )


def sizes(state: Mapping[str, Any]) -> Iterator[int]:
    """Yield the sizes of all tensors of a state."""
    for value in state.values():
        if isinstance(value, Mapping):
            yield from sizes(value)
        else:
            yield value.numel()


def rules(tx: Any) -> list[Any]:
    """Return all rules of a transformation, including those of branches."""
    return [link for link in tx._every_link() if link._spec.kind == "rule"]


def works_on(tx: Any) -> str:
    for rule in rules(tx):
        if not rule._spec.option("elementwise", rule._arguments):
            return "tensors"
    # A rule that yields requests sums over all leaves.
    sums = any(inspect.isgeneratorfunction(rule._body.update) for rule in rules(tx))
    return "entries, sums" if sums else "entries"


# The page.


def row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def table(titles: list[str], rows: Iterable[Iterable[str]]) -> list[str]:
    return ["", row(titles), row(["---"] * len(titles)), *map(row, rows)]


def named(factory: Any) -> str:
    """Return the name of a factory as a link to its module."""
    return f"[`{factory.__name__}`](../{module(factory).replace('.', '/')}.py)"


def classes() -> dict[Any, str]:
    """Map each alias to the name of its class."""
    return {cls._alias: cls.__name__ for cls in CLASSES.values()}


def module(factory: Any) -> str:
    return factory.spec.function.__module__


def public(chosen: Callable[[str], bool]) -> dict[str, list[Any]]:
    """Return the public factories of the chosen kinds, by module."""
    found = defaultdict(list)
    for name in gradtx.__all__:
        factory = getattr(gradtx, name)
        if hasattr(factory, "spec") and chosen(factory.spec.kind):
            found[module(factory)].append(factory)
    return found


def optimizer(factory: Any, class_name: str) -> list[str]:
    tx = factory(**required(factory))
    facts = [memory(factory), *(f"`{need}`" for need in tx.needs)]
    if works_on(tx) != "entries":
        facts.append(works_on(tx).removeprefix("entries, "))
    if any(link._lr_role == "owner" for link in tx._links()):
        facts.append("owns the rate")
    return [
        f"{named(factory)}<br>`{class_name}`",
        f"{first_sentence(factory)}. *{when(factory)}*",
        "<br>".join(facts),
        paper(factory),
    ]


def rank_in_family(factory: Any) -> tuple[bool, int, str]:
    name = factory.__name__
    known = name in BEST_KNOWN
    return not known, BEST_KNOWN.index(name) if known else 0, name


def families() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Map each page to its title and its modules: families of methods, then the files of `gradtx.links`.

    Raises:
        AssertionError: If a file of `gradtx.algorithms` is in no family, or in several.
    """
    pages = {}
    for page, (title, files) in FAMILIES.items():
        modules = tuple(f"gradtx.algorithms.{file}" for file in files)
        pages[f"family-{page}"] = title, modules
    listed = sorted(module for _, modules in pages.values() for module in modules)
    if listed != modules_of("algorithms"):
        different = set(listed).symmetric_difference(modules_of("algorithms"))
        raise AssertionError(
            f"docs/families.py lists each file once; missing or twice: {sorted(different)}"
        )
    for module in modules_of("links"):
        summary = importlib.import_module(module).__doc__ or ""
        title = re.split(r"[:.]", summary)[0]
        pages[f"links-{module.rpartition('.')[2]}"] = title, (module,)
    return pages


def modules_of(package: str) -> list[str]:
    """Return the modules of a package of gradtx."""
    folder = Path(gradtx.__file__).parent / package
    files = {file.stem for file in folder.glob("*.py")} - {"__init__"}
    return [f"gradtx.{package}.{file}" for file in sorted(files)]


def by_family(
    rows_of: Callable[[Any], list[str]], kinds: Callable[[str], bool], titles: list[str]
) -> list[str]:
    """Return a table with a title row for each family."""
    by_module = public(kinds)
    groups = list(families().values())
    listed = {module for _, modules in groups for module in modules}
    groups += [
        (f"`{module}`", (module,)) for module in sorted(by_module.keys() - listed)
    ]
    rows: list[list[str]] = []
    for title, modules in groups:
        found = [factory for module in modules for factory in by_module.get(module, ())]
        if found:
            rows.append([f"**{title}**", *[""] * (len(titles) - 1)])
            rows.extend(map(rows_of, sorted(found, key=rank_in_family)))
    return table(titles, rows)


def optimizers() -> list[str]:
    names = classes()
    titles = ["function, class", "what it does, *when to use it*", "state", "source"]
    return by_family(
        lambda factory: optimizer(factory, names[factory]), is_alias, titles
    )


def pieces() -> list[str]:
    return by_family(
        lambda factory: [named(factory), first_sentence(factory)],
        lambda kind: not is_alias(kind),
        ["function", "what it does"],
    )


def is_alias(kind: str) -> bool:
    return kind == "alias"


def page() -> str:
    """The whole page."""
    return "\n".join([INTRO.strip(), *optimizers(), PIECES.rstrip(), *pieces(), ""])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"wrote {PAGE}\n")
