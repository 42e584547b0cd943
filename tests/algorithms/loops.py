"""Pieces of loops, and steps of torch optimizers, that the tests of several methods share."""

import math

import pytest
import torch

from tests.references import BETA, DECAY, RATE, Published, Transformed, WeightsLoop, problem, weights_follow

# Options of Adam's relatives.
COUPLED = {"weight_decay": 0.3}
DECOUPLED = {"weight_decay": 0.3, "decoupled_weight_decay": True}
SOME = {"lr": 0.02, "betas": (0.8, 0.95), "eps": 0.05}
SCHEDULED = {"lr": RATE, "betas": (BETA, BETA), "weight_decay": DECAY}
COMMON = ({}, {**SOME, **COUPLED}, {**SOME, **DECOUPLED}, {**SCHEDULED, "eps": 0.01})


def stepped(p, lr, direction, weight_decay, decoupled):
    return (p * (1 - lr * weight_decay) if decoupled else p) - lr * direction


def decayed(g, p, weight_decay, decoupled):
    return g if decoupled else g + weight_decay * p


def hat(t, m, v, betas, eps):
    return m / (1 - betas[0] ** t) * math.sqrt(1 - betas[1] ** t) / (v.sqrt() + eps)


def with_decay(direction):
    """The rule of a direction `(s, t, g, p, ...)` with weight decay on the gradient or on the weights."""

    def rule(s, t, g, p, lr, weight_decay, decoupled_weight_decay, **options):
        if decoupled_weight_decay:
            return p * (1 - lr * weight_decay) - lr * direction(s, t, g, p, **options)
        return p - lr * direction(s, t, g + weight_decay * p, p, **options)

    return rule


def largest_so_far(s):
    s.top = torch.maximum(s.top + 0 * s.v, s.v)
    return s.top


def along_rows(x):
    return x / (x.abs() if x.ndim == 0 else x.norm(dim=0, keepdim=True)).clamp(min=1e-12)


def agreement(s, m, g, decay_rate):
    s.s = decay_rate * s.s + (1 - decay_rate) * along_rows(m) * along_rows(g)
    return s.s


def centralized(g):
    return g - g.flatten(1).mean(dim=1).reshape(-1, *[1] * (g.ndim - 1)) if g.ndim > 1 else g


def updates_of(tx, *grads):
    """The updates of one leaf."""
    step = Transformed(tx)
    grads = [torch.tensor(grad, dtype=torch.float64) for grad in grads]
    return [step({"w": grad}, {"w": torch.zeros_like(grad)})["w"].tolist() for grad in grads]


# As torch optimizers.


def step_along_cosines(optimizer, params, t, scale=1.0):
    for i, param in enumerate(params):
        param.grad = scale * torch.cos(param.detach() * (i + 1) + t)
    optimizer.step()


def weights(count=2):
    return [torch.nn.Parameter(x) for x in list(problem().values())[:count]]


def groups_follow(cls, rule, tolerance):
    """Compare an optimizer whose groups have rates of their own, and warm up from 0, with a loop that has them."""
    rates = dict(zip(problem(), (0.05, 0.02, 0.0, 0.1, 0.05, 0.01), strict=True))

    def make(params):
        groups = [{"params": [param], "lr": lr} for param, lr in zip(params, rates.values(), strict=True)]
        optimizer = cls(groups)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: min(t / 5, 1.0))
        optimizer.register_step_post_hook(lambda *_: scheduler.step())
        return optimizer

    def loop(s, t, g, p):
        return rule(s, t, g, p, lr=rates[s.name] * min((t - 1) / 5, 1.0))

    weights_follow(Published(make), WeightsLoop(loop), tolerance=tolerance)


def needs_params_to_start(make):
    with pytest.raises(TypeError, match="'params'"):
        make().init()
    with pytest.raises(
        ValueError, match=rf"state lacks 'scale_by_{make.__name__}' of leaf '\w+'; pass the state made by"
    ):
        make().update(problem(), make().init(None), problem())
