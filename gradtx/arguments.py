"""Factory arguments: their kinds, their ranges, and the validation of calls."""

from __future__ import annotations

import dataclasses
import inspect
import math
import numbers
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor

from gradtx.base.exact import Betas, Scalar, Schedule
from gradtx.base.inputs import are_parameters, as_builtin, as_tuples, named_dtype
from gradtx.base.messages import describe, nearest, schedule_remedy, shortly
from gradtx.base.other_libraries import HINTS_OF_OPTIONS, name_here

__all__ = [
    "AnyLength",
    "Betas",
    "Count",
    "Decay",
    "Decays",
    "Fraction",
    "NonNegative",
    "NonNegativeInt",
    "Positive",
    "Scalar",
    "Static",
    "is_off",
]


ROUNDING = 1e-12  # torch's schedulers produce rates such as -1e-20 where 0 is meant


class Range:
    """An interval such as `[0, 1)`, and the value that means 'off' (see `is_off`): 0, or as in `[0, 1]; off at 1`."""

    def __init__(self, text: str):
        self.text, _, off = text.partition("; off at ")
        try:
            self.off = float(off or 0.0)
            low, high = self.text[1:-1].split(",")
            self.low, self.high = float(low), float(high)
        except ValueError:
            raise ValueError(
                f"an interval beside a type is written as in '[0, 1)', got {text!r}"
            ) from None
        self._open_low, self._open_high = text[0] == "(", self.text[-1] == ")"

    def between(self, x: float, end: float, share: float) -> float:
        """Return a number between `x` and an end of the interval, after a share of the way.

        An infinite end counts as 1 / (1 - share) times as far from 0 as `x`.
        """
        if not share:
            return x
        if math.isinf(end):
            return x + math.copysign(abs(x) / (1 - share), end)
        return x + share * (end - x)

    def nearest(self, x: float) -> float:
        """Return the nearest number in the interval if `x` is outside by no more than `ROUNDING`, else `x`."""
        inside = min(max(x, self.low), self.high)
        return inside if abs(x - inside) <= ROUNDING and inside in self else x

    def __contains__(self, x: float) -> bool:
        above = x > self.low if self._open_low else x >= self.low
        below = x < self.high if self._open_high else x <= self.high
        return above and below  # a NaN is in no interval


# A string beside the type of a hyperparameter is the interval of its values: `Annotated[Scalar, "(0, 1)"]`.
NonNegative: TypeAlias = Annotated[Scalar, "[0, inf)"]
Positive: TypeAlias = Annotated[Scalar, "(0, inf)"]
Fraction: TypeAlias = Annotated[Scalar, "[0, 1]"]
Decay: TypeAlias = Annotated[Scalar, "[0, 1)"]
OpenFraction: TypeAlias = Annotated[Scalar, "(0, 1)"]
AtLeastOne: TypeAlias = Annotated[Scalar, "[1, inf)"]
AtLeastOneOrInf: TypeAlias = Annotated[Scalar, "[1, inf]"]
AtLeastFour: TypeAlias = Annotated[Scalar, "[4, inf)"]
FractionOffAtOne: TypeAlias = Annotated[Scalar, "[0, 1]; off at 1"]
PositiveOrInf: TypeAlias = Annotated[Scalar, "(0, inf]"]
NonPositive: TypeAlias = Annotated[Scalar, "(-inf, 0]"]
Decays: TypeAlias = tuple[Decay, ...]
Count: TypeAlias = Annotated[int, "[1, inf)"]
NonNegativeInt: TypeAlias = Annotated[int, "[0, inf)"]

T = TypeVar("T")
# An option that is not a hyperparameter: no group of an optimizer has its own value.
Static: TypeAlias = Annotated[T, "static"]
# A tuple that may have more or fewer entries than its default (at least one).
AnyLength: TypeAlias = Annotated[T, "any length"]

# Default ranges by argument name, since users know these names. A range in the annotation overrides them.
RANGES = {
    "betas": Range("[0, 1)"),
    "eps": Range("[0, inf)"),
    "lr": Range("[0, inf)"),
    "momentum": Range("[0, inf)"),
    "weight_decay": Range("[0, inf)"),
}
_NO_RANGE = Range("(-inf, inf)")
# For the same reason, these names need no annotation; nor does a parameter whose default is a bool.
TYPES: dict[str, tuple[str, Any]] = {
    **dict.fromkeys(RANGES, ("NonNegative", NonNegative)),
    "betas": ("Decays", Decays),
}


class UnfitError(ValueError):
    """Raised by a rule's `init` for an unsuitable leaf; the library prefixes the names of the rule and the leaf."""


def is_off(value: Any, off: float = 0.0) -> bool:
    """Whether `value` is a plain number equal to `off`: the only float value that may determine structure.

    Tensors and schedules are never off, so that a value under `vmap`, `grad` or a scheduler uses the
    general formula.
    """
    return isinstance(value, float) and value == off


@dataclasses.dataclass(frozen=True)
class OfCount:
    """A number as a function of a count that the link keeps itself, so that the library does not resolve it."""

    function: Callable[[Any], Any]

    def __call__(self, count: Any) -> Any:
        return self.function(count)

    def __repr__(self) -> str:
        return describe(self.function)


_SCALAR = {float, Tensor, Schedule}
_TYPES_OF_KIND = {"bool": bool, "str": str, "bool or name": bool | str}
_KINDS: dict[frozenset[Any], str] = {
    frozenset((int,)): "int",
    frozenset((bool,)): "bool",
    frozenset((str,)): "str",
    frozenset((bool, str)): "bool or name",
    frozenset((int, str)): "int or name",
    frozenset((int, float)): "number",
}
_HYPERPARAMETERS = (
    *("scalar", "betas", "named floats", "int", "int or function"),
    *_TYPES_OF_KIND,
)


class Hint(NamedTuple):
    """An annotation, taken apart.

    Attributes:
        members: The members of a union, or the only type.
        notes: The strings beside the type: an interval, "static", "any length".
        choices: The values of a `Literal`.
    """

    members: frozenset[Any]
    notes: tuple[str, ...] = ()
    choices: tuple[Any, ...] = ()

    @classmethod
    def of(cls, annotation: Any) -> Hint:
        origin = typing.get_origin(annotation)
        entries = typing.get_args(annotation)
        if origin is Annotated:
            inner = cls.of(entries[0])
            return inner._replace(notes=(*inner.notes, *entries[1:]))
        if origin is Literal:
            return cls(frozenset(map(type, entries)), choices=entries)
        if origin is not types.UnionType and origin is not typing.Union:
            return cls(frozenset((annotation,)))
        hint = cls(frozenset())
        for part in map(cls.of, entries):
            hint = cls(
                hint.members | part.members,
                hint.notes + part.notes,
                hint.choices + part.choices,
            )
        return hint

    def range(self, default: Range) -> Range:
        """Return the interval beside the type."""
        for note in self.notes:
            if note not in ("static", "any length"):
                return Range(note)
        return default


def _kind(members: frozenset[Any]) -> str:
    """Return the kind of an annotation, given its union members other than None."""
    if members <= _SCALAR and float in members:
        return "scalar"
    if {str, tuple[float, float, float]} < members:
        return "named floats"
    if int in members and any(
        typing.get_origin(member) is Callable for member in members
    ):
        return "int or function"
    if len(members) == 1:
        (hint,) = members
        if typing.get_origin(hint) in (tuple, Sequence):
            return _kind_of_tuple(typing.get_args(hint))
    return _KINDS.get(members, "structure")


def _kind_of_tuple(entries: tuple[Any, ...]) -> str:
    of_entries = {
        Hint.of(entry).members - {type(None)}
        for entry in entries
        if entry is not Ellipsis
    }
    if of_entries == {frozenset((int,))}:
        return "ints"
    return "betas" if of_entries == {frozenset(_SCALAR)} else "structure"


class Argument:
    """One parameter of a factory: the values it accepts, and their conversion to the value that the body receives."""

    def __init__(self, who: str, parameter: inspect.Parameter, annotation: Any):
        self.who = who
        self.name = parameter.name
        self.default: Any = parameter.default
        self.required = parameter.default is parameter.empty
        self.keyword_only = parameter.kind is parameter.KEYWORD_ONLY
        hint = Hint.of(annotation)
        self.optional = type(None) in hint.members
        self.kind = _kind(hint.members - {type(None)})
        self.choices = hint.choices
        self.types = hint.members
        self._is_dtype = torch.dtype in self.types and str not in self.types
        self.any_length = "any length" in hint.notes
        self._classes = tuple(
            member
            for member in hint.members - {object, Any}
            if isinstance(member, type) and typing.get_origin(member) is None
        )
        self._takes_tuple = any(
            typing.get_origin(member) in (tuple, Sequence)
            and str not in typing.get_args(member)
            for member in hint.members
        )
        self.range = hint.range(RANGES.get(self.name, _NO_RANGE))
        # Of each entry of a tuple, whether it may be None, and its range; the last one repeats.
        self._entries: list[tuple[bool, Range]] = []
        if self.kind in ("betas", "ints"):
            (annotated,) = hint.members - {type(None)}
            for entry in typing.get_args(annotated):
                if entry is not Ellipsis:
                    of_entry = Hint.of(entry)
                    optional = type(None) in of_entry.members
                    self._entries.append((optional, of_entry.range(self.range)))
        self.is_hyperparameter = (
            "static" not in hint.notes and self.kind in _HYPERPARAMETERS
        )
        if not self.required:
            self.default = self.check(parameter.default)

    def range_of(self, item: int) -> Range:
        """Return the interval of a number, or of an item of a tuple."""
        if not self._entries:
            return self.range
        _, interval = self._entries[min(item, len(self._entries) - 1)]
        return interval

    @property
    def has_range(self) -> bool:
        """Whether numbers are valid only in an interval."""
        ranges = [self.range, *(interval for _, interval in self._entries)]
        kinds = ("scalar", "betas", "ints", "int", "int or function", "number")
        is_number = self.kind in kinds
        return is_number and any(allowed.text != _NO_RANGE.text for allowed in ranges)

    def check(self, value: Any) -> Any:
        """Convert `value` to the argument's kind, or raise a TypeError or ValueError that names the argument.

        One-entry tensors of any shape are numbers, as in torch, and rounding errors are corrected, since torch's
        schedulers write such values.
        """
        # A shortcut for what schedulers write.
        if type(value) is float and self.kind == "scalar" and value in self.range:
            return value
        if not isinstance(value, self._classes):
            value = self._as_builtin(value)
        if isinstance(value, str) and self._is_dtype:
            value = named_dtype(value) or value
        if self.kind == "structure" or (value is None and self.optional):
            return value
        if self.kind == "scalar":
            return self._scalar(value, self.name, self.range)
        if self.kind in ("betas", "ints"):
            return self._tuple(value)
        if self.kind == "named floats":
            return as_tuples(value)
        if self.kind == "number":
            # It determines structure: no tensor and no schedule.
            if not is_number(value):
                raise self._misfit("a plain number", value)
            return self._in_range(value, self.name, self.range)
        if self.kind == "int or name" and not isinstance(value, str):
            return self._int(value, self.name, self.range)
        if self.kind == "int or function":
            if isinstance(value, OfCount):
                return value
            if callable(value):
                return OfCount(value)
        if self.kind in ("int", "int or function"):
            value = self._int(value, self.name, self.range)
        kind = _TYPES_OF_KIND.get(self.kind)
        if kind is not None and not isinstance(value, kind):
            raise self._misfit(f"a {self.kind}", value)
        if self.choices and value not in self.choices:
            valid = one_of(self.choices, self.optional)
            if self.kind == "int or name":
                valid = f"{valid} or an int"
            raise ValueError(f"{self.who}: {self.name} must be {valid}, got {value!r}")
        return value

    def _as_builtin(self, value: Any) -> Any:
        """Return a tuple in place of any other sequence, an array or, if the argument is a tuple, a tensor."""
        if not isinstance(value, Tensor):
            return as_builtin(value)
        if not value.ndim or not self._takes_tuple:
            return value
        # Hyperparameters stay tensors.
        return value.unbind() if self.kind == "betas" else as_tuples(value)

    def sample(self) -> Any:
        """Return a valid value.

        Raises:
            TypeError: If the argument is not a number or a choice.
        """
        if self.choices:
            return self.choices[0]
        is_int = self.kind.startswith("int")
        for value in (0.5, 1, 12) if self.kind == "scalar" or is_int else ():
            if value in self.range:
                return int(value + 0.5) if is_int else float(value)
        raise TypeError(f"{self.who}: give {self.name!r} a default")

    def _in_range(self, value: Any, name: str, interval: Range) -> Any:
        if value not in interval:
            raise ValueError(
                f"{self.who}: {name} must be in {interval.text}, got {value!r}"
            )
        return value

    def _misfit(
        self, expected: str, value: Any, name: str = "", remedy: str = ""
    ) -> TypeError:
        return TypeError(
            f"{self.who}: {name or self.name} must be {expected}, got {describe(value)}{remedy}"
        )

    def _int(self, value: Any, name: str, interval: Range) -> int:
        # A user who writes `every=True` means something else than 1.
        if not is_number(value, numbers.Integral):
            raise self._misfit("an int", value, name)
        return self._in_range(int(value), name, interval)

    def _tuple(self, value: Any) -> tuple[Any, ...]:
        """Check a tuple of ints, or of numbers that may be tensors or schedules."""
        are_ints = self.kind == "ints"
        if not isinstance(value, tuple | list):
            expected = "a list of ints" if are_ints else "a tuple of numbers"
            raise self._misfit(expected, value)
        has_length = isinstance(self.default, tuple | list) and not self.any_length
        if has_length and not are_ints and len(value) != len(self.default):
            raise ValueError(
                f"{self.who}: {self.name} must have {len(self.default)} entries, got {len(value)}"
            )
        if not (value or are_ints):
            raise ValueError(f"{self.who}: {self.name} must have at least one entry")
        check = self._int if are_ints else self._scalar
        checked = []
        for i, entry in enumerate(value):
            optional, interval = self._entries[min(i, len(self._entries) - 1)]
            if entry is not None or not optional:
                entry = check(entry, f"{self.name}[{i}]", interval)
            checked.append(entry)
        return tuple(checked)

    def _scalar(self, value: Any, name: str, interval: Range) -> Any:
        if isinstance(value, Schedule):
            return value
        if isinstance(value, Tensor) and not (
            value.is_complex() or value.dtype == torch.bool
        ):
            if value.numel() != 1:
                raise ValueError(
                    f"{self.who}: {name} must be 0-d, got a tensor of shape {tuple(value.shape)}; "
                    "use torch.vmap to run one member per value"
                )
            return value.reshape(()) if value.ndim else value
        if not is_number(value):
            expected = "a number, a 0-d tensor or a gradtx.Schedule"
            raise self._misfit(expected, value, name, schedule_remedy(value))
        return self._in_range(interval.nearest(float(value)), name, interval)


def is_number(value: Any, kind: type = numbers.Real) -> bool:
    """Whether a value is a number of this kind, and not a bool, which Python counts as an int."""
    return isinstance(value, kind) and not isinstance(value, bool)


def one_of(choices: Iterable[Any], optional: bool = False) -> str:
    """Return "'a', 'b' or 'c'" for an error message."""
    *most, last = [*map(repr, choices), *(["None"] if optional else [])]
    return f"{', '.join(most)} or {last}" if most else last


def keyword_parameter(name: str, default: Any, annotation: str) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )


def _annotated(
    function: Callable[..., Any], hints: dict[str, Any]
) -> inspect.Signature:
    """Return a signature, and add the annotations that names and defaults imply to it and to `hints`."""
    signature = inspect.signature(function)
    parameters: list[inspect.Parameter] = []
    for name, parameter in signature.parameters.items():
        is_flag = isinstance(parameter.default, bool)
        usual = ("bool", bool) if is_flag else TYPES.get(name)
        if name not in hints and usual is not None:
            annotation, hints[name] = usual
            parameter = parameter.replace(annotation=annotation)
        parameters.append(parameter)
    return signature.replace(parameters=parameters)


def _signature_of(
    function: Callable[..., Any],
) -> tuple[inspect.Signature, dict[str, Any]]:
    """Return a function's signature and evaluated annotations.

    `**options: Annotated[Any, link]` stands for the arguments of that link which the function does not name.
    Arguments after a `*` come after those of the link, and may be positional, too.
    """
    hints = typing.get_type_hints(function, include_extras=True)
    signature = _annotated(function, hints)
    parameters = dict(signature.parameters)
    last = next(reversed(parameters.values()), None)
    if last is None or last.kind is not last.VAR_KEYWORD or last.name not in hints:
        return signature, hints
    del parameters[last.name]
    _, link = typing.get_args(hints.pop(last.name))
    function_of_link = link.spec.function if hasattr(link, "spec") else link
    of_link, hints_of_link = _signature_of(function_of_link)
    first, last = {}, {}
    for name, parameter in parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            last[name] = parameter.replace(kind=parameter.POSITIONAL_OR_KEYWORD)
        else:
            first[name] = parameter
    parameters = {**first, **of_link.parameters, **last, **first}
    ordered = sorted(parameters.values(), key=lambda parameter: parameter.kind)
    return signature.replace(parameters=ordered), {**hints_of_link, **hints}


CAUTIOUS = Static[Literal[True, False, "inclusive"]]


def _added_to(kind: str, signature: inspect.Signature) -> dict[inspect.Parameter, Any]:
    """Return the parameters that a factory has in addition to its function's, with their types."""
    added: dict[inspect.Parameter, Any] = {}
    if kind == "alias":
        added[keyword_parameter("maximize", False, "bool")] = bool
    if kind == "alias" and "weight_decay" in signature.parameters:
        # A selector, which the decorator checks.
        added[keyword_parameter("mask", None, "Where | None")] = object
        # A user's alias may have its own.
        if "cautious_decay" not in signature.parameters:
            text = 'Literal[True, False, "inclusive"]'
            added[keyword_parameter("cautious_decay", False, text)] = CAUTIOUS
    if kind != "schedule" and "state_dtype" not in signature.parameters:
        added[keyword_parameter("state_dtype", None, "StateDtype | None")] = object
    return added


class Arguments:
    """The signature of a factory, which binds calls to checked values.

    Args:
        name: The name of the factory.
        function: Its function.
        kind: "rule", "tree", "alias", "combinator" or "schedule".

    Attributes:
        added: Arguments that the body does not receive.
        types: The evaluated annotations, by name.
    """

    def __init__(self, name: str, function: Callable[..., Any], kind: str):
        signature, hints = _signature_of(function)
        parameters = list(signature.parameters.values())
        for parameter in parameters:
            if parameter.name not in hints:
                raise TypeError(
                    f"{name}: annotate {parameter.name!r}: gradtx.Scalar for a number, gradtx.GradientTransformation "
                    "for an inner transformation, object for any other value; the decorated function is a factory, "
                    "which returns the update"
                )
        self.name = name
        added = _added_to(kind, signature)
        for parameter in added:
            if parameter.name in signature.parameters:
                raise TypeError(
                    f"{name}: omit {parameter.name!r}, which the decorator adds"
                )
        self.added = tuple(parameter.name for parameter in added)
        for parameter, hint in added.items():
            parameters.append(parameter)
            hints[parameter.name] = hint
        self.all = [
            Argument(name, parameter, hints[parameter.name]) for parameter in parameters
        ]
        self.by_name = {argument.name: argument for argument in self.all}
        self._positional = [
            argument for argument in self.all if not argument.keyword_only
        ]
        self.signature = signature.replace(parameters=parameters)
        self.types = {name: hints[name] for name in self.by_name}

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return every argument's checked value by name, including defaults, in plain loops that dynamo can trace.

        Raises:
            TypeError, ValueError: If an argument is unknown, missing, given twice or not valid.
        """
        if args and isinstance(args[0], torch.optim.Optimizer):
            raise TypeError(
                f"{self.name}: takes no optimizer, got {type(args[0]).__name__}; {self._use_with_parameters()}"
            )
        is_first_plain = self._positional and self._positional[0].kind != "structure"
        if args and is_first_plain and are_parameters(as_builtin(args[0])):
            raise TypeError(
                f"{self.name}: takes hyperparameters, got {shortly(args[0])}; {self._use_with_parameters()}"
            )
        if len(args) > len(self._positional):
            most = len(self._positional)
            arguments = "argument" if most == 1 else "arguments"
            raise TypeError(
                f"{self.name}: takes at most {most} positional {arguments}, got {len(args)}"
            )
        values = {}
        for argument, value in zip(self._positional, args, strict=False):
            values[argument.name] = value
        for key, value in kwargs.items():
            if key not in self.by_name:
                raise TypeError(
                    f"{self.name}: unknown argument {key!r}; {self._suggestion(key)}"
                )
            if key in values:
                raise TypeError(f"{self.name}: got two values for {key!r}")
            values[key] = value
        bound = {}
        for argument in self.all:
            if argument.name in values:
                bound[argument.name] = argument.check(values[argument.name])
            elif argument.required:
                raise TypeError(f"{self.name}: missing argument {argument.name!r}")
            else:
                bound[argument.name] = argument.default
        return bound

    def shown(self, values: Mapping[str, Any]) -> list[str]:
        """Return the arguments of a call as a user would type them."""
        shown = []
        for argument in self.all:
            value = values[argument.name]
            text = describe(value)
            if argument.required and not argument.keyword_only:
                shown.append(text)
            elif argument.required or varies(value) or value != argument.default:
                shown.append(f"{argument.name}={text}")
        return shown

    def sample(
        self, set_names: Collection[str] = (), value: Any = None
    ) -> dict[str, Any]:
        """Return values for the required arguments with which the factory can be called; `value` for `set_names`."""
        return {
            argument.name: value if argument.name in set_names else argument.sample()
            for argument in self.all
            if argument.required
        }

    def _use_with_parameters(self) -> str:
        """Say how to make an optimizer."""
        return (
            "combine links by chain(...), and make an optimizer by "
            f"gradtx.as_optimizer({self.name}(...), params) or a class of gradtx.optim"
        )

    def _suggestion(self, key: str) -> str:
        """Suggest the intended argument, including for a name from another library."""
        if key in ("params", "model", "parameters"):
            return self._use_with_parameters()
        word = name_here(key, self.by_name)
        if word is not None:
            return f"did you mean {word!r}?"
        if key in HINTS_OF_OPTIONS:
            return HINTS_OF_OPTIONS[key]
        return nearest(key, self.by_name)


def varies(value: Any) -> bool:
    """Whether the value that a body receives may change between steps: a tensor (written in place) or a schedule."""
    if isinstance(value, tuple):
        return any(map(varies, value))
    return isinstance(value, Tensor | Schedule)


def items_of(value: Any) -> tuple[Any, ...]:
    """Return the items of a tuple, or of another value the value itself."""
    return value if isinstance(value, tuple) else (value,)


def has_schedule(value: Any) -> bool:
    """Whether a value, or any item of a tuple, is a schedule."""
    return any(isinstance(item, Schedule) for item in items_of(value))


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors in an argument's value."""
    return [item for item in items_of(value) if isinstance(item, Tensor)]
