import math

import pytest
import torch

import gradtx
from tests.references import (
    TOLERANCE,
    Loop,
    adam_moments,
    difference,
    first_update,
    named,
    rectified,
    rectifier,
)


def radam(s, t, g, p, betas=(0.9, 0.999), eps=1e-8, rho_threshold=5.0, degenerated_to_sgd=True):
    adam_moments(s, t, g, betas)
    return rectified(s, t, s.m, s.v, betas, eps, rho_threshold, degenerated_to_sgd)


def held(s, t, g, p, beta2=0.999, rho_threshold=5.0):
    s.b = 0.9 * s.b + g
    return 0 * g if rectifier(t, beta2, rho_threshold) is None else s.b


@pytest.mark.parametrize(
    "options",
    [{}, {"beta2": 0.95}, {"beta2": 0.99, "rho_threshold": 4.0}, {"beta2": 0.9, "rho_threshold": 12.0}, {"beta2": 0.5}],
    ids=str,
)
def test_hold_until_rectified_passes_nothing_before_while_momentum_collects(options):
    tx = gradtx.chain(gradtx.trace(0.9), gradtx.hold_until_rectified(**options))
    assert difference(tx, Loop(held, **options), rate=-0.1) < TOLERANCE


def test_held_updates_are_zero_even_where_they_were_not_finite():
    assert first_update(gradtx.hold_until_rectified(0.999), [math.inf, -1.0]) == [0.0, 0.0]


@pytest.mark.parametrize(("beta2", "first"), [(0.999, 6), (0.9, 6), (0.75, 8), (0.66, None)])
def test_the_first_rectified_step(beta2, first):
    tx = gradtx.hold_until_rectified(beta2)
    passed = [t for t in range(1, 60) if first_update(tx, [1.0], steps=t) == [1.0]]
    assert passed == ([] if first is None else list(range(first, 60)))


def test_rectification_tends_to_adam():
    # beta2 = 0.9: rho tends to 19, r to 1
    radam, adam = gradtx.scale_by_radam((0.5, 0.9), eps=0.0), gradtx.scale_by_adam((0.5, 0.9), eps=0.0)
    assert first_update(radam, [4.0], steps=200) == pytest.approx(first_update(adam, [4.0], steps=200), rel=1e-6)
    assert first_update(radam, [4.0], steps=8)[0] < 0.7


@pytest.mark.parametrize("beta2", [0.0, 1 / 3, 0.5, 0.6, 2 / 3, 0.75, 0.999])
@pytest.mark.parametrize("make", [gradtx.scale_by_radam, gradtx.scale_by_belief], ids=named)
def test_gradients_with_respect_to_every_beta2_are_finite(make, beta2):
    # At 0.6 and 1/3 the factor is 0/0, and below 2/3 it never holds.
    def twelfth(beta2):
        tx = make((0.5, beta2))
        params = {"w": torch.tensor([1.0, 0.0], dtype=torch.float64)}
        state = tx.init(params)
        for t in range(12):
            updates, state = tx.update({"w": params["w"] * (t + 1)}, state)
        return updates["w"].sum()

    start = torch.tensor(beta2, dtype=torch.float64)
    assert torch.func.grad(twelfth)(start).isfinite()
    members = torch.vmap(twelfth)(torch.stack([start, torch.tensor(0.9, dtype=torch.float64)]))
    assert members.tolist() == pytest.approx([twelfth(start).item(), twelfth(0.9).item()], rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_belief_stays_finite_where_its_eps_is_0_in_the_dtype_of_its_state(dtype):
    tx = gradtx.scale_by_belief()
    params = {"w": torch.zeros(3, dtype=dtype)}
    state = tx.init(params)
    for _ in range(8):
        updates, state = tx.update({"w": torch.tensor([0.0, 1e-7, -1.0], dtype=dtype)}, state, params)
    assert updates["w"].isfinite().all()
    assert updates["w"][0] == 0
