import pytest
import torch

import gradtx
from tests.references import Transformed

BETAS = (0.5, 0.5)


def run_with(tx, *grads):
    """The updates of a leaf with one entry, and the shared numbers after each step."""
    step, updates, numbers = Transformed(tx), [], []
    for grad in grads:
        grad = torch.tensor([grad], dtype=torch.float64)
        updates.append(step({"w": grad}, {"w": torch.zeros_like(grad)})["w"].item())
        kept = step.state["scale_by_swats"]
        numbers.append(tuple(kept[name].item() for name in ("rate_avg", "sgd_rate", "switched")))
    return updates, numbers, kept


def test_it_switches_once_the_rate_has_settled_and_then_is_sgd_with_a_fresh_momentum():
    tx = gradtx.scale_by_swats(1.0, BETAS, eps=0.0, switch_tol=1e-6)
    updates, numbers, kept = run_with(tx, 2.0, 2.0, 4.0, 8.0)
    # Adam's steps of 1 are those of SGD at 1/2; then b = 4, 2 + 8, times (1 - 0.5) / 2
    assert updates == pytest.approx([-1.0, -1.0, -1.0, -2.5])
    assert numbers == [pytest.approx(x) for x in [(0.25, 0.5, 0), (0.375, 0.5, 1), (0.375, 0.5, 1), (0.375, 0.5, 1)]]
    # Adam's averages stay as they were at the switch
    assert (kept["exp_avg"]["w"].item(), kept["exp_avg_sq"]["w"].item()) == (1.5, 3.0)
    assert kept["momentum_buffer"]["w"].item() == 10.0


def test_without_a_slope_the_average_rate_stays_and_nothing_switches():
    tx = gradtx.scale_by_swats(1.0, BETAS, eps=0.0, switch_tol=1e9)
    _, numbers, _ = run_with(tx, 2.0, 0.0)
    assert numbers[1] == numbers[0] == pytest.approx((0.25, 0.5, 0.0), abs=1e-15)


def test_the_phase_of_sgd_does_not_read_the_learning_rate():
    lr = gradtx.linear_schedule(1.0, start_factor=1.0, end_factor=0.0, total_iters=2)
    tx = gradtx.scale_by_swats(lr, (0.0, 0.5), eps=0.0, switch_tol=1.0)
    updates, numbers, _ = run_with(tx, 2.0, 2.0, 2.0)
    assert numbers[1][2] == 1.0
    assert updates[2] == -numbers[1][1] * 2.0


def test_the_decision_is_a_tensor_so_members_of_a_vmap_switch_on_their_own():
    def phase(tolerance):
        tx = gradtx.scale_by_swats(1.0, BETAS, switch_tol=tolerance)
        grads = {"w": torch.tensor([2.0])}
        state = tx.init(grads)
        for _ in range(2):
            _, state = tx.update(grads, state)
        return state["scale_by_swats"]["switched"]

    assert torch.vmap(phase)(torch.tensor([0.0, 1.0])).tolist() == [0.0, 1.0]
