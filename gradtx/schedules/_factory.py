"""The decorator that creates a schedule's factory."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Concatenate, ParamSpec

import torch
from torch import Tensor

from gradtx.arguments import Arguments
from gradtx.base.exact import CPU, Schedule, exact
from gradtx.base.messages import describe, schedule_remedy
from gradtx.base.names import is_ours, publish
from gradtx.base.recent import Recent
from gradtx.base.torch_names import inside_transform, is_intercepted, readable

P = ParamSpec("P")

# Common keyword of all schedules -> the schedule's own names, which come from torch or from papers.
COMMON_WORDS: dict[str, tuple[str, ...]] = {
    "lr": ("max_lr", "peak_lr"),
    "total_steps": ("t_max", "T_max", "total_iters", "num_epochs", "num_iterations"),
    "warmup_steps": ("num_warmup_steps", "num_warm_up_iterations"),
    "min_lr": ("eta_min", "base_lr", "warm_down_min_lr"),
}


# A schedule computes the values of this many steps at once, in a little more time than that of one step.
WINDOW = 256
# More than optimizers with one schedule, or clocks of one chain, usually follow at the same time.
KEPT_WINDOWS = 4


class MadeSchedule(Schedule):
    """A call of a schedule's factory, which it prints, pickles and copies as."""

    def __init__(self, factory, arguments: dict[str, Any]):
        items = _items_in(list(arguments.values()))
        self.tensors = [item for item in items if isinstance(item, Tensor)]
        nested = [item for item in items if isinstance(item, Schedule)]
        self.reads_outside = any(schedule.reads_outside for schedule in nested)
        devices = [tensor.device for tensor in self.tensors]
        self._accelerator = next((x for x in devices if x.type != "cpu"), None)
        self._factory = factory
        # Whoever made the call may edit a dict later; a list has become a tuple.
        self._arguments = {
            name: dict(value) if isinstance(value, dict) else value
            for name, value in arguments.items()
        }
        # The values of `WINDOW` steps by the index of the window: the same bits at a count wherever training resumed.
        self._windows: dict[int, list[Any]] = {}
        super().__init__(self._value)
        self._text = self._text_of_constants()
        equal = None if self._text is None else _EQUALS.get(self._text)
        if equal is not None:
            self._windows = equal._windows
            return
        # Run the body's own checks at construction.
        self._value(exact(0, CPU))
        if self._text is not None:
            _EQUALS.put(self._text, self)

    def _text_of_constants(self) -> str | None:
        """Return what only equal schedules have; None if an argument may change, or refer to anything."""
        if torch.compiler.is_compiling() or self.constants() is None:
            return None
        texts = map(_text_of, self._arguments.values())
        return f"{self._factory.__name__}({', '.join(texts)})"

    def text(self) -> str | None:
        return self._text

    def _exact(self, step: Tensor) -> dict[str, Any]:
        """Return the arguments that the body receives at a step.

        Numbers become float64 tensors, since `torch.where` of two Python numbers would return float32; schedules are
        replaced by their values.
        """
        values = dict(self._arguments)
        for argument in self._factory.arguments.all:
            value = values[argument.name]
            if argument.kind == "scalar" and value is not None:
                number = value(step) if isinstance(value, Schedule) else value
                values[argument.name] = exact(number, step.device)
        return values

    def _value(self, step) -> Any:
        """Return the value at a step: a number at a Python number, unless it depends on tensors."""
        if type(step) is int and step >= 0 and self._has_windows():
            return self.at(step)
        # A tensor from there would arrive on the host only after all queued work.
        device = self._accelerator or (step.device if isinstance(step, Tensor) else CPU)
        exact_step = exact(step, device)
        value = self._factory.function(exact_step, **self._exact(exact_step))
        is_number = not (isinstance(step, Tensor) or self.tensors)
        return value.item() if is_number and readable(value) else value

    def _has_windows(self) -> bool:
        """Whether the values at several steps can be computed at once, and kept."""
        is_fixed = not (self.tensors or self.reads_outside)
        return is_fixed and not (is_intercepted() or inside_transform())

    def at(self, count: int) -> Any:
        window = self._windows.get(count // WINDOW)
        if window is None:
            if not self._has_windows():
                return super().at(count)
            window = self._add_window(count // WINDOW)
        return window[count % WINDOW]

    def _add_window(self, index: int) -> list[Any]:
        first = index * WINDOW
        steps = torch.arange(first, first + WINDOW, dtype=torch.float64, device=CPU)
        with torch.no_grad():
            values = torch.vmap(self._value)(steps).tolist()
        kept = list(self._windows.items())[1 - KEPT_WINDOWS :]
        self._windows = {**dict(kept), index: values}  # another thread may read it
        return values

    def scalars(self) -> dict[str, float]:
        """Return the arguments that are plain numbers and may also be tensors."""
        scalars = {a.name for a in self._factory.arguments.all if a.kind == "scalar"}
        return {
            name: value
            for name, value in self._arguments.items()
            if name in scalars and isinstance(value, float)
        }

    def with_scalars(self, scalars: Mapping[str, Any]) -> MadeSchedule:
        """Return the same call with other numbers."""
        return MadeSchedule(self._factory, {**self._arguments, **scalars})

    def structure(self) -> tuple[Any, dict[str, Any]]:
        """Return what schedules that differ in numbers only have in common."""
        return self._factory, {**self._arguments, **dict.fromkeys(self.scalars())}

    def constants(self) -> Any:
        if not is_ours(self._factory.function):
            return None
        try:
            _, arguments = self.structure()
            return self._factory.__name__, _constants_in(arguments)
        except _NoConstantError:
            return None

    def __reduce__(self) -> tuple[Any, ...]:
        return MadeSchedule, (self._factory, self._arguments)

    def __repr__(self) -> str:
        shown = self._factory.arguments.shown(self._arguments)
        return f"{self._factory.__name__}({', '.join(shown)})"


_EQUALS: Recent[str, MadeSchedule] = Recent()


def _text_of(value: Any) -> str:
    """Return the text of constants, with those of nested schedules."""
    if isinstance(value, MadeSchedule):
        return str(value.text())
    if isinstance(value, dict):
        value = tuple(value.items())
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_text_of, value))})"
    return repr(value)


class _NoConstantError(Exception):
    """An argument may change, or refer to anything."""


def _constants_in(value: Any) -> Any:
    """Return the constants of which a value consists, with those of nested schedules."""
    if isinstance(value, Schedule):
        value = value.constants()
        if value is None:
            raise _NoConstantError
        return value
    if isinstance(value, dict):
        return tuple((key, _constants_in(item)) for key, item in value.items())
    if isinstance(value, tuple | list):
        return tuple(map(_constants_in, value))
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise _NoConstantError


def _items_in(value) -> list[Any]:
    """Return the items of a value, each nested schedule after its tensors."""
    if isinstance(value, MadeSchedule):
        return [*value.tensors, value]
    if not isinstance(value, tuple | list):
        return [value]
    items = []
    for item in value:
        items += _items_in(item)
    return items


def check_schedule(what: str, value) -> None:
    """Raise an error unless this is a Schedule."""
    if not isinstance(value, Schedule):
        raise TypeError(
            f"{what} must be a gradtx.Schedule, got {describe(value)}{schedule_remedy(value)}"
        )


def entry_at(values: Tensor, index: Tensor) -> Tensor:
    """Return an entry of a vector as a sum, because vmap does not support an index that is a tensor."""
    is_here = torch.arange(len(values), device=values.device) == index
    return (values * is_here).sum()


def in_its_words(arguments: Arguments, options: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the common keywords in `options` to this schedule's own names."""
    renamed = {}
    for name, value in options.items():
        word = word_for(name, arguments)
        is_given_twice = word != name and word in options
        if is_given_twice or word in renamed:
            raise TypeError(f"{arguments.name}: got two values for {word!r}")
        renamed[word] = value
    return renamed


def _in_words_of(options: Mapping[str, Any], arguments: Arguments, message: str) -> str:
    """Return a message about an argument with the name that the caller has typed."""
    for typed in options:
        word = word_for(typed, arguments)
        prefix = f"{arguments.name}: {word} "
        if word != typed and message.startswith(prefix):
            return f"{arguments.name}: {typed} {message.removeprefix(prefix)}"
    return message


def word_for(name: str, arguments: Arguments) -> str:
    """Return a schedule's own name for a common keyword; other names are unchanged."""
    if name in arguments.by_name:
        return name
    for word in COMMON_WORDS.get(name, ()):
        if word in arguments.by_name:
            return word
    return name


def schedule(
    function: Callable[Concatenate[Any, P], Tensor],
) -> Callable[P, Schedule]:
    """Create a schedule's factory from a function of the step, a float64 tensor, and of the factory's arguments."""
    described: Any = function
    signature = inspect.signature(function)
    arguments_only = [*signature.parameters.values()][1:]
    described.__signature__ = signature.replace(parameters=arguments_only)
    arguments = Arguments(function.__name__, function, "schedule")

    @functools.wraps(function)
    def call(*args, **kwargs) -> Schedule:
        options = in_its_words(arguments, kwargs)
        try:
            return MadeSchedule(factory, arguments.bind(args, options))
        except (TypeError, ValueError) as error:
            raise type(error)(_in_words_of(kwargs, arguments, str(error))) from None

    factory: Any = call
    factory.function = function
    factory.arguments = arguments
    # Command lines and files name what returns a rate.
    factory.__signature__ = arguments.signature.replace(return_annotation=Schedule)
    factory.__annotations__ = {**arguments.types, "return": Schedule}
    publish(factory)
    return factory
