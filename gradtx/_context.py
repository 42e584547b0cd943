"""What a rule may know beyond its own tensor: its clock, the gradient, extras."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gradtx import _tree
from gradtx._arguments import is_off
from gradtx._exact import exact, exact_dtype, log_or_zero
from gradtx._messages import close
from gradtx._sharding import undivided

if TYPE_CHECKING:
    from gradtx._program import Leaf

ALWAYS_KNOWN = ("value", "grad_fn", "hessian_diag")
OWN = ("bias_correction", "every", "first", "grad", "step", "time")  # what every rule finds in its context


class Clock:
    """A count of updates: `step` is the 1-based number of the present one, a 0-d int64 tensor.

    `host` is the same number as a Python int where the caller knows it (the adapter), else None.
    """

    def __init__(self, step: Tensor, host: int | None = None):
        self.step, self.host = step, host
        self._moments: dict[torch.device, Moment] = {}

    def on(self, device: torch.device) -> Moment:
        if device not in self._moments:
            # A copy to a device would wait for all that is queued there; filling in a number does not.
            step = self.step.to(device) if self.host is None else torch.full_like(self.step, self.host, device=device)
            self._moments[device] = Moment(step, self.host)
        return self._moments[device]


class Moment:
    """A clock's step on one device, and what follows from it, computed once for all leaves."""

    def __init__(self, step: Tensor, host: int | None):
        self.step, self.host = step, host
        self.time = step.to(exact_dtype(step))
        self._corrections: list[tuple[Any, Tensor]] = []

    def bias_correction(self, beta: Any) -> Tensor:
        for known, value in self._corrections:
            if known is beta or (isinstance(beta, float) and isinstance(known, float) and known == beta):
                return value
        value = bias_correction(beta, self.time)
        self._corrections.append((beta, value))
        return value


def bias_correction(beta: Any, time: Any) -> Tensor:
    started = (time > 0).to(time.dtype)
    if is_off(beta):
        return started
    value = -torch.expm1(time * log_or_zero(beta))
    return torch.where(beta == 0, started, value) if isinstance(beta, Tensor) else value


class Context:
    """What a rule may know beyond its own tensor. Nothing is ever written to it."""

    def __init__(self, leaf: Leaf, clock: Clock, dtype: torch.dtype, rng: Any = None):
        # Not the leaf itself: a cycle would keep its tensors until Python's collector comes by.
        self._extras, self._known = leaf.extras, leaf.run.known_extras
        self._clock, self._dtype, self._grad = clock, dtype, leaf.grad
        self._moment = clock.on(leaf.device)
        if rng is not None:
            self.rng = rng

    def undivided(self) -> Context:
        """The same with whole tensors in place of those divided among processes."""
        new = copy.copy(self)
        new._grad, new._extras = undivided(self._grad), {name: undivided(x) for name, x in self._extras.items()}
        return new

    def holds_for(self, clock: Clock, grad: Any, dtype: torch.dtype) -> bool:
        return self._clock is clock and self._grad is grad and self._dtype == dtype

    @property
    def step(self) -> Tensor:
        """The number of this update on the rule's clock, 1-based, 0-d int64."""
        return self._moment.step

    @property
    def time(self) -> Tensor:
        """`step` in float64, for wherever t enters arithmetic (`step.sqrt()` would be float32)."""
        return self._moment.time

    @property
    def grad(self) -> Any:
        """The gradient of this tensor as the clock saw it, before any link of the chain."""
        return self._grad.to(self._dtype)

    def bias_correction(self, beta: Any, step: Any = None) -> Tensor:
        """1 - beta**step in float64, safe at beta 0 and step 0; computed once for all leaves of equal count."""
        if step is None:
            return self._moment.bias_correction(beta)
        return bias_correction(beta, exact(step, self._moment.time.device))

    def every(self, k: int, phase: int, compute: Callable[[], Any], keep: Callable[[], Any]) -> Any:
        """`compute()` at steps with step % k == phase % k, else `keep()`: tensors or equally built trees of them.

        In pure use both sides run and `torch.where` selects; where the count is known on the host, only one.
        """
        return self._select(lambda step: step % k == phase % k, compute, keep)

    def first(self, compute: Callable[[], Any], keep: Callable[[], Any]) -> Any:
        """`compute()` at step 1, else `keep()`, as `every` selects."""
        return self._select(lambda step: step == 1, compute, keep)

    def _select(self, due: Callable[[Any], Any], compute: Callable[[], Any], keep: Callable[[], Any]) -> Any:
        if self._moment.host is not None:
            return compute() if due(self._moment.host) else keep()
        now = due(self._moment.step)
        return _tree.map_tensors(lambda new, old: torch.where(now, new, old), compute(), keep())

    def __getattr__(self, name: str) -> Any:
        own = self.__dict__
        if name in own.get("_extras", ()):
            return own["_extras"][name]
        if name in ALWAYS_KNOWN or name in own.get("_known", ()):
            return None
        if name.startswith("__"):  # Python asks for these, to copy a context
            raise AttributeError(name)
        if name == "rng":
            raise AttributeError("ctx.rng: only for rules that are declared @per_tensor(random=True)")
        meant = close(name, (*OWN, *ALWAYS_KNOWN, *own.get("_known", ())))
        remedy = f"did you mean ctx.{meant}?" if meant else f"use needs=({name!r},) or extras={{{name!r}: 'leaf'}}"
        raise AttributeError(f"ctx.{name}: nobody declared it; {remedy}")
