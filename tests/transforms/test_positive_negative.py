import pytest
import torch

from gradtx.algorithms.momentum import positive_negative


def test_independent_noise_keeps_its_size_when_nothing_is_averaged():
    rng = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 100_000, generator=rng, dtype=torch.float64)
    for weight in (0.0, 0.5, 1.0):
        direction, _ = positive_negative(0 * a, b, a, 0.0, weight)
        assert direction.std().item() == pytest.approx(1.0, abs=0.01)  # 1 / sqrt(2 n) is 0.002
