import math

import pytest
import torch

import gradtx
from tests.references import RATE, TreeLoop, WeightsLoop, adam_moments, follows, unit_norm
from tests.schedules.test_schedules import ranger21_rate
from tests.transforms.test_ranger21 import stage

RISING = gradtx.linear_schedule(0.95, start_factor=0.7, total_iters=25)


def centralized(g):
    return g - g.flatten(1).mean(dim=1).reshape(-1, *[1] * (g.ndim - 1)) if g.ndim > 1 else g


def ranger(
    s, t, g, p, lr=1e-3, betas=(0.95, 0.999), eps=1e-5, weight_decay=0.0, alpha=0.5, k=6, n_sma_threshold=5.0,
    use_gc=True, gc_conv_only=False,
):  # fmt: skip
    b2 = betas[1]
    if t == 1:
        s.slow = p
    if use_gc and (not gc_conv_only or g.ndim > 3):
        g = centralized(g)
    m, _ = adam_moments(s, t, g, betas)
    limit = 2 / (1 - b2) - 1
    rho = limit - 2 * t * b2**t / (1 - b2**t)
    s.seen.add(rho > n_sma_threshold)
    d = m
    if rho > n_sma_threshold:
        r = math.sqrt((rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho))
        d = r * math.sqrt(1 - b2**t) * m / (s.v.sqrt() + eps)
    p = p - lr * (d + weight_decay * p)
    if t % k == 0:
        p = s.slow = s.slow + alpha * (p - s.slow)
    return p


@pytest.mark.parametrize(
    "options",
    [
        {"lr": 0.02},
        {"lr": 0.02, "betas": (0.8, 0.9), "eps": 0.05, "weight_decay": 0.3, "alpha": 0.8, "k": 3},
        {"lr": 0.02, "gc_conv_only": True, "n_sma_threshold": 4.0, "k": 1},
        {"lr": 0.02, "use_gc": False, "n_sma_threshold": 7.5, "betas": (0.8, 0.95)},
        {"lr": RATE, "betas": (RISING, RISING), "weight_decay": RISING, "alpha": RISING},
    ],
    ids=str,
)
def test_ranger_follows_the_loop(options):
    reference = WeightsLoop(ranger, **options)
    follows(gradtx.ranger(**options), reference)
    assert reference.seen == {True, False}


def ranger21(
    slots, t, grads, params, num_iterations, lr=1e-3, beta0=0.9, betas=(0.9, 0.999), eps=1e-8, use_softplus=True,
    beta_softplus=50.0, num_warm_up_iterations=None, num_warm_down_iterations=None, warm_down_min_lr=3e-5,
    agc_clipping_value=1e-2, agc_eps=1e-3, centralize_gradients=True, normalize_gradients=True,
    lookahead_merge_time=5, lookahead_blending_alpha=0.5, weight_decay=1e-4, norm_loss_factor=1e-4, amsgrad=True,
    chebyshev_epochs=None,
):  # fmt: skip
    rate = ranger21_rate(
        t - 1, lr, num_iterations, betas[1], num_warm_up_iterations, num_warm_down_iterations, warm_down_min_lr,
        chebyshev_epochs,
    )  # fmt: skip
    clipped = {}
    for name, g in grads.items():
        limit = agc_clipping_value * unit_norm(params[name]).clamp(min=agc_eps)
        size = unit_norm(g)
        slots[name].seen.update({"clipped"} if (size > limit).any() else {"whole"})
        g = torch.where(size > limit, g * limit / size.clamp(min=1e-6), g)
        if centralize_gradients:
            g = centralized(g)
        if normalize_gradients and g.numel() > 2:
            g = g / (g.std() + 1e-8)
        clipped[name] = g
        if t == 1:
            slots[name].slow = params[name]
    options = (beta0, betas, eps, use_softplus, beta_softplus, weight_decay, norm_loss_factor, amsgrad)
    new = stage(slots, t, clipped, params, rate, *options)
    if t % lookahead_merge_time == 0:
        a = lookahead_blending_alpha
        for name in new:
            new[name] = slots[name].slow = a * new[name] + (1 - a) * slots[name].slow
    return new


NUMBERS = {"lr": 0.02, "betas": (0.8, 0.9), "beta0": 0.5, "weight_decay": 0.2, "norm_loss_factor": 0.1}
SHORT = {"num_warm_up_iterations": 3, "num_warm_down_iterations": 8}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_iterations": 40, **NUMBERS},
        {"num_iterations": 20, "lr": 0.02, **SHORT, "amsgrad": False},
        {"lr": 0.02, "agc_clipping_value": 0.05, "agc_eps": 2.0, "normalize_gradients": False},
        {"lr": 0.02, "centralize_gradients": False, "use_softplus": False, "eps": 0.01},
        {"lr": 0.02, "lookahead_merge_time": 3, "lookahead_blending_alpha": 0.8, "beta_softplus": 5.0},
        {"lr": 0.002, **SHORT, "chebyshev_epochs": 8, "warm_down_min_lr": 1e-3},
        {"lr": RATE, "beta0": RISING, "betas": (RISING, RISING), "weight_decay": RISING},
    ],
    ids=str,
)
def test_ranger21_follows_the_loop(options):
    options = {"num_iterations": 32, **options}
    reference = TreeLoop(ranger21, **options)
    # A standard deviation of a gradient that the clipping made small loses some digits to its own cancellation.
    follows(gradtx.ranger21(**options), reference)
    assert "clipped" in reference.seen


def test_before_it_rectifies_ranger_goes_downhill():
    tx = gradtx.ranger(lr=0.1)
    params = {"w": torch.tensor([1.0])}
    updates, _ = tx.update({"w": torch.tensor([2.0])}, tx.init(params), params)
    torch.testing.assert_close(updates["w"], torch.tensor([-0.2]))


def test_slow_weights_are_what_to_evaluate_with():
    for tx in (gradtx.ranger(), gradtx.ranger21(num_iterations=10)):
        params = {"w": torch.tensor([1.0])}
        updates, state = tx.update({"w": torch.tensor([2.0])}, tx.init(params), params)
        assert tx.eval_params(state, gradtx.apply_updates(params, updates))["w"].item() == 1.0


def test_the_rate_of_ranger21_follows_a_group_that_somebody_writes_to():
    params = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))]
    optimizer = gradtx.optim.Ranger21([params[0]], num_iterations=10, lr=0.1, num_warm_up_iterations=2)
    other = gradtx.optim.Ranger21([params[1]], num_iterations=10, lr=0.4, num_warm_up_iterations=2)
    optimizer.param_groups[0]["lr"] = 0.4
    for one, param in ((optimizer, params[0]), (other, params[1])):
        param.grad = torch.tensor([1.0, 2.0, 3.0])
        one.step()
    assert torch.equal(*params)
