import pytest
import torch

import gradtx
from tests.references import Transformed, first_update

DOUBLE = {"dtype": torch.float64}


def test_the_second_step_fits_the_curvature_along_the_first():
    # beta 0: d = 1 / 0.01 = 100, then the gradient falls by 0.5 a step: B = 0.5 / 100 below the bound, or 50 / 100
    tx = gradtx.scale_by_apollo(beta=0.0, eps=1e-12)
    for change, size in ((0.5, 0.01), (50.0, 0.5)):
        step = Transformed(tx)
        for grad in (1.0, 1.0 - change):
            updates = step({"w": torch.tensor([grad], **DOUBLE)}, {"w": torch.zeros(1, **DOUBLE)})
        curvature = step.state["scale_by_apollo"]["approx_hessian"]["w"].item()
        assert curvature == pytest.approx(change / 100)
        assert updates["w"].item() == pytest.approx((1 - change) / size)


def test_the_kept_direction_has_the_decay_in_it_and_the_next_curvature_too():
    curvatures = []
    for decay in (0.0, 0.5):
        step = Transformed(gradtx.scale_by_apollo(beta=0.0, weight_decay=decay))
        for grad in (1.0, 0.5):
            updates = step({"w": torch.tensor([grad], **DOUBLE)}, {"w": torch.tensor([200.0], **DOUBLE)})
        kept = step.state["scale_by_apollo"]
        assert kept["update"]["w"].item() == updates["w"].item()
        curvatures.append(kept["approx_hessian"]["w"].item())
    # d = 100 and 200, n = d + 0.01: -change * q**3 / n with q = d / n
    assert curvatures == pytest.approx([0.5 * d**3 / (d + 0.01) ** 4 for d in (100, 200)], rel=1e-12)


def test_sums_are_those_of_a_leaf():
    grads = [{"a": torch.randn(3, **DOUBLE), "b": torch.randn(2, 2, **DOUBLE)} for _ in range(3)]
    tx = gradtx.scale_by_apollo()
    both, alone = Transformed(tx), Transformed(tx)
    for g in grads:
        assert torch.equal(both(g, g)["a"], alone({"a": g["a"]}, {"a": g["a"]})["a"])


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rebound": "other"}, "rebound must be 'constant' or 'belief', got 'other'"),
        ({"weight_decay_type": "L2"}, "weight_decay_type must be 'decoupled' or 'stable', got 'L2'"),
    ],
    ids=str,
)
def test_rejects_an_unknown_option(options, message):
    with pytest.raises(ValueError, match=f"^scale_by_apollo: {message}"):
        gradtx.scale_by_apollo(**options)
