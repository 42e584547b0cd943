"""The names of torch that are private, or that may move, and that gradtx needs.

`_tree` uses `torch.utils._pytree`. All names are looked up on use, so that importing gradtx never fails because of
them. Dynamo is not imported here.
"""

from __future__ import annotations

import contextlib
import functools
import operator
import sys
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

Function = TypeVar("Function", bound=Callable[..., Any])
_C: Any = torch._C  # torch declares few of its private names
VMAP_VIEWS_BITS = torch.__version__ >= "2.13"
# Whether dynamo calls functions of objects that exist before it traces, and takes the result for a constant.
TRACES_OBJECTS = torch.__version__ >= "2.13"


# Tensors.


def version_of(tensor: Tensor) -> int:
    """Return the number of in-place writes to a tensor; 0 for inference tensors, which do not count them."""
    return 0 if tensor.is_inference() else tensor._version


# The local shard of a DTensor, and its mesh and placements. `to_local()` and the properties call several functions of
# Python, which a step would do for each parameter and slot.
SHARD: Callable[[Any], Tensor] = operator.attrgetter("_local_tensor")
SPEC: Callable[[Any], Any] = operator.attrgetter("_spec")


def base_of(tensor: Tensor) -> Tensor | None:
    """Return the base tensor of a view; None for other tensors."""
    return tensor._base


def classes_of(loss: Tensor) -> int | None:
    """Return the number of classes of a loss that is a mean cross-entropy; None if it is not known to be one."""
    function: Any = loss.grad_fn
    if function is None or not function.name().startswith("NllLoss"):
        return None
    is_mean = getattr(function, "_saved_reduction", None) == 1
    for _ in range(3):  # views may be between the loss and its softmax
        (function, _), *_ = function.next_functions or ((None, 0),)
        if function is None or not is_mean:
            return None
        if function.name().startswith("LogSoftmax"):
            shape, dim = function._input_metadata[0].shape, function._saved_dim
            # Negative dimensions are those of a C++ integer without a sign.
            return int(shape[dim if dim < len(shape) else dim - 2**64])
    return None


def storage_id(tensor: Tensor) -> int:
    """Identify a tensor's storage for as long as the storage lives, also inside vmap and grad.

    If a transform cannot be unwrapped, the result identifies the tensor.
    """
    tensor = below_transforms(tensor)
    try:
        return tensor.untyped_storage()._cdata
    except NotImplementedError:
        return id(tensor)


# RuntimeErrors that another layout of a sharded tensor would not prevent.
NOT_OF_LAYOUT: tuple[type[RuntimeError], ...] = (
    RecursionError,
    torch.OutOfMemoryError,
    torch.AcceleratorError,
)
if torch.distributed.is_available():
    NOT_OF_LAYOUT = (*NOT_OF_LAYOUT, torch.distributed.DistError)


# Transforms: vmap, grad, and forward-mode derivatives.


def inside_transform() -> bool:
    """Whether a transform of `torch.func` is active."""
    return _C._functorch.peek_interpreter_stack() is not None


def is_transformed(tensor: Tensor) -> bool:
    """Whether a tensor represents values inside a transform."""
    return _C._functorch.is_functorch_wrapped_tensor(tensor)


def same_bits(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `tensor.view(dtype)` for a dtype of the same size, which `vmap` of older versions of torch cannot take."""
    if VMAP_VIEWS_BITS or torch.compiler.is_compiling() or not inside_transform():
        return tensor.view(dtype)
    return _SameBits.apply(tensor, dtype)


class _SameBits(torch.autograd.Function):
    """`Tensor.view` of a tensor and a dtype, with a rule for `vmap`."""

    @staticmethod
    def forward(*args: Any) -> Tensor:
        return Tensor.view(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return same_bits(*args), in_dims[0]


def readable(tensor: Tensor) -> bool:
    """Whether the host may read a tensor's value: it belongs to no transform and is not on the meta device."""
    return not (
        torch.compiler.is_compiling() or is_transformed(tensor) or tensor.is_meta
    )


def below_transforms(tensor: Tensor) -> Tensor:
    """Unwrap a transform's tensor."""
    while is_transformed(tensor):
        tensor = _C._functorch.get_unwrapped(tensor)
    return tensor


def current_backward() -> int:
    """Return the number of the backward pass that is running in this thread; a negative one if none is."""
    return _C._current_graph_task_id()


def after_backward(function: Callable[[], Any]) -> None:
    """Call a function when the backward pass that is running has ended, but not if it raises an error."""
    engine: Any = torch.autograd.Variable._execution_engine
    engine.queue_callback(function)


def alive(tensors: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """Return tensors without the levels of transforms that have ended, as graphs that outlive them may store.

    torch's operators do so themselves, `torch.func.vjp` does not.
    """
    unwrap = _C._functorch.unwrap_if_dead
    return tuple(unwrap(t) if is_transformed(t) else t for t in tensors)


def any_member(condition: Tensor) -> bool:
    """Whether a 0-d condition holds, inside `vmap` for any member; the host waits for its value."""
    return bool(below_transforms(condition).any())


def largest_of_members(value: Tensor) -> float:
    """Return a 0-d tensor's value, inside `vmap` the largest one of all members; NaN if one is NaN."""
    return below_transforms(value).max().item()


def is_batched(tensor: Tensor) -> bool:
    """Whether a `vmap` has batched a tensor, at any level."""
    while is_transformed(tensor):
        if _C._functorch.is_batchedtensor(tensor):
            return True
        tensor = _C._functorch.get_unwrapped(tensor)
    return False


def only_vmap() -> tuple[int, int] | None:
    """Return the level and the number of members of the active `vmap`; None if it is not the only transform."""
    from torch._C._functorch import TransformType

    interpreters = _C._functorch.get_interpreter_stack() or ()
    if len(interpreters) != 1 or interpreters[0].key() != TransformType.Vmap:
        return None
    size = _C._functorch.CVmapInterpreterPtr(interpreters[0]).batchSize()
    return interpreters[0].level(), size


def members_of(tensor: Tensor) -> tuple[Tensor, int | None]:
    """Return the values of all members that a tensor stands for, and their dimension; None if no `vmap` batched it."""
    dim = _C._functorch.maybe_get_bdim(tensor)
    return (tensor, None) if dim < 0 else (_C._functorch.get_unwrapped(tensor), dim)


def of_member(tensor: Tensor, dim: int | None, level: int) -> Tensor:
    """Return the tensor that stands for the values of all members, the reverse of `members_of`."""
    return tensor if dim is None else _C._functorch._add_batch_dim(tensor, dim, level)


@contextlib.contextmanager
def new_vmap(members: int) -> Generator[int, None, None]:
    """Enter a `vmap` over members, without random numbers, and return its level."""
    level: int = _C._functorch._vmap_increment_nesting(members, "error")
    try:
        yield level
    finally:
        _C._functorch._vmap_decrement_nesting()


def outside_transforms() -> contextlib.AbstractContextManager[Any]:
    """Return a context without the transforms that are active outside."""
    from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

    return temporarily_clear_interpreter_stack()


def added_products(
    plus: Tensor, x: Tensor, y: Tensor, *, beta: float = 1, alpha: float = 1
) -> Tensor:
    """Return what `torch.addmm` does; under `vmap` in one call, where torch makes several and rounds in each."""
    interpreter = _C._functorch.peek_interpreter_stack()
    if interpreter is None:
        return torch.addmm(plus, x, y, beta=beta, alpha=alpha)
    level = interpreter.level()
    size = _C._functorch.CVmapInterpreterPtr(interpreter).batchSize()
    plus = plus.expand(len(x), y.shape[1])
    operands = [
        _C._functorch._remove_batch_dim(operand, level, size, 0)
        for operand in (plus, x, y)
    ]
    product = torch.baddbmm(*operands, beta=beta, alpha=alpha)
    return _C._functorch._add_batch_dim(product, 0, level)


def forward_mode_active() -> bool:
    """Whether forward-mode derivatives are being computed."""
    return forward_ad._current_level >= 0


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
        if not is_transformed(tensor):
            return False
        tensor = _C._functorch.get_unwrapped(tensor)


def forward_levels(tensors: Iterable[Tensor]) -> int:
    """Return the number of enclosing `torch.func.jvp` at whose levels any of the tensors may have a tangent."""
    from torch._C._functorch import TransformType

    if not inside_transform():
        return 0
    forward: set[int] = set()
    for interpreter in _C._functorch.get_interpreter_stack():
        if interpreter.key() == TransformType.Jvp:
            forward.add(interpreter.level())
    found: set[int] = set()
    if len(forward) < 2:
        return len(forward)
    for tensor in tensors:
        while is_transformed(tensor):
            found.add(_C._functorch.maybe_get_level(tensor))
            tensor = _C._functorch.get_unwrapped(tensor)
    return len(forward & found)


def _is_dual(tensor: Tensor) -> bool:
    try:
        return forward_ad.unpack_dual(tensor).tangent is not None
    except RuntimeError:
        return False


# Ambient.


def may_be_ambient() -> bool:
    """Whether autocast or a default device may be set, which torch's own functions take 5 us to find out.

    A function mode sets the device. While dynamo traces, the result is True.
    """
    return (
        torch.compiler.is_compiling()
        or _C._is_any_autocast_enabled()
        or _C._len_torch_function_stack() > 0
    )


def without_gradients(method: Function) -> Function:
    """Let autograd record nothing in a method, as `torch.no_grad()` does in several times the time."""

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        records = torch.is_grad_enabled()
        _C._set_grad_enabled(False)
        try:
            return method(*args, **kwargs)
        finally:
            _C._set_grad_enabled(records)

    return call  # type: ignore[return-value]


# Dynamo, without importing it.


def assume_constant(function: Function) -> Function:
    """Make dynamo call a function while tracing, as `torch.compiler.assume_constant_result` does.

    That function imports dynamo only to set this attribute. If dynamo stops reading it, tracing such a function
    causes a graph break.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def not_traced(function: Function) -> Function:
    """Exclude a function from tracing, like `torch.compiler.disable`, which would import dynamo immediately."""
    disable: Any = torch._disable_dynamo
    return disable(function)


def kept_from_dynamo(function: Function) -> Function:
    """Exclude a function from tracing as `not_traced` does, but do not import dynamo, which traces once it is there."""
    untraced = not_traced(function)

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        is_imported = "torch._dynamo" in sys.modules
        return (untraced if is_imported else function)(*arguments, **options)

    return call  # type: ignore[return-value]


def with_own_code(function: Function) -> Function:
    """Give a function a code object of its own, because dynamo counts what it has compiled by code object.

    Otherwise functions that one `def` makes for several chains share the limit of 8, and later ones run uncompiled.
    """
    if not torch.compiler.is_dynamo_compiling():
        function.__code__ = function.__code__.replace()
    return function


# Optimizers.

Hooks: TypeAlias = list[Callable[..., Any]]


class TakesScaledGradients:
    """Tell `torch.amp.GradScaler` whether `step` itself unscales gradients and skips steps."""

    def takes_scaled_gradients(self) -> bool:
        raise NotImplementedError

    @property
    def _step_supports_amp_scaling(self) -> bool:
        return self.takes_scaled_gradients()


def is_called_by_checkpoint() -> bool:
    """Whether a function of `torch.distributed.checkpoint` for state dicts is running.

    It steps optimizers without state, with gradients and learning rates of 0, only to create their state.
    """
    return _is_called_by("torch.distributed.checkpoint.state_dict")


def is_called_by_scaler() -> bool:
    """Whether the `step` of an enabled `GradScaler` that has unscaled gradients is running."""
    return _is_called_by("torch.amp.grad_scaler", "_maybe_opt_step")


def _is_called_by(module: str, function: str | None = None) -> bool:
    """Whether a function of a module, or this one, is among the callers."""
    frame: Any = sys._getframe(2)
    while frame is not None:
        is_there = frame.f_globals.get("__name__") == module
        if is_there and function in (None, frame.f_code.co_name):
            return True
        frame = frame.f_back
    return False


def load_hooks(optimizer: torch.optim.Optimizer) -> tuple[Hooks, Hooks]:
    """Return the hooks registered to run before and after `load_state_dict`."""
    before = optimizer._optimizer_load_state_dict_pre_hooks
    after = optimizer._optimizer_load_state_dict_post_hooks
    return list(before.values()), list(after.values())


@contextlib.contextmanager
def around_save(optimizer: torch.optim.Optimizer) -> Generator[Hooks, None, None]:
    """Run the hooks before `state_dict`, and yield those after it; none runs inside the `with` block."""
    before = optimizer._optimizer_state_dict_pre_hooks
    after = optimizer._optimizer_state_dict_post_hooks
    for hook in list(before.values()):
        hook(optimizer)
    optimizer._optimizer_state_dict_pre_hooks = OrderedDict()
    optimizer._optimizer_state_dict_post_hooks = OrderedDict()
    try:
        yield list(after.values())
    finally:
        optimizer._optimizer_state_dict_pre_hooks = before
        optimizer._optimizer_state_dict_post_hooks = after


# Types of devices without graphs.
NEVER_CAPTURED = frozenset(("cpu",))


def is_captured(device: torch.device) -> bool:
    """Whether a graph, such as a CUDA graph, is capturing the device's current stream."""
    module = getattr(torch, device.type, None)  # such as torch.cuda
    asks = getattr(module, "is_current_stream_capturing", None)
    return asks is not None and asks()


def unscale_(gradients: list[Tensor], inverse: Tensor) -> None:
    """Multiply gradients by a 0-d float32 tensor in place."""
    torch._amp_foreach_non_finite_check_and_unscale_(
        gradients, torch.zeros_like(inverse), inverse
    )


def on_lists(name: str) -> Callable[..., Any] | None:
    """Return an operation on lists of tensors, such as "add" or "add_"; None if torch has none of this name."""
    return getattr(torch, f"_foreach_{name}", None)


def added_lists(xs: list[Tensor], ys: list[Tensor]) -> list[Tensor]:
    """Return the sum of each pair of tensors."""
    return list(torch._foreach_add(xs, ys))


def copy_each_(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copy each source into its target; there may be none."""
    if targets:
        torch._foreach_copy_(targets, sources)


def count_up_(targets: list[Tensor]) -> None:
    """Add 1 to each tensor."""
    if targets:
        # A Python scalar would be converted to a tensor for each target, which takes longer than the addition.
        increment = _one() if type(targets[0]) is Tensor else torch.ones(())
        torch._foreach_add_(targets, increment, alpha=1.0)


@functools.cache
def _one() -> Tensor:
    with torch.inference_mode(False):
        return torch.ones((), device="cpu")


# Modules.


def put_parameter(module: torch.nn.Module, name: str, tensor: Tensor) -> None:
    """Put a tensor, which need not be a parameter, in the place of a module's own parameter."""
    module._parameters[name] = tensor  # type: ignore[assignment]


def put_buffer(module: torch.nn.Module, name: str, tensor: Tensor) -> None:
    """Put a tensor in the place of a module's own buffer."""
    module._buffers[name] = tensor


# Recording.


def layout_check(tensors: Sequence[Tensor]) -> Callable[..., bool]:
    """Return a function that checks whether other tensors have the same dtypes, devices, shapes and strides as these.

    Dynamo's guards compare them in C++.
    """
    # None: all sizes and strides, as they are.
    guards = _C._dynamo.guards.TensorGuards(
        *tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None
    )
    return guards.check


@contextlib.contextmanager
def intercepting(
    call: Callable[[Any, tuple[Any, ...], dict[str, Any]], Any],
) -> Generator[None, None, None]:
    """Let `call(operator, args, kwargs)` execute every operation inside the block.

    Modes that were active before are disabled inside, so that nothing else observes these operations.
    """
    from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

    class Intercepting(TorchDispatchMode):
        @classmethod
        def _should_skip_dynamo(cls) -> bool:
            # True would import dynamo only to report that there is nothing to trace.
            return False

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            return call(func, args, kwargs or {})

    with _disable_current_modes(), Intercepting():
        yield


def without_modes() -> contextlib.AbstractContextManager[Any]:
    """Return a context without the modes that are active outside: new tensors inside have values."""
    if not is_intercepted():
        return contextlib.nullcontext()  # takes a fifth of the time of torch's
    from torch.utils._python_dispatch import _disable_current_modes

    return _disable_current_modes()


@contextlib.contextmanager
def as_at_top_level() -> Generator[None, None, None]:
    """Let a kernel differentiate: without the modes that are active outside, and with all of torch's dispatch keys.

    Modes that observe operators run kernels with the keys of derivatives and transforms switched off.
    """
    from torch.utils._python_dispatch import _disable_current_modes

    keys = _C._ForceDispatchKeyGuard(*_KEYS_OF_TOP_LEVEL)
    with _disable_current_modes(), keys, torch.enable_grad():
        yield


_KEYS_OF_TOP_LEVEL = (
    _C._dispatch_tls_local_include_set(),
    _C._dispatch_tls_local_exclude_set(),
)


@contextlib.contextmanager
def refusing_reads() -> Generator[None, None, None]:
    """Raise an error after a block that reads the value of a compiler's stand-in.

    The compiler represents such a value by a symbol, and would look for it among the results.
    """
    from torch._guards import detect_fake_mode

    mode: Any = detect_fake_mode()
    sizes = mode.shape_env
    pending = list(sizes.pending_fresh_unbacked_symbols)
    try:
        yield
        if len(sizes.pending_fresh_unbacked_symbols) > len(pending):
            raise ValueError("a rule reads a value that is not known yet")
    finally:
        sizes.pending_fresh_unbacked_symbols = pending


def is_intercepted() -> bool:
    """Whether a dispatch mode or dynamo observes operations."""
    if torch.compiler.is_compiling():
        return True
    return _dispatch_mode()() is not None


@functools.cache
def _dispatch_mode() -> Callable[[], Any]:
    from torch.utils._python_dispatch import _get_current_dispatch_mode

    return _get_current_dispatch_mode


def writes(target: Any) -> bool:
    """Whether an operator writes into an argument."""
    schema = getattr(target, "_schema", None)
    return schema is not None and schema.is_mutable


def makes_new_tensor(operator: Any) -> bool:
    """Whether results share no memory with arguments."""
    schema = operator._schema
    return all(
        value.alias_info is None for value in (*schema.arguments, *schema.returns)
    )


# Processors.


@assume_constant
def multiplies_in_bfloat16() -> bool:
    """Whether matrix products in bfloat16 are faster than in float32 on this processor.

    They are with AMX tiles. AVX-512 instructions for bfloat16 count on AMD's processors, where MKL multiplies float32
    with AVX2: on Zen 5, float32 takes 2 to 4.5 times as long from 128 columns on. On Intel's, float32 with conversions
    is 1.1 to 1.9 times faster than these instructions.
    """
    return _has_fast_bfloat16()


@functools.cache
def _has_fast_bfloat16() -> bool:
    if not hasattr(torch.cpu, "get_capabilities"):  # torch 2.10
        return False
    capabilities = torch.cpu.get_capabilities()
    if capabilities.get("architecture") != "x86_64":
        return True
    is_by_amd = str(capabilities.get("cpu_name", "")).startswith("AMD")
    by_vectors = is_by_amd and capabilities.get("avx512_bf16", False)
    return by_vectors or capabilities.get("amx_bf16", False)
