"""Fixtures that tests of the adapter share."""

import pytest
import torch

from gradtx._lists.cache import SharedPrograms
from gradtx.optim.engine import compiled


@pytest.fixture(autouse=True)
def _own_programs(monkeypatch):
    """No test finds the compiled programs of another, some of which are not really compiled."""
    monkeypatch.setattr(compiled, "_SHARED", SharedPrograms())


@pytest.fixture
def uncompiled(monkeypatch):
    """Programs are traced, but run as they were traced: all of the engine but torch's compiler, and quick."""
    monkeypatch.setattr(torch._inductor, "compile", lambda graph, arguments, options: graph)
