"""Every private name of torch that gradtx uses, removed: steps are the same, or lose what `_torch` says."""

import importlib
import subprocess
import sys

import pytest
import torch
import torch._inductor
from torch.func import vmap

import gradtx
from gradtx import _torch
from gradtx.optim.engine import compiled, trace
from tests.optim.problems import assert_close, assert_equal, descend, parameters, set_gradients, values

SHAPES = {"weight": (3, 4), "bias": (5,)}


def trained(compile=False, tx=None, steps=3):
    params = parameters(shapes=SHAPES)
    optimizer = gradtx.as_optimizer(tx or gradtx.adamw(lr=0.1), list(params.items()), compile=compile)
    descend(optimizer, params, steps)
    return optimizer, params


def without(module, name):
    """`_torch._found` where torch lacks a name."""
    found = _torch._found
    return lambda *place: None if place == (module, name) else found(*place)


def missing(owner):
    """An attribute that raises what a missing one raises."""

    def absent(self):
        raise AttributeError(owner)

    return property(absent)


# Modules.


def test_without_the_base_of_batch_norms_those_that_torch_exports_are_known(monkeypatch):
    monkeypatch.setattr(_torch, "_found", without("torch.nn.modules.batchnorm", "_NormBase"))
    known = _torch.norms_of_batches()
    nn = torch.nn
    modules = [nn.BatchNorm1d(2), nn.BatchNorm2d(2), nn.BatchNorm3d(2), nn.SyncBatchNorm(2), nn.InstanceNorm2d(2)]
    assert all(isinstance(module, known) for module in modules)
    assert not isinstance(nn.Linear(2, 2), known)


def test_without_the_base_of_convolutions_those_that_torch_exports_are_known(monkeypatch):
    monkeypatch.setattr(_torch, "_found", without("torch.nn.modules.conv", "_ConvNd"))
    known = _torch.convolutions()
    nn = torch.nn
    assert all(isinstance(module, known) for module in (nn.Conv1d(2, 2, 1), nn.ConvTranspose3d(2, 2, 1)))
    assert not isinstance(nn.Linear(2, 2), known)


def test_without_the_record_of_join_no_module_counts_as_joining():
    assert not _torch.joins_uneven_inputs(torch.nn.Linear(2, 2))


@pytest.fixture
def processor(monkeypatch):
    """A function that describes the processor; None stands for a version of torch that does not."""

    def describe(**capabilities):
        found = _torch._found
        answer = (lambda: capabilities) if capabilities else None
        monkeypatch.setattr(
            _torch, "_found", lambda *place: answer if place == ("torch.cpu", "get_capabilities") else found(*place)
        )
        _torch._has_fast_bfloat16.cache_clear()
        return _torch.multiplies_in_bfloat16()

    yield describe
    monkeypatch.undo()
    _torch._has_fast_bfloat16.cache_clear()


def test_products_are_in_bfloat16_with_tiles_and_with_amds_vectors(processor):
    x86 = {"architecture": "x86_64", "avx512_bf16": True, "amx_bf16": False}
    assert processor()
    assert processor(architecture="aarch64")
    assert processor(**x86, cpu_name="AMD EPYC")
    assert not processor(**x86, cpu_name="Intel Xeon")
    assert processor(**x86 | {"amx_bf16": True}, cpu_name="Intel Xeon")
    assert not processor(**x86 | {"avx512_bf16": False}, cpu_name="AMD Ryzen 5")


# Eager steps.


@pytest.mark.parametrize(
    ("owner", "name"), [(torch.Tensor, "_version"), (torch.Tensor, "_base"), (torch.UntypedStorage, "_cdata")]
)
def test_without_what_tensors_tell_of_themselves_steps_are_the_same(owner, name, monkeypatch):
    tx = gradtx.chain(gradtx.adamw(lr=0.1), gradtx.lookahead(k=2))
    _, expected = trained(tx=tx)
    monkeypatch.setattr(owner, name, missing(name), raising=False)
    assert not hasattr(torch.zeros(2) if owner is torch.Tensor else torch.zeros(2).untyped_storage(), name)
    _, params = trained(tx=tx)
    assert_equal(values(params), values(expected))


def test_without_storage_ids_no_output_shares_memory_with_an_input(monkeypatch):
    monkeypatch.setattr(torch.UntypedStorage, "_cdata", missing("_cdata"))
    one, view = torch.zeros(4), torch.zeros(4)
    assert _torch.storage_id(one) == _torch.storage_id(one[2:])
    assert _torch.storage_id(one) != _torch.storage_id(view)


@pytest.mark.parametrize("name", ["peek_interpreter_stack", "is_functorch_wrapped_tensor"])
def test_without_a_name_of_functorch_steps_are_the_same(name, monkeypatch):
    _, expected = trained()
    monkeypatch.delattr(torch._C._functorch, name)
    assert _torch.inside_transform() is (name == "peek_interpreter_stack")
    assert not _torch.is_transformed(torch.zeros(2))
    _, params = trained()
    assert_equal(values(params), values(expected))


@pytest.mark.parametrize("name", ["_is_any_autocast_enabled", "_len_torch_function_stack"])
def test_without_a_shortcut_to_the_surroundings_steps_are_plain_ones_all_the_same(name, monkeypatch):
    tx = gradtx.chain(gradtx.graft(gradtx.scale_by_adam(), gradtx.trace(0.9)), gradtx.scale(-0.1))
    _, expected = trained(tx=tx)
    monkeypatch.delattr(torch._C, name)
    for around in (torch.autocast("cpu", dtype=torch.bfloat16), torch.device("meta"), torch.device("cpu")):
        params = parameters(shapes=SHAPES)
        optimizer = gradtx.as_optimizer(tx, list(params.items()))
        for step in range(3):
            set_gradients(params, step)
            with around:
                optimizer.step()
        assert_equal(values(params), values(expected))


def test_without_a_question_for_wrapped_tensors_the_storage_answers(monkeypatch):
    monkeypatch.delattr(torch._C._functorch, "is_functorch_wrapped_tensor")
    answers = []
    vmap(lambda x: answers.append(_torch.is_transformed(x)) or x)(torch.zeros(2))
    assert answers == [True]


def test_without_unwrapping_updates_work_under_vmap(monkeypatch):
    def updated(grad):
        tx = gradtx.adamw(lr=0.1)
        params = {"w": torch.ones_like(grad)}
        updates, _ = tx.update({"w": grad}, tx.init(params), params)
        return updates["w"]

    grads = torch.arange(6.0).reshape(2, 3)
    expected = vmap(updated)(grads)
    monkeypatch.setattr(_torch, "_functorch", lambda name: None)
    assert torch.equal(vmap(updated)(grads), expected)


def test_without_a_level_of_forward_mode_it_counts_as_active(monkeypatch):
    _, expected = trained()
    assert not _torch.forward_mode_active()
    monkeypatch.delattr(torch.autograd.forward_ad, "_current_level")
    assert _torch.forward_mode_active()
    _, params = trained()
    assert_equal(values(params), values(expected))


def test_a_constant_function_is_marked_as_torch_marks_it():
    def ours(): ...

    def theirs(): ...

    _torch.assume_constant(ours)
    torch.compiler.assume_constant_result(theirs)
    assert vars(ours) == vars(theirs) != {}


def test_without_a_way_to_keep_dynamo_out_functions_stay_as_they_are(monkeypatch):
    monkeypatch.delattr(torch, "_disable_dynamo")
    optimizer, params = trained()
    load = _torch.not_traced(type(optimizer).load_state_dict.__wrapped__)
    load(optimizer, optimizer.state_dict())
    descend(optimizer, params, 1, start=3)
    assert_equal(values(params), values(trained(steps=4)[1]))


def scaled_step(optimizer, params):
    set_gradients(params)
    for param in params.values():
        param.grad.mul_(4)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(4.0), torch.tensor(0.0)
    optimizer.step()
    return [param.grad for param in params.values()]


def test_without_torchs_unscaling_gradients_are_multiplied(monkeypatch):
    expected = scaled_step(*trained())
    monkeypatch.delattr(torch, "_amp_foreach_non_finite_check_and_unscale_")
    assert_close(scaled_step(*trained()), expected, 0.0)


@pytest.mark.filterwarnings("ignore:torch.amp.GradScaler")
def test_without_the_mark_of_optimizers_that_unscale_the_scaler_does(monkeypatch):
    monkeypatch.delattr(_torch.TakesScaledGradients, "_step_supports_amp_scaling")
    optimizer, params = trained(steps=0)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    loss = torch.stack([param.square().sum() for param in params.values()]).sum()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    expected = parameters(shapes=SHAPES)
    other = gradtx.optim.AdamW(expected.values(), lr=0.1)
    torch.stack([param.square().sum() for param in expected.values()]).sum().backward()
    other.step()
    assert_close(params.values(), expected.values(), 0.0)


@pytest.mark.parametrize("name", ["_optimizer_load_state_dict_pre_hooks", "_optimizer_load_state_dict_post_hooks"])
def test_without_the_hooks_of_load_state_dict_it_loads(name):
    optimizer, params = trained()
    saved = optimizer.state_dict()
    delattr(optimizer, name)
    optimizer.load_state_dict(saved)
    descend(optimizer, params, 1, start=3)
    assert_equal(values(params), values(trained(steps=4)[1]))


# Compiled steps: traced programs run as they were traced.


@pytest.fixture(name="graphs")
def _graphs(monkeypatch):
    """The graphs that reach the compiler, which are not really compiled."""
    graphs = []
    monkeypatch.setattr(torch._inductor, "compile", lambda graph, examples, options: graphs.append(graph) or graph)
    return graphs


def assert_compiled_steps_are_the_same(tx=None):
    optimizer, params = trained(compile=True, tx=tx)
    assert not optimizer._engine.failed
    _, expected = trained(tx=tx)
    assert_close(params.values(), expected.values(), 1e-12)
    return optimizer


def test_without_foreach_copies_counts_are_copied_one_by_one(graphs, monkeypatch):
    monkeypatch.delattr(torch, "_foreach_copy_")
    optimizer = assert_compiled_steps_are_the_same()
    assert {state["step"].item() for state in optimizer.state.values()} == {3.0}


@pytest.mark.parametrize("name", ["add", "addcdiv", "lerp", "mul", "sqrt", "copy"])
def test_without_an_operation_on_lists_leaves_are_computed_one_by_one(name, monkeypatch, forget_programs):
    _, expected = trained()
    monkeypatch.delattr(torch, f"_foreach_{name}", raising=False)
    monkeypatch.delattr(torch, f"_foreach_{name}_")
    forget_programs()
    _, params = trained()
    assert_close(params.values(), expected.values(), 1e-12)


def test_without_dynamos_guards_python_compares(graphs, monkeypatch):
    guards = importlib.import_module("torch._C._dynamo.guards")
    monkeypatch.delattr(guards, "TensorGuards")
    tensors = [torch.zeros(2, 3), torch.zeros(4)]
    holds = _torch.layout_check(tensors)
    assert holds(torch.ones(2, 3), torch.ones(4))
    for others in ((torch.ones(3, 2), torch.ones(4)), (torch.ones(2, 3), torch.ones(4, dtype=torch.float64))):
        assert not holds(*others)
    assert not holds(torch.ones(3, 2).T, torch.ones(4))
    optimizer = assert_compiled_steps_are_the_same()
    assert len(optimizer._engine.programs) == 1


TRACING = [
    ("torch.fx.experimental.symbolic_shapes", "ShapeEnv"),
    ("torch.fx.experimental.symbolic_shapes", "StatelessSymbolicContext"),
    ("torch.fx.experimental.symbolic_shapes", "DimDynamic"),
    ("torch.fx.experimental.proxy_tensor", "make_fx"),
    ("torch._subclasses.fake_tensor", "FakeTensorMode"),
    ("torch._dynamo.source", "ConstantSource"),
    ("torch._guards", "TracingContext"),
    ("torch._guards", "tracing"),
]


@pytest.mark.parametrize(("module", "name"), TRACING)
def test_without_a_name_for_tracing_the_tracer_says_which(module, name, monkeypatch):
    monkeypatch.delattr(importlib.import_module(module), name)
    with pytest.raises(_torch.TracingUnavailableError, match=f"this version of torch lacks {module}.{name}"):
        _torch.SymbolicTracer()


@pytest.mark.nightly  # dynamo takes 8 s
@pytest.mark.filterwarnings("ignore")  # dynamo's
@pytest.mark.parametrize(
    "tx", [gradtx.adamw(lr=0.1), gradtx.chain(gradtx.clip_by_global_norm(0.5), gradtx.sgd(lr=0.1))]
)
def test_without_tracing_the_public_compiler_takes_the_function_of_a_bundle(tx, monkeypatch):
    compile, functions = torch.compile, []

    def noted(function, dynamic, options):
        functions.append(function)
        return compile(function, backend="eager", dynamic=dynamic)

    monkeypatch.setattr(torch, "compile", noted)
    monkeypatch.setattr(_torch, "SymbolicTracer", lambda: _torch._needed("torch._guards", "a name that is gone"))
    optimizer = assert_compiled_steps_are_the_same(tx)
    passes = [each for program in optimizer._engine.programs for each in program.passes]
    assert len(passes) == len(functions) > 0
    assert {type(each) for each in passes} == {trace.DynamoPass}


def test_without_the_private_compiler_the_public_one_takes_the_graph(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda graph, dynamic, options: compiled.append(dynamic) or graph)
    monkeypatch.delattr(torch._inductor, "compile")
    assert_compiled_steps_are_the_same()
    assert compiled
    assert all(compiled)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch._inductor.compile_fx", "compile_fx_inner"),
        ("torch._inductor.config", "patch"),
        ("torch._inductor.virtualized", "V"),
        ("torch._inductor.decomposition", "select_decomp_table"),
    ],
)
def test_without_a_name_of_the_inner_compiler_the_outer_one_takes_the_graph(module, name, monkeypatch):
    graphs = []

    def outer(graph, examples, options):
        graphs.append(graph)
        return graph

    outer.__module__ = "torch._inductor"
    monkeypatch.setattr(torch._inductor, "compile", outer)
    monkeypatch.setattr(_torch, "_found", without(module, name))
    assert_compiled_steps_are_the_same()
    assert graphs


@pytest.mark.parametrize("present", [True, False])
def test_a_factor_of_a_block_is_computed_once_or_without_the_operator_for_it_at_each_use(present, monkeypatch):
    additional, keep = [], _torch._keep_in_memory

    def counted(graph):
        before = len(graph.nodes)
        keep(graph)
        additional.append(len(graph.nodes) - before)

    def trained_with_codes(compile):
        params = parameters(shapes={"weight": (64, 64)})
        # Another structure for each case: programs are shared in the process.
        tx = gradtx.chain(gradtx.trace(0.9, nesterov=present, state_dtype="int4"), gradtx.scale(-0.1))
        descend(gradtx.as_optimizer(tx, [params["weight"]], compile=compile), params, 3)
        return params.values()

    monkeypatch.setattr(_torch, "_keep_in_memory", counted)
    if not present:
        monkeypatch.delattr(importlib.import_module("torch._inductor.test_operators"), "realize")
    assert_close(trained_with_codes(compile=True), trained_with_codes(compile=False), 1e-5)
    assert bool(sum(additional)) == present


def test_without_a_list_of_modes_the_documented_ones_are_known(graphs, monkeypatch):
    listed = torch._inductor.list_mode_options()
    for mode, options in _torch.DOCUMENTED_MODES.items():
        assert listed[mode] == options
    monkeypatch.delattr(torch._inductor, "list_mode_options")
    optimizer, _ = trained(compile="max-autotune")
    assert not optimizer._engine.failed
    with pytest.raises(ValueError, match="unknown mode 'fastest'; modes: default, "):
        trained(compile="fastest")


def test_without_a_list_of_options_any_name_is_taken(monkeypatch):
    params = [torch.nn.Parameter(torch.ones(2))]
    with pytest.raises(ValueError, match="torch's compiler has no option 'max_autotun'; did you mean 'max_autotune'"):
        gradtx.as_optimizer(gradtx.adamw(), params, compile={"max_autotun": True})
    monkeypatch.delattr(torch._inductor, "list_options")
    gradtx.as_optimizer(gradtx.adamw(), params, compile={"max_autotun": True})


def test_without_inductors_error_any_runtime_error_is_tried_again(monkeypatch):
    calls = []

    def fails_at_first(graph, examples, options):
        calls.append(graph)
        if len(calls) % 2:
            raise RuntimeError("once")
        return graph

    monkeypatch.delattr(importlib.import_module("torch._inductor.exc"), "InductorError")
    monkeypatch.setattr(torch._inductor, "compile", fails_at_first)
    assert_compiled_steps_are_the_same()
    assert len(calls) % 2 == 0


@pytest.mark.parametrize("name", ["x86_isa_checker", "VecAVX512", "VecAVX2", "valid_vec_isa_list"])
def test_without_a_name_of_instruction_sets_torch_asks_by_itself(name, graphs, monkeypatch):
    monkeypatch.delattr(importlib.import_module("torch._inductor.cpu_vec_isa"), name)
    with _torch.named_instructions():
        pass
    assert_compiled_steps_are_the_same()
    assert graphs


def test_without_the_choice_of_vectors_the_compiler_chooses(graphs, monkeypatch):
    monkeypatch.setattr(_torch, "_found", without("torch._inductor.cpu_vec_isa", "pick_vec_isa"))
    assert _torch._vector_width() == {}
    assert_compiled_steps_are_the_same()
    assert graphs


def test_without_a_list_of_torchs_own_files_its_logs_name_a_frame_by_themselves(graphs, monkeypatch):
    shapes = importlib.import_module("torch.fx.experimental.symbolic_shapes")
    monkeypatch.setattr(_torch, "_found", without(shapes.__name__, "uninteresting_files"))
    assert_compiled_steps_are_the_same()
    assert graphs


def test_without_the_fusion_of_loops_there_is_nothing_to_switch_off(monkeypatch):
    scheduling = importlib.import_module("torch._inductor.codegen.cpp").CppScheduling
    monkeypatch.delattr(scheduling, "can_fuse_vertical_outer_loop")
    with _torch.separate_loops():
        assert not hasattr(scheduling, "can_fuse_vertical_outer_loop")


class Unschemed:
    """An operator without a schema."""

    def __init__(self, operator):
        self._name = str(operator)

    def __str__(self):
        return self._name


def test_without_schemas_operators_that_write_are_known_by_name():
    aten = torch.ops.aten
    for operator in (aten.copy_.default, aten.add_.Tensor, aten.add.Tensor, aten.mul.Tensor, aten.zeros_like.default):
        assert _torch.writes(Unschemed(operator)) == _torch.writes(operator)


def test_a_fault_of_the_engine_itself_is_logged_with_its_traceback(graphs, monkeypatch, logged):
    monkeypatch.setattr(compiled, "_examples", lambda *arguments: 1 / 0)
    with pytest.warns(RuntimeWarning, match="steps run eagerly: ZeroDivisionError"):
        optimizer, params = trained(compile=True)
    assert optimizer._engine.failed
    assert [(record.levelname, record.exc_info[0]) for record in logged] == [("ERROR", ZeroDivisionError)]
    assert_equal(values(params), values(trained()[1]))


# Imports.


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
