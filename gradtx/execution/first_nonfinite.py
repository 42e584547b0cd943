"""Find the line of a rule whose result is the first that is not finite: `gradtx.eagerly(nan="raise")`."""

from __future__ import annotations

import linecache
import math
import sys
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from gradtx.base.errors import Path as StatePath
from gradtx.base.torch_names import below_transforms
from gradtx.execution.context import Clock

REMEDY = "torch.autograd.detect_anomaly() names the operation of the backward pass"


class WatchedLeaf(Protocol):
    """What is read of a leaf."""

    name: str
    clock: Clock
    update: Any
    param: Any
    inputs: tuple[Any, Any]
    param_dtype: torch.dtype
    run: Any
    operations: list[Any]
    new: dict[StatePath, dict[str, Tensor]]


class Origin(NamedTuple):
    """Where a value that is not finite came from.

    Attributes:
        tensor: The value, kept so that no other tensor gets its memory.
        message: What happened, for an error; empty if it is not known or was intended.
        may_stay: Whether a slot may store it: it was in a parameter, an infinity in a slot, such as that from which a
            minimum starts, or a number that a rule writes.
    """

    tensor: Tensor
    message: str
    may_stay: bool


class FirstNonFinite:
    """Remember where each value that is not finite came from, and raise an error for a leaf that ends with one.

    An operation whose arguments are finite and whose result is not is an origin, and so is an input of a leaf. What is
    computed from such a value has the same origin, so that an infinity which `torch.where` discards is no fault, and
    one that a rule stores is, even if the update is finite: a sign of an infinite average is 1 for good.
    """

    def __init__(self) -> None:
        self._origins: dict[int, Origin] = {}  # by address
        self._entered: set[str] = set()
        self._inputs: list[Origin] = []
        self._leaf: WatchedLeaf | None = None
        self._operation: Any = None

    def enter(self, leaf: WatchedLeaf, operation: Any) -> None:
        """Note which operation of which leaf runs from here on."""
        self._leaf, self._operation = leaf, operation
        if leaf.name in self._entered:
            return
        self._entered.add(leaf.name)
        update, param = leaf.inputs
        self._note_input(leaf, "gradient", (update, leaf.update), may_stay=False)
        self._note_input(leaf, "parameter", (param, leaf.param))
        for operation in leaf.operations:
            for slot, value in leaf.run.slots(operation.path, leaf).items():
                self._note_input(leaf, slot, (value,), may_stay=not _has_nan(value))

    def _note_input(
        self,
        leaf: WatchedLeaf,
        what: str,
        versions: tuple[Any, ...],
        may_stay: bool = True,
    ) -> None:
        """Note an input of a leaf, in each dtype that it has here, if it is not finite."""
        remedy = f"; {REMEDY}" if what == "gradient" else ""
        for tensor in filter(_is_nonfinite, versions):
            message = (
                f"leaf {leaf.name!r} at step {_step_of(leaf)}: {_counted(tensor)} of its {what} are not finite before "
                f"any link{remedy}"
            )
            origin = self._origins[_address(tensor)] = Origin(tensor, message, may_stay)
            self._inputs.append(origin)

    def call(self, operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call an operator, and note the origin of results that are not finite."""
        result = operator(*args, **kwargs)
        bad = [tensor for tensor in _tensors(result) if _is_nonfinite(tensor)]
        if bad:
            origin = self._origin_of_arguments((*args, *kwargs.values()))
            if origin is None:
                origin = Origin(bad[0], self._here(operator, bad[0]), False)
            for tensor in bad:
                self._origins[_address(tensor)] = origin._replace(tensor=tensor)
        return result

    def _origin_of(self, tensor: Tensor) -> Origin:
        unknown = Origin(tensor, "", True)
        return self._origins.get(_address(tensor), unknown)

    def _origin_of_arguments(self, arguments: tuple[Any, ...]) -> Origin | None:
        """Return the origin of the first argument that is not finite; None if all of them are finite."""
        for argument in arguments:
            # A rule that writes an infinity or a NaN as a number does so on purpose.
            if isinstance(argument, float) and not math.isfinite(argument):
                return Origin(torch.tensor(argument), "", True)
            for tensor in filter(_is_nonfinite, _tensors(argument)):
                return self._origin_of(tensor)
        return None

    def _here(self, operator: Any, result: Tensor) -> str:
        """Describe the operation that runs now."""
        leaf, operation = self._leaf, self._operation
        where = ""
        if leaf is not None and operation is not None:
            link = operation.path[-1] if operation.path else "the chain"
            where = f"{link}: leaf {leaf.name!r} at step {_step_of(leaf)}: "
        return (
            f"{where}{_counted(result)} of the result of {operator.overloadpacket} are not finite, and all of its "
            f"arguments are; {_line_of(operation)}"
        )

    def check(self, leaf: WatchedLeaf) -> None:
        """Raise an error if the new update, slots or weights of a leaf are not finite.

        Raises:
            FloatingPointError: Names the link, leaf, step and line; or the input that is not finite.
        """
        if leaf.update is None:
            return
        with torch.no_grad():
            if _is_nonfinite(leaf.update):
                raise FloatingPointError(self._message(leaf))
            for slots in leaf.new.values():
                for value in filter(_is_nonfinite, slots.values()):
                    origin = self._origin_of(value)
                    if not origin.may_stay:
                        raise FloatingPointError(origin.message)
            self._check_weights(leaf)

    def _check_weights(self, leaf: WatchedLeaf) -> None:
        """Raise an error if the sum of weights and update overflows."""
        param = leaf.inputs[1]
        if param is None or _is_nonfinite(param):
            return
        moved = (param + leaf.update).to(leaf.param_dtype)
        if _is_nonfinite(moved):
            raise FloatingPointError(
                f"leaf {leaf.name!r} at step {_step_of(leaf)}: {_counted(moved)} of the new weights are outside the "
                f"range of {leaf.param_dtype}; weights and update are finite"
            )

    def _message(self, leaf: WatchedLeaf) -> str:
        # Rules that factorize matrices write NaN themselves, so that its origin is lost.
        for origin in (self._origin_of(leaf.update), *self._inputs):
            if origin.message:
                return origin.message
        return (
            f"leaf {leaf.name!r} at step {_step_of(leaf)}: {_counted(leaf.update)} of its update are not finite; an "
            "input of the call is not, such as an extra or a hyperparameter"
        )


def _tensors(value: Any) -> list[Tensor]:
    """Return the tensors of an argument or a result: itself, or those in a list."""
    values = value if isinstance(value, list | tuple) else [value]
    return [item for item in values if isinstance(item, Tensor)]


def _is_nonfinite(value: Any) -> bool:
    """Whether a value is a tensor with readable entries of which one is not finite."""
    if isinstance(value, Tensor):
        value = below_transforms(value)
    # DTensors and other subclasses run on plain tensors, which `call` sees, too.
    if type(value) not in (Tensor, torch.nn.Parameter) or value.is_meta:
        return False
    if not (value.is_floating_point() or value.is_complex()):
        return False
    return not bool(value.detach().isfinite().all())


def _has_nan(value: Tensor) -> bool:
    return _is_nonfinite(value) and bool(below_transforms(value).isnan().any())


def _address(tensor: Tensor) -> int:
    return below_transforms(tensor).untyped_storage().data_ptr()


def _counted(tensor: Tensor) -> str:
    tensor = below_transforms(tensor)
    bad = int((~tensor.detach().isfinite()).sum())
    return f"{bad} of {tensor.numel()} entries"


def _step_of(leaf: WatchedLeaf) -> int:
    return int(below_transforms(leaf.clock.step))


def _line_of(operation: Any) -> str:
    """Return the line that runs now: of the operation's own function, or else the innermost outside of torch."""
    function = getattr(getattr(operation, "rule", None), "update", None)
    code: CodeType | None = getattr(function, "__code__", None)
    innermost = ""
    frame = sys._getframe(1)
    while frame is not None:
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        path = frame.f_code.co_filename
        if package != "torch" and path != __file__:
            line = linecache.getline(path, frame.f_lineno).strip()
            shown = f"{Path(path).name}:{frame.f_lineno}: {line}"
            if frame.f_code is code:
                return shown
            innermost = innermost or shown
        frame = frame.f_back
    return innermost
