"""Fixtures that several folders share."""

import gc
import logging
import os

import pytest
import torch

from gradtx.base import recent
from gradtx.base.recent import ProgramsOfChains, SharedPrograms
from gradtx.optim import outline
from gradtx.optim.engine import lists
from gradtx.plans import bundle
from gradtx.pure import tree_plan as _tree_plans
from gradtx.pure.known_trees import SharedTrees
from tests import tiers

# First of all: torch's autograd takes no device that is registered after its first backward pass, and modules that
# come before tests/gpu run one while they are collected.
if os.environ.get("GRADTX_GPU") != "cuda":
    import tests.gpu.pretend  # noqa: F401

recent.MOST = 20_000  # programs: those of a case are recorded once for all of its tests


collect_ignore = ["optax_reference.py"]  # a script for another process; `make test` does not install optax


def pytest_configure(config):
    tiers.WITH_NIGHT = "not nightly" not in config.option.markexpr


def pytest_ignore_collect(collection_path, config):
    is_quick = "not slow" in config.option.markexpr
    return True if is_quick and tiers.is_left_out_of_quick(collection_path) else None


absent = set()  # packages that tests import, and that are not installed


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    """A file whose imports, or those of what it imports, need a package that is absent is skipped: no error."""
    report = yield
    error = report.call.excinfo.value.__cause__ if report.failed else None
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        if package not in ("", "gradtx", "tests", "torch"):
            absent.add(package)
            report.outcome = "skipped"
            report.longrepr = (str(collector.path), 1, f"Skipped: needs {package}, which is not installed")
    return report


def pytest_collection_modifyitems(config, items):
    is_default = config.args_source is config.ArgsSource.TESTPATHS and "not slow" not in config.option.markexpr
    is_whole_suite = is_default and not absent
    has_whole_tests = not any("::" in argument for argument in config.args)
    tiers.mark(items, is_whole_suite, has_whole_tests)


def pytest_collection_finish():
    gc.freeze()  # the collector need not go through modules and cases again


@pytest.fixture
def forget_programs(monkeypatch):
    """A function after which list programs are recorded and written again, for tests that change how."""

    def forget():
        monkeypatch.setattr(bundle, "_FUNCTIONS", SharedPrograms())
        monkeypatch.setattr(lists, "_SHARED", ProgramsOfChains())
        monkeypatch.setattr(outline, "_OUTLINES", ProgramsOfChains())
        monkeypatch.setattr(_tree_plans, "_SHARED", SharedTrees())
        monkeypatch.setattr(_tree_plans, "_RECORDINGS", ProgramsOfChains())

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
