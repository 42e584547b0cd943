"""Fixtures that tests of the adapter share."""

import pytest
import torch

from gradtx.optim.engine import compiled


@pytest.fixture
def uncompiled(monkeypatch):
    """Programs are traced, but run as they were traced: all of the engine but torch's compiler, and quick.

    They are for two leaves, since tracing takes a time for each leaf and each leaf of padding.
    """
    monkeypatch.setattr(compiled, "WIDTH", 2)
    monkeypatch.setattr(torch._inductor, "compile", lambda graph, arguments, options: graph)
