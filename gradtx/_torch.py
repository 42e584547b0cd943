"""Access every name of torch that is private or may move; each has a fallback or a documented loss.

The rest of gradtx uses only torch's public names (except that `_tree` uses `torch.utils._pytree`). Names are looked up
on use, so that a version of torch without one of them loses only what the docstring of that function states. Dynamo,
inductor and sympy are imported only by functions of the compiled engine.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import inspect
import logging
import os
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
    """Return an attribute of a torch module, or None if this version of torch lacks it."""
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None


# Tensors.


def version_of(tensor: Tensor) -> int:
    """Return the number of in-place writes to a tensor; 0 for inference tensors, which do not count them.

    Without `Tensor._version` every tensor has version 0, and rules that write in place are not detected.
    """
    return 0 if tensor.is_inference() else getattr(tensor, "_version", 0)


def base_of(tensor: Tensor) -> Tensor | None:
    """Return the base tensor of a view; None for other tensors.

    Without `Tensor._base` a view counts as a separate tensor while dynamo traces.
    """
    return getattr(tensor, "_base", None)


def storage_id(tensor: Tensor) -> int:
    """Identify a tensor's storage for as long as the storage lives, also inside vmap and grad.

    Falls back to the identity of the storage's Python object, which torch preserves, or to that of the tensor if a
    transform cannot be unwrapped.
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


# RuntimeErrors that another layout of a sharded tensor would not prevent.
NOT_OF_LAYOUT = _errors_not_of_layout()


# Transforms: vmap, grad, and forward-mode derivatives.


def _functorch(name: str) -> Any:
    return getattr(getattr(torch._C, "_functorch", None), name, None)  # pyright: ignore[reportPrivateUsage]


def inside_transform() -> bool:
    """Whether a transform of `torch.func` is active.

    Without the name the result is True, and rules that write in place are not detected.
    """
    peek = _functorch("peek_interpreter_stack")
    return True if peek is None else peek() is not None


def is_transformed(tensor: Tensor) -> bool:
    """Whether a tensor represents values inside a transform; falls back to whether it lacks a storage."""
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
    return not (
        torch.compiler.is_compiling() or is_transformed(tensor) or tensor.is_meta
    )


def below_transforms(tensor: Tensor) -> Tensor:
    """Unwrap a transform's tensor; without the name, return the tensor itself, so that views count as separate."""
    unwrapped = _functorch("get_unwrapped")
    if unwrapped is not None:
        while is_transformed(tensor):
            tensor = unwrapped(tensor)
    return tensor


def forward_mode_active() -> bool:
    """Whether forward-mode derivatives are being computed.

    Without the name the result is True, which costs one `where` in some rules.
    """
    return getattr(forward_ad, "_current_level", 0) >= 0


def has_derivative(tensor: Tensor) -> bool:
    """Whether any enclosing transform differentiates through a tensor; while dynamo traces, only backward counts."""
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


# Surroundings.


def autocast_possible() -> bool:
    """Whether any device's autocast may be enabled; without the name, and while dynamo traces, the result is True."""
    if torch.compiler.is_compiling():
        return True
    is_any_enabled = getattr(torch._C, "_is_any_autocast_enabled", None)  # pyright: ignore[reportPrivateUsage]
    return True if is_any_enabled is None else is_any_enabled()


def default_device() -> torch.device:
    """Return the default device, without the 5 us of torch's own function if no function mode sets one.

    Without the private name, torch's own function is always called.
    """
    count_modes = getattr(torch._C, "_len_torch_function_stack", None)  # pyright: ignore[reportPrivateUsage]
    if count_modes is not None and count_modes() == 0:
        return torch.device("cpu")
    return torch.get_default_device()


# Dynamo, without importing it.


def assume_constant(function: Function) -> Function:
    """Make dynamo call a function while tracing, as `torch.compiler.assume_constant_result` does.

    That function imports dynamo only to set this attribute. If dynamo stops reading it, tracing such a function
    causes a graph break.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def not_traced(function: Function) -> Function:
    """Exclude a function from tracing, like `torch.compiler.disable`, which would import dynamo immediately.

    Without the name dynamo traces as much of the function as it can.
    """
    disable = getattr(torch, "_disable_dynamo", None)
    return function if disable is None else disable(function)


# Optimizers.

Hooks: TypeAlias = list[Callable[..., Any]]


class TakesScaledGradients:
    """Indicate to `torch.amp.GradScaler` that `step` itself unscales gradients and skips steps.

    If torch renames the attribute, the scaler unscales before `step` and reads the overflow flag on the host.
    """

    _step_supports_amp_scaling = True


def load_hooks(optimizer: torch.optim.Optimizer) -> tuple[Hooks, Hooks]:
    """Return the hooks registered to run before and after `load_state_dict`; none without the names."""
    before = getattr(optimizer, "_optimizer_load_state_dict_pre_hooks", {})
    after = getattr(optimizer, "_optimizer_load_state_dict_post_hooks", {})
    return list(before.values()), list(after.values())


def unscale_(gradients: list[Tensor], inverse: Tensor) -> None:
    """Multiply gradients by a 0-d float32 tensor in place; falls back to one multiplication per tensor."""
    together = getattr(torch, "_amp_foreach_non_finite_check_and_unscale_", None)
    if together is not None:
        together(gradients, torch.zeros_like(inverse), inverse)
        return
    for gradient in gradients:
        gradient.mul_(inverse)


def on_lists(name: str) -> Callable[..., Any] | None:
    """Return an operation on lists of tensors, such as "add" or "add_"; None if this version of torch lacks it."""
    return getattr(torch, f"_foreach_{name}", None)


def copy_each_(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copy each source into its target; falls back to one copy per tensor."""
    together = on_lists("copy_")
    if together is not None:
        together(targets, sources)
        return
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)


def count_up_(targets: list[Tensor]) -> None:
    """Add 1 to each tensor; falls back to one addition per tensor."""
    # Not `on_lists`: this runs in every step.
    together = getattr(torch, "_foreach_add_", None)
    if together is not None and targets:
        # A Python scalar would be converted to a tensor for each target, which takes longer than the addition.
        together(
            targets, _one() if type(targets[0]) is Tensor else torch.ones(()), alpha=1.0
        )
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
    """Return the classes of batch and instance norms; without their private base class, those that torch exports."""
    nn = torch.nn
    exported = (
        *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
        *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    )
    return _base_of_modules("torch.nn.modules.batchnorm", "_NormBase", exported)


def convolutions() -> Modules:
    """Return the classes of convolutions; without their private base class, those that torch exports."""
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
    """Return a function that checks whether other tensors have the same dtypes, devices, shapes and strides as these.

    Dynamo's guards compare them in C++; without the name, they are compared in Python.
    """
    guards = _found("torch._C._dynamo.guards", "TensorGuards")
    if guards is None:
        expected = list(map(_layout, tensors))
        return lambda *others: list(map(_layout, others)) == expected
    sizes = [list(tensor.shape) for tensor in tensors]
    strides = [list(tensor.stride()) for tensor in tensors]
    return guards(
        *tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides
    ).check


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return (
        type(tensor),
        tensor.dtype,
        tensor.device,
        tensor.shape,
        tensor.stride(),
        tensor.requires_grad,
    )


# Tracing.


@contextlib.contextmanager
def intercepting(
    call: Callable[[Any, tuple[Any, ...], dict[str, Any]], Any],
) -> Generator[None, None, None]:
    """Let `call(operator, args, kwargs)` execute every operation inside the block.

    Modes that were active before are disabled inside, so that nothing else observes these operations.

    Raises:
        TracingUnavailableError: If this version of torch lacks one of the names. Steps then run leaf by leaf.
    """
    module = "torch.utils._python_dispatch"
    mode_class = _needed(module, "TorchDispatchMode")
    without_modes = _needed(module, "_disable_current_modes")

    class Intercepting(mode_class):
        @classmethod
        def _should_skip_dynamo(cls) -> bool:
            # True would import dynamo only to report that there is nothing to trace.
            return False

        def __torch_dispatch__(
            self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            return call(operator, args, kwargs or {})

    with without_modes(), Intercepting():
        yield


def is_intercepted() -> bool:
    """Whether a dispatch mode or dynamo observes operations.

    Without the name the result is False: a dispatch mode then observes list operations instead of single ones.
    """
    if torch.compiler.is_compiling():
        return True
    current = _dispatch_mode()
    return current is not None and current() is not None


@functools.cache
def _dispatch_mode() -> Any:
    return _found("torch.utils._python_dispatch", "_get_current_dispatch_mode")


class TracingUnavailableError(RuntimeError):
    """The installed version of torch lacks a name that tracing needs."""


def _needed(module: str, name: str) -> Any:
    value = _found(module, name)
    if value is None:
        raise TracingUnavailableError(f"this version of torch lacks {module}.{name}")
    return value


class SymbolicTracer:
    """Trace a function of tensors into a graph that is valid for all sizes of its arguments.

    Raises:
        TracingUnavailableError: If this version of torch lacks one of the names. The engine then calls `torch.compile`.
    """

    def __init__(self) -> None:
        shapes = "torch.fx.experimental.symbolic_shapes"
        self._make_graph = _needed("torch.fx.experimental.proxy_tensor", "make_fx")
        self._source = _needed("torch._dynamo.source", "ConstantSource")
        self._symbolic_context = _needed(shapes, "StatelessSymbolicContext")
        self._dimension = _needed(shapes, "DimDynamic")
        self._context = _needed("torch._guards", "TracingContext")
        self._tracing = _needed("torch._guards", "tracing")
        # Without duck shapes, two sizes that happen to be equal remain distinct symbols.
        self._sizes = _needed(shapes, "ShapeEnv")(duck_shape=False)
        fake_mode = _needed("torch._subclasses.fake_tensor", "FakeTensorMode")
        self._mode = fake_mode(shape_env=self._sizes, allow_non_fake_inputs=True)

    def fixed(self, tensor: Tensor) -> Tensor:
        """Create a stand-in for a tensor whose shape never changes."""
        return self._mode.from_tensor(tensor, static_shapes=True)

    def resizable(self, tensor: Tensor, name: str, only_length: bool) -> Tensor:
        """Create a stand-in for a tensor whose sizes, or only the first one, may change, except those that are 1."""
        dynamic: list[Any] = []
        for dim, size in enumerate(tensor.shape):
            is_fixed = size == 1 or (only_length and dim > 0)
            dynamic.append(
                self._dimension.STATIC if is_fixed else self._dimension.DYNAMIC
            )
        context = self._symbolic_context(dynamic_sizes=dynamic)
        with _unattributed_sizes():
            return self._mode.from_tensor(
                tensor, symbolic_context=context, source=self._source(name)
            )

    def sized_as(self, stand_in: Tensor, tensor: Tensor) -> Tensor:
        """Create a stand-in for a tensor that always has the same length as another."""
        shape = (stand_in.shape[0], *tensor.shape[1:])
        with self._mode:
            return torch.empty(shape, dtype=tensor.dtype, device=tensor.device)

    def graph(
        self,
        function: Callable[..., Any],
        arguments: Sequence[Tensor],
        replaced: Mapping[Any, Any],
    ) -> torch.fx.GraphModule:
        """Trace `function(*arguments)`; `replaced` contains decompositions in addition to those of inductor."""
        with self._mode, torch.no_grad(), _unattributed_sizes():
            return self._make_graph(
                function, decomposition_table={**decompositions(), **replaced}
            )(*arguments)

    def assumptions(
        self, arguments: Sequence[Tensor]
    ) -> Callable[[Sequence[Tensor]], bool]:
        """Return whether tensors satisfy the assumptions made so far about the sizes of `arguments`, as a function."""
        text = self._sizes.produce_guards_expression(arguments, ignore_static=False)

        def satisfy(tensors: Sequence[Tensor]) -> bool:
            if not text:
                return True
            return self._sizes.evaluate_guards_expression(text, tensors)

        return satisfy

    @contextlib.contextmanager
    def compiling(self) -> Generator[None, None, None]:
        """Set up the context in which traced graphs are compiled."""
        with self._tracing(self._context(self._mode)), torch.no_grad():
            yield


def _unattributed_sizes() -> contextlib.AbstractContextManager[None]:
    """Let torch's logs attribute sizes to the innermost function; searching for the user's imports `torch.export`.

    That search takes a quarter of the first step of a process. Without the name, the search runs.
    """
    module, name = "torch.fx.experimental.symbolic_shapes", "uninteresting_files"
    if _found(module, name) is None:
        return contextlib.nullcontext()
    shapes = importlib.import_module(module)
    # With no file at all, a function there would return its own frame, a reference cycle that keeps gradients alive.
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
    """Whether results share no memory with arguments; False without a schema."""
    schema = getattr(operator, "_schema", None)
    if schema is None:
        return False
    return all(
        value.alias_info is None for value in (*schema.arguments, *schema.returns)
    )


@assume_constant
def multiplies_in_bfloat16() -> bool:
    """Whether matrix products in bfloat16 are faster than in float32 on this processor; True without the name.

    They are with AMX tiles. AVX-512 instructions for bfloat16 count on AMD's processors, where MKL multiplies float32
    with AVX2: on Zen 5, float32 takes 2 to 4.5 times as long from 128 columns on. On Intel's, float32 with conversions
    is 1.1 to 1.9 times faster than these instructions.
    """
    return _has_fast_bfloat16()


@functools.cache
def _has_fast_bfloat16() -> bool:
    get_capabilities = _found("torch.cpu", "get_capabilities")
    if get_capabilities is None:
        return True
    capabilities = get_capabilities()
    if capabilities.get("architecture") != "x86_64":
        return True
    is_by_amd = str(capabilities.get("cpu_name", "")).startswith("AMD")
    by_vectors = is_by_amd and capabilities.get("avx512_bf16", False)
    return by_vectors or capabilities.get("amx_bf16", False)


# Inductor.

# The modes that torch documents, for versions of torch that do not list them.
DOCUMENTED_MODES: dict[str, dict[str, Any]] = {
    "default": {},
    "reduce-overhead": {"triton.cudagraphs": True},
    "max-autotune-no-cudagraphs": {
        "max_autotune": True,
        "coordinate_descent_tuning": True,
    },
    "max-autotune": {
        "max_autotune": True,
        "triton.cudagraphs": True,
        "coordinate_descent_tuning": True,
    },
}


# Options that the engine itself sets.
OWN_OPTIONS = {"size_asserts", "cpp.threads", "realize_reads_threshold"}


def compiler_modes() -> Mapping[str, dict[str, Any]]:
    """Return the modes of `torch.compile` and the options of each."""
    modes = _found("torch._inductor", "list_mode_options")
    return DOCUMENTED_MODES if modes is None else modes()


def compiler_option_names() -> Collection[str] | None:
    """Return the names of the compiler's options; None if torch does not list them."""
    options = _found("torch._inductor", "list_options")
    return None if options is None else options()


def compiles_at_once(graph: torch.fx.GraphModule, options: Mapping[str, Any]) -> bool:
    """Whether a graph goes directly to inductor's inner compiler, without AOTAutograd."""
    compiler = _found("torch._inductor", "compile")
    # A replacement expects to receive the graphs.
    if compiler is None or compiler.__module__ != "torch._inductor":
        return False
    return options.keys() <= OWN_OPTIONS and _is_ready_for_inductor(graph)


def compile_graph(
    graph: Any, examples: Sequence[Any], options: Mapping[str, Any]
) -> Callable[..., Any]:
    """Compile a traced graph with inductor; falls back to the public `torch.compile`, which traces it again."""
    compiler = _found("torch._inductor", "compile")
    if compiler is None:
        return compile_function(graph, options)
    if compiles_at_once(graph, options):
        function = _compiled_at_once(graph, examples, options)
        if function is not None:
            return function
    return compiler(graph, examples, options=dict(options))


def _is_ready_for_inductor(graph: torch.fx.GraphModule) -> bool:
    """Whether inductor's inner compiler accepts a graph: for the CPU, writing only into arguments, nothing random."""
    for node in graph.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, Tensor) and value.device.type != "cpu":
            return False
        if node.op != "call_function":
            continue
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            return False
        if writes(node.target) and (
            node.target is not torch.ops.aten.copy_.default
            or node.args[0].op != "placeholder"
        ):
            return False
    return True


def _compiled_at_once(
    graph: Any, examples: Sequence[Any], options: Mapping[str, Any]
) -> Callable[..., Any] | None:
    """Compile a graph with inductor's inner compiler; return None if this version of torch lacks a required name.

    The outer compiler has AOTAutograd trace the graph again, which takes a third of the compile time, and checks
    arguments at each call.
    """
    compiler = _found("torch._inductor.compile_fx", "compile_fx_inner")
    settings = _found("torch._inductor.config", "patch")
    virtualized = _found("torch._inductor.virtualized", "V")
    mode = getattr(examples[0], "fake_mode", None)
    if None in (compiler, settings, virtualized, mode) or not decompositions():
        return None
    copy = torch.fx.Graph()  # the compiler modifies its input, and may fail
    results = cast("Sequence[Any]", copy.graph_copy(graph.graph, {}))
    _keep_in_memory(copy)
    copy.output(tuple(results)).meta["user_visible_output_idxs"] = list(
        range(len(results))
    )
    loaded = _loaded_programs()
    with settings({**_vector_width(), **options}), virtualized.set_fake_mode(mode):
        compiled = compiler(
            torch.fx.GraphModule(graph, copy), examples, is_inference=True
        )
    return CompiledAtOnce(compiled, is_loaded=_loaded_programs() != loaded)


def _vector_width() -> dict[str, int]:
    """Return the option for the width of vectors that inductor would choose on this processor; none without the name.

    The key of inductor's cache omits the processor but includes options. Without this one, processors of different
    kinds that share the cache run kernels generated for wider or narrower vectors, which skip entries.
    """
    chosen = _found("torch._inductor.cpu_vec_isa", "pick_vec_isa")
    return {} if chosen is None else {"cpp.simdlen": chosen().bit_width()}


def _loaded_programs() -> int:
    """Return how many programs inductor has loaded from its cache; 0 if this version of torch does not count them."""
    counters = _found("torch._dynamo.utils", "counters")
    return 0 if counters is None else counters["inductor"]["fxgraph_cache_hit"]


class CompiledAtOnce:
    """A graph compiled by inductor's inner compiler, as a function of its arguments.

    Attributes:
        compiled: The result of the compiler.
        is_loaded: Whether the compiler loaded it from its cache. In that case the compiler does not report what it once
            assumed about sizes that are not arguments.
    """

    def __init__(self, compiled: Any, is_loaded: bool = False):
        self.compiled = compiled
        self.is_loaded = is_loaded

    def __call__(self, *arguments: Any) -> Any:
        return self.compiled(list(arguments))  # a new list, which the function empties


@dataclass(frozen=True)
class Kernels:
    """A compiled graph as text: a method that accepts a list of arguments and calls functions of shared libraries.

    Attributes:
        method: The text of the method.
        libraries: The file of each function.
    """

    method: str
    libraries: Mapping[str, str]


def was_loaded(function: Callable[..., Any]) -> bool:
    """Whether inductor loaded a compiled graph from its cache."""
    return isinstance(function, CompiledAtOnce) and function.is_loaded


# The functions that a method may call besides its libraries, with their names in torch, and the attributes it may use.
CALLED_BY_KERNELS = {
    "assert_size_stride": "assert_size_stride",
    "assert_size_stride_grouped": "assert_size_stride_grouped",
    "empty_strided_cpu": "_empty_strided_cpu",
    "reinterpret_tensor": "_reinterpret_tensor",
}
DTYPES_OF_KERNELS = (
    *("float64", "float32", "bfloat16", "float16", "float8_e4m3fn"),
    *("int64", "int32", "int16", "int8", "uint8", "bool"),
)
USED_BY_KERNELS = {"torch", "clear", "size", *DTYPES_OF_KERNELS}
METHOD = re.compile(r"^    def call\(self, args\):\n(?:        .*\n|\n)+", re.MULTILINE)


def kernels_of(function: Callable[..., Any]) -> Kernels | None:
    """Return a compiled graph as text; None if it is too complex, or this version of torch builds it differently."""
    if not isinstance(function, CompiledAtOnce):
        return None
    method = METHOD.search(getattr(function.compiled, "source_code", None) or "")
    call = getattr(
        getattr(function.compiled, "current_callable", None), "__func__", None
    )
    if method is None or call is None or getattr(function.compiled, "constants", True):
        return None
    libraries: dict[str, str] = {}
    for name in call.__code__.co_names:
        if name in USED_BY_KERNELS or name in CALLED_BY_KERNELS:
            continue
        library = getattr(
            getattr(call.__globals__.get(name), "__self__", None), "__file__", None
        )
        if library is None:
            return None
        libraries[name] = library
    return Kernels(method[0], libraries)


def reads_only_memory(function: Callable[..., Any], sized: Collection[str]) -> bool:
    """Whether a compiled graph passes its arguments to kernels as addresses, and reads the sizes of only some of them.

    Args:
        function: The compiled graph.
        sized: The names of the arguments whose sizes it may read.
    """
    if not isinstance(function, RunKernels):
        return False
    method = function.kernels.method
    read = set(re.findall(r"(\w+)\.size\(\)", method))
    return "assert_size_stride" not in method and read <= set(sized)


class RunKernels:
    """A compiled graph that only calls kernels, as a function of its arguments.

    Args:
        kernels: The graph as text.
        call: The method in that text.
    """

    def __init__(self, kernels: Kernels, call: Callable[..., Any]):
        self.kernels = kernels
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(None, list(arguments))


def as_kernels(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a compiled graph without what inductor does around each call; the graph itself if it is too complex."""
    kernels = kernels_of(function)
    if kernels is None or not isinstance(function, CompiledAtOnce):
        return function
    return RunKernels(kernels, function.compiled.current_callable.__func__)


def run_kernels(kernels: Kernels) -> Callable[..., Any]:
    """Build a compiled graph from its text, without inductor.

    Raises:
        AttributeError: If this version of torch lacks a name.
        ImportError: If a library is missing or was built for another version of torch.
        SyntaxError: If the text is not a method.
    """
    guards = _module_of_kernels()
    place = str(guards._torchinductor_pyobject_tensor_data_ptr)
    # Read by libraries when they are loaded.
    os.environ["_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR"] = place
    names: dict[str, Any] = {"torch": torch}
    for name, in_torch in CALLED_BY_KERNELS.items():
        if name in kernels.method:
            names[name] = getattr(guards, in_torch)
    for name, library in kernels.libraries.items():
        names[name] = _library(library).kernel
    exec(textwrap.dedent(kernels.method), names)
    return RunKernels(kernels, names["call"])


def _module_of_kernels() -> Any:
    """Return the module of the functions that kernels call; None if this version of torch has none."""
    return getattr(getattr(torch._C, "_dynamo", None), "guards", None)  # pyright: ignore[reportPrivateUsage]


def _library(path: str) -> Any:
    """Load one of inductor's libraries as a module, and register it where inductor registers its own."""
    name = f"{Path(path).name.partition('.')[0]}.kernel"
    if name not in sys.modules:
        specification = importlib.util.spec_from_file_location(name, path)
        if specification is None or specification.loader is None:
            raise ImportError(f"{path} is not a shared library")
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
        sys.modules[name] = module
    return sys.modules[name]


def hint_of(size: torch.SymInt) -> int | None:
    """Return the value of a symbolic size in the examples; None if this version of torch does not provide it."""
    node: Any = size.node
    return getattr(node, "hint", None)


class Assumptions:
    """The assumptions of a compiler about the symbolic sizes of example arguments, as text that can be saved."""

    def __init__(self, examples: Sequence[Any]):
        self._sizes: list[torch.SymInt] = []
        for example in examples:
            if isinstance(example, Tensor):
                self._sizes += [
                    size for size in example.shape if isinstance(size, torch.SymInt)
                ]
        first: Any = self._sizes[0] if self._sizes else None
        self._environment: Any = None if first is None else first.node.shape_env
        self._before = len(self._guards())

    def _guards(self) -> list[Any]:
        return [] if self._environment is None else self._environment.guards

    def added(self) -> str:
        """Return the assumptions made since this object was created."""
        guards = self._guards()[self._before :]
        return (
            self._environment.produce_guards_expression(self._sizes, guards=guards)
            or ""
            if guards
            else ""
        )

    def add(self, text: str) -> bool:
        """Add assumptions that `added` returned in another process; return whether they are true of the examples."""
        return not text or bool(
            self._environment.evaluate_guards_expression(text, self._sizes)
        )


def compiler_cache() -> Path | None:
    """Return inductor's cache folder; None if its caches are off, or this version of torch stores them elsewhere."""
    folder = _found("torch._inductor.runtime.cache_dir_utils", "cache_dir")
    config: Any = importlib.import_module("torch._inductor.config")
    is_off = getattr(config, "force_disable_caches", True) or not getattr(
        config, "fx_graph_cache", False
    )
    return None if folder is None or is_off else Path(folder())


# Settings for user functions with which inductor transforms graphs.
PASSES = (
    *("post_grad_custom_pre_pass", "post_grad_custom_post_pass"),
    *("_pre_fusion_custom_pass", "_post_fusion_custom_pass"),
)


def compiler_settings() -> str | None:
    """Return all settings of inductor as text; None if they have no text form, or torch does not provide them."""
    config: Any = importlib.import_module("torch._inductor.config")
    if any(getattr(config, name, None) is not None for name in PASSES):
        return None
    settings = _found("torch._inductor.config", "save_config_portable")
    return None if settings is None else repr(sorted(settings().items()))


def _keep_in_memory(graph: torch.fx.Graph) -> None:
    """Make inductor write some values to memory that it would otherwise recompute wherever they are read.

    Without the operator that requests this, nothing changes.
    """
    # Importing the module defines the operator.
    if _found("torch._inductor.test_operators", "realize") is None:
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
    """Return the users of a node that must read it from memory.

    A value per row, such as 1 / scale, is computed once rather than for each vector of the row's entries. Codes are
    written to memory before two of them are packed into a byte and after they are unpacked: the loop that does this is
    not vectorized, and neither would be any computation fused into it.
    """
    users = list(node.users)
    if _is_pointwise(node) and _is_number_of_rows(node):
        return [
            user
            for user in users
            if _is_pointwise(user) and not _is_number_of_rows(user)
        ]
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or value.dtype not in (torch.int8, torch.uint8):
        return []
    if node.target is torch.ops.aten.cat.default:
        return users
    return [user for user in users if user.target is torch.ops.aten.select.int]


def _is_pointwise(node: torch.fx.Node) -> bool:
    return torch.Tag.pointwise in getattr(node.target, "tags", ())


def _is_number_of_rows(node: torch.fx.Node) -> bool:
    """Whether a node has one entry per row."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.ndim > 1 and value.shape[-1] == 1


def decompositions() -> Mapping[Any, Any]:
    """Return inductor's decompositions of operators; empty if it does not list them."""
    table = _found("torch._inductor.decomposition", "select_decomp_table")
    return {} if table is None else table()


def compile_function(
    function: Callable[..., Any], options: Mapping[str, Any]
) -> Callable[..., Any]:
    """Compile a function for all sizes with the public `torch.compile`."""
    return torch.compile(function, dynamic=True, options=dict(options))  # pyright: ignore[reportUnknownMemberType]


def asserts_bind_sizes() -> bool:
    """Whether compiled programs need their size assertions, because these also define the names of the sizes.

    This is the case from torch 2.14 on: without the assertions, programs fail with a NameError.
    """
    major, minor = torch.__version__.split(".")[:2]
    return (int(major), int(minor)) >= (2, 14)


def compile_error() -> type[Exception]:
    """Return the exception that inductor raises when it fails on a graph."""
    error = _found("torch._inductor.exc", "InductorError")
    return RuntimeError if error is None else error


@contextlib.contextmanager
def _patched(owner: Any, name: str, value: Any) -> Generator[None, None, None]:
    """Set an attribute to another value inside the block."""
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
    """Make inductor use the vector instructions that the processor reports.

    By default torch builds and loads one or two C++ programs per instruction set, 6 to 9 s in all, to test whether all
    tools support it; a compile error reveals that as well. If this version of torch stores its sets elsewhere, it runs
    these tests.
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
                # Evaluating the truth value of a set would build the programs.
                believed = type(
                    instruction_set.__name__, (instruction_set,), {"__bool__": _always}
                )
                sets.append(believed())
    except Exception:  # only a shortcut: if it fails, torch runs its own tests
        logger.debug("the instruction sets are left to torch", exc_info=True)
        return contextlib.nullcontext()

    def list_sets() -> list[Any]:
        return sets

    return (
        _patched(instructions, list_of_sets, list_sets)
        if sets
        else contextlib.nullcontext()
    )


def separate_loops() -> contextlib.AbstractContextManager[None]:
    """Prevent inductor from fusing loops of different depth, which fails for tensors that are written in place.

    https://github.com/pytorch/pytorch/issues/196570, open as of torch 2.14. Without the name nothing changes.
    """
    scheduling = _found("torch._inductor.codegen.cpp", "CppScheduling")
    fusion = "can_fuse_vertical_outer_loop"
    if not hasattr(scheduling, fusion):
        return contextlib.nullcontext()
    return _patched(scheduling, fusion, _never)


def without_cached_graphs() -> contextlib.AbstractContextManager[None]:
    """Make inductor compile graphs even if they are in its cache. Without the name it loads them from the cache."""
    config = _found("torch._inductor", "config")
    if not hasattr(config, "fx_graph_cache"):
        return contextlib.nullcontext()
    return _patched(config, "fx_graph_cache", False)


def joins_uneven_inputs(module: Any) -> bool:
    """Whether a DistributedDataParallel module is inside `join()`, where some ranks may have no inputs left.

    Not if all ranks raise an error as soon as one has none left. Without the name the result is False.
    """
    config = getattr(module, "_join_config", None)
    return bool(
        getattr(config, "enable", False)
        and not getattr(config, "throw_on_early_termination", False)
    )


def zero_redundancy_calls() -> bool:
    """Whether a `ZeroRedundancyOptimizer` is creating this optimizer for the parameters of one rank."""
    module = sys.modules.get("torch.distributed.optim.zero_redundancy_optimizer")
    if module is None:
        return False
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_globals is module.__dict__:
            return True
        frame = frame.f_back
    return False
