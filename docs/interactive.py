"""Write docs/interactive/data.js, the paths that the interactive page draws: `make docs-tables`.

Every path is a plain functional loop with the learning rate as its argument; `vmap` runs it for all rates at once.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

import gradtx
from gradtx.state.random import Stream

PAGE = Path(__file__).with_suffix("")
STEPS = 100
RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
# A path ends where it leaves this square: none returns from there, and the page does not draw the rest.
FAR = 1e3
# The best rate has the lowest mean loss over this many final steps, because a single step is too noisy.
LAST = 10


class Surface(NamedTuple):
    """A loss of two parameters. Its minimum is 0, so that losses can be drawn on a logarithmic axis."""

    title: str
    formula: str  # the formula of `loss`, which page.js implements again
    about: str
    loss: Callable[[Tensor, Tensor], Tensor]
    start: tuple[float, float]
    window: tuple[float, float, float, float]  # x from, x to, y from, y to
    minima: tuple[tuple[float, float], ...]
    # Standard deviation of each coordinate of the surface's shift, drawn again at each step.
    noise: float = 0.0


SURFACES = {
    "rosenbrock": Surface(
        "Rosenbrock's valley",
        "(1 − x)² + 20 (y − x²)²",
        "Steep walls and a curved floor that barely slopes: the gradient points across the valley, not along it. "
        "(The factor is 20 instead of the usual 100, so that a hundred steps are enough.)",
        lambda x, y: (1 - x) ** 2 + 20 * (y - x**2) ** 2,
        (-1.2, 1.0),
        (-2.0, 2.0, -1.0, 3.0),
        ((1.0, 1.0),),
    ),
    "quadratic": Surface(
        "Ill-conditioned quadratic",
        "(u² + 50 v²) / 2 with u = 0.8 x + 0.6 y, v = 0.8 y − 0.6 x",
        "The curvature is 50 times as large across as along the valley. The axes are rotated, so one rate per "
        "coordinate cannot compensate for it.",
        lambda x, y: ((0.8 * x + 0.6 * y) ** 2 + 50 * (0.8 * y - 0.6 * x) ** 2) / 2,
        (-4.0, -1.0),
        (-5.0, 3.0, -4.0, 4.0),
        ((0.0, 0.0),),
    ),
    "himmelblau": Surface(
        "Himmelblau's four minima",
        "(x² + y − 11)² + (x + y² − 7)²",
        "The start is near the top of the central hill. The first steps determine which minimum a path reaches.",
        lambda x, y: (x**2 + y - 11) ** 2 + (x + y**2 - 7) ** 2,
        (-0.5, -0.5),
        (-6.0, 6.0, -6.0, 6.0),
        (
            (3.0, 2.0),
            (-2.805118, 3.131313),
            (-3.779310, -3.283186),
            (3.584428, -1.848127),
        ),
    ),
    "saddle": Surface(
        "Saddle",
        "x² / 2 + (y² − 1)² / 4",
        "The start is almost on the line y = 0, along which the loss descends to the saddle point at (0, 0).",
        lambda x, y: x**2 / 2 + (y**2 - 1) ** 2 / 4,
        (1.6, 0.001),
        (-2.0, 2.0, -2.0, 2.0),
        ((0.0, 1.0), (0.0, -1.0)),
    ),
    "noisy": Surface(
        "Noisy bowl",
        "(x² + 4 y²) / 2",
        "At each step the bowl is shifted by a random vector (standard deviation 0.5), the same one for all "
        "optimizers. The losses shown are those of the unshifted bowl.",
        lambda x, y: (x**2 + 4 * y**2) / 2,
        (-4.0, 3.0),
        (-5.0, 3.0, -4.0, 4.0),
        ((0.0, 0.0),),
        noise=0.5,
    ),
    "direction": Surface(
        "Scale-invariant loss",
        "1 − (0.6 x + 0.8 y) / √(x² + y²)",
        "Only the direction of (x, y) matters, as for weights before a normalization layer. Gradients are tangent to a "
        "circle, so steps lead outward, and the longer the weights, the less a step turns them. AdamP removes the "
        "radial part of a step.",
        lambda x, y: 1 - (0.6 * x + 0.8 * y) / (x**2 + y**2).sqrt(),
        (0.5, -0.5),
        (-1.0, 3.0, -1.0, 3.0),
        ((0.6, 0.8), (1.2, 1.6), (1.8, 2.4)),
    ),
}

# Families with two members each. On the page, the color shows the family and the line style the member.
OPTIMIZERS: dict[str, dict[str, Callable[..., gradtx.GradientTransformation]]] = {
    "Gradient descent": {
        "sgd": lambda lr: gradtx.sgd(lr),
        "momentum": lambda lr: gradtx.sgd(lr, momentum=0.9),
    },
    "Adam": {
        "adam": lambda lr: gradtx.adam(lr),
        "adamp": lambda lr: gradtx.adamp(lr),
    },
    "Adam's relatives": {
        "adam_atan2": lambda lr: gradtx.adam_atan2(lr),
        "adabelief": lambda lr: gradtx.adabelief(lr, rectify=False),
    },
    "Signs, look-ahead": {
        "lion": lambda lr: gradtx.lion(lr),
        "adan": lambda lr: gradtx.adan(lr),
    },
    "Earlier methods": {
        "adagrad": lambda lr: gradtx.adagrad(lr),
        "rmsprop": lambda lr: gradtx.rmsprop(lr),
    },
    "Diagonal of the Hessian": {
        "adahessian": lambda lr: gradtx.adahessian(lr),
        "sophia": lambda lr: gradtx.sophia(
            lr, gamma=1.0, weight_decay=0.0, update_period=1
        ),
    },
    "Automatic learning rates": {
        "prodigy": lambda lr: gradtx.prodigy(lr),
        "alig": lambda lr: gradtx.alig(max_lr=lr),
    },
    "Gradients at other points": {
        "schedule_free": lambda lr: gradtx.schedule_free_adamw(lr),
        "sam": lambda lr: gradtx.sam(gradtx.sgd(lr, momentum=0.9), rho=0.05),
    },
}


def path(
    make: Callable[..., gradtx.GradientTransformation], surface: Surface, steps: int
) -> Callable[[Tensor], Tensor]:
    """Return a function of the learning rate that computes the points (steps, 2) after the start.

    The points are the averaged parameters if the optimizer averages.
    """

    def run(lr: Tensor) -> Tensor:
        tx = make(lr)
        params = {
            "w": torch.tensor([surface.start], dtype=torch.float64)
        }  # a matrix with one row: AdamP does not project vectors
        state = tx.init(params)
        points = []
        for step in range(steps):
            # The noise is in the loss, not only in the gradient, so loss, Hessian and second gradient share a batch.
            away = surface.noise * Stream(
                torch.tensor(0), torch.tensor(step), "away"
            ).normal(torch.zeros(2).double())

            def loss(params: dict[str, Tensor], away: Tensor = away) -> Tensor:
                return surface.loss(*(params["w"][0] - away))

            grads, value = torch.func.grad_and_value(loss)(params)
            extras: dict[str, Any] = {"value": value, "grad_fn": torch.func.grad(loss)}
            if "hessian_diag" in tx.needs:
                hessian: Any = torch.func.jacrev(torch.func.grad(loss))(params)
                extras["hessian_diag"] = {
                    "w": hessian["w"]["w"].reshape(2, 2).diagonal().reshape(1, 2)
                }
            known = {name: extra for name, extra in extras.items() if name in tx.needs}
            updates, state = tx.update(grads, state, params, **known)
            params = gradtx.apply_updates(params, updates)
            points.append(tx.eval_params(state, params)["w"][0])
        return torch.stack(points)

    return run


def paths(name: str, optimizer: str, steps: int = STEPS) -> list[Tensor]:
    """Return the paths of one optimizer on one surface: a tensor (steps, 2) per rate, shorter if it left the square."""
    make = next(
        members[optimizer] for members in OPTIMIZERS.values() if optimizer in members
    )
    points = torch.vmap(path(make, SURFACES[name], steps))(
        torch.tensor(RATES, dtype=torch.float64)
    )
    inside = (points.abs() < FAR).all(2).cumprod(1).sum(1)  # False for NaN
    return [
        one[: int(count)].float() for one, count in zip(points, inside, strict=True)
    ]


def best(surface: Surface, found: list[Tensor]) -> int:
    """Return the index of the rate with the lowest final loss."""
    ends = [
        surface.loss(*one.double()[-LAST:].T).mean().item()
        if len(one) == STEPS
        else float("inf")
        for one in found
    ]
    return min(range(len(ends)), key=ends.__getitem__)


def encoded(points: Tensor) -> str:
    """Encode points as little-endian float32 in base64: x and y of each step in sequence."""
    return base64.b64encode(points.numpy().astype("<f4").tobytes()).decode()


def head() -> dict[str, Any]:
    """Return the page's data except for the paths."""
    surfaces = {
        name: {k: v for k, v in one._asdict().items() if k != "loss"}
        for name, one in SURFACES.items()
    }
    optimizers = [
        {
            "name": name,
            "family": family,
            "call": repr(make(0.5)).replace("lr=0.5", "lr=…"),
        }
        for family, members in OPTIMIZERS.items()
        for name, make in members.items()
    ]
    return {
        "steps": STEPS,
        "rates": RATES,
        "surfaces": surfaces,
        "optimizers": optimizers,
    }


def data() -> dict[str, Any]:
    """Return the contents of data.js."""
    found: dict[str, dict[str, list[Tensor]]] = {name: {} for name in SURFACES}
    optimizers = [name for members in OPTIMIZERS.values() for name in members]
    with tqdm(
        total=len(SURFACES) * len(optimizers), unit=" paths", leave=False, disable=None
    ) as bar:
        for name, lines in found.items():
            for optimizer in optimizers:
                bar.set_description(f"{optimizer}, {name}")
                lines[optimizer] = paths(name, optimizer)
                bar.update()
    return {
        **head(),
        "best": {
            name: {k: best(SURFACES[name], v) for k, v in lines.items()}
            for name, lines in found.items()
        },
        "paths": {
            name: {k: [*map(encoded, v)] for k, v in lines.items()}
            for name, lines in found.items()
        },
    }


if __name__ == "__main__":
    torch.set_num_threads(1)  # more threads do not help for tensors this small
    target = PAGE / "data.js"
    # A script instead of JSON, because a page opened as a file may not fetch data.
    text = json.dumps(data(), ensure_ascii=False, indent=0)
    target.write_text(
        f"// Written by docs/interactive.py.\nconst DATA = {text};\n", encoding="utf-8"
    )
    sys.stdout.write(f"wrote {target}\n")
