import pytest
import torch

import gradtx
from tests.references import first_update

DOUBLE = {"dtype": torch.float64}


def test_belief_without_any_gradient_divides_by_eps_over_a():
    assert first_update(gradtx.scale_by_apollo(rebound="belief"), [0.0, 0.0]) == [0.0, 0.0]


@pytest.mark.parametrize("kind", ["decoupled", "stable"])
@pytest.mark.parametrize("rebound", ["constant", "belief"])
def test_derivatives_of_training_by_its_numbers_are_the_difference_quotients(rebound, kind):
    grads = [torch.tensor([0.3, -1.0, 0.4], **DOUBLE), torch.tensor([0.1, 0.7, -0.2], **DOUBLE)] * 2

    def train(beta, eps, decay):
        tx = gradtx.chain(gradtx.scale_by_apollo(beta, eps, rebound, decay, kind), gradtx.scale_by_learning_rate(0.001))
        params = {"w": torch.tensor([1.0, -2.0, 0.5], **DOUBLE)}
        state = tx.init(params)
        for grad in grads:
            updates, state = tx.update({"w": grad * params["w"]}, state, params)
            params = gradtx.apply_updates(params, updates)
        return params["w"]

    numbers = [torch.tensor(x, **DOUBLE).requires_grad_() for x in (0.8, 0.05, 0.1)]
    assert torch.autograd.gradcheck(train, numbers)
