import math

import pytest
import torch

import gradtx
from tests.algorithms.loops import groups_follow
from tests.references import RATE, Transformed, WeightsLoop, named, run, weights_follow

WARM_UP = gradtx.Schedule(lambda step: 0.05 * min(step / 8, 1.0))  # from 0
FALLING = gradtx.linear_schedule(0.8, start_factor=1.0, end_factor=0.2, total_iters=25)
CLOSE = 1e-12


def madgrad(s, t, g, p, lr=1e-2, momentum=0.9, eps=1e-6, weight_decay=0.0, decoupled_weight_decay=False):
    if t == 1:
        s.x0, s.s, s.v = p, 0 * p, 0 * p
    base = s.x0
    if momentum == 0 and decoupled_weight_decay:  # from the weights, with all decay so far in them
        root = s.v ** (1 / 3) + eps
        base = p + torch.where(s.s == 0, 0.0, s.s / root)
    r = lr + eps if lr else 0.0
    step = r * math.sqrt(t)
    old = p
    if not decoupled_weight_decay:
        g = g + weight_decay * p
    s.s = s.s + step * g
    s.v = s.v + step * g**2
    root = s.v ** (1 / 3) + eps
    z = base - torch.where(root == 0, 0.0, s.s / root)
    p = momentum * p + (1 - momentum) * z
    return p - r * weight_decay * old if decoupled_weight_decay else p


OPTIONS = [
    (gradtx.madgrad, madgrad, {}),
    (gradtx.madgrad, madgrad, {"lr": 0.05, "momentum": 0.5, "eps": 0.01, "weight_decay": 0.1}),
    (gradtx.madgrad, madgrad, {"lr": 0.05, "momentum": 0.5, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    (gradtx.madgrad, madgrad, {"lr": 0.05, "momentum": 0.0, "weight_decay": 0.1}),
    (gradtx.madgrad, madgrad, {"lr": 0.05, "momentum": 0.0, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    (gradtx.madgrad, madgrad, {"lr": 0.05, "momentum": 0.0, "eps": 0.0}),
    (gradtx.madgrad, madgrad, {"lr": 0.05, "momentum": 0.3, "eps": 0.0}),
    (gradtx.madgrad, madgrad, {"lr": RATE, "momentum": FALLING, "weight_decay": FALLING}),
    (gradtx.madgrad, madgrad, {"lr": WARM_UP, "momentum": 0.0}),
    (gradtx.madgrad, madgrad, {"lr": WARM_UP, "eps": 0.0}),
]


@pytest.mark.parametrize(("make", "rule", "options"), OPTIONS, ids=named)
def test_follows_the_loop(make, rule, options):
    weights_follow(make(**options), WeightsLoop(rule, **options), tolerance=CLOSE)


def test_madgrad_keeps_the_start_only_where_it_is_needed():
    params = {"w": torch.ones(2)}
    assert "x0" in gradtx.madgrad().init(params)["scale_by_madgrad"]
    assert "x0" not in gradtx.madgrad(momentum=0.0).init(params)["scale_by_madgrad"]
    assert "x0" in gradtx.madgrad(momentum=torch.tensor(0.0)).init(params)["scale_by_madgrad"]


@pytest.mark.slow
@pytest.mark.parametrize(("cls", "rule"), [(gradtx.optim.MADGRAD, madgrad)], ids=["MADGRAD"])
def test_groups_have_rates_of_their_own_and_warm_up_from_zero(cls, rule):
    groups_follow(cls, rule, tolerance=CLOSE)


@pytest.mark.slow
def test_runs_are_finite_in_half_precision():
    for tx in (gradtx.madgrad(), gradtx.madgrad(momentum=0.0), gradtx.srmm()):
        step = Transformed(tx)
        history = run(lambda g, p, step=step: {
            n: u.double()
            for n, u in step({n: x.half() for n, x in g.items()}, {n: x.half() for n, x in p.items()}).items()
        })  # fmt: skip
        assert all(update.isfinite().all() for updates in history for update in updates.values())


def test_a_rate_of_zero_leaves_sums_and_weights_although_eps_is_added_to_rates():
    params = {"w": torch.tensor([1.0])}
    for lr in (0.0, torch.tensor(0.0)):
        tx = gradtx.scale_by_madgrad(lr=lr, eps=0.5)
        updates, state = tx.update({"w": torch.tensor([3.0])}, tx.init(params), params)
        assert updates["w"] == 0
        assert state["scale_by_madgrad"]["s"]["w"] == 0


def test_without_eps_an_entry_moves_with_its_first_gradient_only():
    for momentum in (0.0, 0.5):
        tx = gradtx.scale_by_madgrad(lr=0.125, momentum=momentum, eps=0.0)
        params = {"w": torch.tensor([1.0, 1.0])}
        state = tx.init(params)
        for grad in ([0.0, 8.0], [0.0, 0.0], [8.0, 0.0]):
            updates, state = tx.update({"w": torch.tensor(grad)}, state, params)
            assert updates["w"].isfinite().all()
            assert (updates["w"][0] == 0) == (grad[0] == 0)
