import pytest
import torch

import gradtx
from tests.algorithms.loops import largest_so_far
from tests.references import BETA, DECAY, RATE, Loop, Transformed, follows, named, problem, run


def adanorm(
    s, t, g, p, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, r=0.95, weight_decay=0.0, decoupled_weight_decay=False,
    accumulate_eps=False, amsgrad=False,
):  # fmt: skip
    b1, b2 = betas
    if not decoupled_weight_decay:
        g = g + weight_decay * p
    n = g.norm().item()
    s.e = r * s.e + (1 - r) * n
    s.seen.add(s.e > n)
    s.m = b1 * s.m + (1 - b1) * (g * s.e / n if s.e > n else g)
    s.v = b2 * s.v + (1 - b2) * g**2 + (eps if accumulate_eps else 0.0)
    v = largest_so_far(s) if amsgrad else s.v
    step = -lr * s.m / (1 - b1**t) / ((v / (1 - b2**t)).sqrt() + eps)
    return step - lr * weight_decay * p if decoupled_weight_decay else step


OPTIONS = [
    (gradtx.adanorm, adanorm, {}),
    (gradtx.adanorm, adanorm, {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3, "r": 0.8, "weight_decay": 0.2}),
    (gradtx.adanorm, adanorm, {"lr": 0.02, "r": 0.6, "weight_decay": 0.2, "decoupled_weight_decay": True}),
    (gradtx.adanorm, adanorm, {"lr": 0.02, "r": 0.6, "eps": 0.01, "accumulate_eps": True}),
    (gradtx.adanorm, adanorm, {"lr": 0.02, "betas": (0.8, 0.7), "amsgrad": True, "accumulate_eps": True, "eps": 0.01}),
    (gradtx.adanorm, adanorm, {"lr": 0.02, "betas": (0.8, 0.7), "amsgrad": True}),
    (gradtx.adanorm, adanorm, {"lr": RATE, "betas": (BETA, BETA), "r": BETA, "weight_decay": DECAY}),
]


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=named)
def test_the_weights_follow_the_loop(alias, rule, options):
    follows(alias(**options), Loop(rule, **options))


@pytest.mark.parametrize(("rule", "options", "branches"), [(adanorm, {"lr": 0.02, "r": 0.6}, {True, False})], ids=named)
def test_the_options_above_take_every_branch(rule, options, branches):
    reference = Loop(rule, **options)
    run(reference)
    assert reference.seen == branches


DOUBLE = {"dtype": torch.float64}


def tensor(*numbers):
    return torch.tensor(numbers, **DOUBLE)


def averages(tx, *grads):
    step = Transformed(tx)
    for grad in grads:
        step({"w": grad}, {"w": torch.zeros_like(grad)})
    return {slot: value["w"] for slot, value in step.state["scale_by_adanorm"].items()}


def test_a_zero_gradient_stays_zero_and_counts_in_the_average_norm():
    kept = averages(gradtx.scale_by_adanorm((0.0, 0.0), r=0.5), tensor(8.0), tensor(0.0))
    assert (kept["exp_avg"].tolist(), kept["exp_grad_norm"].item()) == ([0.0], 2.0)


def test_the_average_norm_is_one_float64_a_leaf():
    params = {name: param.bfloat16() for name, param in problem().items()}
    kept = gradtx.scale_by_adanorm().init(params)["scale_by_adanorm"]["exp_grad_norm"]
    assert {(x.shape, x.dtype) for x in kept.values()} == {((), torch.float64)}
