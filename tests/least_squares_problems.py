"""Nonlinear least-squares problems with known solutions, for tests and benchmarks. All of them are in float64.

`NIST` has the 27 problems of NIST's Statistical Reference Datasets for nonlinear regression, with the digits that NIST
certifies. The files in `tests/nist` are NIST's own, a work of the United States government in the public domain:
https://www.itl.nist.gov/div898/strd/nls/nls_main.shtml. `CLASSIC` has problems of Moré, Garbow and Hillstrom, Testing
Unconstrained Optimization Software, ACM Transactions on Mathematical Software 7(1), 1981, and a decay.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

FOLDER = Path(__file__).parent / "nist"


@dataclass(frozen=True)
class Problem:
    """Minimize the sum of squares of the residuals.

    Args:
        name: What its source calls it.
        formula: The residuals as a function of the parameters, each a tensor without dimensions.
        starts: Where to start, as vectors; NIST's first is far from the solution, its second near.
        solution: The parameters at the minimum.
        minimum: The sum of squares there, without a factor of a half.
        deviations: The standard deviations of the parameters, if the source has them.
        level: What NIST says of the difficulty: lower, average or higher.
    """

    name: str
    formula: Callable[..., Tensor]
    starts: tuple[Tensor, ...]
    solution: Tensor
    minimum: float
    deviations: Tensor | None = None
    level: str | None = None

    def residual(self, params: Tensor | Mapping[str, Tensor]) -> Tensor:
        """The residuals, of a vector of parameters or of what `named` makes of it."""
        return self.formula(*(params.unbind() if isinstance(params, Tensor) else params.values()))

    def named(self, vector: Tensor) -> dict[str, Tensor]:
        """A leaf for each parameter, without dimensions."""
        return {f"b{i}": leaf.clone() for i, leaf in enumerate(vector, 1)}

    def loss(self, params: Tensor | Mapping[str, Tensor]) -> Tensor:
        return self.residual(params).square().sum()

    def digits(self, params: Tensor) -> float:
        """How many digits of the worst parameter are right, as NIST counts them; at most the 11 that it certifies."""
        scale = torch.where(self.solution == 0, 1.0, self.solution.abs())
        error = ((params - self.solution).abs() / scale).max().item()
        return 0.0 if math.isnan(error) else min(max(-math.log10(max(error, 1e-11)), 0.0), 11.0)


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# Models of NIST's files: `x`, or the two columns of Nelson's, then the parameters.


def saturation(x, b1, b2):
    return b1 * (1 - (-b2 * x).exp())


def chwirut(x, b1, b2, b3):
    return (-b1 * x).exp() / (b2 + b3 * x)


def three_decays(x, b1, b2, b3, b4, b5, b6):
    return b1 * (-b2 * x).exp() + b3 * (-b4 * x).exp() + b5 * (-b6 * x).exp()


def two_peaks(x, b1, b2, b3, b4, b5, b6, b7, b8):
    first, second = ((x - b4) / b5).square(), ((x - b7) / b8).square()
    return b1 * (-b2 * x).exp() + b3 * (-first).exp() + b6 * (-second).exp()


def cubic_over_cubic(x, b1, b2, b3, b4, b5, b6, b7):
    return (b1 + b2 * x + b3 * x**2 + b4 * x**3) / (1 + b5 * x + b6 * x**2 + b7 * x**3)


def three_cycles(x, b1, b2, b3, b4, b5, b6, b7, b8, b9):
    year, second, third = (2 * math.pi * x / period for period in (12, b4, b7))
    cycles = b2 * year.cos() + b3 * year.sin() + b5 * second.cos() + b6 * second.sin()
    return b1 + cycles + b8 * third.cos() + b9 * third.sin()


MODELS = {
    # Lower level of difficulty.
    "Misra1a": saturation,
    "Chwirut2": chwirut,
    "Chwirut1": chwirut,
    "Lanczos3": three_decays,
    "Gauss1": two_peaks,
    "Gauss2": two_peaks,
    "DanWood": lambda x, b1, b2: b1 * x**b2,
    "Misra1b": lambda x, b1, b2: b1 * (1 - (1 + b2 * x / 2) ** -2),
    # Average.
    "Kirby2": lambda x, b1, b2, b3, b4, b5: (b1 + b2 * x + b3 * x**2) / (1 + b4 * x + b5 * x**2),
    "Hahn1": cubic_over_cubic,
    "Nelson": lambda x1, x2, b1, b2, b3: b1 - b2 * x1 * (-b3 * x2).exp(),
    "MGH17": lambda x, b1, b2, b3, b4, b5: b1 + b2 * (-x * b4).exp() + b3 * (-x * b5).exp(),
    "Lanczos1": three_decays,
    "Lanczos2": three_decays,
    "Gauss3": two_peaks,
    "Misra1c": lambda x, b1, b2: b1 * (1 - (1 + 2 * b2 * x) ** -0.5),
    "Misra1d": lambda x, b1, b2: b1 * b2 * x / (1 + b2 * x),
    "Roszman1": lambda x, b1, b2, b3, b4: b1 - b2 * x - (b3 / (x - b4)).atan() / math.pi,
    "ENSO": three_cycles,
    # Higher.
    "MGH09": lambda x, b1, b2, b3, b4: b1 * (x**2 + x * b2) / (x**2 + x * b3 + b4),
    "Thurber": cubic_over_cubic,
    "BoxBOD": saturation,
    "Rat42": lambda x, b1, b2, b3: b1 / (1 + (b2 - b3 * x).exp()),
    "MGH10": lambda x, b1, b2, b3: b1 * (b2 / (x + b3)).exp(),
    "Eckerle4": lambda x, b1, b2, b3: b1 / b2 * (-0.5 * ((x - b3) / b2) ** 2).exp(),
    "Rat43": lambda x, b1, b2, b3, b4: b1 / (1 + (b2 - b3 * x).exp()) ** (1 / b4),
    "Bennett5": lambda x, b1, b2, b3: b1 * (b2 + x) ** (-1 / b3),
}


def read(name: str) -> Problem:
    """A problem of one of NIST's files."""
    text = (FOLDER / f"{name}.dat").read_text(encoding="ascii")
    header, _, rows = text.rpartition("Data:")
    table = [row.split() for row in re.findall(r"^ *b\d+ = (.*)$", header, re.MULTILINE)]
    far, near, solution, deviations = (vector(*map(float, column)) for column in zip(*table, strict=True))
    numbers = [[float(value) for value in row.split()] for row in rows.splitlines()[1:] if row.strip()]
    y, *x = torch.tensor(numbers, dtype=torch.float64).mT
    y = y.log() if "log[y] =" in header else y
    model = MODELS[name]
    minimum = re.search(r"Residual Sum of Squares: +(\S+)", header)
    level = re.search(r"(\w+) Level of Difficulty", header)
    assert minimum
    assert level
    return Problem(
        name, lambda *b: model(*x, *b) - y, (far, near), solution, float(minimum[1]), deviations, level[1].lower()
    )


NIST = {name: read(name) for name in MODELS}


def rosenbrock(x1: Tensor, x2: Tensor) -> Tensor:
    return torch.stack([10 * (x2 - x1**2), 1 - x1])


def powell(x1: Tensor, x2: Tensor, x3: Tensor, x4: Tensor) -> Tensor:
    """The Jacobian at the minimum is singular."""
    last = (x2 - 2 * x3) ** 2, 10**0.5 * (x1 - x4) ** 2
    return torch.stack([x1 + 10 * x2, 5**0.5 * (x3 - x4), *last])


BARD = vector(0.14, 0.18, 0.22, 0.25, 0.29, 0.32, 0.35, 0.39, 0.37, 0.58, 0.73, 0.96, 1.34, 2.10, 4.39)


def bard(x1: Tensor, x2: Tensor, x3: Tensor) -> Tensor:
    u = torch.arange(1, 16, dtype=torch.float64)
    v = 16 - u
    return BARD - (x1 + u / (v * x2 + torch.minimum(u, v) * x3))


def decay(c: Tensor, a: Tensor, k: Tensor) -> Tensor:
    """Thirty values of 0.5 + 2 exp(-0.7 x), with deviations like noise."""
    i = torch.arange(30, dtype=torch.float64)
    x = i / 5
    y = 0.5 + 2 * (-0.7 * x).exp() + 0.05 * (37 * i**2).cos()
    return c + a * (-k * x).exp() - y


# Bard's minimum and that of the decay are from iterations with 40 digits.
CLASSIC = {
    problem.name: problem
    for problem in (
        Problem("Rosenbrock", rosenbrock, (vector(-1.2, 1),), vector(1, 1), 0.0),
        Problem("Powell singular", powell, (vector(3, -1, 0, 1),), vector(0, 0, 0, 0), 0.0),
        Problem(
            "Bard",
            bard,
            (vector(1, 1, 1),),
            vector(0.082410559749789, 1.1330360920297, 2.3436951786425),
            0.008214877306579,
        ),
        # NIST has it with one start more.
        replace(NIST["MGH17"], name="Osborne 1", starts=NIST["MGH17"].starts[1:]),
        Problem(
            "Decay",
            decay,
            (vector(1, 5, 0.1), vector(0, 1, 1)),
            vector(0.50905321167447, 2.0163747327607, 0.69820989087417),
            0.039974156607961,
        ),
    )
}
PROBLEMS = CLASSIC | NIST
