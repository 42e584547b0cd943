import math

import pytest
import torch

import gradtx
from gradtx.transforms.positive_negative import positive_negative
from tests.references import TOLERANCE, Loop, difference, first_update, named


def pnm(s, t, g, p, betas=(0.9, 1.0)):
    """A list of both averages, of which the first is the next one's turn."""
    b1, b2 = betas
    s.averages = s.averages or [0 * g, 0 * g]
    other, fresh = s.averages[1], b1 * b1 * s.averages[0] + (1 - b1 * b1) * g
    s.averages = [other, fresh]
    return (fresh + b2 * (fresh - other)) / math.hypot(1 + b2, b2)


def adapnm(s, t, g, p, betas=(0.9, 0.999, 1.0), eps=1e-8, amsgrad=True):
    b1, b2, b3 = betas
    n = pnm(s, t, g, p, (b1, b3)) / (1 - b1**t)
    s.v = b2 * s.v + (1 - b2) * g**2
    s.all = [*(s.all or []), s.v]
    v = torch.stack(s.all).amax(dim=0) if amsgrad else s.v
    return n / ((v / (1 - b2**t)).sqrt() + eps)


OPTIONS = [
    (gradtx.scale_by_pnm, pnm, {}),
    (gradtx.scale_by_pnm, pnm, {"betas": (0.6, 0.3)}),
    (gradtx.scale_by_pnm, pnm, {"betas": (0.0, 0.0)}),
    (gradtx.scale_by_adapnm, adapnm, {}),
    (gradtx.scale_by_adapnm, adapnm, {"betas": (0.6, 0.8, 0.3), "eps": 0.05}),
    (gradtx.scale_by_adapnm, adapnm, {"betas": (0.6, 0.8, 0.3), "amsgrad": False}),
]


@pytest.mark.parametrize(("make", "rule", "options"), OPTIONS, ids=named)
def test_follows_the_loop(make, rule, options):
    assert difference(make(**options), Loop(rule, **options), rate=-0.02) < TOLERANCE


def test_the_first_three_steps_equal_the_hand_computed_values():
    # beta1^2 = 1/4: averages 3 g / 4, then 3 g / 4, then 15 g / 16; weights 4/3 and 1/3 over sqrt(17) / 3
    g = 16 * 17**0.5
    tx = gradtx.scale_by_pnm((0.5, 1 / 3))
    expected = [4 * 12, 4 * 12 - 12, 4 * 15 - 12]
    assert [first_update(tx, [g], steps=n)[0] for n in (1, 2, 3)] == pytest.approx(expected)


def test_independent_noise_keeps_its_size_when_nothing_is_averaged():
    rng = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 100_000, generator=rng, dtype=torch.float64)
    for weight in (0.0, 0.5, 1.0):
        direction, _ = positive_negative(0 * a, b, a, 0.0, weight)
        assert direction.std().item() == pytest.approx(1.0, abs=0.01)  # 1 / sqrt(2 n) is 0.002
