"""Steps of weights in 16 bits, in odd memory, of no dimension, and of SGD, whose passes are the fewest."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from common import Shapes
from rows import (
    ADAMW,
    LINEAR,
    SMALL,
    Comparison,
    Contestant,
    Contestants,
    Make,
    Params,
    Row,
    each,
    four_ways,
    timed,
    weights,
)  # first
from torch import Tensor
from torch.nn import Parameter

import gradtx

LARGE: Shapes = [(2048, 2048)]
TINY: Shapes = [(8,)] * 1000
MANY: Shapes = [LINEAR] * 161
SGD = four_ways(gradtx.optim.SGD, torch.optim.SGD, lr=1e-3)
MOMENTUM = four_ways(gradtx.optim.SGD, torch.optim.SGD, lr=1e-3, momentum=0.9)


def steps(
    makers: dict[str, Make], make_params: Callable[[], Params]
) -> Callable[[], Contestants]:
    return lambda: each(makers, lambda make: timed(make(make_params()).step))


def strided() -> Params:
    """Transposed weights, whose gradients are laid out alike."""
    params = weights([LINEAR] * 32)
    return [
        laid_out(param, lambda value: value.t().contiguous().t()) for param in params
    ]


def slices() -> Params:
    """Weights that are slices of the columns of larger ones, with dense gradients."""
    return [
        laid_out(param, lambda value: torch.cat([value, value], 1)[:, : LINEAR[1]])
        for param in weights([LINEAR] * 32)
    ]


def laid_out(param: Parameter, layout: Callable[[Tensor], Tensor]) -> Parameter:
    changed = Parameter(layout(param.detach()))
    assert param.grad is not None
    changed.grad = layout(param.grad)
    return changed


FORMS = [
    *(
        Row(
            f"{str(dtype).removeprefix('torch.')}, {title}",
            steps(ADAMW, functools.partial(weights, shapes, dtype)),
            rounds,
        )
        for dtype in (torch.float16, torch.bfloat16)
        for title, shapes, rounds in (
            ("a leaf of 4M entries", LARGE, 11),
            ("161 leaves of 64 x 64", MANY, 31),
        )
    ),
    Row("32 transposed weights", steps(ADAMW, strided), 51),
    Row("32 slices of columns", steps(ADAMW, slices), 51),
    Row("100 weights of no dimension", steps(ADAMW, lambda: weights([()] * 100)), 51),
]  # fmt: skip
FEWEST_PASSES = [
    *(
        Row(
            f"SGD{with_momentum}, {title}",
            steps(makers, functools.partial(weights, shapes)),
            rounds,
        )
        for with_momentum, makers in (("", SGD), (" with momentum", MOMENTUM))
        for title, shapes, rounds in (
            ("4 leaves", SMALL, 301),
            ("161 leaves of 64 x 64", MANY, 51),
            ("1000 leaves of 8 entries", TINY, 31),
        )
    ),
]


# Around a step


def watched_steps() -> Contestants:
    """Measure a step in which a watch measures, and one without a watch."""
    plain, seen = (gradtx.optim.AdamW(weights(MANY)) for _ in range(2))
    gradtx.watch(seen, every=1)
    return {"measured": timed(seen.step), "plain": timed(plain.step)}


def cycles(count: int = 100) -> Contestants:
    """Measure a step of many groups and of torch's OneCycleLR."""

    def of(make: Make) -> Contestant:
        groups = [{"params": [param]} for param in weights([LINEAR] * count)]
        optimizer = make(groups)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, 1e-3, total_steps=10_000
        )

        def step() -> None:
            optimizer.step()
            scheduler.step()

        return timed(step)

    return each(ADAMW, of)


def quasi_newton() -> Contestants:
    """Measure an update of L-BFGS without a line search, with a full history."""

    def of(make: Make) -> Contestant:
        params = weights([LINEAR] * 16)
        target = [param.detach() + 1 for param in params]
        scale = torch.linspace(0.1, 1, LINEAR[1])
        optimizer = make(params)

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = torch.zeros(())
            for param, goal in zip(params, target, strict=True):
                loss = loss + ((param - goal) * scale).square().sum()
            loss.backward()
            return loss

        def update() -> None:
            optimizer.step(closure)

        return timed(update)

    return {
        "gradtx": of(lambda params: gradtx.optim.LBFGS(params, lr=1e-3, history=10)),
        "torch": of(
            lambda params: torch.optim.LBFGS(
                params, lr=1e-3, history_size=10, max_iter=1
            )
        ),
    }


MEASURED = [Row("a measured step, 161 leaves", watched_steps, 15)]
OVER_PLAIN = [Comparison("measured", "plain")]
SCHEDULED = [Row("OneCycleLR on 100 groups", cycles, 51)]
LBFGS = [Row("an update of L-BFGS, 16 leaves", quasi_newton, 51)]
OVER_TORCH = [Comparison("gradtx", "torch")]
