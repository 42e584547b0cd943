"""Compiled programs are kept for later processes, which run identical code without importing the compiler."""

import json
import os
import subprocess
import sys

import pytest
import torch

import gradtx
from gradtx import _torch
from gradtx._lists import cache
from gradtx.optim.engine import compiled, inductor, kept
from tests.optim.problems import assert_equal, descend, parameters

SHAPES = {"weight": (12, 8), "bias": (5,)}

CHAINS = {
    "sgd": "gradtx.sgd(lr=0.1, momentum=0.9)",
    "adamw": "gradtx.adamw(lr=0.1)",
    "a sum over leaves": "gradtx.chain(gradtx.clip_by_global_norm(0.5), gradtx.adamw(lr=0.1))",
    "norms of leaves": "gradtx.lamb(lr=0.1)",
    "numbers of entries": "gradtx.adamp(lr=0.1)",
    "codes": "gradtx.adamw(lr=0.1, state_dtype='int8')",
    "numbers of slots": "gradtx.nadam(lr=0.1)",
    "schedules": "gradtx.chain(gradtx.lion(lr=gradtx.cosine_schedule(0.1, 10)), gradtx.round_stochastically())",
    "products": "gradtx.muon(lr=0.1)",
}

SCRIPT = """
import hashlib, sys, torch, gradtx
digest = hashlib.sha256()
for text in sys.argv[1:]:
    torch.manual_seed(0)
    dtype = torch.bfloat16 if "stochastically" in text else torch.float32
    params = [torch.nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in ((64, 128), (32, 64), (7,))]
    optimizer = gradtx.as_optimizer(eval(text), params[:2] if "muon" in text else params, compile=True)
    for _ in range(3):
        for param in params:
            param.grad = torch.randn_like(param)
        optimizer.step()
    for param in params:
        digest.update(param.detach().float().numpy().tobytes())
print(digest.hexdigest(), "torch._inductor.compile_fx" in sys.modules)
"""


def run(texts, folder, **variables):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TORCH")}
    environment |= variables
    environment["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", SCRIPT, *texts]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    digest, imported = done.stdout.split()
    return digest, imported == "True"


def assert_second_process_needs_no_compiler(texts, folder):
    digest, imported = run(texts, folder)
    assert imported
    assert run(texts, folder) == (digest, False)


def test_a_second_process_steps_bitwise_as_the_first_and_never_imports_the_compiler(tmp_path):
    assert_second_process_needs_no_compiler([CHAINS["sgd"]], tmp_path)


@pytest.mark.nightly
def test_second_processes_of_many_chains_never_import_the_compiler(tmp_path):
    assert_second_process_needs_no_compiler([text for name, text in CHAINS.items() if name != "products"], tmp_path)


@pytest.mark.nightly
def test_what_calls_torchs_kernels_is_compiled_again(tmp_path):
    digest, imported = run([CHAINS["products"]], tmp_path)
    assert imported
    assert run([CHAINS["products"]], tmp_path)[0] == digest


@pytest.mark.nightly
@pytest.mark.skipif(not torch.cpu.get_capabilities().get("avx512_f"), reason="needs a processor with AVX-512")
def test_processors_with_other_vectors_may_share_the_cache(tmp_path):
    chain = CHAINS["products"]  # kept by the compiler alone, whose key does not name the processor
    run([chain], tmp_path / "shared", ATEN_CPU_CAPABILITY="avx512")
    digest, _ = run([chain], tmp_path / "own", ATEN_CPU_CAPABILITY="avx2")
    assert run([chain], tmp_path / "shared", ATEN_CPU_CAPABILITY="avx2")[0] == digest


# Within one process.


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setattr(inductor, "place_of", kept.place_of)
    monkeypatch.setattr(_torch, "compiler_cache", lambda: tmp_path)
    with torch._inductor.config.patch({"fx_graph_cache": False}):
        yield tmp_path / kept.FOLDER


@pytest.fixture
def steps(monkeypatch):
    """Train as in a new process; return the parameters and the number of graphs that inductor has compiled."""
    graphs, compile_graph = [], _torch.compile_graph

    def counted(graph, examples, options):
        graphs.append(graph)
        return compile_graph(graph, examples, options)

    def train(tx=None, shapes=SHAPES):
        graphs.clear()
        monkeypatch.setattr(compiled, "_SHARED", cache.SharedPrograms())
        params = parameters(torch.float32, shapes)
        optimizer = gradtx.as_optimizer(tx or gradtx.sgd(lr=0.1, momentum=0.9), list(params.items()), compile=True)
        descend(optimizer, params, 2)
        assert not optimizer._engine.failed
        return [param.detach().clone() for param in params.values()], len(graphs)

    monkeypatch.setattr(_torch, "compile_graph", counted)
    return train


def test_a_program_is_compiled_once_for_all_processes(folder, steps):
    params, count = steps()
    assert count == 1
    again, count = steps()
    assert count == 0
    assert_equal(again, params)


def no_text(place):
    place.write_text("")


def no_method(place):
    place.write_text(
        json.dumps({"method": "    def call(self, args):\n        return ((\n", "libraries": {}, "assumptions": ""})
    )


def other_fields(place):
    place.write_text(json.dumps({"method": "", "libraries": {}, "assumptions": ""}))


def no_library(place):
    content = json.loads(place.read_text())
    place.write_text(json.dumps({**content, "libraries": dict.fromkeys(content["libraries"], "/tmp/gone.so")}))


def no_assumptions(place):
    content = json.loads(place.read_text())
    place.write_text(json.dumps({name: content[name] for name in ("method", "libraries")}))


def no_file(place):
    place.unlink()


def test_what_is_damaged_is_compiled_again_and_replaced(folder, steps):
    params, _ = steps()
    (place,) = folder.iterdir()
    before = place.read_text()
    for damage in (no_text, no_method, other_fields, no_library, no_assumptions, no_file):
        damage(place)
        again, count = steps()
        assert count == 1, damage
        assert_equal(again, params)
        assert place.read_text() == before, damage


def test_a_folder_that_cannot_be_written_keeps_nothing(folder, steps):
    folder.write_text("a file in the place of the folder")
    steps()
    assert steps()[1] == 1


def test_chains_that_differ_in_a_constant_have_programs_of_their_own(folder, steps):
    def scaled(factor):
        times = gradtx.per_tensor(elementwise=True)(lambda: lambda update, state, param, ctx: (update * factor, {}))
        return gradtx.chain(times(), gradtx.sgd(lr=0.1))

    double, _ = steps(scaled(2.0))
    triple, count = steps(scaled(3.0))
    assert count == 1
    assert len(list(folder.iterdir())) == 2
    assert not torch.equal(double[0], triple[0])


def graph_of(constant=2.0, shape=(4,), attribute=False):
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.empty(shape)
    other = graph.get_attr("other") if attribute else constant
    graph.output((graph.call_function(torch.ops.aten.mul.Tensor, (x, other)),))
    root = torch.nn.Module()
    root.other = torch.ones(())
    return torch.fx.GraphModule(root, graph)


def test_a_place_is_named_by_all_that_a_program_depends_on(folder, monkeypatch):
    place = kept.place_of(graph_of(), {})
    others = [
        kept.place_of(graph_of(3.0), {}),
        kept.place_of(graph_of(shape=(5,)), {}),
        kept.place_of(graph_of(), {"cpp.threads": 1}),
    ]
    with torch._inductor.config.patch({"cpp.simdlen": 1}):
        others.append(kept.place_of(graph_of(), {}))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    others.append(kept.place_of(graph_of(), {}))
    assert len({place, *others}) == 6
    monkeypatch.undo()


def test_a_place_does_not_depend_on_addresses(folder):
    def calling(function):
        graph = graph_of()
        for node in graph.graph.nodes:
            if node.op == "call_function":
                node.target = function
        return graph

    def sym_float(x): ...

    sym_float.__module__, sym_float.__qualname__ = torch.sym_float.__module__, torch.sym_float.__qualname__
    assert kept.place_of(calling(torch.sym_float), {}) == kept.place_of(calling(sym_float), {})
    assert kept.place_of(calling(torch.sym_float), {}) != kept.place_of(calling(torch.sym_int), {})


def test_what_has_no_text_is_not_kept(folder):
    assert kept.place_of(graph_of(attribute=True), {}) is None
    assert kept.place_of(graph_of(), {"max_autotune": True}) is None
    with torch._inductor.config.patch({"post_grad_custom_post_pass": print}):
        assert kept.place_of(graph_of(), {}) is None
    assert kept.place_of(graph_of(), {}) is not None


@pytest.mark.parametrize("setting", ["force_disable_caches", "fx_graph_cache"])
def test_where_inductors_caches_are_off_nothing_is_kept(setting):
    assert kept.place_of(graph_of(), {}) is not None
    with torch._inductor.config.patch({setting: setting == "force_disable_caches"}):
        assert kept.place_of(graph_of(), {}) is None


def test_a_kept_program_is_taken_for_the_sizes_that_its_compiler_assumed(folder, steps, monkeypatch):
    assumed, added = [], _torch.Assumptions.added
    monkeypatch.setattr(_torch.Assumptions, "added", lambda self: assumed.append(added(self)) or assumed[-1])
    shapes = {"weight": (64, 128)}
    long, count = steps(gradtx.lamb(lr=0.1), shapes)
    assert count > 0
    assert any("> 4096" in text for text in assumed)  # above this size, inductor splits a sum
    again, count = steps(gradtx.lamb(lr=0.1), shapes)
    assert count == 0
    assert_equal(again, long)
    again, count = steps(gradtx.lamb(lr=0.1), {**shapes, "small": (10, 12)})
    assert count > 0  # the smaller leaf has a separate program
    assert_equal(again[:1], long)


def test_what_inductors_cache_had_is_not_kept_since_its_assumptions_are_unknown(folder, steps, monkeypatch):
    counts = iter(range(10))
    monkeypatch.setattr(_torch, "_loaded_programs", lambda: next(counts))
    steps()
    assert not folder.exists()


@pytest.mark.parametrize("can_be_kept", [True, False])
def test_what_inductors_cache_had_is_compiled_again_if_it_can_be_kept(can_be_kept, monkeypatch):
    cached = []

    def compiled_before(graph, examples, options):
        cached.append(torch._inductor.config.fx_graph_cache)
        return _torch.CompiledAtOnce(None, is_loaded=cached == [True])

    monkeypatch.setattr(inductor, "_compiled", compiled_before)
    monkeypatch.setattr(_torch, "kernels_of", lambda program: _torch.Kernels("", {}) if can_be_kept else None)
    with torch._inductor.config.patch({"fx_graph_cache": True}):
        program = inductor._compiled_to_keep(graph_of(), [], {})
    assert cached == [True, False][: 1 + can_be_kept]
    assert _torch.was_loaded(program) != can_be_kept


def test_without_the_name_of_inductors_cache_its_graphs_are_taken(monkeypatch):
    monkeypatch.setattr(_torch, "_found", lambda *place: None)
    with _torch.without_cached_graphs():
        pass


def test_a_process_where_the_assumptions_do_not_hold_compiles_again(folder, steps, monkeypatch):
    steps()
    monkeypatch.setattr(_torch.Assumptions, "add", lambda self, text: False)
    assert steps()[1] == 1


@pytest.mark.parametrize("missing", ["source_code", "current_callable", "constants"])
def test_a_compiler_that_does_not_tell_what_it_made_keeps_nothing(missing, folder, steps, monkeypatch):
    kernels_of = _torch.kernels_of

    def without(program):
        return kernels_of(_torch.CompiledAtOnce(Partial(program.compiled, missing)))

    monkeypatch.setattr(_torch, "kernels_of", without)
    steps()
    assert not folder.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [("torch._inductor.runtime.cache_dir_utils", "cache_dir"), ("torch._inductor.config", "save_config_portable")],
)
def test_without_a_name_of_inductors_cache_nothing_is_kept(module, name, monkeypatch):
    assert kept.place_of(graph_of(), {}) is not None
    found = _torch._found
    monkeypatch.setattr(_torch, "_found", lambda *place: None if place == (module, name) else found(*place))
    assert kept.place_of(graph_of(), {}) is None


def test_without_a_name_that_kernels_call_the_compiler_is_asked(folder, steps, monkeypatch):
    steps()
    monkeypatch.setattr(_torch, "_module_of_kernels", object)
    assert steps()[1] == 1


class Partial:
    """An object that lacks one attribute."""

    def __init__(self, whole, missing):
        self._whole, self._missing = whole, missing

    def __getattr__(self, name):
        if name == self._missing:
            raise AttributeError(name)
        return getattr(self._whole, name)
