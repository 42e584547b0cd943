import math

import pytest
import torch

import gradtx
from tests.algorithms.matrices import singular
from tests.matrix_problem import MATRICES, SEEDS, follows, newton_schulz
from tests.references import RATE, TOLERANCE, WeightsLoop, named

STEPS = 30
CLASSICAL = [(2.0, -1.5, 0.5)] * 12


def orthogonal(x, polynomials=CLASSICAL):
    return newton_schulz(x, polynomials)


def retracted(q, kind, radius, power_steps, polynomials=CLASSICAL):
    if kind == "polar":
        return radius * orthogonal(q, polynomials)
    if kind == "qr":
        if q.shape[0] < q.shape[1]:
            return retracted(q.T, kind, radius, power_steps).T
        Q, R = torch.linalg.qr(q)
        return radius * Q * torch.diag(R).sign()
    if kind in ("rows", "columns"):
        return radius * q / q.norm(dim=1 if kind == "rows" else 0, keepdim=True)
    if kind == "spectral":
        w, v = singular(q, power_steps)
        return radius * q / (w @ q @ v)
    left, values, right = torch.linalg.svd(q, full_matrices=False)
    return left @ torch.diag(values.clamp(max=radius)) @ right


def sgd_retracted(s, t, g, p, kind, radius=1.0, adjust="none", power_steps=10, steps=None):
    rows, cols = p.shape
    factor = {"none": 1.0, "spectral": math.sqrt(rows / cols), "original": math.sqrt(max(1, rows / cols))}[adjust]
    return retracted(p - 0.05 * g, kind, radius * factor, power_steps, CLASSICAL[:1] * (steps or 12))


CASES = [
    {"kind": "polar"}, {"kind": "polar", "radius": 0.7, "adjust": "original", "steps": 20}, {"kind": "qr"},
    {"kind": "qr", "radius": RATE, "adjust": "spectral"}, {"kind": "rows", "radius": 2.0}, {"kind": "columns"},
    {"kind": "spectral"}, {"kind": "spectral", "power_steps": 3, "radius": 0.5, "adjust": "spectral"},
    {"kind": "cap", "radius": 0.6, "steps": 60}, {"kind": "cap", "radius": 2.0, "steps": 60},
]  # fmt: skip


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("options", CASES, ids=named)
def test_weights_are_retracted_as_in_the_loop(options, seed):
    tx = gradtx.chain(gradtx.scale_by_learning_rate(0.05), gradtx.retract(**options))
    with gradtx.eagerly():  # a program of many iterations takes long to record
        follows(tx, WeightsLoop(sgd_retracted, **options), seed, STEPS, MATRICES, tolerance=TOLERANCE)


def oblique_adam(s, t, g, p, kind, lr):
    s.m, s.v = 0.9 * s.m + 0.1 * g, 0.99 * s.v + 0.01 * g**2
    u = s.m / (1 - 0.9**t) / ((s.v / (1 - 0.99**t)).sqrt() + 1e-8)
    dim = 1 if kind == "rows" else 0
    u = u - p * (p * u).sum(dim, keepdim=True)
    q = p - lr * (u + 0.1 * p)
    return q / q.norm(dim=dim, keepdim=True)


@pytest.mark.parametrize("kind", ["rows", "columns"])
def test_oblique_adam_is_a_chain(kind):
    tx = gradtx.chain(
        gradtx.scale_by_adam((0.9, 0.99)),
        gradtx.project_tangent(kind),
        gradtx.add_decayed_weights(0.1),
        gradtx.scale_by_learning_rate(RATE),
        gradtx.retract(kind),
    )
    follows(tx, WeightsLoop(oblique_adam, kind=kind, lr=RATE), 0, STEPS, MATRICES, tolerance=TOLERANCE)


def test_a_tangent_direction_keeps_the_largest_singular_value_to_first_order():
    rng = torch.Generator().manual_seed(0)
    p, u = (torch.randn(5, 3, generator=rng, dtype=torch.float64) for _ in range(2))
    left, _, right = torch.linalg.svd(p, full_matrices=False)
    p = left @ torch.diag(torch.tensor([9.0, 1.0, 0.5], dtype=torch.float64)) @ right  # quick to iterate
    tx = gradtx.orthogonalize_tangent()
    with gradtx.eagerly():
        d = tx.update({"w": u}, tx.init({"w": p}), {"w": p})[0]["w"]
    assert abs(left[:, 0] @ d @ right[0]) < 1e-10
    assert (torch.linalg.svdvals(d) - 1).abs().max() < 1e-2


def test_a_leaf_that_is_no_matrix_is_named():
    with pytest.raises(ValueError, match="retract: leaf 'b' has shape"):
        gradtx.retract("polar").init({"b": torch.ones(3)})
