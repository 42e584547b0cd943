"""A loss with the curvature of the model: residuals and their Jacobian, or outputs with a convex loss of these."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradtx.base.exact import exact_dtype
from gradtx.base.jacobian import Jacobian, Vectorizer
from gradtx.base.messages import describe
from gradtx.base.vectors import JointVector
from gradtx.curvature.terms import Terms, half_square

Tree = dict[str, Tensor]  # by leaf name
# The functions of which links take either, and the extras of those that do.
EITHER = ("residual_fn", "outputs_fn")
EXTRAS = {
    "residual_fn": "function?",
    "outputs_fn": "function?",
    "loss_of_outputs": "function?",
}
# Of the outputs of one batched product with H.
ENTRIES = 2**24


@dataclass(eq=False)
class CurvatureProblem:
    """A loss at the present parameters of some leaves, joined to one vector p of n entries.

    Attributes:
        who: The link, for messages.
        names: The names of the leaves.
        params: Their values.
        jacobian: J, of the residuals or of the outputs, by p.
        finish: What makes a vector of what the caller's function returns.
        extra: The name of that function.
        ctx: The context of the link.
    """

    who: str
    names: list[str]
    params: Tree
    jacobian: Jacobian
    finish: Vectorizer
    extra: str
    ctx: Any

    @property
    def joint(self) -> JointVector:
        return self.jacobian.joint

    @functools.cached_property
    def point(self) -> Tensor:
        """The parameters as one vector."""
        return self.joint.joined(list(self.params.values()))

    @functools.cached_property
    def right(self) -> Tensor:
        """The vector h of m entries for which J^T h is the gradient."""
        raise NotImplementedError

    @functools.cached_property
    def gradient(self) -> Tensor:
        """The gradient of the loss by p."""
        return self.jacobian.transposed(self.right)

    @functools.cached_property
    def loss(self) -> Tensor:
        """The loss, 0-d float64."""
        return self.loss_of(self.jacobian.value)

    def loss_of(self, value: Tensor) -> Tensor:
        """Return the loss of residuals, or of outputs."""
        raise NotImplementedError

    def loss_after(self, step: Tensor) -> Tensor:
        """Return the loss at p + step."""
        return self.loss_of(self.value_after(step))

    def value_after(self, step: Tensor) -> Tensor:
        """Return residuals or outputs at p + step."""
        moved = self.tree(self.point + step.to(self.point))
        return self.ctx.evaluated(self.extra, self.finish, moved)

    def hessian_times(self, vectors: Tensor) -> Tensor:
        """Return H v for the second derivative H of the loss by residuals or outputs, for each column of a matrix."""
        raise NotImplementedError

    def curvature_times(self, vector: Tensor) -> Tensor:
        """Return J^T H J v."""
        product = self.jacobian.times(vector)
        return self.jacobian.transposed(self.hessian_times(product[:, None])[:, 0])

    @functools.cached_property
    def weighted_rows(self) -> Tensor:
        """The matrix H J."""
        return self.hessian_times(self.jacobian.rows)

    @functools.cached_property
    def diagonal_of_curvature(self) -> Tensor:
        """The diagonal of J^T H J."""
        return (self.jacobian.rows * self.weighted_rows).sum(0)

    @functools.cached_property
    def diagonal(self) -> Tensor:
        """The diagonal of J^T H J, in which 1 replaces 0."""
        squares = self.diagonal_of_curvature
        return torch.where(squares == 0, 1.0, squares)

    def tree(self, vector: Tensor) -> Tree:
        """Return the entries of a vector by leaf name."""
        return dict(zip(self.names, self.joint.parts(vector), strict=True))

    def vector(self, tree: Tree) -> Tensor:
        """Return the entries of a tree as one vector."""
        lacking = [name for name in self.names if name not in tree]
        if lacking:
            raise ValueError(
                f"{self.who}: state lacks {lacking}; pass the state that this chain's init made of these parameters"
            )
        return self.joint.joined([tree[name] for name in self.names])


class ResidualProblem(CurvatureProblem):
    """Half the sum of squares of residuals: h is the residuals, H the identity."""

    @functools.cached_property
    def right(self) -> Tensor:
        return self.jacobian.value

    @functools.cached_property
    def diagonal_of_curvature(self) -> Tensor:
        return self.jacobian.squares_of_columns()

    def loss_of(self, value: Tensor) -> Tensor:
        return half_square(value)

    def hessian_times(self, vectors: Tensor) -> Tensor:
        return vectors


class OutputProblem(CurvatureProblem):
    """A convex loss of outputs.

    Attributes:
        loss_of_outputs: The caller's function of outputs.
        shape: The shape of the outputs.
    """

    loss_of_outputs: Callable[[Tensor], Any] | None
    shape: torch.Size

    @functools.cached_property
    def right(self) -> Tensor:
        return self._slope(self.jacobian.value)

    def loss_of(self, value: Tensor) -> Tensor:
        return self._checked_loss(value).to(exact_dtype(value))

    def _checked_loss(self, value: Tensor) -> Tensor:
        assert self.loss_of_outputs is not None
        loss = self.loss_of_outputs(value.reshape(self.shape))
        if not isinstance(loss, Tensor):
            raise TypeError(
                f"{self.who}: loss_of_outputs must return a 0-d tensor, got {describe(loss)}"
            )
        if loss.ndim:
            raise ValueError(
                f"{self.who}: loss_of_outputs must return a 0-d loss, got a tensor of shape {tuple(loss.shape)}"
            )
        return loss

    def _slope(self, value: Tensor) -> Tensor:
        return torch.func.grad(self._checked_loss)(value)

    def hessian_times(self, vectors: Tensor) -> Tensor:
        def product(vector: Tensor) -> Tensor:
            return self._pullback(vector)[0]

        columns = max(1, ENTRIES // len(vectors))
        batched: Any = torch.vmap(product, in_dims=1, out_dims=1, chunk_size=columns)
        return batched(vectors)

    @functools.cached_property
    def _pullback(self) -> Any:
        """The function v -> H v: H is symmetric, and a backward pass of the gradient needs no forward mode."""
        pulled: Any = torch.func.vjp(self._slope, self.jacobian.value)
        _, pullback = pulled
        return pullback


def problem_of(
    ctx: Any,
    params: Tree,
    terms: Terms,
    takes: tuple[str, ...] = ("residual_fn",),
    has_loss: bool = True,
) -> Any:
    """Return the problem of a call, from the functions that the caller passed.

    Args:
        ctx: The context of a rule for whole trees.
        params: The parameters of its leaves, by name.
        terms: How residuals make a loss.
        takes: Which functions the link can use.
        has_loss: Whether outputs come with a loss of them.

    Raises:
        ValueError: If the caller passed none of these functions, or both.
        TypeError, ValueError: If one returns what is no vector of residuals or outputs.
    """
    who = terms.who
    params = dict(sorted(params.items()))  # in any order of the leaves the same bits
    passed = [extra for extra in takes if getattr(ctx, extra) is not None]
    if len(passed) != 1:
        how = " or ".join(f"{extra}=..." for extra in takes)
        fault = f"takes {how}, not both" if passed else f"needs {' or '.join(takes)}"
        raise ValueError(f"{who} {fault}: call {ctx.typical_call(how)}")
    (extra,) = passed
    reads_outputs = extra == "outputs_fn"
    loss_of_outputs = None
    if has_loss and "outputs_fn" in takes:
        loss_of_outputs = ctx.loss_of_outputs
        _check_loss(who, reads_outputs, loss_of_outputs)
    if not any(param.numel() for param in params.values()):
        raise ValueError(f"{who}: the parameters have no entries")
    finish: Any = Outputs(who) if reads_outputs else terms
    jacobian = ctx.linearized(extra, finish, params)
    if jacobian.is_constant:
        raise ValueError(
            f"{who}: what {extra} returns does not depend on any of the parameters {', '.join(map(repr, params))}"
        )
    shown = (who, list(params), params, jacobian, finish, extra, ctx)
    if not reads_outputs:
        return ResidualProblem(*shown)
    problem = OutputProblem(*shown)
    problem.loss_of_outputs, problem.shape = loss_of_outputs, finish.shape
    return problem


def _check_loss(who: str, reads_outputs: bool, loss_of_outputs: Any) -> None:
    if reads_outputs and loss_of_outputs is None:
        raise ValueError(
            f"{who} needs loss_of_outputs with outputs_fn: a function of the outputs that returns the loss"
        )
    if not reads_outputs and loss_of_outputs is not None:
        raise ValueError(
            f"{who}: loss_of_outputs belongs to outputs_fn; the loss of residuals is half the sum of their squares"
        )


class Outputs:
    """Makes a vector of the outputs of a model, as a `Vectorizer`.

    Attributes:
        shape: The shape of the last outputs.
    """

    takes_means = is_loss = False

    def __init__(self, who: str):
        self.who = who
        self.shape = torch.Size()

    def __call__(self, result: Any) -> Tensor:
        outputs = _checked_outputs(self.who, result)
        self.shape = outputs.shape
        return outputs.reshape(-1)

    def parts(self, result: Any) -> list[Tensor]:
        return [self(result)]


def _checked_outputs(who: str, outputs: Any) -> Tensor:
    if not isinstance(outputs, Tensor):
        raise TypeError(
            f"{who}: outputs_fn must return a tensor, got {describe(outputs)}"
        )
    if outputs.is_complex() or not outputs.is_floating_point():
        raise ValueError(
            f"{who}: outputs_fn must return real floating-point outputs, got {outputs.dtype}"
        )
    if not outputs.numel():
        raise ValueError(f"{who}: has no outputs; skip the step")
    return outputs.to(torch.promote_types(outputs.dtype, torch.float32))
