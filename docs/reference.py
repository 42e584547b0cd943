"""Write the site's reference pages from the docstrings of all public names: `make docs` rewrites docs/reference.

Docstrings are Markdown with Google-style sections. The pages are Markdown with Sphinx's fields.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import algorithms
from pictures import CALLS, figure_of, figure_of_family
from sphinx.util.inspect import stringify_signature
from sphinx.util.typing import stringify_annotation

import gradtx
from benchmarks.guide.report import Page as Guide
from benchmarks.guide.results import Results
from gradtx.base.names import HOMES


@dataclass(frozen=True)
class Page:
    """A page: its file, its title, the modules whose public names it documents, and an introduction.

    A pattern such as "gradtx.combinators.*" matches the modules that no page lists.
    """

    file: str
    title: str
    modules: tuple[str, ...]
    intro: str = ""
    # A module that also exports these names and is described on this page.
    shows: str = ""


# Families of methods, each with its links, and pages of links that belong to no method.
FAMILIES = [
    Page(file, title, modules)
    for file, (title, modules) in algorithms.families().items()
]
OTHERS = [
    Page(
        "core",
        "Chains",
        ("gradtx.transform", "gradtx.arguments", "gradtx.base.exact"),
        "`GradientTransformation`, `chain`, and the types of hyperparameters.",
    ),
    Page(
        "combinators",
        "Combinators",
        ("gradtx.combinators.*",),
        "Transformations that wrap other transformations, for some parameters or for some calls.",
    ),
    Page(
        "functional",
        "Functional loops",
        ("gradtx.functional", "gradtx.checkpoint"),
        "Helpers for loops of pure functions with torch.func.",
    ),
    Page(
        "sharpness",
        "Sharpness-aware minimization",
        ("gradtx.combinators.multi_point",),
        "Combinators that compute the gradient at a point slightly uphill.",
    ),
    Page(
        "rules",
        "Writing transformations",
        (
            "gradtx.rules",
            "gradtx.execution.context",
            "gradtx.combinators.frame",
            "gradtx.state.codes",
            "gradtx.base.ambient",
        ),
        "The decorators. See also [a complete example](../contributing.md).",
    ),
    Page(
        "slots",
        "Slots of a rule",
        ("gradtx.slots",),
        "What a rule returns in place of `init`: a dict of these says how each slot starts and what it is.",
        "gradtx.slots",
    ),
    Page(
        "projections",
        "Projections",
        ("gradtx.projections",),
        "The nearest point of a set, for a tensor or a tree, for `map_after_step` and `map_tree_after_step`.",
        "gradtx.projections",
    ),
    Page(
        "optim",
        "Torch optimizers",
        ("gradtx.optim", "gradtx.optim.optimizer"),
        "Every optimizer's class is documented with its function, under [](optimizers.md).",
        "gradtx.optim",
    ),
    Page(
        "schedules",
        "Schedules",
        ("gradtx.schedules.basic", "gradtx.schedules.warmup", "gradtx.schedules.*"),
        "Functions of the number of updates already done, for any hyperparameter. `gradtx.schedules` has them too.",
        "gradtx.schedules",
    ),
    Page(
        "models",
        "Whole models",
        ("gradtx.models", "gradtx.model_memory"),
        "Functions for all parameters of a model: build its optimizer, label the parameters by role, and compute the "
        "memory that training needs.",
    ),
    Page(
        "sweep",
        "Sweeps",
        ("gradtx.sweeps.run", "gradtx.sweeps.result"),
        "Train one member per setting, all in one step. See also [how to find a rate](../howto/sweep.md).",
    ),
    Page(
        "watching",
        "See what training does",
        ("gradtx.watching.*",),
        "What each link does to each leaf, while an optimizer trains, and findings in plain words.",
    ),
    Page(
        "meta",
        "Gradients through training",
        ("gradtx.meta.implicit", "gradtx.meta.minimize", "gradtx.meta.module"),
        "Gradients of solutions and minima without the steps that lead to them, and steps of a module that have "
        "gradients. See also [which way to choose](../howto/meta-learning.md).",
    ),
    Page(
        "least_squares",
        "Least squares and curve fits",
        ("gradtx.meta.least_squares", "gradtx.meta.curve_fit", "gradtx.meta.fit"),
        "Nonlinear least squares with standard errors, for one fit or for thousands at once.",
    ),
    Page("registry", "Optimizers and schedulers by name", ("gradtx.registry",)),
    Page("hessian", "The diagonal of the Hessian", ("gradtx.hessian",)),
    Page("multitask", "Several losses", ("gradtx.multitask",)),
]

# Types, which have no docstring.
TYPES = {
    "Scalar": "The annotation of a hyperparameter: `float | torch.Tensor | gradtx.Schedule`. Tensors are 0-d.",
    "Betas": "The annotation of a tuple of numbers: `tuple[Scalar, ...]`.",
    "NonNegative": "A `Scalar` in [0, inf).",
    "Positive": "A `Scalar` in (0, inf).",
    "Fraction": "A `Scalar` in [0, 1].",
    "Decay": "A `Scalar` in [0, 1).",
    "Decays": "A tuple of numbers in [0, 1): `tuple[Decay, ...]`, with as many entries as the default.",
    "Count": "An int >= 1.",
    "NonNegativeInt": "An int >= 0.",
    "Static": "`Static[int]`: an option that is no hyperparameter, so that all groups of an optimizer share it.",
    "AnyLength": "`AnyLength[Decays]`: a tuple that may have more or fewer entries than its default.",
}


# The page of each name.


@functools.cache
def homes() -> dict[str, list[str]]:
    """Map each module to the public names defined in it; names outside `gradtx` are qualified with their module."""
    found = defaultdict(list)
    for name in gradtx.__all__:
        if not inspect.ismodule(value := getattr(gradtx, name)):
            found["gradtx.base.exact" if name in TYPES else HOMES[name]].append(name)
    for name in gradtx.optim.__all__:
        value = getattr(gradtx.optim, name)
        if name not in gradtx.__all__ and not hasattr(value, "_alias"):
            found[value.__module__].append(f"optim.{name}")
    found["gradtx.projections"] = [
        f"projections.{name}" for name in gradtx.projections.__all__
    ]
    found["gradtx.slots"] = [f"slots.{name}" for name in gradtx.slots.__all__]
    return found


def modules_of(page: Page) -> list[str]:
    """Return the modules of a page. A pattern matches only modules that no page lists."""
    named = {module for other in (*FAMILIES, *OTHERS) for module in other.modules}
    modules = []
    for pattern in page.modules:
        if pattern.endswith("*"):
            matching = (module for module in homes() if module.startswith(pattern[:-1]))
            modules += sorted(module for module in matching if module not in named)
        else:
            modules.append(pattern)
    return modules


def names_on(page: Page) -> list[str]:
    names_of_module = homes()
    return [
        name for module in modules_of(page) for name in names_of_module.get(module, [])
    ]


def pages() -> dict[str, str]:
    """Map the file of each page to its text."""
    texts = {}
    without_page = set(homes())
    for page in (*FAMILIES, *OTHERS):
        without_page -= set(modules_of(page))
        entries = [entry(name, page.shows) for name in names_on(page)]
        texts[page.file] = "\n\n".join([*head(page), *entries]) + "\n"
    if without_page:
        raise AssertionError(
            f"no page of docs/reference.py has the modules {sorted(without_page)}; add them to one"
        )
    texts["optimizers"] = overview(
        "Optimizers",
        "Optimizers by family. [One table of all](../algorithms.md) compares memory, required inputs and papers.",
        "when to use it",
        lambda factory: kind(factory) == "alias",
        algorithms.when,
    )
    texts["pieces"] = overview(
        "Links",
        "The links of the optimizers, which `gradtx.chain` combines, by family.",
        "what it does",
        lambda factory: kind(factory) != "alias",
        algorithms.first_sentence,
    )
    texts["api"] = "\n\n".join(
        [
            "# Chains, schedules, torch",
            "```{py:module} gradtx\n```",
            contents(OTHERS),
            *map(listed, OTHERS),
        ]
    )
    return {f"{file}.md": text for file, text in texts.items()}


def head(page: Page) -> list[str]:
    described = [f"```{{py:module}} {page.shows}\n```"] if page.shows else []
    intro = [page.intro] if page.intro else []
    if figure_of_page(page) is not None:
        intro.append(
            f"![The methods of this family on one test function]({page.file}-methods.png)"
        )
        intro.append(
            "From [the guide's runs](../guide.md), one toy of twenty: no ranking."
        )
    return [f"# {page.title}", *intro, *described, "```{py:currentmodule} gradtx\n```"]


def overview(title: str, intro: str, column: str, shown: Any, told: Any) -> str:
    parts = [f"# {title}", intro]
    if title == "Optimizers":  # a page belongs to one table of contents
        parts.append(contents(FAMILIES))
    for page in FAMILIES:
        rows: list[list[str]] = []
        for name in names_on(page):
            factory = getattr(gradtx, name)
            if shown(factory):
                rows.append([f"`{name}`", told(factory)])
        if rows:
            table = "\n".join(algorithms.table(["", column], rows)).strip()
            more = f"[Equations, arguments, examples]({page.file}.md)"
            parts += [f"## {page.title}", table, more]
    return "\n\n".join(parts) + "\n"


def contents(those: Iterable[Page]) -> str:
    return "\n".join(
        ["```{toctree}", ":hidden:", "", *(page.file for page in those), "```"]
    )


def listed(page: Page) -> str:
    return f"[{page.title}]({page.file}.md): {', '.join(f'`{name}`' for name in names_on(page))}"


# An entry: signature, facts, docstring.


def entry(name: str, also: str = "") -> str:
    if name in TYPES:
        return directive("py:data", name, TYPES[name])
    value = functools.reduce(getattr, name.split("."), gradtx)
    inside, _, short = f"gradtx.{name}".rpartition(".")
    shown, text = f"{short}{signature(value)}", described(value)
    if inspect.isclass(value):
        if "Args" not in sections(value):  # others create it
            shown = short
        members = [
            member(value, item) for item in vars(value) if documented(value, item)
        ]
        return directive(
            "py:class", shown, "\n\n".join([text, *members]), module=inside
        )
    place = {"canonical": f"{also}.{name}"} if also else {}
    if inside != "gradtx":
        place = {"module": inside}
    made = directive("py:function", shown, text, **place)
    return f"{made}\n\n{optimizer(value)}" if kind(value) == "alias" else made


def kind(value: Any) -> str:
    return value.spec.kind if hasattr(value, "spec") else ""


def optimizer(factory: Any) -> str:
    """Return the entry of an alias's class."""
    told = f"`{factory.__name__}` as a torch optimizer, with the same arguments, also in parameter groups."
    shown = f"{algorithms.classes()[factory]}(params, ..., compile=False, state_device=None)"
    return directive(
        "py:class", shown, told, **{"module": "gradtx.optim", "no-contents-entry": ""}
    )


def member(owner: Any, name: str) -> str:
    value = vars(owner)[name]
    if isinstance(value, property):
        return directive("py:property", name, described(value), fence="::::")
    value = inspect.unwrap(value) if callable(value) else value.__func__
    shown = stringify_signature(
        without_self(inspect.signature(value)), unqualified_typehints=True
    )
    return directive("py:method", f"{name}{shown}", described(value), fence="::::")


def documented(owner: Any, name: str) -> bool:
    value = vars(owner)[name]
    is_member = callable(value) or isinstance(
        value, property | classmethod | staticmethod
    )
    return is_member and not name.startswith("_") and bool(value.__doc__)


def without_self(signature: inspect.Signature) -> inspect.Signature:
    return signature.replace(
        parameters=[p for p in signature.parameters.values() if p.name != "self"]
    )


def signature(value: Any) -> str:
    shown = inspect.signature(value)
    function = inspect.unwrap(getattr(value, "_alias", value))
    place = function.__module__
    module = sys.modules[HOMES[function.__name__] if place == "gradtx" else place]
    # Arguments that a link of another module passes on have types of that module.
    names = {**private_types(), **vars(module)}
    parameters = [
        p.replace(annotation=written_out(p.annotation, names))
        for p in shown.parameters.values()
    ]
    return stringify_signature(
        shown.replace(parameters=parameters),
        unqualified_typehints=True,
        show_annotation=True,
    )


@functools.cache
def private_types() -> dict[str, Any]:
    """Return the annotations with a name of their own that the modules of gradtx define, by name."""
    found: dict[str, Any] = {}
    for name, module in list(sys.modules.items()):
        for own, value in vars(module).items() if name.startswith("gradtx.") else ():
            if get_origin(value) in (Literal, Annotated):
                found[own] = value
    return found


def written_out(annotation: Any, names: dict[str, Any]) -> Any:
    """Replace private names in an annotation, such as those of choices, with what they stand for."""

    def meaning(match: re.Match[str]) -> str:
        name = match[0]
        kind = get_origin(names.get(name))
        if name in gradtx.__all__ or kind not in (Literal, Annotated):
            return name
        if kind is Literal:
            return f"Literal{list(get_args(names[name]))}"
        first, *about = get_args(names[name])
        if first == gradtx.Scalar:
            return f"Annotated[Scalar, {about[0]!r}]"
        return stringify_annotation(first, "smart")

    if not isinstance(annotation, str):
        return annotation
    return re.sub(r"(?<![\"'\w.])[A-Z]\w+(?![\"'])", meaning, annotation)


def directive(
    kind: str, argument: str, text: str, fence: str = ":::::", **options: str
) -> str:
    shown = "".join(
        f":{name}: {value}\n".replace(": \n", ":\n") for name, value in options.items()
    )
    return f"{fence}{{{kind}}} {argument}\n{shown}\n{text}\n{fence}"


def facts(factory: Any) -> str:
    """Return the facts derived from the code: the chain, the memory, the optimizers that use a link."""
    found = {"Used by": users().get(factory.__name__, "")}
    if kind(factory) != "combinator":
        tx = factory(**algorithms.required(factory))
        works_on = algorithms.works_on(tx)
        found |= {
            "Chain": ", ".join(f"`{link!r}`" for link in tx._links())
            if kind(factory) == "alias"
            else "",
            "[Memory](../algorithms.md)": algorithms.memory(factory),
            "Needs": ", ".join(f"`{need}`" for need in tx.needs),
            "Rate": "owned"
            if any(link._lr_role == "owner" for link in tx._links())
            else "",
            "Works on": works_on,
        }
    return "\n".join(f"- **{name}:** {text}" for name, text in found.items() if text)


@functools.cache
def users() -> Mapping[str, str]:
    """Map each link to the optimizers whose chains contain it with default options."""
    found = defaultdict(list)
    for name in gradtx.__all__:
        factory = getattr(gradtx, name)
        if kind(factory) == "alias":
            for link in algorithms.rules(factory(**algorithms.required(factory))):
                found[link._name].append(name)
    return {name: many(sorted(set(aliases))) for name, aliases in found.items()}


def many(names: list[str], most: int = 8) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


# A docstring as Markdown.

SECTION = re.compile(
    r"^(When to use|Args|Attributes|Returns|Raises|Example|Source):[ \n]", re.MULTILINE
)


def sections(value: Any) -> dict[str, str]:
    """Map each section's title to its dedented text; "" is the text before the first title."""
    text = inspect.getdoc(value) or ""
    parts = SECTION.split(text)
    found = {"": parts[0].strip()}
    for title, indented in zip(parts[1::2], parts[2::2], strict=True):
        part, behind = without_tail(indented)
        found[""] = "\n\n".join(filter(None, (found[""], behind)))
        found[title] = (
            inspect.cleandoc("\n" + part)
            if title in ("Args", "Attributes", "Raises", "Example")
            else flat(part)
        ).strip()
    return found


def without_tail(part: str) -> tuple[str, str]:
    """Split a section, whose lines are indented, from the paragraphs after it, which belong to the description."""
    tail = re.search(r"\n\n(?=\S)", part)
    return (part[: tail.start()], part[tail.end() :].strip()) if tail else (part, "")


def unmarked(text: str) -> str:
    """Escape a first character that would start a quotation, a list or a title, as in ">= 1"."""
    return re.sub(r"^(?=[>#+-])", r"\\", text)


def flat(text: str) -> str:
    return " ".join(text.split())


def items(text: str) -> list[tuple[str, str]]:
    """Return the entries of `Args`, `Attributes` and `Raises`, whose continuation lines are indented."""
    found = re.findall(
        r"^([\w*]+(?:, [\w*]+)*): (.*(?:\n(?: .*)?)*)", text, re.MULTILINE
    )
    without_bullets = [(name, re.sub(r"\n\s+- ", "\n", told)) for name, told in found]
    return [(name, unmarked(flat(told))) for name, told in without_bullets]


def described(value: Any) -> str:
    found = sections(value)
    fields = [
        f":param {name.replace('*', chr(92) + '*')}: {told}"
        for name, told in items(found.get("Args", ""))
    ]
    fields += [f":returns: {found['Returns']}"] if "Returns" in found else []
    fields += [
        f":raises {name}: {told}" for name, told in items(found.get("Raises", ""))
    ]
    parts = [
        found[""],
        attributes(value),
        picture(value),
        f"**When to use:** {algorithms.when(value)}" if kind(value) == "alias" else "",
        measured(value) if kind(value) == "alias" else "",
        facts(value) if kind(value) else "",
        "\n".join(fields),
        f"```pycon\n{found['Example']}\n```" if "Example" in found else "",
        f"**Source:** {cited(found['Source'])}" if "Source" in found else "",
    ]
    return "\n\n".join(filter(None, parts))


def attributes(value: Any) -> str:
    """Return the list of a class's attributes, those of bases that no page describes first."""
    bases = [
        base
        for base in reversed(getattr(value, "__mro__", (value,)))
        if base is value or is_private(base)
    ]
    told = [
        item for base in bases for item in items(sections(base).get("Attributes", ""))
    ]
    lines = [
        f"- {', '.join(f'`{name}`' for name in names.split(', '))}: {text}"
        for names, text in told
    ]
    return "\n".join(["**Attributes:**", "", *lines]) if lines else ""


def is_private(base: type) -> bool:
    """Whether a base is a class of gradtx that has no entry."""
    return base.__module__.startswith("gradtx.") and base.__name__ not in gradtx.__all__


def has_picture(value: Any) -> bool:
    """Whether the page shows a plot of an entry: of each function that makes a schedule."""
    return hasattr(value, "arguments") and value.__name__ in gradtx.schedules.__all__


def picture(value: Any) -> str:
    """Return the link to the plot of a schedule; empty for other entries."""
    return (
        f"![{CALLS[value.__name__]}]({value.__name__}.png)"
        if has_picture(value)
        else ""
    )


@functools.cache
def guide() -> Guide:
    return Guide(Results())


def measured(factory: Any) -> str:
    """Return what the guide's benchmark found."""
    if factory.__name__ not in guide().names:
        return ""
    return f"**Measured:** {guide().measured(factory.__name__)} See [the guide](../guide.md)."


def cited(text: str) -> str:
    """Turn arXiv numbers into links."""
    return re.sub(
        r"(?<![\d.])(\d{4}\.\d{4,5})(?!\d)", r"[\1](https://arxiv.org/abs/\1)", text
    )


@functools.cache
def figure_of_page(page: Page) -> Any:
    """Return the figure of a family's methods, if several of them were run."""
    return figure_of_family(names_on(page)) if page in FAMILIES else None


def write(folder: Path) -> None:
    """Write all pages and delete other files."""
    folder.mkdir(exist_ok=True)
    made = pages()
    for path in folder.iterdir():
        if path.name not in made:
            path.unlink()
    for name, text in made.items():
        (folder / name).write_text(text, encoding="utf-8")
    for name in filter(CALLS.get, gradtx.schedules.__all__):
        figure_of(name).savefig(folder / f"{name}.png", dpi=90)
    for page in FAMILIES:
        figure = figure_of_page(page)
        if figure is not None:
            figure.savefig(folder / f"{page.file}-methods.png", dpi=90)
