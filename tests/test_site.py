"""The site that `make docs` builds: nothing public is left out, nothing dead gets through."""

import functools
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gradtx

pytest.importorskip("furo")
pytest.importorskip("myst_parser")

DOCS = Path(__file__).parent.parent / "docs"
PAGE = """# A page with four faults

[a page](nowhere.md), [a title](#nothing), <a href="gone.html">a file</a>, $\\nosuchsymbol$
"""


def test_every_public_name_has_an_entry():
    import reference

    found = {
        match
        for text in reference.pages().values()
        for match in re.findall(r"^:+\{py:(?:function|class|data)\} (\w+)", text, re.MULTILINE)
    }
    public = {*gradtx.__all__, *gradtx.optim.__all__, *gradtx.schedules.__all__} - {"optim", "schedules"}
    assert public == found


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


def test_entries_render_every_argument_alone_and_every_word_of_their_docstrings():
    import reference
    from docutils import nodes

    for name in (*gradtx.__all__, *(f"optim.{name}" for name in ("as_optimizer", "ChainOptimizer"))):
        value = functools.reduce(getattr, name.split("."), gradtx)
        if name in reference.TYPES or not callable(value):
            continue
        docstring = inspect.getdoc(value) or ""
        tree = rendered(reference.described(value))
        assert not list(tree.findall(nodes.block_quote)), name
        arguments = re.search(r"^Args:\n((?:(?: .*)?\n)*)", docstring + "\n", re.MULTILINE)
        expected = re.findall(r"^    ([\w*]+):", arguments[1], re.MULTILINE) if arguments else []
        fields = [field[0].astext().split() for field in tree.findall(nodes.field)]
        assert [field[1] for field in fields if field[0] == "param"] == expected, name
        headings = {"args", "returns", "raises", "example"}
        assert words(docstring) - words(tree.astext()) <= headings, name


def test_a_module_without_a_page_is_named(monkeypatch):
    import reference

    monkeypatch.setattr(reference, "OTHERS", reference.OTHERS[1:])
    with pytest.raises(AssertionError, match=r"no page of docs/reference.py has .*'gradtx.core'"):
        reference.pages()


def test_dead_links_and_unknown_symbols_stop_the_build(tmp_path):
    (tmp_path / "index.md").write_text(PAGE, encoding="utf-8")
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--nitpicky", "--quiet"]
    command += ["-c", str(DOCS), "-D", "exclude_patterns=reference,out", str(tmp_path), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    for fault in ("nowhere.md", "nothing", "gone.html", "nosuchsymbol"):
        assert fault in done.stderr


def test_an_index_of_an_accented_letter_stands_at_its_side():
    import extension

    text = re.sub(r"\s+", "", extension.mathml(r"\hat m_t", inline=True))
    assert '<msub><moveraccent="true"><mi>m</mi><mostretchy="false">ˆ</mo></mover><mi>t</mi></msub>' in text
