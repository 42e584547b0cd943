import math

import pytest
import torch

import gradtx
from tests import references as ref
from tests.references import BETA, DECAY, LONG, RATE


def lamb(
    s, t, g, p, lr=1e-3, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.0, bias_correction=True, grad_averaging=True,
    max_grad_norm=None, trust_clip=False, always_adapt=True,
):  # fmt: skip
    b1, b2 = betas
    if max_grad_norm is not None:
        s[""].seen.add("clipped" if ref.global_norm(g) > max_grad_norm else "short")
        shrink = max(1.0, ref.global_norm(g) / max_grad_norm)
        g = {name: x / shrink for name, x in g.items()}
    new = {}
    for name, slots in s.items():
        if not name:
            continue
        slots.m = b1 * slots.m + ((1 - b1) * g[name] if grad_averaging else g[name])
        slots.v = b2 * slots.v + (1 - b2) * g[name] ** 2
        m, v = (slots.m / (1 - b1**t), slots.v / (1 - b2**t)) if bias_correction else (slots.m, slots.v)
        r = m / (v.sqrt() + eps) + weight_decay * p[name]
        ratio = (p[name].norm() / r.norm()).item()
        if trust_clip:
            slots.seen.add("trusted" if ratio > 1 else "less")
            ratio = min(ratio, 1.0)
        if weight_decay == 0 and not always_adapt:
            ratio = 1.0
        new[name] = p[name] - lr * ratio * r
    return new


def lars(
    s, t, g, p, lr=1.0, momentum=0.9, dampening=0.0, weight_decay=0.0, nesterov=False, trust_coefficient=0.001,
    eps=1e-8, trust_clip=False, min_ndim=0,
):  # fmt: skip
    d = g
    if p.ndim >= min_ndim:
        ratio = (trust_coefficient * p.norm() / (g.norm() + weight_decay * p.norm() + eps)).item()
        if trust_clip:
            s.seen.add(ratio > lr)
            ratio = min(ratio / lr, 1.0)
        d = ratio * (g + weight_decay * p)
    if momentum == 0:
        return p - lr * d
    s.b = d if t == 1 else momentum * s.b + (1 - dampening) * d
    return p - lr * (d + momentum * s.b if nesterov else s.b)


def novograd(s, t, g, p, lr=1e-3, betas=(0.95, 0.98), eps=1e-8, weight_decay=0.0, grad_averaging=False, amsgrad=False):
    b1, b2 = betas
    n = (g**2).sum().item()
    s.v = n if s.v == 0 else b2 * s.v + (1 - b2) * n
    s.top = max(s.top, s.v)
    s.seen.add(s.top > s.v)
    d = g / (math.sqrt(s.top if amsgrad else s.v) + eps) + weight_decay * p
    s.m = b1 * s.m + ((1 - b1) * d if grad_averaging else d)
    return p - lr * s.m


def neuron_norm(x):
    return x.abs() if x.ndim < 2 else x.flatten(1).norm(dim=1).reshape(-1, *[1] * (x.ndim - 1))


def unit_neurons(x):
    if x.ndim < 2:
        return x
    rows = x.flatten(1) - x.flatten(1).mean(dim=1, keepdim=True)
    return (rows / rows.norm(dim=1, keepdim=True)).reshape(x.shape)


def nero(s, t, g, p, lr=0.01, beta=0.999, constraints=True):
    start = unit_neurons(p) if constraints else p
    if t == 1:
        s.scale = neuron_norm(start).mean().item() or 0.01
    s.v = beta * s.v + (1 - beta) * neuron_norm(g) ** 2
    moved = start - lr * s.scale * g / (s.v / (1 - beta**t)).sqrt()
    return unit_neurons(moved) if constraints else moved


def fromage(s, t, g, p, lr=0.01, p_bound=None):
    if t == 1:
        s.start = p.norm()
    x = (p - lr * p.norm() / g.norm() * g) / math.sqrt(1 + lr**2)
    if p_bound is not None:
        s.seen.add((x.norm() > p_bound * s.start).item())
        if x.norm() > p_bound * s.start:
            x = x * (p_bound * s.start / x.norm())
    return x


def sm3(s, t, g, p, lr=0.1, momentum=0.0, beta=0.0, eps=1e-30):
    if t == 1:
        s.a = [torch.zeros(n, dtype=g.dtype) for n in g.shape] or [torch.zeros((), dtype=g.dtype)]
    u, c = torch.empty_like(g), torch.empty_like(g)
    for at in (
        torch.cartesian_prod(*map(torch.arange, g.shape)).reshape(-1, max(g.ndim, 1)).tolist() if g.ndim else [()]
    ):
        at = tuple(at)
        least = min(a[i] for a, i in zip(s.a, at, strict=True)) if at else s.a[0]
        c[at] = least + g[at] ** 2 if beta == 0 else beta * least + (1 - beta) * g[at] ** 2
        u[at] = g[at] / (c[at] + eps).sqrt()
    for i, old in enumerate(s.a):
        new = c.movedim(i, 0).flatten(1).max(dim=1).values if g.ndim > 1 else c.clone()
        s.a[i] = torch.maximum(old, new) if beta > 0 else new
    s.m = momentum * s.m + (1 - momentum) * u
    return p - lr * s.m


def amos(
    s, t, g, p, lr=1e-3, beta=0.999, momentum=0.0, extra_l2=0.0, eta=None, slot="scalar", c_coef=0.25, d_coef=0.25,
    eps=2**-125,
):  # fmt: skip
    if eta is None:
        eta = 0.5 if p.ndim <= 1 else math.sqrt(2 / p.shape[1]) if p.ndim == 2 else math.sqrt(1 / p.shape[1])
    elif callable(eta):
        eta = eta(p.shape)
    fresh = g**2
    if slot == "scalar":
        fresh = fresh.mean()
    elif slot == "rows" and g.ndim > 1:
        fresh = fresh.flatten(1).mean(dim=1).reshape(-1, *[1] * (g.ndim - 1))
    s.v = beta * s.v + (1 - beta) * fresh
    r = (1 - beta**t) / s.v.clamp(min=eps)
    c = (1 + c_coef * math.sqrt(lr) * s.b) ** -0.5
    gamma = c * lr**2 * r * fresh
    d = 1 / (1 + d_coef * math.sqrt(lr * eta) * s.b)
    u = d * (lr * eta * r.sqrt() * g + (gamma / 2 + extra_l2) * p)
    s.b = s.b + gamma * (1 + s.b)
    s.m = momentum * s.m + (1 - momentum) * u
    return p - s.m


def fan_in(shape):
    return 1 / (1 + math.prod(shape[1:]))


OPTIONS = [
    (gradtx.lamb, lamb, {}),
    (gradtx.lamb, lamb, {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.3}),
    (gradtx.lamb, lamb, {"lr": 0.02, "bias_correction": False, "weight_decay": 0.1}),
    (gradtx.lamb, lamb, {"lr": 0.02, "betas": (0.7, 0.9), "grad_averaging": False, "max_grad_norm": 0.3, "eps": 0.1}),
    (gradtx.lamb, lamb, {"lr": 0.02, "trust_clip": True, "weight_decay": 0.2}),
    (gradtx.lamb, lamb, {"lr": 0.02, "always_adapt": False}),
    (gradtx.lamb, lamb, {"lr": 0.02, "always_adapt": False, "weight_decay": 0.2}),
    (gradtx.lamb, lamb, {"lr": RATE, "betas": (BETA, BETA), "weight_decay": DECAY, "eps": 0.1, "max_grad_norm": BETA}),
    (gradtx.lars, lars, {}),
    (gradtx.lars, lars, {"lr": 0.5, "weight_decay": 0.3, "trust_coefficient": 0.05, "eps": 0.1, "dampening": 0.3}),
    (gradtx.lars, lars, {"lr": 0.5, "weight_decay": 0.3, "trust_coefficient": 0.05, "momentum": 0.0, "eps": 0.0}),
    (gradtx.lars, lars, {"lr": 0.5, "weight_decay": 0.3, "trust_coefficient": 0.05, "nesterov": True, "min_ndim": 2}),
    (gradtx.lars, lars, {"lr": 0.2, "weight_decay": 0.3, "trust_coefficient": 0.1, "trust_clip": True}),
    (gradtx.lars, lars, {"lr": RATE, "momentum": BETA, "weight_decay": DECAY, "trust_clip": True, "min_ndim": 1}),
    (gradtx.novograd, novograd, {}),
    (gradtx.novograd, novograd, {"lr": 0.02, "betas": (0.8, 0.6), "eps": 0.1, "weight_decay": 0.3}),
    (gradtx.novograd, novograd, {"lr": 0.02, "betas": (0.8, 0.6), "weight_decay": 0.3, "grad_averaging": True}),
    (gradtx.novograd, novograd, {"lr": 0.02, "betas": (0.8, 0.6), "weight_decay": 0.3, "amsgrad": True}),
    (gradtx.novograd, novograd, {"lr": RATE, "betas": (BETA, BETA), "weight_decay": DECAY}),
    (gradtx.nero, nero, {}),
    (gradtx.nero, nero, {"lr": 0.1, "beta": 0.7}),
    (gradtx.nero, nero, {"lr": 0.1, "beta": 0.7, "constraints": False}),
    (gradtx.nero, nero, {"lr": RATE, "beta": BETA}),
    (gradtx.fromage, fromage, {}),
    (gradtx.fromage, fromage, {"lr": 0.1}),
    (gradtx.fromage, fromage, {"lr": 0.3, "p_bound": 1.0}),
    (gradtx.fromage, fromage, {"lr": RATE, "p_bound": 1.01}),
    (gradtx.sm3, sm3, {}),
    (gradtx.sm3, sm3, {"lr": 0.03, "momentum": 0.8, "eps": 0.1}),
    (gradtx.sm3, sm3, {"lr": 0.03, "beta": 0.6}),
    (gradtx.sm3, sm3, {"lr": RATE, "momentum": BETA, "beta": BETA}),
    (gradtx.amos, amos, {}),
    (gradtx.amos, amos, {"lr": 0.1, "beta": 0.9, "extra_l2": 0.1, "c_coef": 2.0, "d_coef": 3.0, "momentum": 0.8}),
    (gradtx.amos, amos, {"lr": 0.3, "beta": 0.9, "slot": "full", "eta": 0.2}),
    (gradtx.amos, amos, {"lr": 0.3, "beta": 0.9, "slot": "rows", "eta": fan_in, "c_coef": 2.0}),
    (gradtx.amos, amos, {"lr": 0.3, "beta": 0.9, "eps": 0.01, "eta": RATE}),
    (gradtx.amos, amos, {"lr": RATE, "beta": BETA, "momentum": BETA, "extra_l2": DECAY, "c_coef": DECAY}),
]


def reference(rule, options):
    return (ref.TreeLoop if rule is lamb else ref.WeightsLoop)(rule, **options)


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=ref.named)
def test_the_weights_follow_the_loop(alias, rule, options):
    ref.follows(alias(**options), reference(rule, options))


@pytest.mark.parametrize(
    ("rule", "options", "seen"),
    [
        (lamb, {"lr": 0.02, "max_grad_norm": 0.3}, {"clipped", "short"}),
        (lamb, {"lr": 0.02, "trust_clip": True, "weight_decay": 0.2}, {"trusted", "less"}),
        (lars, {"lr": 0.2, "weight_decay": 0.3, "trust_coefficient": 0.1, "trust_clip": True}, {True, False}),
        (novograd, {"lr": 0.02, "betas": (0.8, 0.6), "amsgrad": True}, {True, False}),
        (fromage, {"lr": 0.3, "p_bound": 1.0}, {True, False}),
    ],
    ids=ref.named,
)
def test_the_options_above_take_both_branches(rule, options, seen):
    loop = reference(rule, options)
    ref.run(loop, steps=LONG)
    assert loop.seen == seen


# What papers promise, and where they are silent.


def test_decay_stays_out_of_novograds_division():
    # the norm is 5: 3 / 5 + 2 and 4 / 5, times the rate
    assert ref.first_update(
        gradtx.novograd(lr=0.1, weight_decay=1.0, eps=0.0), [3.0, 4.0], [2.0, 0.0]
    ) == pytest.approx([-0.26, -0.08])


def test_the_weights_of_nero_stay_unit_neurons():
    params, tx = gradtx.project_neurons(ref.problem()), gradtx.nero(lr=0.3)
    state = tx.init(params)
    for sign in (1, -1, 1):
        updates, state = tx.update({name: sign * (2 + p).exp() for name, p in params.items()}, state, params)
        params = gradtx.apply_updates(params, updates)
        again = gradtx.project_neurons(params)
        for name in params:
            torch.testing.assert_close(params[name], again[name], rtol=1e-12, atol=1e-12)
    assert params["matrix"].norm() == pytest.approx(2.0)  # four neurons


def test_neurons_of_one_weight_cannot_be_constrained():
    params = {"w": torch.ones(3, 1)}
    with pytest.raises(
        ValueError, match=r"^project_neurons: neurons of shape \(3, 1\) have a single weight.*partition"
    ):
        gradtx.nero().init(params)
    tx = gradtx.nero(constraints=False)
    assert tx.update(params, tx.init(params), params)[0]["w"].isfinite().all()


# Errors.


@pytest.mark.parametrize("options", [{"momentum": 0.0}, {"dampening": 0.1}], ids=str)
def test_lars_with_nesterov_but_without_momentum_or_with_dampening_is_an_error(options):
    with pytest.raises(ValueError, match=r"^lars: .*nesterov needs a momentum above 0 and a dampening of 0$"):
        gradtx.lars(nesterov=True, **options)
