import math

import pytest

import gradtx
from tests.algorithms.matrices import matrices_follow, momentum_of, orthogonal
from tests.references import BETA, DECAY, RATE, named


def adago(
    s, t, g, p, lr=0.05, momentum=0.95, nesterov=False, weight_decay=0.0, gamma=10.0, eps=5e-4, v0=1e-3,
    ns_coefficients="simple", ns_steps=None, fallback=None,
):  # fmt: skip
    u = momentum_of(s, g, momentum, nesterov)
    size = min(g.norm().item(), gamma)
    s.V = (v0**2 if t == 1 else s.V) + size**2
    rate = lr * size / math.sqrt(s.V)
    s.seen |= ({"clipped"} if size == gamma else set()) | ({"least"} if rate < eps else set())
    return p * (1 - lr * weight_decay) - max(eps, rate) * orthogonal(u, ns_coefficients, ns_steps)


CASES = [
    ({}, set()),
    ({"lr": RATE, "nesterov": True, "momentum": BETA, "weight_decay": DECAY, "gamma": 0.05}, {"clipped"}),
    ({"lr": 0.02, "eps": 8e-3, "v0": 0.3, "ns_coefficients": "quintic", "ns_steps": 4}, {"least"}),
]


@pytest.mark.parametrize(("options", "branches"), CASES, ids=named)
def test_the_matrices_follow_the_loop(options, branches):
    assert branches <= matrices_follow(gradtx.adago, adago, options)


@pytest.mark.parametrize("name", ["gamma", "v0"])
def test_a_bound_of_0_is_an_error_that_names_it(name):
    with pytest.raises(ValueError, match=rf"adago: {name} must be in \(0, inf\), got 0.0"):
        gradtx.adago(**{name: 0.0})
