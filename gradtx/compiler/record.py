"""Record the operations of a function of tensors by running it once on stand-ins, which have shapes but no values."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.node import map_aggregate

from gradtx.base import torch_names as _torch
from gradtx.base.errors import UnknownInProgramError
from gradtx.base.forward import Operation
from gradtx.base.messages import line_of_user
from gradtx.compiler.liveness import FILLING

aten = torch.ops.aten
CPU = torch.device("cpu")
META = torch.device("meta")
USUAL_FORMATS = (None, torch.preserve_format, torch.contiguous_format)


class UnrecordableError(Exception):
    """A function does something that a recording cannot repeat; the message names it."""


def reason_of(error: Exception) -> str:
    """Return why a rule cannot be recorded, with the line of the rule if a user has written it."""
    if isinstance(error, UnknownInProgramError):
        return str(error)
    reason = str(error)
    if not isinstance(error, UnrecordableError):
        reason = f"{type(error).__name__}: {error}"
    return f"{reason}{line_of_user(error)}"


def _write_nothing() -> None:
    """Write nothing."""


@dataclass
class PhaseResult:
    """The outcome of a phase.

    Attributes:
        outputs: The sums over the leaves of the bundle; in the last phase, new values, such as shared ones.
        names: The name of each output.
        operation: The operation that waits for the sums; None in the last phase.
        write: Writes the new values into the arguments, after everything is computed.
    """

    outputs: list[Tensor]
    names: tuple[Any, ...]
    operation: Operation | None
    write: Callable[[], None] = _write_nothing


@dataclass
class Recording:
    """The operations of a function, as a graph whose nodes store their stand-ins in `meta["val"]`.

    Attributes:
        graph: The graph. It ends with the operations that write arguments.
        scalars: The nodes of the 0-d arguments that all leaves share.
        leaves: The nodes of a leaf's arguments.
        outputs: The nodes of the results.
        owned: The nodes of operations that the owner of a leaf computes; `meta["operation"]` is the operation,
            `meta["payload"]` the names and dtypes of its inputs.
        result: What the function returned.
    """

    graph: Graph
    scalars: list[Node]
    leaves: list[Node]
    outputs: list[Node]
    owned: list[Node]
    result: PhaseResult

    def text(self) -> str:
        """Return a text of operations and constants that is equal for recordings of the same program."""
        lines: list[str] = []
        # Equality of shapes and strides matters, not their values.
        layouts: dict[Any, int] = {}
        for node in self.graph.nodes:
            value = node.meta.get("val")
            kind = (type(value), node.meta.get("as_written"))
            if isinstance(value, Tensor):
                layout = layouts.setdefault((value.shape, value.stride()), len(layouts))
                kind = (*kind, value.dtype, value.ndim == 0, layout)
            lines.append(f"{node.name} {node.target} {node.args} {node.kwargs} {kind}")
        lines.append(str(self.outputs))
        return "\n".join(lines)

    def copy(self) -> Recording:
        """Return a copy with other nodes, whose values are the same stand-ins."""
        graph = Graph()
        copies: dict[Node, Node] = {}
        graph.graph_copy(self.graph, copies)
        lists = (self.scalars, self.leaves, self.outputs, self.owned)
        copied = ([copies[node] for node in nodes] for nodes in lists)
        return Recording(graph, *copied, result=self.result)


# Operations of inference tensors would be recorded before torch decomposes them.
@torch.inference_mode(False)
def record(
    function: Callable[[list[Tensor]], PhaseResult],
    scalars: Sequence[torch.dtype],
    leaves: Sequence[tuple[torch.dtype, Sequence[int]]],
    device: torch.device = META,
    flags: Sequence[bool] = (),
) -> Recording:
    """Record a function of 0-d tensors and of the tensors of one leaf.

    Args:
        function: Accepts `[*scalars, *leaves]`. Its result writes into the arguments of the leaf.
        scalars: The dtypes of the arguments that all leaves share.
        leaves: The dtype and the shape of each of a leaf's arguments.
        device: The device of the leaves, for functions that call `device_of`.
        flags: Whether each of a leaf's arguments requires gradients, where autograd is to record the operations
            when they are repeated; empty where it records nothing.

    Raises:
        UnrecordableError: If the function reads a value, draws random numbers, uses a tensor from elsewhere, or writes
            in place itself.
    """
    recorder = _Recorder(device, bool(flags))
    scalar_nodes = [
        recorder.argument(f"scalar{i}", dtype, ()) for i, dtype in enumerate(scalars)
    ]
    leaf_nodes = [recorder.argument(f"leaf{i}", *leaf) for i, leaf in enumerate(leaves)]
    for tensor, flag in zip(recorder.arguments[len(scalars) :], flags, strict=False):
        tensor.requires_grad_(flag)
    _ACTIVE.recorders.append(recorder)
    try:
        with torch.set_grad_enabled(bool(flags)), _torch.intercepting(recorder.call):
            result = function(list(recorder.arguments))
            if result.operation is not None and recorder.opaque:
                raise UnrecordableError(
                    f"a sum over leaves follows {recorder.opaque[0].name}, which would run twice"
                )
            recorder.may_write = True
            result.write()
    finally:
        _ACTIVE.recorders.pop()
    outputs = [recorder.node_of(output) for output in result.outputs]
    if not recorder.fuses:
        for node in recorder.graph.nodes:
            node.meta["as_written"] = True
    nodes = (scalar_nodes, leaf_nodes, outputs, recorder.owned)
    return Recording(recorder.graph, *nodes, result)


def device_of(tensor: Tensor) -> torch.device:
    """Return the device of a tensor, or the leaves' device if it is a stand-in of a function being recorded."""
    return (
        _ACTIVE.recorders[-1].device
        if tensor.is_meta and _ACTIVE.recorders
        else tensor.device
    )


@contextmanager
def as_written() -> Generator[None, None, None]:
    """Exclude the operations inside from fusion, if they are being recorded."""
    if not _ACTIVE.recorders:
        yield
        return
    recorder = _ACTIVE.recorders[-1]
    before, recorder.as_written = recorder.as_written, True
    try:
        yield
    finally:
        recorder.as_written = before


def record_as_written() -> None:
    """Exclude all operations of the function being recorded, if there is one, from fusion."""
    if _ACTIVE.recorders:
        _ACTIVE.recorders[-1].fuses = False


def owned(payload: Mapping[str, Tensor], operation: Any) -> Tensor:
    """Return the update after an operation that the owner of a leaf computes, in a function being recorded."""
    return _ACTIVE.recorders[-1].owner_computes(payload, operation)


def as_one(
    function: Callable[[Tensor], tuple[Tensor, ...]],
    x: Tensor,
    shapes: Sequence[Sequence[int]],
) -> tuple[Tensor, ...]:
    """Return `function(x)`; if it is being recorded, as one operation of a program, which may read values.

    The function belongs to a module, because programs refer to it. It returns new tensors with the dtype of `x` and
    these shapes.
    """
    if not _ACTIVE.recorders:
        return function(x)
    return _ACTIVE.recorders[-1].call_as_one(function, x, shapes)


class _Active(threading.local):
    """The recorders of a thread, innermost last."""

    def __init__(self) -> None:
        self.recorders: list[Any] = []


_ACTIVE = _Active()


def _computed_by_owner(*payload: Tensor) -> Tensor:
    """Represent an operation that the owner of a leaf computes; programs are cut there."""
    raise AssertionError("a program was not cut")


class _Recorder:
    """Execute operations on stand-ins and add each to a graph."""

    def __init__(self, device: torch.device, differentiable: bool) -> None:
        self.graph = Graph()
        self.device = device
        self.differentiable = differentiable
        # Keyed by the id of the stand-in, which `meta` keeps alive.
        self._nodes: dict[int, Node] = {}
        self.arguments: list[Tensor] = []  # their stand-ins
        self.may_write = False
        self.as_written = False
        self.fuses = True
        self.owned: list[Node] = []
        self.opaque: list[Node] = []  # the operations of `as_one`
        self._unchanged: list[Tensor] = []  # keeps their ids unique

    def argument(self, name: str, dtype: torch.dtype, shape: Sequence[int]) -> Node:
        stand_in = torch.empty(tuple(shape), dtype=dtype, device=META)
        node = self.graph.placeholder(name)
        self._name(stand_in, node)
        self.arguments.append(stand_in)
        return node

    def node_of(self, tensor: Tensor) -> Node:
        node = self._nodes.get(id(tensor))
        if node is None:
            raise UnrecordableError("the rule uses a tensor from outside")
        return node

    def call(self, operator: Any, args: Any, kwargs: Any) -> Any:
        """Execute and record one operation."""
        properties = _OperatorProperties.of(operator)
        if self.differentiable and not torch.is_grad_enabled():
            raise UnrecordableError(
                f"the rule has a derivative of its own ({operator})"
            )
        if properties.reads_value:
            # Values computed from arguments are on the meta device, constants are not.
            if args[0].device.type != "cpu":
                raise UnrecordableError(
                    f"the rule reads the value of a tensor ({operator})"
                )
            return operator(*args, **kwargs)
        if properties.is_random:
            raise UnrecordableError(f"the rule draws random numbers ({operator})")
        if operator is aten.lift_fresh.default:
            return self._constant(args[0])
        if operator in OF_SOME_ENTRIES and not args[0].numel():
            # On the meta device it is no error.
            raise UnrecordableError(f"there is no entry for {operator}")
        if "device" in kwargs and operator is aten._to_copy.default:
            kwargs = {**kwargs, "device": self._stand_in_device(kwargs["device"])}
        result = _result_of(operator, args, kwargs)
        if not _holds_tensors(result):
            return result  # such as the common dtype of two tensors
        if operator in SHAPING and _has_same_layout(result, args[0]):
            # Without an operation, programs of leaves with other shapes remain equal.
            self._nodes[id(result)] = self.node_of(args[0])
            self._unchanged.append(result)
            return result
        if operator in VIEWS:
            args = args[0], _of_any_length(result.shape)
        node = self._node_for(operator, properties.name, args, kwargs)
        if properties.writes:
            if not self.may_write or not any(
                args[0] is argument for argument in self.arguments
            ):
                raise UnrecordableError(
                    f"the rule writes to a tensor in place ({operator})"
                )
            node.meta["val"] = result
        else:
            self._name(result, node)
        return result

    def _stand_in_device(self, target: torch.device | None) -> torch.device:
        """Return what stands in for the leaves' device, where all values remain, as the target of a copy."""
        if target is not None and target.type not in (META.type, self.device.type):
            raise UnrecordableError(f"the rule moves a tensor to {target}")
        return META

    def _node_for(self, operator: Any, name: str, args: Any, kwargs: Any) -> Node:
        """Create the node of an operation, with a name that torch would otherwise derive each time."""
        node = self.graph.create_node("call_function", operator, name=name)
        # Set here, because `create_node` searches its arguments for symbolic sizes.
        node.args = self._recorded(args)
        if kwargs:
            node.kwargs = self._recorded(kwargs)
        node.meta["as_written"] = self.as_written
        return node

    def owner_computes(self, payload: Mapping[str, Tensor], operation: Any) -> Tensor:
        """Record the computation of a leaf's owner as one operation."""
        update = payload["update"]
        node = self.graph.call_function(
            _computed_by_owner, tuple(map(self.node_of, payload.values()))
        )
        node.meta["operation"] = operation
        node.meta["payload"] = {name: tensor.dtype for name, tensor in payload.items()}
        with _torch.without_modes():
            stand_in = torch.empty_strided(
                update.shape, update.stride(), dtype=update.dtype, device=META
            )
        self.owned.append(node)
        self._name(stand_in, node)
        return stand_in

    def call_as_one(
        self,
        function: Callable[[Tensor], tuple[Tensor, ...]],
        x: Tensor,
        shapes: Sequence[Sequence[int]],
    ) -> tuple[Tensor, ...]:
        """Record a function as one operation."""
        node = self.graph.call_function(function, (self.node_of(x),))
        with _torch.without_modes():
            results = tuple([x.new_empty(tuple(shape)) for shape in shapes])
        self._name(results, node)
        node.meta["opaque"] = True
        self.opaque.append(node)
        return results

    def _constant(self, tensor: Tensor) -> Tensor:
        """Record a tensor that the function creates from Python scalars, such as `torch.tensor(1.0)`."""
        if tensor.ndim or tensor.device.type != "cpu":
            raise UnrecordableError("the rule creates a tensor from Python numbers")
        options = {"dtype": tensor.dtype, "device": META}  # that of the leaves
        arguments = [], tensor.item()
        node = self.graph.call_function(aten.full.default, arguments, options)
        self._name(tensor, node)
        return tensor

    def _recorded(self, value: Any) -> Any:
        """Return the arguments of an operation with nodes in place of tensors."""

        def node_or_value(item: Any) -> Any:
            return self.node_of(item) if isinstance(item, Tensor) else item

        return map_aggregate(value, node_or_value)

    def _name(self, result: Any, node: Node) -> None:
        node.meta["val"] = result
        if isinstance(result, Tensor):
            self._nodes[id(result)] = node
            return
        for i, item in enumerate(result):
            if isinstance(item, Tensor):
                part = self.graph.call_function(_item, (node, i))
                part.meta["val"] = item
                self._nodes[id(item)] = part


# Operations that torch does not tag as pointwise, although their result has the shape of their tensors.
SHAPED_AS_ARGUMENTS = (aten._to_copy.default, *FILLING)
WITHOUT_DIMENSION = (aten.sum.default, aten.mean.default, aten.scalar_tensor.default)
OF_SOME_ENTRIES = (aten.max.default, aten.min.default)
FACTORIES = (aten.full.default, aten.zeros.default, aten.ones.default)


@dataclass(frozen=True)
class _OperatorProperties:
    """Properties of an operator, which torch takes microseconds to look up.

    Attributes:
        reads_value: Whether it returns a value of a tensor to Python.
        is_random: Whether it draws random numbers.
        writes: Whether it writes into an argument.
        keeps_shape: Whether its result is a new tensor with the shape of its tensors.
        name: The name of its node.
    """

    reads_value: bool
    is_random: bool
    writes: bool
    keeps_shape: bool
    name: str

    @staticmethod
    @functools.cache
    def of(operator: Any) -> _OperatorProperties:
        tags = operator.tags
        is_pointwise = torch.Tag.pointwise in tags and _torch.makes_new_tensor(operator)
        return _OperatorProperties(
            reads_value=torch.Tag.data_dependent_output in tags,
            is_random=torch.Tag.nondeterministic_seeded in tags,
            writes=_torch.writes(operator),
            keeps_shape=is_pointwise or operator in SHAPED_AS_ARGUMENTS,
            name=operator.overloadpacket.__name__,
        )


VIEWS = (aten.view.default, aten._unsafe_view.default)
# Operations that often return the tensor unchanged.
SHAPING = (
    *VIEWS,
    aten.expand.default,
    aten.permute.default,
    aten.slice.Tensor,
)


def _of_any_length(shape: Sequence[int]) -> list[int]:
    """Return the shape of a view without its first dimension, if that follows from the others.

    Programs of leaves with more rows or blocks remain equal.
    """
    sizes = list(shape)
    long = [i for i, size in enumerate(sizes) if size != 1]
    if long and 0 not in sizes:
        sizes[long[0]] = -1
    return sizes


def _has_same_layout(result: Tensor, tensor: Tensor) -> bool:
    return result.shape == tensor.shape and result.stride() == tensor.stride()


def _holds_tensors(result: Any) -> bool:
    return isinstance(result, Tensor | tuple | list)


def _result_of(operator: Any, args: Any, kwargs: Any) -> Any:
    """Return the result of an operation on stand-ins.

    If its shape is obvious, the operation runs on single-entry tensors to determine the dtype: on stand-ins torch runs
    Python code, which takes ten times as long and imports dynamo.
    """
    shape = _plain_shape(operator, args)
    if shape is None or kwargs.get("memory_format") not in USUAL_FORMATS:
        return operator(*args, **kwargs)
    options = tuple((name, _kind(value)) for name, value in kwargs.items())
    key = operator, tuple(map(_kind, args)), options, torch.get_default_dtype()
    if key not in _RESULT_DTYPES:
        try:
            _RESULT_DTYPES[key] = _of_single_entries(operator, args, kwargs).dtype
        except RuntimeError:
            # Such as an operation that the CPU does not support for a dtype.
            return operator(*args, **kwargs)
    return torch.empty(shape, dtype=_RESULT_DTYPES[key], device=META)


# Keyed by an operator and everything that determines its result's dtype.
_RESULT_DTYPES: dict[Any, torch.dtype] = {}


def _kind(argument: Any) -> Any:
    """Return the properties of an argument that affect the dtype of a result."""
    if isinstance(argument, Tensor):
        return argument.dtype, argument.ndim == 0
    return argument.__class__ if isinstance(argument, _EQUIVALENT) else argument


# The dtype does not depend on their values.
_EQUIVALENT: tuple[Any, ...] = (int, float, complex, list, tuple)


def _plain_shape(operator: Any, args: Any) -> Sequence[int] | None:
    """Return the shape of a new, contiguous result, if it is obvious."""
    if operator in FACTORIES:
        return args[0]
    if operator in WITHOUT_DIMENSION:
        return ()
    if not _OperatorProperties.of(operator).keeps_shape:
        return None
    tensors = [x for x in args if isinstance(x, Tensor) and x.ndim]
    shapes = {x.shape for x in tensors}
    if not all(map(Tensor.is_contiguous, tensors)):
        return None
    if len(shapes) < 2:
        return next(iter(shapes), ())
    # Others are broadcast to the shape of one, whose layout the result has; `torch.broadcast_shapes` imports sympy.
    widest = max(shapes, key=lambda shape: (len(shape), shape.numel()))
    return widest if all(_fits(shape, widest) for shape in shapes) else None


def _fits(shape: torch.Size, into: torch.Size) -> bool:
    """Whether torch broadcasts a shape to another one, with as many dimensions or more."""
    pairs = zip(reversed(shape), reversed(into), strict=False)
    return all(size in (1, wide) for size, wide in pairs)


def _of_single_entries(operator: Any, args: Any, kwargs: Any) -> Tensor:
    """Return the result of an operation on tensors with a single entry, on the CPU."""

    def single_entry(value: Any) -> Any:
        return _ones(value.dtype, value.ndim) if isinstance(value, Tensor) else value

    entries = map_aggregate(args, single_entry)
    options = {
        name: CPU if name == "device" else value for name, value in kwargs.items()
    }
    return operator(*entries, **options)


@functools.cache
def _ones(dtype: torch.dtype, dims: int) -> Tensor:
    return torch.ones((1,) * dims, device=CPU).to(dtype)


def _item(values: Any, i: int) -> Any:
    """Return one of several results of an operation."""
    return values[i]
