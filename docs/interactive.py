"""Write docs/interactive/data.js, the paths that the interactive page draws: `make docs-tables`.

Every path is a plain functional loop. The loop takes a learning rate and `vmap` runs it for all rates at once.
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
from gradtx._random import Stream

PAGE = Path(__file__).with_suffix("")
STEPS = 100
RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
FAR = 1e3  # a path ends where it leaves this square: nothing comes back from there, and nothing of it is drawn
LAST = 10  # the best rate has the lowest mean loss over so many last steps: one step alone can be luck


class Surface(NamedTuple):
    """A loss of two numbers; its least value is 0, so that losses fit on a logarithmic axis."""

    title: str
    formula: str  # what `loss` computes; page.js has it once more
    about: str
    loss: Callable[[Tensor, Tensor], Tensor]
    start: tuple[float, float]
    window: tuple[float, float, float, float]  # x from, x to, y from, y to
    minima: tuple[tuple[float, float], ...]
    noise: float = 0.0  # standard deviation of each entry of the surface's shift, redrawn at each step


SURFACES = {
    "rosenbrock": Surface(
        "Rosenbrock's valley",
        "(1 − x)² + 20 (y − x²)²",
        "Steep walls, and a bent floor that barely falls: the gradient points across the valley, not along it. "
        "(With 20 in place of the usual 100, so that a hundred steps are enough.)",
        lambda x, y: (1 - x) ** 2 + 20 * (y - x**2) ** 2,
        (-1.2, 1.0),
        (-2.0, 2.0, -1.0, 3.0),
        ((1.0, 1.0),),
    ),
    "quadratic": Surface(
        "Ill-conditioned quadratic",
        "(u² + 50 v²) / 2 with u = 0.8 x + 0.6 y, v = 0.8 y − 0.6 x",
        "50 times as steep across as along, and turned: rates for each coordinate can't undo that.",
        lambda x, y: ((0.8 * x + 0.6 * y) ** 2 + 50 * (0.8 * y - 0.6 * x) ** 2) / 2,
        (-4.0, -1.0),
        (-5.0, 3.0, -4.0, 4.0),
        ((0.0, 0.0),),
    ),
    "himmelblau": Surface(
        "Himmelblau's four minima",
        "(x² + y − 11)² + (x + y² − 7)²",
        "The start is near the top of the hill in the middle. Which minimum a path finds depends on its first steps.",
        lambda x, y: (x**2 + y - 11) ** 2 + (x + y**2 - 7) ** 2,
        (-0.5, -0.5),
        (-6.0, 6.0, -6.0, 6.0),
        ((3.0, 2.0), (-2.805118, 3.131313), (-3.779310, -3.283186), (3.584428, -1.848127)),
    ),
    "saddle": Surface(
        "Saddle",
        "x² / 2 + (y² − 1)² / 4",
        "The start is almost on the line y = 0, along which the loss leads into the saddle at (0, 0).",
        lambda x, y: x**2 / 2 + (y**2 - 1) ** 2 / 4,
        (1.6, 0.001),
        (-2.0, 2.0, -2.0, 2.0),
        ((0.0, 1.0), (0.0, -1.0)),
    ),
    "noisy": Surface(
        "Noisy bowl",
        "(x² + 4 y²) / 2",
        "Each step sees the bowl moved by a random vector (standard deviation 0.5), the same one for all optimizers. "
        "The loss that is shown is that of the bowl at rest.",
        lambda x, y: (x**2 + 4 * y**2) / 2,
        (-4.0, 3.0),
        (-5.0, 3.0, -4.0, 4.0),
        ((0.0, 0.0),),
        noise=0.5,
    ),
    "direction": Surface(
        "Scale-invariant loss",
        "1 − (0.6 x + 0.8 y) / √(x² + y²)",
        "Only the direction of (x, y) counts, as for weights in front of a normalization. Gradients are tangents of a "
        "circle, so steps lead outwards, and the longer the weights, the less a step turns them. AdamP leaves the part "
        "of a step out that leads straight outwards.",
        lambda x, y: 1 - (0.6 * x + 0.8 * y) / (x**2 + y**2).sqrt(),
        (0.5, -0.5),
        (-1.0, 3.0, -1.0, 3.0),
        ((0.6, 0.8), (1.2, 1.6), (1.8, 2.4)),
    ),
}

# Families with two members each: the page gives a family its colour, a member its line.
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
    "Older": {
        "adagrad": lambda lr: gradtx.adagrad(lr),
        "rmsprop": lambda lr: gradtx.rmsprop(lr),
    },
    "Diagonal of the Hessian": {
        "adahessian": lambda lr: gradtx.adahessian(lr),
        "sophia": lambda lr: gradtx.sophia(lr, gamma=1.0, weight_decay=0.0, update_period=1),
    },
    "Rates found on the way": {
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
    """The function learning rate -> points (steps, 2), without the start: of averages where an optimizer has one."""

    def run(lr: Tensor) -> Tensor:
        tx = make(lr)
        params = {
            "w": torch.tensor([surface.start], dtype=torch.float64)
        }  # a matrix of one row: AdamP leaves vectors be
        state = tx.init(params)
        points = []
        for step in range(steps):
            # Noise in the loss, not in the gradient alone: loss, Hessian and second gradient are of the same batch.
            away = surface.noise * Stream(torch.tensor(0), torch.tensor(step), "away").normal(torch.zeros(2).double())

            def loss(params: dict[str, Tensor], away: Tensor = away) -> Tensor:
                return surface.loss(*(params["w"][0] - away))

            grads, value = torch.func.grad_and_value(loss)(params)
            extras: dict[str, Any] = {"value": value, "grad_fn": torch.func.grad(loss)}
            if "hessian_diag" in tx.needs:
                hessian: Any = torch.func.jacrev(torch.func.grad(loss))(params)
                extras["hessian_diag"] = {"w": hessian["w"]["w"].reshape(2, 2).diagonal().reshape(1, 2)}
            known = {name: extra for name, extra in extras.items() if name in tx.needs}
            updates, state = tx.update(grads, state, params, **known)
            params = gradtx.apply_updates(params, updates)
            points.append(tx.eval_params(state, params)["w"][0])
        return torch.stack(points)

    return run


def paths(name: str, optimizer: str, steps: int = STEPS) -> list[Tensor]:
    """Paths of one optimizer on one surface, a tensor (steps, 2) per rate, shorter where it left the square."""
    make = next(members[optimizer] for members in OPTIMIZERS.values() if optimizer in members)
    points = torch.vmap(path(make, SURFACES[name], steps))(torch.tensor(RATES, dtype=torch.float64))
    inside = (points.abs() < FAR).all(2).cumprod(1).sum(1)  # not for NaN
    return [one[: int(count)].float() for one, count in zip(points, inside, strict=True)]


def best(surface: Surface, found: list[Tensor]) -> int:
    """The index of the rate that ends lowest."""
    ends = [surface.loss(*one.double()[-LAST:].T).mean().item() if len(one) == STEPS else float("inf") for one in found]
    return min(range(len(ends)), key=ends.__getitem__)


def encoded(points: Tensor) -> str:
    """Little-endian float32, x and y of one step after another, in base64."""
    return base64.b64encode(points.numpy().astype("<f4").tobytes()).decode()


def head() -> dict[str, Any]:
    """All that the page needs besides paths."""
    surfaces = {name: {k: v for k, v in one._asdict().items() if k != "loss"} for name, one in SURFACES.items()}
    optimizers = [
        {"name": name, "family": family, "call": repr(make(0.5)).replace("lr=0.5", "lr=…")}
        for family, members in OPTIMIZERS.items()
        for name, make in members.items()
    ]
    return {"steps": STEPS, "rates": RATES, "surfaces": surfaces, "optimizers": optimizers}


def data() -> dict[str, Any]:
    """What data.js holds."""
    found: dict[str, dict[str, list[Tensor]]] = {name: {} for name in SURFACES}
    optimizers = [name for members in OPTIMIZERS.values() for name in members]
    with tqdm(total=len(SURFACES) * len(optimizers), unit=" paths", leave=False, disable=None) as bar:
        for name, lines in found.items():
            for optimizer in optimizers:
                bar.set_description(f"{optimizer}, {name}")
                lines[optimizer] = paths(name, optimizer)
                bar.update()
    return {
        **head(),
        "best": {name: {k: best(SURFACES[name], v) for k, v in lines.items()} for name, lines in found.items()},
        "paths": {name: {k: [*map(encoded, v)] for k, v in lines.items()} for name, lines in found.items()},
    }


if __name__ == "__main__":
    torch.set_num_threads(1)  # tensors this small gain nothing from more
    target = PAGE / "data.js"
    # A script, since a page that is opened as a file may not fetch one.
    text = json.dumps(data(), ensure_ascii=False, indent=0)
    target.write_text(f"// Written by docs/interactive.py.\nconst DATA = {text};\n", encoding="utf-8")
    sys.stdout.write(f"wrote {target}\n")
