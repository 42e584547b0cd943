"""Generate the Python function that runs a recording over lists of leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_aggregate

from gradtx.base import torch_names as _torch
from gradtx.programs import batches, numbers
from gradtx.programs.contract import (
    argument_like,
    contract,
    is_list,
    is_number,
    merge_equal,
    remove_unused,
)
from gradtx.programs.in_place import MemoryPlan
from gradtx.programs.needs import (
    ALWAYS,
    Case,
    Needs,
    is_selection,
    split_copies,
    text_of,
)
from gradtx.programs.record import META, Recording
from gradtx.programs.simplify import is_conversion, simplify

aten = torch.ops.aten

# Unary operations on lists, by torch's names of the operations on tensors.
UNARY = (
    "abs acos asin atan ceil cos cosh erf erfc exp expm1 floor frac lgamma log log10 log1p log2 neg reciprocal round "
    "rsqrt sigmoid sign sin sinh sqrt tan tanh trunc"
)
# OF_ONE: a list; OF_TWO: two lists; OF_NUMBER: a list and a scalar; SUMS: two lists and a factor of the second;
# PRODUCTS: three lists and a factor.
OF_ONE: dict[Any, str] = {getattr(aten, name).default: name for name in UNARY.split()}
OF_TWO: dict[Any, str] = {
    aten.mul.Tensor: "mul",
    aten.div.Tensor: "div",
    aten.maximum.default: "maximum",
    aten.minimum.default: "minimum",
}
OF_NUMBER: dict[Any, str] = {
    aten.mul.Tensor: "mul",
    aten.mul.Scalar: "mul",
    aten.add.Scalar: "add",
    aten.add.Tensor: "add",
    aten.sub.Scalar: "sub",
    aten.sub.Tensor: "sub",
    aten.div.Scalar: "div",
    aten.div.Tensor: "div",
    aten.clamp_min.default: "clamp_min",
    aten.clamp_max.default: "clamp_max",
    aten.pow.Tensor_Scalar: "pow",
}
SUMS: dict[Any, str] = {aten.add.Tensor: "add", aten.sub.Tensor: "sub"}
PRODUCTS: dict[Any, str] = {
    aten.addcmul.default: "addcmul",
    aten.addcdiv.default: "addcdiv",
}
IN_PLACE = {*OF_ONE, *OF_TWO, *OF_NUMBER, *SUMS, *PRODUCTS, aten.lerp.Scalar}
WRITES: dict[Any, str] = {
    aten.add_.Tensor: "add",
    aten.addcmul_.default: "addcmul",
    aten.addcdiv_.default: "addcdiv",
    aten.copy_.default: "copy",
}
# Accept a list and a 0-d tensor. Without `alpha`, torch would read the tensor, to call the operation for numbers.
ON_TENSORS: dict[str, dict[str, Any]] = {"mul": {}, "div": {}, "add": {"alpha": 1}}


@dataclass(frozen=True)
class ListFunction:
    """A recording as a function of lists.

    Attributes:
        prepare: Computes the scalars that `run` uses from those given: Python scalars, or 0-d tensors if `on_host` is
            False.
        run: `(prepared, columns) -> results`: `columns` contains a list for each of a leaf's arguments, with one tensor
            per leaf; arguments are written in place. A result that differs by leaf is a list.
        source: The Python code of both.
        calls: The number of operations in `run`, on lists or on each leaf.
    """

    prepare: Callable[[Sequence[Any]], tuple[Any, ...]]
    run: Callable[[tuple[Any, ...], Sequence[list[Tensor]]], list[Any]]
    source: str
    calls: int


def list_function(
    recording: Recording,
    device: torch.device,
    on_host: bool = True,
    part: int | None = None,
) -> ListFunction:
    """Generate the function of a recording.

    Args:
        recording: The operations of one leaf.
        device: The device of the leaves.
        on_host: Whether scalars are Python scalars; otherwise they are 0-d tensors.
        part: The index of the part between operations that owners compute; None for a recording without any.
    """
    recording = recording.copy()  # the passes modify it
    recording.graph.output(tuple(recording.outputs))
    _set_kinds(recording)
    simplify(recording.graph)
    _set_kinds(recording)  # again: values computed from leaf flags are scalars now
    merge_equal(recording.graph)
    remove_unused(recording.graph)
    if on_host:
        contract(recording.graph)
    # After `contract`: whether a term can be fused depends on its other users.
    if part is not None:
        _reduce_to_part(recording, part)
        remove_unused(recording.graph)
    return _Writer(recording, device, on_host).function()


def _reduce_to_part(recording: Recording, part: int) -> None:
    """Reduce a graph to one part: the results of earlier owners become arguments, the next owner's inputs results."""
    graph = recording.graph
    first = next(node for node in graph.nodes if node.op != "placeholder")
    for i, node in enumerate(recording.owned[:part]):
        with graph.inserting_before(first):
            argument = graph.placeholder(f"owned{i}")
        argument.meta.update(node.meta)
        node.replace_all_uses_with(argument)
        recording.leaves.append(argument)
    if part < len(recording.owned):
        for node in reversed(graph.nodes):
            if node.op == "call_function" and _torch.writes(node.target):
                graph.erase_node(node)
        output = next(iter(reversed(graph.nodes)))
        output.args = (tuple(recording.owned[part].args),)


def _set_kinds(recording: Recording) -> None:
    """Record for each node whether its value is a scalar, a tensor that all leaves share, or a list."""
    leaves = set(recording.leaves)
    for node in recording.graph.nodes:
        value = node.meta.get("val")
        inputs = {argument.meta["kind"] for argument in node.all_input_nodes}
        if node in leaves or "list" in inputs:
            node.meta["kind"] = "list"
        elif "tensor" in inputs or not isinstance(value, Tensor) or value.ndim:
            node.meta["kind"] = "tensor"
        else:
            node.meta["kind"] = "number"


class _Writer:
    """Generate one line for each node, in order."""

    def __init__(self, recording: Recording, device: torch.device, on_host: bool):
        self._recording = recording
        self._device = device
        self._on_host = on_host
        self._nodes = list(recording.graph.nodes)
        # For each operation that writes into an operand, that operand.
        self._operands: dict[Node, Node] = {}
        self._lines: list[str] = []  # of the function that is being generated
        self._namespace: dict[str, Any] = {
            "torch": torch,
            "device": device,
            "converted": _converted,
            "filled": _filled,
            "batched": batches.batched,
        }
        # The names of scalars that are needed as tensors.
        self._tensors: dict[Node, str] = {}
        self._calls = 0
        # The case of the latest lines, and the number of lines after them.
        self._block: tuple[Case, int] = (ALWAYS, 0)
        if on_host:
            split_copies(recording.graph)
            self._nodes = list(recording.graph.nodes)
        self._needs = Needs(recording.graph, decides=on_host)
        # For each operation that runs on batches of leaves, all operations of its batch.
        self._batches: dict[Node, list[Node]] = {}
        if batches.batches_on(device):
            for batch in batches.batches_of(
                self._nodes, self._has_list_form, self._case_in_batch
            ):
                self._batches.update(dict.fromkeys(batch, batch))
        self._memory = MemoryPlan(recording.graph, self._has_form_in_place, self._needs)
        self._operands = self._memory.operand

    def _has_list_form(self, node: Node) -> bool:
        return self._foreach_call(node) is not None

    def _has_form_in_place(self, node: Node) -> bool:
        return (
            node.target in IN_PLACE
            and node not in self._batches
            and self._has_list_form(node)
        )

    def _case_in_batch(self, node: Node) -> Case | None:
        """Return the case of an operation; None for those that batches exclude."""
        if node not in self._needs or _torch.writes(node.target):
            return None
        if node.target is aten.view.dtype:
            return None  # before torch 2.13, `vmap` has no rule for it
        if self._on_host and is_selection(node):
            return None  # one operand may not have been computed
        return self._needs.of(node)

    def function(self) -> ListFunction:
        run = self._run()  # first, because it determines which scalars must be tensors
        prepare = self._prepare()
        source = f"{prepare}\n\n{run}"
        exec(compile(source, "<gradtx list program>", "exec"), self._namespace)
        return ListFunction(
            self._namespace["prepare"], self._namespace["run"], source, self._calls
        )

    def _prepare(self) -> str:
        """Generate the function that computes scalars."""
        self._lines = []
        self._unpack("numbers", [node.name for node in self._recording.numbers])
        for node in self._nodes:
            if node.op == "call_function" and is_number(node):
                self._write(node)
        for number, name in self._tensors.items():
            dtype = number.meta["val"].dtype
            self._lines.append(
                f"{name} = torch.full((), {number.name}, dtype={dtype}, device=device)"
            )
        self._lines.append(f"return {_tuple_of(self._prepared())}")
        return _function("prepare(numbers)", self._lines)

    def _prepared(self) -> list[str]:
        """Return the names of the scalars that lists, shared tensors and the result need."""
        names: list[str] = []
        for node in self._nodes:
            is_read = (
                any(not is_number(user) for user in node.users)
                or node in self._needs.conditions
            )
            if is_number(node) and is_read:
                names.append(node.name)
        return [*names, *self._tensors.values()]

    def _run(self) -> str:
        """Generate the function that computes lists."""
        self._lines = []
        self._unpack("columns", [node.name for node in self._recording.leaves])
        calls = [node for node in self._nodes if node.op == "call_function"]
        for node in calls:
            if not is_list(node) and not is_number(node):
                self._write(node)
        for node in calls:
            if node not in self._batches:
                if is_list(node):
                    self._write_conditionally(node)
            elif node is self._batches[node][0]:
                self._write_batch(self._batches[node])
        results = ", ".join(self._results())
        self._lines.append(f"return [{results}]")
        unpacked = f"{_tuple_of(self._prepared())} = prepared"
        return _function("run(prepared, columns)", [unpacked, *self._lines])

    def _results(self) -> list[str]:
        """Return the code of the results: lists that share memory with arguments or with other results are copied."""
        taken: set[Node] = set(self._recording.leaves)
        texts = []
        for result in self._nodes[-1].args[0]:
            text = self._text(result)
            if is_list(result):
                roots = self._memory.roots(result)
                text = _cloned(
                    text, [case for root, case in roots.items() if root in taken]
                )
                taken |= roots.keys()
            elif not is_number(result):
                text = f"{text}.clone()"
            texts.append(text)
        return texts

    def _unpack(self, argument: str, names: Sequence[str]) -> None:
        if names:
            self._lines.append(f"{_tuple_of(names)} = {argument}")

    def _write_conditionally(self, node: Node) -> None:
        """Generate an operation on lists, if it is needed, and delete lists that no later operation reads."""
        if node not in self._needs or node in self._memory.elided_copies:
            return
        case = self._needs.of(node)
        dead = [item for item in self._memory.freed_after(node) if item in self._needs]
        outside, self._lines = self._lines, []
        self._write(node)
        self._delete([item for item in dead if self._needs.of(item) == case])
        body, self._lines = self._lines, outside
        self._add(body, case)
        self._delete([item for item in dead if self._needs.of(item) != case])

    def _add(self, lines: Sequence[str], case: Case) -> None:
        """Add lines that run in one case."""
        if case == ALWAYS:
            self._lines.extend(lines)
            return
        if self._block != (case, len(self._lines)):
            self._lines.append(f"if {text_of(case)}:")
        self._lines.extend(f"    {line}" for line in lines)
        self._block = (case, len(self._lines))

    def _delete(self, nodes: Sequence[Node]) -> None:
        temporaries = [
            node.name for node in nodes if node.op == "call_function" and is_list(node)
        ]
        if temporaries:
            self._lines.append(f"{' = '.join(temporaries)} = None")

    def _write(self, node: Node) -> None:
        if is_number(node):
            self._assign(node, self._number(node))
            return
        if not is_list(node):
            self._assign(node, self._shared(node))
            return
        self._calls += 1
        if is_conversion(node):
            tensors, dtype = node.args[0], node.kwargs["dtype"]
            text = f"converted({self._text(tensors)}, {self._text(dtype)})"
            self._assign(node, text)
            return
        foreach_call = self._foreach_call(node)
        if foreach_call is None:
            self._assign(node, self._loop_over_leaves(node))
            return
        name, *operands = foreach_call
        target = self._operands.get(node)
        if node.target in WRITES:
            target = node.args[0]
        if target is None:
            self._assign(node, f"{self._on_lists(name)}({', '.join(operands)})")
            return
        self._lines.append(f"{self._on_lists(f'{name}_')}({', '.join(operands)})")
        self._assign(node, self._text(target))

    def _assign(self, node: Node, text: str) -> None:
        self._lines.append(f"{node.name} = {text}")

    # Values shared by all leaves.

    def _number(self, node: Node) -> str:
        if not self._on_host:
            return self._shared(node)
        function, args = numbers.in_python(node)
        operands = list(map(self._text, args))
        if function in numbers.WRITTEN:
            return numbers.WRITTEN[function].format(*operands)
        return f"{self._name_of(node, function)}({', '.join(operands)})"

    def _shared(self, node: Node) -> str:
        args = self._arguments(node)
        return f"{self._name_of(node, node.target)}({args})"

    def _name_of(self, node: Node, function: Any) -> str:
        name = f"f_{node.name}"
        # stand-ins are contiguous, but leaves may not be.
        if function is aten.view.default:
            function = aten.reshape.default
        self._namespace[name] = function
        return name

    # Lists.

    def _on_lists(self, name: str) -> str:
        """Return the name of an operation on lists in the program."""
        self._namespace[f"foreach_{name}"] = _torch.on_lists(name)
        return f"foreach_{name}"

    def _foreach_call(self, node: Node) -> list[str] | None:
        """Return the operation on lists and its operands as text; None if torch has no in-place form of it."""
        form = self._form(node)
        if form is None:
            return None
        name, operands, options = form
        values = options.values()
        if any(isinstance(value, Node) for value in values) and not self._on_host:
            return None  # the options of operations on lists are Python scalars
        if _torch.on_lists(f"{name}_") is None:
            return None
        texts = [f"{option}={self._text(value)}" for option, value in options.items()]
        return [name, *map(self._text, operands), *texts]

    def _form(self, node: Node) -> tuple[str, Sequence[Any], dict[str, Any]] | None:
        """Return the name of the operation on lists, its operands and its options; None if there is none."""
        target, args, kwargs = node.target, node.args, node.kwargs
        if target in WRITES:
            are_lists = all(map(is_list, args))
            return (WRITES[target], args, dict(kwargs)) if are_lists else None
        if target in OF_ONE:
            return OF_ONE[target], args[:1], {}
        if target is aten.lerp.Scalar:
            return ("lerp", args, {}) if all(map(is_list, args[:2])) else None
        if target in PRODUCTS and all(map(is_list, args)):
            return PRODUCTS[target], args, {"value": kwargs.get("value", 1)}
        if len(args) < 2:
            return None
        if not all(map(is_list, args[:2])):
            return self._form_with_number(node)
        operands = args[:2]
        if self._operands.get(node) is args[1]:
            operands = operands[::-1]  # the one that is written comes first
        if target in OF_TWO and not kwargs:
            return OF_TWO[target], operands, {}
        if target in SUMS:
            return SUMS[target], operands, {"alpha": kwargs.get("alpha", 1)}
        return None

    def _form_with_number(
        self, node: Node
    ) -> tuple[str, Sequence[Any], dict[str, Any]] | None:
        """Return the form of an operation on a list and a scalar."""
        first, second = node.args[:2]
        if is_list(second) and node.target in (aten.mul.Tensor, aten.add.Tensor):
            first, second = second, first
        if node.kwargs or node.target not in OF_NUMBER:
            return None
        if not is_list(first) or not is_number(second):
            return None
        name = OF_NUMBER[node.target]
        options: dict[str, Any] = {}
        if isinstance(second, Node) and not self._on_host:
            if name not in ON_TENSORS:
                return None
            options = ON_TENSORS[name]
        if node.meta["val"].dtype != first.meta["val"].dtype:  # type: ignore[union-attr]
            return None
        return name, (first, second), options

    def _loop_over_leaves(self, node: Node) -> str:
        """Return the code of an operation that runs leaf by leaf."""
        lists: dict[Node, str] = {}
        for argument in node.all_input_nodes:
            if is_list(argument):
                lists[argument] = f"{argument.name}_"
        if self._on_host and is_selection(node):
            return self._selection(node)
        call = f"{self._name_of(node, node.target)}({self._arguments(node, lists)})"
        if self._on_host and _fills(node):
            # A copy of a 0-d tensor would send it to the device.
            leaf, number = node.args
            call = f"{lists[leaf]}.fill_({self._text(number)})"  # type: ignore[index]
        names = ", ".join(lists.values())
        columns = ", ".join(argument.name for argument in lists)
        over = columns if len(lists) == 1 else f"zip({columns}, strict=True)"
        return f"[{call} for {names} in {over}]"

    def _selection(self, node: Node) -> str:
        """Return the code that selects one of two operands; the other may not have been computed."""
        condition, x, y = node.args
        for known, truth in self._needs.of(node):
            if known is condition:
                return self._branch(node, x if truth else y)
        return f"{self._branch(node, x)} if {self._text(condition)} else {self._branch(node, y)}"

    def _branch(self, node: Node, operand: Any) -> str:
        """Return an operand of a selection as a list."""
        shape = argument_like(node)
        if is_list(operand) or shape is None:
            return self._text(operand)
        return f"filled({shape.name}, {self._text(operand)})"

    # Batches.

    def _write_batch(self, batch: list[Node]) -> None:
        """Generate a function of one leaf and the call that applies it to all leaves, if they are needed."""
        members = set(batch)
        inputs: dict[str, None] = {}
        outputs: list[str] = []
        dead_after_batch: list[Node] = []  # lists that are not needed after the batch
        outside, self._lines = self._lines, []
        for node in batch:
            self._assign(node, self._shared(node))
            for item in node.all_input_nodes:
                if is_list(item) and item not in members:
                    inputs[item.name] = None
            if not node.users.keys() <= members:
                outputs.append(node.name)
            dead = self._memory.freed_after(node)
            self._delete([item for item in dead if item in members])
            dead_after_batch.extend(item for item in dead if item not in members)
        body, self._lines = self._lines, outside
        lines = [
            f"def batch({', '.join(inputs)}):",
            *(f"    {line}" for line in body),
            f"    return {_tuple_of(outputs)}",
            f"{_tuple_of(outputs)} = batched(batch, {', '.join(inputs)})",
        ]
        self._add(lines, self._needs.of(batch[0]))
        self._delete(dead_after_batch)
        self._calls += 1

    # Arguments.

    def _arguments(self, node: Node, lists: dict[Node, str] | None = None) -> str:
        """Return the code of all arguments of torch's operation."""
        texts: list[str] = []
        for i, argument in enumerate(node.args):
            texts.append(self._argument(node, i, argument, lists or {}))
        for name, value in node.kwargs.items():
            texts.append(f"{name}={self._option(value)}")
        return ", ".join(texts)

    def _argument(
        self, node: Node, i: int, argument: Any, lists: dict[Node, str]
    ) -> str:
        if (
            isinstance(argument, Node)
            and is_number(argument)
            and self._on_host
            and _wants_tensor(node.target, i)
        ):
            return self._as_tensor(argument)

        def text_of(item: Any) -> Any:
            if not isinstance(item, Node):
                return item
            if is_number(item) and self._on_host:
                return _Text(self._as_tensor(item))
            return _Text(lists.get(item, item.name))

        if isinstance(argument, tuple | list):
            return repr(map_aggregate(argument, text_of))
        return lists[argument] if argument in lists else self._text(argument)

    def _as_tensor(self, number: Node) -> str:
        return self._tensors.setdefault(number, f"{number.name}_as_0d")

    def _option(self, value: Any) -> str:
        if value == META:
            return "device"
        return self._text(value)

    def _text(self, value: Any) -> str:
        if isinstance(value, Node):
            return value.name
        if isinstance(value, float) and not _is_plain(value):
            return f"float({str(value)!r})"
        if isinstance(value, torch.memory_format | torch.layout | torch.device):
            name = f"constant_{len(self._namespace)}"
            self._namespace[name] = value
            return name
        return repr(value)


def _function(head: str, lines: Sequence[str]) -> str:
    body = "\n    ".join(lines)
    return f"def {head}:\n    {body}\n"


def _tuple_of(names: Sequence[str]) -> str:
    return f"({', '.join(names)},)" if names else "()"


class _Text:
    """Text that is inserted unquoted into a list of arguments."""

    def __init__(self, text: str):
        self._text = text

    def __repr__(self) -> str:
        return self._text


def _is_plain(value: float) -> bool:
    return value == value and value not in (float("inf"), float("-inf"))


def _fills(node: Node) -> bool:
    """Whether an operation writes a scalar of the same dtype into a slot."""
    if node.target is not aten.copy_.default or not is_number(node.args[1]):
        return False
    slot, number = node.args
    return (
        isinstance(number, Node)
        and is_list(slot)
        and number.meta["val"].dtype == slot.meta["val"].dtype  # type: ignore[union-attr]
    )


def _cloned(text: str, cases: Sequence[Case]) -> str:
    """Return the code of a list that is copied in some cases."""
    if not cases:
        return text
    copied = f"[item.clone() for item in {text}]"
    if ALWAYS in cases:
        return copied
    conditions = " or ".join(map(text_of, cases))
    return f"{copied} if {conditions} else {text}"


def _converted(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Convert tensors to another dtype with one list operation, which takes half as long as one call per tensor."""
    results = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    _torch.copy_each_(results, tensors)
    return results


def _filled(shapes: list[Tensor], number: Any) -> list[Tensor]:
    return [torch.full_like(shape, number) for shape in shapes]


def _wants_tensor(target: Any, position: int) -> bool:
    """Whether an operator expects a tensor at a position."""
    arguments = target._schema.arguments
    return position < len(arguments) and "Tensor" in str(arguments[position].type)
