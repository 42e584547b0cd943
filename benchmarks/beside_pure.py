"""Pure updates: containers, weights that require gradients, trees in turn, recorded gradients, vmap, and sweeps."""

from __future__ import annotations

import collections
import functools
import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from common import SEED, Shapes, seconds
from rows import (
    LINEAR,
    Comparison,
    Contestant,
    Contestants,
    Row,
    timed,
)  # first
from torch import Tensor
from torch.nn import Parameter
from torch.utils import _pytree as pytree

import gradtx

Tree: TypeAlias = dict[str, Tensor]


def tree(shapes: Shapes, seed: int = SEED) -> Tree:
    generator = torch.Generator().manual_seed(seed)
    return {
        f"layers.{i}.weight": torch.randn(shape, generator=generator)
        for i, shape in enumerate(shapes)
    }


class Weights(NamedTuple):
    """Trees whose type is a named tuple of dicts."""

    first: Tree
    second: Tree


@dataclass
class Model:
    """Trees whose type is a dataclass that torch's pytrees know."""

    weights: Tree


pytree.register_dataclass(Model)


def split(leaves: Tree) -> Weights:
    half = len(leaves) // 2
    items = list(leaves.items())
    return Weights(dict(items[:half]), dict(items[half:]))


CONTAINERS: dict[str, Callable[[Tree], Any]] = {
    "dict": dict,
    "OrderedDict": collections.OrderedDict,
    "defaultdict": lambda leaves: collections.defaultdict(list, leaves),
    "named tuple": split,
    "dataclass": Model,
}
OVER_DICT = [Comparison(name, "dict") for name in CONTAINERS if name != "dict"]


def updates(tx: Any, gradients: Any, params: Any) -> Callable[[], object]:
    """Return an update that starts from the state of the last one."""
    state = tx.init(params)

    def update() -> None:
        nonlocal state
        _, state = tx.update(gradients, state, params)

    return update


def in_containers() -> Contestants:
    shapes: Shapes = [LINEAR] * 160
    return {
        name: timed(
            updates(gradtx.adamw(1e-3), container(tree(shapes, 1)), container(tree(shapes)))
        )
        for name, container in CONTAINERS.items()
    }  # fmt: skip


def requiring_gradients() -> Contestants:
    shapes: Shapes = [LINEAR] * 160
    detached = tree(shapes)
    requiring = {name: Parameter(value) for name, value in detached.items()}
    gradients = tree(shapes, 1)
    plain = updates(gradtx.adamw(1e-3), gradients, detached)
    without = updates(gradtx.adamw(1e-3), gradients, requiring)
    recording = updates(gradtx.adamw(1e-3), gradients, requiring)
    return {
        "detached": timed(plain),
        "under no_grad": timed(torch.no_grad()(without)),
        "recording": timed(recording),
    }


def in_turn(sets: list[Tree]) -> Contestant:
    """Measure updates of trees in turn by one transformation, per update."""
    tx = gradtx.adamw(1e-3)
    every = [updates(tx, leaves, leaves) for leaves in sets]

    def measure() -> float:
        return seconds(lambda: [update() for update in every]) / len(every)

    return measure


def shapes_in_turn() -> Contestants:
    def sets(count: int) -> list[Tree]:
        return [tree([(8 + i, 8)] * 16) for i in range(count)]

    return {"one": in_turn(sets(1)), "forty": in_turn(sets(40))}


def structures_in_turn() -> Contestants:
    def sets(count: int) -> list[Tree]:
        return [
            {f"{i}.{name}": leaf for name, leaf in tree([(8, 8)] * 16).items()}
            for i in range(count)
        ]

    return {"one": in_turn(sets(1)), "forty": in_turn(sets(40))}


def torchopt() -> Any:
    found = importlib.util.find_spec("torchopt") is not None
    return importlib.import_module("torchopt") if found else None


def beside_torchopt(
    ours: Contestant, theirs: Callable[[Any], Contestant]
) -> Contestants:
    library = torchopt()
    return {"gradtx": ours} | ({} if library is None else {"TorchOpt": theirs(library)})


def their_update(library: Any, params: Tree, state: Any, gradients: Tree) -> Any:
    tx = library.adamw(1e-3)
    return tx.update(gradients, state, params=params, inplace=False)


def inits(leaves: int) -> Contestants:
    params = tree([LINEAR] * leaves)
    tx = gradtx.adamw(1e-3)
    return beside_torchopt(
        timed(lambda: tx.init(params)),
        lambda library: timed(lambda: library.adamw(1e-3).init(params)),
    )


def recorded(leaves: int) -> Contestants:
    """Measure updates whose gradients carry a graph."""
    params = tree([(16, 16)] * leaves)
    gradients = {
        name: value.requires_grad_() * 2 for name, value in tree([(16, 16)] * leaves, 1).items()
    }  # fmt: skip
    tx = gradtx.adamw(1e-3)
    state = tx.init(params)

    def theirs(library: Any) -> Contestant:
        start = library.adamw(1e-3).init(params)
        return timed(lambda: their_update(library, params, start, gradients))

    return beside_torchopt(timed(lambda: tx.update(gradients, state, params)), theirs)


def under_vmap(leaves: int, members: int = 16) -> Contestants:
    params = tree([(members, 16, 16)] * leaves)
    gradients = tree([(members, 16, 16)] * leaves, 1)
    tx = gradtx.adamw(1e-3)
    state = torch.func.vmap(tx.init)(params)
    ours = torch.func.vmap(tx.update)

    def theirs(library: Any) -> Contestant:
        start = torch.func.vmap(library.adamw(1e-3).init)(params)
        update = torch.func.vmap(functools.partial(their_update, library))
        return timed(lambda: update(params, start, gradients))

    return beside_torchopt(timed(lambda: ours(gradients, state, params)), theirs)


OVER_TORCHOPT = [Comparison("gradtx", "TorchOpt")]
OVER_ONE = [Comparison("forty", "one")]
OVER_DETACHED = [
    Comparison("under no_grad", "detached"),
    Comparison("recording", "detached"),
]
IN_CONTAINERS = [Row("each of these", in_containers, 11)]
REQUIRING = [Row("weights that require gradients", requiring_gradients, 11)]
BESIDE_TORCHOPT = [
    Row("init, 4 leaves", lambda: inits(4), 101),
    Row("init, 161 leaves", lambda: inits(161), 31),
    Row("recorded gradients, 4 leaves", lambda: recorded(4), 101),
    Row("recorded gradients, 161 leaves", lambda: recorded(161), 21),
    Row("under vmap over 16 members, 4 leaves", lambda: under_vmap(4), 101),
    Row("under vmap over 16 members, 40 leaves", lambda: under_vmap(40), 31),
]
TURNS = [
    Row("16 leaves in other shapes", shapes_in_turn, 11),
    Row("16 leaves in trees of other names", structures_in_turn, 11),
]


# Sweeps


def loss_of(params: Tree, data: Tensor) -> Tensor:
    value = data
    for weight in params.values():
        value = torch.tanh(value @ weight)
    return value.square().mean()


def sweeps(members: int = 16, length: int = 50) -> Contestants:
    """Measure a sweep over learning rates, and the same loop written by hand."""
    params = tree([(16, 16)] * 4)
    data = torch.randn(length, 32, 16, generator=torch.Generator().manual_seed(SEED))
    rates = torch.logspace(-4, -2, members)

    def ours(compile: bool) -> Contestant:
        return timed(
            lambda: gradtx.sweep(
                loss_of,
                gradtx.adamw,
                params,
                lambda step: data[step],
                {"lr": rates.tolist()},
                steps=length,
                every=length,
                compile=compile,
                progress=False,
            )
        )

    return {
        "default": ours(False),
        "compiled": ours(True),
        "by hand": timed(lambda: by_hand(params, data, rates)),
    }


def by_hand(params: Tree, data: Tensor, rates: Tensor) -> Tree:
    """Train a member for each rate by AdamW, written for stacked leaves."""
    members = len(rates)
    weights = {name: leaf.expand(members, *leaf.shape) for name, leaf in params.items()}
    first = {name: torch.zeros_like(leaf) for name, leaf in weights.items()}
    second = {name: torch.zeros_like(leaf) for name, leaf in weights.items()}
    rate = rates.reshape(-1, 1, 1)
    gradients_of = torch.func.vmap(torch.func.grad(loss_of), in_dims=(0, None))
    for step, batch in enumerate(data, 1):
        gradients = gradients_of(weights, batch)
        for name, gradient in gradients.items():
            first[name] = torch.lerp(first[name], gradient, 0.1)
            second[name] = 0.999 * second[name] + 0.001 * gradient * gradient
            mean = first[name] / (1 - 0.9**step)
            root = (second[name] / (1 - 0.999**step)).sqrt() + 1e-8
            weights[name] = weights[name] * (1 - 0.01 * rate) - rate * mean / root
    return weights


SWEEPS = [Row("AdamW, 16 rates, 50 steps of 4 leaves", sweeps, 7)]
OVER_HAND = [Comparison("default", "by hand"), Comparison("compiled", "by hand")]
