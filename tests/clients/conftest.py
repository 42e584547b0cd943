"""Clients keep to themselves: no network, and no settings left in the process."""

import os

import pytest

collect_ignore = ["regressions.py"]  # it imports Lightning, which takes seconds in each process of tests

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported


@pytest.fixture(autouse=True)
def _clean_process(monkeypatch):
    before = dict(os.environ)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)
