r"""How much curvature a chain is stable at, measured on a small problem that the chain itself steps.

With the loss $h |x|^2 / 2$ and so the gradient $h x$, a step is a linear map of weights and slots, and steps diverge
where an eigenvalue of this map leaves the unit circle. The map is measured, so it contains momenta, averages, weight
decay and whatever else links do, and no link is known by its name.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gradtx.rules import FactoryCall
from gradtx.transform import GradientTransformation
from gradtx.watching.small_problem import SmallProblem, StepMap, UnknownBoundError

# Clocks start about here, so that bias corrections have ended.
AHEAD = 1_000_000
# Steps with random gradients before the first measurement. The next ones follow after twice as many each.
STEPS, MOST_STEPS = 8, 1024
# The longest period, in steps, of combinators that do not act in each step.
LONGEST_PERIOD = 32
# Curvatures are tried from and to this factor around that of gradient descent, with this many for a factor of ten.
SPAN, DENSITY = 1e4, 60
# An eigenvalue that is 1 in exact arithmetic may be off by this much.
ON_CIRCLE = 1e-6
# Relative differences: of a bound that changes no more, of bounds after different gradients, and within a period.
SETTLED, SAME, PERIODIC = 1e-4, 2e-3, 1e-2
# The angle to the negative axis at which an eigenvalue counts as -1.
REAL = 1e-2


@dataclass(frozen=True)
class Stability:
    r"""At which curvature steps of a leaf are stable in the long run; $J$ is the response of one period to a gradient.

    Attributes:
        bound: The largest eigenvalue of $J (H + \lambda)$ at which they are.
        decay: The $\lambda$ that is added to the gradient, as in SGD. It is 0 where `curvature` holds for any problem.
        curvature: The largest stable eigenvalue of $H$ in the small problem, whose $J$ may be another one.
        sign: -1 for a chain that maximizes.
        is_linear: Whether $J$ does not depend on past gradients, so that `curvature` holds for any problem.
        alternates: Whether steps above the bound alternate in sign, as those of gradient descent, and do not rotate.
        decays: Whether updates depend on the weights.
        period: The number of calls after which the chain acts as before: more than 1 in `accumulate`.
    """

    bound: float
    decay: float
    curvature: float
    sign: float
    is_linear: bool
    alternates: bool
    decays: bool
    period: int

    @property
    def key(self) -> float:
        """What is known of a problem that is not small."""
        return self.curvature if self.is_linear else self.bound


def stabilities(
    tx: GradientTransformation, rate: float, params: Any, names: Sequence[str]
) -> dict[str, Stability]:
    """Return the stability of each leaf whose updates respond to a gradient.

    Leaves that a chain treats alike are measured once.

    Args:
        tx: The chain, without schedules.
        rate: The rate by which $J$ is divided.
        params: The tree of the parameters; only names and shapes matter.
        names: The leaves that the chain trains.

    Raises:
        UnknownBoundError: If no bound can be said.
    """
    periods = list(_possible_periods(tx))
    longest, common = max(periods, default=1), math.lcm(*periods)
    # At the beginning of a period.
    ahead = -(-AHEAD // common) * common
    problems = [SmallProblem(tx, params, seed, ahead) for seed in (0, 1)]
    result: dict[str, Stability] = {}
    for members in problems[0].alike(names):
        pair = _Pair([problem.copy() for problem in problems], members[0], rate)
        stability = pair.settled(longest)
        if stability is not None:
            result.update(dict.fromkeys(members, stability))
    return {name: result[name] for name in names if name in result}


def _possible_periods(tx: GradientTransformation) -> Iterator[int]:
    """Yield the counts among the arguments of links, one of which may be a period.

    Rules for whole matrices are left out: they prepare their next steps every few steps, and act in the same way.
    """
    for link in tx._every_link():
        if not isinstance(link, FactoryCall):
            continue
        spec, arguments = link._spec, link._arguments
        if spec.kind == "combinator" or spec.option("elementwise", arguments):
            for value in arguments.values():
                if type(value) is int and 1 < value <= LONGEST_PERIOD:
                    yield value


class _Pair:
    """A leaf of two small problems after different gradients, which may only change the scale of the response.

    Args:
        problems: The problems.
        name: The leaf.
        rate: The rate.
    """

    def __init__(self, problems: Sequence[SmallProblem], name: str, rate: float):
        self._problems = problems
        self._name = name
        self._rate = rate

    def settled(self, longest: int) -> Stability | None:
        """Return the stability in the long run, where averages over the run change no more; None without a response.

        Args:
            longest: The longest possible period.

        Raises:
            UnknownBoundError: If there is no such time.
        """
        self._advance(STEPS)
        period = self._period(longest)
        self._advance(-STEPS % period)
        before: list[Stability] = []
        count = STEPS
        while count <= MOST_STEPS:
            # In whole periods, so that each measurement begins at the same phase.
            self._advance(-(-count // period) * period)
            count *= 2
            stability = self._copy()._measured(period)
            if stability is None:
                return None
            before = [*before[-2:], stability]
            final = _limit(before)
            if final is not None:
                return final
        raise UnknownBoundError(
            "what it makes of a gradient still changes after a thousand steps"
        )

    def _copy(self) -> _Pair:
        return _Pair(
            [problem.copy() for problem in self._problems], self._name, self._rate
        )

    def _advance(self, steps: int, is_zero: bool = False) -> None:
        for problem in self._problems:
            for _ in range(steps):
                problem.advance([self._name], is_zero)

    def _period(self, longest: int) -> int:
        """Return the number of steps after which the bound is the same.

        Raises:
            UnknownBoundError: If there is none.
        """
        if longest == 1:
            return 1
        pair, bounds = self._copy(), list[float]()
        # Without what a combinator has collected of the random gradients.
        pair._advance(longest, is_zero=True)
        for _ in range(2 * longest):
            stability = pair._measured(1)
            bounds.append(0.0 if stability is None else stability.key)
            pair._advance(1, is_zero=True)
        for period in range(1, longest + 1):
            pairs = zip(bounds, bounds[period:], strict=False)
            if all(math.isclose(*both, rel_tol=PERIODIC) for both in pairs):
                return period
        raise UnknownBoundError("it acts in another way at each step")

    def _measured(self, period: int) -> Stability | None:
        """Return the stability over the next period; None without a response to a gradient.

        Raises:
            UnknownBoundError: If past gradients change more than the scale of the response.
        """
        if period > 1:
            self._advance(period, is_zero=True)
        maps: list[list[StepMap]] = [[] for _ in self._problems]
        for _ in range(period):
            for of_problem, problem in zip(maps, self._problems, strict=True):
                of_problem.append(problem.map_of(self._name))
            if period > 1:
                self._advance(1, is_zero=True)
        first, second = (_response_of(of_problem, self._rate) for of_problem in maps)
        if first is None or second is None:
            return None
        return _combined(first, second, period)


@dataclass(frozen=True)
class _Response:
    """The response of a small problem over a period.

    Attributes:
        matrix: $J$, times the sign.
        by_weights: The derivative of the sum of the updates by weights that stay, divided by the rate.
        curvature, sign, alternates: As in `Stability`.
    """

    matrix: Tensor
    by_weights: Tensor
    curvature: float
    sign: float
    alternates: bool

    @property
    def largest(self) -> float:
        """The largest eigenvalue of J."""
        return torch.linalg.eigvals(self.matrix).real.max().item()


def _combined(first: _Response, second: _Response, period: int) -> Stability:
    difference = (first.matrix - second.matrix).norm()
    is_linear = bool(difference <= SAME * first.matrix.norm())
    decays = bool(first.by_weights.norm() > 1e-12)
    decay = 0.0 if is_linear or not decays else _coupled_decay([first, second])
    bound, again = (
        response.largest * (response.curvature + decay) for response in (first, second)
    )
    if not abs(bound - again) <= SAME * abs(bound):
        raise UnknownBoundError(
            "past gradients change what it makes of a gradient in more than the scale"
        )
    return Stability(
        bound,
        decay,
        first.curvature,
        first.sign,
        is_linear,
        first.alternates,
        decays,
        period,
    )


def _coupled_decay(responses: Iterable[_Response]) -> float:
    """Return the decay in the gradient: it adds a multiple of J to what weights do, and other decay one of 1."""
    columns, targets = list[Tensor](), list[Tensor]()
    for response in responses:
        identity = torch.eye(len(response.matrix), dtype=torch.float64)
        columns.append(torch.stack([response.matrix.flatten(), identity.flatten()], 1))
        targets.append(-response.by_weights.flatten())
    solution = torch.linalg.lstsq(torch.cat(columns), torch.cat(targets)[:, None])
    return solution.solution[0].item()


def _response_of(maps: Sequence[StepMap], rate: float) -> _Response | None:
    """Return what follows from the maps of the steps of a period; None without a response to a gradient."""
    by_gradient = _sum_of_updates([step.of_gradient for step in maps], maps)
    entries = by_gradient.shape[1]
    stays = torch.eye(len(maps[0].of_vector), dtype=torch.float64)[:, :entries]
    by_weights = _sum_of_updates(
        [step.of_vector[:, :entries] - stays for step in maps], maps
    )
    if not by_gradient.isfinite().all() or not by_gradient.any():
        return None
    sign = 1.0 if by_gradient.trace() <= 0 else -1.0
    middle = 2 / torch.linalg.matrix_norm(by_gradient, 2).item()
    found = _first_unstable(maps, sign, middle)
    decayed = torch.eye(entries, dtype=torch.float64) + by_weights
    if found[0] == 0 and torch.linalg.eigvals(decayed).abs().max() <= 1:
        raise UnknownBoundError("its steps grow without a gradient")
    return _Response(
        -sign * by_gradient / rate, by_weights / rate, found[0], sign, found[1]
    )


def _sum_of_updates(inputs: Sequence[Tensor], maps: Sequence[StepMap]) -> Tensor:
    """Return the sum of all updates that inputs of the steps cause, while the weights stay."""
    entries = inputs[0].shape[1]
    vector = torch.zeros_like(inputs[0])
    total = torch.zeros(entries, entries, dtype=torch.float64)
    for step, added in zip(maps, inputs, strict=True):
        vector = step.of_vector @ vector + added
        total = total + vector[:entries]
        vector = torch.cat([torch.zeros_like(total), vector[entries:]])
    return total


def _first_unstable(
    maps: Sequence[StepMap], sign: float, middle: float
) -> tuple[float, bool]:
    """Return the smallest curvature at which steps grow, and whether they alternate.

    Raises:
        UnknownBoundError: If there is none.
    """
    decades = math.log10(SPAN)
    points = int(2 * DENSITY * decades)
    tried = torch.logspace(-decades, decades, points, dtype=torch.float64) * middle
    tried = torch.cat([torch.zeros(1, dtype=torch.float64), tried])
    for _ in range(5):
        grows = _radii(maps, sign * tried) > 1 + ON_CIRCLE
        if not grows.any():
            raise UnknownBoundError("its steps are stable at any curvature")
        first = int(grows.to(torch.int64).argmax())
        if first < 1:
            return 0.0, True
        tried = torch.linspace(
            tried[first - 1].item(), tried[first].item(), 65, dtype=torch.float64
        )
    curvature = tried[-1].item()
    # A little above, where the eigenvalue has left those on the circle behind.
    above = torch.tensor([sign * curvature * (1 + 1e-3)], dtype=torch.float64)
    values = torch.linalg.eigvals(_closed(maps, above))[0]
    outermost = values[values.abs().argmax()]
    return curvature, math.pi - abs(outermost.angle().item()) < REAL


def _closed(maps: Sequence[StepMap], curvatures: Tensor) -> Tensor:
    """Return the map of a period for each curvature, which makes a gradient of the weights."""
    size, entries = maps[0].of_gradient.shape
    result = torch.eye(size, dtype=torch.float64)
    for step in maps:
        matrix = step.of_vector.expand(len(curvatures), -1, -1).clone()
        matrix[:, :, :entries] += curvatures[:, None, None] * step.of_gradient
        result = matrix @ result
    return result


def _radii(maps: Sequence[StepMap], curvatures: Tensor) -> Tensor:
    return torch.linalg.eigvals(_closed(maps, curvatures)).abs().amax(-1)


def _limit(measured: Sequence[Stability]) -> Stability | None:
    """Return the limit of measurements after 1, 2 and 4 times a number of steps; None if it is not known yet.

    The weights of averages over the whole run fall as 1 / steps, so that what they add halves from one to the next.
    """
    if len(measured) < 2:
        return None
    *_, before, last = measured
    if abs(last.key - before.key) <= SETTLED * abs(last.key):
        return last
    if len(measured) < 3:
        return None
    first, second = _extrapolated(measured[0], before), _extrapolated(before, last)
    is_settled = abs(second.key - first.key) <= SAME * abs(second.key)
    return second if is_settled else None


def _extrapolated(before: Stability, last: Stability) -> Stability:
    return replace(
        last,
        bound=2 * last.bound - before.bound,
        curvature=2 * last.curvature - before.curvature,
    )
