import torch

import gradtx
from tests.references import DECAY, Transformed, problem


def test_noisy_sgd_steps_along_the_noisy_gradient():
    params = problem()
    noisy, plain = Transformed(gradtx.add_noise(DECAY, 0.4, seed=2)), gradtx.noisy_sgd(0.1, DECAY, 0.4, seed=2)
    step = Transformed(plain)
    for _ in range(5):
        direction, update = noisy(params, params), step(params, params)
        for name in params:
            torch.testing.assert_close(update[name], -0.1 * direction[name], rtol=1e-15, atol=0.0)
