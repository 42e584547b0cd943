"""What a chain makes of a small gradient in its present state: the preconditioner of a sharpness."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradtx.base import tree as _tree
from gradtx.base.exact import python_scalar
from gradtx.base.messages import describe
from gradtx.base.vectors import JointVector
from gradtx.functional import learning_rate
from gradtx.optim.optimizer import ChainOptimizer
from gradtx.state.nested import LEAF_STEPS, enter
from gradtx.transform import GradientTransformation

Product = Callable[[Tensor], Tensor]
SYMMETRIC = (
    1e-4  # the largest error of symmetry, relative to the product of random vectors
)
SAME = 1e-3  # the largest relative difference of two states
PROPORTIONAL = 1e-9  # that of a response from a multiple of the vector


@dataclass
class GroupChain:
    """The chain of a parameter group, and the leaves that it updates.

    Attributes:
        tx: The chain.
        lr: Its rate.
        momentum: What multiplies the bound, because momentum damps an oscillation.
        leaves: The names of the leaves; None for all.
    """

    tx: GradientTransformation
    lr: float
    momentum: float
    leaves: frozenset[str] | None = None


@dataclass
class Preconditioner:
    r"""A preconditioner $J$: a step is $-\eta J g$ for a small gradient $g$, beside what it is without one.

    Groups with lower rates, or with other momenta, have smaller entries in $J$, so that all share a bound.

    Attributes:
        respond: Multiplies $J$ with a vector; None if $J$ is the identity.
        lr: The largest rate.
        bound: The largest eigenvalue of $J H$ at which a step is stable.
    """

    respond: Product | None
    lr: float
    bound: float


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
    is_first = state is None
    state = tx.init(params) if state is None else state

    def in_state(state: dict[str, Any]) -> Preconditioner:
        lr = float(learning_rate(tx, state))
        group = GroupChain(tx, lr, momentum_factor(tx.hyperparams))
        return _of_groups([group], state, params, values, probe)

    first = in_state(state)
    if is_first:
        leaves, unflatten = _tree.flatten_real(params, "params")
        space = JointVector(list(values.values()), torch.float64)
        gradients = dict(zip(values, space.parts(probe), strict=True))
        _, later = tx.update(unflatten({**leaves, **gradients}), state, params)
        expected, now = _applied(first, probe), _applied(in_state(later), probe)
        if (now - expected).norm() > SAME * expected.norm():
            raise ValueError(
                "sharpness: what the chain makes of a gradient depends on its state, and the first state says little "
                "of a run; pass state= of the run, or an optimizer that has trained"
            )
    return first


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
    groups: list[GroupChain] = []
    for i, settings in enumerate(members.groups):
        leaves = frozenset(member.name for member in trained if member.group == i)
        if not leaves:
            continue
        lr = python_scalar(settings.group.get("lr"))
        if not isinstance(lr, int | float):
            raise ValueError(
                f"sharpness: group {i} has no learning rate: its lr is {describe(lr)}"
            )
        tx = settings.chain(settings.values(), probe.device)
        groups.append(
            GroupChain(tx, float(lr), momentum_factor(settings.group), leaves)
        )
    tree = {name: value.detach() for name, value in values.items()}
    return _of_groups(groups, _state_of(optimizer, trained), tree, values, probe)


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


def _of_groups(
    groups: Sequence[GroupChain],
    state: dict[str, Any],
    params: Any,
    values: dict[str, Tensor],
    probe: Tensor,
) -> Preconditioner:
    """Return the preconditioner of some groups.

    Raises:
        ValueError: If a rate is not above 0, if updates do not respond to a gradient, or not symmetrically.
    """
    for group in groups:
        if not group.lr > 0:
            raise ValueError(
                f"sharpness: the rate of the chain is {group.lr} in this state; it must be above 0"
            )
    largest = max(groups, key=lambda group: group.lr)
    leaves, unflatten = _tree.flatten_real(params, "params")

    def updates_of(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        chosen: dict[str, Tensor] = {}
        tree = unflatten({**leaves, **gradients})
        for group in groups:
            updates, _ = group.tx.update(tree, state, params)
            named, _ = _tree.flatten_real(updates, "updates")
            factor = largest.momentum / group.momentum
            for name in values:
                if group.leaves is None or name in group.leaves:
                    chosen[name] = named[name] * factor
        return {name: chosen[name] for name in values}

    zeros = {name: torch.zeros_like(value) for name, value in values.items()}
    # Its transpose, which is the same: both are symmetric.
    result: tuple[Any, ...] = torch.func.vjp(updates_of, zeros)
    updates, pull = result[0], result[1]
    space = JointVector(list(values.values()), torch.float64)

    def respond(vector: Tensor) -> Tensor:
        (response,) = pull(dict(zip(values, space.parts(vector), strict=True)))
        joined = space.joined([response[name].detach() for name in values])
        return joined / -largest.lr

    bound = 2 * largest.momentum / largest.lr
    response = respond(probe)
    if not response.any():
        raise ValueError(
            "sharpness: the updates of the chain do not respond to a small gradient, so its preconditioner is 0"
        )
    share = (torch.dot(response, probe) / torch.dot(probe, probe)).item()
    if (response - share * probe).norm() <= PROPORTIONAL * response.norm():
        return Preconditioner(None, largest.lr, bound / share)
    _check_symmetry(space.joined(list(updates.values())), respond, probe, response)
    return Preconditioner(respond, largest.lr, bound)


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


def _applied(preconditioner: Preconditioner, vector: Tensor) -> Tensor:
    """Return what a preconditioner makes of a vector, relative to its bound."""
    respond = preconditioner.respond
    return (vector if respond is None else respond(vector)) / preconditioner.bound


def momentum_factor(numbers: Mapping[str, Any]) -> float:
    r"""Return how momentum multiplies the bound of $J H$, by hyperparameters.

    A step that answers the gradient of $k$ steps before by $h_k$ oscillates where
    $\eta \lambda \sum_k (-1)^k h_k = 2$; with $J = h_0$, that is $1 + \beta$ for momentum, and
    $(1 + \beta)^2 / (1 + 2 \beta)$ for that of Nesterov.

    Raises:
        ValueError: If the rule averages in another way.
    """
    by_name = {name.rpartition(".")[2]: value for name, value in numbers.items()}
    betas = by_name.get("betas", ())
    if len(betas) > 2:
        raise ValueError(
            f"sharpness: no bound is known for a rule with {len(betas)} betas; pass no chain"
        )
    beta = betas[0] if betas else by_name.get("momentum", by_name.get("beta", 0.0))
    beta = float(python_scalar(beta))
    if by_name.get("nesterov") or "momentum_decay" in by_name:
        return (1 + beta) ** 2 / (1 + 2 * beta)
    return 1 + beta
