"""Random rules for one tensor: a program gives what the rule gives line by line.

A rule computes values from the gradient, the parameter, three slots and three numbers, and returns any of them, old
slots and views too, as its update and its new slots. A case is its seed.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

import gradtx
from gradtx import GradientTransformation, Scalar, chain

SLOTS = ("a", "b", "c")
SHAPES = {"w": (2, 3), "v": (3,), "s": ()}
STEPS = 7
Step = Callable[[list[Tensor], Any], Tensor]


def drawn_step(rng: random.Random, count: int, is_elementwise: bool) -> Step:
    """Draw one line of a rule, which computes a value from the `count` values before it."""
    i, j = (rng.randrange(count) for _ in range(2))
    k, number = rng.randrange(3), rng.choice([0.0, 1.0, -1.0, 0.5, 2.0])
    period = rng.choice([2, 3])
    steps: list[Step] = [
        lambda values, ctx: values[i] + values[j],
        lambda values, ctx: values[i] - ctx.numbers[k] * values[j],
        lambda values, ctx: values[i] * number,
        lambda values, ctx: values[i] * ctx.numbers[k],
        lambda values, ctx: values[i] * values[j].cos(),
        lambda values, ctx: values[i] / (1 + values[j].square()),
        lambda values, ctx: ctx.numbers[k] * values[i] + (1 - ctx.numbers[k]) * values[j],
        lambda values, ctx: values[i].lerp(values[j], 0.25),
        lambda values, ctx: torch.maximum(values[i], values[j]),
        lambda values, ctx: values[i].clamp(min=-0.5),
        lambda values, ctx: torch.where(ctx.step % period == 0, values[i], values[j]),
        lambda values, ctx: torch.where(ctx.seen, values[i], values[j]),
        lambda values, ctx: torch.where(values[i] > 0, values[j], torch.zeros_like(values[i])),
        lambda values, ctx: values[i].reshape(-1).reshape(values[i].shape),
        lambda values, ctx: values[i].abs().sqrt(),
        lambda values, ctx: values[i].detach(),
        lambda values, ctx: values[i] / ctx.step,
        lambda values, ctx: torch.zeros_like(values[i]),
    ]
    if not is_elementwise:
        steps.append(lambda values, ctx: values[j] * values[i].square().mean().sqrt())
        steps.append(lambda values, ctx: values[j] + values[i].amax())
    return rng.choice(steps)


def drawn_rule(rng: random.Random) -> GradientTransformation:
    is_elementwise, sums = rng.random() < 0.7, rng.random() < 0.2
    steps = [drawn_step(rng, 5 + n, is_elementwise) for n in range(rng.randrange(1, 12))]
    count = 5 + len(steps)
    results = [max(rng.randrange(count), rng.randrange(count)) for _ in range(1 + len(SLOTS))]

    @gradtx.per_tensor(elementwise=is_elementwise and not sums)
    def rule(x: Scalar = 0.9, y: Scalar = 0.3, z: Scalar = 1.0):
        def init(param):
            return {"a": torch.zeros_like(param), "b": param * 0.5, "c": torch.ones_like(param)}

        def begin(g, state, p, ctx):
            ctx.numbers = (x, y, z)
            values = [g, p, *(state[slot] for slot in SLOTS)]
            for step in steps:
                values.append(step(values, ctx))
            return values, {slot: values[i] for slot, i in zip(SLOTS, results[1:], strict=True)}

        def update(g, state, p, ctx):
            values, new = begin(g, state, p, ctx)
            return values[results[0]], new

        def update_with_sum(g, state, p, ctx):
            values, new = begin(g, state, p, ctx)
            total = yield {"size": values[-1].square().sum()}
            yield values[results[0]] / (1 + total["size"]), new | {"a": new["a"] + total["size"]}

        return init, update_with_sum if sums else update

    rates = [0.0, 1.0, 0.1, gradtx.linear_schedule(1.0, 0.1, 1.0, total_iters=4)]
    return rule(x=rng.choice([0.9, 0.5, 0.0, 1.0]), z=rng.choice(rates))


def drawn_case(seed: int) -> GradientTransformation:
    rng = random.Random(f"rule {seed}")
    tx = drawn_rule(rng)
    around = [
        lambda: chain(gradtx.trace(0.5), tx),
        lambda: chain(gradtx.accumulate(gradtx.ema(0.5), 2), tx),
        lambda: gradtx.accumulate(tx, 2),
        lambda: gradtx.skip_nonfinite(tx),
        lambda: chain(tx, gradtx.scale(1.0)),
        lambda: chain(tx, drawn_rule(rng)),
        lambda: gradtx.restart(tx, 3),
        lambda: tx,
    ]
    return chain(rng.choice(around)(), gradtx.clip_by_value(1.0), gradtx.scale(-0.1))


def gradient(step: int, shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def gradients(step: int) -> dict[str, Tensor | None]:
    """The gradients of a step; one of them is missing at times."""
    missing = {1: "v", 4: "w"}.get(step)
    return {name: None if name == missing else gradient(step, shape) for name, shape in SHAPES.items()}


def by_optimizer(tx: GradientTransformation, **options: Any) -> dict[str, Tensor]:
    params = {name: Parameter(gradient(99, shape)) for name, shape in SHAPES.items()}
    optimizer = gradtx.as_optimizer(tx, params.items(), **options)
    for step in range(STEPS):
        grads = gradients(step)
        for name, param in params.items():
            param.grad = grads[name]
        optimizer.step()
    state = {
        f"{name}.{slot}": value.clone()
        for name, param in params.items()
        for slot, value in optimizer.state[param].items()
    }
    return {name: param.detach() for name, param in params.items()} | state


def by_functions(tx: GradientTransformation) -> dict[str, Tensor]:
    params = {name: gradient(99, shape) for name, shape in SHAPES.items()}
    state = tx.init(params, counts="leaves")
    for step in range(STEPS):
        updates, state = tx.update(gradients(step), state, params)
        params = gradtx.apply_updates(params, updates)
    return params


def run(seed: int, compiled: bool = False) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tx = drawn_case(seed)
        with gradtx.eagerly():
            expected = by_optimizer(tx)
        ways = {
            "by lists": lambda: by_optimizer(tx),
            "captured": lambda: by_optimizer(tx, capturable=True),
            "pure": lambda: by_functions(tx),
        }
        if compiled:
            ways["compiled"] = lambda: by_optimizer(tx, compile=True)
        for way, results in ways.items():
            found = results()
            torch.testing.assert_close(
                found,
                {name: expected[name] for name in found},
                rtol=1e-9,
                atol=1e-9,
                equal_nan=True,
                check_dtype=False,
                msg=lambda text, way=way: f"{way}: {text}",
            )
    return "passed"
