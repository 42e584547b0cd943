"""Extend Sphinx: formulas as MathML, links from names in backticks, and a check of all links in the built site."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import reference
from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx import addnodes
from sphinx.transforms import SphinxTransform
from sphinx.util import logging

import gradtx
from gradtx.base.names import HOMES

log = logging.getLogger(__name__)


# Formulas: MathML needs no scripts and no web fonts.


def mathml(tex: str, inline: bool) -> str:
    return beside(tex2mathml(tex, as_block=not inline))


def beside(text: str) -> str:
    """Place the indices of accented letters as subscripts; docutils places them below the letter."""
    return re.sub(
        r"<munderover>(\s*<mi>.</mi>)(\s*<(mrow|mi|mn)>.*?</\3>)(\s*<mo stretchy=\"false\">[ˆˉ˜]</mo>)\s*</munderover>",
        r'<msub><mover accent="true">\1\4</mover>\2</msub>',
        text,
        flags=re.DOTALL,
    )


def visit_math(inline: bool) -> Any:
    def visit(translator: Any, node: Any) -> None:
        try:
            translator.body.append(mathml(node.astext(), inline))
        except MathError as error:
            log.warning("%s in $%s$", error, node.astext(), location=node)
        raise nodes.SkipNode

    return visit, None


# Names.


def names() -> dict[str, str]:
    """Map each name that may appear in backticks to its full name."""
    found = {f"optim.{name}": f"gradtx.optim.{name}" for name in gradtx.optim.__all__}
    found |= {
        f"schedules.{name}": f"gradtx.{name}" for name in gradtx.schedules.__all__
    }
    found |= {name: f"gradtx.optim.{name}" for name in gradtx.optim.__all__}
    found |= {name: f"gradtx.{name}" for name in gradtx.__all__}
    return found | {f"gradtx.{name}": target for name, target in found.items()}


class LinkNames(SphinxTransform):
    """Link `adamw`, `gradtx.adamw` and `gradtx.adamw(lr=0.1)` in running text to their entries."""

    default_priority = 400
    known = names()

    def apply(self, **kwargs: Any) -> None:
        for literal in list(self.document.findall(nodes.literal)):
            target = self.known.get(literal.astext().partition("(")[0])
            if target and not shadowed(literal):
                link = addnodes.pending_xref(
                    "",
                    refdomain="py",
                    reftype="obj",
                    reftarget=target,
                    refwarn=True,
                    refexplicit=True,
                )
                link["py:module"] = link["py:class"] = None
                literal.replace_self(link)
                link += literal


class TrimBlocks(SphinxTransform):
    """Remove the empty line at the end of code blocks, which doctest needs before a fence."""

    default_priority = 400

    def apply(self, **kwargs: Any) -> None:
        for block in self.document.findall(nodes.literal_block):
            block.rawsource = block.astext().rstrip()
            block.clear()
            block += nodes.Text(block.rawsource)


# Pixels; such plots have two or more panels, and their text would be too small at the width of a phone.
WIDE = 800


class MarkWidePictures(SphinxTransform):
    """Add the class `wide` to wide pictures; site.css makes them scroll on phones."""

    default_priority = 400

    def apply(self, **kwargs: Any) -> None:
        folder = Path(self.env.doc2path(self.env.docname)).parent
        for image in self.document.findall(nodes.image):
            if width_of_png(folder / image["uri"]) > WIDE:
                image["classes"].append("wide")


def width_of_png(path: Path) -> int:
    """Return the width in pixels from the header of a PNG file, and 0 for other files."""
    header = path.read_bytes()[:20] if path.is_file() else b""
    return int.from_bytes(header[16:20], "big") if header.startswith(b"\x89PNG") else 0


def shadowed(literal: nodes.Node) -> bool:
    """Whether the name is already in a link or title, an argument of the described object, or another library's."""
    above, name = literal.parent, literal.astext().partition("(")[0]
    while above is not None:
        if isinstance(above, nodes.reference | addnodes.pending_xref | nodes.title):
            return True
        if isinstance(above, nodes.entry) and title_of_column(above) == "there":
            return True
        if isinstance(above, addnodes.desc):
            signature: Any = above[0]
            taken = {
                parameter[0].astext()
                for parameter in signature.findall(addnodes.desc_parameter)
            }
            return name in taken or name == signature.get("fullname")
        above = above.parent
    return False


def title_of_column(cell: Any) -> str:
    row = cell.parent
    head = next(iter(row.parent.parent.findall(nodes.thead)))
    return head[0][row.index(cell)].astext()


# Source links next to the entries.


def source_of(app: Any, module: str) -> tuple[str, dict[str, tuple[str, int, int]]]:
    """Return the code of a module and the positions of its functions, classes and methods."""
    code = inspect.getsource(importlib.import_module(module))
    found = {}
    for node in ast.parse(code).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            within = node.body if isinstance(node, ast.ClassDef) else ()
            methods = {
                f"{node.name}.{item.name}": item
                for item in within
                if isinstance(item, ast.FunctionDef)
            }
            found |= {
                name: extent(item)
                for name, item in {node.name: node, **methods}.items()
            }
    return code, found


def extent(node: Any) -> tuple[str, int, int]:
    first = min([node, *node.decorator_list], key=lambda part: part.lineno)
    kind = "class" if isinstance(node, ast.ClassDef) else "def"
    return kind, first.lineno, node.end_lineno or node.lineno


def module_of(app: Any, module: str, name: str) -> str | None:
    """Return the module with the source of a public name."""
    if module == "gradtx.optim":
        return "gradtx.optim.optimizer"
    if name in reference.TYPES:
        return "gradtx.transform"
    return HOMES.get(name) if module == "gradtx" else None


# Links.

ROOT = Path(__file__).parent.parent
README = "<!-- README.md -->"  # a page shows it here
OUTSIDE = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "gradtx/algorithms": "reference/optimizers.md",
}


def rewrite_links(app: Any, page: str, source: list[str]) -> None:
    """Replace links out of docs/ by links to pages of the site, and links to code by names that become links."""
    up = "../" * page.count("/")
    if README in source[0]:
        text = (ROOT / "README.md").read_text(encoding="utf-8")
        text = re.sub(
            r"\]\((docs/)?(?!http)", lambda link: "](" if link[1] else "](../", text
        )
        source[0] = source[0].replace(README, text)
    source[0] = re.sub(r"\[(`\w+`)\]\((?:\.\./)+gradtx/[\w/]+\.py\)", r"\1", source[0])
    for file, target in OUTSIDE.items():
        source[0] = re.sub(
            rf"\]\({re.escape(up)}\.\./{re.escape(file)}(?=[)#])",
            f"]({up}{target}",
            source[0],
        )


class Links(HTMLParser):
    """The anchors of a page, and the targets that it links to or loads."""

    def __init__(self, text: str):
        super().__init__()
        self.anchors, self.targets = set(), set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.anchors.add(value)
            elif (
                name in ("href", "src")
                and value
                and not urlsplit(value).scheme
                and not value.startswith("//")
            ):
                self.targets.add(value)


def check_links(folder: Path) -> list[str]:
    """Return the dead links between the files of a site."""
    found = {
        path: Links(path.read_text(encoding="utf-8")) for path in folder.rglob("*.html")
    }
    dead = []
    for path, page in found.items():
        for target in page.targets:
            parts = urlsplit(target)
            to = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            to = to / "index.html" if to.is_dir() else to
            anchor = unquote(parts.fragment)
            # a=b: settings.
            absent = (
                anchor
                and "=" not in anchor
                and to in found
                and anchor not in found[to].anchors
            )
            if not to.exists() or absent:
                dead.append(
                    f"{path.relative_to(folder)} links to {target}, which is not there"
                )
    return sorted(dead)


def finish(app: Any, failure: Exception | None) -> None:
    """Check all links of the site."""
    if failure is None:
        for dead in check_links(Path(app.outdir).resolve()):
            log.warning(dead)


def setup(app: Any) -> dict[str, bool]:
    app.add_html_math_renderer(
        "mathml", inline_renderers=visit_math(True), block_renderers=visit_math(False)
    )
    app.add_transform(LinkNames)
    app.add_transform(TrimBlocks)
    app.add_transform(MarkWidePictures)
    # The index includes pages by glob patterns, which may match nothing. That warning has no type to suppress it by.
    tree = logging.getLogger("sphinx.directives.other").logger
    tree.addFilter(lambda record: getattr(record, "subtype", "") != "empty_glob")
    app.connect(
        "builder-inited", lambda app: reference.write(Path(app.srcdir) / "reference")
    )
    app.connect("source-read", rewrite_links)
    app.connect("viewcode-find-source", source_of)
    app.connect("viewcode-follow-imported", module_of)
    app.connect("build-finished", finish)
    return {"parallel_read_safe": True}
