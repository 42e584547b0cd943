import copy
import math

import pytest
import torch

import gradtx
from tests.references import RATE, named, problem, run

MANY = 100_000


def noise(tx, steps=1, size=MANY, name="w"):
    """The updates of steps with zero gradients."""
    zeros = {name: torch.zeros(size, dtype=torch.float64)}
    state, drawn = tx.init(zeros), []
    for _ in range(steps):
        updates, state = tx.update(zeros, state)
        drawn.append(updates[name])
    return drawn


def test_mean_and_variance_are_those_of_the_normal_distribution():
    (drawn,) = noise(gradtx.add_noise(eta=0.25, gamma=0.55, seed=7))
    # 4 standard deviations: of a mean 0.5 / sqrt(n), of a variance 0.25 sqrt(2 / n)
    assert abs(drawn.mean()) < 4 * 0.5 / math.sqrt(MANY)
    assert abs(drawn.var() - 0.25) < 4 * 0.25 * math.sqrt(2 / MANY)
    inside = (drawn.abs() < 0.5).double().mean()  # one standard deviation: 68.27 %
    assert abs(inside - 0.6827) < 4 * math.sqrt(0.6827 * 0.3173 / MANY)


def test_the_variance_falls_as_the_power_of_time():
    drawn = noise(gradtx.add_noise(eta=1.0, gamma=0.5, seed=1), steps=16)
    for t in (1, 4, 16):
        expected = 1 / math.sqrt(t)
        assert abs(drawn[t - 1].var() - expected) < 4 * expected * math.sqrt(2 / MANY)


def test_steps_and_leaves_have_noise_of_their_own():
    first, second = noise(gradtx.add_noise(1.0, 0.0, seed=0), steps=2)
    (other,) = noise(gradtx.add_noise(1.0, 0.0, seed=0), name="v")
    (reseeded,) = noise(gradtx.add_noise(1.0, 0.0, seed=1))
    for a, b in ((first, second), (first, other), (first, reseeded)):
        assert abs((a * b).mean()) < 4 / math.sqrt(MANY)  # no correlation


def test_two_links_of_one_seed_have_noise_of_their_own():
    once, twice = gradtx.add_noise(1.0, 0.0, seed=0), gradtx.add_noise(1.0, 0.0, seed=0)
    (first,) = noise(once)
    in_clocks = gradtx.chain(gradtx.accumulate(once, 1), gradtx.accumulate(twice, 1))
    for tx in (gradtx.chain(once, twice), gradtx.chain(once, gradtx.masked(twice, "*")), in_clocks):
        (both,) = noise(tx)
        second = both - first
        assert abs(second.var() - 1) < 4 * math.sqrt(2 / MANY)
        assert abs((first * second).mean()) < 4 / math.sqrt(MANY)
    (difference,) = noise(gradtx.chain(once, gradtx.scale(-1.0), twice))
    assert abs(difference.var() - 2) < 8 * math.sqrt(2 / MANY)


def test_the_noise_of_differential_privacy_is_not_that_of_a_link_with_its_seed():
    private = gradtx.differentially_private_aggregate(l2_norm_clip=1.0, noise_multiplier=1.0, seed=0)
    tx = gradtx.chain(private, gradtx.scale(-1.0), gradtx.add_noise(1.0, 0.0, seed=0))
    zeros = {"w": torch.zeros(MANY, dtype=torch.float64)}
    updates, _ = tx.update(zeros, tx.init(zeros), zeros, grad_sample={"w": torch.zeros(1, MANY, dtype=torch.float64)})
    assert abs(updates["w"].var() - 2) < 8 * math.sqrt(2 / MANY)


def test_the_first_random_link_of_a_chain_draws_what_it_draws_alone_in_every_wrapper():
    tx = gradtx.add_noise(1.0, 0.0, seed=0)
    (alone,) = noise(tx)
    wrapped = [gradtx.chain(gradtx.scale(1.0), tx), gradtx.skip_nonfinite(tx), gradtx.accumulate(tx, 1)]
    wrapped += [
        gradtx.masked(tx, "*"),
        gradtx.partition({"all": tx}, {"all": "*"}),
        gradtx.chain(tx, gradtx.trace(0.9)),
    ]
    for other in wrapped:
        assert torch.equal(noise(other)[0], alone)


def test_links_of_one_seed_draw_in_an_optimizer_with_groups_what_they_draw_in_pure_use():
    one, two = gradtx.add_noise(1.0, 0.0, seed=0), gradtx.add_noise(0.1, 0.0, seed=0)
    tx = gradtx.chain(gradtx.partition({"a": gradtx.chain(one, two), "b": two}, {"a": "a", "b": "b"}), two)
    params = {name: torch.nn.Parameter(torch.zeros(5)) for name in "ab"}
    trees = {name: torch.zeros(5) for name in "ab"}
    optimizer = gradtx.as_optimizer(tx, [{"params": [item]} for item in params.items()])
    state = tx.init(trees)
    for _ in range(2):
        for param in params.values():
            param.grad = torch.zeros(5)
        optimizer.step()
        updates, state = tx.update({name: torch.zeros(5) for name in "ab"}, state, trees)
        trees = gradtx.apply_updates(trees, updates)
    for name, param in params.items():
        torch.testing.assert_close(param.detach(), trees[name], rtol=1e-6, atol=1e-7)


def stepped(tx, steps, state=None, order=lambda names: names):
    zeros = {name: torch.zeros_like(p) for name, p in problem().items()}
    zeros = {name: zeros[name] for name in order(list(zeros))}
    state = tx.init(zeros) if state is None else state
    history = []
    for _ in range(steps):
        updates, state = tx.update(zeros, state)
        history.append(updates)
    return history, state


def test_the_noise_follows_from_the_seed_whatever_happens_in_between():
    tx = gradtx.add_noise(1.0, 0.5, seed=3)
    expected, _ = stepped(tx, 10)
    torch.manual_seed(5)
    again, _ = stepped(tx, 10, order=sorted)
    before, state = stepped(tx, 5)
    after, _ = stepped(copy.deepcopy(tx), 5, copy.deepcopy(state))
    for history in (again, before + after):
        for got, wanted in zip(history, expected, strict=True):
            assert all(torch.equal(got[name], wanted[name]) for name in wanted)


def test_torchs_generator_is_left_alone():
    before = torch.get_rng_state()
    noise(gradtx.add_noise(1.0, 0.5, seed=3), size=3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("tx", "plain"),
    [
        (gradtx.add_noise(0.0, 0.55, seed=0), gradtx.scale(1.0)),
        (gradtx.noisy_sgd(0.05, eta=0.0), gradtx.sgd(0.05)),
        (gradtx.noisy_sgd(RATE, eta=0.0, gamma=2.0), gradtx.sgd(RATE)),
    ],
    ids=named,
)
def test_without_variance_nothing_is_added(tx, plain):
    for got, wanted in zip(run(tx, rate=0.1), run(plain, rate=0.1), strict=True):
        assert all(torch.equal(got[name], wanted[name]) for name in wanted)


def test_a_seed_is_required():
    with pytest.raises(TypeError, match="add_noise: missing argument 'seed'"):
        gradtx.add_noise(0.1, 0.5)
