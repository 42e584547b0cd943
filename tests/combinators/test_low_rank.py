import pytest
import torch

import gradtx
from tests.matrix_problem import MATRICES, follows, start, weights
from tests.references import TOLERANCE, Transformed


def test_adam_at_full_rank_is_adam_along_the_singular_vectors():
    tx = gradtx.low_rank(gradtx.trace(0.9), rank=100, every=3, carry="rotate")
    follows(
        gradtx.chain(tx, gradtx.scale(-0.02)), gradtx.sgd(lr=0.02, momentum=0.9), 0, names=MATRICES, tolerance=TOLERANCE
    )


def test_any_chain_runs_at_low_rank_with_projected_parameters():
    seen = {}

    @gradtx.per_tensor(needs=("params",))
    def look():
        def update(update, state, param, ctx):
            seen.update(update=update, grad=ctx.grad, param=param)
            return update, state

        return update

    tx = gradtx.chain(gradtx.scale(2.0), gradtx.low_rank(look(), rank=2))
    params = start(0, ("tall",))
    tx.update(params, tx.init(params), params)
    assert seen["update"].shape == (5, 2)
    torch.testing.assert_close(seen["update"], 2 * seen["grad"])
    torch.testing.assert_close(seen["param"], seen["grad"])


def test_a_reset_restores_initial_values_other_than_0():
    @gradtx.per_tensor()
    def double():
        def init(param):
            return {"size": torch.ones_like(param)}

        def update(update, state, param, ctx):
            return update, {"size": 2 * state["size"]}

        return init, update

    step = Transformed(gradtx.low_rank(double(), rank=2, every=3, carry="reset"))
    params, sizes = start(0, ("tall",)), []
    for _ in range(7):
        step(params, params)
        sizes.append(step.state["low_rank"]["double"]["size"]["tall"].unique().item())
    assert sizes == [2, 4, 8, 2, 4, 8, 2]


def test_it_nests_with_rotations():
    inner = gradtx.rotated(gradtx.scale_by_adam_hat(eps=0.1), precondition_frequency=2)
    tx = gradtx.chain(gradtx.low_rank(inner, rank=2, every=3), gradtx.scale_by_learning_rate(0.1))
    step = Transformed(tx)
    history = weights(step, 0)
    assert all(leaf.isfinite().all() for leaf in history[-1].values())
    assert step.state["low_rank"]["rotated"]["Q_1"]["tall"].shape == (2, 2)


# All.


def test_a_slot_without_a_kind_matters_only_where_slots_are_turned():
    tx = gradtx.scale_by_tam()
    params = {"w": torch.ones(4, 4)}
    gradtx.low_rank(tx, rank=2).init(params)
    with pytest.raises(TypeError, match=r"low_rank: the inner link 'scale_by_tam' has the slot 's'"):
        gradtx.low_rank(tx, rank=2, carry="rotate").init(params)
