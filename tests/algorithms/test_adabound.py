import math

import pytest
import torch

import gradtx
from tests.algorithms.loops import largest_so_far, step_along_cosines, weights
from tests.references import (
    BETA,
    DECAY,
    RATE,
    Loop,
    Transformed,
    adam_moments,
    first_update,
    follows,
    named,
    problem,
    run,
)


def adabound(
    s, t, g, p, lr=1e-3, betas=(0.9, 0.999), final_lr=0.1, gamma=1e-3, eps=1e-8, weight_decay=0.0,
    decoupled_weight_decay=False, fixed_decay=False, amsgrad=False,
):  # fmt: skip
    b1, b2 = betas
    if t == 1:
        s.base = lr
    if not decoupled_weight_decay:
        g = g + weight_decay * p
    adam_moments(s, t, g, betas)
    v = largest_so_far(s) if amsgrad else s.v
    rate = lr * math.sqrt(1 - b2**t) / (1 - b1**t) / (v.sqrt() + eps)
    f = final_lr * lr / s.base
    low, high = f * (1 - 1 / (gamma * t + 1)), f * (1 + 1 / (gamma * t))
    s.seen.update("low" if r < low else "high" if r > high else "free" for r in rate.flatten().tolist())
    step = -rate.clamp(low, high) * s.m
    return step - (1 if fixed_decay else lr) * weight_decay * p if decoupled_weight_decay else step


NARROW = {"final_lr": 0.5, "gamma": 0.1}
OPTIONS = [
    (gradtx.adabound, adabound, {}),
    (gradtx.adabound, adabound, {"lr": 0.02, "betas": (0.8, 0.95), **NARROW, "eps": 1e-3, "weight_decay": 0.2}),
    (gradtx.adabound, adabound, {"lr": 0.02, "betas": (0.8, 0.7), **NARROW, "amsgrad": True}),
    (gradtx.adabound, adabound, {"lr": 0.02, **NARROW, "weight_decay": 0.2, "decoupled_weight_decay": True}),
    (gradtx.adabound, adabound, {"lr": 0.02, "weight_decay": 0.2, "fixed_decay": True}),
    (
        gradtx.adabound,
        adabound,
        {"lr": 0.02, "weight_decay": 0.01, "decoupled_weight_decay": True, "fixed_decay": True},
    ),
    (
        gradtx.adabound,
        adabound,
        {"lr": RATE, "betas": (BETA, BETA), "final_lr": BETA, "gamma": DECAY, "weight_decay": DECAY},
    ),
]


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=named)
def test_the_weights_follow_the_loop(alias, rule, options):
    follows(alias(**options), Loop(rule, **options))


@pytest.mark.parametrize(
    ("rule", "options", "branches"), [(adabound, {"lr": 0.02, **NARROW}, {"low", "high", "free"})], ids=named
)
def test_the_options_above_take_every_branch(rule, options, branches):
    reference = Loop(rule, **options)
    run(reference)
    assert reference.seen == branches


def test_adabound_follows_a_scheduler_of_torch_as_it_follows_a_schedule():
    params = weights()
    optimizer = gradtx.optim.AdaBound(params, lr=0.05, **NARROW)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20, eta_min=0.002)
    tx = gradtx.adabound(lr=gradtx.cosine_schedule(0.05, T_max=20, eta_min=0.002), **NARROW)
    tree = {str(i): param.detach().clone() for i, param in enumerate(params)}
    state = tx.init(tree)
    for t in range(10):
        grads = {str(i): torch.cos(tree[str(i)] * (i + 1) + t) for i in range(len(params))}
        updates, state = tx.update(grads, state, tree)
        tree = gradtx.apply_updates(tree, updates)
        step_along_cosines(optimizer, params, t)
        scheduler.step()
    for i, param in enumerate(params):
        torch.testing.assert_close(param.detach(), tree[str(i)], rtol=1e-10, atol=0)  # torch's recursion of the cosine


FALLING = gradtx.linear_schedule(0.2, end_factor=0.1, start_factor=1.0, total_iters=10)


@pytest.mark.parametrize("lr", [0.2, FALLING, torch.tensor(0.2, dtype=torch.float64)], ids=str)
def test_the_first_rate_is_kept_in_a_slot_of_every_leaf_and_never_changes(lr):
    step = Transformed(gradtx.scale_by_adabound(lr))
    run(step, rate=-0.01)
    kept = step.state["scale_by_adabound"]["initial_lr"]
    assert kept.keys() == problem().keys()
    assert {(lr.item(), lr.shape, lr.dtype) for lr in kept.values()} == {(0.2, (), torch.float64)}


def test_adabound_may_have_no_eps():
    assert first_update(gradtx.scale_by_adabound(1e-3, eps=0.0), [0.0, 1.0])[0] == 0.0  # the band is finite
