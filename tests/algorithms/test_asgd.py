import pytest
import torch

import gradtx
from tests import references as ref
from tests.references import STEPS, TOLERANCE

RATE = gradtx.cosine_schedule(0.2, T_max=20, eta_min=0.01)


# Averaged and adaptive descent.


def asgd(s, t, g, p, lr=1e-2, lambd=1e-4, alpha=0.75, t0=1e6, weight_decay=0.0):
    if t == 1:
        s.eta, s.mu, s.ax = lr, 1.0, 0 * p
    s.seen.add(s.mu == 1)
    x = p * (1 - lambd * s.eta) - s.eta * (g + weight_decay * p)
    s.ax = x if s.mu == 1 else s.ax + s.mu * (x - s.ax)
    s.eta = lr / (1 + lambd * lr * t) ** alpha
    s.mu = 1 / max(1, t - t0)
    return x


ASGD = [
    {},
    {"lr": 0.2, "lambd": 0.3, "alpha": 0.5, "t0": 5.0, "weight_decay": 0.1},
    {"lr": 0.2, "lambd": 2.0, "alpha": 2.0, "t0": 0.0},
    {"lr": 0.2, "lambd": 0.0, "alpha": 0.0, "t0": 7.5},
]


@pytest.mark.parametrize("options", [*ASGD, {"lr": RATE, "lambd": RATE, "t0": 3.0, "weight_decay": RATE}], ids=str)
def test_weights_and_averages_of_asgd_follow_the_loop(options):
    ours, loop, params = ref.Transformed(gradtx.asgd(**options)), ref.WeightsLoop(asgd, **options), ref.problem()
    assert ref.arguments(gradtx.asgd) == ref.arguments(asgd)
    for t in range(1, STEPS + 1):
        grads = ref.gradients(params, t)
        updates, expected = ours(grads, params), loop(grads, params)
        params = gradtx.apply_updates(params, updates)
        averages = ours.tx.eval_params(ours.state, params)
        for name in params:
            torch.testing.assert_close(updates[name], expected[name], rtol=TOLERANCE, atol=1e-15)
            torch.testing.assert_close(averages[name], loop.slots[name].ax, rtol=1e-13, atol=1e-15)
    assert loop.seen == ({True, False} if options else {True})


def test_averaging_begins_two_steps_after_t0():
    # weights 1, 2, 3, 4, ...: at step 5 the first mean, of 4 and 5 in halves, then a third towards 6
    step, params = ref.Transformed(gradtx.asgd(lr=1.0, lambd=0.0, t0=2.0)), {"w": torch.zeros(1)}
    averages = []
    for _ in range(6):
        params = gradtx.apply_updates(params, step({"w": -torch.ones(1)}, params))
        averages.append(step.tx.eval_params(step.state, params)["w"].item())
    assert averages == [1.0, 2.0, 3.0, 4.0, 4.5, 5.0]


# Torch's own: tests/optim/steps/test_equals_torch.py.


def test_rates_are_kept_in_float64_beside_float32_weights():
    params = {"w": torch.ones(3)}
    tx = gradtx.scale_by_asgd(lr=0.1, lambd=0.3, alpha=0.5, t0=0.0)
    state = tx.init(params)
    for _ in range(3):
        _, state = tx.update(params, state, params)
    kept = {name: leaves["w"] for name, leaves in state["scale_by_asgd"].items()}
    assert kept["eta"].item() == pytest.approx(0.1 / (1 + 0.3 * 0.1 * 3) ** 0.5, rel=1e-15)
    assert kept["mu"].item() == pytest.approx(1 / 3, rel=1e-15)
    assert {name: slot.dtype for name, slot in kept.items()} == {
        "ax": torch.float32,
        "eta": torch.float64,
        "mu": torch.float64,
    }
