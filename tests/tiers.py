"""Tests that `make quick` leaves out: those that compile, start processes, use other libraries, or are long."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
SLOW_FOLDERS = ("clients", "distributed", "fuzz", "optimizers")
SLOW_FILES = (
    "test_conformance_func.py",
    "test_docs.py",
    "test_examples.py",
    "test_from_pytorch_optimizer.py",
    "test_optax_names.py",
    "test_package.py",
    "test_properties.py",
    "test_registry.py",
    "test_site.py",
    "test_storage.py",
    "test_torch_names.py",
    "test_typed.py",
    "combinators/test_blocks.py",
    "combinators/test_precision.py",
    "combinators/test_qk_clip.py",
    "combinators/test_rotated.py",
    "combinators/test_selection.py",
    "combinators/test_sharpness.py",
    "combinators/test_tuners.py",
    "lists/test_batches.py",
    "lists/test_by_count.py",
    "optim/test_capture.py",
    "optim/test_checkpoints.py",
    "optim/test_compiled.py",
    "optim/test_compiled_rough.py",
    "optim/test_compiler.py",
    "optim/test_complex.py",
    "optim/test_copies.py",
    "optim/test_devices.py",
    "optim/test_ecosystem.py",
    "optim/test_exchanged.py",
    "optim/test_foreign_checkpoints.py",
    "optim/test_grad_scaler.py",
    "optim/test_hoist.py",
    "optim/test_large_leaves.py",
    "optim/test_release.py",
    "optim/test_storage.py",
    "optim/test_surroundings.py",
    "transforms/test_dadapt.py",
    "transforms/test_stagger.py",
    "users/test_language_models.py",
    "users/test_optimizer_research.py",
)
SLOW_FIXTURES = ("uncompiled",)  # traces programs
SLOW_WORDS = ("compile", "graph_for", "subprocess")  # in the name of a test
# Of the conformance tests the quick tier runs these, on every factory as its example calls it.
QUICK_CONFORMANCE = (
    "test_updates_and_slots_keep_shapes_and_dtypes",
    "test_two_updates_leave_every_input_bit_identical",
    "test_no_memory_is_shared_between_inputs_and_outputs",
    "test_a_leaf_without_gradient_stays_as_it_is",
    "test_params_are_read_only_where_needs_says_so",
)


@functools.cache  # which a file's tests share
def is_slow_path(path: Path) -> bool:
    """Whether the quick tier leaves out a whole folder or file, which it then need not import."""
    if not path.is_relative_to(TESTS):
        return False
    path = path.relative_to(TESTS)
    return path.as_posix() in (*SLOW_FOLDERS, *SLOW_FILES) or (bool(path.parts) and path.parts[0] in SLOW_FOLDERS)


@functools.cache
def is_ours(path: Path) -> bool:
    return path.is_relative_to(TESTS)


def is_slow(item: pytest.Item) -> bool:
    """Whether the quick tier leaves a test out."""
    if is_slow_path(item.path):
        return True
    if not is_ours(item.path):
        return False  # a doctest of the package
    name = getattr(item, "originalname", None) or item.name
    if any(fixture in SLOW_FIXTURES for fixture in getattr(item, "fixturenames", ())):
        return True
    if item.path.name == "test_conformance.py":
        return not is_quick_conformance(item, name)
    return any(word in name for word in SLOW_WORDS)


def is_quick_conformance(item: pytest.Item, name: str) -> bool:
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    case = parameters.get("case")
    return name in QUICK_CONFORMANCE and case is not None and case.label == ""
