import pytest
import torch

import gradtx
from tests.algorithms.loops import needs_params_to_start
from tests.references import Transformed, WholeLoop, follows_along, named, problem

RISING = gradtx.linear_schedule(0.9, start_factor=0.5, total_iters=20)
# The same sums in other orders, over 32 steps.
CLOSE = 1e-12


def cocob(s, t, g, p, alpha=100.0, eps=1e-8, weight_decay=0.0):
    if t == 1:
        s.p0, s.L = p, torch.full_like(p, eps)
    g = g + weight_decay * p
    s.L = torch.maximum(s.L, g.abs())
    s.A = s.A + g.abs()
    s.R = (s.R - g * (p - s.p0)).clamp(min=0)
    s.theta = s.theta - g
    return s.p0 + s.theta * (s.L + s.R) / (s.L * torch.maximum(s.A + s.L, alpha * s.L))


WHOLE = [
    (gradtx.cocob, cocob, {}),
    (gradtx.cocob, cocob, {"alpha": 20.0, "eps": 0.05, "weight_decay": 0.1}),
    (gradtx.cocob, cocob, {"alpha": 0.0, "eps": 0.5}),
    (gradtx.cocob, cocob, {"alpha": gradtx.linear_schedule(90.0, 0.2, total_iters=20), "weight_decay": RISING}),
]


@pytest.mark.parametrize(("make", "rule", "options"), WHOLE, ids=named)
def test_follows_the_loop_over_all_leaves_as_one_vector(make, rule, options):
    follows_along(make(**options), WholeLoop(rule, **options), tolerance=CLOSE)


# Bad input, and trees of norm 0.


@pytest.mark.parametrize("make", [gradtx.cocob], ids=named)
def test_zero_gradients_give_zero_updates_without_eps(make):
    step, params = Transformed(make(eps=0.0)), problem()
    zeros = {name: torch.zeros_like(p) for name, p in params.items()}
    for _ in range(3):
        assert not any(update.any() for update in step(zeros, params).values())


@pytest.mark.parametrize("make", [gradtx.cocob], ids=named)
def test_a_start_without_params_is_an_error(make):
    needs_params_to_start(make)
