import math

import pytest
import torch

import gradtx
from tests.algorithms.loops import needs_params_to_start
from tests.references import Transformed, WeightsLoop, WholeLoop, follows_along, gradients, named, problem, run

FADING = gradtx.linear_schedule(1.0, start_factor=1.0, end_factor=0.2, total_iters=25)
RISING = gradtx.linear_schedule(0.9, start_factor=0.5, total_iters=20)
# The same sums in other orders, over 32 steps.
CLOSE = 1e-12


def dog(s, t, g, p, lr=1.0, reps_rel=1e-6, eps=1e-8, weight_decay=0.0, init_eta=None):
    if t == 1:
        s.p0, s.G = p, eps
        s.r = reps_rel * (1 + p.norm().item()) if init_eta is None else 0.0
    g = g + weight_decay * p
    s.r = max(s.r, (p - s.p0).norm().item())
    s.G = s.G + g.square().sum().item()
    rate = init_eta if init_eta is not None and t == 1 else s.r / math.sqrt(s.G)
    return p - lr * rate * g


def dowg(s, t, g, p, lr=1.0, eps=1e-4, init_estim_sq_dist=None, weight_decay=0.0):
    if t == 1:
        s.p0, s.r2 = p, eps if init_estim_sq_dist is None else init_estim_sq_dist
    g = g + weight_decay * p
    s.r2 = max(s.r2, (p - s.p0).square().sum().item())
    s.w = s.w + s.r2 * g.square().sum().item()
    return p - lr * s.r2 / (math.sqrt(s.w) + eps) * g


WHOLE = [
    (gradtx.dog, dog, {}),
    (gradtx.dog, dog, {"reps_rel": 0.01, "eps": 0.3, "weight_decay": 0.1, "lr": 0.7}),
    (gradtx.dog, dog, {"init_eta": 0.05, "lr": 0.8}),
    (gradtx.dog, dog, {"reps_rel": 0.01, "lr": FADING, "weight_decay": RISING}),
    (gradtx.dowg, dowg, {}),
    (gradtx.dowg, dowg, {"eps": 0.01, "weight_decay": 0.1, "lr": 0.7}),
    (gradtx.dowg, dowg, {"eps": 0.01, "init_estim_sq_dist": 0.2, "lr": FADING, "weight_decay": RISING}),
]
LEAFWISE = [
    {},
    {"reps_rel": 0.01, "eps": 0.3, "weight_decay": 0.1, "lr": 0.7},
    {"init_eta": 0.05, "lr": 0.8},
    {"reps_rel": 0.01, "lr": FADING, "weight_decay": RISING},
]


@pytest.mark.parametrize(("make", "rule", "options"), WHOLE, ids=named)
def test_follows_the_loop_over_all_leaves_as_one_vector(make, rule, options):
    follows_along(make(**options), WholeLoop(rule, **options), tolerance=CLOSE)


@pytest.mark.parametrize("options", LEAFWISE, ids=str)
def test_ldog_is_dog_for_every_leaf(options):
    follows_along(gradtx.ldog(**options), WeightsLoop(dog, **options), tolerance=CLOSE)


# Bad input, and trees of norm 0.


@pytest.mark.parametrize("make", [gradtx.dog, gradtx.ldog], ids=named)
def test_zero_gradients_give_zero_updates_without_eps(make):
    step, params = Transformed(make(eps=0.0)), problem()
    zeros = {name: torch.zeros_like(p) for name, p in params.items()}
    for _ in range(3):
        assert not any(update.any() for update in step(zeros, params).values())


@pytest.mark.parametrize("make", [gradtx.dog, gradtx.ldog, gradtx.dowg], ids=named)
def test_a_start_without_params_is_an_error(make):
    needs_params_to_start(make)


# As torch optimizers.


@pytest.mark.slow
def test_groups_of_dog_share_the_sums():
    params = [torch.nn.Parameter(p) for p in problem().values()]
    optimizer = gradtx.optim.DoG([{"params": [p], "lr": 0.5} for p in params], reps_rel=0.01)
    reference = WholeLoop(dog, lr=0.5, reps_rel=0.01)
    weights = run(reference, weights=True)
    for t, expected in enumerate(weights, 1):
        grads = gradients(dict(zip(problem(), params, strict=True)), t)
        for p, g in zip(params, grads.values(), strict=True):
            p.grad = g
        optimizer.step()
        for p, q in zip(params, expected.values(), strict=True):
            torch.testing.assert_close(p.detach(), q, rtol=1e-9, atol=1e-12)
