"""`range_test`: the loss of a few steps with rates that rise, which shows the largest stable one."""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from statistics import median
from typing import Any, NoReturn

from torch import Tensor
from torch.nn.parameter import is_lazy

from gradtx.arguments import has_schedule
from gradtx.base.messages import describe, warn_user
from gradtx.optim.groups import GroupSettings, is_same
from gradtx.optim.optimizer import ChainOptimizer
from gradtx.watching.backward_calls import BackwardCalls, is_of_scaler
from gradtx.watching.snapshot import Snapshot
from gradtx.watching.watch import optimizer_of

__all__ = ["RangeTest", "range_test"]

# By default: a rate for each step, from 1e-7 to 10.
LOWEST, HIGHEST, STEPS = 1e-7, 10.0, 100
DIVERGED = 4.0  # times the smallest loss, as in Smith's plots and in fastai
# A loss this many times the returned one, or its inverse, is another loss, and not the same with a penalty.
UNLIKE = 8.0
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
        steps = self._stable_steps()
        return self.lrs[steps - 1] if steps > 0 else math.nan

    @property
    def steepest(self) -> float:
        """The stable rate at which the smoothed loss falls fastest per factor of the rate; NaN as for `largest`.

        What falls behind the largest stable rate does not count: the loss has risen by then, and falls back.
        """
        falls = [
            (self.smoothed[i] - self.smoothed[i + 1]) / self._log_factor(i)
            for i in range(self._stable_steps())
        ]
        best = max(range(len(falls)), key=falls.__getitem__, default=None)
        return math.nan if best is None else self.lrs[best]

    def _stable_steps(self) -> int:
        """Return the number of steps to the smallest smoothed loss."""
        return min(range(len(self.smoothed)), key=self.smoothed.__getitem__)

    def _log_factor(self, step: int) -> float:
        """Return the logarithm of the factor from the rate of a step to the next; for the last step, the one before."""
        if len(self.lrs) < 2:
            return 1.0
        i = min(step, len(self.lrs) - 2)
        return math.log(self.lrs[i + 1] / self.lrs[i])

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
        finite = [loss for loss in self.smoothed if math.isfinite(loss)]
        span = finite[0] - min(finite) or 1.0
        lowest = min(loss for loss in (*finite, *self.losses) if math.isfinite(loss))
        axes.set(
            xscale="log",
            xlabel="rate",
            # Where it diverges, the loss leaves the plot.
            ylim=(lowest - 0.1 * span, finite[0] + 0.3 * span),
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
    median, exceeds four times the smallest, or one is not finite. Afterwards everything is what it was, also after an
    error: all weights of the modules that have a parameter of the optimizer, their attributes that are tensors or
    numbers, the gradients, buffers and modes of all modules, and the random streams of torch, Python and NumPy. What
    the closure takes from an iterator of its own is used up, and lists and dicts that a module fills stay filled.

    A rate that is a schedule is replaced by the rates of the test, also where it warms up from 0. Schedules of other
    numbers, such as the factor of `scale`, still apply.

    Start with the steepest rate, or a third of the largest stable one: a rate that is too large shows after a few
    steps, whose rates are larger still. Both are those of the present weights, so test again after a warm-up.

    Args:
        optimizer: An optimizer of gradtx, or a trainer's wrapper around one. Groups keep the ratios of their rates,
            and `lrs` are those of the largest.
        closure: Calls `optimizer.zero_grad()`, computes the loss and its gradients, without a `GradScaler`, and returns
            the loss.
        lrs: The rates, rising; by default 100 from 1e-7 to 10, at equal ratios.

    Returns:
        A `RangeTest`: `steepest`, `largest`, `plot(path)`.

    Raises:
        TypeError: If `optimizer` is no optimizer of gradtx, if `closure` is not callable or returns no number, or if
            `lrs` are no numbers.
        ValueError: If the chain has no rate, if the ratios of the groups' rates are unknown, if `lrs` are not at least
            two finite positive numbers that rise, or if the closure computes no gradients, those of a loss that a
            `GradScaler` has scaled, or a first loss that is not finite.
        RuntimeError: If gradients are released during backward, or if the closure calls `optimizer.step()`.

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
    if inner.releases_gradients:
        raise RuntimeError(
            "range_test: the optimizer steps during backward (release_gradients), so each gradient would change its "
            "state; call handle.remove() before the test"
        )
    rates = _checked(lrs)
    params = [param for group in inner.param_groups for param in group["params"]]
    trial: ChainOptimizer = deepcopy(inner, {id(param): param for param in params})
    shares = _shares_of(trial)
    snapshot = Snapshot(params)
    try:
        with _unchanged(inner):
            losses = _losses(trial, _Closure(closure, trial, params), rates, shares)
    finally:
        snapshot.restore()
    return RangeTest(rates[: len(losses) - 1], losses)


class _Closure:
    """Computes the loss and the gradients, and checks both in the first call.

    Args:
        function: The user's closure.
        trial: The optimizer that steps with it.
        params: The parameters.
    """

    def __init__(
        self,
        function: Callable[[], Any],
        trial: ChainOptimizer,
        params: Sequence[Tensor],
    ):
        self._function = function
        # Zero-order rules need the loss alone.
        self._needs_gradients = not trial._up_to_date().traits.makes_gradient
        self._params = params
        self._is_checked = False

    def __call__(self) -> Any:
        if self._is_checked:
            return self._function()
        for param in self._params:
            if not is_lazy(param):
                param.grad = None  # of an earlier backward, which would hide that none is computed
        params = [param for param in self._params if not is_lazy(param)]
        with BackwardCalls(params) as calls:
            loss = self._function()
        value = _loss_of(loss)
        self._check(value)
        _check_scale(calls.scale_of(value))
        self._is_checked = True
        return loss

    def _check(self, loss: float) -> None:
        """Raise an error unless there are a finite loss and gradients."""
        if not math.isfinite(loss):
            raise ValueError(
                f"range_test: the loss is {loss} at the present weights, before any step; check the data and the "
                "weights first"
            )
        if self._needs_gradients and all(param.grad is None for param in self._params):
            raise ValueError(
                "range_test: closure computes no gradients of the optimizer's parameters; call loss.backward() in it, "
                "after optimizer.zero_grad()"
            )


def _check_scale(scale: float) -> None:
    """Check that the gradients are those of the returned loss, since the rates are those of the gradients.

    Raises:
        ValueError: If a `GradScaler` has scaled the loss.
    """
    if 1 / UNLIKE < scale < UNLIKE:
        return
    if is_of_scaler(scale):
        raise ValueError(
            f"range_test: a GradScaler multiplies the gradients by {scale:.6g}, and nothing divides them again, since "
            "range_test steps without it: call loss.backward() in the closure, in place of "
            "scaler.scale(loss).backward() or self.manual_backward(loss)"
        )
    warn_user(
        f"range_test: the closure computes the gradients of {scale:.3g} times the loss that it returns, and the rates "
        "are those for these gradients; if training divides them again, call backward on the loss itself"
    )


@contextmanager
def _unchanged(optimizer: ChainOptimizer) -> Iterator[None]:
    """Refuse steps of an optimizer, of which a copy is tested."""
    handle = optimizer.register_step_pre_hook(_refuse_step)
    try:
        yield
    finally:
        handle.remove()


def _refuse_step(*_: Any) -> NoReturn:
    raise RuntimeError(
        "range_test: closure calls optimizer.step(), but range_test steps itself, with a copy of the optimizer; only "
        "compute the loss and its gradients in it"
    )


def _losses(
    trial: ChainOptimizer,
    closure: Callable[[], Any],
    rates: Sequence[float],
    shares: Sequence[float | None],
) -> list[float]:
    """Return the loss before each step, and after the last one, until it diverges."""
    losses: list[float] = []
    for rate in rates:
        for group, share in zip(trial.param_groups, shares, strict=True):
            if share is not None:
                group["lr"] = rate * share
        losses.append(_loss_of(trial.step(closure)))
        if _has_diverged(losses):
            return losses
    return [*losses, _loss_of(closure())]


def _has_diverged(losses: Sequence[float]) -> bool:
    """Whether the last loss is not finite, or those of the last steps are far above the smallest."""
    if not math.isfinite(losses[-1]):
        return True
    last, low = median(losses[-1 - SIDE :]), min(losses)
    # The smallest may be negative.
    return last - low > (DIVERGED - 1) * max(abs(low), losses[0] - low)


def _loss_of(loss: Any) -> float:
    """Return a loss as a number."""
    if isinstance(loss, Tensor) and loss.numel() == 1 and not loss.is_complex():
        return loss.item()
    if isinstance(loss, numbers.Real):
        return float(loss)
    raise TypeError(
        f"range_test: closure must return the loss, got {describe(loss)}; end it with return loss"
    )


def _checked(lrs: Iterable[float] | None) -> list[float]:
    """Return the rates as floats.

    Raises:
        TypeError: If they are not several numbers.
        ValueError: If they are not at least two finite positive numbers that rise.
    """
    if lrs is None:
        ratio = (HIGHEST / LOWEST) ** (1 / (STEPS - 1))
        return [LOWEST * ratio**i for i in range(STEPS)]
    what = "range_test: lrs must be numbers that rise, such as [1e-4, 1e-3, 1e-2]"
    try:
        rates = [float(rate) for rate in lrs]
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{what}, got {describe(lrs)}") from None
    if len(rates) < 2:
        raise ValueError(f"{what}, at least two of them, got {describe(rates)}")
    for i, rate in enumerate(rates):
        if not math.isfinite(rate):
            raise ValueError(f"range_test: lrs[{i}] must be finite, got {rate}")
        if rate <= 0:
            raise ValueError(f"range_test: lrs[{i}] must be above 0, got {rate}")
        if i > 0 and rate <= rates[i - 1]:
            raise ValueError(
                f"range_test: lrs must rise, but lrs[{i}] = {rate} follows {rates[i - 1]}; pass sorted(set(lrs))"
            )
    return rates


def _shares_of(trial: ChainOptimizer) -> list[float | None]:
    """Return the rate of each group relative to the largest; None for a group without a rate, as of frozen leaves.

    Raises:
        ValueError: If no group has a rate, or their ratios are unknown.
    """
    groups = trial._up_to_date().members.groups
    with_rate = [settings for settings in groups if _has_rate(settings)]
    if not with_rate:
        raise ValueError(
            "range_test: the chain has no learning rate; add scale_by_learning_rate to it"
        )
    largest = max(float(settings.group["lr"]) for settings in with_rate)
    first, *others = [_source_of_rate(settings) for settings in with_rate]
    # One schedule for all groups, which may warm up from 0.
    is_common = has_schedule(first) and all(is_same(source, first) for source in others)
    if largest <= 0 and not is_common:
        raise ValueError(
            "range_test: the rates of all groups are 0, so their ratios are unknown; set them above 0, or if "
            "schedules start at 0, make a step first"
        )
    shares: list[float | None] = []
    for settings in groups:
        share = 1.0 if is_common else float(settings.group["lr"]) / largest
        shares.append(share if _has_rate(settings) else None)
    return shares


def _has_rate(settings: GroupSettings) -> bool:
    entry = settings.entries.get("lr")
    return entry is not None and entry.argument.name == "lr"


def _source_of_rate(settings: GroupSettings) -> Any:
    """Return the rate of a group: a number, or the schedule that it follows."""
    shown, rate = settings.shown.get("lr"), settings.group["lr"]
    follows = "lr" in settings.shown and is_same(rate, shown)
    return settings.sources["lr"] if follows else rate


def _smoothed(losses: Sequence[float]) -> list[float]:
    """Return the median of each loss and its neighbours, which has no delay, and leaves out single spikes."""
    finite = [loss if math.isfinite(loss) else math.inf for loss in losses]
    return [median(finite[max(0, i - SIDE) : i + SIDE + 1]) for i in range(len(finite))]
