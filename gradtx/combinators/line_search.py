"""Choose step lengths by evaluating the loss again: backtracking, and the strong Wolfe conditions."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from gradtx.arguments import AtLeastOne, Count, OpenFraction, Positive
from gradtx.base.dtensor import total
from gradtx.base.exact import exact
from gradtx.execution.runs import Scope
from gradtx.execution.tree_rule import Functions, TreeOperation
from gradtx.rules import Combinator, combinator
from gradtx.transform import GradientTransformation

__all__ = ["line_search"]

# Minimum distance of a trial from the ends of a bracket, as a fraction of its width.
EDGE = 0.1


@combinator(needs=("params", "value_fn"))
def line_search(
    tx: GradientTransformation,
    max_steps: Count = 10,
    shrink: OpenFraction = 0.5,
    c1: OpenFraction = 1e-4,
    start: Positive = 1.0,
    growth: AtLeastOne | None = None,
    conditions: Literal["armijo", "strong_wolfe"] = "armijo",
    c2: OpenFraction = 0.9,
):
    r"""Scale the updates of an optimizer so that the loss decreases sufficiently.

    With the final update $u$, the loss $\varphi(a)$ at $p + a u$ and $m = \langle g, u \rangle$ over all leaves,
    "armijo" tries $a = a_0, a_0 s, a_0 s^2, \ldots$ and accepts the first with
    $\varphi(a) \le \varphi(0) + c_1 a m$. "strong_wolfe" also requires $|\varphi'(a)| \le c_2 |m|$: it doubles $a$
    until a bracket contains such a point, then tries the minimum of the cubic through both ends, kept a tenth of the
    bracket away from them; if no trial satisfies both conditions, it uses the one with the lowest loss that satisfies
    the first. The number of trials is fixed and flags select among them, so the search runs under `vmap` and compiles.
    An optimizer created by `as_optimizer` stops at the first accepted trial.

    The caller passes `value_fn`, a function of the parameters that returns the loss of this batch; a torch optimizer
    calls its closure instead, never twice at one point within `step(closure, max_iter=20)`. All trials use the same
    batch. If `value` is also passed, it is used as $\varphi(0)$.

    Args:
        tx: The optimizer whose updates are scaled, such as `lbfgs()`.
        max_steps: Number of trials, >= 1.
        shrink: $s$ in (0, 1), for "armijo".
        c1: $c_1$ in (0, 1).
        start: $a_0 > 0$ of the first step; without `growth`, of every step.
        growth: Factor >= 1: $a_0$ of the next step is this factor times the accepted $a$, or $s a_0$ after a failure.
        conditions: "armijo" or "strong_wolfe", which needs a derivative at every trial: through `value_fn` in pure use,
            by the closure's `backward` in an optimizer.
        c2: $c_2$ in (0, 1), greater than $c_1$, for "strong_wolfe".

    Returns:
        A transformation whose updates are added to the parameters. State: `step_size` (the last $a$, 0-d), `next_size`
        ($a_0$, 0-d) if `growth` is given, and the entries of `tx`.

    Raises:
        TypeError: If `tx` is not a transformation, or if `value_fn` is not a function.
        ValueError: If an argument is out of range, if `conditions` is unknown, if `c2` is not greater than `c1`, if
            `value_fn` or `params` is missing, or if the loss is not 0-d.

    Example:
        >>> loss = lambda p: p["w"].pow(4).sum()
        >>> tx = gradtx.line_search(gradtx.sgd(lr=1.0))
        >>> params = {"w": torch.tensor([2.0])}
        >>> updates, state = tx.update(
        ...     torch.func.grad(loss)(params), tx.init(params), params, value_fn=loss
        ... )
        >>> # the gradient is 32, which would overshoot
        >>> updates["w"], state["line_search"]["step_size"]
        (tensor([-2.]), tensor(0.0625, dtype=torch.float64))

    Source: Armijo 1966; Wolfe 1969; Nocedal and Wright 2006, algorithms 3.5 and 3.6. Departures: a single loop of
    trials both brackets and zooms. If no trial is accepted, the parameters do not change, but the state of `tx` has
    advanced. An update that is not a descent direction ($m \ge 0$) is accepted if the loss decreases.
    """
    if isinstance(c1, float) and isinstance(c2, float) and not c1 < c2:
        raise ValueError(f"line_search: c2 must be greater than c1, got {c2} and {c1}")

    def init(params):
        device = next(iter(params.values())).device
        first = exact(start, device)
        sizes = {"step_size": torch.zeros_like(first)}
        return sizes if growth is None else {**sizes, "next_size": first}

    def update(updates, state, params, ctx):
        slope = total({name: ctx.grad[name] * u for name, u in updates.items()})
        value = ctx.known_value()
        if value is None:
            value, _ = ctx.value_along(params, updates, torch.zeros_like(slope))
        line = Line(params, updates, ctx, value.to(slope), slope, c1)
        first = exact(start, slope.device) if growth is None else state["next_size"]
        first = first.to(slope)
        if conditions == "armijo":
            length = backtracked(line, first, max_steps, shrink)
        else:
            length = wolfe(line, first, max_steps, c2)
        moves = length > 0
        scaled = {}
        for name, u in updates.items():
            moved = length.to(u.device, u.dtype) * u
            # Where, since 0 * inf is NaN.
            scaled[name] = torch.where(moves.to(u.device), moved, 0.0)
        sizes = {"step_size": length}
        if growth is not None:
            sizes["next_size"] = torch.where(moves, growth * length, shrink * first)
        return scaled, sizes

    return Search(tx, Functions(init, update))


@dataclasses.dataclass(frozen=True)
class Search(Combinator):
    """The inner operations, followed by one operation for all leaves."""

    inner: GradientTransformation
    functions: Functions

    def expand(self, scope: Scope, name: str) -> list[Any]:
        path = scope.claim(name)
        inner = self.inner._expand(scope.inside(path, 0))
        operation = TreeOperation(path, scope, name, self.functions, scope.own)
        return [*inner, operation]


@dataclasses.dataclass(frozen=True)
class Line:
    """The loss along an update.

    Attributes:
        origin, direction: The parameters and the update, by leaf name.
        ctx: The context of the step.
        value, slope: The loss and its slope at length 0.
        c1: The share of the slope that a sufficient decrease has.
    """

    origin: dict[str, Tensor]
    direction: dict[str, Tensor]
    ctx: Any
    value: Tensor
    slope: Tensor
    c1: Any

    def at(self, length: Tensor, sloped: bool = False) -> tuple[Tensor, Any]:
        """Return the loss at a length, and its slope if `sloped`."""
        value, slope = self.ctx.value_along(self.origin, self.direction, length, sloped)
        return value.to(self.slope), None if slope is None else slope.to(self.slope)

    def decreases(self, length: Tensor, value: Tensor) -> Tensor:
        """Whether the loss at a length is a sufficient decrease."""
        return value <= self.value + self.c1 * length * self.slope

    def is_over(self, is_found: Tensor) -> bool:
        """Whether no further trial is needed, if the host may read `is_found`."""
        return isinstance(self.ctx.is_first, bool) and bool(is_found)


def backtracked(line: Line, first: Tensor, max_steps: int, shrink) -> Tensor:
    """Return the first of a decreasing sequence of lengths with sufficient decrease; 0 if there is none."""
    accepted = torch.zeros_like(first)
    is_found = torch.zeros_like(first, dtype=torch.bool)
    length = first
    for _ in range(max_steps):
        value, _ = line.at(length)
        enough = line.decreases(length, value)
        accepted = torch.where(~is_found & enough, length, accepted)
        is_found = is_found | enough
        if line.is_over(is_found):
            break
        length = shrink * length
    return accepted


class End(NamedTuple):
    """A length, and the loss and slope at that length."""

    length: Tensor
    value: Tensor
    slope: Tensor

    def where(self, choice: Tensor, otherwise: End) -> End:
        """Return this end where `choice` is true, else `otherwise`."""
        ends = zip(self, otherwise, strict=True)
        return End(*(torch.where(choice, a, b) for a, b in ends))


def wolfe(line: Line, first: Tensor, max_steps: int, c2) -> Tensor:
    """Return a length that satisfies the strong Wolfe conditions, or the one of lowest loss with sufficient decrease.

    `low` is the best end so far, `high` the other end of the bracket once there is one.
    """
    low = high = End(torch.zeros_like(first), line.value, line.slope)
    bracketed = is_found = torch.zeros_like(first, dtype=torch.bool)
    length = first
    for _ in range(max_steps):
        value, slope = line.at(length, sloped=True)
        trial = End(length, value, slope)
        enough = line.decreases(length, value)
        too_far = ~enough | (value >= low.value)  # also true if the value is NaN
        flat = ~too_far & (slope.abs() <= c2 * line.slope.abs())
        turns = ~too_far & (
            slope * torch.where(bracketed, high.length - low.length, 1.0) >= 0
        )
        new_high = trial.where(too_far, low.where(turns, high))
        new_low = low.where(too_far, trial)
        low, high = low.where(is_found, new_low), high.where(is_found, new_high)
        bracketed, is_found = bracketed | too_far | turns, is_found | flat
        if line.is_over(is_found):
            break
        length = torch.where(bracketed, _between(low, high), 2 * length)
    return low.length


def _between(low: End, high: End) -> Tensor:
    """Return the minimum of the cubic through both ends, clamped between them; the midpoint if there is no minimum."""
    width = high.length - low.length
    safe = torch.where(width == 0, 1.0, width)
    bend = low.slope + high.slope - 3 * (high.value - low.value) / safe
    square = bend.square() - low.slope * high.slope
    root = torch.where(square > 0, square, 1.0).sqrt() * width.sign()
    bottom = high.slope - low.slope + 2 * root
    share = 1 - (high.slope + root - bend) / torch.where(bottom == 0, 1.0, bottom)
    usable = (square > 0) & (bottom != 0) & share.isfinite()
    share = torch.where(usable, share, 0.5).clamp(EDGE, 1 - EDGE)
    return low.length + share * width
