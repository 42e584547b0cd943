"""The code of a graph's operations as Python text: names, arguments and constants."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node
from torch.fx.node import map_aggregate

from gradtx.base.exact import dtype_on
from gradtx.compiler import scalar_operations
from gradtx.compiler.graph import dtype_of, is_on_device, is_on_host
from gradtx.compiler.record import META

aten = torch.ops.aten


class Text:
    """The text of operations, and the objects that it names.

    Args:
        device: The device of the leaves.

    Attributes:
        device: As above.
        namespace: The objects by their names in the text.
        tensors: The names of the scalars that are also needed as tensors of some dtype.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.namespace: dict[str, Any] = {"torch": torch, "device": device}
        self.tensors: dict[tuple[Node, torch.dtype], str] = {}

    # Values shared by all leaves.

    def scalar(self, node: Node) -> list[str]:
        """Return the lines that compute a scalar."""
        if is_on_device(node):
            return [f"{node.name} = {self.shared(node)}"]
        function, args = scalar_operations.in_python(node)
        operands = list(map(self.text, args))
        if function in scalar_operations.WRITTEN:
            value = scalar_operations.WRITTEN[function].format(*operands)
        else:
            value = f"{self.name_of(node, function)}({', '.join(operands)})"
        line = f"{node.name} = {value}"
        if function not in scalar_operations.MAY_RAISE:
            return [line]
        otherwise = f"by_torch_{node.name}"
        self.namespace[otherwise] = scalar_operations.by_torch(node)
        return [
            "try:",
            f"    {line}",
            "except (ArithmeticError, ValueError):",
            f"    {node.name} = {otherwise}({', '.join(operands)})",
        ]

    def shared(self, node: Node) -> str:
        """Return the code of torch's operation."""
        args = self.arguments(node)
        return f"{self.name_of(node, node.target)}({args})"

    def name_of(self, node: Node, function: Any) -> str:
        name = f"f_{node.name}"
        # stand-ins are contiguous, but leaves may not be.
        if function is aten.view.default:
            function = aten.reshape.default
        self.namespace[name] = function
        return name

    # Arguments.

    def arguments(self, node: Node, lists: dict[Node, str] | None = None) -> str:
        """Return the code of all arguments of torch's operation; `lists` has the names of one leaf's values."""
        texts: list[str] = []
        for i, argument in enumerate(node.args):
            texts.append(self._argument(node, i, argument, lists or {}))
        for name, value in node.kwargs.items():
            option = "device" if value == META else self.text(value)
            texts.append(f"{name}={option}")
        return ", ".join(texts)

    def _argument(
        self, node: Node, i: int, argument: Any, lists: dict[Node, str]
    ) -> str:
        def text_of(item: Any) -> Any:
            if not isinstance(item, Node):
                return item
            if is_on_host(item):
                return Unquoted(self.as_tensor(item, dtype_of(item)))
            return Unquoted(lists.get(item, item.name))

        is_scalar = isinstance(argument, Node) and is_on_host(argument)
        is_tensor = is_scalar and _wants_tensor(node.target, i)
        if is_tensor or isinstance(argument, tuple | list):
            return repr(map_aggregate(argument, text_of))
        return lists[argument] if argument in lists else self.text(argument)

    def as_tensor(self, scalar: Node, dtype: torch.dtype) -> str:
        """Return the name of a scalar as a 0-d tensor of a dtype."""
        dtype = dtype_on(self.device, dtype)
        name = f"{scalar.name}_as_{str(dtype).removeprefix('torch.')}"
        return self.tensors.setdefault((scalar, dtype), name)

    def as_tensor_lines(self, name: str, scalar: Node, dtype: torch.dtype) -> list[str]:
        """Return the lines that create a 0-d tensor of a dtype from a scalar."""
        if is_on_device(scalar):
            return [f"{name} = {scalar.name}.to({dtype})"]
        options = f"{scalar.name}, dtype={dtype}, device=device"
        if self.device.type != "cpu":
            return [f"{name} = torch.full((), {options})"]
        return [
            "try:",
            f"    {name} = torch.scalar_tensor({options})",
            "except RuntimeError:  # too large for the dtype, where operations with numbers are infinite",
            f"    {name} = torch.tensor({options})",
        ]

    def text(self, value: Any) -> str:
        if isinstance(value, Node):
            return value.name
        if isinstance(value, torch.memory_format | torch.layout | torch.device):
            name = f"constant_{len(self.namespace)}"
            self.namespace[name] = value
            return name
        if isinstance(value, torch.dtype):
            value = dtype_on(self.device, value)
        return constant(value)


def constant(value: Any) -> str:
    """Return the code of a constant."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"float({str(value)!r})"
    return repr(value)


def function_text(head: str, lines: Sequence[str]) -> str:
    body = "\n    ".join(lines)
    return f"def {head}:\n    {body}\n"


def tuple_of(names: Sequence[str]) -> str:
    return f"({', '.join(names)},)" if names else "()"


class Unquoted:
    """Text that is inserted unquoted into a list of arguments."""

    def __init__(self, text: str):
        self._text = text

    def __repr__(self) -> str:
        return self._text


def _wants_tensor(target: Any, position: int) -> bool:
    """Whether an operator expects a tensor at a position."""
    arguments = target._schema.arguments
    return position < len(arguments) and "Tensor" in str(arguments[position].type)
