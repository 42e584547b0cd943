"""Starts: constructors, groups, first steps, loads, schedules and optimizers that live for a few steps."""

from __future__ import annotations

import copy
import functools
import random
from collections.abc import Callable
from typing import Any

import torch
from common import SEED, Shapes, seconds
from rows import (
    ADAMW,
    SMALL,
    Contestant,
    Contestants,
    Make,
    Row,
    each,
    timed,
    weights,
)  # first

import gradtx


def construction(shapes: Shapes, optimizers: int = 1) -> Callable[[], Contestants]:
    """Measure constructors."""

    def of(make: Make) -> Contestant:
        lists = [weights(shapes) for _ in range(optimizers)]
        return timed(lambda: [make(params) for params in lists])

    return lambda: each(ADAMW, of)


def first_steps(shapes: Shapes, optimizers: int) -> Callable[[], Contestants]:
    """Measure the first steps of new optimizers."""

    def of(make: Make) -> Contestant:
        lists = [weights(shapes) for _ in range(optimizers)]

        def measure() -> float:
            made = [make(params) for params in lists]
            return seconds(lambda: [optimizer.step() for optimizer in made])

        return measure

    return lambda: each(ADAMW, of)


def groups_of(count: int) -> list[dict[str, Any]]:
    return [
        {"params": [param], "lr": 1e-3 * 0.99**i, "weight_decay": 0.01 * (i % 2)}
        for i, param in enumerate(weights([(8, 8)] * count))
    ]


def constructor_of_groups(count: int) -> Contestants:
    def of(make: Make) -> Contestant:
        groups = groups_of(count)
        return timed(lambda: make([dict(group) for group in groups]))

    return each(ADAMW, of)


def adding_of_groups(count: int) -> Contestants:
    def of(make: Make) -> Contestant:
        first, *others = groups_of(count)

        def measure() -> float:
            optimizer = make([dict(first)])
            return seconds(
                lambda: [optimizer.add_param_group(dict(group)) for group in others]
            )

        return measure

    return each(ADAMW, of)


def first_step_of_groups(count: int) -> Contestants:
    def of(make: Make) -> Contestant:
        groups = groups_of(count)

        def measure() -> float:
            optimizer = make([dict(group) for group in groups])
            return seconds(optimizer.step)

        return measure

    return each(ADAMW, of)


def step_after_group(count: int) -> Contestants:
    """Measure the step after one more group has joined."""

    def of(make: Make) -> Contestant:
        groups = groups_of(count + 1)

        def measure() -> float:
            optimizer = make([dict(group) for group in groups[:-1]])
            optimizer.step()
            optimizer.add_param_group(dict(groups[-1]))
            return seconds(optimizer.step)

        return measure

    return each(ADAMW, of)


def load_of_groups(count: int) -> Contestants:
    def of(make: Make) -> Contestant:
        optimizer = make(groups_of(count))
        optimizer.step()
        saved = copy.deepcopy(optimizer.state_dict())
        return timed(lambda: optimizer.load_state_dict(saved))

    return each(ADAMW, of)


def load_and_step(shapes: Shapes) -> Contestants:
    def of(make: Make) -> Contestant:
        optimizer = make(weights(shapes))
        optimizer.step()
        saved = copy.deepcopy(optimizer.state_dict())

        def both() -> None:
            optimizer.load_state_dict(saved)
            optimizer.step()

        return timed(both)

    return each(ADAMW, of)


def population(members: int = 50, exchanges: int = 25) -> Contestants:
    """Measure a round of population-based training: a step of each member, then some take others' states."""

    def of(make: Make) -> Contestant:
        optimizers = [make(weights(SMALL)) for _ in range(members)]
        chance = random.Random(SEED)

        def play() -> None:
            for optimizer in optimizers:
                optimizer.step()
            for _ in range(exchanges):
                loser, winner = chance.sample(optimizers, 2)
                loser.load_state_dict(copy.deepcopy(winner.state_dict()))
                loser.param_groups[0]["lr"] *= chance.choice((0.8, 1.25))

        return timed(play)

    return each(ADAMW, of)


def new_optimizer_every(steps: int) -> Contestants:
    def of(make: Make) -> Contestant:
        params = weights(SMALL)

        def train() -> None:
            optimizer = make(params)
            for _ in range(steps):
                optimizer.step()

        return timed(train)

    return each(ADAMW, of)


def state_cleared() -> Contestants:
    def of(make: Make) -> Contestant:
        optimizer = make(weights(SMALL))
        optimizer.step()

        def restart() -> None:
            optimizer.state.clear()
            optimizer.step()

        return timed(restart)

    return each(ADAMW, of)


def scheduled(clips: bool) -> Contestants:
    """Measure a new optimizer with a schedule and one step."""

    def ours(compile: bool) -> Contestant:
        params = weights(SMALL)

        def train() -> None:
            tx = gradtx.adamw(lr=gradtx.linear_schedule(1e-3, 1.0, 0.0, 100))
            if clips:
                tx = gradtx.chain(gradtx.clip_by_global_norm(1.0), tx)
            gradtx.as_optimizer(tx, params, compile=compile).step()

        return timed(train)

    def theirs(**options: Any) -> Contestant:
        params = weights(SMALL)

        def train() -> None:
            optimizer = torch.optim.AdamW(params, **options)
            scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer, lambda step: 1 - step / 100
            )
            if clips:
                torch.nn.utils.clip_grad_norm_(params, 1.0)
            optimizer.step()
            scheduler.step()

        return timed(train)

    return {
        "default": ours(False),
        "compiled": ours(True),
        "foreach": theirs(foreach=True),
        "fused": theirs(fused=True),
    }


def state_dict_of(leaves: int) -> Contestants:
    def of(make: Make) -> Contestant:
        optimizer = make(weights([(2, 2)] * leaves))
        optimizer.step()
        return timed(optimizer.state_dict)

    return each(ADAMW, of)


STARTS = [
    Row("200 optimizers of 4 leaves: constructors", construction(SMALL, 200), 5),
    Row("the same: first steps", first_steps(SMALL, 200), 5),
    Row("constructor, 10 leaves", construction([(8, 8)] * 10), 30),
    Row("constructor, 1000 leaves", construction([(8, 8)] * 1000), 10),
    Row("load_state_dict and a step", lambda: load_and_step(SMALL), 30),
    Row("a round of population-based training", population, 7),
    Row("a new optimizer every 5 steps", lambda: new_optimizer_every(5), 20),
    Row("state.clear() and a step", state_cleared, 30),
    Row("a new optimizer and a step", lambda: new_optimizer_every(1), 30),
    Row("the same with a schedule", lambda: scheduled(clips=False), 30),
    Row("with a clip, too", lambda: scheduled(clips=True), 30),
    Row("state_dict, 10,000 leaves", lambda: state_dict_of(10_000), 5),
]
GROUPS = [
    *(
        Row(f"{count} groups: {what}", functools.partial(of, count), rounds)
        for count, rounds in ((100, 7), (1000, 3))
        for what, of in (
            ("constructor", constructor_of_groups),
            ("add_param_group", adding_of_groups),
            ("first step", first_step_of_groups),
            ("the step after one more", step_after_group),
            ("load_state_dict", load_of_groups),
        )
    ),
]
