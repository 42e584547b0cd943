"""What docstrings may use without importing it, and one thread a test process: `make test` runs a process a core."""

import doctest
import gc
import os

# Products of equal matrices then have equal bits wherever they lie in memory, which tests of shards assume: on some
# processors MKL otherwise chooses an order of summation by alignment. MKL reads this at its first call.
os.environ.setdefault("MKL_CBWR", "AUTO")
# Triton's kernels run in its interpreter, on the CPU. Triton reads this when it is imported.
if os.environ.get("GRADTX_GPU") != "cuda":
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
import torch

import gradtx
from gradtx.base.names import HOMES
from gradtx.compiler import cpp
from gradtx.optim.engine import kernels

torch.set_num_threads(1)
# Python looks for cycles less often: each time it goes through all tests and programs.
gc.set_threshold(50_000, 50, 50)
# Sphinx imports them, which may be absent.
collect_ignore = ["docs/conf.py", "docs/extension.py", "docs/reference.py"]


_IS_OF_MODULE = doctest.DocTestFinder._from_module


def _is_of_module(finder, module, value):
    """Whether a doctest belongs to a module: public names are part of the one that defines them."""
    if getattr(value, "__module__", None) == "gradtx":
        return module.__name__ == HOMES.get(value.__name__, "gradtx")
    return _IS_OF_MODULE(finder, module, value)


doctest.DocTestFinder._from_module = _is_of_module


# Without a C++ compiler, tests of kernels are skipped, and the code of pages runs as there: over lists.
_HAS_COMPILER = cpp.compiler_or_none() is not None
_FIND_COMPILER = cpp.compiler_or_none  # tests of what happens without one replace it
_NEEDS = "needs g++ or clang"
# Of gradtx, and of torch's compiler.
_ERRORS_WITHOUT = (cpp.MISSING, "No working C++ compiler found")
_WARNING_WITHOUT = "ignore:.*there is no C.. compiler:RuntimeWarning"
_RUNS_ON = kernels.KernelEngine.runs_on


def _runs_or_skips(engine, device):
    if device.type == "cpu" and cpp.compiler_or_none is _FIND_COMPILER:
        pytest.skip(_NEEDS)
    return _RUNS_ON(engine, device)


@pytest.fixture(autouse=not _HAS_COMPILER)
def _kernels_or_skip(request, monkeypatch):
    if not isinstance(request.node, pytest.DoctestItem):
        monkeypatch.setattr(kernels.KernelEngine, "runs_on", _runs_or_skips)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem):
    try:
        return (yield)
    except (Exception, pytest.fail.Exception) as error:  # of other processes, too
        if not _HAS_COMPILER and any(text in str(error) for text in _ERRORS_WITHOUT):
            pytest.skip(_NEEDS)
        raise


def pytest_itemcollected(item):
    if not _HAS_COMPILER and isinstance(item, pytest.DoctestItem):
        item.add_marker(pytest.mark.filterwarnings(_WARNING_WITHOUT))


@pytest.fixture(autouse=True)
def _own_classes(monkeypatch):
    """No test finds the optimizers of another by name."""
    monkeypatch.setattr(gradtx.optim.classes, "_classes_of_users", {})


@pytest.fixture(autouse=True)
def _names(request, doctest_namespace):
    doctest_namespace.clear()
    # Pages import what they use: readers copy their blocks.
    if request.path.suffix == ".py":
        doctest_namespace.update(torch=torch, gradtx=gradtx)
