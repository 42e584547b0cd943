"""The steps of least squares: for one problem, and for many whose finished members cost nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from gradtx.base import torch_names as _torch
from gradtx.base import tree as _tree
from gradtx.base.progress import progress_bar
from gradtx.curvature.terms import half_square
from gradtx.execution.context import selected_tree
from gradtx.meta.fit import Factor, jacobian_of
from gradtx.transform import GradientTransformation, apply_updates

Tensors: TypeAlias = Sequence[Tensor]
Until: TypeAlias = float | Callable[[Any, Any, Tensor], Any]

# A minimum is confirmed by a factorization of the Jacobian, for at most so many parameters.
MOST_FACTORED = 1000
LONG = 2.0  # seconds without a progress bar
# Steps of a batch between confirmations of few members.
PERIOD = 4
# A step from the minimum may raise the loss by its rounding errors.
ROUNDING = 8.0


class Reached(NamedTuple):
    """Where a search is: parameters, state of the chain, loss, and how it ended.

    Attributes:
        may_end: Whether the last step changed so little that this may be the minimum.
        is_still: Whether no further step would change anything.
        failed: Whether the loss is not finite.
    """

    params: Any
    state: Any
    loss: Tensor
    may_end: Tensor
    is_still: Tensor
    failed: Tensor


class Ended(NamedTuple):
    """The result of a search."""

    params: Any
    steps: Tensor
    converged: Tensor


@dataclass(frozen=True)
class Fitter:
    """How to search for a minimum of half the sum of squares of residuals.

    Attributes:
        who: The public function, for messages.
        residuals: The vector of residuals, of parameters and of the tensors of the arguments.
        tx: The chain.
        steps: The largest number of steps.
        until: The caller's condition; None for the test of this module.
        tolerance: Of that test; None for the root of the dtype's precision.
        progress: Whether to show a progress bar.
    """

    who: str
    residuals: Callable[[Any, Tensors], Tensor]
    tx: GradientTransformation
    steps: int
    until: Until | None
    tolerance: float | None
    progress: bool | None

    def loss(self, params: Any, tensors: Tensors) -> Tensor:
        return half_square(self.residuals(params, tensors))

    def gradient(self, params: Any, tensors: Tensors) -> Any:
        """Return J^T r, a tree like the parameters."""
        leaves, rebuild = _tree.split(params)

        def loss(*leaves: Tensor) -> Tensor:
            return self.loss(rebuild(leaves), tensors)

        return rebuild(torch.func.grad(loss, tuple(range(len(leaves))))(*leaves))

    # One member. No value is read, so that `torch.vmap` takes these functions.

    def start(self, params: Any, tensors: Tensors) -> Reached:
        loss = self.loss(params, tensors)
        no = torch.zeros_like(loss, dtype=torch.bool)
        return Reached(params, self.tx.init(params), loss, no, no, ~loss.isfinite())

    def step(self, at: Reached, tensors: Tensors) -> Reached:
        def residual_fn(params: Any) -> Tensor:
            return self.residuals(params, tensors)

        made = {
            "residual_fn": residual_fn,
            "value": at.loss,
            "value_fn": lambda params: half_square(residual_fn(params)),
        }
        extras = {name: made[name] for name in self.tx.needs if name in made}
        extras["residual_fn"] = residual_fn
        updates, state = self.tx.update(at.params, at.state, at.params, **extras)
        params = apply_updates(at.params, updates)
        loss = self.loss(params, tensors)
        size, length = _norm(updates), _norm(at.params)
        moved, tolerance = size > 0, self._tolerance(at.params)
        is_still = ~moved & _same_state(at.state, state)
        if self.until is None:
            small = (at.loss - loss).abs() <= tolerance * at.loss
            short = size <= tolerance * (tolerance + length)
            may_end = is_still | (moved & (small | short))
        else:
            may_end = self._holds(params, loss, tensors)
        return Reached(params, state, loss, may_end, is_still, ~loss.isfinite())

    def _holds(self, params: Any, loss: Tensor, tensors: Tensors) -> Tensor:
        """Return whether the caller's condition holds."""
        gradient = self.gradient(params, tensors)
        until: Any = self.until
        if callable(until):
            return torch.as_tensor(until(params, gradient, loss))
        return _norm(gradient) <= until

    def confirmed(self, at: Reached, tensors: Tensors) -> tuple[Any, Tensor]:
        r"""Return parameters one Gauss-Newton step nearer to the minimum, and whether they are at it.

        They are where the part of the residuals in the span of the Jacobian is small, |Q^T r| <= tolerance |r|, or
        where that step is short.
        """
        if self.until is not None:
            return at.params, at.may_end
        jacobian = jacobian_of(lambda p: self.residuals(p, tensors), at.params)
        m, n = jacobian.size
        if n > m or n > MOST_FACTORED:
            return at.params, at.may_end
        factor, residuals = Factor(jacobian.rows), jacobian.value
        coordinates = factor.projected(residuals)
        step = -factor.solved(coordinates)
        tolerance = self._tolerance(at.params)
        flat = coordinates.norm() <= tolerance * residuals.norm()
        short = step.norm() <= tolerance * (tolerance + _norm(at.params))
        converged = at.may_end & (flat | short | at.is_still)
        _, rebuild = _tree.split(at.params)
        nearer = apply_updates(at.params, rebuild(jacobian.joint.parts(step)))
        rounding = ROUNDING * torch.finfo(residuals.dtype).eps
        taken = converged & (self.loss(nearer, tensors) <= at.loss * (1 + rounding))
        return selected_tree(taken, nearer, at.params), converged

    def _tolerance(self, params: Any) -> float:
        if self.tolerance is not None:
            return self.tolerance
        dtypes = [leaf.dtype for leaf in _tree.tensors(params)]
        return max((torch.finfo(dtype).eps for dtype in dtypes), default=0.0) ** 0.5

    # Loops.

    def alone(self, params: Any, tensors: Tensors) -> Ended:
        """Search for one minimum, under `torch.vmap` until all members have ended."""
        at = self.start(params, tensors)
        steps = torch.zeros_like(at.loss, dtype=torch.int64)
        converged = torch.zeros_like(at.failed)
        ended = at.failed
        bar = _LateBar(self)
        for _ in range(self.steps):
            if not _torch.any_member(~ended):
                break
            moved = self.step(at, tensors)
            is_batched = _torch.is_batched(ended)
            at = (
                Reached(*selected_tree(ended, tuple(at), tuple(moved)))
                if is_batched
                else moved
            )
            steps = steps + ~ended
            if _torch.any_member(at.may_end & ~ended):
                nearer, found = self.confirmed(at, tensors)
                found = found & ~ended & ~at.failed
                at = at._replace(params=selected_tree(found, nearer, at.params))
                converged = converged | found
            ended = converged | at.failed | at.is_still
            bar.update(at.loss)
        bar.close()
        # Convergence is that of the parameters themselves, not of their average or slow copy.
        weights = self.tx.eval_params(at.state, at.params)
        return Ended(selected_tree(converged, at.params, weights), steps, converged)

    def together(self, params: Any, tensors: Tensors, dims: Sequence[Any]) -> Ended:
        """Search for the minimum of each member; those that have ended leave the batch.

        Args:
            params: A tree of tensors with a leading dimension of members.
            tensors: The tensors of the arguments.
            dims: For each of them, 0 if it has that dimension, else None.
        """
        functions: list[Callable[..., Any]] = [self.start, self.step, self.confirmed]
        start, step, confirmed = (
            torch.vmap(function, in_dims=(0, list(dims))) for function in functions
        )
        at: Reached = start(params, list(tensors))
        members = torch.arange(len(at.loss), device=at.loss.device)
        steps = torch.zeros_like(members)
        converged = torch.zeros_like(at.failed)
        result = params
        ended, bar = at.failed, _LateBar(self)
        for count in range(1, self.steps + 1):
            if bool(ended.any()):
                result = self._noted(result, ended, at, members, converged)
                at, tensors, members = _kept(~ended, at, tensors, dims, members)
            if not len(members):
                break
            at = step(at, list(tensors))
            steps[members] += 1
            ended = at.failed | (at.is_still & ~at.may_end)
            if self._is_due(at.may_end, count):
                places = at.may_end.nonzero()[:, 0]
                some, data, rows = _kept(places, at, tensors, dims, members)
                nearer, found = confirmed(some, list(data))
                found = found & ~some.failed
                converged[rows] = found
                leaves = _where_first(found, nearer, some.params)
                at = at._replace(params=_put(at.params, places, leaves))
                over = ended[places] | found | some.is_still
                ended = ended.index_put((places,), over)
            bar.update(at.loss)
        bar.close()
        rest = torch.ones_like(members, dtype=torch.bool)
        result = self._noted(result, rest, at, members, converged)
        return Ended(result, steps, converged)

    def _is_due(self, may_end: Tensor, count: int) -> bool:
        """Whether to confirm members of a batch: a call costs half of a step, for few as for many."""
        candidates = int(may_end.sum())
        is_majority = 2 * candidates >= len(may_end)
        is_time = count % PERIOD == 0 or count == self.steps or self.until is not None
        return candidates > 0 and (is_majority or is_time)

    def _noted(
        self,
        result: Any,
        which: Tensor,
        at: Reached,
        members: Tensor,
        converged: Tensor,
    ) -> Any:
        """Return results with those of some members: parameters at a minimum, else weights for evaluation."""
        places = which.nonzero()[:, 0]
        if not len(places):
            return result
        state, params = _tree.map_tensors(
            lambda leaf: leaf[places], (at.state, at.params)
        )
        weights = torch.vmap(self.tx.eval_params)(state, params)
        rows = members[places]
        return _put(result, rows, _where_first(converged[rows], params, weights))


class _LateBar:
    """A progress bar that appears once the work takes long, or at once if the caller asks for it."""

    def __init__(self, search: Fitter) -> None:
        self._search, self._bar, self._count = search, None, 0
        self._start = time.perf_counter()

    def update(self, loss: Tensor) -> None:
        self._count += 1
        if self._bar is None:
            search, is_long = self._search, time.perf_counter() - self._start > LONG
            if not (search.progress or is_long):
                return
            self._bar = progress_bar(search.who, search.progress, search.steps, "steps")
            self._bar.update(self._count - 1)
        self._bar.update(1)
        if _torch.readable(loss):
            text = f"loss {loss.item():.3g}" if not loss.ndim else f"{len(loss)} left"
            self._bar.set_postfix_str(text)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _norm(tree: Any) -> Tensor:
    """Return the norm of all entries of a tree, 0-d float64."""
    squares = [half_square(leaf) for leaf in _tree.tensors(tree)]
    return (2 * torch.stack(squares).sum()).sqrt()


def _same_state(old: Any, new: Any) -> Tensor:
    """Return whether all floating-point entries of a state are the same: counts always change."""
    pairs = zip(_tree.tensors(old), _tree.tensors(new), strict=True)
    same = [(x == y).all() for x, y in pairs if x.is_floating_point()]
    return torch.stack(same).all() if same else torch.tensor(True)


def _where_first(condition: Tensor, yes: Any, no: Any) -> Any:
    """Like `selected_tree`, for a condition of the first dimension."""

    def chosen(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(condition.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return _tree.map_tensors(chosen, yes, no)


def _kept(
    which: Tensor, at: Reached, tensors: Tensors, dims: Sequence[Any], members: Tensor
) -> tuple[Reached, list[Tensor], Tensor]:
    """Return some members: a mask of the first dimension, or indices."""
    places = which.nonzero()[:, 0] if which.dtype is torch.bool else which
    kept = _tree.map_tensors(lambda leaf: leaf[places], at)
    data = [
        tensor if dim is None else tensor[places]
        for tensor, dim in zip(tensors, dims, strict=True)
    ]
    return kept, data, members[places]


def _put(tree: Any, places: Tensor, values: Any) -> Any:
    return _tree.map_tensors(
        lambda leaf, value: leaf.index_put((places,), value), tree, values
    )
