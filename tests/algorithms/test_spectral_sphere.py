import math

import pytest
import torch

import gradtx
from gradtx.maths.polynomials import POLAR_EXPRESS
from tests.algorithms.matrices import singular
from tests.matrix_problem import SEEDS, follows, newton_schulz
from tests.references import RATE, TOLERANCE, WeightsLoop, named

STEPS = 30
CLASSICAL = [(2.0, -1.5, 0.5)] * 12


def tangent(u, p, power_steps, polynomials):
    """The multiplier by doubled steps, then 45 halvings."""
    u = u / u.norm()
    w, v = singular(p, power_steps)
    theta = torch.outer(w, v)

    def direction(x):
        return newton_schulz(u + x * theta, polynomials)

    def f(x):
        return (theta * direction(x)).sum().item()

    sign, near, far = -1 if f(0.0) > 0 else 1, 0.0, 0.0
    for j in range(20):
        near, far = far, far + sign * 1e-3 * 2**j
        if (f(far) > 0) != (sign < 0):
            break
    for _ in range(45):
        middle = (near + far) / 2
        if (f(middle) > 0) != (sign < 0):
            far = middle
        else:
            near = middle
    return direction((near + far) / 2)


def sphere(
    s, t, g, p, lr=5e-3, momentum=0.9, nesterov=True, weight_decay=0.0, radius_scale=1.0, power_steps=10,
    polynomials=POLAR_EXPRESS,
):  # fmt: skip
    s.m = momentum * s.m + (1 - momentum) * g
    u = momentum * s.m + (1 - momentum) * g if nesterov else s.m
    size = radius_scale * math.sqrt(p.shape[0] / p.shape[1])
    q = p * (1 - lr * weight_decay) - lr * size * tangent(u, p, power_steps, polynomials)
    w, v = singular(q, power_steps)
    return size * q / (w @ q @ v)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, ("tall",)),
        (
            {
                "lr": RATE, "momentum": 0.6, "nesterov": False, "weight_decay": 0.2, "radius_scale": 0.5,
                "power_steps": 4,
            },
            ("wide",),
        ),
    ],
    ids=named,
)  # fmt: skip
def test_the_spectral_sphere_follows_the_loop(options, names, seed):
    reference = WeightsLoop(sphere, **options)
    with gradtx.eagerly():  # the search is a program of thousands of operations, which takes seconds to record
        follows(gradtx.spectral_sphere(**options), reference, seed, STEPS, names, tolerance=TOLERANCE)


@pytest.mark.slow
def test_coefficients_and_steps_reach_the_search():
    tx = gradtx.spectral_sphere(ns_coefficients="newton_schulz", ns_steps=12, lr=0.02)
    reference = WeightsLoop(sphere, polynomials=CLASSICAL, lr=0.02)
    follows(tx, reference, 0, STEPS, ("wide",), tolerance=TOLERANCE)
