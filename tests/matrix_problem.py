"""A problem for matrix methods: gradients of full rank, from several seeds, and math that their references share."""

import pytest
import torch
from torch import Tensor

from tests.references import Transformed, compare

# Every side is at most one longer than the product of the others, so that no eigenvalue is 0 at the first step.
SHAPES = {"wide": (4, 5), "tall": (5, 4), "square": (4, 4), "kernel": (3, 2, 3), "bias": (5,), "scalar": ()}
MATRICES = ("wide", "tall", "square")
SEEDS = (0, pytest.param(1, marks=pytest.mark.nightly))


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def start(seed, names=tuple(SHAPES)):
    rng = torch.Generator().manual_seed(seed)
    drawn = {name: torch.randn(shape, generator=rng, dtype=torch.float64) for name, shape in SHAPES.items()}
    return {name: drawn[name] for name in names}


def gradients(params, seed, t):
    rng = torch.Generator().manual_seed(1000 * seed + t + 17)
    grads = {}
    for name, shape in SHAPES.items():
        noise = torch.randn(shape, generator=rng, dtype=torch.float64)
        if name in params:
            grads[name] = 0.3 * params[name].sin() + noise
    return grads


def walk(step, seed, steps=12, names=tuple(SHAPES)):
    """Step by step, the weights of a stepper (see tests/references.py)."""
    step = Transformed(step) if hasattr(step, "init") else step
    params = start(seed, names)
    for t in range(1, steps + 1):
        updates = step(gradients(params, seed, t), params)
        params = {name: params[name] + updates[name] for name in params}
        yield params


def weights(step, seed, steps=12, names=tuple(SHAPES)):
    """The weights after each step of a stepper."""
    return list(walk(step, seed, steps, names))


def follows(step, reference, seed, steps=12, names=tuple(SHAPES), *, tolerance):
    """Fail at the first step and leaf at which the weights of two steppers differ."""
    __tracebackhide__ = True
    compare(walk(step, seed, steps, names), walk(reference, seed, steps, names), tolerance)


def unfolded(x: Tensor, i: int) -> Tensor:
    return x.movedim(i, 0).reshape(x.shape[i], -1)


def times(x: Tensor, matrix: Tensor, i: int) -> Tensor:
    rest = [size for k, size in enumerate(x.shape) if k != i]
    return (matrix @ unfolded(x, i)).reshape([len(matrix), *rest]).movedim(0, i)


def merge(shape, limit):
    out, product = [], 1
    for n in shape:
        if product * n <= limit:
            product *= n
        else:
            out += [product] if product > 1 else []
            product = n
    return out + ([product] if product > 1 else [])


def eigenvectors(S: Tensor) -> Tensor:
    return torch.linalg.eigh(S)[1].flip(1)


def newton_schulz(U: Tensor, polynomials, eps=1e-7, shrink=1.0) -> Tensor:
    """By singular values: an odd polynomial of a matrix is that of each of them."""
    left, values, right = torch.linalg.svd(U, full_matrices=False)
    values = values / max(U.norm().item(), eps) / shrink
    for a, b, c in polynomials:
        values = a * values + b * values**3 + c * values**5
    return left @ torch.diag(values) @ right


def refined(Q: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """One step of power iteration, and the order that columns were put in."""
    order = torch.diag(Q.T @ S @ Q).argsort(descending=True)
    return torch.linalg.qr(S @ Q[:, order])[0], order
