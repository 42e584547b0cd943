"""`noise_scale`: how large a batch pays, from the gradients of several batches."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from gradtx.base import tree as _tree
from gradtx.base.exact import exact_dtype
from gradtx.base.inputs import check_count
from gradtx.base.messages import aligned, describe
from gradtx.watching.figures import SUMS
from gradtx.watching.sample import ALL, Sample

__all__ = ["NoiseScale", "noise_scale"]

SHOWN = 10  # leaves
# The noise, and the squared norm of the mean gradient.
Moments: TypeAlias = tuple[float, float]


@dataclass(frozen=True)
class NoiseEstimate:
    """The noise scale of a leaf, or of all leaves together.

    Attributes:
        scale: The noise scale, in examples; infinite if the noise hides the gradient, NaN if a gradient is not finite.
        error: Its standard error.
        noise: The trace of the covariance of the gradients of single examples.
        square: The squared norm of the mean gradient; may be negative if it is much smaller than its error.
    """

    scale: float
    error: float
    noise: float
    square: float


@dataclass(frozen=True)
class NoiseScale(NoiseEstimate):
    """The result of `gradtx.noise_scale`: an estimate for all leaves together, and for each.

    Attributes:
        leaves: The estimate of each leaf, by name.
        batch_size: The number of examples of a batch, in the mean; for a watch, of all micro-batches of a step.
    """

    leaves: Mapping[str, NoiseEstimate]
    batch_size: float

    def __repr__(self) -> str:
        if math.isnan(self.scale):
            return self._unknown()
        if not math.isfinite(self.scale):
            return "the noise hides the gradient: measure with more or larger batches"
        error = "" if math.isnan(self.error) else f" +- {self.error:.2g}"
        ratio = self.scale / self.batch_size
        saved = ratio / 2 / (1 + ratio)  # steps are in proportion to 1 + ratio
        head = (
            f"noise scale {self.scale:.3g}{error} examples, {ratio:.2g} times the batch of {self.batch_size:g}: twice "
            f"the batch would save {100 * saved:.0f}% of the steps"
        )
        by_scale = sorted(self.leaves.items(), key=lambda item: -item[1].scale)
        rows = [["leaf", "noise scale", "error"]]
        for name, leaf in by_scale[:SHOWN]:
            rows.append([name, f"{leaf.scale:.3g}", f"{leaf.error:.2g}"])
        return "\n  ".join([head, *aligned(rows, str.ljust)])

    def _unknown(self) -> str:
        """Return which gradients are not finite."""
        broken = [name for name, leaf in self.leaves.items() if math.isnan(leaf.scale)]
        more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        of_leaf = f" of leaf {broken[0]!r}{more}" if broken else ""
        return (
            f"a gradient{of_leaf} is not finite, so the noise scale is not known: leave out the batches with such "
            "gradients"
        )


def noise_scale(
    gradients: Iterable[Any], batch_size: int | Sequence[int]
) -> NoiseScale:
    r"""Estimate the noise scale of the gradient: the batch size at which noise and gradient are equal.

    $B = \mathrm{tr}(\Sigma) / |G|^2$, with $\Sigma$ the covariance of the gradients of single examples, and $G$ their
    mean. From $k$ gradients $g_i$ of $b_i$ examples each, with their mean $\bar g$ over all examples,
    $\mathrm{tr}(\Sigma) \approx \sum_i b_i |g_i - \bar g|^2 / (k-1)$ and
    $|G|^2 \approx |\bar g|^2 - \mathrm{tr}(\Sigma) / \sum_i b_i$, both without bias; the error is that of a jackknife
    over the gradients. With two gradients, of any two batch sizes, the first is the estimate of the paper.

    A run with `accumulate` has these gradients anyway: those of its micro-batches, whose noise scale
    `gradtx.watch(...).noise_scale` says without a copy of them. The noise scale rises as the loss falls, so measure it
    more than once.

    Args:
        gradients: The gradients of at least two different batches, at the same weights: trees of tensors, or lists of
            `param.grad`. Leaves that are None in all of them are left out.
        batch_size: The number of examples of each; an int if all have the same.

    Returns:
        A `NoiseScale`: `scale`, `error`, and `leaves`, the same of each leaf. A gradient that is not finite makes those
        of its leaf and of all leaves NaN.

    Raises:
        TypeError: If a batch size is no int.
        ValueError: If there are fewer than two gradients, if their leaves or shapes differ, if several are the same
            memory, or if a batch size is below 1.

    Example:
        >>> gradients = [{"w": torch.tensor([1.0, 1.0])}, {"w": torch.tensor([1.0, 3.0])}]
        >>> result = gradtx.noise_scale(gradients, batch_size=8)
        >>> result.noise, result.square  # 8 (1 + 1), and 1 + 4 - 16 / 16
        (16.0, 4.0)
        >>> result.scale
        4.0
        >>> print(result)
        noise scale 4 examples, 0.5 times the batch of 8: twice the batch would save 17% of the steps
          leaf  noise scale  error
          w     4            nan

    Source: McCandlish et al. 2018, arXiv:1812.06162. Departures: any number of batches, and a jackknife error.
    """
    trees = [_tree.flatten_real(tree, "gradients")[0] for tree in gradients]
    sizes = _checked_sizes(batch_size, len(trees))
    leaves: dict[str, NoiseEstimate] = {}
    products: list[Tensor] = []
    for name in trees[0]:
        vectors = [tree.get(name) for tree in trees]
        present = [vector.detach() for vector in vectors if vector is not None]
        if not present:
            continue
        if len(present) < len(trees) or any(
            tree.keys() != trees[0].keys() for tree in trees
        ):
            raise ValueError(
                f"noise_scale: leaf {name!r} has no gradient in some of the batches"
            )
        _check_alike(name, present)
        # All that follows is a function of the products of gradients.
        rows = torch.stack(
            [vector.reshape(-1).to(exact_dtype(vector)) for vector in present]
        )
        products.append((rows @ rows.T).cpu().to(torch.float64))
        leaves[name] = _estimate_of_batches(products[-1], sizes)
    if not products:
        raise ValueError("noise_scale: no leaf has a gradient")
    whole = _estimate_of_batches(torch.stack(products).sum(0), sizes)
    batch = sizes.mean().item()
    return NoiseScale(
        whole.scale, whole.error, whole.noise, whole.square, leaves, batch
    )


def _check_alike(name: str, gradients: Sequence[Tensor]) -> None:
    """Check that the gradients of a leaf have one shape, and each has its own memory.

    Raises:
        ValueError: If they do not.
    """
    shapes = sorted({tuple(gradient.shape) for gradient in gradients})
    if len(shapes) > 1:
        raise ValueError(
            f"noise_scale: the gradients of leaf {name!r} have the shapes {', '.join(map(str, shapes))}; pass "
            "gradients of one model"
        )
    addresses = {gradient.data_ptr() for gradient in gradients}
    if len(addresses) < len(gradients) and gradients[0].numel() and 0 not in addresses:
        raise ValueError(
            f"noise_scale: several gradients of leaf {name!r} are the same memory, so that each is the last one; pass "
            "clones, as [p.grad.clone() for p in model.parameters()]"
        )


def noise_scale_of(samples: Sequence[Sample], batch_size: int) -> NoiseScale:
    """Return the noise scale from what `accumulate` has averaged in measured steps; see `Seen.noise_scale`."""
    check_count("noise_scale: batch_size", batch_size)
    moments_of: dict[str, list[Moments]] = {}
    of_all: list[Moments] = []
    batches: list[int] = []
    for sample in samples:
        if sample.micro_batches < 2:
            continue
        batches.append(sample.micro_batches * batch_size)
        own = _moments_of_cycle(sample, batch_size)
        for leaf, moments in own.items():
            moments_of.setdefault(leaf, []).append(moments)
        noise = math.fsum(noise for noise, _ in own.values())
        of_all.append((noise, math.fsum(square for _, square in own.values())))
    if not of_all:
        raise ValueError(
            "noise_scale: no measured step has averaged gradients; the chain must begin with accumulate(..., every), "
            "every >= 2 and fixed; else pass gradients to gradtx.noise_scale"
        )
    whole = _estimate_of_steps(of_all)
    leaves = {name: _estimate_of_steps(own) for name, own in moments_of.items()}
    leaves.pop(ALL, None)
    batch = sum(batches) / len(batches)
    return NoiseScale(
        whole.scale, whole.error, whole.noise, whole.square, leaves, batch
    )


def _moments_of_cycle(sample: Sample, batch_size: int) -> dict[str, Moments]:
    """Return the moments of each leaf whose gradients `accumulate` has averaged in a step."""
    micro, after = SUMS.index("micro"), SUMS.index("after")
    count, moments = sample.micro_batches, dict[str, Moments]()
    for (leaf, _), row in zip(sample.rows, sample.sums.tolist(), strict=True):
        if row[micro] == 0.0:
            continue
        noise = batch_size * (row[micro] - count * row[after]) / (count - 1)
        moments[leaf] = noise, row[after] - noise / (count * batch_size)
    return moments


def _estimate_of_steps(moments: list[Moments]) -> NoiseEstimate:
    """Return the estimate from the mean moments of several steps."""

    def mean_of(steps: list[int]) -> Moments:
        noises, squares = zip(*(moments[i] for i in steps), strict=True)
        return math.fsum(noises) / len(steps), math.fsum(squares) / len(steps)

    return _estimate(len(moments), mean_of)


def _checked_sizes(batch_size: int | Sequence[int], count: int) -> Tensor:
    is_each = isinstance(batch_size, Iterable)
    sizes: list[Any] = list(batch_size) if is_each else [batch_size] * count
    if not all(isinstance(size, numbers.Integral) for size in sizes):
        raise TypeError(
            f"noise_scale: batch sizes must be numbers of examples, got {describe(batch_size)}"
        )
    if count < 2:
        raise ValueError(
            f"noise_scale: needs the gradients of at least two batches, got {count}"
        )
    if len(sizes) != count:
        raise ValueError(
            f"noise_scale: got {len(sizes)} batch sizes for {count} gradients"
        )
    if min(sizes) < 1:
        raise ValueError(
            f"noise_scale: batch sizes must be at least 1, got {describe(batch_size)}"
        )
    return torch.tensor(sizes, dtype=torch.float64)


def _estimate_of_batches(products: Tensor, sizes: Tensor) -> NoiseEstimate:
    """Return the estimate from the gradients of several batches.

    Args:
        products: The product of each pair of gradients.
        sizes: The batch sizes.
    """

    def moments_of(batches: list[int]) -> Moments:
        return _moments(products[batches][:, batches], sizes[batches])

    return _estimate(len(sizes), moments_of)


def _estimate(count: int, moments_of: Callable[[list[int]], Moments]) -> NoiseEstimate:
    """Return the estimate from all of some parts, with the error of a jackknife over them.

    Args:
        count: The number of parts.
        moments_of: Returns the moments of some of them.
    """
    noise, square = moments_of(list(range(count)))
    if not (math.isfinite(noise) and math.isfinite(square)):
        return NoiseEstimate(math.nan, math.nan, noise, square)
    scale = noise / square if square > 0 else math.inf
    if count < 3 or not math.isfinite(scale):
        return NoiseEstimate(scale, math.nan, noise, square)
    # Of the inverse, which stays finite where |G|^2 is near 0.
    ratios: list[float] = []
    for i in range(count):
        noise_of_others, square_of_others = moments_of(
            [j for j in range(count) if j != i]
        )
        if noise_of_others == 0:
            return NoiseEstimate(scale, math.nan, noise, square)
        ratios.append(square_of_others / noise_of_others)
    mean = math.fsum(ratios) / count
    variance = (count - 1) / count * math.fsum((ratio - mean) ** 2 for ratio in ratios)
    return NoiseEstimate(scale, scale**2 * math.sqrt(variance), noise, square)


def _moments(products: Tensor, sizes: Tensor) -> Moments:
    """Return estimates without bias of the noise and of the squared norm of the mean gradient."""
    total = sizes.sum()
    with_mean = products @ sizes / total
    square_of_mean = with_mean @ sizes / total
    distances = products.diagonal() - 2 * with_mean + square_of_mean
    noise = (sizes * distances).sum() / (len(sizes) - 1)
    return noise.item(), (square_of_mean - noise / total).item()
