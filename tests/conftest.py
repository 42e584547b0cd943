"""Fixtures that several folders share."""

import fnmatch
import functools
import gc
import logging
from pathlib import Path

import pytest
import torch

from gradtx.optim.engine import lists
from gradtx.programs import bundle, cache
from gradtx.programs import trees as _list_trees
from tests import conformance
from tests.daily import mark_every_other_slow, mark_nightly

cache.MOST = 2000  # structures: the programs of a case are recorded once for all of its tests


collect_ignore = ["optax_reference.py"]  # a script for another process; `make test` does not install optax

TESTS = Path(__file__).parent
# What compiles, starts processes, uses other libraries or reads the documentation: `make quick` does not import it.
# Single slow tests in other files have the mark.
SLOW = (
    "clients", "distributed", "fuzz", "gpu/test_kernels.py", "test_compiled_updates.py",
    "test_conformance_func.py", "test_docs.py", "test_examples.py",
    "test_from_pytorch_optimizer.py", "test_optax_names.py", "test_package.py",
    "test_registry.py", "test_site.py", "test_storage.py", "test_torch_names.py", "test_typed.py",
    "combinators/test_blocks.py", "combinators/test_precision.py", "combinators/test_qk_clip.py",
    "combinators/test_rotated.py", "combinators/test_selection.py", "combinators/test_sharpness.py",
    "combinators/test_tuners.py", "lists/test_batches.py", "lists/test_by_count.py", "optim/test_capture.py",
    "optim/test_checkpoints.py", "optim/test_compiled.py", "optim/test_compiled_rough.py",
    "optim/test_complex.py", "optim/test_copies.py", "optim/test_cpp_kernels.py", "optim/test_devices.py",
    "optim/test_ecosystem.py",
    "optim/test_exchanged.py", "optim/test_foreign_checkpoints.py", "optim/test_grad_scaler.py",
    "optim/test_large_leaves.py", "optim/test_release.py", "optim/test_storage.py", "optim/test_surroundings.py",
    "optim/test_stagger.py", "users/test_language_models.py",
    "users/test_optimizer_research.py",
)  # fmt: skip

# Of whose long products `make quick` has every other case.
HALVED = (
    "algorithms", "combinators", "links", "test_conformance.py", "lists/test_selections.py", "optim/test_float16.py",
    "users/test_records.py", "optim/test_adapter.py", "optim/test_classes.py", "optim/test_equals_torch.py",
    "optim/test_hessian.py",
    "optim/test_names.py", "optim/test_offload.py", "optim/test_schedulers.py",
)  # fmt: skip

# Examples in docstrings that take seconds: the program of a search is long. tests/links/test_manifolds.py has it.
SLOW_EXAMPLES = (
    "gradtx.links.manifolds.orthogonalize_tangent", "gradtx.algorithms.spectral_sphere.spectral_sphere",
    "gradtx.optim.SpectralSphere",
)  # fmt: skip

# Whole tests that take 4 s or more and that others repeat on smaller chains; `make test-all` runs them.
NIGHTLY = (
    "combinators/test_precision.py::test_noise_follows_the_places_of_entries_in_any_layout[[]True]",
    "distributed/test_release.py::test_compiled_programs_step_shards_during_backward",
    "fuzz/test_fuzz.py::test_random_chains_compile*",
    "optim/test_compiled.py::test_many_small_leaves_share_a_bundle_and_its_sums*",
    "optim/test_complex.py::test_compiled_steps_equal_the_default*",
    "optim/test_grad_scaler.py::test_compiled_steps_under_a_scaler_equal_eager_ones_and_compile_once[[]design]",
    "test_conformance_func.py::test_a_whole_step_through_inductor_equals_eager",
    "test_optax_names.py::test_*_that_are_said_to_be_equal_give_the_same_*",
    "test_typed.py::*[[]found_by_mypy*",
)


@functools.cache  # a path has hundreds of cases
def _is_in(path, names):
    return any(path == TESTS / name or TESTS / name in path.parents for name in names)


def pytest_configure(config):
    conformance.BY_NIGHT = "not nightly" not in config.option.markexpr


def pytest_ignore_collect(collection_path, config):
    return True if "not slow" in config.option.markexpr and _is_in(collection_path, SLOW) else None


def pytest_collection_modifyitems(config, items):
    unmatched = set(NIGHTLY)
    for item in items:
        if _is_in(item.path, SLOW) or item.name in SLOW_EXAMPLES:
            item.add_marker(pytest.mark.slow)
        name = item.nodeid.removeprefix("tests/")
        matched = {pattern for pattern in NIGHTLY if fnmatch.fnmatchcase(name, pattern)}
        if matched:
            item.add_marker(pytest.mark.nightly)
            unmatched -= matched
    if unmatched and config.args_source is config.ArgsSource.TESTPATHS and "not slow" not in config.option.markexpr:
        raise pytest.UsageError(f"NIGHTLY of tests/conftest.py: no test matches {sorted(unmatched)}")
    mark_nightly(items, are_all=not any("::" in argument for argument in config.args))
    mark_every_other_slow([item for item in items if _is_in(item.path, HALVED)])


def pytest_collection_finish():
    gc.freeze()  # the collector need not go through modules and cases again


@pytest.fixture
def forget_programs(monkeypatch):
    """A function after which list programs are recorded and written again, for tests that change how."""

    def forget():
        for module, name in ((bundle, "_FUNCTIONS"), (lists, "_SHARED"), (_list_trees, "_SHARED")):
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
