import pytest
import torch

import gradtx
from tests.references import first_update


def test_a_constant_gradient_keeps_the_centered_form_finite():
    # q - a^2 tends to 0, and rounding takes it below
    tx = gradtx.scale_by_rms(alpha=0.5, centered=True)
    assert all(torch.tensor(first_update(tx, [0.1, 0.7, -1.3], steps=n)).isfinite().all() for n in (1, 30, 60))


def test_adopt_divides_by_the_square_of_earlier_gradients_only():
    tx = gradtx.scale_by_adopt(betas=(0.0, 0.75), clip_exponent=None)
    state, updates = tx.init({"w": torch.zeros(1)}), []
    for grad in (2.0, 8.0, 1.0):
        update, state = tx.update({"w": torch.tensor([grad])}, state)
        updates.append(update["w"].item())
    # 8 / 2; then v = 0.75 * 4 + 0.25 * 64 = 19
    assert updates == pytest.approx([0.0, 4.0, 1 / 19**0.5])
