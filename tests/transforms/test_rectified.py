import math

import pytest
import torch

import gradtx
from tests.references import Loop, first_update, follows, rectifier


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
    follows(tx, Loop(held, **options), rate=-0.1)


def test_held_updates_are_zero_even_where_they_were_not_finite():
    assert first_update(gradtx.hold_until_rectified(0.999), [math.inf, -1.0]) == [0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_belief_stays_finite_where_its_eps_is_0_in_the_dtype_of_its_state(dtype):
    tx = gradtx.scale_by_belief()
    params = {"w": torch.zeros(3, dtype=dtype)}
    state = tx.init(params)
    for _ in range(8):
        updates, state = tx.update({"w": torch.tensor([0.0, 1e-7, -1.0], dtype=dtype)}, state, params)
    assert updates["w"].isfinite().all()
    assert updates["w"][0] == 0
