"""What several tests of kernels share."""

import pytest

from gradtx.compiler import cpp


@pytest.fixture
def texts(monkeypatch):
    """The texts that are compiled."""
    compiling, texts = cpp.compiled, {}
    monkeypatch.setattr(cpp, "compiled", lambda text: texts.setdefault(text, compiling(text)))
    return texts
