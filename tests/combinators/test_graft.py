import pytest
import torch

import gradtx
from tests.references import Transformed, finite_without_gradient, follows


def graft(direction, magnitude, eps=1e-16):
    first, second = Transformed(direction), Transformed(magnitude)

    def step(grads, params):
        d, m = first(grads, params), second(grads, params)
        return {name: d[name] * m[name].norm() / (d[name].norm() + eps) for name in grads}

    return step


@pytest.mark.parametrize(
    ("direction", "magnitude", "eps"),
    [
        (gradtx.scale_by_adam(), gradtx.trace(0.9), 1e-16),
        (gradtx.chain(gradtx.clip_by_global_norm(0.1), gradtx.scale_by_adam()), gradtx.clip_by_global_norm(0.05), 0.3),
        (gradtx.scale_by_shampoo(matrix_eps=0.1), gradtx.scale_by_adam(), 1e-16),
    ],
    ids=str,
)
def test_it_has_the_direction_of_one_and_the_length_of_the_other(direction, magnitude, eps):
    follows(gradtx.graft(direction, magnitude, eps), graft(direction, magnitude, eps), rate=-0.02, tolerance=1e-10)


def test_the_states_of_both_stand_side_by_side_and_may_have_the_same_name():
    tx = gradtx.graft(gradtx.trace(0.9), gradtx.trace(0.5))
    _, state = tx.update({"w": torch.ones(1)}, tx.init({"w": torch.zeros(1)}))
    assert list(state["graft"]) == ["direction", "magnitude"]
    assert [list(state["graft"][arm]) for arm in state["graft"]] == [["trace"], ["trace"]]


def test_both_see_the_same_update_and_the_same_gradient():
    tx = gradtx.graft(gradtx.scale_by_caution(0.0), gradtx.scale(1.0))
    grads = {"w": torch.tensor([3.0, -4.0])}
    torch.testing.assert_close(tx.update(grads, tx.init(grads))[0], grads)


def test_zero_gradients_and_leaves_without_one():
    tx = gradtx.graft(gradtx.scale_by_adam(), gradtx.trace(0.9))
    assert finite_without_gradient(tx)
    params = {"a": torch.ones(2), "b": torch.ones(2)}
    updates, _ = tx.update({"a": torch.ones(2), "b": None}, tx.init(params), params)
    assert updates["b"] is None


def test_accumulation_is_refused_inside_and_works_outside():
    with pytest.raises(TypeError, match=r"graft: accumulate also processes .*, as in accumulate\(graft\(...\)\)"):
        gradtx.graft(gradtx.accumulate(gradtx.scale(1.0), every=2), gradtx.scale(2.0))
    tx = gradtx.accumulate(gradtx.graft(gradtx.scale(1.0), gradtx.scale(2.0)), every=2)
    state, seen = tx.init({"w": torch.zeros(1)}), []
    for _ in range(2):
        updates, state = tx.update({"w": torch.tensor([2.0])}, state)
        seen.append(updates["w"].item())
    assert seen == pytest.approx([0.0, 4.0])


def test_as_an_optimizer_both_arms_keep_their_state():
    weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    tx = gradtx.chain(gradtx.graft(gradtx.scale_by_adam(), gradtx.trace(0.9)), gradtx.scale_by_learning_rate(0.1))
    optimizer = gradtx.as_optimizer(tx, [weight])
    for _ in range(3):
        weight.grad = weight.detach().clone()
        optimizer.step()
    assert sorted(optimizer.state[weight]) == ["exp_avg", "exp_avg_sq", "momentum_buffer", "step"]


def test_something_that_is_no_transformation_is_an_error():
    with pytest.raises(TypeError, match="graft: magnitude must be a GradientTransformation, got adam; call it"):
        gradtx.graft(gradtx.adam(), gradtx.adam)
