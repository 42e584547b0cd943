"""What a chain makes of a small gradient in its present state: the preconditioner of a sharpness."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradtx.arguments import has_schedule
from gradtx.base import tree as _tree
from gradtx.base.exact import python_scalar, resolve
from gradtx.base.messages import describe
from gradtx.base.vectors import JointVector
from gradtx.optim.optimizer import ChainOptimizer
from gradtx.pure.tree_run import TreeRun
from gradtx.state.nested import LEAF_STEPS, enter
from gradtx.state.storage import keeping_old_codes
from gradtx.transform import GradientTransformation
from gradtx.watching.small_problem import UnknownBoundError
from gradtx.watching.stability import SAME, Stability, stabilities

Product = Callable[[Tensor], Tensor]
# The largest error of symmetry, relative to the product of random vectors.
SYMMETRIC = 1e-4
# That of a response from a multiple of the vector, at least; more in dtypes with larger rounding errors.
PROPORTIONAL, ROUNDINGS = 1e-9, 8
# The relative error of a stable rate, and the most measurements for one.
RATE, MEASUREMENTS = 1e-4, 8


@dataclass
class GroupChain:
    """The chain of a parameter group, and the leaves that it updates.

    Attributes:
        tx: The chain, without schedules.
        rate: Its rate.
        leaves: The names of the leaves.
    """

    tx: GradientTransformation
    rate: float
    leaves: Sequence[str]


@dataclass
class Preconditioner:
    r"""A preconditioner $J$: a step is $-\eta J g$ for a small gradient $g$, beside what it is without one.

    Groups with lower rates, or with other momenta, have smaller entries in $J$, so that all share a bound.

    Attributes:
        respond: Multiplies $J$ with a vector; None if $J$ is the identity.
        rate: The largest rate.
        bound: The largest eigenvalue of $J H$ at which a step is stable.
        sign: -1 for a chain that maximizes: $H$ is then that of the negated loss.
        decay: What weight decay in the gradient adds to the diagonal of $H$.
        bound_at: Returns the bound for another largest rate; None if the bound is inverse to the rate.
    """

    respond: Product | None
    rate: float
    bound: float
    sign: float = 1.0
    decay: Tensor | float = 0.0
    bound_at: Callable[[float], float] | None = None

    def stable_rate(self, largest: float) -> float:
        """Return the largest stable rate for the largest eigenvalue; infinite if no direction curves upwards."""
        if largest <= 0:
            return math.inf
        if self.bound_at is None:
            return self.rate * self.bound / largest
        try:
            return self._stable_rate_with_decay(largest, self.bound_at)
        except UnknownBoundError:  # at a rate far from the present one
            return self.rate * self.bound / largest

    def _stable_rate_with_decay(
        self, largest: float, bound_at: Callable[[float], float]
    ) -> float:
        rate, bound = self.rate, self.bound
        for _ in range(MEASUREMENTS):  # decay alone is too much
            if bound > 0:
                break
            rate /= 2
            bound = bound_at(rate)
        other = 1.01 * rate
        for _ in range(MEASUREMENTS):
            # Decay counts as curvature: the sum of both is inverse to the rate.
            bound_there = bound_at(other)
            decay = (rate * bound - other * bound_there) / (other - rate)
            rate, bound = other, bound_there
            other = rate * (bound + decay) / (largest + decay)
            if abs(other - rate) <= RATE * rate:
                break
        return other


def of_chain(
    tx: GradientTransformation,
    state: dict[str, Any] | None,
    params: Any,
    values: dict[str, Tensor],
    probe: Tensor,
) -> Preconditioner:
    """Return the preconditioner of a chain.

    Args:
        tx: The chain.
        state: Its state; None if it must not matter.
        params: The parameters, as the chain takes them.
        values: Those that the loss is differentiated by.
        probe: A random vector.

    Raises:
        ValueError: If there is no state and it matters; see also `_of_groups`.
    """
    if isinstance(params, nn.Module):
        params = {name: value.detach() for name, value in values.items()}
    chain = _ChainInState(tx.init(params) if state is None else state, params, values)
    tx = without_schedules(tx, chain.state)
    group = GroupChain(tx, _largest_rate(tx), list(values))
    return _of_groups([group], chain, probe, is_first=state is None)


def _largest_rate(tx: GradientTransformation) -> float:
    rates = [python_scalar(value) for value in _rates_of(tx).values()]
    numbers = [float(rate) for rate in rates if isinstance(rate, int | float)]
    if not numbers:
        raise ValueError(
            "sharpness: the chain has no learning rate; add scale_by_learning_rate to it"
        )
    return max(numbers)


def _rates_of(tx: GradientTransformation) -> dict[Any, Any]:
    return {
        entry.place: entry.value for entry in tx._entries() if entry.place[1] == "lr"
    }


def without_schedules(
    tx: GradientTransformation, state: dict[str, Any]
) -> GradientTransformation:
    """Return a chain with the present values of its schedules."""
    scheduled = [entry for entry in tx._entries() if has_schedule(entry.value)]
    if not scheduled:
        return tx
    run = TreeRun(tx, {}, None, state)
    values: dict[Any, Any] = {}
    for entry in scheduled:
        path = run.clock_path(entry.place[0])
        count = run.schedule_count() if path is None else run.inner_counts[path]
        values[entry.place] = resolve(entry.value, count)
    return tx._replaced(values, checked=False)


def _at_rate(tx: GradientTransformation, factor: float) -> GradientTransformation:
    """Return a chain whose rates are multiplied by a factor."""
    rates = _rates_of(tx)
    values = {place: rate * factor for place, rate in rates.items() if rate is not None}
    return tx._replaced(values, checked=False)


def trained_by(optimizer: ChainOptimizer, params: Any) -> dict[str, Tensor]:
    """Return the parameters that an optimizer trains, by name.

    Args:
        optimizer: The optimizer.
        params: Its module.

    Raises:
        ValueError: If there is no state, or `params` is no module.
    """
    if not isinstance(params, nn.Module):
        raise ValueError(
            "sharpness: with an optimizer, params must be its module; pass a chain and its state for a tree"
        )
    members = optimizer._up_to_date().members
    values = {
        member.name: member.param
        for member in members.every
        if member.param.requires_grad and optimizer.state.get(member.param)
    }
    if not values:
        raise ValueError("sharpness: the optimizer has no state before its first step")
    return values


def of_optimizer(
    optimizer: ChainOptimizer, values: dict[str, Tensor], probe: Tensor
) -> Preconditioner:
    """Return the preconditioner of an optimizer.

    Args:
        optimizer: The optimizer.
        values: The parameters that it trains, by name.
        probe: A random vector.

    Raises:
        ValueError: If a group has no rate; see also `_of_groups`.
    """
    members = optimizer._up_to_date().members
    trained = [member for member in members.every if member.name in values]
    tree = {name: value.detach() for name, value in values.items()}
    chain = _ChainInState(_state_of(optimizer, trained), tree, values)
    groups: list[GroupChain] = []
    for i, settings in enumerate(members.groups):
        leaves = [member.name for member in trained if member.group == i]
        if not leaves:
            continue
        rate = python_scalar(settings.group.get("lr"))
        if not isinstance(rate, int | float):
            raise ValueError(
                f"sharpness: group {i} has no learning rate: its lr is {describe(rate)}"
            )
        tx = settings.chain(settings.values(), probe.device)
        tx = without_schedules(tx, chain.state)
        groups.append(GroupChain(tx, float(rate), leaves))
    return _of_groups(groups, chain, probe)


def _state_of(optimizer: ChainOptimizer, trained: Sequence[Any]) -> dict[str, Any]:
    """Return the state of an optimizer as of pure functions."""
    steps = {
        member.name: torch.tensor(int(optimizer.state[member.param]["step"]))
        for member in trained
    }
    state: dict[str, Any] = {"step": max(steps.values())}
    if len({int(count) for count in steps.values()}) > 1:
        state[LEAF_STEPS] = steps
    for member in trained:
        flat = optimizer.state[member.param]
        for path, keys in member.layout.shared.items():
            enter(state, path).update({name: flat[key] for name, key in keys.items()})
        for path, keys in member.layout.slots.items():
            for slot, key in keys.items():
                enter(state, (*path, slot))[member.name] = flat[key]
    return state


class _ChainInState:
    """A state and parameters, in which chains answer gradients.

    Args:
        state: The state.
        params: The parameters, as chains take them.
        values: Those that the loss is differentiated by.

    Attributes:
        state, params, values: These.
        space: Vectors of all entries.
    """

    def __init__(self, state: dict[str, Any], params: Any, values: dict[str, Tensor]):
        self.state = state
        self.params = params
        self.values = {name: value.detach() for name, value in values.items()}
        self.space = JointVector(list(self.values.values()), torch.float64)
        self._leaves, self._unflatten = _tree.flatten_real(params, "params")

    def joined(self, numbers: Mapping[str, float]) -> Tensor:
        """Return the vector with one number for all entries of a leaf."""
        return self.space.joined(
            [
                torch.full_like(value, numbers[name], dtype=torch.float64)
                for name, value in self.values.items()
            ]
        )

    def response(
        self,
        groups: Sequence[GroupChain],
        at: Mapping[str, float],
        period: int,
        only_last: bool = False,
    ) -> tuple[Tensor, Product]:
        """Return the sum of the updates of a period, and what multiplies its derivative with a vector.

        Args:
            groups: The chains.
            at: The decay of each leaf that its gradient cancels.
            period: The number of steps.
            only_last: Whether only the last step has the gradient of which the derivative is taken.
        """
        fixed = {name: -at[name] * value for name, value in self.values.items()}
        gradients = {
            name: value.clone().requires_grad_() for name, value in fixed.items()
        }
        calls = [fixed if only_last else gradients] * (period - 1)
        with torch.enable_grad(), keeping_old_codes():
            total = self._sum_of_updates(groups, [*calls, gradients])
        results = [total[name] for name in self.values]
        moving = [i for i, result in enumerate(results) if result.requires_grad]

        # The derivative is its own transpose, or no preconditioner.
        def pull(vector: Tensor) -> Tensor:
            if not moving:
                return torch.zeros_like(vector)
            directions = self.space.parts(vector)
            columns = torch.autograd.grad(
                [results[i] for i in moving],
                list(gradients.values()),
                [directions[i] for i in moving],
                retain_graph=True,
                materialize_grads=True,
            )
            return self.space.joined([column.detach() for column in columns])

        return self.space.joined([result.detach() for result in results]), pull

    def _sum_of_updates(
        self, groups: Sequence[GroupChain], calls: Sequence[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        total: dict[str, Tensor] = {}
        for group in groups:
            state = self.state
            for gradients in calls:
                tree = self._unflatten({**self._leaves, **gradients})
                updates, state = group.tx.update(tree, state, self.params)
                named, _ = _tree.flatten_real(updates, "updates")
                for name in group.leaves:
                    before = total.get(name)
                    total[name] = (
                        named[name] if before is None else before + named[name]
                    )
        return total


def _of_groups(
    groups: Sequence[GroupChain],
    chain: _ChainInState,
    probe: Tensor,
    is_first: bool = False,
) -> Preconditioner:
    """Return the preconditioner of some groups.

    Args:
        groups: The groups.
        chain: The state and the parameters.
        probe: A random vector.
        is_first: Whether the state is the first one, for want of another.

    Raises:
        ValueError: If a rate is not above 0, if updates do not respond to a gradient, or not symmetrically, or if no
            bound is known.
    """
    for group in groups:
        missing = [name for name in group.tx.needs if name != "params"]
        if missing:
            raise ValueError(
                f"sharpness: the chain needs {', '.join(missing)} in each step, which sharpness cannot pass; pass no "
                "chain"
            )
        if not group.rate > 0:
            raise ValueError(
                f"sharpness: the rate of the chain is {group.rate} in this state; it must be above 0"
            )
    # The first leaf of the group with the largest rate has the bound that is said.
    groups = sorted(groups, key=lambda group: -group.rate)
    rate = groups[0].rate
    try:
        of_leaf = _stability_of(groups, chain, rate)
    except UnknownBoundError as error:
        update, respond = chain.response(groups, dict.fromkeys(chain.values, 0.0), 1)
        _check_symmetry(update, respond, probe, respond(probe))
        raise ValueError(
            f"sharpness: no bound is known for this chain, because {error}; pass no chain"
        ) from None
    _check_common(of_leaf)
    if is_first and not all(leaf.is_linear for leaf in of_leaf.values()):
        raise ValueError(
            "sharpness: what the chain makes of a gradient depends on its state, and the first state says little of a "
            "run; pass state= of the run, or an optimizer that has trained"
        )
    return _Assembly(groups, chain, of_leaf, rate).preconditioner(probe)


def _stability_of(
    groups: Sequence[GroupChain], chain: _ChainInState, rate: float
) -> dict[str, Stability]:
    """Return the stability of all leaves whose updates respond to a gradient.

    Raises:
        UnknownBoundError: If no bound can be said.
        ValueError: If there is no such leaf.
    """
    of_leaf: dict[str, Stability] = {}
    for group in groups:
        of_leaf.update(stabilities(group.tx, rate, chain.params, group.leaves))
    if not of_leaf:
        raise ValueError(
            "sharpness: the updates of the chain do not respond to a small gradient, so its preconditioner is 0"
        )
    return of_leaf


def _check_common(of_leaf: Mapping[str, Stability]) -> None:
    """Check that leaves share an eigenproblem.

    Raises:
        ValueError: If they do not.
    """
    leaves = list(of_leaf.values())
    what = ""
    if len({leaf.sign for leaf in leaves}) > 1:
        what = "the chain maximizes for some leaves and minimizes for others"
    if len({leaf.period for leaf in leaves}) > 1:
        what = "the chain collects the gradients of some leaves longer than those of others"
    bounds = [leaf.bound for leaf in leaves]
    differ = max(bounds) > (1 + SAME) * min(bounds)
    if differ and not all(leaf.alternates for leaf in leaves):
        what = "leaves have different momenta, above whose bound steps do not alternate"
    if what:
        raise ValueError(
            f"sharpness: {what}, so no eigenvalue says whether steps are stable; pass no chain"
        )


class _Assembly:
    """Puts the preconditioner of all leaves together.

    Args:
        groups: The groups, that with the largest rate first.
        chain: The state and the parameters.
        of_leaf: The stability of each leaf that responds to a gradient.
        rate: The largest rate.
    """

    def __init__(
        self,
        groups: Sequence[GroupChain],
        chain: _ChainInState,
        of_leaf: dict[str, Stability],
        rate: float,
    ):
        self._groups = groups
        self._chain = chain
        self._of_leaf = of_leaf
        self._rate = rate
        self._first = next(iter(of_leaf))

    def preconditioner(self, probe: Tensor) -> Preconditioner:
        first, of_leaf, chain = self._of_leaf[self._first], self._of_leaf, self._chain
        is_linear = all(leaf.is_linear for leaf in of_leaf.values())
        decays = dict.fromkeys(chain.values, 0.0)
        if not is_linear:
            decays.update({name: leaf.decay for name, leaf in of_leaf.items()})
        update, pull = chain.response(self._groups, decays, first.period)
        if not is_linear and first.period > 1:
            self._check_phase(decays, probe)
        if is_linear and self._is_proportional(pull, probe):
            return self._of_equal_entries()
        ratios = {
            name: first.bound / leaf.bound if leaf.bound > 0 else 1.0
            for name, leaf in of_leaf.items()
        }
        weights = chain.joined({**dict.fromkeys(chain.values, 0.0), **ratios})
        scale = -first.sign * self._rate

        def respond(vector: Tensor) -> Tensor:
            return weights * pull(vector) / scale

        response = respond(probe)
        share = (torch.dot(response, probe) / torch.dot(probe, probe)).item()
        is_multiple = (
            response - share * probe
        ).norm() <= PROPORTIONAL * response.norm()
        if is_multiple and len(set(decays.values())) == 1:
            return self._with(None, lambda leaf: leaf.bound / share - leaf.decay)
        _check_symmetry(update, respond, probe, response)
        return self._with(respond, _bound_of, decay=chain.joined(decays))

    def _check_phase(self, decays: Mapping[str, float], probe: Tensor) -> None:
        """Check that the next call begins a period, so that the gradients of all its calls count.

        Raises:
            ValueError: If it does not.
        """
        period = self._of_leaf[self._first].period
        _, pull = self._chain.response(self._groups, decays, period, only_last=True)
        if not pull(probe).any():
            raise ValueError(
                f"sharpness: the chain updates weights in one of {period} calls, and is between two updates; call "
                "sharpness after an update"
            )

    def _is_proportional(self, pull: Product, probe: Tensor) -> bool:
        """Whether the entries of each leaf are treated alike."""
        pairs = zip(
            self._chain.space.parts(pull(probe)),
            self._chain.space.parts(probe),
            strict=True,
        )
        for response, direction in pairs:
            tolerance = max(PROPORTIONAL, ROUNDINGS * torch.finfo(response.dtype).eps)
            response, direction = response.double(), direction.double()
            share = (response * direction).sum() / direction.square().sum()
            error = (response - share * direction).norm()
            if error > tolerance * response.norm():
                return False
        return True

    def _of_equal_entries(self) -> Preconditioner:
        """Return the preconditioner of a linear chain: leaves differ in their curvatures alone."""
        first = self._of_leaf[self._first]
        ratios = {
            name: first.curvature / leaf.curvature if leaf.curvature else 1.0
            for name, leaf in self._of_leaf.items()
        }
        numbers = {**dict.fromkeys(self._chain.values, 0.0), **ratios}
        if all(math.isclose(ratio, 1.0, rel_tol=SAME) for ratio in numbers.values()):
            return self._with(None, _curvature_of)
        weights = self._chain.joined(numbers)
        return self._with(lambda vector: weights * vector, _curvature_of)

    def _with(
        self,
        respond: Product | None,
        bound_of: Callable[[Stability], float],
        decay: Tensor | float = 0.0,
    ) -> Preconditioner:
        """Return a preconditioner with the bound that follows from the stability of the first leaf."""
        name, first = self._first, self._of_leaf[self._first]
        group = next(group for group in self._groups if name in group.leaves)

        def bound_at(rate: float) -> float:
            tx = _at_rate(group.tx, rate / self._rate)
            of_leaf = stabilities(tx, rate, self._chain.params, [name])
            if name not in of_leaf:
                raise UnknownBoundError("it does not respond to a gradient")
            return bound_of(of_leaf[name])

        return Preconditioner(
            respond,
            self._rate,
            bound_of(first),
            first.sign,
            decay,
            bound_at if first.decays else None,
        )


def _curvature_of(leaf: Stability) -> float:
    return leaf.curvature


def _bound_of(leaf: Stability) -> float:
    return leaf.bound


def _check_symmetry(
    update: Tensor, respond: Product, probe: Tensor, response: Tensor
) -> None:
    """Check that a response is symmetric, with the update itself, along which norms of updates change.

    Raises:
        ValueError: If it is not, as for rules that divide by the norm of an update, or if it is not finite.
    """
    direction = update.detach()
    if not direction.any():
        direction = probe.roll(1)
    size = direction.norm() * response.norm() / math.sqrt(len(probe))
    there, back = torch.dot(direction, response), torch.dot(respond(direction), probe)
    error = (there - back).abs()
    if not error <= SYMMETRIC * size:
        raise ValueError(
            "sharpness: the response of the chain to a small gradient is not symmetric, as for rules that divide an "
            "update by its norm, so its largest eigenvalue says nothing of stability; pass no chain"
        )
