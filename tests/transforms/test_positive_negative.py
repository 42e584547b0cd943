import pytest
import torch

import gradtx
from gradtx.algorithms.momentum import positive_negative
from tests.references import first_update


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
