import math

import pytest
import torch

import gradtx
from tests.algorithms.loops import centralized
from tests.references import RATE, TreeLoop, finite_without_gradient, follows, problem, softplus, unit_norm
from tests.schedules.test_schedules import ranger21_rate

RISING = gradtx.linear_schedule(0.95, start_factor=0.7, total_iters=25)


def stage(
    slots, t, grads, params, lr, beta0=0.9, betas=(0.9, 0.999), eps=1e-8, use_softplus=True, beta_softplus=50.0,
    weight_decay=1e-4, norm_loss_factor=1e-4, amsgrad=True,
):  # fmt: skip
    """The paper's step over a whole tree: the new weights. Two momenta by the parity of t, weights decayed in turn."""
    b1, b2 = betas
    for name, g in grads.items():
        s = slots[name]
        s.v = b2 * s.v + (1 - b2) * g**2
        s.top = torch.maximum(s.top + 0 * s.v, s.v)
    total = sum((slots[name].v / (1 - b2**t)).sum().item() for name in grads)
    level = math.sqrt(total / sum(g.numel() for g in grads.values()))
    new = {}
    for name, g in grads.items():
        s, p = slots[name], params[name]
        if level > 0:
            p = p * (1 - lr * weight_decay / level)
        p = p * (1 - lr * 2 * norm_loss_factor * (1 - 1 / (unit_norm(p) + eps)))
        written, other = ("odd", "even") if t % 2 else ("even", "odd")
        setattr(s, written, b1**2 * getattr(s, written) + (1 - b1**2) * g)
        n = (1 + beta0) * getattr(s, written) - beta0 * getattr(s, other)
        n = n / math.sqrt((1 + beta0) ** 2 + beta0**2)
        D = ((s.top if amsgrad else s.v) / (1 - b2**t)).sqrt() + eps
        s.seen.update((s.top > s.v).flatten().tolist())
        new[name] = p - lr / (1 - b1**t) * n / (softplus(D, beta_softplus) if use_softplus else D)
    return new


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


def test_the_rate_of_ranger21_follows_a_group_that_somebody_writes_to():
    params = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))]
    optimizer = gradtx.optim.Ranger21([params[0]], num_iterations=10, lr=0.1, num_warm_up_iterations=2)
    other = gradtx.optim.Ranger21([params[1]], num_iterations=10, lr=0.4, num_warm_up_iterations=2)
    optimizer.param_groups[0]["lr"] = 0.4
    for one, param in ((optimizer, params[0]), (other, params[1])):
        param.grad = torch.tensor([1.0, 2.0, 3.0])
        one.step()
    assert torch.equal(*params)


def updates_of(grads, params=1.0, **options):
    """The updates of one weight, and the state at the end."""
    tx = gradtx.scale_by_ranger21(**{"weight_decay": 0.0, "norm_loss_factor": 0.0, "use_softplus": False, **options})
    params = {"w": torch.tensor([params], dtype=torch.float64)}
    state, found = tx.init(params), []
    for grad in grads:
        updates, state = tx.update({"w": torch.tensor([grad], dtype=torch.float64)}, state, params)
        found.append(updates["w"].item())
    return found, state["scale_by_ranger21"]


def test_as_long_as_all_gradients_are_zero_only_the_norm_loss_acts():
    found, _ = updates_of([0.0, 0.0], 2.0, lr=0.1, weight_decay=7.0, norm_loss_factor=0.5)
    assert found == pytest.approx([-0.1, -0.1])
    assert finite_without_gradient(gradtx.scale_by_ranger21(lr=0.1, weight_decay=0.5))
    zeros = {name: torch.zeros_like(p) for name, p in problem().items()}
    tx = gradtx.scale_by_ranger21(lr=0.1)
    assert all(u.isfinite().all() for u in tx.update(zeros, tx.init(zeros), zeros)[0].values())


def test_tiny_decays_survive_in_single_precision():
    tx = gradtx.scale_by_ranger21(lr=1e-3, weight_decay=1e-6, norm_loss_factor=0.0, betas=(0.0, 0.0))
    params = {"w": torch.tensor([1.0, 1.0])}
    updates, _ = tx.update({"w": torch.tensor([0.0, 1.0])}, tx.init(params), params)
    # 1e-9 * sqrt(2), which 1 - 1e-9 could not show
    assert updates["w"][0].item() == pytest.approx(-1e-9 * 2**0.5, rel=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: gradtx.chain(gradtx.scale_by_ranger21(0.1), gradtx.scale_by_learning_rate(0.1)),
            "scale_by_ranger21 owns the learning rate .*scale_by_learning_rate cannot follow",
        ),
        (
            lambda: gradtx.chain(gradtx.scale_by_ranger21(0.1), gradtx.add_decayed_weights(0.1)),
            "scale_by_ranger21 owns the learning rate .*add_decayed_weights cannot follow",
        ),
    ],
)
def test_misuse_is_an_error(make, message):
    with pytest.raises(ValueError, match=message):
        make()
