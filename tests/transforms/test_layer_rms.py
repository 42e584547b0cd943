import torch

import gradtx
from tests.references import Transformed


def test_the_average_starts_from_the_first_gradient_that_is_not_zero():
    step, params = Transformed(gradtx.scale_by_layer_rms(beta=0.5, eps=1e-8)), {"w": torch.zeros(2)}
    seen = []
    for grad in ([0.0, 0.0], [3.0, 4.0], [0.0, 1.0]):
        step({"w": torch.tensor(grad)}, params)
        seen.append(step.state["scale_by_layer_rms"]["exp_avg_sq"]["w"].item())
    assert seen == [0.0, 25.0, 13.0]


def test_the_average_of_half_precision_gradients_is_exact_and_cannot_overflow():
    params = {"w": torch.full((2, 2), 300.0, dtype=torch.float16)}
    tx = gradtx.scale_by_layer_rms()
    updates, state = tx.update(params, tx.init(params))
    assert state["scale_by_layer_rms"]["exp_avg_sq"]["w"].item() == 4 * 300.0**2
    assert updates["w"].tolist() == [[0.5, 0.5], [0.5, 0.5]]
