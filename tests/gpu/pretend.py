"""A GPU for machines without one: tensors on the device "pretend" hold their values on the CPU and obey CUDA's rules.

    with GPU.counting() as seen:
        optimizer.step()
    seen.launches, seen.waits, seen.peak

An operand on the host raises what CUDA raises, except where a GPU has taken it (tests/gpu/facts.py). Kernels are
counted, as one for each tensor where a call on lists leaves its fast route. So is what makes the host wait; while
steps are captured, waiting raises.
"""

from __future__ import annotations

import contextlib
import functools
import math
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from gradtx.base import exact, plain
from tests.gpu.seen import Seen

aten = torch.ops.aten
CPU = torch.device("cpu")
NAME = "pretend"

# Operations of a tensor on the device and a 0-d one on the host, which are any operand, or the one of this index.
EITHER_NAMES = (
    "add sub mul div pow maximum minimum fmax fmin atan2 fmod remainder rsub eq ne lt gt ge le copysign "
    "hypot xlogy floor_divide float_power bitwise_and bitwise_or true_divide"
)
EITHER = set(EITHER_NAMES.split())
OF_INDEX = {"logical_and": 1, "logical_or": 1, "logical_xor": 1, "fill": 1, "lerp": 2, "addcmul": 2, "masked_fill": 2}
WAITS_NAMES = (
    "_local_scalar_dense is_nonzero equal nonzero masked_select unique_consecutive _unique _unique2 "
    "unique_dim allclose histc bincount repeat_interleave linalg_matrix_exp linalg_eigh _linalg_eigh "
    "linalg_eigvalsh _linalg_svd linalg_svd linalg_svdvals linalg_cholesky linalg_inv linalg_solve "
    "_linalg_solve linalg_pinv linalg_lstsq linalg_ldl_factor_ex linalg_matrix_rank _linalg_check_errors"
)
WAITS = set(WAITS_NAMES.split())
# Those of several matrices wait, that of one does not.
WAITS_IN_BATCHES = {"cholesky_inverse", "cholesky_solve"}
VIEWS_NAMES = (
    "view _unsafe_view reshape alias detach expand permute transpose t numpy_T unsqueeze squeeze slice "
    "select as_strided split split_with_sizes unbind diagonal narrow movedim unflatten flatten lift_fresh "
    "view_as_real view_as_complex _reshape_alias is_same_size unfold mT broadcast_to chunk empty "
    "empty_like empty_strided new_empty new_empty_strided result_type"
)
VIEWS = set(VIEWS_NAMES.split())


class OnGpu(Tensor):
    """A tensor on the pretended GPU."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor, device: torch.device) -> OnGpu:
        return Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=device,
        )  # fmt: skip

    def __init__(self, inner: Tensor, device: torch.device):
        self.inner = inner

    def __repr__(self) -> str:
        return f"OnGpu({self.inner})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _from_host, (self.detach().inner.clone(), self.device.index, self.requires_grad)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copy = OnGpu(self.inner.clone(), self.device).requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            copy._is_param = True
        memo[id(self)] = copy
        return copy

    @property
    def data(self) -> Tensor:
        return Tensor.data.__get__(self)

    @data.setter
    def data(self, tensor: OnGpu) -> None:
        Tensor.data.__set__(self, tensor)
        self.inner = tensor.inner

    def untyped_storage(self) -> Any:
        return self.inner.untyped_storage()

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if not self.ndim else super().__format__(spec)

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def new_tensor(self, data: Any, **options: Any) -> Tensor:
        GPU.wait("a copy from pageable memory")
        return OnGpu(self.inner.new_tensor(data, **options), self.device)

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return GPU.call(func, args, kwargs or {})


plain.TYPES.add(OnGpu)


def _from_host(values: Tensor, index: int, requires_grad: bool) -> Tensor:
    return OnGpu(values, torch.device(NAME, index)).requires_grad_(requires_grad)


class PretendedGpu:
    """The rules of the device; `GPU` is the only one."""

    is_real = False
    name = NAME

    def __init__(self) -> None:
        self._seen: list[Seen] = []
        self._capturing = False
        self.is_there = False  # only within tests that use it: others run in the same process
        self._refuses_waits = False
        self._has_float64 = True
        self._holders: Counter[int] = Counter()  # tensors by storage

    # What tests ask for.

    def device(self, index: int = 0) -> torch.device:
        return torch.device(NAME, index)

    def to(self, tree: Any, index: int = 0) -> Any:
        """Move the tensors of a tree, parameters too."""

        def moved(x: Any) -> Any:
            if not isinstance(x, Tensor) or isinstance(x, OnGpu):
                return x
            tensor = OnGpu(x.detach().clone(), self.device(index))
            return torch.nn.Parameter(tensor, x.requires_grad) if isinstance(x, torch.nn.Parameter) else tensor

        return pytree.tree_map(moved, tree)

    @contextlib.contextmanager
    def counting(self) -> Iterator[Seen]:
        seen = Seen()
        self._seen.append(seen)
        try:
            yield seen
        finally:
            self._seen.remove(seen)

    @contextlib.contextmanager
    def capturing(self) -> Iterator[None]:
        """As in a block of `torch.cuda.graph`, what waits raises."""
        self._capturing = True
        try:
            yield
        finally:
            self._capturing = False

    @contextlib.contextmanager
    def without_waits(self) -> Iterator[None]:
        """As `torch.cuda.set_sync_debug_mode("error")`."""
        self._refuses_waits = True
        try:
            yield
        finally:
            self._refuses_waits = False

    @contextlib.contextmanager
    def without_float64(self) -> Iterator[None]:
        """As Apple's GPUs, on which a float64 tensor raises."""
        self._has_float64 = False
        before, exact.WITHOUT_FLOAT64 = exact.WITHOUT_FLOAT64, (NAME,)
        try:
            yield
        finally:
            self._has_float64, exact.WITHOUT_FLOAT64 = True, before

    def is_capturing(self) -> bool:
        return self._capturing

    # Memory.

    def _allocated(self, tensor: OnGpu, inputs: set[int]) -> None:
        """Count the memory of a new tensor until the last tensor over it dies, unless an input has this memory."""
        storage = tensor.inner.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._holders:
            if key in inputs:
                return
            self._hold(size)
        self._holders[key] += 1
        weakref.finalize(tensor, self._released, key, size).atexit = False

    def _hold(self, size: int) -> None:
        for seen in self._seen:
            seen.held += size
            seen.peak = max(seen.peak, seen.held)

    def _released(self, key: int, size: int) -> None:
        self._holders[key] -= 1
        if not self._holders[key]:
            del self._holders[key]
            self._hold(-size)

    # Operations.

    def call(self, func: Any, args: Any, kwargs: Any) -> Any:
        name = func.overloadpacket.__name__
        leaves = _tensors_in(args, kwargs)
        there = [x for x in leaves if type(x) is OnGpu]
        here = [x for x in leaves if type(x) is not OnGpu]
        device = there[0].device if there else torch.device(kwargs["device"])
        if device.index is None:
            device = torch.device(NAME, 0)
        if name == "_to_copy":
            return self._convert(func, args, kwargs, device)
        if name.rstrip("_") in ("copy", "_foreach_copy") and (here or _are_apart(there)):
            to_host = not isinstance(leaves[0], OnGpu)
            if here:
                does_not_block = len(args) > 2 and args[2]
                self.copy("a copy to the host" if to_host else "a copy from pageable memory", does_not_block)
            return self._run(func, args, kwargs, device, there, here)
        if _are_apart(there):
            raise _apart(func, there[0].device, there[-1].device)
        if here and not name.startswith("_foreach"):
            self._check_host_operands(func, name, args, here, device)
        is_mask = name.startswith("index") and any(x.dtype == torch.bool for x in there[1:])
        if name in WAITS or is_mask or (name in WAITS_IN_BATCHES and there[0].ndim > 2):
            self.wait(str(func))
        if name.startswith("_foreach"):
            self._check_lists(func, name, args, kwargs, here, device)
        return self._run(func, args, kwargs, device, there, here)

    def create(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        """Run an operation without a tensor on the device as operand: it creates one there."""
        return self.call(func, args, kwargs)

    def _check_host_operands(
        self, func: Any, name: str, args: Any, here: Sequence[Tensor], device: torch.device
    ) -> None:
        base = name.rstrip("_") if not name.startswith("__") else name
        if base == "where" and not any(x.ndim for x in here):
            self.wait(f"{func}: an operand on the host")
            return
        if base in ("index", "index_put"):
            if here[-1].dtype != torch.bool and here[-1].ndim:
                self.wait(f"{func}: an index on the host")
            return
        if any(x.ndim for x in here):
            raise _apart(func, device, CPU)
        if base in EITHER:
            return
        if base in OF_INDEX and len(here) == 1 and args[OF_INDEX[base]] is here[0]:
            return
        raise _apart(func, device, CPU)

    def _check_lists(
        self, func: Any, name: str, args: Any, kwargs: Any, here: Sequence[Tensor], device: torch.device
    ) -> None:
        base = name.removeprefix("_foreach_").rstrip("_")
        if not isinstance(args[0], (list, tuple)):  # a number to the power of a list
            return
        single = next((x for x in (*args[1:], *kwargs.values()) if isinstance(x, Tensor)), None)
        if func._overloadname == "Tensor" and base == "add" and single is not None and not isinstance(single, OnGpu):
            raise RuntimeError(f"scalar tensor expected to be on {device} but is on cpu")
        takes_vector = base in ("addcmul", "addcdiv")  # of factors, on the host
        is_mixed = any(not isinstance(x, OnGpu) for x in args[0]) or any(x.ndim for x in here)
        if is_mixed and not takes_vector:
            raise _apart(func, device, CPU)
        if takes_vector and isinstance(single, OnGpu) and single.ndim:
            raise RuntimeError(f"Expected scalars to be on CPU, got {device} instead.")

    def _convert(self, func: Any, args: Any, kwargs: Any, device: torch.device) -> Any:
        source, target = args[0], kwargs.get("device")
        target = source.device if target is None else torch.device(target)
        if target.type == NAME and source.device.type == NAME:
            index = target.index or 0
            return self._run(func, args, kwargs, torch.device(NAME, index), [source], [])
        if target.type != NAME:
            self.copy("a copy to the host", kwargs.get("non_blocking"))
            return func(source.inner, *args[1:], **kwargs)
        self.copy("a copy from pageable memory", kwargs.get("non_blocking"))
        return self._run(func, args, kwargs, torch.device(NAME, target.index or 0), [], [source])

    def _run(
        self, func: Any, args: Any, kwargs: Any, device: torch.device, there: Sequence[OnGpu], here: Sequence[Tensor]
    ) -> Any:
        if kwargs.get("device") is not None:
            kwargs = {**kwargs, "device": CPU}
        results = func(*map(_inner, args), **{name: _inner(x) for name, x in kwargs.items()})
        self._count(func, args, there, here)
        given = {id(x.inner): x for x in there}
        memory = {x.inner.untyped_storage()._cdata for x in there} if self._seen else set()
        return results if any(results is x for x in here) else self._outer(results, device, given, memory)

    def _outer(self, x: Any, device: torch.device, given: dict[int, OnGpu], memory: set[int]) -> Any:
        """Put results on the device. No closure: a recursive one is a cycle, which would keep the operands alive."""
        if isinstance(x, (list, tuple)):
            items = [self._outer(item, device, given, memory) for item in x]
            return type(x)(items) if type(x) in (list, tuple) else type(x)(*items)
        if not isinstance(x, Tensor):
            return x
        if id(x) in given:
            return given[id(x)]
        if x.dtype == torch.float64 and not self._has_float64:
            raise TypeError(f"{device} has no float64")
        tensor = OnGpu(x, device)
        if self._seen:
            self._allocated(tensor, memory)
        return tensor

    def copy(self, what: str, does_not_block: Any) -> None:
        """Copy between the device and pageable memory, which no capture allows."""
        if not does_not_block or self._capturing:
            self.wait(what)

    def wait(self, what: str) -> None:
        for seen in self._seen:
            seen.waits[what] += 1
        if self._capturing:
            raise RuntimeError(f"operation not permitted when stream is capturing: {what}")
        if self._refuses_waits:
            raise RuntimeError(f"called a synchronizing CUDA operation: {what}")

    def launched(self, kernel: str) -> None:
        """Count the launch of a kernel that torch knows nothing of."""
        for seen in self._seen:
            seen.launches += 1
            seen.kernels[kernel] += 1

    def _count(self, func: Any, args: Any, there: Sequence[OnGpu], here: Sequence[Tensor]) -> None:
        if not self._seen:
            return
        name = func.overloadpacket.__name__
        if name in VIEWS:
            return
        launches = 1
        is_fast = True
        if name.startswith("_foreach"):
            lists = [a for a in args if isinstance(a, (list, tuple)) and a and isinstance(a[0], Tensor)]
            is_fast = not lists or _is_fast(func, lists, args)
            # A launch of a fast route takes some dozens of tensors.
            launches = math.ceil(len(lists[0]) / 60) if is_fast and lists else len(lists[0]) if lists else 1
            if is_fast and name in ("_foreach_norm", "_foreach_max"):
                launches += 2  # they fill their result, and add up parts
        moved = sum(x.numel() * x.element_size() for x in there)
        for seen in self._seen:
            seen.launches += launches
            seen.kernels[name] += launches
            seen.bytes += moved
            if not is_fast:
                seen.slow[str(func)] += launches


def _tensors_in(args: Any, kwargs: Any) -> list[Tensor]:
    found = []
    for x in (*args, *kwargs.values()):
        if isinstance(x, Tensor):
            found.append(x)
        elif isinstance(x, (list, tuple)):
            found += [item for item in x if isinstance(item, Tensor)]
    return found


def _inner(x: Any) -> Any:
    if type(x) is OnGpu:
        return x.inner
    if isinstance(x, (list, tuple)):
        return [_inner(item) for item in x]
    return x


def _are_apart(there: Sequence[OnGpu]) -> bool:
    return any(x.device != there[0].device for x in there)


def _apart(func: Any, first: torch.device, second: torch.device) -> RuntimeError:
    return RuntimeError(
        f"Expected all tensors to be on the same device, but found at least two devices, {first} and {second}! "
        f"(when calling {func})"
    )


def _is_fast(func: Any, lists: Sequence[Any], args: Any) -> bool:
    """Whether an operation on lists takes its fast route."""
    copies = func.overloadpacket.__name__ == "_foreach_copy_"
    first = lists[0][0]
    for tensors in lists:
        # A copy converts, from one dtype to one.
        dtype = tensors[0].dtype if copies else first.dtype
        if any(x.dtype != dtype for x in tensors):
            return False
    for row in zip(*lists, strict=True):
        if any(x.shape != row[0].shape or x.stride() != row[0].stride() for x in row):
            return False
    if not all(_is_dense(x) for x in lists[0]):
        return False
    if any(not isinstance(x, OnGpu) for tensors in lists for x in tensors):
        return False
    singles = [x for x in args if isinstance(x, OnGpu)]
    return all(x.dtype == first.dtype for x in singles)


def _is_dense(x: Tensor) -> bool:
    expected = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


class _Module:
    """What torch asks the module of a device."""

    def is_available(self) -> bool:
        return GPU.is_there

    def is_initialized(self) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return False

    def device_count(self) -> int:
        return 2

    def current_device(self) -> int:
        return 0

    def manual_seed_all(self, seed: int) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]

    def is_current_stream_capturing(self) -> bool:
        return GPU.is_capturing()

    def synchronize(self, device: Any = None) -> None:
        GPU.wait("synchronize")


GPU = PretendedGpu()
_setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
_ALL = torch.library.Library("_", "IMPL")
_ALL.fallback(GPU.create, "PrivateUse1")
_ATEN = torch.library.Library("aten", "IMPL")
# These would resize an empty tensor, which keeps its shape outside.
RESIZING = "eye eye.m arange arange.start arange.start_step linspace logspace randperm tril_indices triu_indices"
for _name in RESIZING.split():
    _packet, _, _overload = _name.partition(".")
    _operator = getattr(getattr(aten, _packet), _overload or "default")
    _ATEN.impl(_name, functools.partial(GPU.create, _operator), "PrivateUse1")


@contextlib.contextmanager
def seeing_constants() -> Iterator[None]:
    """Imitate what goes around all dispatch: `torch.tensor` and `torch.as_tensor` wait, and tensors have addresses."""
    before = torch.tensor, torch.as_tensor, Tensor.data_ptr
    torch.tensor, torch.as_tensor = _made(torch.tensor), _made(torch.as_tensor)
    Tensor.data_ptr = lambda tensor: before[-1](tensor.inner if isinstance(tensor, OnGpu) else tensor)
    GPU.is_there = True
    try:
        yield
    finally:
        torch.tensor, torch.as_tensor, Tensor.data_ptr = before
        GPU.is_there = False


def _made(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def made(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        if device is None or torch.device(device).type != NAME or isinstance(data, OnGpu):
            return function(data, *args, device=device, **kwargs)
        GPU.wait("a copy from pageable memory")
        return OnGpu(function(data, *args, **kwargs), torch.device(NAME, torch.device(device).index or 0))

    return made
