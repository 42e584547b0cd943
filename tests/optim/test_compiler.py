"""Calls of torch's compiler: without its tests of the processor, and with a second attempt after a failure."""

import copy
import platform

import pytest
import torch
from torch._inductor import cpu_vec_isa
from torch._inductor.codegen.cpp import CppScheduling
from torch._inductor.exc import InductorError
from torch.fx.experimental.proxy_tensor import make_fx

import gradtx
from gradtx.optim.engine import compiled, inductor, torch_names
from gradtx.optim.engine.lists import ListEngine
from tests.optim.problems import assert_close, descend, parameters

ASKED = [cpu_vec_isa.valid_vec_isa_list, cpu_vec_isa.VecISA._VecISA__bool__impl]
ASKED += [
    kind.__bool__ for kind in map(type, cpu_vec_isa.supported_vec_isa_list) if hasattr(kind.__bool__, "cache_clear")
]


def sgdp(compile):
    params = parameters(shapes={"weight": (40,)})
    optimizer = gradtx.as_optimizer(gradtx.sgdp(lr=0.1), list(params.items()), compile=compile)
    descend(optimizer, params, 2)
    return optimizer, params


@pytest.fixture
def compiled_equals_eager(monkeypatch):
    monkeypatch.setattr(compiled, "WIDTH", 1)  # small programs compile faster

    def check():
        with torch._inductor.config.patch(force_disable_caches=True):
            optimizer, params = sgdp(compile=True)
        assert not optimizer._parts.back_ends[0].failed
        assert_close(params.values(), sgdp(compile=False)[1].values(), 1e-12)

    return check


@pytest.fixture
def nothing_asked():
    """Clear torch's caches of instruction sets before and after the test."""
    for known in ASKED:
        known.cache_clear()
    yield
    for known in ASKED:
        known.cache_clear()


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="torch tests other processors otherwise")
def test_instruction_sets_are_believed_while_we_compile_and_not_later(
    compiled_equals_eager, nothing_asked, monkeypatch
):
    asked = []
    monkeypatch.setattr(cpu_vec_isa.VecISA, "check_build", lambda self, code: asked.append(self) or False)
    compiled_equals_eager()
    assert asked == []
    assert cpu_vec_isa.valid_vec_isa_list() == []  # other callers get the results of these tests
    assert asked


@pytest.mark.nightly  # compiles twice, which takes 20 s
def test_what_fails_to_compile_is_tried_once_more_with_care(compiled_equals_eager, monkeypatch):
    real, fuses, careful = torch._inductor.compile, CppScheduling.can_fuse_vertical_outer_loop, []

    def fails_at_first(graph, examples, options):
        careful.append(CppScheduling.can_fuse_vertical_outer_loop is not fuses)
        if not careful[-1]:
            raise InductorError(KeyError("buf1"), None)
        return real(graph, examples, options=options)

    monkeypatch.setattr(torch._inductor, "compile", fails_at_first)
    compiled_equals_eager()
    assert careful == [False, True] * (len(careful) // 2) != []
    assert CppScheduling.can_fuse_vertical_outer_loop is fuses


def test_a_program_goes_to_the_inner_compiler_untraced(compiled_equals_eager, monkeypatch):
    real, functions = torch_names._compiled_at_once, []

    def counted(*arguments):
        functions.append(real(*arguments))
        return functions[-1]

    monkeypatch.setattr(torch_names, "_compiled_at_once", counted)
    monkeypatch.setattr("torch._functorch.aot_autograd.aot_module_simplified", None)
    compiled_equals_eager()
    assert functions
    assert None not in functions


def takes_a_temporary(x, y):
    return x.copy_((x + y).mul_(2))


def takes_noise(x, y):
    return x.copy_(y + torch.rand_like(y))


def takes_a_sum(x, y):
    return x.copy_(x + y)


@pytest.mark.parametrize(
    ("function", "is_ready"), [(takes_a_temporary, False), (takes_noise, False), (takes_a_sum, True)]
)
def test_the_inner_compiler_gets_programs_that_write_into_arguments_alone_and_draw_nothing(function, is_ready):
    graph = make_fx(function)(torch.ones(3), torch.ones(3))
    assert torch_names._is_ready_for_inductor(graph) is is_ready


def test_what_fails_twice_is_an_error(monkeypatch):
    def fails(graph, examples, options):
        raise InductorError(KeyError("buf1"), None)

    monkeypatch.setattr(torch._inductor, "compile", fails)
    with pytest.raises(InductorError, match="buf1"):
        inductor.compile_with_inductor(None, [], {})


def test_an_engine_of_ones_own_serves_one_optimizer_and_its_copies_have_engines_of_their_own():
    class Mine(ListEngine):
        way = "mine"

    params, engine = parameters(shapes={"weight": (3,)}), Mine()
    with pytest.raises(ValueError, match="empty parameter list"):
        gradtx.optim.SGD([], lr=0.1, compile=engine)
    optimizer = gradtx.optim.SGD(params.values(), lr=0.1, compile=engine)
    with pytest.raises(ValueError, match="compile: this Mine belongs to another optimizer; create one for each"):
        gradtx.optim.Adam(params.values(), compile=engine)
    for each in (optimizer, copy.deepcopy(optimizer)):
        descend(each, dict(enumerate(each.param_groups[0]["params"])), 1)
        assert [step.way for step in each.explain()] == ["mine"]
