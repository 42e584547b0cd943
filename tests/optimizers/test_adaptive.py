import math

import pytest
import torch

import gradtx
from tests.references import BETA, DECAY, RATE, Loop, TreeLoop, adam_moments, follows, named, problem, run


def loop(rule, **options):
    return (TreeLoop if rule in (avagrad, swats) else Loop)(rule, **options)


def largest_so_far(s):
    s.top = torch.maximum(s.top + 0 * s.v, s.v)
    return s.top


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


def adamod(
    s, t, g, p, lr=1e-3, betas=(0.9, 0.999), beta3=0.999, eps=1e-8, weight_decay=0.0, decoupled_weight_decay=True
):
    b1, b2 = betas
    if not decoupled_weight_decay:
        g = g + weight_decay * p
    adam_moments(s, t, g, betas)
    rate = lr * math.sqrt(1 - b2**t) / (1 - b1**t) / (s.v.sqrt() + eps)
    s.n = beta3 * s.n + (1 - beta3) * rate
    s.seen.update((rate < s.n).flatten().tolist())
    step = -torch.minimum(rate, s.n) * s.m
    return step - lr * weight_decay * p if decoupled_weight_decay else step


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


def avagrad(
    s, t, g, p, lr=0.1, betas=(0.9, 0.999), eps=0.1, weight_decay=0.0, decoupled_weight_decay=False,
    lagged_norm=False,
):  # fmt: skip
    b1, b2 = betas
    d = sum(x.numel() for x in g.values())

    def scale(v, t):
        """gamma from the v of all leaves, corrected as that of step t."""
        total = sum(((1 / ((v[name] / (1 - b2**t)).sqrt() + eps)) ** 2).sum().item() for name in g)
        return 1 / math.sqrt(total / d)

    old = {name: s[name].v + 0 * g[name] for name in g}
    new = dict(p)
    for name in g:
        u = g[name] if decoupled_weight_decay else g[name] + weight_decay * p[name]
        s[name].m = b1 * s[name].m + (1 - b1) * u
        s[name].v = b2 * s[name].v + (1 - b2) * u**2
        if t >= 2:
            gamma = s[""].gamma if lagged_norm else scale(old, t - 1)
            eta = 1 / ((old[name] / (1 - b2 ** (t - 1))).sqrt() + eps)
            new[name] = p[name] - lr * gamma * eta * s[name].m / (1 - b1**t)
            if decoupled_weight_decay:
                new[name] = new[name] - lr * weight_decay * p[name]
    s[""].gamma = scale(old, t)
    return new


def adashift(s, t, g, p, lr=1e-3, betas=(0.9, 0.999), keep_num=10, eps=1e-10, reduce="max"):
    b1, b2 = betas
    s.past = [*(s.past or []), g]
    if t <= keep_num:
        return 0 * p
    square = s.past[t - keep_num - 1] ** 2
    square = {"max": square.max(), "mean": square.mean(), "none": square}[reduce]
    s.v = b2 * s.v + (1 - b2) * square
    weights = [b1**i for i in range(keep_num)]
    m = sum(w * s.past[t - 1 - i] for i, w in enumerate(weights)) / sum(weights)
    return -lr * m / ((s.v / (1 - b2 ** (t - keep_num))).sqrt() + eps)


def adasmooth(
    s, t, g, p, lr=1e-3, betas=(0.5, 0.99), eps=1e-6, weight_decay=0.0, decoupled_weight_decay=False, reset_every=None
):
    r1, r2 = betas
    if not decoupled_weight_decay:
        g = g + weight_decay * p
    moved = p - s.before if t > 1 else 0 * p
    s.before = p
    s.S, s.N = s.S + moved, s.N + moved.abs()
    if reset_every is not None and (t - 1) % reset_every == 0:
        s.S, s.N = 0 * p, 0 * p
    e = torch.where(s.N == 0, 0.0, s.S.abs() / s.N)
    c = ((r2 - r1) * e + (1 - r2)) ** 2
    s.v = c * g**2 + (1 - c) * s.v
    step = -lr * g / (s.v + eps).sqrt()
    return step - lr * weight_decay * p if decoupled_weight_decay else step


def swats(s, t, g, p, lr=1e-3, betas=(0.9, 0.999), eps=1e-9, weight_decay=0.0, amsgrad=False, switch_tol=None):
    (b1, b2), common = betas, s[""]
    g = {name: g[name] + weight_decay * p[name] for name in g}
    common.seen.add("sgd" if common.sgd else "adam")
    if common.sgd:
        for name in g:
            s[name].b = b1 * s[name].b + g[name]
        return {name: p[name] - (1 - b1) * common.rate * s[name].b for name in g}
    steps = {}
    for name in g:
        adam_moments(s[name], t, g[name], betas)
        v = largest_so_far(s[name]) if amsgrad else s[name].v
        steps[name] = -lr * math.sqrt(1 - b2**t) / (1 - b1**t) * s[name].m / (v.sqrt() + eps)
    ss = sum((steps[name] * steps[name]).sum().item() for name in g)
    sg = sum((steps[name] * g[name]).sum().item() for name in g)
    if sg != 0:
        gamma = ss / -sg
        common.l = b2 * common.l + (1 - b2) * gamma
        rate = common.l / (1 - b2**t)
        if t > 1 and rate > 0 and abs(rate - gamma) < (eps if switch_tol is None else switch_tol):
            common.sgd, common.rate = True, rate
    return {name: p[name] + steps[name] for name in g}


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
    (gradtx.adamod, adamod, {}),
    (gradtx.adamod, adamod, {"lr": 0.02, "betas": (0.8, 0.95), "beta3": 0.7, "eps": 1e-3, "weight_decay": 0.2}),
    (gradtx.adamod, adamod, {"lr": 0.02, "beta3": 0.9, "weight_decay": 0.2, "decoupled_weight_decay": False}),
    (gradtx.adamod, adamod, {"lr": RATE, "betas": (BETA, BETA), "beta3": BETA, "weight_decay": DECAY}),
    (gradtx.adanorm, adanorm, {}),
    (gradtx.adanorm, adanorm, {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3, "r": 0.8, "weight_decay": 0.2}),
    (gradtx.adanorm, adanorm, {"lr": 0.02, "r": 0.6, "weight_decay": 0.2, "decoupled_weight_decay": True}),
    (gradtx.adanorm, adanorm, {"lr": 0.02, "r": 0.6, "eps": 0.01, "accumulate_eps": True}),
    (gradtx.adanorm, adanorm, {"lr": 0.02, "betas": (0.8, 0.7), "amsgrad": True, "accumulate_eps": True, "eps": 0.01}),
    (gradtx.adanorm, adanorm, {"lr": 0.02, "betas": (0.8, 0.7), "amsgrad": True}),
    (gradtx.adanorm, adanorm, {"lr": RATE, "betas": (BETA, BETA), "r": BETA, "weight_decay": DECAY}),
    (gradtx.avagrad, avagrad, {}),
    (gradtx.avagrad, avagrad, {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.2}),
    (gradtx.avagrad, avagrad, {"lr": 0.02, "weight_decay": 0.2, "decoupled_weight_decay": True}),
    (gradtx.avagrad, avagrad, {"lr": 0.02, "betas": (0.8, 0.95), "eps": 0.3, "lagged_norm": True}),
    (gradtx.avagrad, avagrad, {"weight_decay": 0.2, "decoupled_weight_decay": True, "lagged_norm": True}),
    (gradtx.avagrad, avagrad, {"lr": RATE, "betas": (BETA, BETA), "weight_decay": DECAY}),
    (gradtx.avagrad, avagrad, {"lr": RATE, "betas": (BETA, BETA), "weight_decay": DECAY, "lagged_norm": True}),
    (gradtx.adashift, adashift, {}),
    (gradtx.adashift, adashift, {"lr": 0.02, "betas": (0.8, 0.95), "keep_num": 4, "eps": 1e-3}),
    (gradtx.adashift, adashift, {"lr": 0.02, "betas": (0.8, 0.95), "keep_num": 5, "reduce": "mean"}),
    (gradtx.adashift, adashift, {"lr": 0.002, "betas": (0.8, 0.95), "keep_num": 3, "reduce": "none"}),
    (gradtx.adashift, adashift, {"lr": 0.02, "betas": (0.0, 0.9), "keep_num": 1}),
    (gradtx.adashift, adashift, {"lr": 0.02, "betas": (0.0, 0.9), "keep_num": 2}),
    (gradtx.adashift, adashift, {"lr": RATE, "betas": (BETA, BETA), "keep_num": 4}),
    (gradtx.adasmooth, adasmooth, {}),
    (gradtx.adasmooth, adasmooth, {"lr": 0.002, "betas": (0.3, 0.95), "eps": 1e-3, "weight_decay": 0.2}),
    (gradtx.adasmooth, adasmooth, {"lr": 0.002, "weight_decay": 0.2, "decoupled_weight_decay": True}),
    (gradtx.adasmooth, adasmooth, {"lr": 0.002, "betas": (0.3, 0.95), "reset_every": 5}),
    (gradtx.adasmooth, adasmooth, {"lr": 0.002, "reset_every": 1}),
    (gradtx.adasmooth, adasmooth, {"lr": RATE, "betas": (0.3, BETA), "weight_decay": DECAY, "reset_every": 7}),
    (gradtx.swats, swats, {}),
    (gradtx.swats, swats, {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.2, "switch_tol": 0.03}),
    (gradtx.swats, swats, {"lr": 0.02, "betas": (0.8, 0.7), "amsgrad": True, "switch_tol": 0.02}),
    (gradtx.swats, swats, {"lr": 0.02, "eps": 0.01}),
    (gradtx.swats, swats, {"lr": RATE, "betas": (BETA, 0.9), "weight_decay": DECAY, "switch_tol": 0.02}),
]


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=named)
def test_the_weights_follow_the_loop(alias, rule, options):
    follows(alias(**options), loop(rule, **options))


@pytest.mark.parametrize(
    ("rule", "options", "branches"),
    [
        (adabound, {"lr": 0.02, **NARROW}, {"low", "high", "free"}),
        (adamod, {"lr": 0.02, "beta3": 0.7}, {True, False}),
        (adanorm, {"lr": 0.02, "r": 0.6}, {True, False}),
        (
            swats,
            {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.2, "switch_tol": 0.03},
            {"adam", "sgd"},
        ),
        (swats, {"lr": 0.02, "betas": (0.8, 0.7), "amsgrad": True, "switch_tol": 0.02}, {"adam", "sgd"}),
        (swats, {"lr": 0.02, "eps": 0.01}, {"adam", "sgd"}),
    ],
    ids=named,
)
def test_the_options_above_take_every_branch(rule, options, branches):
    reference = loop(rule, **options)
    run(reference)
    assert reference.seen == branches


# As torch optimizers.


def stepped(optimizer, params, t, scale=1.0):
    for i, param in enumerate(params):
        param.grad = scale * torch.cos(param.detach() * (i + 1) + t)
    optimizer.step()


def weights(count=2):
    return [torch.nn.Parameter(x) for x in list(problem().values())[:count]]


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
        stepped(optimizer, params, t)
        scheduler.step()
    for i, param in enumerate(params):
        torch.testing.assert_close(param.detach(), tree[str(i)], rtol=1e-10, atol=0)  # torch's recursion of the cosine


@pytest.mark.slow
def test_avagrad_has_one_scale_for_all_parameter_groups():
    together, apart = weights(), weights()
    one = gradtx.optim.AvaGrad(together, lr=0.1)
    two = gradtx.optim.AvaGrad([{"params": apart[:1]}, {"params": apart[1:]}], lr=0.1)
    for t in range(5):
        stepped(one, together, t)
        stepped(two, apart, t)
    for first, second in zip(together, apart, strict=True):
        torch.testing.assert_close(second, first, rtol=1e-13, atol=0)


@pytest.mark.slow
def test_groups_of_avagrad_must_agree_on_the_kind_of_scale():
    params = weights()
    optimizer = gradtx.optim.AvaGrad([{"params": params[:1], "lagged_norm": True}, {"params": params[1:]}])
    with pytest.raises(ValueError, match="lagged_norm must agree across groups"):
        stepped(optimizer, params, 0)


@pytest.mark.slow
def test_groups_of_swats_switch_together_and_must_agree_on_what_decides():
    params = weights()
    groups = [{"params": params[:1], "lr": 0.02}, {"params": params[1:], "lr": 0.01}]
    optimizer = gradtx.optim.SWATS(groups, betas=(0.8, 0.7), switch_tol=0.05)
    phases = []
    for t in range(12):
        stepped(optimizer, params, t / 4)
        phases.append({optimizer.state[param]["switched"].item() for param in params})
    assert all(len(phase) == 1 for phase in phases)
    assert phases[0] == {0.0}
    assert phases[-1] == {1.0}
    optimizer.param_groups[0]["betas"] = (0.8, 0.9)
    with pytest.raises(ValueError, match="betas must agree across groups"):
        stepped(optimizer, params, 0)


def test_a_parameter_without_gradient_does_not_count_in_the_mean_of_avagrad():
    params, alone = weights(2), weights(1)
    both, one = gradtx.optim.AvaGrad(params), gradtx.optim.AvaGrad(alone)
    for t in range(3):
        params[1].grad = None
        stepped(both, params[:1], t)
        stepped(one, alone, t)
    assert torch.equal(params[0], alone[0])


def test_a_parameter_in_its_first_step_does_not_count_in_the_mean_of_avagrad_either():
    params, alone = weights(2), weights(1)
    both, one = gradtx.optim.AvaGrad(params), gradtx.optim.AvaGrad(alone)
    late = params[1].detach().clone()
    for t in range(3):
        params[1].grad = None
        stepped(both, params[: 2 if t == 2 else 1], t)
        stepped(one, alone, t)
    assert torch.equal(params[0], alone[0])
    assert torch.equal(params[1], late)


def test_the_rate_of_swats_counts_the_steps_of_all_parameters_together():
    params = weights(2)
    optimizer = gradtx.optim.SWATS(params, lr=0.02, betas=(0.8, 0.7), switch_tol=0.0)
    for t in range(3):
        params[0].grad = None
        stepped(optimizer, params if t == 2 else params[1:], t)  # the first parameter's first step is the third
    kept = optimizer.state[params[0]]
    assert (kept["count"].item(), kept["step"].item()) == (3.0, 1.0)
    assert kept["sgd_rate"].item() == pytest.approx(kept["rate_avg"].item() / (1 - 0.7**3), rel=1e-14)
