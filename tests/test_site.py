"""The site that `make docs` builds: nothing public is left out, nothing dead gets through."""

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
