"""The private names of torch, what importing gradtx imports of it, and a fault of an engine itself."""

import subprocess
import sys

import pytest
import torch

import gradtx
from gradtx.base import torch_names as _torch
from gradtx.optim.engine import kernels
from tests.optim.problems import assert_equal, descend, parameters, values

SHAPES = {"weight": (3, 4), "bias": (5,)}


def trained(compile=False):
    params = parameters(shapes=SHAPES)
    optimizer = gradtx.as_optimizer(gradtx.adamw(lr=0.1), list(params.items()), compile=compile)
    descend(optimizer, params, 3)
    return optimizer, params


def test_names_of_lists_are_those_of_this_version_of_torch():
    assert _torch.on_lists("add") is torch._foreach_add
    assert _torch.on_lists("of_no_version") is None


def test_a_constant_function_is_marked_as_torch_marks_it():
    def ours(): ...

    def theirs(): ...

    _torch.assume_constant(ours)
    torch.compiler.assume_constant_result(theirs)
    assert vars(ours) == vars(theirs) != {}


@pytest.fixture
def processor(monkeypatch):
    """A function that says whether a processor with these capabilities multiplies in bfloat16."""

    def describe(**capabilities):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
        _torch._has_fast_bfloat16.cache_clear()
        return _torch.multiplies_in_bfloat16()

    yield describe
    _torch._has_fast_bfloat16.cache_clear()


def test_products_are_in_bfloat16_with_tiles_and_with_amds_vectors(processor):
    x86 = {"architecture": "x86_64", "avx512_bf16": True, "amx_bf16": False}
    assert processor(architecture="aarch64")
    assert processor(**x86, cpu_name="AMD EPYC")
    assert not processor(**x86, cpu_name="Intel Xeon")
    assert processor(**x86 | {"amx_bf16": True}, cpu_name="Intel Xeon")
    assert not processor(**x86 | {"avx512_bf16": False}, cpu_name="AMD Ryzen 5")


def test_a_fault_of_the_engine_itself_is_logged_with_its_traceback(monkeypatch, logged):
    monkeypatch.setattr("gradtx.compiler.kernels.columns_of", lambda phase: 1 / 0)
    with pytest.warns(RuntimeWarning, match="steps run over lists of tensors: ZeroDivisionError"):
        optimizer, params = trained(compile=True)
    assert [engine.failed for engine in optimizer._core.back_ends if isinstance(engine, kernels.KernelEngine)] == [True]
    assert [(record.levelname, record.exc_info[0]) for record in logged] == [("ERROR", ZeroDivisionError)]
    assert_equal(values(params), values(trained()[1]))


def test_importing_gradtx_imports_neither_dynamo_nor_inductor_nor_sympy():
    script = (
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        "import gradtx\n"
        "engine = {'torch._dynamo', 'torch._inductor', 'sympy', 'gradtx.optim.engine'}\n"
        "print(sorted(engine & (set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
