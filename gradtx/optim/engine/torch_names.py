"""The private names of torch that compiled steps need: the symbolic tracer and inductor.

`missing_name` checks once per process that this version of torch has all of them. Without one, steps run as by default.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import re
import warnings
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from gradtx.base.torch_names import writes

logger = logging.getLogger("gradtx")

SHAPES = "torch.fx.experimental.symbolic_shapes"
# The module of each name. Those of inductor are looked up on use, because importing it takes a second.
NAMES = {
    "make_fx": "torch.fx.experimental.proxy_tensor",
    "ConstantSource": "torch._dynamo.source",
    "StatelessSymbolicContext": SHAPES,
    "DimDynamic": SHAPES,
    "ShapeEnv": SHAPES,
    "uninteresting_files": SHAPES,
    "TracingContext": "torch._guards",
    "tracing": "torch._guards",
    "FakeTensorMode": "torch._subclasses.fake_tensor",
    "compile": "torch._inductor",
    "list_mode_options": "torch._inductor",
    "list_options": "torch._inductor",
    "compile_fx_inner": "torch._inductor.compile_fx",
    "patch": "torch._inductor.config",
    "V": "torch._inductor.virtualized",
    "pick_vec_isa": "torch._inductor.cpu_vec_isa",
    "valid_vec_isa_list": "torch._inductor.cpu_vec_isa",
    "x86_isa_checker": "torch._inductor.cpu_vec_isa",
    "realize": "torch._inductor.test_operators",
    "select_decomp_table": "torch._inductor.decomposition",
    "InductorError": "torch._inductor.exc",
    "CppScheduling": "torch._inductor.codegen.cpp",
}


def _named(name: str) -> Any:
    return getattr(importlib.import_module(NAMES[name]), name)


@functools.cache
def missing_name() -> str | None:
    """Return the first private name that this version of torch lacks; None if it has all of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's modules at their first import
        for name, module in NAMES.items():
            try:
                _named(name)
            except (ImportError, AttributeError):
                return f"{module}.{name}"
    return None


class SymbolicTracer:
    """Trace a function of tensors into a graph that is valid for all sizes of its arguments."""

    def __init__(self) -> None:
        # Without duck shapes, two sizes that happen to be equal remain distinct symbols.
        self._sizes = _named("ShapeEnv")(duck_shape=False)
        fake_mode = _named("FakeTensorMode")
        self._mode = fake_mode(shape_env=self._sizes, allow_non_fake_inputs=True)

    def fixed(self, tensor: Tensor) -> Tensor:
        """Create a stand-in for a tensor whose shape never changes."""
        return self._mode.from_tensor(tensor, static_shapes=True)

    def resizable(self, tensor: Tensor, name: str, only_length: bool) -> Tensor:
        """Create a stand-in for a tensor whose sizes, or only the first one, may change, except those that are 1."""
        kinds = _named("DimDynamic")
        dynamic = []
        for dim, size in enumerate(tensor.shape):
            is_fixed = size == 1 or (only_length and dim > 0)
            dynamic.append(kinds.STATIC if is_fixed else kinds.DYNAMIC)
        context = _named("StatelessSymbolicContext")(dynamic_sizes=dynamic)
        source = _named("ConstantSource")(name)
        with _unattributed_sizes():
            return self._mode.from_tensor(
                tensor, symbolic_context=context, source=source
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
        make_graph = _named("make_fx")
        table = {**decompositions(), **replaced}
        with self._mode, torch.no_grad(), _unattributed_sizes():
            return make_graph(function, decomposition_table=table)(*arguments)

    def assumptions(
        self, arguments: Sequence[Tensor]
    ) -> Callable[[Sequence[Tensor]], bool]:
        """Return whether tensors satisfy the assumptions made so far about the sizes of `arguments`, as a function."""
        text = self._sizes.produce_guards_expression(arguments, ignore_static=False)

        def satisfy(tensors: Sequence[Tensor]) -> bool:
            return not text or self._sizes.evaluate_guards_expression(text, tensors)

        return satisfy

    @contextlib.contextmanager
    def compiling(self) -> Generator[None, None, None]:
        """Set up the context in which traced graphs are compiled."""
        context = _named("TracingContext")(self._mode)
        with _named("tracing")(context), torch.no_grad():
            yield


@contextlib.contextmanager
def observing(
    check: Callable[[Any, tuple[Any, ...]], None],
) -> Generator[None, None, None]:
    """Call `check(operator, args)` before every operation inside the block, which then executes as usual."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Observing(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            check(func, args)
            return func(*args, **(kwargs or {}))

    with Observing():
        yield


def _unattributed_sizes() -> contextlib.AbstractContextManager[None]:
    """Let torch's logs attribute sizes to the innermost function; searching for the user's imports `torch.export`.

    That search takes a quarter of the first step of a process.
    """
    shapes = importlib.import_module(SHAPES)
    # With no file at all, a function there would return its own frame, a reference cycle that keeps gradients alive.
    own_file = frozenset([shapes.__file__])
    return _patched(shapes, "uninteresting_files", lambda: own_file)


# Options that the engine itself sets.
OWN_OPTIONS = {"size_asserts", "cpp.threads", "realize_reads_threshold"}


def compiler_modes() -> Mapping[str, dict[str, Any]]:
    """Return the modes of `torch.compile` and the options of each."""
    return _named("list_mode_options")()


def compiler_option_names() -> Collection[str]:
    """Return the names of the compiler's options."""
    return _named("list_options")()


def _compiles_at_once(graph: torch.fx.GraphModule, options: Mapping[str, Any]) -> bool:
    """Whether a graph goes directly to inductor's inner compiler, without AOTAutograd."""
    # A replacement expects to receive the graphs.
    if _named("compile").__module__ != "torch._inductor":
        return False
    return options.keys() <= OWN_OPTIONS and _is_ready_for_inductor(graph)


def compile_graph(
    graph: Any, examples: Sequence[Any], options: Mapping[str, Any]
) -> Callable[..., Any]:
    """Compile a traced graph with inductor."""
    if _compiles_at_once(graph, options):
        return _compiled_at_once(graph, examples, options)
    compiler = _named("compile")
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
) -> Callable[..., Any]:
    """Compile a graph with inductor's inner compiler.

    The outer compiler has AOTAutograd trace the graph again, which takes a third of the compile time, and checks
    arguments at each call.
    """
    compiler = _named("compile_fx_inner")
    settings = _named("patch")
    fake_mode = _named("V").set_fake_mode(examples[0].fake_mode)
    copy = torch.fx.Graph()  # the compiler modifies its input, and may fail
    results = cast("Sequence[Any]", copy.graph_copy(graph.graph, {}))
    _keep_in_memory(copy)
    copy.output(tuple(results)).meta["user_visible_output_idxs"] = list(
        range(len(results))
    )
    with settings({**_vector_width(), **options}), fake_mode:
        compiled = compiler(
            torch.fx.GraphModule(graph, copy), examples, is_inference=True
        )
    # The new list is emptied by the function.
    return _kernels_of(compiled) or (lambda *arguments: compiled(list(arguments)))


def _vector_width() -> dict[str, int]:
    """Return the option for the width of vectors that inductor would choose on this processor.

    The key of inductor's cache omits the processor but includes options. Without this one, processors of different
    kinds that share the cache run kernels generated for wider or narrower vectors, which skip entries.
    """
    chosen = _named("pick_vec_isa")()
    return {"cpp.simdlen": chosen.bit_width()}


# The names that the method of a compiled graph may use besides its kernels.
USED_BY_KERNELS = {
    *("torch", "clear", "size"),
    *("assert_size_stride", "assert_size_stride_grouped"),
    *("empty_strided_cpu", "reinterpret_tensor"),
    *("float64", "float32", "bfloat16", "float16", "float8_e4m3fn"),
    *("int64", "int32", "int16", "int8", "uint8", "bool"),
}
METHOD = re.compile(r"^    def call\(self, args\):\n(?:        .*\n|\n)+", re.MULTILINE)


class RunKernels:
    """A compiled graph that only calls kernels, as a function of its arguments.

    Args:
        text: The source of its method, which accepts a list of arguments and passes them to kernels.
        call: The method.
    """

    def __init__(self, text: str, call: Callable[..., Any]):
        self.text = text
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(None, list(arguments))


def _kernels_of(compiled: Any) -> RunKernels | None:
    """Return a compiled graph without what inductor does around each call; None if the graph is too complex."""
    text = METHOD.search(getattr(compiled, "source_code", None) or "")
    bound = getattr(compiled, "current_callable", None)
    call = getattr(bound, "__func__", None)
    if text is None or call is None or getattr(compiled, "constants", True):
        return None
    for name in set(call.__code__.co_names) - USED_BY_KERNELS:
        kernel = getattr(call.__globals__.get(name), "__self__", None)
        if getattr(kernel, "__file__", None) is None:
            return None
    return RunKernels(text[0], call)


def reads_only_memory(function: Callable[..., Any], sized: Collection[str]) -> bool:
    """Whether a compiled graph passes its arguments to kernels as addresses, and reads the sizes of only some of them.

    Args:
        function: The compiled graph.
        sized: The names of the arguments whose sizes it may read.
    """
    if not isinstance(function, RunKernels):
        return False
    read = set(re.findall(r"(\w+)\.size\(\)", function.text))
    return "assert_size_stride" not in function.text and read <= set(sized)


def _keep_in_memory(graph: torch.fx.Graph) -> None:
    """Make inductor write some values to memory that it would otherwise recompute wherever they are read."""
    # This defines the operator.
    importlib.import_module("torch._inductor.test_operators")
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
    """Return inductor's decompositions of operators."""
    return _named("select_decomp_table")()


def asserts_bind_sizes() -> bool:
    """Whether compiled programs need their size assertions, because these also define the names of the sizes.

    This is the case from torch 2.14 on: without the assertions, programs fail with a NameError.
    """
    major, minor = torch.__version__.split(".")[:2]
    return (int(major), int(minor)) >= (2, 14)


def compile_error() -> type[Exception]:
    """Return the exception that inductor raises when it fails on a graph."""
    return _named("InductorError")


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
    tools support it; a compile error reveals that as well.
    """
    instructions = importlib.import_module("torch._inductor.cpu_vec_isa")
    config = importlib.import_module("torch._inductor.config")
    sets = []
    if config.cpp.vec_isa_ok is None:
        named = instructions.x86_isa_checker()
        known = {"avx512": instructions.VecAVX512, "avx2": instructions.VecAVX2}
        for name, instruction_set in known.items():
            if name in named:
                # Evaluating the truth value of a set would build the programs.
                believed = {"__bool__": _always}
                sets.append(
                    type(instruction_set.__name__, (instruction_set,), believed)()
                )
    if not sets:
        return contextlib.nullcontext()
    return _patched(instructions, "valid_vec_isa_list", lambda: sets)


def separate_loops() -> contextlib.AbstractContextManager[None]:
    """Prevent inductor from fusing loops of different depth, which fails for tensors that are written in place.

    https://github.com/pytorch/pytorch/issues/196570, open as of torch 2.14.
    """
    scheduling = _named("CppScheduling")
    return _patched(scheduling, "can_fuse_vertical_outer_loop", _never)
