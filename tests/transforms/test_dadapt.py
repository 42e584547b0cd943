import math

import pytest
import torch

import gradtx
from gradtx.algorithms.dadapt import limited
from tests.references import Transformed, follows, follows_along, gradients, named, problem

PIECES = {
    "dadapt_adagrad": gradtx.scale_by_dadapt_adagrad,
    "dadapt_adam": gradtx.scale_by_dadapt_adam,
    "dadapt_sgd": gradtx.scale_by_dadapt_sgd,
    "dadapt_adan": gradtx.scale_by_dadapt_adan,
    "dadapt_lion": gradtx.scale_by_dadapt_lion,
    "prodigy": gradtx.scale_by_prodigy,
}


def double(x):
    return torch.tensor(x, dtype=torch.float64)


def test_an_endless_growth_rate_has_finite_derivatives():
    d, estimate, growth = (double(x).requires_grad_() for x in (1e-6, 3.0, math.inf))
    slopes = torch.autograd.grad(limited(estimate, d, growth), (d, estimate, growth))
    assert [slope.item() for slope in slopes] == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("make", PIECES.values(), ids=named)
def test_shared_scalars_are_kept_in_float64_and_d_starts_at_d0(make):
    params = {"w": torch.ones(3, dtype=torch.bfloat16)}
    (entry,) = [entry for key, entry in make(d0=0.3).init(params).items() if key != "step"]
    scalars = {name: value for name, value in entry.items() if isinstance(value, torch.Tensor)}
    assert scalars["d"].item() == 0.3
    assert {value.dtype for value in scalars.values()} == {torch.float64}


# What directions are good for: chains with a rate, a decay, an average of their own.


@pytest.mark.parametrize("name", PIECES)
def test_a_piece_and_descend_are_the_optimizer(name):
    options = {} if name == "dadapt_adan" else {"lr": 0.7}
    own = gradtx.chain(PIECES[name](d0=0.01, **options), gradtx.descend())
    follows(own, getattr(gradtx, name)(d0=0.01, **options), tolerance=0.0)


@pytest.mark.parametrize("lr", [0.3, 1.0])
def test_prodigy_before_a_constant_rate_is_prodigy_at_that_rate(lr):
    own = gradtx.chain(gradtx.scale_by_prodigy(d0=0.01), gradtx.scale_by_learning_rate(lr))
    follows_along(own, Transformed(gradtx.prodigy(d0=0.01, lr=lr)), tolerance=1e-12)


@pytest.mark.parametrize("name", PIECES)
def test_decay_and_a_rate_may_follow_a_piece(name):
    tx = gradtx.chain(PIECES[name](d0=0.01), gradtx.add_decayed_weights(0.1), gradtx.scale_by_learning_rate(0.5))
    params, piece = problem(), PIECES[name](d0=0.01)
    updates, _ = tx.update(params, tx.init(params), params)
    directions, _ = piece.update(params, piece.init(params), params)
    for leaf, p in params.items():
        torch.testing.assert_close(updates[leaf], -0.5 * (directions[leaf] + 0.1 * p), rtol=1e-14, atol=0.0)


def descended(tx, steps):
    """The loss |w - 7| from w = 10, where the chain evaluates."""
    params = {"w": double([10.0, 10.0])}
    state = tx.init(params)
    for _ in range(steps):
        updates, state = tx.update({"w": (params["w"] - 7).sign()}, state, params)
        params = gradtx.apply_updates(params, updates)
    return (tx.eval_params(state, params)["w"] - 7).abs().max().item()


@pytest.mark.parametrize("name", ["dadapt_adagrad", "prodigy"])  # the estimates of the others assume their own steps
def test_schedule_free_and_averages_descend_by_a_rate_that_is_found(name):
    make = getattr(gradtx, name)
    assert descended(gradtx.schedule_free(make(), lr=1.0, beta=0.9), 2000) < 0.5
    assert descended(gradtx.chain(make(), gradtx.average()), 2000) < 3.0


@pytest.mark.parametrize("name", PIECES)
def test_the_steps_under_schedule_free_are_those_of_the_paper_along_the_directions_of_the_piece(name):
    """z, x, y of Schedule-Free, over the directions that the link gives at y."""
    piece = PIECES[name](d0=0.01)
    tx = gradtx.schedule_free(getattr(gradtx, name)(d0=0.01), lr=0.8, beta=0.9)
    follows(tx, gradtx.schedule_free(piece, lr=0.8, beta=0.9), tolerance=0.0)
    y = z = x = problem()
    inner, state = piece.init(y), tx.init(y)
    for t in range(1, 31):
        grads = gradients(y, t)
        directions, inner = piece.update(grads, inner, y)
        updates, state = tx.update(grads, state, y)
        z = {leaf: z[leaf] - 0.8 * directions[leaf] for leaf in z}
        x = {leaf: (1 - 1 / t) * x[leaf] + z[leaf] / t for leaf in x}
        expected = {leaf: 0.1 * z[leaf] + 0.9 * x[leaf] for leaf in x}
        for leaf in y:
            torch.testing.assert_close(y[leaf] + updates[leaf], expected[leaf], rtol=1e-10, atol=1e-12)
        y = expected


def test_d_is_in_the_state_for_who_wants_to_record_it():
    tx, params = gradtx.prodigy(d0=0.01), problem()
    _, state = tx.update(params, tx.init(params), params)
    assert gradtx.get(state, "d") == state["scale_by_prodigy"]["d"]
