"""Fixtures that several folders share."""

import logging

import pytest
import torch

from gradtx.optim.engine import compiled, lists
from gradtx.programs import bundle, cache
from gradtx.programs import pure as _pure_lists
from tests.thinning import is_nightly
from tests.tiers import is_slow, is_slow_path

collect_ignore = ["optax_reference.py"]  # it imports jax, whose threads a process of tests must not have

cache.MOST = 2000  # structures: the programs of a case are recorded once for all of its tests


def pytest_ignore_collect(collection_path, config):
    if "not slow" in config.getoption("markexpr") and is_slow_path(collection_path):
        return True
    return None


def pytest_collection_modifyitems(items):
    for item in items:
        if is_slow(item):
            item.add_marker(pytest.mark.slow)
        if is_nightly(item):
            item.add_marker(pytest.mark.nightly)


@pytest.fixture(autouse=True)
def _own_programs(monkeypatch):
    """No test finds the compiled programs of another, some of which are not really compiled."""
    monkeypatch.setattr(compiled, "_SHARED", cache.SharedPrograms())


@pytest.fixture(autouse=True)
def _narrow_programs(monkeypatch):
    """Programs are for two leaves, since tracing and compiling take a time for each leaf and each leaf of padding.

    Programs in processes that tests start are for as many leaves as those of users.
    """
    monkeypatch.setattr(compiled, "WIDTH", 2)


@pytest.fixture
def uncompiled(monkeypatch):
    """Programs are traced, but run as they were traced: all of the engine but torch's compiler, and quick."""
    monkeypatch.setattr(torch._inductor, "compile", lambda graph, arguments, options: graph)


@pytest.fixture
def forget_programs(monkeypatch):
    """A function after which list programs are recorded and written again, for tests that change how."""

    def forget():
        for module, name in ((bundle, "_FUNCTIONS"), (lists, "_SHARED"), (_pure_lists, "_SHARED")):
            monkeypatch.setattr(module, name, cache.SharedPrograms())

    return forget


@pytest.fixture
def logged(monkeypatch):
    """The records of gradtx's loggers. In place of pytest's own fixture, whose plugin takes 1 ms for each test."""
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logger = logging.getLogger("gradtx")
    monkeypatch.setattr(logger, "handlers", [handler])
    logger.setLevel(logging.INFO)
    yield records
    logger.setLevel(logging.NOTSET)


@pytest.fixture
def float64_by_default():
    """For optimizers of others, which make their 0-d numbers in the default dtype: 1e-9 of the weights in float32."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
