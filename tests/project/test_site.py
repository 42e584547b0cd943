"""The site that `make docs` builds: nothing public is left out, nothing dead gets through."""

import functools
import inspect
import re
from pathlib import Path

import pytest

import gradtx
from tests.tiers import by_day

pytest.importorskip("furo")
pytest.importorskip("myst_parser")

DOCS = Path(__file__).parents[2] / "docs"


def test_every_public_name_has_an_entry():
    import reference

    found = {
        match
        for text in reference.pages().values()
        for match in re.findall(r"^:+\{py:(?:function|class|data)\} (\w+)", text, re.MULTILINE)
    }
    of_modules = {*gradtx.optim.__all__, *gradtx.schedules.__all__, *gradtx.slots.__all__}
    of_modules |= set(gradtx.projections.__all__)
    public = {*gradtx.__all__, *of_modules} - {"optim", "projections", "schedules", "slots"}
    assert public == found


def test_the_code_of_an_entry_fits_into_a_window_of_1366_pixels():
    import reference

    for text in reference.pages().values():
        for line in text.splitlines():
            assert not line.startswith((">>> ", "... ")) or len(line) <= 88, line


def rendered(text):
    """What the parser of the site makes of the description of an entry."""
    import conf
    from docutils.core import publish_doctree
    from myst_parser.docutils_ import Parser

    settings = {"myst_enable_extensions": conf.myst_enable_extensions, "report_level": 4}
    return publish_doctree(text, parser=Parser(), settings_overrides=settings)


def words(text):
    """The words of a text, whatever their case: a sentence may become a part of a paragraph."""
    return set(re.findall(r"[a-z]+", text.lower()))


def arguments_of(value):
    """The names in a signature, without that of the instance."""
    return [name for name in inspect.signature(value).parameters if name != "self"]


@by_day("0")  # what the page makes of docstrings shows in every part, and most docstrings are alike
@pytest.mark.parametrize("part", range(4))
def test_entries_render_every_argument_alone_and_every_word_of_their_docstrings(part):
    import reference
    from docutils import nodes

    names = [*gradtx.__all__, "optim.as_optimizer", "optim.ChainOptimizer"]
    for name in names[part::4]:
        value = functools.reduce(getattr, name.split("."), gradtx)
        if name in reference.TYPES or not callable(value):
            continue
        docstring = inspect.getdoc(value) or ""
        tree = rendered(reference.described(value))
        assert not list(tree.findall(nodes.block_quote)), name
        fields = [field[0].astext().split() for field in tree.findall(nodes.field)]
        told = {field[1].strip("*,") for field in fields if field[0] == "param"}
        # Options of decorators and of other functions with `**options` are told by name.
        parameters = inspect.signature(value).parameters.values()
        names_all = not any(each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD) for each in parameters)
        if hasattr(value, "spec") or (told and names_all):
            assert told == set(arguments_of(value)), name
        headings = {"args", "returns", "raises", "example"}
        assert words(docstring) - words(tree.astext()) <= headings, name


def test_a_module_without_a_page_is_named(monkeypatch):
    import reference

    monkeypatch.setattr(reference, "OTHERS", reference.OTHERS[1:])
    with pytest.raises(AssertionError, match=r"no page of docs/reference.py has .*'gradtx.transform'"):
        reference.pages()


def test_an_index_of_an_accented_letter_stands_at_its_side():
    import extension

    text = re.sub(r"\s+", "", extension.mathml(r"\hat m_t", inline=True))
    assert '<msub><moveraccent="true"><mi>m</mi><mostretchy="false">ˆ</mo></mover><mi>t</mi></msub>' in text


SIDEBARS, PADDING, SCROLLBAR, ROOT = 30, 6, 15, 16  # em of both menus and of the text's two sides; pixels


def font_of_furo(window):
    """Pixels of an em on a page of the theme, which enlarges it in windows of 97 em."""
    return 1.1 * ROOT if window >= 97 * ROOT else ROOT


@pytest.mark.parametrize("window", [1313, 1366, 1439, 1440, 1552, 1600, 1920])
def test_text_and_both_menus_fit_in_the_window(window):
    style = (DOCS / "static" / "site.css").read_text(encoding="utf-8")
    rules = re.findall(r"@media \(min-width: (\d+)em\) { .content { width: min\((\d+)em, 100vw - (\d+)em\); } }", style)
    (start, widest, taken), em = map(int, rules[0]), font_of_furo(window)
    assert len(rules) == len(re.findall(r"\.content\b", style)) == 1
    assert start == 82  # below, the theme hides a menu
    content = min(widest * em, window - taken * em)
    assert content + (SIDEBARS + PADDING) * em <= window - SCROLLBAR


def test_no_rule_for_phones_is_wider_than_a_phone_outside_a_scrolling_box():
    style = (DOCS / "static" / "site.css").read_text(encoding="utf-8")
    style = re.sub(r"/\*.*?\*/", "", style, flags=re.DOTALL)
    rules = re.findall(r"([^{};]+)\{([^{}]*)\}", style)
    fixed = re.compile(r"(?<![\w-])(?:width|min-width|max-width): *([\d.]+)r?em")
    wide = {selector.strip() for selector, body in rules for size in fixed.findall(body) if float(size) > 22}
    assert wide  # tables of many columns and pictures
    for selector in wide:
        assert ".table-wrapper table" in selector or selector.endswith("p > img.wide")
    assert "article p:has(> img.wide) { overflow-x: auto; }" in style


def test_a_family_shows_its_methods_on_one_test_function():
    import pictures
    import reference

    figure = pictures.figure_of_family(["adamw", "muon", "no_such_optimizer"])
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["adamw", "muon"]
    errors = pictures.errors_on_the_test_function()
    (points,) = [line for line in axes.lines if line.get_marker() == "o"]
    assert list(points.get_xdata()) == [errors["adamw"], errors["muon"]]
    texts = reference.pages()
    pages = [page for page in reference.FAMILIES if reference.figure_of_page(page) is not None]
    assert len(pages) > 20
    assert all(f"({page.file}-methods.png)" in texts[f"{page.file}.md"] for page in pages)


def test_an_entry_lists_the_attributes_of_a_base_that_has_no_entry():
    import reference

    listed = re.findall(r"^- `(\w+)`: ", reference.described(gradtx.NoiseScale), re.MULTILINE)
    assert listed == ["scale", "error", "noise", "square", "leaves", "batch_size"]
