"""Every name of torch that is private or may move, each with a fallback or a stated loss.

The rest of gradtx uses torch's public names only (`_tree` alone uses `torch.utils._pytree`). Names are looked up when
they are used, so that a torch that lacks one loses what that function says and nothing else. Dynamo, inductor and
sympy are imported by the functions of the compiled engine only.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import inspect
import logging
import os
import platform
import re
import sys
import textwrap
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad

logger = logging.getLogger("gradtx")
Function = TypeVar("Function", bound=Callable[..., Any])


def _found(module: str, name: str) -> Any:
    """A name of torch, or None if this torch lacks it."""
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None


# Tensors.


def version_of(tensor: Tensor) -> int:
    """How often a tensor was written in place; inference tensors do not count.

    Without `Tensor._version` every tensor has version 0: rules that write in place go unnoticed.
    """
    return 0 if tensor.is_inference() else getattr(tensor, "_version", 0)


def base_of(tensor: Tensor) -> Tensor | None:
    """The tensor that a view was made of; None for others.

    Without `Tensor._base` a view counts as a separate tensor while dynamo traces.
    """
    return getattr(tensor, "_base", None)


def storage_id(tensor: Tensor) -> int:
    """Identify a tensor's storage for as long as the storage lives, also inside vmap and grad.

    Falls back to the identity of the storage's Python object, which torch preserves, and where a transform can't be
    looked through to that of the tensor.
    """
    tensor = below_transforms(tensor)
    try:
        return tensor.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]
    except AttributeError:
        return id(tensor.untyped_storage())
    except NotImplementedError:
        return id(tensor)


# Errors.


def _errors_not_of_layout() -> tuple[type[RuntimeError], ...]:
    errors: list[type[RuntimeError]] = [RecursionError]
    for name in ("OutOfMemoryError", "AcceleratorError"):
        if hasattr(torch, name):
            errors.append(getattr(torch, name))
    if torch.distributed.is_available():
        errors.append(torch.distributed.DistError)
    return tuple(errors)


NOT_OF_LAYOUT = _errors_not_of_layout()  # RuntimeErrors that another layout of a sharded tensor would not avoid


# Transforms: vmap, grad, and forward-mode derivatives.


def _functorch(name: str) -> Any:
    return getattr(getattr(torch._C, "_functorch", None), name, None)  # pyright: ignore[reportPrivateUsage]


def inside_transform() -> bool:
    """Whether a transform of `torch.func` is active.

    Without the name the answer is yes: rules that write in place go unnoticed.
    """
    peek = _functorch("peek_interpreter_stack")
    return True if peek is None else peek() is not None


def is_transformed(tensor: Tensor) -> bool:
    """Whether a tensor stands for the values of a transform; falls back to whether it has a storage."""
    is_wrapped = _functorch("is_functorch_wrapped_tensor")
    if is_wrapped is not None:
        return is_wrapped(tensor)
    try:
        tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):
        return True
    return False


def readable(tensor: Tensor) -> bool:
    """Whether the host may read a tensor's value: it belongs to no transform and is not on the meta device."""
    return not (torch.compiler.is_compiling() or is_transformed(tensor) or tensor.is_meta)


def below_transforms(tensor: Tensor) -> Tensor:
    """The tensor that a transform's tensor stands for; without the name itself, so that views count as separate."""
    unwrapped = _functorch("get_unwrapped")
    if unwrapped is not None:
        while is_transformed(tensor):
            tensor = unwrapped(tensor)
    return tensor


def forward_mode_active() -> bool:
    """Whether forward-mode derivatives are being computed.

    Without the name the answer is yes, which costs one `where` in some rules.
    """
    return getattr(forward_ad, "_current_level", 0) >= 0


def has_derivative(tensor: Tensor) -> bool:
    """Whether derivatives are taken through a tensor, in any transform around; where dynamo traces, backward only."""
    if torch.compiler.is_compiling():
        return torch.is_grad_enabled() and tensor.requires_grad
    if not (torch.is_grad_enabled() or forward_mode_active()):
        return False
    while True:
        if tensor.requires_grad and torch.is_grad_enabled():
            return True
        if forward_mode_active() and _is_dual(tensor):
            return True
        unwrapped = _functorch("get_unwrapped")
        if unwrapped is None or not is_transformed(tensor):
            return False
        tensor = unwrapped(tensor)


def _is_dual(tensor: Tensor) -> bool:
    try:
        return forward_ad.unpack_dual(tensor).tangent is not None  # pyright: ignore[reportUnknownMemberType]
    except RuntimeError:
        return False


# Dynamo, without importing it.


def assume_constant(function: Function) -> Function:
    """Have dynamo call a function while it traces, as `torch.compiler.assume_constant_result` does.

    That function imports dynamo in order to set this one attribute. If dynamo stops reading it, tracing such a
    function breaks the graph.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def not_traced(function: Function) -> Function:
    """Keep dynamo out of a function, as `torch.compiler.disable`, which imports dynamo at once.

    Without the name dynamo traces the function, as far as it can.
    """
    disable = getattr(torch, "_disable_dynamo", None)
    return function if disable is None else disable(function)


# Optimizers.

Hooks: TypeAlias = list[Callable[..., Any]]


class TakesScaledGradients:
    """Tells `torch.amp.GradScaler` that `step` unscales gradients and skips by itself.

    If torch renames the attribute, the scaler unscales before `step`, and reads the flag on the host.
    """

    _step_supports_amp_scaling = True


def load_hooks(optimizer: torch.optim.Optimizer) -> tuple[Hooks, Hooks]:
    """The hooks that were registered to run before and after `load_state_dict`; none without the names."""
    before = getattr(optimizer, "_optimizer_load_state_dict_pre_hooks", {})
    after = getattr(optimizer, "_optimizer_load_state_dict_post_hooks", {})
    return list(before.values()), list(after.values())


def unscale_(gradients: list[Tensor], inverse: Tensor) -> None:
    """Multiply gradients by a 0-d float32 tensor in place; falls back to one multiplication each."""
    together = getattr(torch, "_amp_foreach_non_finite_check_and_unscale_", None)
    if together is not None:
        together(gradients, torch.zeros_like(inverse), inverse)
        return
    for gradient in gradients:
        gradient.mul_(inverse)


def on_lists(name: str) -> Callable[..., Any] | None:
    """An operation on lists of tensors, such as "add" or "add_"; None if this torch has none of this name."""
    return getattr(torch, f"_foreach_{name}", None)


def copy_each_(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copy each source into its target; falls back to one copy each."""
    together = on_lists("copy_")
    if together is not None:
        together(targets, sources)
        return
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)


def count_up_(targets: list[Tensor]) -> None:
    """Add 1 to each tensor; falls back to one addition each."""
    together = getattr(torch, "_foreach_add_", None)  # in every step
    if together is not None and targets:
        # A number becomes a tensor once for each target, which takes longer than the addition.
        together(targets, _one() if type(targets[0]) is Tensor else torch.ones(()), alpha=1.0)
        return
    for target in targets:
        target.add_(1)


@functools.cache
def _one() -> Tensor:
    with torch.inference_mode(False):
        return torch.ones((), device="cpu")


# Modules.


Modules = tuple[type[torch.nn.Module], ...]


def norms_of_batches() -> Modules:
    """The classes of batch and instance norms; without their common base those that torch exports."""
    nn = torch.nn
    exported = (
        *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
        *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    )
    return _base_of_modules("torch.nn.modules.batchnorm", "_NormBase", exported)


def convolutions() -> Modules:
    """The classes of convolutions; without their common base those that torch exports."""
    nn = torch.nn
    exported = (
        *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
        *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    )
    return _base_of_modules("torch.nn.modules.conv", "_ConvNd", exported)


def _base_of_modules(module: str, name: str, exported: Modules) -> Modules:
    base = _found(module, name)
    return exported if base is None else (base,)


# Guards of a plan.


def layout_check(tensors: Sequence[Tensor]) -> Callable[..., bool]:
    """A function that says whether as many other tensors have these dtypes, devices, shapes and strides.

    Dynamo's guards compare them in C++; without them Python does.
    """
    guards = _found("torch._C._dynamo.guards", "TensorGuards")
    if guards is None:
        expected = list(map(_layout, tensors))
        return lambda *others: list(map(_layout, others)) == expected
    sizes = [list(tensor.shape) for tensor in tensors]
    strides = [list(tensor.stride()) for tensor in tensors]
    return guards(*tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides).check


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return type(tensor), tensor.dtype, tensor.device, tensor.shape, tensor.stride(), tensor.requires_grad


# Tracing.


@contextlib.contextmanager
def intercepting(call: Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]) -> Generator[None, None, None]:
    """Have `call(operator, args, kwargs)` carry out every operation inside of the block.

    Modes that were active before are off inside, so that nothing else sees these operations.

    Raises:
        TracingUnavailableError: this torch lacks one of the names. Steps then run leaf by leaf.
    """
    module = "torch.utils._python_dispatch"
    mode_class, without_modes = _needed(module, "TorchDispatchMode"), _needed(module, "_disable_current_modes")

    class Intercepting(mode_class):
        @classmethod
        def _should_skip_dynamo(cls) -> bool:
            return False  # it would import dynamo, in order to tell it that there is nothing to trace

        def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return call(operator, args, kwargs or {})

    with without_modes(), Intercepting():
        yield


def is_intercepted() -> bool:
    """Whether something watches or traces operations: a dispatch mode, or dynamo.

    Without the name the answer is no: a step under such a mode shows it lists in place of single tensors.
    """
    if torch.compiler.is_compiling():
        return True
    current = _dispatch_mode()
    return current is not None and current() is not None


@functools.cache
def _dispatch_mode() -> Any:
    return _found("torch.utils._python_dispatch", "_get_current_dispatch_mode")


class TracingUnavailableError(RuntimeError):
    """The installed torch lacks a name that tracing needs."""


def _needed(module: str, name: str) -> Any:
    value = _found(module, name)
    if value is None:
        raise TracingUnavailableError(f"this torch has no {module}.{name}")
    return value


class SymbolicTracer:
    """Records a function of tensors as a graph of operations, for all sizes of its arguments at once.

    Raises:
        TracingUnavailableError: this torch lacks one of the names. The engine then calls `torch.compile`.
    """

    def __init__(self) -> None:
        shapes = "torch.fx.experimental.symbolic_shapes"
        self._make_graph = _needed("torch.fx.experimental.proxy_tensor", "make_fx")
        self._source = _needed("torch._dynamo.source", "ConstantSource")
        self._symbolic_context = _needed(shapes, "StatelessSymbolicContext")
        self._dimension = _needed(shapes, "DimDynamic")
        self._context = _needed("torch._guards", "TracingContext")
        self._tracing = _needed("torch._guards", "tracing")
        # Without duck shapes, two sizes that happen to be equal stay two sizes.
        self._sizes = _needed(shapes, "ShapeEnv")(duck_shape=False)
        fake_mode = _needed("torch._subclasses.fake_tensor", "FakeTensorMode")
        self._mode = fake_mode(shape_env=self._sizes, allow_non_fake_inputs=True)

    def fixed(self, tensor: Tensor) -> Tensor:
        """A stand-in for a tensor whose shape never changes."""
        return self._mode.from_tensor(tensor, static_shapes=True)

    def resizable(self, tensor: Tensor, name: str) -> Tensor:
        """A stand-in for a tensor whose sizes may all change, except those that are 1."""
        dynamic: list[Any] = []
        for size in tensor.shape:
            dynamic.append(self._dimension.STATIC if size == 1 else self._dimension.DYNAMIC)
        context = self._symbolic_context(dynamic_sizes=dynamic)
        with _unattributed_sizes():
            return self._mode.from_tensor(tensor, symbolic_context=context, source=self._source(name))

    def sized_as(self, stand_in: Tensor, tensor: Tensor) -> Tensor:
        """A stand-in for a tensor that always has the size of another."""
        with self._mode:
            return torch.empty(stand_in.shape, dtype=tensor.dtype, device=tensor.device)

    def graph(
        self,
        function: Callable[..., Any],
        arguments: Sequence[Tensor],
        replaced: Mapping[Any, Any],
    ) -> torch.fx.GraphModule:
        """The operations of `function(*arguments)`; `replaced` has decompositions beyond those of inductor."""
        with self._mode, torch.no_grad(), _unattributed_sizes():
            return self._make_graph(function, decomposition_table={**decompositions(), **replaced})(*arguments)

    def holds_for(self, arguments: Sequence[Tensor], tensors: Sequence[Tensor]) -> bool:
        """Whether these tensors meet what was assumed of the sizes of `arguments` while tracing."""
        return self._sizes.evaluate_guards_for_args(arguments, tensors, ignore_static=False)

    @contextlib.contextmanager
    def compiling(self) -> Generator[None, None, None]:
        """Compile inside of this block what was traced."""
        with self._tracing(self._context(self._mode)), torch.no_grad():
            yield


def _unattributed_sizes() -> contextlib.AbstractContextManager[None]:
    """Have torch's logs name the innermost function for a size: looking for the user's imports `torch.export`.

    That takes a quarter of the first step of a process. Without the name nothing changes.
    """
    module, name = "torch.fx.experimental.symbolic_shapes", "uninteresting_files"
    if _found(module, name) is None:
        return contextlib.nullcontext()
    shapes = importlib.import_module(module)
    # With no file at all, a function there would find its own frame: a cycle that keeps the gradients of a step.
    own_file = frozenset([shapes.__file__])
    return _patched(shapes, name, lambda: own_file)


def writes(target: Any) -> bool:
    """Whether an operator writes into an argument; falls back to whether its name ends in an underscore."""
    schema = getattr(target, "_schema", None)
    if schema is not None:
        return schema.is_mutable
    name, _, _ = str(target).removeprefix("aten.").partition(".")
    return name.endswith("_")


@functools.cache
def makes_new_tensor(operator: Any) -> bool:
    """Whether results share no memory with arguments; without a schema the answer is no."""
    schema = getattr(operator, "_schema", None)
    if schema is None:
        return False
    return all(value.alias_info is None for value in (*schema.arguments, *schema.returns))


@functools.cache
def multiplies_in_bfloat16() -> bool:
    """Whether the processor multiplies matrices in bfloat16 by itself; without the names the answer is yes."""
    by_vectors = _found("torch.cpu", "_is_avx512_bf16_supported")
    by_tiles = _found("torch.cpu", "_is_amx_tile_supported")
    if by_vectors is None or by_tiles is None or platform.machine() not in ("x86_64", "AMD64"):
        return True
    return by_vectors() or by_tiles()


# Inductor.

# The modes that torch documents, for a torch that does not list them.
DOCUMENTED_MODES: dict[str, dict[str, Any]] = {
    "default": {},
    "reduce-overhead": {"triton.cudagraphs": True},
    "max-autotune-no-cudagraphs": {"max_autotune": True, "coordinate_descent_tuning": True},
    "max-autotune": {"max_autotune": True, "triton.cudagraphs": True, "coordinate_descent_tuning": True},
}


OWN_OPTIONS = {"size_asserts", "cpp.threads"}  # those that the engine itself sets


def compiler_modes() -> Mapping[str, dict[str, Any]]:
    """The modes of `torch.compile` and the options that each stands for."""
    modes = _found("torch._inductor", "list_mode_options")
    return DOCUMENTED_MODES if modes is None else modes()


def compiler_option_names() -> Collection[str] | None:
    """The options of torch's compiler; None if torch does not list them."""
    options = _found("torch._inductor", "list_options")
    return None if options is None else options()


def compiles_at_once(graph: torch.fx.GraphModule, options: Mapping[str, Any]) -> bool:
    """Whether inductor's inner compiler, without AOTAutograd, gets a graph."""
    compiler = _found("torch._inductor", "compile")
    if compiler is None or compiler.__module__ != "torch._inductor":  # whoever has replaced it wants to see the graphs
        return False
    return options.keys() <= OWN_OPTIONS and _is_ready_for_inductor(graph)


def compile_graph(graph: Any, examples: Sequence[Any], options: Mapping[str, Any]) -> Callable[..., Any]:
    """Compile a traced graph by inductor; falls back to the public `torch.compile`, which traces it again."""
    compiler = _found("torch._inductor", "compile")
    if compiler is None:
        return compile_function(graph, options)
    if compiles_at_once(graph, options):
        function = _compiled_at_once(graph, examples, options)
        if function is not None:
            return function
    return compiler(graph, examples, options=dict(options))


def _is_ready_for_inductor(graph: torch.fx.GraphModule) -> bool:
    """Whether inductor's inner compiler takes a graph: it writes only into arguments, is for the CPU, draws nothing."""
    for node in graph.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, Tensor) and value.device.type != "cpu":
            return False
        if node.op != "call_function":
            continue
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            return False
        if writes(node.target) and (
            node.target is not torch.ops.aten.copy_.default or node.args[0].op != "placeholder"
        ):
            return False
    return True


def _compiled_at_once(graph: Any, examples: Sequence[Any], options: Mapping[str, Any]) -> Callable[..., Any] | None:
    """A function compiled by inductor's inner compiler; None if this torch lacks a name that it needs.

    The outer one has AOTAutograd trace the graph once more, a third of the time to compile, and check arguments at each
    call.
    """
    compiler = _found("torch._inductor.compile_fx", "compile_fx_inner")
    settings = _found("torch._inductor.config", "patch")
    virtualized = _found("torch._inductor.virtualized", "V")
    mode = getattr(examples[0], "fake_mode", None)
    if None in (compiler, settings, virtualized, mode) or not decompositions():
        return None
    copy = torch.fx.Graph()  # the compiler changes what it is given, and may fail
    results = cast("Sequence[Any]", copy.graph_copy(graph.graph, {}))
    _keep_in_memory(copy)
    copy.output(tuple(results)).meta["user_visible_output_idxs"] = list(range(len(results)))
    loaded = _loaded_programs()
    with settings(dict(options)), virtualized.set_fake_mode(mode):
        compiled = compiler(torch.fx.GraphModule(graph, copy), examples, is_inference=True)
    return CompiledAtOnce(compiled, is_loaded=_loaded_programs() != loaded)


def _loaded_programs() -> int:
    """How many programs inductor has found in its cache; 0 if this torch does not count them."""
    counters = _found("torch._dynamo.utils", "counters")
    return 0 if counters is None else counters["inductor"]["fxgraph_cache_hit"]


class CompiledAtOnce:
    """What inductor's inner compiler makes of a graph, as a function of its arguments.

    Attributes:
        compiled: The result of the compiler.
        is_loaded: Whether the compiler has found it in its cache. Then it does not tell what it once assumed of sizes
            that are no arguments.
    """

    def __init__(self, compiled: Any, is_loaded: bool = False):
        self.compiled = compiled
        self.is_loaded = is_loaded

    def __call__(self, *arguments: Any) -> Any:
        return self.compiled(list(arguments))  # which it empties


@dataclass(frozen=True)
class Kernels:
    """A compiled graph as text: a method of one list of arguments that calls functions of shared libraries.

    Attributes:
        method: The text of the method.
        libraries: The file of each function.
    """

    method: str
    libraries: Mapping[str, str]


def was_loaded(function: Callable[..., Any]) -> bool:
    """Whether inductor had a compiled graph in its cache."""
    return isinstance(function, CompiledAtOnce) and function.is_loaded


# What a method may call beyond its libraries, by its name in torch, and the names of attributes that it may use.
CALLED_BY_KERNELS = {
    "assert_size_stride": "assert_size_stride",
    "assert_size_stride_grouped": "assert_size_stride_grouped",
    "empty_strided_cpu": "_empty_strided_cpu",
    "reinterpret_tensor": "_reinterpret_tensor",
}
USED_BY_KERNELS = {"torch", "clear", "size", "float64", "float32", "bfloat16", "float16"} | {
    *("int64", "int32", "int16", "int8", "uint8", "bool", "float8_e4m3fn")
}
METHOD = re.compile(r"^    def call\(self, args\):\n(?:        .*\n|\n)+", re.MULTILINE)


def kernels_of(function: Callable[..., Any]) -> Kernels | None:
    """A compiled graph as text; None if it is not that simple, or this torch makes it in another way."""
    if not isinstance(function, CompiledAtOnce):
        return None
    method = METHOD.search(getattr(function.compiled, "source_code", None) or "")
    call = getattr(getattr(function.compiled, "current_callable", None), "__func__", None)
    if method is None or call is None or getattr(function.compiled, "constants", True):
        return None
    libraries: dict[str, str] = {}
    for name in call.__code__.co_names:
        if name in USED_BY_KERNELS or name in CALLED_BY_KERNELS:
            continue
        library = getattr(getattr(call.__globals__.get(name), "__self__", None), "__file__", None)
        if library is None:
            return None
        libraries[name] = library
    return Kernels(method[0], libraries)


def run_kernels(kernels: Kernels) -> Callable[..., Any]:
    """A compiled graph from its text, without inductor.

    Raises:
        AttributeError: this torch lacks a name.
        ImportError: a library is gone or not for this torch.
        SyntaxError: the text is no method.
    """
    guards = _module_of_kernels()
    place = str(guards._torchinductor_pyobject_tensor_data_ptr)
    os.environ["_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR"] = place  # read by libraries when they are loaded
    names: dict[str, Any] = {"torch": torch}
    for name, in_torch in CALLED_BY_KERNELS.items():
        if name in kernels.method:
            names[name] = getattr(guards, in_torch)
    for name, library in kernels.libraries.items():
        names[name] = _library(library).kernel
    exec(textwrap.dedent(kernels.method), names)
    call: Callable[..., Any] = names["call"]

    def function(*arguments: Any) -> Any:
        return call(None, list(arguments))

    return function


def _module_of_kernels() -> Any:
    """The module of the functions that kernels call; None if this torch has none."""
    return getattr(getattr(torch._C, "_dynamo", None), "guards", None)  # pyright: ignore[reportPrivateUsage]


def _library(path: str) -> Any:
    """A library of inductor's as a module, in the place where inductor keeps its own."""
    name = f"{Path(path).name.partition('.')[0]}.kernel"
    if name not in sys.modules:
        specification = importlib.util.spec_from_file_location(name, path)
        if specification is None or specification.loader is None:
            raise ImportError(f"{path} is no library")
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
        sys.modules[name] = module
    return sys.modules[name]


def hint_of(size: torch.SymInt) -> int | None:
    """The value of a symbolic size in the examples; None if this torch does not tell."""
    node: Any = size.node
    return getattr(node, "hint", None)


class Assumptions:
    """What a compiler assumes of the symbolic sizes of example arguments, as text that outlives the process."""

    def __init__(self, examples: Sequence[Any]):
        self._sizes: list[torch.SymInt] = []
        for example in examples:
            if isinstance(example, Tensor):
                self._sizes += [size for size in example.shape if isinstance(size, torch.SymInt)]
        first: Any = self._sizes[0] if self._sizes else None
        self._environment: Any = None if first is None else first.node.shape_env
        self._before = len(self._guards())

    def _guards(self) -> list[Any]:
        return [] if self._environment is None else self._environment.guards

    def added(self) -> str:
        """What has been assumed since this object was made."""
        guards = self._guards()[self._before :]
        return self._environment.produce_guards_expression(self._sizes, guards=guards) or "" if guards else ""

    def add(self, text: str) -> bool:
        """Assume what `added` has returned in another process; whether it is true of the examples."""
        return not text or bool(self._environment.evaluate_guards_expression(text, self._sizes))


def compiler_cache() -> Path | None:
    """The folder where inductor keeps programs; None if its caches are off, or this torch keeps them elsewhere."""
    folder = _found("torch._inductor.runtime.cache_dir_utils", "cache_dir")
    config: Any = importlib.import_module("torch._inductor.config")
    is_off = getattr(config, "force_disable_caches", True) or not getattr(config, "fx_graph_cache", False)
    return None if folder is None or is_off else Path(folder())


# Functions that users give to inductor to change graphs with.
PASSES = (
    *("post_grad_custom_pre_pass", "post_grad_custom_post_pass"),
    *("_pre_fusion_custom_pass", "_post_fusion_custom_pass"),
)


def compiler_settings() -> str | None:
    """All settings of inductor as text; None if they have none, or this torch does not tell."""
    config: Any = importlib.import_module("torch._inductor.config")
    if any(getattr(config, name, None) is not None for name in PASSES):
        return None
    settings = _found("torch._inductor.config", "save_config_portable")
    return None if settings is None else repr(sorted(settings().items()))


def _keep_in_memory(graph: torch.fx.Graph) -> None:
    """Have inductor write some values to memory, which it would compute where they are read.

    Without the operator that asks for it nothing changes.
    """
    if _found("torch._inductor.test_operators", "realize") is None:  # whose import defines the operator
        return
    operator = torch.ops._inductor_test.realize.default
    for node in list(graph.nodes):
        readers = _readers_of_kept(node)
        if readers:
            with graph.inserting_after(node):
                kept = graph.call_function(operator, (node,))
            kept.meta = dict(node.meta)
            for user in readers:
                user.replace_input_with(node, kept)


def _readers_of_kept(node: torch.fx.Node) -> list[torch.fx.Node]:
    """The users of a node that are to read it from memory.

    The number of a row, such as 1 / scale, is computed once, not for each vector of its entries. Codes are in memory
    when two of them are put into a byte, and when they were taken out of one: the loop that does this has no vectors,
    and all that it computes besides would have none either.
    """
    users = list(node.users)
    if _is_pointwise(node) and _is_number_of_rows(node):
        return [user for user in users if _is_pointwise(user) and not _is_number_of_rows(user)]
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or value.dtype not in (torch.int8, torch.uint8):
        return []
    if node.target is torch.ops.aten.cat.default:
        return users
    return [user for user in users if user.target is torch.ops.aten.select.int]


def _is_pointwise(node: torch.fx.Node) -> bool:
    return torch.Tag.pointwise in getattr(node.target, "tags", ())


def _is_number_of_rows(node: torch.fx.Node) -> bool:
    """Whether a node has one entry for each row."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.ndim > 1 and value.shape[-1] == 1


def decompositions() -> Mapping[Any, Any]:
    """How inductor writes operators in terms of others; empty where it does not tell."""
    table = _found("torch._inductor.decomposition", "select_decomp_table")
    return {} if table is None else table()


def compile_function(function: Callable[..., Any], options: Mapping[str, Any]) -> Callable[..., Any]:
    """Compile a function for all sizes by the public `torch.compile`."""
    return torch.compile(function, dynamic=True, options=dict(options))  # pyright: ignore[reportUnknownMemberType]


def asserts_bind_sizes() -> bool:
    """Whether compiled programs need their assertions of sizes, since these also define the sizes' names.

    So it is from torch 2.14 on: without them programs fail with a NameError.
    """
    major, minor = torch.__version__.split(".")[:2]
    return (int(major), int(minor)) >= (2, 14)


def compile_error() -> type[Exception]:
    """The exceptions of inductor when it fails on a graph."""
    error = _found("torch._inductor.exc", "InductorError")
    return RuntimeError if error is None else error


@contextlib.contextmanager
def _patched(owner: Any, name: str, value: Any) -> Generator[None, None, None]:
    """Give an attribute another value inside of the block."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _always(self: Any) -> bool:
    return True


def _never(self: Any, *nodes: Any) -> bool:
    return False


def named_instructions() -> contextlib.AbstractContextManager[None]:
    """Have inductor use the vector instructions that the processor names.

    By itself torch builds and loads one or two C++ programs for each instruction set, 6 to 9 s in all, to learn whether
    all tools know it; a compile error tells that as well. If this torch keeps its sets elsewhere, it asks by itself.
    """
    try:
        config = importlib.import_module("torch._inductor.config")
        instructions: Any = importlib.import_module("torch._inductor.cpu_vec_isa")
        if config.cpp.vec_isa_ok is not None:
            return contextlib.nullcontext()
        named = instructions.x86_isa_checker()
        known = {"avx512": instructions.VecAVX512, "avx2": instructions.VecAVX2}
        list_of_sets = "valid_vec_isa_list"
        getattr(instructions, list_of_sets)
        sets: list[Any] = []
        for name, instruction_set in known.items():
            if name in named:
                # The truth value of a set is what builds the programs.
                believed = type(instruction_set.__name__, (instruction_set,), {"__bool__": _always})
                sets.append(believed())
    except Exception:  # a shortcut only: whatever fails in it, torch asks by itself
        logger.debug("the instruction sets are left to torch", exc_info=True)
        return contextlib.nullcontext()

    def list_sets() -> list[Any]:
        return sets

    return _patched(instructions, list_of_sets, list_sets) if sets else contextlib.nullcontext()


def separate_loops() -> contextlib.AbstractContextManager[None]:
    """Keep inductor from fusing loops of unlike depth, where it fails over tensors that are written in place.

    https://github.com/pytorch/pytorch/issues/196570, open as of torch 2.14. Without the name nothing changes.
    """
    scheduling, fusion = _found("torch._inductor.codegen.cpp", "CppScheduling"), "can_fuse_vertical_outer_loop"
    if not hasattr(scheduling, fusion):
        return contextlib.nullcontext()
    return _patched(scheduling, fusion, _never)


def without_cached_graphs() -> contextlib.AbstractContextManager[None]:
    """Have inductor compile graphs that it has in its cache. Without the name it takes those."""
    config = _found("torch._inductor", "config")
    if not hasattr(config, "fx_graph_cache"):
        return contextlib.nullcontext()
    return _patched(config, "fx_graph_cache", False)


def zero_redundancy_calls() -> bool:
    """Whether a `ZeroRedundancyOptimizer` is making this optimizer, for the parameters of one rank."""
    module = sys.modules.get("torch.distributed.optim.zero_redundancy_optimizer")
    if module is None:
        return False
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_globals is module.__dict__:
            return True
        frame = frame.f_back
    return False
