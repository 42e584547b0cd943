import pytest
import torch

import gradtx
from tests.references import BETA, RATE, Loop, Transformed, follows, named, run

ROUNDING = 1e-12
# M-SVAG's first step subtracts equal numbers and divides by 1e-4.
CANCELLED = 1e-11
loop = Loop


def msvag(s, t, g, p, lr, beta=0.9):
    s.m = beta * s.m + (1 - beta) * g
    s.v = beta * s.v + (1 - beta) * g**2
    m, v = s.m / (1 - beta**t), s.v / (1 - beta**t)
    rho = min(0.9999, (1 - beta) ** 2 * (1 - beta ** (2 * t)) / ((1 - beta**t) ** 2 * (1 - beta**2)))
    variance = (v - m**2) / (1 - rho)
    f = torch.nan_to_num(m**2 / (m**2 + rho * variance), nan=0.0).clamp(0, 1)
    s.seen.update((f < 0.5).flatten().tolist())
    return -lr * f * m


OPTIONS = [
    (gradtx.msvag, msvag, {"lr": 0.1}),
    (gradtx.msvag, msvag, {"lr": 0.1, "beta": 0.6}),
    (gradtx.msvag, msvag, {"lr": 0.1, "beta": 0.0}),
    (gradtx.msvag, msvag, {"lr": RATE, "beta": BETA}),
]


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=named)
def test_the_updates_follow_the_loop(alias, rule, options):
    follows(alias(**options), loop(rule, **options), tolerance=CANCELLED)


def test_msvag_shortens_some_steps_a_lot_and_others_little():
    reference = loop(msvag, lr=0.1)
    run(reference)
    assert reference.seen == {True, False}


def updates_of(tx, *grads):
    """The updates of a leaf with one entry."""
    step = Transformed(tx)
    double = [torch.tensor([grad], dtype=torch.float64) for grad in grads]
    return [step({"w": grad}, {"w": torch.zeros_like(grad)})["w"].item() for grad in double]


def test_a_mean_of_zero_gives_zero():
    # beta 0.5: 0.25 * 2 - 0.5 * 1 = 0
    assert updates_of(gradtx.scale_by_msvag(0.5), 2.0, -1.0) == [pytest.approx(2.0), 0.0]
    assert updates_of(gradtx.scale_by_msvag(0.5), 0.0, 0.0) == [0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_first_step_of_msvag_is_the_gradient_but_for_rounding(dtype):
    grads = {"w": torch.linspace(-3, 3, 101).to(dtype)}
    tx = gradtx.scale_by_msvag()
    updates, _ = tx.update(grads, tx.init(grads))
    # the rounding of v - m**2 in float32, 1e-7, times 1e4
    torch.testing.assert_close(updates["w"].double(), grads["w"].double(), rtol=1e-2, atol=0)
