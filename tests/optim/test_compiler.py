"""Calls of torch's compiler: without its tests of the processor."""

import copy
import platform

import pytest
import torch
from torch._inductor import cpu_vec_isa
from torch._inductor.exc import InductorError

import gradtx
from gradtx.optim.engine import compiled, inductor
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
        assert not optimizer._core.back_ends[0].failed
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
def test_instruction_sets_are_believed(compiled_equals_eager, nothing_asked, monkeypatch):
    asked = []
    monkeypatch.setattr(cpu_vec_isa.VecISA, "check_build", lambda self, code: asked.append(self) or False)
    compiled_equals_eager()
    assert asked == []


def test_caches_that_processors_share_hold_kernels_for_each_width_of_vectors(monkeypatch):
    given = []
    monkeypatch.setattr(torch._inductor, "compile", lambda graph, examples, options: given.append(options))
    for capability in ("AVX512", "AVX2", "DEFAULT"):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability)
        inductor.compile_with_inductor(None, [], {})
    assert [options.get("cpp.simdlen") for options in given] == [512, 256, None]


def test_what_the_compiler_raises_is_raised(monkeypatch):
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
