"""The private names of torch: all are there, and without those of the compiler steps run by default."""

import subprocess
import sys
import warnings

import pytest
import torch
import torch._inductor

import gradtx
from gradtx.base import torch_names as _torch
from gradtx.maths.entries import atan2
from gradtx.optim.engine import compiled, torch_compiler
from gradtx.optim.engine.compiled import CompiledEngine
from tests.optim.problems import assert_equal, descend, parameters, values

SHAPES = {"weight": (3, 4), "bias": (5,)}


def trained(compile=False):
    params = parameters(shapes=SHAPES)
    optimizer = gradtx.as_optimizer(gradtx.adamw(lr=0.1), list(params.items()), compile=compile)
    descend(optimizer, params, 3)
    return optimizer, params


def test_this_version_of_torch_has_every_private_name_of_compiled_steps():
    assert torch_compiler.missing_name() is None


@pytest.mark.parametrize(("name", "module"), torch_compiler.NAMES.items())
def test_without_a_name_of_the_compiler_there_is_one_warning_and_steps_run_as_by_default(name, module, monkeypatch):
    torch_compiler.missing_name.cache_clear()
    monkeypatch.setattr(torch_compiler, "NAMES", {f"{name}_of_another_version": module, **torch_compiler.NAMES})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer, params = trained(compile=True)
    torch_compiler.missing_name.cache_clear()
    (message,) = [str(warning.message) for warning in caught if issubclass(warning.category, RuntimeWarning)]
    assert f"this version of torch lacks {module}.{name}" in message
    assert {way.way for way in optimizer.explain()} == {"lists"}
    assert_equal(values(params), values(trained()[1]))


def test_names_of_lists_are_those_of_this_version_of_torch():
    assert _torch.on_lists("add") is torch._foreach_add
    assert _torch.on_lists("of_no_version") is None


def test_programs_for_a_compiler_compute_the_arc_tangent_of_a_quotient():
    tracer = torch_compiler.SymbolicTracer()
    y, x = tracer.fixed(torch.ones(3)), tracer.fixed(torch.ones(3))
    operations = {node.target for node in tracer.graph(atan2, [y, x], {}).graph.nodes}
    assert {torch.ops.aten.div.Tensor, torch.ops.aten.atan.default} < operations
    assert torch.ops.aten.atan2.default not in operations


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


def test_a_fault_of_the_engine_itself_is_logged_with_its_traceback(uncompiled, monkeypatch, logged):
    monkeypatch.setattr(compiled, "_examples", lambda *arguments: 1 / 0)
    with pytest.warns(RuntimeWarning, match="steps run eagerly: ZeroDivisionError"):
        optimizer, params = trained(compile=True)
    assert [engine.failed for engine in optimizer._core.back_ends if isinstance(engine, CompiledEngine)] == [True]
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
