"""A chain on leaves of a few entries: what a step makes of weights, slots and a small gradient, as a matrix."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradtx.base import tree as _tree
from gradtx.combinators.precision import Stored
from gradtx.rules import FactoryCall
from gradtx.state.nested import LEAF_STEPS
from gradtx.transform import GradientTransformation

# Entries of a small leaf: at most two along each of its first two dimensions, so that rules for matrices apply.
SIDE, SIDES = 2, 2
# Steps whose updates tell which leaves a chain treats alike.
ALIKE = 3

# The largest number of weights and slots of a leaf: beyond it, eigenvalues of the step would take minutes.
MOST_NUMBERS = 64

Place = tuple[str, ...]


class UnknownBoundError(ValueError):
    """Raised if no bound can be said; the text says why."""


@dataclass(frozen=True)
class StepMap:
    """The derivative of a step.

    Attributes:
        of_vector: Of weights and slots, by those before the step.
        of_gradient: Of weights and slots, by the gradient.
    """

    of_vector: Tensor
    of_gradient: Tensor


class SmallProblem:
    """Leaves of a few entries with the names of a model's, which a chain steps with random gradients.

    Args:
        tx: The chain, without schedules.
        params: The tree of the model's parameters; only names and shapes matter.
        seed: Of the gradients; it also decides their size.
        ahead: The updates that clocks have counted before.
    """

    def __init__(self, tx: GradientTransformation, params: Any, seed: int, ahead: int):
        leaves, self._unflatten = _tree.flatten_real(params, "params")
        tx = self._tx = _in_full_precision(tx)
        self._generator = torch.Generator().manual_seed(seed)
        self._scale = 3.0**seed
        self._params: dict[str, Any] = {}
        for name, leaf in leaves.items():
            self._params[name] = None if leaf is None else _small(leaf)
        self._state: Any = _ahead(tx.init(self._unflatten(self._params)), ahead)

    def copy(self) -> SmallProblem:
        """Return a problem that goes on from here on its own."""
        return copy.copy(self)

    def alike(self, names: Sequence[str]) -> list[list[str]]:
        """Divide leaves into those that get the same updates for the same gradients."""
        updates_of: dict[str, list[float]] = {name: [] for name in names}
        problem = self.copy()
        for _ in range(ALIKE):
            updates = problem.advance(names)
            for name in names:
                updates_of[name].extend(updates[name].reshape(-1).tolist())
        classes: dict[Any, list[str]] = {}
        for name, updates in updates_of.items():
            kind = tuple(self._params[name].shape), tuple(updates)
            classes.setdefault(kind, []).append(name)
        return list(classes.values())

    def advance(self, names: Sequence[str], is_zero: bool = False) -> dict[str, Any]:
        """Step leaves with random gradients or with 0, and return the updates."""
        drawn: dict[Any, Tensor] = {}
        gradients: dict[str, Any] = dict.fromkeys(self._params)
        for name in names:
            shape = self._params[name].shape
            if is_zero:
                gradients[name] = torch.zeros(shape, dtype=torch.float64)
                continue
            if shape not in drawn:
                # Leaves of one shape get one gradient.
                noise = torch.randn(
                    shape, generator=self._generator, dtype=torch.float64
                )
                drawn[shape] = self._scale * (noise + 0.5)
            gradients[name] = drawn[shape]
        updates, self._state = self._updated(gradients, self._state, self._params)
        self._params = {
            name: leaf if updates.get(name) is None else leaf + updates[name]
            for name, leaf in self._params.items()
        }
        return updates

    def map_of(self, name: str) -> StepMap:
        """Return the derivative of the next step of a leaf at a gradient of 0.

        Raises:
            UnknownBoundError: If the matrix is too large.
        """
        leaf = self._params[name]
        places = list(_places(self._state, name, self._params.keys()))
        inputs = [leaf, *(_at(self._state, place) for place in places)]
        sizes = [tensor.numel() for tensor in inputs]

        def step(vector: Tensor, gradient: Tensor) -> Tensor:
            parts = [
                part.reshape(like.shape).to(like.dtype)
                for part, like in zip(vector.split(sizes), inputs, strict=True)
            ]
            state = self._state
            for place, part in zip(places, parts[1:], strict=True):
                state = _with(state, place, part)
            gradients = dict.fromkeys(self._params)
            gradients[name] = gradient.reshape(leaf.shape)
            params = {**self._params, name: parts[0]}
            updates, state = self._updated(gradients, state, params)
            results = [parts[0] + updates[name]]
            results += [_at(state, place) for place in places]
            return _vector(results)

        vector = _vector(inputs)
        if len(vector) > MOST_NUMBERS:
            raise UnknownBoundError("it keeps many numbers for each weight")
        # Of a minimum: with weights that decay turns into gradients, a rule would square these as well.
        vector[: leaf.numel()] = 0
        gradient = torch.zeros(leaf.numel(), dtype=torch.float64)
        # Not torch.func, which would import dynamo, and that takes longer than all of this.
        arguments = [vector.requires_grad_(), gradient.requires_grad_()]
        with torch.enable_grad():
            result = step(*arguments)
        rows = [
            torch.autograd.grad(
                result, arguments, row, retain_graph=True, materialize_grads=True
            )
            for row in torch.eye(len(vector), dtype=torch.float64)
        ]
        of_vector, of_gradient = zip(*rows, strict=True)
        return StepMap(torch.stack(of_vector), torch.stack(of_gradient))

    def _updated(
        self, gradients: dict[str, Any], state: Any, params: dict[str, Any]
    ) -> tuple[dict[str, Any], Any]:
        updates, state = self._tx.update(
            self._unflatten(gradients), state, self._unflatten(params)
        )
        return _tree.flatten_real(updates, "updates")[0], state


def _in_full_precision(tx: GradientTransformation) -> GradientTransformation:
    """Return a chain that stores its state in the dtype of the leaves."""
    children = tuple(map(_in_full_precision, tx._children()))
    if not isinstance(tx, FactoryCall):
        return tx._rebuilt(children, {}, checked=False)
    if tx._spec.kind == "combinator" and isinstance(tx._body, Stored):
        return children[0]
    is_stored = tx._storage is not None
    options = {"state_dtype": None} if is_stored else {}
    return tx._rebuilt(children, options, checked=False)


def _small(leaf: Tensor) -> Tensor:
    """Return a leaf of the same dimensions with a few entries."""
    shape = [
        min(size, SIDE if dim < SIDES else 1) for dim, size in enumerate(leaf.shape)
    ]
    count = math.prod(shape)
    return torch.linspace(0.5, 1.5, count, dtype=torch.float64).reshape(shape)


def _vector(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1).to(torch.float64) for tensor in tensors])


# States: dicts of dicts and tensors.


def _ahead(state: Any, count: int, key: str = "") -> Any:
    """Return a state whose clocks have counted many updates."""
    if isinstance(state, dict):
        return {
            name: _ahead(value, count, key if key == LEAF_STEPS else name)
            for name, value in state.items()
        }
    is_count = isinstance(state, Tensor) and state.dtype == torch.int64
    return state + count if is_count and key in ("step", LEAF_STEPS) else state


def _places(
    state: Any, name: str, names: Collection[str], place: Place = ()
) -> Iterator[Place]:
    """Yield the places of all numbers in a state, except those of other leaves."""
    if isinstance(state, dict):
        for key, value in state.items():
            if key == name or key not in names:
                yield from _places(value, name, names, (*place, key))
    elif isinstance(state, Tensor) and state.is_floating_point():
        yield place


def _at(state: Any, place: Place) -> Tensor:
    for key in place:
        state = state[key]
    return state


def _with(state: Any, place: Place, value: Tensor) -> Any:
    key, *rest = place
    return {**state, key: _with(state[key], tuple(rest), value) if rest else value}
