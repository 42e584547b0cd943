import pytest

import gradtx
from tests.references import BETA, TOLERANCE, Loop, arguments, difference, first_update


def adan(s, t, g, p, betas=(0.98, 0.92, 0.99), eps=1e-8):
    b1, b2, b3 = betas
    change = 0 * g if t == 1 else g - s.previous
    s.previous = g
    s.m = b1 * s.m + (1 - b1) * g
    s.d = b2 * s.d + (1 - b2) * change
    s.n = b3 * s.n + (1 - b3) * (g + b2 * change) ** 2
    return (s.m / (1 - b1**t) + b2 * s.d / (1 - b2**t)) / ((s.n / (1 - b3**t)).sqrt() + eps)


@pytest.mark.parametrize(
    "options", [{}, {"betas": (0.9, 0.6, 0.8), "eps": 0.1}, {"betas": (BETA, BETA, 0.9), "eps": BETA}], ids=str
)
def test_it_follows_the_loop(options):
    assert difference(gradtx.scale_by_adan(**options), Loop(adan, **options), rate=-0.02) < TOLERANCE
    assert arguments(gradtx.scale_by_adan) == arguments(adan)


def test_the_first_gradient_is_no_change():
    # m and n as Adam's at step 1: had g_0 been 0, n would be (1 + 0.92)^2 g^2
    assert first_update(gradtx.scale_by_adan(eps=0.0), [1e-3, -5.0]) == pytest.approx([1.0, -1.0])


def test_a_constant_gradient_has_no_change_to_extrapolate():
    assert first_update(gradtx.scale_by_adan(eps=0.0), [3.0], steps=7) == pytest.approx([1.0])
