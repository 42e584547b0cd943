"""A root as one node of the graph of derivatives: reverse and forward mode, `vmap`, and derivatives of derivatives.

The derivative of a root is a linear solve, and the solution of a linear system is itself the root of `A w - b`. So
there is one kind of node for both, and derivatives of any order are nodes of this kind again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor
from torch.func import vjp

from gradtx.arguments import is_number
from gradtx.base import torch_names as _torch
from gradtx.base.messages import describe, nearest, warn_user
from gradtx.base.vectors import JointVector
from gradtx.maths import linear_solvers

Leaves = tuple[Tensor, ...]
UNCONVERGED = ("warn", "raise", "ignore")
# By default, and as long as this is less than ten times the number of unknowns.
MOST_STEPS = 1000
# The residual that a method computes step by step may be lower than the true one, by rounding.
SLACK = 10.0


@dataclass(frozen=True)
class Linear:
    """How to solve linear systems; `custom_root` documents the fields."""

    solve: Any
    tolerance: float | None
    max_steps: int | None
    ridge: float
    precondition: Callable[..., Any] | None
    warm_start: bool
    unconverged: str

    @classmethod
    def checked(
        cls,
        who: str,
        solve: Any,
        tolerance: Any,
        max_steps: Any,
        ridge: Any,
        precondition: Any,
        warm_start: bool,
        unconverged: Any,
    ) -> Self:
        known = linear_solvers.SOLVERS
        if not callable(solve) and solve not in known:
            meant = nearest(solve, known) if isinstance(solve, str) else ""
            raise ValueError(
                f"{who}: unknown solver {describe(solve)}; known: {', '.join(sorted(known))}, or a function of "
                f"(matvec, b){f'; {meant}' if meant.startswith('did') else ''}"
            )
        if tolerance is not None and not (is_number(tolerance) and tolerance > 0):
            raise ValueError(
                f"{who}: tolerance must be in (0, inf), got {describe(tolerance)}"
            )
        if max_steps is not None and not (isinstance(max_steps, int) and max_steps > 0):
            raise ValueError(
                f"{who}: max_steps must be in [1, inf), got {describe(max_steps)}"
            )
        if not (is_number(ridge) and ridge >= 0):
            raise ValueError(f"{who}: ridge must be in [0, inf), got {describe(ridge)}")
        if precondition is not None and not callable(precondition):
            raise TypeError(
                f"{who}: precondition must be a function of (vector, solution, *args), got {describe(precondition)}"
            )
        if unconverged not in UNCONVERGED:
            raise ValueError(
                f"{who}: unconverged must be {', '.join(map(repr, UNCONVERGED))}, got {describe(unconverged)}"
            )
        return cls(
            solve, tolerance, max_steps, ridge, precondition, warm_start, unconverged
        )

    @property
    def is_symmetric(self) -> bool:
        return self.solve in linear_solvers.SYMMETRIC


class Problem:
    """Something whose solution is a root: `optimality(solution, tensors)` is 0. All of them are lists of tensors."""

    # The number of tensors of the solution. Others that `solution` returns follow them and have no derivative.
    size: int

    def __init__(self, linear: Linear, who: str, last: dict[str, Tensor]) -> None:
        self.linear = linear
        self.who = who
        # With `warm_start`, the solution of the last system of a backward pass.
        self.last = last

    def solution(self, tensors: Sequence[Tensor]) -> Leaves:
        raise NotImplementedError

    def optimality(
        self, solution: Sequence[Tensor], tensors: Sequence[Tensor]
    ) -> Leaves:
        raise NotImplementedError

    def precondition(
        self,
        vector: Sequence[Tensor],
        solution: Sequence[Tensor],
        tensors: Sequence[Tensor],
    ) -> Leaves:
        """Return an approximate solution of the system whose matrix is the derivative of `optimality`."""
        raise NotImplementedError


def root(problem: Problem, tensors: Sequence[Tensor]) -> Leaves:
    """Return the solution of a problem, differentiable by its tensors."""
    return _Root.apply(problem, *tensors)


class _Root(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(problem: Problem, *tensors: Tensor) -> Leaves:
        return problem.solution([tensor.detach() for tensor in tensors])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        problem, *tensors = inputs
        ctx.problem = problem
        others = output[problem.size :]
        ctx.others = [(leaf.shape, leaf.dtype, leaf.device) for leaf in others]
        saved = (*output[: problem.size], *tensors)
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        problem, size = ctx.problem, ctx.problem.size
        saved = _torch.alive(ctx.saved_tensors)
        solution, tensors = saved[:size], saved[size:]
        needed = [
            i for i, is_needed in enumerate(ctx.needs_input_grad[1:]) if is_needed
        ]
        gradients: list[Tensor | None] = [None] * len(tensors)
        found = pulled(problem, solution, tensors, cotangents[:size], needed)
        for i, gradient in zip(needed, found, strict=True):
            gradients[i] = gradient
        return (None, *gradients)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        problem, size = ctx.problem, ctx.problem.size
        saved = _torch.alive(ctx.saved_tensors)
        solution, tensors = saved[:size], saved[size:]
        changes = {i: t for i, t in enumerate(tangents[1:]) if t is not None}
        moved = pushed(problem, solution, tensors, changes)
        # torch takes no None here.
        still = [torch.zeros(shape, dtype=d, device=on) for shape, d, on in ctx.others]
        return (*moved, *still)


def pulled(
    problem: Problem,
    solution: Sequence[Tensor],
    tensors: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    needed: Sequence[int],
) -> Leaves:
    """Return the gradients by some of the tensors, given those of the solution."""
    system = _Transposed(problem)
    w = root(system, [*solution, *cotangents, *tensors])
    function = _by(problem, solution, tensors, needed)
    pull = vjp(function, *(tensors[i] for i in needed))[1]
    return pull(tuple(-leaf for leaf in w))


def pushed(
    problem: Problem,
    solution: Sequence[Tensor],
    tensors: Sequence[Tensor],
    changes: Mapping[int, Tensor],
) -> Leaves:
    """Return the tangent of the solution, given those of some of the tensors."""
    primals = tuple(tensors[i] for i in changes)
    function = _by(problem, solution, tensors, list(changes))
    right = push(function, primals, tuple(changes.values()))
    return root(_Direct(problem), [*solution, *(-leaf for leaf in right), *tensors])


def _by(
    problem: Problem,
    solution: Sequence[Tensor],
    tensors: Sequence[Tensor],
    indices: Sequence[int],
) -> Callable[..., Leaves]:
    """Return the optimality as a function of some of the tensors."""

    def function(*values: Tensor) -> Leaves:
        inputs = list(tensors)
        for i, value in zip(indices, values, strict=True):
            inputs[i] = value
        return problem.optimality(solution, inputs)

    return function


def push(function: Callable[..., Leaves], primals: Leaves, changes: Any) -> Leaves:
    """Return the derivative of a function in a direction.

    Two reverse passes: forward mode lacks formulas that backward has, and torch does not nest it in a dual level.
    """
    with torch.enable_grad():
        linearized: Any = vjp(function, *primals)
        outputs, pull = linearized
        zeros = tuple(torch.zeros_like(output) for output in outputs)
        transposed = vjp(lambda *vectors: pull(vectors), *zeros)[1]
    return transposed(tuple(changes))


class _ImplicitSystem(Problem):
    """A linear system with the derivative of another problem's optimality as its matrix.

    Its tensors are the solution of that problem, the right-hand side, and the tensors of that problem.
    """

    def __init__(self, problem: Problem) -> None:
        # The matrix of this system has the ridge already.
        linear = replace(problem.linear, ridge=0.0, warm_start=False)
        super().__init__(linear, problem.who, {})
        self.problem = problem
        self.size = problem.size

    def _parts(self, tensors: Sequence[Tensor]) -> tuple[Any, Any, Any]:
        size = self.size
        return tensors[:size], tensors[size : 2 * size], tensors[2 * size :]

    def product(self, at: Sequence[Tensor], tensors: Sequence[Tensor]) -> Any:
        """Return a function that multiplies leaves by the matrix, without the ridge."""
        raise NotImplementedError

    def optimality(
        self, solution: Sequence[Tensor], tensors: Sequence[Tensor]
    ) -> Leaves:
        at, b, others = self._parts(tensors)
        products = self.product(at, others)(*solution)
        ridge = self.problem.linear.ridge
        terms = zip(products, solution, b, strict=True)
        return tuple(product + ridge * x - right for product, x, right in terms)

    def solution(self, tensors: Sequence[Tensor]) -> Leaves:
        at, b, others = self._parts(tensors)
        product = self.product(at, others)
        ridge = self.problem.linear.ridge
        space = JointVector(b)

        def matvec(vector: Tensor) -> Tensor:
            return space.joined(product(*space.parts(vector))) + ridge * vector

        def precondition(vector: Tensor) -> Tensor:
            if self.linear.precondition is None:
                return vector
            return space.joined(self.precondition(space.parts(vector), at, others))

        right = space.joined(b)
        # Squares of small and of large entries would leave the range of their dtype.
        size = linear_solvers.power_of_two_of(right)
        is_finite = right.isfinite().all()
        scaled = torch.where(is_finite, right / size, 0.0)
        x = self._solved(matvec, scaled, precondition, size)
        self._check(matvec, scaled, x)
        # No iteration ends for what is not finite; whoever skips such gradients has to see it.
        self._remember(x, size)
        return space.parts(torch.where(is_finite, x * size, torch.nan))

    def _solved(
        self, matvec: Any, b: Tensor, precondition: Any, size: Tensor
    ) -> Tensor:
        """Return the solution for a right-hand side that was divided by its size."""
        linear = self.problem.linear
        if callable(linear.solve):
            x: Any = linear.solve(matvec, b)
            if not isinstance(x, Tensor) or x.shape != b.shape:
                raise ValueError(
                    f"{self.who}: solve must return a tensor of shape {tuple(b.shape)}, like b, got {describe(x)}"
                )
            return x
        most = min(10 * len(b), MOST_STEPS)
        system = linear_solvers.System(
            matvec,
            b,
            self._guess(b, size),
            precondition,
            linear.tolerance or linear_solvers.default_tolerance(b.dtype),
            linear.max_steps or max(most, 1),
        )
        return linear_solvers.SOLVERS[linear.solve](system)

    def _guess(self, b: Tensor, size: Tensor) -> Tensor | None:
        """Return where the linear solve for a right-hand side that was divided by its size starts; None is 0."""
        return None

    def _remember(self, x: Tensor, size: Tensor) -> None:
        """Keep a solution, divided by the size of its right-hand side, for the next system."""

    def _check(self, matvec: Any, b: Tensor, x: Tensor) -> None:
        linear = self.problem.linear
        if linear.unconverged == "ignore" or not len(b):
            return
        residual = linear_solvers.relative_residual(matvec, b, x)
        worst = _torch.largest_of_members(residual)
        tolerance = linear.tolerance or linear_solvers.default_tolerance(b.dtype)
        if worst <= SLACK * tolerance:
            return
        name = describe(linear.solve)
        message = (
            f"{self.who}: the linear solve by {name} did not converge: the norm of its residual is {worst:.1e} of that "
            f"of the right-hand side, tolerance {tolerance:.1e}; gradients are wrong by about as much. The matrix may "
            "be singular (ridge=), badly scaled (precondition=, max_steps=), or not of the kind that the method needs "
            '(solve="gmres", "dense")'
        )
        if linear.unconverged == "raise":
            raise RuntimeError(message)
        warn_user(message)


class _Transposed(_ImplicitSystem):
    """The system of a backward pass."""

    def product(self, at: Sequence[Tensor], tensors: Sequence[Tensor]) -> Any:
        with torch.enable_grad():
            pull = vjp(lambda *x: self.problem.optimality(x, tensors), *at)[1]
        return lambda *vector: pull(tuple(vector))

    def _guess(self, b: Tensor, size: Tensor) -> Tensor | None:
        last = self.problem.last.get("w")
        if last is None or _torch.is_batched(b):
            return None
        fits = (last.shape, last.dtype, last.device) == (b.shape, b.dtype, b.device)
        if not fits:
            return None
        # Gradients of a similar size have similar solutions. Of others, only the direction is a guess: the residual of
        # a solution that is much too long would be rounding errors.
        guess = last * (self.problem.last["size"] / size).clamp(0.5, 2.0)
        return torch.where((b != 0).any() & guess.isfinite().all(), guess, 0.0)

    def _remember(self, x: Tensor, size: Tensor) -> None:
        if self.problem.linear.warm_start and not _torch.is_batched(x):
            self.problem.last["w"] = _torch.below_transforms(x).detach()
            self.problem.last["size"] = _torch.below_transforms(size).detach()

    def precondition(
        self,
        vector: Sequence[Tensor],
        solution: Sequence[Tensor],
        tensors: Sequence[Tensor],
    ) -> Leaves:
        if self.linear.is_symmetric:
            return self.problem.precondition(vector, solution, tensors)
        pull = vjp(lambda *u: self.problem.precondition(u, solution, tensors), *vector)[
            1
        ]
        return pull(tuple(vector))


class _Direct(_ImplicitSystem):
    """The system of forward mode."""

    def product(self, at: Sequence[Tensor], tensors: Sequence[Tensor]) -> Any:
        with torch.enable_grad():
            pull = vjp(lambda *x: self.problem.optimality(x, tensors), *at)[1]
            # Also for "cg": the residual would not tell that a matrix is not symmetric.
            zeros = tuple(torch.zeros_like(leaf) for leaf in at)
            transposed = vjp(lambda *vectors: pull(vectors), *zeros)[1]
        return lambda *vector: transposed(tuple(vector))

    def precondition(
        self,
        vector: Sequence[Tensor],
        solution: Sequence[Tensor],
        tensors: Sequence[Tensor],
    ) -> Leaves:
        return self.problem.precondition(vector, solution, tensors)
