"""Fixtures that tests of the adapter share."""

import pytest
import torch


@pytest.fixture
def uncompiled(monkeypatch):
    """Programs are traced, but run as they were traced: all of the engine but torch's compiler, and quick."""
    monkeypatch.setattr(torch._inductor, "compile", lambda graph, arguments, options: graph)
