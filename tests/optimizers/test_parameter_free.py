"""DoG, L-DoG, DoWG, COCOB and MoMo against loops over all leaves as one vector."""

import math

import pytest
import torch

import gradtx
from tests.optimizers.test_learning_rate_free import Valued, loss
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


def cocob(s, t, g, p, alpha=100.0, eps=1e-8, weight_decay=0.0):
    if t == 1:
        s.p0, s.L = p, torch.full_like(p, eps)
    g = g + weight_decay * p
    s.L = torch.maximum(s.L, g.abs())
    s.A = s.A + g.abs()
    s.R = (s.R - g * (p - s.p0)).clamp(min=0)
    s.theta = s.theta - g
    return s.p0 + s.theta * (s.L + s.R) / (s.L * torch.maximum(s.A + s.L, alpha * s.L))


def follow(s, p, d, D, rho, lr, lb, shrinkage, use_fstar):
    """tau, as the model of the loss has it; the learned bound is in the slots."""
    N, slope = (d * d / D).sum().item(), (d * p).sum().item()
    b = s.lb if use_fstar else lb
    if use_fstar:
        cap = shrinkage * (s.F - s.Gamma) + slope
        if cap < shrinkage * rho * b:
            s.resets = s.resets + 1
            b = max(cap / (2 * shrinkage * rho), lb)
    tau = min(lr / rho, max(0.0, shrinkage * (s.F - rho * b - s.Gamma) + slope) / N)
    if use_fstar:
        s.lb = max((s.F + slope - s.Gamma - tau * N / 2) / rho, lb)
    s.capped = s.capped + (tau == lr / rho)
    s.stopped = s.stopped + (tau == 0)
    return tau


def momo(s, t, g, p, f, lr=1.0, beta=0.9, weight_decay=0.0, lb=0.0, bias_correction=False, use_fstar=False):
    b = beta if t > 1 or bias_correction else 0.0
    if t == 1:
        s.lb = lb
    s.F = b * s.F + (1 - b) * f
    s.d = b * s.d + (1 - b) * g
    s.Gamma = b * s.Gamma + (1 - b) * (g * p).sum().item()
    rho = 1 - beta**t if bias_correction else 1.0
    shrinkage = 1 + lr * weight_decay
    tau = follow(s, p, s.d, torch.ones_like(p), rho, lr, lb, shrinkage, use_fstar)
    return (p - tau * s.d) / shrinkage


def momo_adam(
    s, t, g, p, f, lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, lb=0.0, proximal_decay=True,
    use_fstar=False,
):  # fmt: skip
    b1, b2 = betas
    if t == 1:
        s.lb = lb
    s.F = b1 * s.F + (1 - b1) * f
    s.d = b1 * s.d + (1 - b1) * g
    s.v = b2 * s.v + (1 - b2) * g**2
    s.Gamma = b1 * s.Gamma + (1 - b1) * (g * p).sum().item()
    D = (s.v / (1 - b2**t)).sqrt() + eps
    shrinkage = 1 + lr * weight_decay
    tau = follow(s, p, s.d, D, 1 - b1**t, lr, lb, shrinkage, use_fstar)
    if proximal_decay:
        return (p - tau * s.d / D) / shrinkage
    return p * (1 - lr * weight_decay) - tau * s.d / D


WHOLE = [
    (gradtx.dog, dog, {}),
    (gradtx.dog, dog, {"reps_rel": 0.01, "eps": 0.3, "weight_decay": 0.1, "lr": 0.7}),
    (gradtx.dog, dog, {"init_eta": 0.05, "lr": 0.8}),
    (gradtx.dog, dog, {"reps_rel": 0.01, "lr": FADING, "weight_decay": RISING}),
    (gradtx.dowg, dowg, {}),
    (gradtx.dowg, dowg, {"eps": 0.01, "weight_decay": 0.1, "lr": 0.7}),
    (gradtx.dowg, dowg, {"eps": 0.01, "init_estim_sq_dist": 0.2, "lr": FADING, "weight_decay": RISING}),
    (gradtx.cocob, cocob, {}),
    (gradtx.cocob, cocob, {"alpha": 20.0, "eps": 0.05, "weight_decay": 0.1}),
    (gradtx.cocob, cocob, {"alpha": 0.0, "eps": 0.5}),
    (gradtx.cocob, cocob, {"alpha": gradtx.linear_schedule(90.0, 0.2, total_iters=20), "weight_decay": RISING}),
]
VALUED = [
    (gradtx.momo, momo, {}),
    (gradtx.momo, momo, {"lr": 0.05, "beta": 0.7, "weight_decay": 0.3}),
    (gradtx.momo, momo, {"lr": 0.05, "lb": -0.3, "bias_correction": True, "weight_decay": 0.1}),
    (gradtx.momo, momo, {"lr": 0.5, "use_fstar": True, "lb": -0.2, "beta": 0.6}),
    (gradtx.momo, momo, {"lr": 0.5, "use_fstar": True, "bias_correction": True, "weight_decay": 0.2}),
    (gradtx.momo, momo, {"lr": FADING, "beta": RISING, "weight_decay": RISING, "use_fstar": True}),
    (gradtx.momo_adam, momo_adam, {}),
    (gradtx.momo_adam, momo_adam, {"lr": 0.05, "betas": (0.7, 0.95), "eps": 0.01, "weight_decay": 0.3, "lb": -0.3}),
    (gradtx.momo_adam, momo_adam, {"lr": 0.05, "proximal_decay": False, "weight_decay": 0.3}),
    (gradtx.momo_adam, momo_adam, {"lr": 0.1, "use_fstar": True, "lb": -0.2, "weight_decay": 0.2}),
    (gradtx.momo_adam, momo_adam, {"lr": 0.1, "use_fstar": True, "proximal_decay": False, "weight_decay": 0.2}),
    (gradtx.momo_adam, momo_adam, {"lr": FADING, "betas": (RISING, 0.99), "weight_decay": RISING, "use_fstar": True}),
]
LEAFWISE = [
    {},
    {"reps_rel": 0.01, "eps": 0.3, "weight_decay": 0.1, "lr": 0.7},
    {"init_eta": 0.05, "lr": 0.8},
    {"reps_rel": 0.01, "lr": FADING, "weight_decay": RISING},
]


class LossLoop(WholeLoop):
    """A loop that is handed the loss, further above its bound than that of ALI-G."""

    def __call__(self, grads, params):
        self.options["f"] = loss(self.t + 1)
        return super().__call__(grads, params)


@pytest.mark.parametrize(("make", "rule", "options"), WHOLE, ids=named)
def test_follows_the_loop_over_all_leaves_as_one_vector(make, rule, options):
    follows_along(make(**options), WholeLoop(rule, **options), tolerance=CLOSE)


@pytest.mark.parametrize(("make", "rule", "options"), VALUED, ids=named)
def test_follows_the_loop_that_is_handed_the_loss(make, rule, options):
    follows_along(Valued(make(**options)), LossLoop(rule, **options), tolerance=CLOSE)


@pytest.mark.slow
def test_the_loops_of_momo_go_through_all_cases():
    seen = [0, 0, 0]
    for _, rule, options in VALUED:
        reference = LossLoop(rule, **options)
        run(reference)
        slots = reference.slots
        seen = [a + b for a, b in zip(seen, (slots.capped, slots.stopped, slots.resets), strict=True)]
    assert min(seen) > 0, seen


@pytest.mark.parametrize("options", LEAFWISE, ids=str)
def test_ldog_is_dog_for_every_leaf(options):
    follows_along(gradtx.ldog(**options), WeightsLoop(dog, **options), tolerance=CLOSE)


# Bad input, and trees of norm 0.


@pytest.mark.parametrize("make", [gradtx.dog, gradtx.ldog, gradtx.cocob], ids=named)
def test_zero_gradients_give_zero_updates_without_eps(make):
    step, params = Transformed(make(eps=0.0)), problem()
    zeros = {name: torch.zeros_like(p) for name, p in params.items()}
    for _ in range(3):
        assert not any(update.any() for update in step(zeros, params).values())


@pytest.mark.parametrize("make", [gradtx.momo, gradtx.momo_adam], ids=named)
@pytest.mark.parametrize("use_fstar", [False, True])
def test_momo_stands_still_without_a_gradient(make, use_fstar):
    step, params = Valued(make(use_fstar=use_fstar)), problem()
    zeros = {name: torch.zeros_like(p) for name, p in params.items()}
    for _ in range(3):
        assert not any(update.any() for update in step(zeros, params).values())


@pytest.mark.parametrize("make", [gradtx.momo, gradtx.momo_adam], ids=named)
def test_momo_without_the_loss_says_what_to_pass(make):
    params, tx = problem(), make()
    with pytest.raises(ValueError, match=rf"scale_by_{make.__name__} needs value: call update\(updates, state, params"):
        tx.update(params, tx.init(params), params)


@pytest.mark.parametrize("make", [gradtx.dog, gradtx.ldog, gradtx.dowg, gradtx.cocob], ids=named)
def test_a_start_without_params_is_an_error(make):
    with pytest.raises(TypeError, match="'params'"):
        make().init()
    with pytest.raises(
        ValueError, match=rf"state lacks 'scale_by_{make.__name__}' of leaf '\w+'; pass the state made by"
    ):
        make().update(problem(), make().init(None), problem())


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


@pytest.mark.slow
def test_momo_takes_the_loss_from_the_closure():
    param = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = gradtx.optim.MoMo([param], lr=10.0)

    def closure():
        optimizer.zero_grad()
        value = param.norm()
        value.backward()
        return value

    optimizer.step(closure)
    torch.testing.assert_close(param.detach(), torch.zeros(2))
