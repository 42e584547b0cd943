import pytest
import torch

import gradtx
from tests.optim.problems import descend, parameters
from tests.references import BETA, DECAY, RATE, WeightsLoop, adam_moments, first_update, follows, named


def with_decay(direction):
    """The rule of a direction `(s, t, g, p, ...)` with weight decay on the gradient or on the weights."""

    def rule(s, t, g, p, lr, weight_decay, decoupled_weight_decay, **options):
        if decoupled_weight_decay:
            return p * (1 - lr * weight_decay) - lr * direction(s, t, g, p, **options)
        return p - lr * direction(s, t, g + weight_decay * p, p, **options)

    return rule


def adagrad(
    s, t, g, p, lr=1e-2, lr_decay=0.0, weight_decay=0.0, initial_accumulator_value=0.0, eps=1e-10,
    decoupled_weight_decay=False,
):  # fmt: skip
    def direction(s, t, g, p):
        s.total = (initial_accumulator_value if t == 1 else s.total) + g**2
        return g / (s.total.sqrt() + eps)

    rate = lr / (1 + (t - 1) * lr_decay)
    return with_decay(direction)(s, t, g, p, rate, weight_decay, decoupled_weight_decay)


def adadelta(s, t, g, p, lr=1.0, rho=0.9, eps=1e-6, weight_decay=0.0, decoupled_weight_decay=False):
    def direction(s, t, g, p):
        s.q = rho * s.q + (1 - rho) * g**2
        step = (s.a + 0 * g + eps).sqrt() / (s.q + eps).sqrt() * g
        s.a = rho * s.a + (1 - rho) * step**2
        return step

    return with_decay(direction)(s, t, g, p, lr, weight_decay, decoupled_weight_decay)


def rmsprop(
    s, t, g, p, lr=1e-2, alpha=0.99, eps=1e-8, weight_decay=0.0, momentum=0.0, centered=False, eps_in_root=False,
    initial_accumulator_value=0.0, decoupled_weight_decay=False,
):  # fmt: skip
    def direction(s, t, g, p):
        s.q = alpha * (initial_accumulator_value if t == 1 else s.q) + (1 - alpha) * g**2
        s.a = alpha * s.a + (1 - alpha) * g
        spread = s.q - s.a**2 if centered else s.q
        s.b = momentum * s.b + g / ((spread + eps).sqrt() if eps_in_root else spread.sqrt() + eps)
        return s.b

    return with_decay(direction)(s, t, g, p, lr, weight_decay, decoupled_weight_decay)


def rprop(s, t, g, p, lr=1e-2, etas=(0.5, 1.2), step_sizes=(1e-6, 50.0)):
    if t == 1:
        s.size, s.last = torch.full_like(p, lr), torch.zeros_like(p)
    a = torch.sign(g) * torch.sign(s.last)
    factor = torch.ones_like(p)
    factor[a > 0], factor[a < 0] = etas[1], etas[0]
    s.size = (s.size * factor).clamp(*step_sizes)
    s.last = torch.where(a < 0, torch.zeros_like(g), g)
    return p - torch.sign(s.last) * s.size


def adamax(s, t, g, p, lr=2e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, decoupled_weight_decay=False):
    def direction(s, t, g, p):
        s.m = betas[0] * s.m + (1 - betas[0]) * g
        s.u = torch.maximum(betas[1] * s.u + 0 * g, g.abs() + eps)
        return s.m / s.u / (1 - betas[0] ** t)

    return with_decay(direction)(s, t, g, p, lr, weight_decay, decoupled_weight_decay)


def nadam(
    s, t, g, p, lr=2e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, momentum_decay=4e-3,
    decoupled_weight_decay=False,
):  # fmt: skip
    def direction(s, t, g, p):
        mu, ahead = (betas[0] * (1 - 0.5 * 0.96 ** (i * momentum_decay)) for i in (t, t + 1))
        s.product = mu * (1 if t == 1 else s.product)
        _, v = adam_moments(s, t, g, betas)
        return ((1 - mu) / (1 - s.product) * g + ahead / (1 - s.product * ahead) * s.m) / (v.sqrt() + eps)

    return with_decay(direction)(s, t, g, p, lr, weight_decay, decoupled_weight_decay)


# What torch's optimizer of the name takes too.
SHARED = [
    (gradtx.adagrad, "Adagrad", adagrad, {}),
    (gradtx.adagrad, "Adagrad", adagrad, {"lr": 0.1, "lr_decay": 0.2, "weight_decay": 0.2, "eps": 0.01}),
    (gradtx.adagrad, "Adagrad", adagrad, {"lr": 0.1, "lr_decay": 0.01, "initial_accumulator_value": 0.3}),
    (gradtx.adadelta, "Adadelta", adadelta, {}),
    (gradtx.adadelta, "Adadelta", adadelta, {"lr": 0.7, "rho": 0.6, "eps": 1e-3, "weight_decay": 0.2}),
    (gradtx.adadelta, "Adadelta", adadelta, {"lr": 3.0, "rho": 0.0}),
    (gradtx.rmsprop, "RMSprop", rmsprop, {}),
    (gradtx.rmsprop, "RMSprop", rmsprop, {"lr": 0.02, "alpha": 0.8, "eps": 1e-3, "weight_decay": 0.2}),
    (gradtx.rmsprop, "RMSprop", rmsprop, {"momentum": 0.7, "centered": True, "alpha": 0.9, "eps": 0.01}),
    (gradtx.rmsprop, "RMSprop", rmsprop, {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.2}),
    (gradtx.rprop, "Rprop", rprop, {}),
    (gradtx.rprop, "Rprop", rprop, {"lr": 0.1, "etas": (0.3, 1.5), "step_sizes": (0.02, 0.2)}),
    (gradtx.adamax, "Adamax", adamax, {}),
    (gradtx.adamax, "Adamax", adamax, {"lr": 0.02, "betas": (0.7, 0.8), "eps": 0.05, "weight_decay": 0.2}),
    (gradtx.adamax, "Adamax", adamax, {"lr": 0.02, "betas": (0.0, 0.5)}),
    (gradtx.nadam, "NAdam", nadam, {}),
    (gradtx.nadam, "NAdam", nadam, {"lr": 0.02, "betas": (0.7, 0.8), "eps": 0.05, "weight_decay": 0.2}),
    (gradtx.nadam, "NAdam", nadam, {"lr": 0.02, "momentum_decay": 0.5, "betas": (0.0, 0.9)}),
    (gradtx.nadam, "NAdam", nadam, {"lr": 0.02, "weight_decay": 0.2, "decoupled_weight_decay": True}),
]
DECOUPLED = {"weight_decay": 0.2, "decoupled_weight_decay": True}
TF = {"eps_in_root": True, "initial_accumulator_value": 1.0, "alpha": 0.9, "eps": 1e-10, "momentum": 0.5}
OPTIONS = [
    *((alias, rule, options) for alias, _, rule, options in SHARED),
    (gradtx.adagrad, adagrad, {"lr": 0.1, "lr_decay": 0.5, **DECOUPLED}),
    (gradtx.adagrad, adagrad, {"lr": RATE, "lr_decay": DECAY, "weight_decay": DECAY, "eps": BETA}),
    (gradtx.adadelta, adadelta, {"lr": 0.7, **DECOUPLED}),
    (gradtx.adadelta, adadelta, {"lr": RATE, "rho": BETA, "weight_decay": DECAY, "eps": DECAY}),
    (gradtx.rmsprop, rmsprop, {"lr": 0.02, "momentum": 0.7, **DECOUPLED}),
    (gradtx.rmsprop, rmsprop, TF),
    (gradtx.rmsprop, rmsprop, {"lr": RATE, "alpha": BETA, "momentum": BETA, "weight_decay": DECAY, "eps": DECAY}),
    (gradtx.rprop, rprop, {"lr": 0.1, "etas": (BETA, 1.2), "step_sizes": (RATE, 0.5)}),
    (gradtx.adamax, adamax, {"lr": 0.02, **DECOUPLED}),
    (gradtx.adamax, adamax, {"lr": RATE, "betas": (BETA, BETA), "weight_decay": DECAY}),
    (gradtx.nadam, nadam, {"lr": RATE, "betas": (BETA, BETA), "weight_decay": DECAY, "momentum_decay": DECAY}),
]


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=named)
def test_the_weights_follow_the_loop(alias, rule, options):
    follows(alias(**options), WeightsLoop(rule, **options))


def test_decoupled_decay_of_adagrad_falls_with_its_rate():
    tx = gradtx.adagrad(lr=1.0, lr_decay=1.0, weight_decay=0.5, decoupled_weight_decay=True)
    assert [first_update(tx, [0.0], [4.0], steps=n) for n in (1, 2, 3, 4)] == [[-2.0], [-1.0], [-2 / 3], [-0.5]]


def test_a_literal_momentum_of_zero_keeps_no_buffer():
    for momentum, kept in ((0.0, False), (0.1, True)):
        params = parameters()
        optimizer = gradtx.optim.RMSprop(params.values(), momentum=momentum)
        descend(optimizer, params, 1)
        assert ("momentum_buffer" in optimizer.state[params["body.bias"]]) == kept


def test_a_group_is_checked_as_the_constructor_is():
    params = parameters()
    optimizer = gradtx.optim.Rprop(params.values())
    optimizer.param_groups[0]["etas"] = (0.5, 0.9)
    with pytest.raises(ValueError, match=r"^rprop: etas\[1\] must be in \(1, inf\), got 0.9$"):
        descend(optimizer, params, 1)
