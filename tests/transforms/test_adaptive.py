import torch

import gradtx
from tests.references import first_update


def test_a_constant_gradient_keeps_the_centered_form_finite():
    # q - a^2 tends to 0, and rounding takes it below
    tx = gradtx.scale_by_rms(alpha=0.5, centered=True)
    assert all(torch.tensor(first_update(tx, [0.1, 0.7, -1.3], steps=n)).isfinite().all() for n in (1, 30, 60))
