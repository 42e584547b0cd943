"""`range_test`: the loss of a few steps with rates that rise, which shows the largest stable one."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from statistics import median
from typing import Any

from torch import Tensor

from gradtx.base.messages import describe
from gradtx.optim.optimizer import ChainOptimizer
from gradtx.watching.snapshot import Snapshot
from gradtx.watching.watch import optimizer_of

__all__ = ["RangeTest", "range_test"]

# By default: a rate for each step, from 1e-7 to 10.
LOWEST, HIGHEST, STEPS = 1e-7, 10.0, 100
DIVERGED = 4.0  # times the smallest loss, as in Smith's plots and in fastai
SIDE = 2  # neighbours on each side, over which losses are smoothed


class RangeTest:
    """The losses of `gradtx.range_test`.

    Attributes:
        lrs: The rates of the steps.
        losses: The loss before each step, and that after the last one.
        smoothed: The median of each loss and two neighbours on each side.
    """

    def __init__(self, lrs: Sequence[float], losses: Sequence[float]):
        self.lrs = list(lrs)
        self.losses = list(losses)
        self.smoothed = _smoothed(self.losses)

    @property
    def largest(self) -> float:
        """The largest stable rate: that of the step to the smallest smoothed loss; NaN if no step lowered the loss."""
        lowest = min(range(len(self.smoothed)), key=self.smoothed.__getitem__)
        return self.lrs[lowest - 1] if lowest > 0 else math.nan

    @property
    def steepest(self) -> float:
        """The rate at which the smoothed loss falls fastest per factor of the rate; NaN if no step lowered the loss."""
        falls: list[float] = []
        for i in range(len(self.lrs) - 1):
            factor = math.log(self.lrs[i + 1] / self.lrs[i])
            falls.append((self.smoothed[i] - self.smoothed[i + 1]) / factor)
        best = max(range(len(falls)), key=falls.__getitem__, default=0)
        return self.lrs[best] if falls and falls[best] > 0 else math.nan

    def __repr__(self) -> str:
        text = f"{len(self.lrs)} rates from {self.lrs[0]:.3g} to {self.lrs[-1]:.3g}: "
        if math.isnan(self.largest):
            return f"{text}no step lowered the loss; test smaller rates"
        return f"{text}the loss falls fastest at {self.steepest:.2g}, and the largest stable rate is {self.largest:.2g}"

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Plot the loss against the rate, with both rates that the test says.

        Args:
            path: Where to save the plot; None to only return it.

        Returns:
            The `matplotlib` figure.

        Raises:
            ImportError: If matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise ImportError(
                "RangeTest.plot needs matplotlib: pip install matplotlib"
            ) from None
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes: Any = figure.subplots()
        axes.plot(
            self.lrs,
            self.losses[: len(self.lrs)],
            color="0.75",
            label="loss before the step",
        )
        axes.plot(self.lrs, self.smoothed[: len(self.lrs)], label="smoothed")
        for name, rate, color in (
            ("steepest", self.steepest, "C2"),
            ("largest stable", self.largest, "C3"),
        ):
            if not math.isnan(rate):
                axes.axvline(
                    rate, color=color, linestyle="--", label=f"{name}: {rate:.2g}"
                )
        known = [loss for loss in self.smoothed if math.isfinite(loss)]
        span = max(known[0], min(known)) - min(known)
        axes.set(
            xscale="log",
            xlabel="rate",
            ylim=(min(known) - 0.1 * span, max(known[0], min(known)) + span),
        )
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
        if path is not None:
            figure.savefig(path, dpi=75)
        return figure


def range_test(
    optimizer: Any, closure: Callable[[], Any], lrs: Iterable[float] | None = None
) -> RangeTest:
    """Find a learning rate: train one step with each of some rising rates, and restore everything to the bit.

    A copy of the optimizer steps, with its state as it is. It stops when the loss of the last three steps, in the
    median, exceeds four times the smallest, or one is not finite. Afterwards weights, gradients, buffers (those of all
    modules that have a parameter of the optimizer) and the random streams of torch, Python and NumPy are what they
    were. What the closure takes from an iterator of its own is used up.

    Start with the steepest rate, or a third of the largest stable one: a rate that is too large shows after a few
    steps, whose rates are larger still. Both are those of the present weights, so test again after a warm-up.

    Args:
        optimizer: An optimizer of gradtx, or a trainer's wrapper around one. Groups keep the ratios of their rates,
            and `lrs` are those of the largest.
        closure: Calls `optimizer.zero_grad()`, computes the loss and its gradients, and returns the loss.
        lrs: The rates, rising; by default 100 from 1e-7 to 10, at equal ratios.

    Returns:
        A `RangeTest`: `steepest`, `largest`, `plot(path)`.

    Raises:
        TypeError: If `optimizer` is not an optimizer of gradtx, `closure` is not callable, or returns no number.
        ValueError: If the chain has no rate, if all its rates are 0, or if `lrs` are not positive, rising and at least
            two.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
        >>> optimizer = gradtx.optim.SGD([("w", weight)], lr=0.1)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = (torch.tensor([1.0, 20.0]) * weight.square()).sum() / 2
        ...     loss.backward()
        ...     return loss
        >>> result = gradtx.range_test(optimizer, closure)
        >>> 0.05 < result.largest < 0.3  # 2 / 20 is stable
        True
        >>> weight
        Parameter containing:
        tensor([1., 1.], requires_grad=True)

    Source: Smith 2017, arXiv:1506.01186. Departures: rates rise by equal ratios, as in fastai.
    """
    inner = optimizer_of("range_test", optimizer)
    if not callable(closure):
        raise TypeError(
            f"range_test: closure must be a function that computes the loss and its gradients, got {describe(closure)}"
        )
    rates = _checked(lrs)
    params = [param for group in inner.param_groups for param in group["params"]]
    trial: ChainOptimizer = deepcopy(inner, {id(param): param for param in params})
    shares = _shares_of(trial)
    snapshot = Snapshot(params)
    try:
        losses = _losses(trial, closure, rates, shares)
    finally:
        snapshot.restore()
    return RangeTest(rates[: len(losses) - 1], losses)


def _losses(
    trial: ChainOptimizer,
    closure: Callable[[], Any],
    rates: Sequence[float],
    shares: Sequence[float],
) -> list[float]:
    """Return the loss before each step, and after the last one, until it diverges."""
    losses: list[float] = []
    for rate in rates:
        for group, share in zip(trial.param_groups, shares, strict=True):
            group["lr"] = rate * share
        losses.append(_loss_of(trial.step(closure)))
        if _has_diverged(losses):
            return losses if len(losses) > 1 else [*losses, losses[-1]]
    return [*losses, _loss_of(closure())]


def _has_diverged(losses: Sequence[float]) -> bool:
    """Whether the last loss is not finite, or those of the last steps are far above the smallest."""
    if not math.isfinite(losses[-1]):
        return True
    last, low = median(losses[-1 - SIDE :]), min(losses)
    # The smallest may be negative.
    return last - low > (DIVERGED - 1) * max(abs(low), losses[0] - low)


def _loss_of(loss: Any) -> float:
    if isinstance(loss, Tensor) and loss.numel() == 1:
        return loss.item()
    if isinstance(loss, int | float):
        return float(loss)
    raise TypeError(f"range_test: closure must return the loss, got {describe(loss)}")


def _checked(lrs: Iterable[float] | None) -> list[float]:
    if lrs is None:
        ratio = (HIGHEST / LOWEST) ** (1 / (STEPS - 1))
        return [LOWEST * ratio**i for i in range(STEPS)]
    rates = [float(rate) for rate in lrs]
    rises = all(low < high for low, high in itertools.pairwise(rates))
    if len(rates) < 2 or rates[0] <= 0 or not rises or not math.isfinite(rates[-1]):
        raise ValueError(
            f"range_test: lrs must be at least two positive numbers that rise, got {describe(rates)}"
        )
    return rates


def _shares_of(trial: ChainOptimizer) -> list[float]:
    """Return the rate of each group relative to the largest.

    Raises:
        ValueError: If no group has a rate above 0.
    """
    if "lr" not in {
        name.rpartition(".")[2] for name in trial._up_to_date().members.tx.hyperparams
    }:
        raise ValueError(
            "range_test: the chain has no learning rate; add scale_by_learning_rate to it"
        )
    rates = [float(group["lr"]) for group in trial.param_groups]
    largest = max(rates)
    if largest <= 0:
        raise ValueError(
            "range_test: the rates of all groups are 0, so their ratios are unknown; set them above 0"
        )
    return [rate / largest for rate in rates]


def _smoothed(losses: Sequence[float]) -> list[float]:
    """Return the median of each loss and its neighbours, which has no delay, and leaves out single spikes."""
    finite = [loss if math.isfinite(loss) else math.inf for loss in losses]
    return [median(finite[max(0, i - SIDE) : i + SIDE + 1]) for i in range(len(finite))]
