"""`Context`: a rule's clock, gradient and extras."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Container, Mapping
from typing import Any

import torch
from torch import Tensor

from gradtx.arguments import is_off
from gradtx.base import tree as _tree
from gradtx.base.errors import UnknownInProgramError
from gradtx.base.exact import exact, exact_dtype, log_or_zero
from gradtx.base.forward import Leaf
from gradtx.base.messages import close
from gradtx.base.torch_names import is_intercepted, readable
from gradtx.distributed.redistribution import full_tensor
from gradtx.state.random import name_key

__all__ = ["Context"]

ALWAYS_KNOWN = ("value", "value_fn", "grad_fn", "hessian_diag")
# The extras that are the loss or derivatives of it: where a rule maximizes, they are those of the negated loss.
OF_LOSS = (*ALWAYS_KNOWN, "prev_grad", "grad_sample")
# Available in every rule's context.
OWN = (
    "bias_correction",
    "counts_on_host",
    "every",
    "first",
    "grad",
    "has_gradient",
    "is_first",
    "seen",
    "step",
    "time",
    "turn",
    "when",
)


class Clock:
    """A count of updates: `step` is the 1-based number of the current update, a 0-d int64 tensor.

    `step_on_host` is the same number as a Python int if the caller (the adapter) knows it, else None; `least` is a
    number that it cannot be below.
    """

    def __init__(self, step: Tensor, step_on_host: int | None = None, least: int = 1):
        self.step = step
        self.step_on_host = step_on_host
        self.least = least if step_on_host is None else step_on_host
        self._readings: dict[torch.device, ClockReading] = {}

    def on(self, device: torch.device) -> ClockReading:
        if device not in self._readings:
            # Copying to a device would wait for all queued work; filling with a constant does not.
            step = (
                self.step.to(device)
                if self.step_on_host is None
                else torch.full_like(self.step, self.step_on_host, device=device)
            )
            self._readings[device] = ClockReading(step, self.step_on_host, self.least)
        return self._readings[device]


class ClockReading:
    """A clock's step on one device, with values derived from it, computed once for all leaves."""

    def __init__(self, step: Tensor, step_on_host: int | None, least: int):
        self.step = step
        self.step_on_host = step_on_host
        self.least = least
        self.time = step.to(exact_dtype(step))
        self._corrections: list[tuple[Any, Tensor]] = []

    def bias_correction(self, beta: Any) -> Tensor:
        for earlier, value in self._corrections:
            if earlier is beta or (
                isinstance(beta, float)
                and isinstance(earlier, float)
                and earlier == beta
            ):
                return value
        value = self.correction_at(beta, self.time)
        self._corrections.append((beta, value))
        return value

    def correction_at(self, beta: Any, time: Tensor) -> Tensor:
        """Return the bias correction at another time, computed as list programs do if the host knows the count.

        torch's expm1 may round differently, and the results of ranks must not differ from those of one process.
        """
        if self.step_on_host is None or is_intercepted():  # a tracer cannot read values
            return bias_correction(beta, time)
        beta_on_host, time_on_host = _on_host(beta), _on_host(time)
        if beta_on_host is None or time_on_host is None:
            return bias_correction(beta, time)
        return torch.full_like(time, -math.expm1(time_on_host * math.log(beta_on_host)))


def bias_correction(beta: Any, time: Any) -> Tensor:
    started = (time > 0).to(time.dtype)
    if is_off(beta):
        return started
    value = -torch.expm1(time * log_or_zero(beta))
    return torch.where(beta == 0, started, value) if isinstance(beta, Tensor) else value


def _on_host(value: Any) -> float | None:
    """Return a positive number; None if it is 0, or if the host cannot read it without waiting."""
    if isinstance(value, Tensor):
        if value.device.type != "cpu" or value.requires_grad or not readable(value):
            return None
        value = value.item()
    return value or None


# In a program, stands for an extra that is not among its arguments.
UNREAD: Any = object()


class Context:
    """The clock, the gradient and the extras that a rule may read. The library creates it; rules never write to it.

    In addition to the attributes below, a rule reads each extra that it declares (`needs=`, `extras=`) by name, such as
    `ctx.value`, and `ctx.rng` if it is declared `random=True`. An optional extra that the caller did not pass is None.
    `ctx.has_gradient` is whether this call has a gradient of the leaf; `accumulate` may close a cycle without one.

    Raises:
        AttributeError: If no link declares the name.

    Example:
        >>> @gradtx.per_tensor(elementwise=True)
        ... def scale_by_gradient_sign():
        ...     return lambda update, state, param, ctx: (update.abs() * ctx.grad.sign(), state)
        >>> tx = gradtx.chain(gradtx.trace(0.9), scale_by_gradient_sign())
    """

    rng: Any
    absent: str | None = None  # the last extra read that was not passed
    has_gradient: bool

    def __init__(self, leaf: Leaf, clock: Clock, dtype: torch.dtype, rng: Any = None):
        # Do not store the leaf itself: a reference cycle would keep its tensors until the garbage collector runs.
        self._extras: dict[str, Any] = leaf.extras
        self._name = None if leaf.run.is_recorded else leaf.name
        self._known: Container[str] = leaf.run.known_extras
        self._clock = clock
        self._dtype = dtype
        self._grad = leaf.grad
        self._negated = leaf.negated
        self.has_gradient = leaf.has_gradient
        self._reading = clock.on(leaf.device)
        self._restarts = leaf.restarts
        if rng is not None:
            self.rng = rng

    def with_full_tensors(self) -> Context:
        """Return a copy with full tensors instead of shards."""
        whole = copy.copy(self)
        whole._grad = full_tensor(self._grad)
        whole._extras = {
            name: full_tensor(value) for name, value in self._extras.items()
        }
        return whole

    def is_valid_for(self, leaf: Leaf, dtype: torch.dtype) -> bool:
        """Whether this is the context of a rule for a leaf in its present state."""
        return (
            self._clock is leaf.clock
            and self._grad is leaf.grad
            and self._restarts is leaf.restarts
            and self._dtype == dtype
        )

    @property
    def step(self) -> Tensor:
        """The 1-based number of this update on the rule's clock, 0-d int64."""
        return self._reading.step

    @property
    def time(self) -> Tensor:
        """`step` in float64, for arithmetic with t (`step.sqrt()` would be float32)."""
        return self._reading.time

    @property
    def grad(self) -> Any:
        """The gradient of this tensor, before any link: inside an alias its input, elsewhere as the clock saw it."""
        return self._grad.to(self._dtype)

    def bias_correction(self, beta: Any, step: Any = None) -> Tensor:
        """Return 1 - beta**step in float64, safe at beta 0 and step 0; computed once for leaves with equal counts."""
        if step is None:
            return self._reading.bias_correction(beta)
        time = exact(step, self._reading.time.device)
        return self._reading.correction_at(beta, time)

    @property
    def seen(self) -> Tensor:
        """Whether this leaf has been updated before, 0-d bool: False in the update with its first gradient.

        A clock that goes on when a leaf restarts is past step 1 then.
        """
        seen = self._reading.step > 1
        if self._restarts is not False:
            seen = seen & (torch.full_like(seen, True) ^ self._restarts)
        return seen

    @property
    def counts_on_host(self) -> bool:
        """Whether the host knows the count, so that a rule may also read values there."""
        return self._reading.step_on_host is not None

    @property
    def is_first(self) -> bool | Tensor:
        """Whether this leaf has not been updated before: a bool if the host knows, else a 0-d tensor."""
        if self._restarts is not False:
            return ~self.seen
        if self._reading.least > 1:
            return False
        return ~self.seen if self._reading.step_on_host is None else True

    def every(
        self,
        k: int,
        phase: int,
        compute: Callable[[], Any],
        keep: Callable[[], Any],
        first: bool = False,
    ) -> Any:
        """Return `compute()` at steps with step % k == phase % k, else `keep()`: tensors or trees of equal structure.

        With `first`, also `compute()` in a leaf's first update. If the host knows the count, one function runs;
        otherwise, as under `vmap`, both run and `torch.where` selects.
        """

        def due(step: Any) -> Any:
            return step % k == phase % k

        if not first:
            return self.when(due, compute, keep)
        is_first = self.is_first
        if isinstance(is_first, bool):
            return compute() if is_first else self.when(due, compute, keep)
        # One computation for both conditions: programs skip only values that a single choice reads.
        now = is_first | due(self._reading.step)
        return selected_tree(now, compute(), keep())

    def turn(self, k: int) -> int:
        """Return an integer in [0, k) derived from the leaf's name: a phase that spreads periodic work over steps."""
        if self._name is None:
            raise UnknownInProgramError(
                "a rule that depends on leaf names has no program"
            )
        return name_key(self._name) % k

    def first(self, compute: Callable[[], Any], keep: Callable[[], Any]) -> Any:
        """Return `compute()` in a leaf's first update, else `keep()`; selection works as in `every`."""
        is_first = self.is_first
        if isinstance(is_first, bool):
            return compute() if is_first else keep()
        return selected_tree(is_first, compute(), keep())

    def when(
        self,
        due: Callable[[Any], Any],
        compute: Callable[[], Any],
        keep: Callable[[], Any],
    ) -> Any:
        """Return `compute()` if `due(step)` is true, else `keep()`, as in `every`; `step` is an int or a 0-d tensor."""
        if self._reading.step_on_host is not None:
            return compute() if due(self._reading.step_on_host) else keep()
        return selected_tree(due(self._reading.step), compute(), keep())

    def __getattr__(self, name: str) -> Any:
        own = self.__dict__
        if name in own.get("_extras", ()):
            value = own["_extras"][name]
            if value is UNREAD:
                raise UnknownInProgramError(f"the program has no argument {name!r}")
            return negated(value) if own["_negated"] and name in OF_LOSS else value
        known = own.get("_known", ())
        if name in ALWAYS_KNOWN or name in known:
            self.absent = name
            return None
        if name.startswith("__"):  # Python looks these up when it copies a context
            raise AttributeError(name)
        if name == "rng":
            raise AttributeError(
                "ctx.rng: only random rules have it; declare the rule @per_tensor(random=True)"
            )
        meant = close(name, (*OWN, *ALWAYS_KNOWN, *known))
        remedy = (
            f"did you mean ctx.{meant}?"
            if meant
            else f"use extras={{{name!r}: 'leaf'}}"
        )
        raise AttributeError(f"ctx.{name}: no link declares it; {remedy}")


def negated(value: Any) -> Any:
    """Return an extra of the negated loss: a number, a tree of tensors, a function that returns one, or None."""
    if callable(value):
        return lambda *args, **kwargs: negated(value(*args, **kwargs))
    if isinstance(value, int | float):
        return -value
    return _tree.map_tensors(torch.neg, value)


def selected_tree(condition: Tensor, new: Any, old: Any) -> Any:
    """Return the new tree of tensors where a 0-d condition holds, else the old one."""

    def chosen(new: Tensor, old: Tensor) -> Tensor:
        return torch.where(condition, new, old)

    return _tree.map_tensors(chosen, new, old)


class FrameContext(Context):
    """The context of a combinator's `enter` and `leave`.

    Attributes:
        ticks: Whether the inner clock counts this call, 0-d bool; None for a combinator without a clock.
        inner: The inner transformation's new slots that the combinator requested, by "stage.slot".
        before, after: The values of the inner clock before and after this call, 0-d int64, by name.
    """

    ticks: Tensor | None
    inner: dict[str, Tensor]

    def __init__(
        self,
        leaf: Leaf,
        dtype: torch.dtype,
        ticks: Tensor | None,
        inner: dict[str, Tensor],
        before: Mapping[str, Tensor],
        after: Mapping[str, Tensor],
    ):
        super().__init__(leaf, leaf.clock, dtype)
        self.ticks = ticks
        self.inner = inner
        self._device = leaf.device
        self._before = before
        self._after = after
        self._active = leaf.active

    @property
    def before(self) -> dict[str, Tensor]:
        return {name: tensor.to(self._device) for name, tensor in self._before.items()}

    @property
    def after(self) -> dict[str, Tensor]:
        return {name: tensor.to(self._device) for name, tensor in self._after.items()}

    def keep(self, new: Tensor, old: Tensor) -> Tensor:
        """Return `new`, or `old` if this leaf is skipped in this call."""
        return new if self._active is None else torch.where(self._active, new, old)
