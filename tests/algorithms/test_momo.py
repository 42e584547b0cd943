import pytest
import torch

import gradtx
from tests.algorithms.test_alig import Valued, loss
from tests.references import WholeLoop, follows_along, named, problem, run

FADING = gradtx.linear_schedule(1.0, start_factor=1.0, end_factor=0.2, total_iters=25)
RISING = gradtx.linear_schedule(0.9, start_factor=0.5, total_iters=20)
# The same sums in other orders, over 32 steps.
CLOSE = 1e-12


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


class LossLoop(WholeLoop):
    """A loop that is handed the loss, further above its bound than that of ALI-G."""

    def __call__(self, grads, params):
        self.options["f"] = loss(self.t + 1)
        return super().__call__(grads, params)


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
    with pytest.raises(ValueError, match=rf"^{make.__name__} needs value: call update\(updates, state, params"):
        tx.update(params, tx.init(params), params)


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
