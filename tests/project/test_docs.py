"""Documentation that is checked against the code: the page of algorithms, and the form of docstrings."""

import ast
import inspect
import re
import runpy
from pathlib import Path

import pytest
import torch

import gradtx
from gradtx.links import averaging
from tests.conformance import SHAPES, all_cases, factories

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [*ROOT.glob("*.md"), *DOCS.glob("*.md"), *DOCS.glob("howto/*.md")]
CASES = [case for case in all_cases() if case.factory.spec.kind in ("rule", "alias")]


def section(factory, title):
    found = re.search(rf"^{title}:?\n(.*?)(?=^\S|\Z)", inspect.getdoc(factory), re.DOTALL | re.MULTILINE)
    return inspect.cleandoc(found[1]) if found else ""


def slots(state):
    """Names of slots and of shared numbers."""
    for name, value in state.items():
        if isinstance(value, dict) and not set(value) & set(SHAPES):
            yield from slots(value)
        elif name not in ("step", "members", "others"):
            yield re.sub(r"_\d+$", "", name)


def test_the_type_stubs_are_up_to_date():
    stubs = runpy.run_path(str(DOCS / "stubs.py"))["stubs"]()
    assert set(stubs) == set((DOCS.parent / "gradtx").rglob("*.pyi"))
    for path, text in stubs.items():
        assert path.read_text(encoding="utf-8") == text, f"{path}: run `make docs-tables`"


def test_the_table_of_algorithms_is_up_to_date():
    page = runpy.run_path(str(DOCS / "algorithms.py"))["page"]()
    assert (DOCS / "algorithms.md").read_text(encoding="utf-8") == page, "run `make docs-tables`"


def test_the_rule_of_the_readme_is_lion_in_eight_lines():
    blocks = re.findall(
        r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    (block,) = (block for block in blocks if "def scale_by_lion" in block)
    code = [line for line in block.splitlines() if line]
    assert len(code) == 8
    names = {"__name__": "readme", "torch": torch, "gradtx": gradtx}
    exec("\n".join(code), names)
    rng = torch.Generator().manual_seed(0)
    params = {"w": torch.randn(5, generator=rng)}
    theirs, ours = names["scale_by_lion"](), gradtx.scale_by_lion()
    their_state, our_state = theirs.init(params), ours.init(params)
    for _ in range(5):
        grads = {"w": torch.randn(5, generator=rng)}
        their_updates, their_state = theirs.update(grads, their_state, params)
        our_updates, our_state = ours.update(grads, our_state, params)
        torch.testing.assert_close(their_updates, our_updates, rtol=0, atol=0)


def test_pages_count_optimizers_right():
    classes = len(gradtx.optim.__all__) - 2  # without ChainOptimizer and as_optimizer
    assert len(gradtx.get_supported_optimizers()) == classes
    assert f"{classes} optimizers" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"any chain, and {classes} classes" in (DOCS / "comparison.md").read_text(encoding="utf-8")


def targets(page):
    """What a page links to and shows, without code, as pairs of a path and an anchor."""
    text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    found = re.findall(r"""\]\(([^)#\s]*)#?([^)\s]*)\)|(?:href|src)="([^"#]*)#?([^"]*)\"""", text)
    return {(a or b, c or d) for a, c, b, d in found if not (a or b).startswith("http")}


def anchors(page):
    text = page.read_text(encoding="utf-8")
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles} | set(
        re.findall(r'<a id="([^"]+)"', text)
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_links_to_what_is_there_without_building_the_site(page):
    """Readers on GitHub see neither docs/reference nor pages that only include another one."""
    for target, anchor in targets(page):
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), target
        assert not path.is_relative_to(DOCS / "reference"), target
        if path.suffix == ".md":
            assert "```{include}" not in path.read_text(encoding="utf-8"), target
            assert not anchor or anchor in anchors(path), (target, anchor)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_code_of_a_page_fits_into_a_window_of_1366_pixels(page):
    blocks = re.findall(r"^```(?:python|sh)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    for block in blocks:
        for line in block.splitlines():
            is_output = ">>> " in block and not line.startswith((">>>", "..."))
            assert is_output or len(line) <= 88, line


def test_the_life_of_a_program_names_classes_that_exist_where_it_says():
    page = (DOCS / "life-of-a-program.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[^|]+) \| (`[^|]+) \|", page, re.MULTILINE)
    assert len(rows) > 15
    for names, places in rows:
        files = [place.replace("engine/", "optim/engine/", 1) for place in re.findall(r"`([\w/.]+)`", places)]
        texts = "".join((ROOT / "gradtx" / file).read_text(encoding="utf-8") for file in files)
        for name in re.findall(r"`(\w+)`", names):
            assert re.search(rf"^class {name}\b", texts, re.MULTILINE), name


def test_the_page_on_design_names_files_that_exist():
    page = (DOCS / "design.md").read_text(encoding="utf-8")
    found = set(re.findall(r"[\w/]+\.py\b", page))
    assert len(found) > 20
    folders = (ROOT, ROOT / "gradtx", ROOT / "gradtx/optim", ROOT / "gradtx/distributed")
    assert [name for name in found if not any((folder / name).exists() for folder in folders)] == []


def test_pictures_are_small():
    sizes = {path.name: path.stat().st_size for path in DOCS.glob("*.png")}
    assert sizes
    assert {name for name, size in sizes.items() if size > 50_000} == set(), "scale them to 1000 pixels, 96 colours"


def test_the_guide_shows_the_results_of_its_benchmark():
    from benchmarks.guide.report import page
    from benchmarks.guide.results import Results

    text = (DOCS / "guide.md").read_text(encoding="utf-8")
    assert text == page(Results()), "run `make docs-tables`"
    findings = text.partition("## In three sentences")[2].partition("##")[0].split()
    assert " ".join(findings) in " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())


def test_every_class_and_every_factory_is_on_the_page():
    page = (DOCS / "algorithms.md").read_text(encoding="utf-8")
    names = {factory.__name__ for factory in factories()} | set(gradtx.optim.__all__)
    assert {name for name in names if f"`{name}`" not in page} == {"ChainOptimizer"}


@pytest.mark.parametrize("factory", factories(), ids=lambda factory: factory.__name__)
def test_a_docstring_has_all_sections_and_names_all_arguments_in_order(factory):
    arguments = list(inspect.signature(factory).parameters)
    assert re.findall(r"^(\w+): ", section(factory, "Args"), re.MULTILINE) == arguments
    assert section(factory, "Returns")
    assert ("\nWhen to use: " in inspect.getdoc(factory)) == (factory.spec.kind == "alias")
    assert section(factory, "Example").startswith(">>>")
    source = inspect.getdoc(factory).partition("\nSource: ")[2]
    assert not source or "Departures" in source
    assert inspect.getdoc(factory).splitlines()[1] == ""  # the first line is a sentence of its own


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_docstring_names_every_slot_and_what_may_be_missing(case):
    tx, told = case.make(), section(case.factory, "Returns")
    if not any(isinstance(value, gradtx.GradientTransformation) for value in case.arguments.values()):
        named = set(re.findall(r"`(\w+?)(?:_0|_i)?`", told)) | set(map(str, case.arguments.values()))
        assert set(slots(tx.init(case.noise()))) <= named
    assert all(f"`{need}`" in section(case.factory, "Raises") for need in tx.needs)


def lines_of_code(factory):
    """How many lines a factory has without blank lines, comments and docstrings."""
    source = inspect.getsource(inspect.unwrap(factory))
    docstring = ast.parse(source).body[0].body[0]
    lines = source.splitlines()
    del lines[docstring.lineno - 1 : docstring.end_lineno]
    return sum(line.strip() != "" and not line.strip().startswith("#") for line in lines)


def test_the_page_on_rules_counts_our_lines():
    page = (DOCS / "howto/write-a-transformation.md").read_text(encoding="utf-8")
    lion = lines_of_code(gradtx.scale_by_lion) + lines_of_code(gradtx.lion)
    soap = lines_of_code(gradtx.scale_by_soap) + lines_of_code(gradtx.soap)
    lookahead = lines_of_code(gradtx.lookahead) + lines_of_code(averaging.synchronized)
    assert f"| Lion, link and optimizer | {lion} |" in page
    assert f"| lookahead | {lookahead} |" in page
    assert f"| SOAP, link and optimizer | {soap}, " in page
