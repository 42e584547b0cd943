"""What a factory's arguments mean: kinds, ranges, conversion, and values that change with the step."""

from __future__ import annotations

import difflib
import inspect
import math
import numbers
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

__all__ = ["Betas", "Scalar", "Schedule", "is_off"]

functorch: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]  # no public name


class Schedule:
    """A hyperparameter that changes with the step: a pure function of the number of updates already done.

    The first update uses `schedule(0)`, as torch's schedulers do.

    Args:
        function: Maps a step, a Python int or a 0-d tensor, to a number or a 0-d tensor, without reading the
            tensor on the host (`torch.where`, not `if`), and is defined for every step >= 0. Chains pass a whole
            number in float64, so that arithmetic with Python floats stays exact.

    Raises:
        TypeError: `function` is not callable.

    Example:
        >>> halve = Schedule(lambda step: 0.1 * 0.5**step)
        >>> halve(0), halve(2)
        (0.1, 0.025)
    """

    def __init__(self, function: Callable[[Any], Any]):
        if not callable(function):
            raise TypeError(f"Schedule: needs a function of the step, got {function!r}")
        self._function = function

    def __call__(self, step: Any) -> Any:
        return self._function(step)

    def __repr__(self) -> str:
        return f"Schedule({describe(self._function)})"

    if TYPE_CHECKING:  # the body of a factory sees the value in place of the schedule, and computes with it

        def _operator(self, other: Any) -> Any: ...
        def __neg__(self) -> Any: ...

        __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _operator
        __truediv__ = __rtruediv__ = __pow__ = __rpow__ = _operator


Scalar: TypeAlias = float | Tensor | Schedule
Betas: TypeAlias = tuple[Scalar, ...]


class Range:
    """An interval such as `[0, 1)`, and the value that means 'off' (see `is_off`)."""

    def __init__(self, text: str, off: float = 0.0):
        low, high = text[1:-1].split(",")
        self.text, self.off = text, off
        self._low, self._high = float(low), float(high)
        self._open_low, self._open_high = text[0] == "(", text[-1] == ")"

    def __contains__(self, x: float) -> bool:
        above = x > self._low if self._open_low else x >= self._low
        below = x < self._high if self._open_high else x <= self._high
        return above and below  # a NaN is in no interval


# The one table of ranges, by argument name; `ranges=` of a decorator overrides it for one factory.
RANGES = {
    "a": Range("(0, inf)"),
    "alpha": Range("[0, 1]"),
    "b": Range("(0, inf)"),
    "beta": Range("[0, 1)"),
    "beta2": Range("[0, 1)"),
    "beta3": Range("[0, 1)"),
    "betas": Range("[0, 1)"),
    "block_size": Range("[1, inf)"),
    "cautious_factor": Range("[0, 1]", off=1.0),
    "clip_exponent": Range("[0, inf)"),
    "clip_to_grok_max_norm": Range("(1, inf)"),
    "clipping": Range("(0, inf)"),
    "d0": Range("(0, inf)"),
    "d_coef": Range("(0, inf)"),
    "decay": Range("[0, 1)"),
    "delta": Range("[0, inf)"),
    "diagonal_eps": Range("[0, inf)"),
    "eps": Range("[0, inf)"),
    "every": Range("[1, inf)"),
    "growth_rate": Range("[1, inf]"),
    "initial_accumulator_value": Range("[0, inf)"),
    "inverse_exponent_override": Range("[0, inf)"),
    "k": Range("[1, inf)"),
    "kappa": Range("[1, inf)"),
    "lr": Range("[0, inf)"),
    "lr_decay": Range("[0, inf)"),
    "matrix_eps": Range("(0, inf)"),
    "max_norm": Range("(0, inf]"),
    "max_precondition_dim": Range("[1, inf)"),
    "max_value": Range("(0, inf]"),
    "memory_length": Range("[1, inf)"),
    "momentum": Range("[0, inf)"),
    "momentum_decay": Range("[0, inf)"),
    "no_preconditioning_for_layers_with_dim_gt": Range("[0, inf)"),
    "orig_grad_ema_beta": Range("[0, 1)"),
    "precondition_frequency": Range("[1, inf)"),
    "preconditioning_compute_steps": Range("[1, inf)"),
    "proximal": Range("[0, inf)"),
    "regen_reg_rate": Range("[0, inf)"),
    "rho_threshold": Range("[4, inf)"),
    "skip_preconditioning_rank_lt": Range("[0, inf)"),
    "slice_p": Range("[1, inf)"),
    "small_const": Range("(0, 1]"),
    "start": Range("[0, inf)"),
    "start_preconditioning_step": Range("[0, inf)"),
    "statistics_compute_steps": Range("[1, inf)"),
    "step_sizes": Range("[0, inf)"),
    "t0": Range("[0, inf)"),
    "update_period": Range("[1, inf)"),
    "wd_ratio": Range("[0, inf)"),
    "weight_decay": Range("[0, inf)"),
    "weight_lr_power": Range("[0, inf)"),
    "xi": Range("[0, inf)"),
}
_NO_RANGE = Range("(-inf, inf)")


def is_off(value: Any, off: float = 0.0) -> bool:
    """True for a plain number equal to `off`: the only float values that may decide structure.

    Tensors and schedules are never off, so that a value under `vmap`, `grad` or a scheduler follows the
    general formula.
    """
    return isinstance(value, float) and value == off


def readable(tensor: Tensor) -> bool:
    """Whether a tensor has a value to look at: it belongs to no transform (vmap, grad, compile) and has data."""
    return not (torch.compiler.is_compiling() or functorch.is_functorch_wrapped_tensor(tensor) or tensor.is_meta)


def describe(value: Any) -> str:
    """`value` as one would type it, as far as that is possible."""
    if isinstance(value, Tensor):
        return (
            f"tensor({value.item():g})"
            if value.ndim == 0 and readable(value)
            else f"tensor(shape={tuple(value.shape)})"
        )
    if isinstance(value, tuple):
        return f"({', '.join(map(describe, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {describe(item)}" for key, item in value.items()) + "}"
    if isinstance(value, torch.nn.Module):  # its own repr has a line for every layer
        return f"{type(value).__name__}(...)"
    if callable(value) and not isinstance(value, Schedule):
        return getattr(value, "__qualname__", repr(value)).rpartition("<locals>.")[2]
    return repr(value)


def close(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name that an unknown one looks like."""
    return next(iter(difflib.get_close_matches(name, sorted(known), n=1, cutoff=cutoff)), None)


def nearest(name: str, known: Iterable[str]) -> str:
    """A did-you-mean for an unknown name, or the list of known ones."""
    known = sorted(known)
    meant = close(name, known)
    if meant is not None:
        return f"did you mean {meant!r}?"
    return f"known: {', '.join(known)}" if known else "there are none"


def nearest_dotted(name: Any, known: Iterable[str]) -> str:
    """As `nearest`, for names behind those of owners or branches: never the like of it in another branch."""
    known, (head, _, tail) = list(known), str(name).rpartition(".")
    heads = {one.rpartition(".")[0] for one in known}
    if known and head not in heads:
        meant = close(head, heads - {""})
        if meant is None:
            alike = sorted(one for one in known if one.rpartition(".")[2] == tail)
            return f"known: {', '.join(alike or sorted(known))}"
        head = meant
    return nearest(f"{head}.{tail}" if head else tail, [one for one in known if one.rpartition(".")[0] == head])


_SCALAR = {float, Tensor, Schedule}


def _members(hint: Any) -> set:
    """The alternatives of an annotation."""
    return set(typing.get_args(hint)) if isinstance(hint, types.UnionType) else {hint}


class Argument:
    """One parameter of a factory: what it accepts, and how a given value becomes the value that the body sees."""

    def __init__(
        self,
        owner: str,
        parameter: inspect.Parameter,
        hint: Any,
        rng: Range | tuple[Range, ...],
        static: bool,
        any_length: bool,
    ):
        self.owner, self.name, self.default = owner, parameter.name, parameter.default
        self.entry_ranges = rng if isinstance(rng, tuple) else None
        self.range = rng[0] if isinstance(rng, tuple) else rng
        self.any_length = any_length
        self.keyword_only = parameter.kind is parameter.KEYWORD_ONLY
        self.required = parameter.default is parameter.empty
        members = _members(hint)
        self.optional = type(None) in members
        self.kind = self._kind(members - {type(None)})
        self._entries = [_members(entry) for entry in typing.get_args(hint)] if self.kind in ("betas", "floats") else []
        self.is_hyperparameter = not static and self.kind in ("scalar", "betas", "floats", "int", "bool", "str")
        if not self.required:
            self.default = self.check(parameter.default)

    @staticmethod
    def _kind(members: set) -> str:
        if members <= _SCALAR and float in members:
            return "scalar"
        entries = typing.get_args(next(iter(members))) if len(members) == 1 else ()
        if entries and typing.get_origin(next(iter(members))) is tuple:
            if set(entries) == {float}:
                return "floats"
            if all(entry is Ellipsis or _members(entry) - {type(None)} == _SCALAR for entry in entries):
                return "betas"
        return {frozenset({t}): t.__name__ for t in (int, bool, str)}.get(frozenset(members), "structure")

    def check(self, value: Any) -> Any:
        """`value` converted to its kind; a TypeError or ValueError that names the culprit otherwise."""
        if value is None and self.optional:
            return None
        if self.kind == "scalar":
            return self._scalar(value, self.name, self.range)
        if self.kind == "betas":
            if not isinstance(value, tuple | list):
                raise TypeError(f"{self.owner}: {self.name} must be a tuple of numbers, got {describe(value)}")
            expected = len(self.default) if isinstance(self.default, tuple) and not self.any_length else len(value)
            if len(value) != expected:
                raise ValueError(f"{self.owner}: {self.name} must have {expected} entries, got {len(value)}")
            if not value:
                raise ValueError(f"{self.owner}: {self.name} must have at least one entry")
            ranges = self.entry_ranges or (self.range,) * len(value)
            return tuple(self._entry(i, item, rng) for i, (item, rng) in enumerate(zip(value, ranges, strict=True)))
        if self.kind == "floats":
            return self._floats(value)
        if self.kind == "int":
            # bool is an int to Python, never to a user who wrote `every=True`.
            if isinstance(value, bool) or not isinstance(value, numbers.Integral):
                raise TypeError(f"{self.owner}: {self.name} must be an int, got {describe(value)}")
            return int(self._in_range(int(value), self.name, self.range))
        if self.kind in ("bool", "str") and not isinstance(value, bool if self.kind == "bool" else str):
            raise TypeError(f"{self.owner}: {self.name} must be a {self.kind}, got {describe(value)}")
        return value

    def _in_range(self, value: Any, name: str, rng: Range) -> Any:
        if value not in rng:
            raise ValueError(f"{self.owner}: {name} must be in {rng.text}, got {value!r}")
        return value

    def _entry(self, i: int, value: Any, rng: Range) -> Any:
        """An entry of a tuple, which may be None where `tuple[Scalar | None, ...]` says so."""
        if value is None and type(None) in self._entries[min(i, len(self._entries) - 1)]:
            return None
        return self._scalar(value, f"{self.name}[{i}]", rng)

    def _floats(self, value: Any) -> tuple[float, ...]:
        """Plain numbers, for which no tensor or schedule can stand."""
        count = len(self._entries)
        plain = isinstance(value, tuple | list) and all(isinstance(item, numbers.Real) for item in value)
        if not plain or len(value) != count:
            raise TypeError(f"{self.owner}: {self.name} must be {count} plain numbers, got {describe(value)}")
        return tuple(self._in_range(float(item), f"{self.name}[{i}]", self.range) for i, item in enumerate(value))

    def _scalar(self, value: Any, name: str, rng: Range) -> Any:
        if isinstance(value, Schedule):
            return value
        if isinstance(value, Tensor) and not (value.is_complex() or value.dtype == torch.bool):
            if value.ndim:
                raise ValueError(
                    f"{self.owner}: {name} must be 0-d, got a tensor of shape {tuple(value.shape)}; "
                    "use torch.vmap to run one member per value"
                )
            return value
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            remedy = "; wrap it: gradtx.Schedule(...)" if callable(value) else ""
            raise TypeError(
                f"{self.owner}: {name} must be a number, a 0-d tensor or a gradtx.Schedule, "
                f"got {describe(value)}{remedy}"
            )
        return self._in_range(float(value), name, rng)


def _keyword(name: str, default: Any, annotation: str) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


class Arguments:
    """The signature of a factory: binds a call to checked values."""

    def __init__(
        self,
        name: str,
        function: Callable,
        ranges: Mapping[str, Range | tuple[Range, ...]],
        static: Iterable[str],
        is_alias: bool,
        any_length: Iterable[str] = (),
    ):
        hints = typing.get_type_hints(function)
        signature = inspect.signature(function)
        parameters = list(signature.parameters.values())
        for parameter in parameters:
            if parameter.name not in hints:
                raise TypeError(f"{name}: annotate {parameter.name!r}; numbers are gradtx.Scalar or gradtx.Betas")
        self.added = ()  # arguments that the body does not see
        if is_alias:
            self.added, hints["maximize"] = ("maximize",), bool
            parameters.append(_keyword("maximize", False, "bool"))
        table = {**RANGES, **ranges}
        self.name = name
        self.all = tuple(
            Argument(name, p, hints[p.name], table.get(p.name, _NO_RANGE), p.name in static, p.name in any_length)
            for p in parameters
        )
        self.by_name = {argument.name: argument for argument in self.all}
        self._positional = [a for a in self.all if not a.keyword_only]
        parameters.append(_keyword("state_dtype", None, "torch.dtype | None"))
        self.signature = signature.replace(parameters=parameters)

    def bind(self, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Every argument's checked value by name, defaults included. Plain loops: dynamo traces them."""
        given = {a.name: value for a, value in zip(self._positional, args, strict=False)}
        if len(args) > len(self._positional):
            raise TypeError(f"{self.name}: takes at most {len(self._positional)} positional arguments, got {len(args)}")
        for key, value in kwargs.items():
            if key not in self.by_name:
                raise TypeError(f"{self.name}: unknown argument {key!r}; {nearest(key, self.by_name)}")
            if key in given:
                raise TypeError(f"{self.name}: got two values for {key!r}")
            given[key] = value
        bound = {}
        for argument in self.all:
            if argument.name in given:
                bound[argument.name] = argument.check(given[argument.name])
            elif argument.required:
                raise TypeError(f"{self.name}: missing argument {argument.name!r}")
            else:
                bound[argument.name] = argument.default
        return bound


def varies(value: Any) -> bool:
    """True if the value that a body sees may differ from step to step: tensors (written in place) and schedules."""
    if isinstance(value, tuple):
        return any(varies(item) for item in value)
    return isinstance(value, Tensor | Schedule)


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors of an argument's value."""
    return [item for item in (value if isinstance(value, tuple) else (value,)) if isinstance(item, Tensor)]


def resolve(value: Any, count: Any) -> Any:
    """The value of an argument at `count` finished updates.

    Tensors become float64, because 1 - 0.999 in float32 is off by 1e-5; so do the values of schedules.
    """
    if isinstance(value, tuple):
        return tuple(resolve(item, count) for item in value)
    if isinstance(value, Schedule):
        device = count.device if isinstance(count, Tensor) else torch.device("cpu")
        if not isinstance(count, Tensor) and not torch.compiler.is_compiling():
            return exact(value(count), device)
        # In float64: an int64 tensor times a Python float would be float32.
        return exact(value(exact(count, device)), device)
    return exact(value, value.device) if isinstance(value, Tensor) else value


def exact(value: Any, device: torch.device) -> Tensor:
    """A number or 0-d tensor as float64. (`torch.as_tensor` of a Python float would be float32.)

    It is filled in on the device, also from a 0-d tensor of the host: sending it would wait for all that is queued.
    Sizes stay symbolic where a program is traced for all of them.
    """
    if not isinstance(value, Tensor):
        return torch.full((), value, dtype=exact_dtype(device), device=device)
    if value.device.type == "cpu" and device.type != "cpu" and value.ndim == 0:
        return torch.zeros((), dtype=exact_dtype(device), device=device) + value
    return value.to(device, exact_dtype(device))


def exact_dtype(like: Any) -> torch.dtype:
    """float64, or float32 where the device has no float64."""
    device = like.device if isinstance(like, Tensor) else like
    return torch.float32 if getattr(device, "type", "cpu") == "mps" else torch.float64


def log_or_zero(beta: Any) -> Any:
    """log(beta), with 0 in place of -inf at beta = 0; `math.log` for a number, so that nothing is rounded."""
    if isinstance(beta, Tensor):
        return torch.where(beta == 0, torch.ones_like(beta), beta).log()
    return math.log(beta) if beta else 0.0
