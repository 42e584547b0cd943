import math

import pytest
import torch

import gradtx
from tests.references import Loop, Transformed, first_update, follows, run


def held(s, t, g, p, t0):
    s.b = 0.9 * s.b + g
    return s.b if t >= t0 else 0 * g


@pytest.mark.parametrize("t0", [0, 1, 2, 7, 100])
def test_hold_until_passes_nothing_before_its_step_while_momentum_collects(t0):
    tx = gradtx.chain(gradtx.trace(0.9), gradtx.hold_until(t0))
    follows(tx, Loop(held, t0=t0), rate=-0.1)


def test_held_updates_are_zero_even_where_they_were_not_finite():
    assert first_update(gradtx.hold_until(2), [math.inf, -1.0]) == [0.0, 0.0]
    assert first_update(gradtx.hold_until(2), [math.inf, -1.0], steps=2) == [math.inf, -1.0]


def test_record_keeps_the_norm_of_the_whole_tree_at_its_place():
    tx = gradtx.chain(gradtx.record("before"), gradtx.clip_by_global_norm(0.3, eps=0.0), gradtx.record("after"))
    step, norms = Transformed(tx), []

    def spy(grads, params):
        updates = step(grads, params)
        for tree, entry in ((grads, step.state["record"]["before"]), (updates, step.state["record_1"]["after"])):
            assert (entry.shape, entry.dtype) == ((), torch.float64)
            assert entry.item() == pytest.approx(math.sqrt(sum((x**2).sum() for x in tree.values())), rel=1e-14)
        norms.append((step.state["record"]["before"].item(), step.state["record_1"]["after"].item()))
        return updates

    run(spy, rate=-0.1)
    assert len({before for before, _ in norms}) == len(norms)
    assert all(after == pytest.approx(min(before, 0.3)) for before, after in norms)


def test_zero_nans_leaves_all_other_numbers():
    given = {"w": torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -2.0])}
    updates, _ = gradtx.zero_nans().update(given, gradtx.zero_nans().init(given))
    assert updates["w"].tolist() == [0.0, torch.inf, -torch.inf, 0.0, -2.0]


def test_zero_nans_keeps_them_from_the_state_but_not_from_the_gradient_itself():
    params = {"w": torch.ones(2)}
    tx = gradtx.chain(gradtx.zero_nans(), gradtx.adam(lr=0.1))
    updates, state = tx.update({"w": torch.tensor([torch.nan, 1.0])}, tx.init(params), params)
    assert updates["w"][0] == 0.0
    assert state["scale_by_adam"]["exp_avg"]["w"].isfinite().all()
