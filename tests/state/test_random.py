"""Random numbers of rules."""

import pytest
import torch

from tests.conformance import assert_same, layout, noise
from tests.rules import VECTORS, noisy, normal, rademacher, run, uniform

MANY = {"w": torch.zeros(200, 500, dtype=torch.float64)}


def draws(factory, seed=0, steps=1, params=MANY):
    return run(factory(seed=seed), steps, params, params)[0]


def test_normal_numbers_have_the_moments_and_quantiles_of_the_normal_distribution():
    x = draws(normal, seed=3)["w"].flatten()
    n = x.numel()
    # five standard errors of each moment: of x, x^2, x^3 and x^4 they are 1, 2, 15 and 96, over n, rooted
    for power, moment, variance in ((1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)):
        assert abs((x**power).mean() - moment) < 5 * (variance / n) ** 0.5
    for q in (0.001, 0.1, 0.5, 0.9, 0.999):
        below = (x < torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(q))).double().mean()
        assert abs(below - q) < 5 * (q * (1 - q) / n) ** 0.5
    assert x.isfinite().all()
    assert x.unique().numel() == n


def test_rademacher_numbers_are_both_signs_with_equal_odds():
    x = draws(rademacher, seed=3)["w"].flatten()
    assert set(x.tolist()) == {-1.0, 1.0}
    assert abs(x.mean()) < 5 * x.numel() ** -0.5  # five standard errors


def test_uniform_numbers_have_the_moments_and_quantiles_of_the_uniform_distribution():
    x = draws(uniform, seed=3)["w"].flatten()
    for power in (1, 2, 3):  # five standard errors
        variance = 1 / (2 * power + 1) - 1 / (power + 1) ** 2
        assert abs((x**power).mean() - 1 / (power + 1)) < 5 * (variance / x.numel()) ** 0.5
    for q in (0.01, 0.3, 0.9):
        assert abs((x < q).double().mean() - q) < 5 * (q * (1 - q) / x.numel()) ** 0.5
    assert 0 < x.min() < x.max() < 1


def _correlation(x, y):
    return ((x * y).mean() - x.mean() * y.mean()).abs() * x.numel() ** 0.5  # in standard errors


@pytest.mark.parametrize("factory", [normal, rademacher, uniform], ids=["normal", "rademacher", "uniform"])
def test_leaves_steps_seeds_neighbours_and_draws_are_independent(factory):
    params = {"w": MANY["w"], "v": MANY["w"]}
    first = draws(factory, params=params)
    w = first["w"].flatten()
    others = {
        "leaf": first["v"],
        "step": draws(factory, steps=2)["w"],
        "seed": draws(factory, seed=1)["w"],
        "neighbour": w.roll(1),
        "row": first["w"].roll(1, 0),
    }
    for name, other in others.items():
        assert _correlation(w, other.flatten()) < 5, name


@pytest.mark.parametrize("shift", [-1, 0, 1])
def test_a_second_draw_is_neither_the_first_again_nor_the_first_shifted(shift):
    for draw in ("normal", "rademacher"):
        product = noisy(
            lambda rng, like, draw=draw: getattr(rng, draw)(like).roll(shift, -1) * getattr(rng, draw)(like)
        )
        assert abs(draws(product)["w"].mean()) < 5 * MANY["w"].numel() ** -0.5  # five standard errors


@pytest.mark.parametrize("factory", [normal, rademacher, uniform], ids=["normal", "rademacher", "uniform"])
def test_the_same_seed_gives_the_same_numbers_and_torchs_generator_is_left_alone(factory):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = draws(factory, seed=5, steps=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert_same(draws(factory, seed=5, steps=3), first)


def test_random_numbers_depend_on_the_leafs_name_not_its_place():
    params = noise(1, VECTORS)
    alone = {"b": params["b"]}
    assert_same(draws(normal, params=params)["b"], draws(normal, params=alone)["b"])
    assert_same(draws(normal, params=dict(reversed(params.items())))["b"], draws(normal, params=alone)["b"])


def test_a_random_rule_may_draw_its_first_state_and_not_repeat_it():
    factory = noisy(lambda rng, like: rng.normal(like), lambda param, rng: {"start": rng.normal(param)})
    tx = factory(seed=2)
    state = tx.init(MANY)
    start = state["noise_rule"]["start"]["w"]
    assert abs(start.std() - 1) < 0.02  # 4 standard errors
    updates, new = tx.update(MANY, state, MANY)
    assert _correlation(start, updates["w"]) < 5
    assert new["noise_rule"]["counter"] == state["noise_rule"]["counter"] + 1
    assert new["noise_rule"]["seed"] == 2


def test_random_numbers_come_in_every_dtype_and_shape():
    for dtype, drawn in ((torch.bfloat16, torch.float32), (torch.float32, None), (torch.float64, None)):
        params = {name: torch.zeros(shape, dtype=dtype) for name, shape in {"e": (0,), "s": (), "m": (2, 3)}.items()}
        expected = {name: zeros.to(drawn or dtype) for name, zeros in params.items()}  # rules see float32 at least
        assert layout(draws(normal, params=params)) == layout(expected)
        assert layout(draws(rademacher, params=params)) == layout(expected)
