import math

import pytest
import torch

import gradtx
from tests.references import TOLERANCE, Loop, difference, first_update, named, rectifier


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
