import pytest
import torch

import gradtx
from tests import references as ref
from tests.optim.problems import assert_close, parameters
from tests.references import BETA, RATE


def gravity(s, t, g, p, lr=0.1, alpha=0.01, beta=0.9, seed=0):
    if t == 1 and alpha:
        start = gradtx.gravity(lr=lr, alpha=alpha, seed=seed).init({s.name: p})
        s.v = start["scale_by_gravity"]["v"][s.name]
    beta_t = (beta * t + 1) / (t + 2)
    s.v = beta_t * s.v + (1 - beta_t) * g / (1 + (g * g.abs().max()) ** 2)
    return p - lr * s.v


OPTIONS = [    (gradtx.gravity, gravity, {}),
    (gradtx.gravity, gravity, {"lr": 0.3, "alpha": 0.1, "beta": 0.5, "seed": 7}),
    (gradtx.gravity, gravity, {"lr": RATE, "alpha": 0.0, "beta": BETA}),
]  # fmt: skip


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=ref.named)
def test_the_weights_follow_the_loop(alias, rule, options):
    ref.follows(alias(**options), ref.WeightsLoop(rule, **options))


def test_the_initial_movement_of_gravity_does_not_depend_on_a_rate_written_before_the_first_step():
    params = parameters()
    optimizer = gradtx.optim.Gravity(params.values(), lr=0.2, alpha=0.1)
    names = list(params)
    start = optimizer.state_dict()["state"][names.index("body.bias")]["v"].clone()
    optimizer.param_groups[0]["lr"] = 0.05
    before = params["body.bias"].detach().clone()
    for param in params.values():
        param.grad = torch.zeros_like(param)
    optimizer.step()
    assert_close([params["body.bias"]], [before - 0.2 * start * 1.9 / 3], 1e-14)


# Gravity.


def starts(seed=0, names=("w",), shape=(200, 500), **options):
    state = gradtx.scale_by_gravity(**{"lr": 0.2, "alpha": 0.05, "seed": seed, **options}).init(
        {name: torch.zeros(shape, dtype=torch.float64) for name in names}
    )
    return state["scale_by_gravity"]["v"]


def test_the_first_velocity_is_normal_with_a_deviation_of_alpha_over_lr():
    z = starts()["w"].flatten() / 0.25
    n = z.numel()
    # four deviations of each estimate: of the mean 1, of the square 2, of the fourth power 96, of |z| < 1 0.216
    assert z.mean().abs() < 4 / n**0.5
    assert (z.square().mean() - 1).abs() < 4 * (2 / n) ** 0.5
    assert (z.pow(4).mean() - 3).abs() < 4 * (96 / n) ** 0.5
    assert ((z.abs() < 1).double().mean() - 0.6826895).abs() < 4 * (0.2166 / n) ** 0.5


def test_it_follows_from_seed_and_leaf_name_and_never_from_torchs_generator():
    before = torch.get_rng_state()
    first, again = starts(names=("a", "b")), starts(names=("b", "a"))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first["a"], again["a"])
    assert torch.equal(first["b"], again["b"])
    assert not torch.equal(first["a"], first["b"])
    assert not torch.equal(first["a"], starts(seed=1, names=("a",))["a"])


@pytest.mark.parametrize("lr", [0.0, torch.tensor(0.0), gradtx.Schedule(lambda step: 0.1 * step)], ids=str)
def test_at_an_initial_rate_of_zero_there_is_no_initial_velocity(lr):
    assert gradtx.scale_by_gravity(lr).init({"w": torch.zeros(2)})["scale_by_gravity"]["v"]["w"].tolist() == [0.0, 0.0]


def test_gradients_whose_square_overflows_are_bent_to_zero():
    tx = gradtx.scale_by_gravity(0.1, alpha=0.0)
    updates, _ = tx.update({"w": torch.tensor([1e30, -2.0])}, tx.init({"w": torch.zeros(2)}))
    assert updates["w"].tolist() == [0.0, 0.0]
