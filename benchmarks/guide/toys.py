"""Toys of one property each: an optimizer passes if one of its rates ends below a bound.

All toys and rates of an optimizer train side by side. A toy's weights are one matrix of 4 x 4, so that methods for
matrices take part; its loss reads as many entries as it needs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import gradtx
from benchmarks.guide.entries import Entry, entries

STEPS, RATES, FACTOR = 300, 13, 10**0.5
GENERATOR = torch.Generator().manual_seed(0)
START = torch.randn(4, 4, generator=GENERATOR)
TARGET = torch.randn(4, 4, generator=GENERATOR)
SCALES = torch.logspace(0, 4, 16).reshape(4, 4)
ROTATION, _ = torch.linalg.qr(torch.randn(16, 16, generator=GENERATOR))


@dataclass(frozen=True)
class Toy:
    """A property.

    Attributes:
        name, about: How pages call and describe it.
        loss: `loss(w, noise, t)`: `noise` is normal, of shape (4, 4), and `t` the fraction of the steps done.
        start: The initial weights.
        error: What is judged at the end.
        bound: The largest error that passes.
    """

    name: str
    about: str
    loss: Callable[[Tensor, Tensor, Tensor], Tensor]
    start: Tensor
    error: Callable[[Tensor], Tensor]
    bound: float


def distance(w: Tensor) -> Tensor:
    """Return the root mean square distance from the target."""
    return (w - TARGET).square().mean().sqrt()


def square(w: Tensor) -> Tensor:
    return 0.5 * (w - TARGET).square().sum()


def conditioned(w: Tensor) -> Tensor:
    return 0.5 * (SCALES * (w - TARGET).square()).sum() / 100


def rotated(w: Tensor) -> Tensor:
    x = ROTATION @ (w - TARGET).flatten()
    return 0.5 * (SCALES.flatten() * x.square()).sum() / 100


def rosenbrock(w: Tensor) -> Tensor:
    x, y = w[0, 0], w[0, 1]
    return (1 - x).square() + 100 * (y - x.square()).square() + w[1:].square().sum()


def saddle(w: Tensor) -> Tensor:
    x, y = w[0, 0], w[0, 1]
    return x.square() - y.square() + y**4 / 4 + w[1:].square().sum()


def plateau(w: Tensor) -> Tensor:
    return 1 - torch.exp(-0.5 * w.square().sum() / 4)


def cosine(w: Tensor) -> Tensor:
    """Return 1 minus the cosine between the weights and the target, which ignores their length."""
    return (
        1
        - (w * TARGET).sum() / (w.square().sum() * TARGET.square().sum() + 1e-30).sqrt()
    )


def cauchy(noise: Tensor) -> Tensor:
    return torch.tan(math.pi * (0.998 * torch.special.ndtr(noise) - 0.499))


def rare(w: Tensor, noise: Tensor) -> Tensor:
    """Return the loss of the rows that a step reads; the last one is read in one of twenty steps."""
    probabilities = torch.tensor([1.0, 0.5, 0.2, 0.05])
    is_read = (torch.special.ndtr(noise[:, 0]) < probabilities).float()
    return 0.5 * (is_read[:, None] * (w - TARGET).square()).sum()


def reddi(w: Tensor, noise: Tensor) -> Tensor:
    """Return the counterexample of AMSGrad: a rare large gradient against frequent small ones."""
    is_rare = (torch.special.ndtr(noise[0, 0]) < 0.1).float()
    slope = 30 * is_rare - 2 * (1 - is_rare)
    x = w[0, 0]
    return slope * x + 0.5 * x.square() + w[1:].square().sum()


def toy(
    name: str, about: str, loss: Any, error: Any, bound: float, start: Tensor = START
) -> Toy:
    return Toy(name, about, loss, start, error, bound)


def moving(t: Tensor) -> Tensor:
    return TARGET + 2 * torch.sin(2 * math.pi * t)


TOYS = [
    toy("quadratic", "a round bowl", lambda w, n, t: square(w), distance, 1e-2),
    toy(
        "ill-conditioned",
        "axis-aligned curvatures from 0.01 to 100",
        lambda w, n, t: conditioned(w),
        distance,
        0.05,
    ),
    toy(
        "rotated",
        "the same, in rotated coordinates",
        lambda w, n, t: rotated(w),
        distance,
        0.3,
    ),
    toy(
        "rosenbrock",
        "a curved valley",
        lambda w, n, t: rosenbrock(w),
        rosenbrock,
        0.01,
        torch.zeros(4, 4) - 0.5,
    ),
    toy(
        "saddle",
        "a start next to a saddle point",
        lambda w, n, t: saddle(w),
        lambda w: saddle(w) + 1,
        0.05,
        torch.tensor([[1.0, 1e-4, 0, 0]] + 3 * [[0.0] * 4]),
    ),
    toy(
        "plateau",
        "a start where the gradient is 1e-5",
        lambda w, n, t: plateau(w),
        plateau,
        0.05,
        torch.full((4, 4), 1.9),
    ),
    toy(
        "corner",
        "absolute values",
        lambda w, n, t: (w - TARGET).abs().sum(),
        distance,
        0.02,
    ),
    toy(
        "far",
        "a start 1000 away",
        lambda w, n, t: square(w),
        distance,
        1.0,
        START + 1000,
    ),
    toy(
        "small gradients",
        "gradients of size 1e-6",
        lambda w, n, t: 1e-6 * square(w),
        distance,
        0.05,
    ),
    toy(
        "large gradients",
        "gradients of size 1e6",
        lambda w, n, t: 1e6 * square(w),
        distance,
        0.05,
    ),
    toy(
        "scales",
        "rows whose gradients differ by 1e6",
        lambda w, n, t: (
            torch.tensor([1e-3, 0.1, 10.0, 1e3])[:, None] * (w - TARGET).square()
        ).sum(),
        distance,
        0.05,
    ),
    toy(
        "direction",
        "a loss that ignores the length of the weights",
        lambda w, n, t: cosine(w),
        cosine,
        1e-3,
    ),
    toy(
        "product",
        "a product of two factors from a small start",
        lambda w, n, t: 0.5 * (w[0] * w[1] - 1).square().sum() + w[2:].square().sum(),
        lambda w: (w[0] * w[1] - 1).abs().mean(),
        0.05,
        torch.full((4, 4), 0.03),
    ),
    toy(
        "vanishing noise",
        "noise that vanishes at the minimum",
        lambda w, n, t: 0.5 * (n.square() * (w - TARGET).square()).sum(),
        distance,
        1e-2,
    ),
    toy(
        "noise",
        "normal gradient noise",
        lambda w, n, t: square(w) + (2 * n * w).sum(),
        distance,
        0.25,
    ),
    toy(
        "heavy tails",
        "Cauchy gradient noise",
        lambda w, n, t: square(w) + (0.3 * cauchy(n) * w).sum(),
        distance,
        0.35,
    ),
    toy(
        "noise and curvature",
        "noise and ill-conditioning",
        lambda w, n, t: conditioned(w) + (0.3 * n * w).sum(),
        distance,
        1.0,
    ),
    toy(
        "rare rows",
        "rows that few steps read",
        lambda w, n, t: rare(w, n),
        distance,
        0.1,
    ),
    toy(
        "rare large gradients",
        "the counterexample of AMSGrad",
        lambda w, n, t: reddi(w, n),
        lambda w: (w[0, 0] + 1.2).abs(),
        0.6,
        torch.zeros(4, 4),
    ),
    toy(
        "moving target",
        "a minimum that moves until the middle",
        lambda w, n, t: 0.5 * (w - moving(t.clamp(max=0.5))).square().sum(),
        distance,
        0.1,
    ),
]


def loss_of(number: Tensor, w: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    losses = torch.stack([toy.loss(w, noise, t) for toy in TOYS])
    chosen = torch.arange(len(TOYS)) == number
    return torch.where(chosen, losses, 0.0).sum()


def final_errors(entry: Entry) -> dict[str, float]:
    """Return the smallest final error over rates for each toy; infinity where all diverged."""
    steps = STEPS // entry.gradients
    make = entry.make(steps)
    rates = torch.tensor(
        [entry.centre * FACTOR**i for i in range(-(RATES // 2), RATES // 2 + 1)],
        dtype=torch.float64,
    )
    numbers = torch.arange(len(TOYS))
    rate, number = rates.repeat(len(TOYS)), numbers.repeat_interleave(RATES)
    params = {"w": torch.stack([toy.start for toy in TOYS]).repeat_interleave(RATES, 0)}
    reads_hessian = "hessian_diag" in make(rate=entry.centre).needs

    def init(rate: Tensor, params: Any) -> Any:
        return make(rate=rate).init(params)

    def step(
        rate: Tensor,
        number: Tensor,
        params: Any,
        state: Any,
        noise: Tensor,
        t: Tensor,
        probe: Tensor,
    ) -> Any:
        def loss(params: Any) -> Tensor:
            return loss_of(number, params["w"], noise, t)

        extras = {}
        if reads_hessian:
            (product,) = torch.func.vjp(torch.func.grad(loss), params)[1]({"w": probe})
            extras["hessian_diag"] = {"w": probe * product["w"]}
        params, state, _ = gradtx.train_step(loss, make(rate=rate))(
            params, state, **extras
        )
        return params, state

    def evaluate(rate: Tensor, params: Any, state: Any) -> Any:
        return make(rate=rate).eval_params(state, params)

    state = torch.vmap(init)(rate, params)
    advance = torch.vmap(step, in_dims=(0, 0, 0, 0, None, None, None))
    generator = torch.Generator().manual_seed(1)
    for i in range(steps):
        noise = torch.randn(4, 4, generator=generator)
        probe = 2 * torch.randint(2, (4, 4), generator=generator) - 1.0
        params, state = advance(
            rate, number, params, state, noise, torch.tensor(i / steps), probe
        )
    weights = torch.vmap(evaluate)(rate, params, state)["w"].reshape(
        len(TOYS), RATES, 4, 4
    )
    errors: dict[str, float] = {}
    for i, toy in enumerate(TOYS):
        finals = torch.stack([toy.error(w) for w in weights[i]])
        finite = finals[finals.isfinite()]
        errors[toy.name] = float(f"{finite.min():.3g}") if len(finite) else math.inf
    return errors


def run_toys(
    chosen: list[str],
    again: bool,
    folder: Path,
    save: Callable[[Path, dict[str, Any]], None],
    machine: dict[str, str],
) -> None:
    path = folder / "toys.json"
    content: dict[str, Any] = {
        "task": "toys",
        "bounds": {toy.name: toy.bound for toy in TOYS},
        "optimizers": {},
    }
    if path.exists():
        content = json.loads(path.read_text(encoding="utf-8"))
    content["machine"] = machine
    todo = [name for name in chosen if again or name not in content["optimizers"]]
    for name in (bar := tqdm(todo, desc="toys", disable=None)):
        bar.set_postfix_str(name)
        try:
            row: dict[str, Any] = {"errors": final_errors(entries()[name])}
        except (RuntimeError, TypeError, ValueError) as error:
            row = {"skipped": " ".join(str(error).split())[:200]}
        content["optimizers"][name] = row
        save(path, content)
