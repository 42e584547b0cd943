"""Gradients of solutions by the implicit function theorem: one linear solve instead of the steps of the solver."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from gradtx.base import tree as _tree
from gradtx.base.inputs import parameters_of
from gradtx.base.messages import describe, describe_kind, nearest
from gradtx.base.torch_names import (
    assume_constant,
    forward_levels,
    forward_mode_active,
    has_derivative,
    not_traced,
)
from gradtx.meta import graphs as _graphs
from gradtx.meta.root import Linear, Problem, root

__all__ = ["custom_fixed_point", "custom_root"]

Decorator: TypeAlias = Callable[[Callable[..., Any]], Callable[..., Any]]


def custom_root(
    optimality: Callable[..., Any],
    *,
    solve: str | Callable[..., Any] = "cg",
    tolerance: float | None = None,
    max_steps: int | None = None,
    ridge: float = 0.0,
    precondition: Callable[..., Any] | None = None,
    warm_start: bool = False,
    nondiff: str | int | Iterable[str | int] = (),
    has_aux: bool = False,
    unconverged: Literal["warn", "raise", "ignore"] = "warn",
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    r"""Give a solver the gradient of its solution, whatever steps it takes: a decorator.

    The solution $x^\star(\theta)$ is where $F(x^\star(\theta), \theta) = 0$. Differentiating both sides gives

    $$\frac{\partial x^\star}{\partial \theta} = -A^{-1} \frac{\partial F}{\partial \theta}, \qquad
    A = \frac{\partial F}{\partial x}(x^\star, \theta).$$

    A backward pass with the gradient $v$ of $x^\star$ solves $A^\top w = v$ and returns the product of $-w$ and
    $\partial F / \partial \theta$; forward mode solves with $A$. Products with $A$ are derivatives of `optimality`, so
    $A$ is not stored, and neither are the steps of the solver: memory does not depend on their number. Derivatives may
    be differentiated again; only forward mode of forward mode is an error.

    `optimality` for a minimum of a loss is `torch.func.grad(loss)`. The result is as exact as the solution: the error
    of both is of the same order.

    Args:
        optimality: `optimality(solution, *args)`, 0 at the solution, a tree like it. It must not depend on tensors that
            require gradients and are no arguments.
        solve: How to solve the linear system. "cg" for a symmetric positive definite $A$, as the Hessian at a minimum;
            "gmres" or "bicgstab" for any $A$; "neumann" for $A = I - J$ with a $J$ that contracts, also for a few terms
            of the series; "dense" builds $A$ and suits up to a thousand unknowns. Or a function `(matvec, b) -> x` of
            vectors with all entries of the solution, where `matvec(v)` is $A v$, in backward passes $A^\top v$.
        tolerance: The norm of the residual, divided by that of the right-hand side, at which to stop; by default
            4e-11 in float64 and 2e-5 in float32.
        max_steps: The largest number of products with $A$; by default ten times the number of unknowns, at most 1000.
        ridge: Solves with $A + \mathrm{ridge} \cdot I$, for an $A$ that is singular or nearly so.
        precondition: `precondition(vector, solution, *args)` returns an approximation of $A^{-1}$ times a tree like the
            solution, linear in it; for "cg" symmetric and positive definite.
        warm_start: Start the linear solve of a backward pass from the result of the last one, if it fits. Only outside
            of `torch.vmap`. Results then depend, within the tolerance, on earlier calls.
        nondiff: Names, or positions in `args`, of arguments without gradients. Tensors of integers, and what is no
            tensor, have none anyway.
        has_aux: Whether the solver returns `(solution, aux)`. `aux`, such as a number of steps, has no gradients.
        unconverged: What to do if the residual is more than ten times the tolerance: "warn", "raise" an error, or
            "ignore", for a solve that is meant to be short.

    Returns:
        A decorator of `solver(start, *args, **options)`, which returns a tree of floating-point tensors. `start`, often
        the first iterate, may be anything; it has no gradient, and neither have keyword-only options, which
        `optimality` does not receive. The solver may use anything, but under `torch.vmap` no Python branch on a tensor
        (`gradtx.minimize` is a loop that ends early there too).

    Raises:
        TypeError: If `optimality` is not a function. When the solver is called: if its solution has another kind of
            leaf than floating-point tensors.
        ValueError: If an option is out of range, or if `nondiff` is unknown. When the solver is called with arguments
            that require gradients: if `optimality` returns a tree unlike the solution, or depends on a tensor that
            requires gradients and is no argument.
        RuntimeError: With `unconverged="raise"`, in the backward pass, if the linear solve did not converge.

    Example:
        >>> def loss(w, x, y, decay):  # ridge regression
        ...     return (x @ w - y).square().sum() / 2 + decay * w.square().sum() / 2
        >>> @gradtx.custom_root(torch.func.grad(loss))
        ... def solver(start, x, y, decay):
        ...     return torch.linalg.solve(x.T @ x + decay * torch.eye(2), x.T @ y)
        >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([3.0, 4.0])
        >>> decay = torch.tensor(1.0, requires_grad=True)
        >>> w = solver(None, x, y, decay)
        >>> w.sum().backward()  # w = (3 / (1 + decay), 8 / (4 + decay))
        >>> w.detach(), decay.grad
        (tensor([1.5000, 1.6000]), tensor(-1.0700))

    Source: Blondel et al. 2022, arXiv:2105.15183; Rajeswaran et al. 2019, arXiv:1909.04630. Departures: "cg" solves
    with $A$, not with $A^\top A$.
    """
    linear = Linear.checked(
        "custom_root",
        solve,
        tolerance,
        max_steps,
        ridge,
        precondition,
        warm_start,
        unconverged,
    )
    return _decorator("custom_root", optimality, linear, nondiff, has_aux)


def custom_fixed_point(
    map: Callable[..., Any],
    *,
    solve: str | Callable[..., Any] = "gmres",
    tolerance: float | None = None,
    max_steps: int | None = None,
    ridge: float = 0.0,
    precondition: Callable[..., Any] | None = None,
    warm_start: bool = False,
    nondiff: str | int | Iterable[str | int] = (),
    has_aux: bool = False,
    unconverged: Literal["warn", "raise", "ignore"] = "warn",
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    r"""Give a solver of $x = T(x, \theta)$ the gradient of the fixed point: a decorator.

    As `custom_root` for $F = x - T(x, \theta)$, whose matrix is $A = I - \partial T / \partial x$: layers in
    equilibrium (DEQ), fixed points of an optimizer's steps, stationary distributions.

    Args:
        map: `map(solution, *args)`, a tree like the solution.
        solve: As in `custom_root`. "neumann" is the series $\sum_k (\partial T / \partial x)^k$, which converges where
            the map contracts.
        tolerance: As in `custom_root`, as are the arguments that follow.
        max_steps: The largest number of products with $A$.
        ridge: Added to the diagonal of $A$.
        precondition: An approximation of $A^{-1}$.
        warm_start: Start from the result of the last backward pass.
        nondiff: Arguments without gradients.
        has_aux: Whether the solver returns `(solution, aux)`.
        unconverged: What to do if the linear solve does not converge.

    Returns:
        A decorator of `solver(start, *args, **options)`, as that of `custom_root`.

    Raises:
        TypeError: As `custom_root`.
        ValueError: As `custom_root`, of `map` in place of `optimality`.
        RuntimeError: As `custom_root`.

    Example:
        >>> @gradtx.custom_fixed_point(lambda x, a: (x + a / x) / 2)  # Heron's square root
        ... def root(start, a):
        ...     for _ in range(10):
        ...         start = (start + a / start) / 2
        ...     return start
        >>> torch.func.grad(lambda a: root(torch.tensor(1.0), a))(torch.tensor(4.0))
        tensor(0.2500)

    Source: Bai et al. 2019, arXiv:1909.01377; Blondel et al. 2022, arXiv:2105.15183.
    """
    linear = Linear.checked(
        "custom_fixed_point",
        solve,
        tolerance,
        max_steps,
        ridge,
        precondition,
        warm_start,
        unconverged,
    )
    return _decorator("custom_fixed_point", map, linear, nondiff, has_aux)


def _decorator(
    who: str,
    function: Callable[..., Any],
    linear: Linear,
    nondiff: str | int | Iterable[str | int],
    has_aux: bool,
) -> Decorator:
    if not callable(function):
        raise TypeError(
            f"{who}: needs a function of (solution, *args), got {describe(function)}"
        )
    names = (nondiff,) if isinstance(nondiff, str | int) else tuple(nondiff)

    def decorate(solver: Callable[..., Any]) -> Callable[..., Any]:
        if not callable(solver):
            raise TypeError(
                f"{who}: decorates a solver(start, *args), got {describe(solver)}"
            )
        fixed = _positions(who, names, solver, function)
        implicit = _Implicit(who, solver, function, linear, fixed, has_aux, {})

        @functools.wraps(solver)
        def solved(*args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_dynamo_compiling():
                node_key = functools.partial(implicit.node_key, id(implicit))
                node = None if kwargs else _graphs.solution(args, node_key)
                return _untraced(implicit, args, kwargs) if node is None else node[0]
            return implicit(*args, **kwargs)

        solved.implicit = implicit  # type: ignore[attr-defined]
        return solved

    return decorate


def _positions(
    who: str,
    names: Sequence[str | int],
    solver: Callable[..., Any],
    function: Callable[..., Any],
) -> frozenset[int]:
    """Return the positions of named arguments in `args`, which follow the first argument of both functions."""
    position_of: dict[str, int] = {}
    for named in (function, solver):
        position_of.update({name: i for i, name in enumerate(_positional(named)[1:])})
    positions: set[int] = set()
    for name in names:
        if isinstance(name, str) and name not in position_of:
            raise ValueError(
                f"{who}: nondiff: no argument is called {name!r}; {nearest(name, position_of)}"
            )
        positions.add(position_of[name] if isinstance(name, str) else name)
    return frozenset(positions)


def _positional(function: Callable[..., Any]) -> list[str]:
    kinds = (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    )
    return [
        parameter.name
        for parameter in parameters_of(function)
        if parameter.kind in kinds
    ]


# Forward mode gives every result of a node a tangent, which integers cannot have. Floats of 16 bits each can, exactly.
_SHIFTS = (48, 32, 16, 0)


def _as_floats(tensor: Tensor) -> Tensor:
    """Return a tensor of integers or bools as floats, with one dimension more."""
    if tensor.is_floating_point() or tensor.is_complex():
        return tensor
    whole = tensor.to(torch.int64)
    pieces = [whole >> shift for shift in _SHIFTS]
    pieces = [pieces[0], *(piece & 0xFFFF for piece in pieces[1:])]
    return torch.stack(pieces, dim=-1).to(torch.float32)


def _as_it_was(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor of a dtype from what `_as_floats` has made of it."""
    if dtype.is_floating_point or dtype.is_complex:
        return tensor
    pieces = tensor.to(torch.int64).unbind(-1)
    whole = torch.zeros_like(pieces[0])
    for shift, piece in zip(_SHIFTS, pieces, strict=True):
        whole = whole | (piece << shift)
    return whole.to(dtype)


@dataclass(eq=False)
class _Implicit:
    """A solver, and what its solution satisfies."""

    who: str
    solver: Callable[..., Any]
    function: Callable[..., Any]  # `optimality`, or the map of a fixed point
    linear: Linear
    nondiff: frozenset[int]
    has_aux: bool
    last: dict[str, Tensor]
    # What graphs of `torch.compile` compute, which they refer to by key.
    computations: list[Any] = field(default_factory=list)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        bound = inspect.signature(self.solver).bind(*args, **kwargs)
        bound.apply_defaults()
        start, *rest = bound.args
        # Every tensor is an argument of the node, since under vmap each of them may be batched.
        others, rebuild_others = _tree.split((start, bound.kwargs))
        tensors, rebuild = _tree.split(tuple(rest))
        detached = [tensor.detach() for tensor in others]
        flags = self.differentiable(
            [len(_tree.split(argument)[0]) for argument in rest]
        )
        inputs = [
            tensor if is_differentiable else tensor.detach()
            for tensor, is_differentiable in zip(tensors, flags, strict=True)
        ]
        if forward_levels(inputs) > 1:
            # torch takes the forward mode of the tangent of a node for 0.
            raise RuntimeError(
                f"{self.who}: torch has no forward mode of forward mode for a solution; use torch.func.grad for one of "
                "the two derivatives"
            )
        call = _CalledProblem(self, len(others), rebuild_others, rebuild)
        outputs = root(call, [*detached, *inputs])
        solution = outputs[: call.size]
        if torch.is_grad_enabled() or forward_mode_active():
            call.check([leaf.detach() for leaf in solution], inputs)
        aux = call.rebuild_aux(
            [
                _as_it_was(leaf.detach(), dtype)
                for leaf, dtype in zip(
                    outputs[call.size :], call.dtypes_of_aux, strict=True
                )
            ]
        )
        result = call.rebuild_solution(solution)
        return (result, aux) if self.has_aux else result

    @assume_constant
    def node_key(
        self, identity: int, structure: Any, are_real: tuple[bool, ...]
    ) -> str:
        """Return the key of a node for arguments of a structure; dynamo guards the solver by its identity."""
        return _graphs.node_key_of(self, structure, are_real)

    def call_like_start(self, start: Any, args: tuple[Any, ...]) -> _CalledProblem:
        """Return a call whose solution has the structure of the start."""
        others, rebuild_others = _tree.split((start, {}))
        call = _CalledProblem(self, len(others), rebuild_others, _tree.split(args)[1])
        leaves, _ = _tree.flatten_real(start, f"{self.who}: start")
        call.names, call.size = list(leaves), len(leaves)
        call.rebuild_solution = _tree.split(start)[1]
        return call

    def differentiable(self, sizes: Sequence[int]) -> list[bool]:
        """Return whether each tensor of the arguments may have a gradient, given the number of tensors of each."""
        flags: list[bool] = []
        for i, size in enumerate(sizes):
            is_fixed = i in self.nondiff or i - len(sizes) in self.nondiff
            flags += [not is_fixed] * size
        return flags


@not_traced
def _untraced(implicit: _Implicit, args: Any, kwargs: Any) -> Any:
    """Run a solver outside of the compiled graph: its loops read values, and have any number of steps."""
    return implicit(*args, **kwargs)


class _CalledProblem(Problem):
    """The problem of one call: its tensors are those of start and options, then those of the arguments."""

    def __init__(
        self,
        implicit: _Implicit,
        skipped: int,
        rebuild_others: Callable[..., Any],
        rebuild: Callable[..., Any],
    ) -> None:
        super().__init__(implicit.linear, implicit.who, implicit.last)
        self.implicit = implicit
        self.skipped = skipped
        self.rebuild_others, self.rebuild = rebuild_others, rebuild
        # Known when the solver has run.
        self.rebuild_solution: Callable[..., Any] = tuple
        self.rebuild_aux: Callable[..., Any] = tuple
        self.dtypes_of_aux: list[torch.dtype] = []
        self.names: list[str] = []

    def solution(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        start, options = self.rebuild_others(tensors[: self.skipped])
        args = self.rebuild(tensors[self.skipped :])
        # A solver may call backward(), and the node that runs it turns gradients off.
        try:
            with torch.enable_grad():
                result = self.implicit.solver(start, *args, **options)
        except RuntimeError as error:
            if "functorch/Interpreter" not in str(error):
                raise
            raise ValueError(
                f"{self.who}: the solver reads a tensor of an enclosing torch.func transform that is no argument; pass "
                "it as an argument (a keyword-only one is not differentiated), or detach it"
            ) from error
        aux = ()
        if self.implicit.has_aux:
            if not isinstance(result, tuple) or len(result) != 2:
                raise TypeError(
                    f"{self.who}: with has_aux=True, the solver must return (solution, aux), got "
                    f"{type(result).__name__}"
                )
            result, aux = result
        leaves, _ = _tree.flatten_real(result, f"{self.who}: solution")
        if None in leaves.values():
            raise TypeError(f"{self.who}: solution: a leaf is None, needs a tensor")
        self.names = list(leaves)
        solution, self.rebuild_solution = _tree.split(result)
        others, self.rebuild_aux = _tree.split(aux)
        self.size = len(solution)
        self.dtypes_of_aux = [leaf.dtype for leaf in others]
        # New tensors: a node must not return one of its arguments, such as the start.
        copies = [leaf.detach().clone() for leaf in solution]
        return (*copies, *(_as_floats(leaf.detach().clone()) for leaf in others))

    def optimality(
        self, solution: Sequence[Tensor], tensors: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        args = self.rebuild(tensors[self.skipped :])
        value = self.implicit.function(self.rebuild_solution(solution), *args)
        leaves = self._in_order(value)
        if self.who != "custom_fixed_point":
            return tuple(leaves)
        return tuple(x - mapped for x, mapped in zip(solution, leaves, strict=True))

    def precondition(
        self,
        vector: Sequence[Tensor],
        solution: Sequence[Tensor],
        tensors: Sequence[Tensor],
    ) -> tuple[Tensor, ...]:
        function = self.linear.precondition
        if function is None:
            return tuple(vector)
        args = self.rebuild(tensors[self.skipped :])
        at = self.rebuild_solution(solution)
        result = function(self.rebuild_solution(vector), at, *args)
        self._check_like(result, at, "precondition")
        return tuple(self._in_order(result))

    def _in_order(self, tree: Any) -> list[Tensor]:
        """Return the leaves of a tree in the order of the solution's: dicts may have another one."""
        named = _tree.named(tree)
        return [named[name] for name in self.names]

    def check(self, solution: list[Tensor], inputs: Sequence[Tensor]) -> None:
        """Check what `optimality` returns at the solution, and that it depends on arguments alone."""
        names = {
            "custom_fixed_point": "map",
            "minimize": "the gradient of the loss",
            "least_squares": "the gradient of the residuals",
            "curve_fit": "the gradient of the residuals",
        }
        what = names.get(self.who, "optimality")
        args = self.rebuild([tensor.detach() for tensor in inputs])
        at = self.rebuild_solution(solution)
        value = self.implicit.function(at, *args)
        self._check_like(value, at, what)
        if any(map(has_derivative, _tree.split(value)[0])):
            raise ValueError(
                f"{self.who}: {what} depends on a tensor that requires gradients and is no argument of the solver, so "
                "its gradient would be lost; pass it as an argument, or detach it"
            )

    def _check_like(self, value: Any, solution: Any, what: str) -> None:
        expected, _ = _tree.flatten_any(solution, f"{self.who}: solution")
        leaves, _ = _tree.flatten_any(value, f"{self.who}: {what}")
        _tree.check_names(leaves, expected, f"{self.who}: {what}", "the solution")
        for name, like in expected.items():
            where = f"leaf {name!r}" if name else "its result"
            if describe_kind(leaves[name]) != describe_kind(like):
                raise ValueError(
                    f"{self.who}: {what}: {where} is {describe_kind(leaves[name])}, needs {describe_kind(like)}, as in "
                    "the solution"
                )
