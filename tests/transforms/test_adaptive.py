import pytest
import torch

import gradtx
from tests.references import (
    Published,
    difference_of_weights,
    first_update,
)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("options", [{}, {"alpha": 0.8, "eps": 1e-3}, {"alpha": 0.9, "centered": True}], ids=str)
def test_with_a_trace_and_a_learning_rate_it_is_torch_rmsprop(options, momentum):
    tx = gradtx.chain(gradtx.scale_by_rms(**options), gradtx.trace(momentum), gradtx.scale_by_learning_rate(0.01))
    # rounding, more of it in the root of q - a^2 where that nearly cancels
    assert difference_of_weights(tx, Published(torch.optim.RMSprop, lr=0.01, momentum=momentum, **options)) < 1e-12


def test_a_constant_gradient_keeps_the_centered_form_finite():
    # q - a^2 tends to 0, and rounding takes it below
    tx = gradtx.scale_by_rms(alpha=0.5, centered=True)
    assert all(torch.tensor(first_update(tx, [0.1, 0.7, -1.3], steps=n)).isfinite().all() for n in (1, 30, 60))


@pytest.mark.parametrize(
    ("tx", "updates"),
    [
        # any constant gradient: m and v without bias are g and g^2
        (gradtx.scale_by_adam((0.9, 0.99), eps=0.0), [1.0, 1.0]),
        (gradtx.scale_by_adam((0.5, 0.75), eps=4.0), [0.5, 0.5]),  # 4 / (4 + 4)
        # (0.5 * 2 + 0.5 * 4) / 0.5 / 4, then (0.5 * 3 + 0.5 * 4) / 0.75 / 4
        (gradtx.scale_by_adam((0.5, 0.75), eps=0.0, nesterov=True), [1.5, 3.5 / 3]),
        (gradtx.scale_by_rms(0.75, eps=2.0), [1.0, 4 / (2 + 7**0.5)]),  # q = 4, then 7
        (gradtx.scale_by_rms(0.75, eps=9.0, eps_in_root=True), [4 / 13**0.5, 1.0]),
        (gradtx.scale_by_rms(0.75, eps=0.0, centered=True), [4 / 3**0.5, 4 / (7 - 1.75**2) ** 0.5]),  # a = 1, 1.75
        (gradtx.scale_by_rms(0.75, eps=0.0, initial_accumulator_value=16.0), [1.0, 1.0]),
        (gradtx.scale_by_adopt((0.5, 0.75)), [0.0, 0.5]),  # n = 4 / 4 at t = 2
        (gradtx.scale_by_adopt((0.5, 0.75), eps=8.0), [0.0, 0.25]),  # n = 4 / 8
    ],
    ids=str,
)
def test_two_steps_with_a_gradient_of_four_equal_the_hand_computed_values(tx, updates):
    assert [first_update(tx, [4.0], steps=n)[0] for n in (1, 2)] == pytest.approx(updates, rel=1e-14)


def test_adopt_divides_by_the_square_of_earlier_gradients_only():
    tx = gradtx.scale_by_adopt(betas=(0.0, 0.75), clip_exponent=None)
    state, updates = tx.init({"w": torch.zeros(1)}), []
    for grad in (2.0, 8.0, 1.0):
        update, state = tx.update({"w": torch.tensor([grad])}, state)
        updates.append(update["w"].item())
    # 8 / 2; then v = 0.75 * 4 + 0.25 * 64 = 19
    assert updates == pytest.approx([0.0, 4.0, 1 / 19**0.5])
