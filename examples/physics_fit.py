"""Find the damping and the stiffness of an oscillator from noisy measurements, with a network that obeys its equation.

x'' + 2 d x' + k x = 0, x(0) = 1, x'(0) = 0, has a solution in closed form, so errors are known. 20 measurements, with
noise, cover the first third of the time only. A small network x(t) is fitted to them and, everywhere, to the
equation, whose derivatives are two nested `torch.func.jvp`; d and k are parameters beside the network's weights.
Three chains: Adam; Adam with a larger rate for the two physical numbers, by `partition`; SOAP for the matrices. One
`vmap` trains a member for each pair of a learning rate and a seed.
Run: `python examples/physics_fit.py`. Prints a table and writes out/physics_fit.png.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor
from torch.func import grad, jvp
from tqdm import tqdm

import gradtx

DAMPING, STIFFNESS, NOISE = 0.2, 9.0, 0.02
END, MEASURED, WIDTH = 6.0, 2.0, 24
RATES = (1e-3, 3e-3, 1e-2)
WEIGHT = 1e-2

Params = dict[str, Tensor]


def solution(t: Tensor) -> Tensor:
    frequency = math.sqrt(STIFFNESS - DAMPING**2)
    return torch.exp(-DAMPING * t) * (torch.cos(frequency * t) + DAMPING / frequency * torch.sin(frequency * t))


def start(seed: int, physics: bool = True) -> Params:
    generator = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=generator, dtype=torch.float64) / math.sqrt(columns)

    zeros = torch.zeros(WIDTH, dtype=torch.float64)
    return {
        "net.in.weight": matrix(WIDTH, 1),
        "net.in.bias": torch.randn(WIDTH, generator=generator, dtype=torch.float64),
        "net.middle.weight": matrix(WIDTH, WIDTH),
        "net.middle.bias": zeros,
        "net.out.weight": matrix(1, WIDTH),
        "net.out.bias": zeros[:1],
        "physics.damping": torch.tensor(0.5, dtype=torch.float64),
        "physics.stiffness": torch.tensor(5.0, dtype=torch.float64),
    }


def network(params: Params, t: Tensor) -> Tensor:
    """x at every time. t^2 times the network, so that x(0) = 1 and x'(0) = 0 hold by construction."""
    x = (2 * t / END - 1).unsqueeze(-1)
    x = torch.tanh(2 * x @ params["net.in.weight"].T + params["net.in.bias"])
    x = torch.tanh(x @ params["net.middle.weight"].T + params["net.middle.bias"])
    x = (x @ params["net.out.weight"].T + params["net.out.bias"]).squeeze(-1)
    return 1 + t * t * x


def residual(params: Params, t: Tensor) -> Tensor:
    """What is left of the equation: x'' + 2 d x' + k x, for every t."""
    ones = torch.ones_like(t)

    def with_slope(t: Tensor) -> tuple[Tensor, Tensor]:
        return jvp(lambda t: network(params, t), (t,), (ones,))

    (x, slope), (_, curvature) = jvp(with_slope, (t,), (ones,))
    return curvature + 2 * params["physics.damping"] * slope + params["physics.stiffness"] * x
