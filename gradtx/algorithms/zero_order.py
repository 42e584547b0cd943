"""Zero-order gradients, and `mezo`: estimates from losses alone, in directions that come again from seeds."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from gradtx.arguments import Count, Positive, Static
from gradtx.base import torch_names as _torch
from gradtx.base import tree as _tree
from gradtx.base.exact import exact, exact_dtype
from gradtx.base.messages import describe
from gradtx.base.plain import is_plain
from gradtx.execution.execute import Leaf
from gradtx.execution.leaf_rule import Rule, RuleCall, RuleOperation, StageState
from gradtx.execution.runs import Scope
from gradtx.execution.traits import READS_LEAF, Traits
from gradtx.links.scaling import scale_by_learning_rate
from gradtx.rules import Combinator, alias, combinator
from gradtx.state.random import Stream
from gradtx.transform import chain

__all__ = ["estimate_gradient", "mezo", "zero_order_grad"]

Method: TypeAlias = Literal["central", "forward", "antithetic"]
Distribution: TypeAlias = Literal["normal", "rademacher", "sphere"]
METHODS = ("central", "forward", "antithetic")
DISTRIBUTIONS = ("normal", "rademacher", "sphere")
# Entries for which random numbers are drawn at once, with temporary tensors of about 60 bytes each.
CHUNK = 2**15


@dataclasses.dataclass(frozen=True)
class Estimator:
    """An estimate of a gradient from differences of losses.

    Attributes:
        method, samples, scale, distribution: As in `zero_order_grad`.
        seed, counter: 0-d int64 tensors; with a leaf's name, they determine its entries of all directions.
    """

    method: str
    samples: int
    scale: Any
    distribution: str
    seed: Tensor
    counter: Tensor

    def direction(self, sample: int, name: Any, like: Tensor, first: int = 0) -> Tensor:
        """Return a leaf's entries of a direction, or some of them: as many as `like` has, from entry `first` on."""
        counter = self.counter * self.samples + sample
        stream = Stream(self.seed, counter, name).part(first)
        if self.distribution == "rademacher":
            return stream.rademacher(like)
        return stream.normal(like)

    def parts(self, sample: int, name: Any, leaf: Tensor) -> Iterator[Tensor]:
        """Yield a leaf's entries of a direction in order, in parts that need little memory, or at once."""
        if not _has_parts(leaf):
            yield self.direction(sample, name, leaf)
            return
        for first in range(0, leaf.numel(), CHUNK):
            part = leaf.new_empty(min(CHUNK, leaf.numel() - first))
            yield self.direction(sample, name, part, first)

    def factors(self, leaves: Mapping[Any, Tensor]) -> list[Any]:
        """Return the factor of each direction: 1, or what moves it onto the sphere of radius sqrt(d)."""
        if self.distribution != "sphere":
            return [1.0] * self.samples
        size = sum(leaf.numel() for leaf in leaves.values())
        factors = []
        for sample in range(self.samples):
            total = sum(
                exact(part.square().sum(dtype=exact_dtype(part)), self.seed.device)
                for name, leaf in leaves.items()
                for part in self.parts(sample, name, leaf)
            )
            factors.append((size / total).sqrt())  # type: ignore[union-attr]
        return factors

    def points(self) -> list[tuple[int, float]]:
        """Return where losses are needed: samples, and multiples of the scale along their directions."""
        if self.method == "forward":
            return [(0, 0.0), *((k, 1.0) for k in range(self.samples))]
        return [(k, sign) for k in range(self.samples) for sign in (1.0, -1.0)]

    def slopes(self, losses: Sequence[Tensor], factors: Sequence[Any]) -> list[Tensor]:
        """Return the coefficient of each direction in the estimate."""
        exact_losses = [exact(loss, self.seed.device) for loss in losses]
        if self.method == "forward":
            start, *ends = exact_losses
            rises = [(end - start) / self.scale for end in ends]
        else:
            ups, downs = exact_losses[::2], exact_losses[1::2]
            rises = [
                (up - down) / (2 * self.scale)
                for up, down in zip(ups, downs, strict=True)
            ]
        return [
            rise * factor / self.samples
            for rise, factor in zip(rises, factors, strict=True)
        ]

    def loss(self, losses: Sequence[Tensor]) -> Tensor:
        """Return the loss at the weights, or the mean of those around it."""
        return (
            losses[0] if self.method == "forward" else torch.stack(list(losses)).mean()
        )

    def gradient(self, slopes: Sequence[Tensor], name: Any, like: Tensor) -> Tensor:
        """Return a leaf's part of the estimate, with the shape and dtype of `like`."""
        if _has_parts(like):
            gradient = torch.empty(like.shape, dtype=like.dtype, device=like.device)
            flat = gradient.view(-1)
            for first in range(0, like.numel(), CHUNK):
                part = flat[first : first + CHUNK]
                part.copy_(self._sum(slopes, name, part, first))
            return gradient
        return self._sum(slopes, name, like, 0)

    def shifted(self, sample: int, name: Any, leaf: Tensor, length: Any) -> Tensor:
        """Return a leaf at a point along a direction."""
        if isinstance(length, Tensor):
            length = length.to(leaf.device, leaf.dtype)
        elif length == 0:
            return leaf
        if not _has_parts(leaf) or leaf.requires_grad:
            return leaf + length * self.direction(sample, name, leaf)
        moved = leaf.clone(memory_format=torch.contiguous_format)
        self.shift_(sample, name, moved, length)
        return moved

    def shift_(self, sample: int, name: Any, leaf: Tensor, length: Any) -> None:
        """Move a leaf along a direction, in place."""
        if isinstance(length, Tensor):
            length = length.to(leaf.device, leaf.dtype)
        elif length == 0:
            return
        if not (_has_parts(leaf) and leaf.is_contiguous()):
            leaf.add_(length * self.direction(sample, name, leaf))
            return
        flat = leaf.view(-1)
        for first in range(0, leaf.numel(), CHUNK):
            part = flat[first : first + CHUNK]
            part.add_(length * self.direction(sample, name, part, first))

    def _sum(self, slopes, name, like: Tensor, first: int) -> Tensor:
        total = torch.zeros_like(like)
        for sample, slope in enumerate(slopes):
            direction = self.direction(sample, name, like, first)
            total = total + slope.to(like.device, like.dtype) * direction
        return total


def _has_parts(tensor: Tensor) -> bool:
    """Whether a tensor is processed in parts: one of many entries outside all transforms."""
    return (
        is_plain(tensor)
        and not _torch.inside_transform()
        and not _torch.is_intercepted()
        and tensor.numel() > CHUNK
    )


# A function of trees.


def zero_order_grad(
    loss: Callable[..., Any],
    *,
    method: Method = "central",
    samples: int = 1,
    scale: Any = 1e-3,
    distribution: Distribution = "normal",
) -> Callable[..., Any]:
    r"""Return a function that estimates the gradient of a loss from its values alone, like `torch.func.grad`.

    With random directions $z_k$ of which $E[z z^T] = I$, the estimate is the mean over $k$ of

    - "central": $\frac{f(p + \epsilon z) - f(p - \epsilon z)}{2 \epsilon} z$, from 2 losses for each direction. Its
      error in the mean is of order $\epsilon^2$. "antithetic" is TorchOpt's name of the same estimate.
    - "forward": $\frac{f(p + \epsilon z) - f(p)}{\epsilon} z$, from one more loss than directions; of order $\epsilon$.

    The variance of an entry is about $\lVert \nabla f \rVert^2 / K$ for $K$ samples: use it where derivatives do not
    exist, or where backward does not fit into memory. A direction is never stored: its entries are functions of the
    seed and of the leaf's name, which are computed again where they are needed. Beside the parameters, a call needs one
    copy of them, the shifted weights, and then the result.

    Args:
        loss: `loss(params, *args)` returns a 0-d tensor; `params` is any tree of tensors.
        method: "central", "forward" or "antithetic".
        samples: The number of directions $K \ge 1$.
        scale: $\epsilon > 0$, a number or a 0-d tensor. Too small, and differences consist of rounding errors.
        distribution: Of the entries of $z$: "normal", "rademacher" (-1 or 1), or "sphere", uniform on the sphere of
            radius $\sqrt{d}$ for all $d$ entries of the tree.

    Returns:
        `grad(params, *args, seed=0)`, which returns a tree like `params`. The seed, an int or a 0-d tensor, determines
        all directions; pass another one at each step. It runs under `torch.vmap`, also over seeds. As with
        `torch.func.grad`, the result has a graph if the parameters require gradients: detach them to save memory.

    Raises:
        TypeError: If `loss` is not callable, or returns no tensor.
        ValueError: If an option is unknown or out of range, or if the loss is not 0-d.

    Example:
        >>> loss = lambda params: (params["w"] ** 2).sum()
        >>> grad = gradtx.zero_order_grad(loss, samples=1000)
        >>> estimate = grad({"w": torch.tensor([1.0, -2.0])}, seed=1)["w"]
        >>> (estimate - torch.tensor([2.0, -4.0])).abs().max() < 0.5
        tensor(True)

    Source: Spall 1992 ("central"); Nesterov and Spokoiny 2017; Malladi et al. 2023, arXiv:2305.17333 (seeds).
    """
    if not callable(loss):
        raise TypeError(
            f"zero_order_grad: loss must be a function of params, got {describe(loss)}"
        )
    _check_options(method, samples, scale, distribution)

    def estimate(params: Any, *args: Any, seed: int | Tensor = 0) -> Any:
        leaves, unflatten = _tree.flatten_real(params, "params")
        present = {name: leaf for name, leaf in leaves.items() if leaf is not None}
        if not present:
            return params
        device = next(iter(present.values())).device
        if not isinstance(seed, Tensor):
            seed = torch.full((), seed, dtype=torch.int64, device=device)
        start = torch.zeros((), dtype=torch.int64, device=device)
        estimator = Estimator(
            method, samples, scale, distribution, seed.to(device), start
        )
        factors = estimator.factors(present)
        losses = []
        for sample, multiple in estimator.points():
            length = multiple * scale * factors[sample]
            moved = {
                name: estimator.shifted(sample, name, leaf, length)
                for name, leaf in present.items()
            }
            losses.append(_checked_loss(loss(unflatten({**leaves, **moved}), *args)))
            del moved
        slopes = estimator.slopes(losses, factors)
        found = {
            name: estimator.gradient(slopes, name, leaf)
            for name, leaf in present.items()
        }
        return unflatten({**leaves, **found})

    return estimate


def _checked_loss(value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(
            f"zero_order_grad: the loss must be a 0-d tensor, got {describe(value)}"
        )
    if value.ndim:
        raise ValueError(
            f"zero_order_grad: the loss must be 0-d, got a tensor of shape {tuple(value.shape)}"
        )
    return value


def _check_options(method: Any, samples: Any, scale: Any, distribution: Any) -> None:
    for what, value, valid in (
        ("method", method, METHODS),
        ("distribution", distribution, DISTRIBUTIONS),
    ):
        if value not in valid:
            listed = f"{', '.join(map(repr, valid[:-1]))} or {valid[-1]!r}"
            raise ValueError(f"zero_order_grad: {what} must be {listed}, got {value!r}")
    if not isinstance(samples, int) or isinstance(samples, bool):
        raise TypeError(f"zero_order_grad: samples must be an int, got {samples!r}")
    if samples < 1:
        raise ValueError(
            f"zero_order_grad: samples must be in [1, inf), got {samples!r}"
        )
    if not isinstance(scale, Tensor) and not scale > 0:
        raise ValueError(f"zero_order_grad: scale must be in (0, inf), got {scale!r}")


# A link.


class EstimateOperation(RuleOperation):
    """Replaces the gradient of each leaf by its part of an estimate, whose losses are computed before all leaves."""

    def __init__(self, path, scope: Scope, options: tuple[Any, ...], seed: int):
        traits = Traits(
            elementwise=False,
            takes_complex=False,
            refusal="it asks for losses before any leaf is processed",
            capturable=False,
            random=True,
            makes_gradient=True,
            prepares=True,
            closure_extra="value_fn",
            needs_all_rows=READS_LEAF,
        )
        rule = Rule("estimate_gradient", _unused, traits, seed=seed)
        super().__init__(rule, StageState(path, scope, rule))
        self._options = options

    def prepare(self, leaves: list[Leaf]) -> None:
        seed, counter = self.stage.shared["seed"], self.stage.shared["counter"] + 1
        method, samples, scale, distribution = self._options
        estimator = Estimator(
            method, samples, scale, distribution, seed.to(torch.int64), counter
        )
        run = leaves[0].run
        taking_part = [leaf for leaf in leaves if leaf.has_gradient]
        tensors = {leaf.stream_name: run.tensor_of(leaf) for leaf in taking_part}
        factors = estimator.factors(tensors)
        points = [
            (sample, multiple * estimator.scale * factors[sample])
            for sample, multiple in estimator.points()
        ]
        losses = run.losses_along(estimator, points, taking_part)
        slopes = estimator.slopes(losses, factors)
        run.estimates[self.path] = functools.partial(estimator.gradient, slopes)
        run.estimated_loss = estimator.loss(losses)

    def _set_update(self, call: RuleCall, update: Any) -> None:
        # The losses are those of the caller, also where the chain maximizes.
        super()._set_update(call, -update if call.leaf.negated else update)

    def _called(self, call: RuleCall, *total: Any) -> Any:
        gradient = call.leaf.run.estimates[self.path]
        return gradient(call.leaf.stream_name, call.update), {}


def _unused(update, state, param, ctx) -> Any:
    return update, state


@dataclasses.dataclass(frozen=True)
class Estimate(Combinator):
    """The body of `estimate_gradient`."""

    options: tuple[Any, ...]
    seed: int

    def rejects(self) -> tuple[str, ...]:
        return ()

    def effects(self) -> set[str]:
        return {"makes gradient", "whole"}

    def expand(self, scope: Scope, name: str) -> list[Any]:
        return [EstimateOperation(scope.claim(name), scope, self.options, self.seed)]


@combinator(needs=("params", "value_fn"))
def estimate_gradient(
    method: Static[Method] = "central",
    samples: Static[Count] = 1,
    scale: Positive = 1e-3,
    distribution: Static[Distribution] = "normal",
    seed: Static[int] = 0,
):
    r"""Estimate the gradient from losses alone, in place of a backward pass; the first link of a chain.

    The estimate is that of `zero_order_grad`, in directions that depend on the seed, the step and the leaf's name. The
    updates that it receives have no effect, and later links see only the estimate, also as `ctx.grad`.

    In an optimizer, `step(closure)` calls the closure, which returns the loss without `backward()`, and moves the
    weights in place, along a direction and back, so that a step needs no copy of them: parameters return to their
    values up to a rounding error for each of the calls. `step` returns the mean of the losses on both sides, or with
    "forward" that at the weights. All parameters that require a gradient step, and none needs `.grad`. Dropout must
    draw the same mask in all calls: use `eval()`, or set the seed in the closure.

    Args:
        method: "central", "forward" or "antithetic", as in `zero_order_grad`.
        samples: The number of directions, >= 1.
        scale: $\epsilon > 0$, the length of a shift in each entry.
        distribution: "normal", "rademacher" or "sphere".
        seed: The seed of the directions.

    Returns:
        A transformation whose updates have the shapes of the parameters. State: `seed` and `counter`, shared by all
        leaves.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> tx = gradtx.chain(gradtx.estimate_gradient(samples=8), gradtx.adam(lr=0.1))
        >>> optimizer = gradtx.as_optimizer(tx, [weight])
        >>> for _ in range(30):
        ...     loss = optimizer.step(lambda: (weight**2).sum())
        >>> loss < 0.5
        tensor(True)

    Source: Malladi et al. 2023, arXiv:2305.17333. Departures: each leaf has a stream of its own instead of torch's.
    """
    return Estimate((method, samples, scale, distribution), seed)


@alias(class_name="MeZO")
def mezo(
    lr=1e-6,
    scale: Positive = 1e-3,
    samples: Static[Count] = 1,
    seed: Static[int] = 0,
):
    r"""MeZO: SGD on zero-order estimates, which finetunes in the memory of inference.

    $p \leftarrow p - \eta \frac{f(p + \epsilon z) - f(p - \epsilon z)}{2 \epsilon} z$ with normal $z$, never stored, or
    the mean of this over `samples` directions.

    When to use: finetuning a model that fits into memory only without a backward pass. It takes many more steps than
    gradients do; see the how-to on zero-order gradients.

    Args:
        lr: $\eta$, in [0, inf).
        scale: $\epsilon > 0$.
        samples: The number of directions in a step, >= 1.
        seed: The seed of the directions.

    Returns:
        A transformation whose updates are added to the parameters; it needs `value_fn`, or `step(closure)`. State:
        `seed` and `counter`, shared by all leaves.

    Example:
        >>> params = {"w": torch.tensor([3.0])}
        >>> loss = lambda params: (params["w"] ** 2).sum()
        >>> tx = gradtx.mezo(lr=0.1)
        >>> state = tx.init(params)
        >>> for _ in range(30):
        ...     updates, state = tx.update(params, state, params, value_fn=loss)
        ...     params = gradtx.apply_updates(params, updates)
        >>> loss(params) < 1.0
        tensor(True)

    Source: Malladi et al. 2023, arXiv:2305.17333. Departures: each leaf has a stream of its own instead of torch's.
    """
    return chain(
        estimate_gradient("central", samples, scale, "normal", seed),
        scale_by_learning_rate(lr),
    )
