import math

import pytest
import torch
from adabelief_pytorch import AdaBelief

import gradtx
from tests import references as ref
from tests.references import BETA, DECAY, PUBLISHED, RATE


def stepped(p, lr, direction, weight_decay, decoupled):
    return (p * (1 - lr * weight_decay) if decoupled else p) - lr * direction


def decayed(g, p, weight_decay, decoupled):
    return g if decoupled else g + weight_decay * p


def hat(t, m, v, betas, eps):
    return m / (1 - betas[0] ** t) * math.sqrt(1 - betas[1] ** t) / (v.sqrt() + eps)


def adabelief(
    s, t, g, p, lr=1e-3, betas=(0.9, 0.999), eps=1e-16, weight_decay=0.0, decoupled_weight_decay=True,
    fixed_decay=False, rectify=True, degenerated_to_sgd=True, amsgrad=False,
):  # fmt: skip
    m, v = ref.belief_moments(s, decayed(g, p, weight_decay, decoupled_weight_decay), betas, eps, amsgrad)
    if rectify:
        direction = ref.rectified(s, t, m, v, betas, eps, 5.0, degenerated_to_sgd)
    else:
        direction = m / (1 - betas[0] ** t) / (v.sqrt() / math.sqrt(1 - betas[1] ** t) + eps)
    if fixed_decay and decoupled_weight_decay:
        return p * (1 - weight_decay) - lr * direction
    return stepped(p, lr, direction, weight_decay, decoupled_weight_decay)


def radam(
    s, t, g, p, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, decoupled_weight_decay=False,
    rho_threshold=5.0, degenerated_to_sgd=True,
):  # fmt: skip
    ref.adam_moments(s, t, decayed(g, p, weight_decay, decoupled_weight_decay), betas)
    direction = ref.rectified(s, t, s.m, s.v, betas, eps, rho_threshold, True)
    if not degenerated_to_sgd and ref.rectifier(t, betas[1], rho_threshold) is None:
        return p
    return stepped(p, lr, direction, weight_decay, decoupled_weight_decay)


def yogi(
    s, t, g, p, lr=1e-2, betas=(0.9, 0.999), eps=1e-3, initial_accumulator_value=1e-6, weight_decay=0.0,
    decoupled_weight_decay=False,
):  # fmt: skip
    m, v = ref.yogi_moments(s, t, decayed(g, p, weight_decay, decoupled_weight_decay), betas, initial_accumulator_value)
    return stepped(p, lr, hat(t, m, v, betas, eps), weight_decay, decoupled_weight_decay)


def adamd(s, t, g, p, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, decoupled_weight_decay=False):
    ref.adam_moments(s, t, decayed(g, p, weight_decay, decoupled_weight_decay), betas)
    direction = math.sqrt(1 - betas[1] ** t) * s.m / (s.v.sqrt() + eps)
    return stepped(p, lr, direction, weight_decay, decoupled_weight_decay)


def diffgrad(s, t, g, p, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, decoupled_weight_decay=False):
    g = decayed(g, p, weight_decay, decoupled_weight_decay)
    ref.adam_moments(s, t, g, betas)
    return stepped(p, lr, ref.friction(s, g) * hat(t, s.m, s.v, betas, eps), weight_decay, decoupled_weight_decay)


def sadam(
    s, t, g, p, lr=0.1, betas=(0.9, 0.999), beta_softplus=50.0, weight_decay=0.0, decoupled_weight_decay=False,
    amsgrad=False,
):  # fmt: skip
    b1, b2 = betas
    ref.adam_moments(s, t, decayed(g, p, weight_decay, decoupled_weight_decay), betas)
    s.top = torch.maximum(s.top + 0 * s.v, s.v)
    divisor = ref.softplus((s.top if amsgrad else s.v).sqrt(), beta_softplus)
    direction = math.sqrt(1 - b2**t) / (1 - b1**t) * s.m / divisor
    return stepped(p, lr, direction, weight_decay, decoupled_weight_decay)


def padam(
    s, t, g, p, lr=0.1, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, partial=0.25, amsgrad=True,
    decoupled_weight_decay=False,
):  # fmt: skip
    b1, b2 = betas
    ref.adam_moments(s, t, decayed(g, p, weight_decay, decoupled_weight_decay), betas)
    s.top = torch.maximum(s.top + 0 * s.v, s.v)
    divisor = ((s.top if amsgrad else s.v).sqrt() + eps) ** (2 * partial)
    direction = math.sqrt(1 - b2**t) / (1 - b1**t) * s.m / divisor
    return stepped(p, lr, direction, weight_decay, decoupled_weight_decay)


COUPLED = {"weight_decay": 0.3}
DECOUPLED = {"weight_decay": 0.3, "decoupled_weight_decay": True}
SOME = {"lr": 0.02, "betas": (0.8, 0.95), "eps": 0.05}
SCHEDULED = {"lr": RATE, "betas": (BETA, BETA), "weight_decay": DECAY}
OPTIONS = [
    *(
        (alias, rule, options)
        for alias, rule in (
            (gradtx.radam, radam), (gradtx.yogi, yogi), (gradtx.adamd, adamd), (gradtx.diffgrad, diffgrad),
        )
        for options in ({}, {**SOME, **COUPLED}, {**SOME, **DECOUPLED}, {**SCHEDULED, "eps": 0.01})
    ),
    (gradtx.radam, radam, {**SOME, **COUPLED, "rho_threshold": 4.0}),
    (gradtx.radam, radam, {**SOME, **COUPLED, "rho_threshold": 7.5, "degenerated_to_sgd": False}),
    (gradtx.radam, radam, {**SOME, **DECOUPLED, "degenerated_to_sgd": False}),
    (gradtx.yogi, yogi, {**SOME, "initial_accumulator_value": 0.01}),
    (gradtx.adabelief, adabelief, {}),
    (gradtx.adabelief, adabelief, {**SOME, **COUPLED, "decoupled_weight_decay": False}),
    # fixed_decay says nothing about a coupled decay
    (gradtx.adabelief, adabelief, {**SOME, **COUPLED, "decoupled_weight_decay": False, "fixed_decay": True}),
    (gradtx.adabelief, adabelief, {**SOME, **DECOUPLED, "rectify": False}),
    (gradtx.adabelief, adabelief, {**SOME, "weight_decay": 0.01, "fixed_decay": True}),
    (gradtx.adabelief, adabelief, {**SOME, **DECOUPLED, "degenerated_to_sgd": False}),
    (gradtx.adabelief, adabelief, {**SOME, "betas": (0.8, 0.75), "amsgrad": True, "eps": 1e-4}),
    (gradtx.adabelief, adabelief, {**SOME, "betas": (0.8, 0.75), "amsgrad": True, "eps": 1e-4, "rectify": False}),
    (gradtx.adabelief, adabelief, {**SCHEDULED, "eps": 1e-3}),
    (gradtx.sadam, sadam, {}),
    (gradtx.sadam, sadam, {"lr": 0.02, "betas": (0.8, 0.95), "beta_softplus": 200.0, **COUPLED}),
    (gradtx.sadam, sadam, {"lr": 0.02, "betas": (0.8, 0.7), "beta_softplus": 5.0, **DECOUPLED, "amsgrad": True}),
    (gradtx.sadam, sadam, {**SCHEDULED, "beta_softplus": BETA}),
    (gradtx.padam, padam, {}),
    (gradtx.padam, padam, {**SOME, **COUPLED, "betas": (0.8, 0.7), "partial": 0.125}),
    (gradtx.padam, padam, {**SOME, **DECOUPLED, "amsgrad": False, "partial": 0.4}),
    (gradtx.padam, padam, {**SOME, "partial": 0.0}),
    (gradtx.padam, padam, {**SOME, "partial": 0.5, "amsgrad": False}),
    (gradtx.padam, padam, {**SCHEDULED, "partial": gradtx.Schedule(lambda step: 0.01 * step)}),
]  # fmt: skip


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=ref.named)
def test_the_weights_follow_the_loop(alias, rule, options):
    ref.follows(alias(**options), ref.WeightsLoop(rule, **options))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"betas": (0.8, 0.95), "eps": 0.05, "weight_decay": 0.1},
        {"betas": (0.8, 0.7), "weight_decay": 0.1, "amsgrad": True},
        {"weight_decay": DECAY},
    ],
    ids=str,
)
def test_adams_follows_the_loop(options):
    loop = ref.StableDecay(**options)

    def step(grads, params):
        return {name: -0.02 * direction for name, direction in loop(grads, params).items()}

    ref.follows(gradtx.adams(lr=0.02, **options), step)


# Our options, and those of theirs that have other names.


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.2},
        {"lr": 0.02, "weight_decay": 0.01, "fixed_decay": True},
        {"lr": 0.02, "weight_decay": 0.2, "degenerated_to_sgd": False},
        {"lr": 0.02, "weight_decay": 0.2, "rectify": False},
        {"lr": 0.02, "betas": (0.8, 0.75), "rectify": False, "amsgrad": True},
        {"lr": 0.02, "weight_decay": 0.2, "decoupled_weight_decay": False},
    ],
    ids=str,
)
def test_adabelief_has_the_weights_of_the_authors(options):
    theirs = {("weight_decouple" if k == "decoupled_weight_decay" else k): v for k, v in options.items()}
    published = ref.Published(AdaBelief, **theirs, print_change_log=False)
    ref.weights_follow(gradtx.adabelief(**options), published, tolerance=PUBLISHED)


@pytest.mark.slow
def test_the_mean_of_adams_spans_parameter_groups():
    def trained(groups):
        params = [torch.nn.Parameter(param) for param in ref.problem().values()]
        optimizer = gradtx.optim.AdamS(groups(params), lr=0.02, weight_decay=0.3)
        for t in range(5):
            for i, param in enumerate(params):
                param.grad = (i + 1) * (param.detach() + t).sin()
            optimizer.step()
        return params

    one, two = trained(lambda p: p), trained(lambda p: [{"params": p[:2]}, {"params": p[2:]}])
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-14, atol=0)
