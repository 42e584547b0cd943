import math

import dadaptation
import prodigyopt
import pytest
import torch

import gradtx
from tests import references as ref
from tests.references import Transformed, follows_along, problem

# The same sums in other orders, over 32 steps, in estimates that are differences.
CLOSE = 1e-13


def prodigy(
    s, t, g, p, lr=1.0, betas=(0.9, 0.999), beta3=None, eps=1e-8, weight_decay=0.0, decoupled_weight_decay=True,
    use_bias_correction=False, safeguard_warmup=False, d0=1e-6, d_coef=1.0, growth_rate=math.inf, slice_p=1,
):  # fmt: skip
    b1, b2 = betas
    b3 = math.sqrt(b2) if beta3 is None else beta3
    if t == 1:
        s.d = s.d_max = d0
        s.p0, s.v = p, 0 * p
        # which entries of the long vector are every slice_p-th of their leaf
        s.S = torch.cat([torch.arange(n) % slice_p == 0 for n in s.sizes.values()])
    correction = math.sqrt(1 - b2**t) / (1 - b1**t) if use_bias_correction else 1
    lr = lr * torch.ones_like(p)
    delta = s.d * lr * correction
    if not decoupled_weight_decay:
        g = g + weight_decay * p
    N = b3 * s.N + (s.d / d0) * (delta * g * (s.p0 - p))[s.S].sum()
    s.m = b1 * s.m + (1 - b1) * s.d * g
    s.v = b2 * s.v + (1 - b2) * s.d**2 * g**2
    weight = s.d * (lr != 0).double() if safeguard_warmup else delta
    s.s = b3 * s.s + (s.d / d0) * (weight * g)[s.S]
    if s.s.abs().sum() == 0:
        return p
    s.N = N
    d_hat = d_coef * N / s.s.abs().sum()
    new = max(s.d, d_hat) if s.d == d0 else s.d
    s.d_max = max(s.d_max, d_hat)
    s.d = min(s.d_max, new * growth_rate)
    if decoupled_weight_decay:
        p = p - weight_decay * delta * p
    return p - delta * s.m / (s.v.sqrt() + s.d * eps)


def test_prodigy_starts_from_weights_of_zero_too():
    step, reference = ref.Transformed(gradtx.prodigy(d0=0.01)), ref.WholeLoop(prodigy, d0=0.01)
    params = {"w": torch.zeros(3, dtype=torch.float64)}
    other = params
    for t in range(10):  # later weights are above 100, and the sine multiplies rounding by 7 a step
        pull = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
        params = gradtx.apply_updates(params, step({"w": params["w"].sin() + pull}, params))
        other = gradtx.apply_updates(other, reference({"w": other["w"].sin() + pull}, other))
        torch.testing.assert_close(params, other, rtol=1e-12, atol=0, msg=str(t))


def test_prodigy_keeps_every_slice_p_th_entry_only():
    params = {"matrix": torch.ones(3, 4), "vector": torch.ones(5), "scalar": torch.ones(())}
    state = gradtx.prodigy(slice_p=3).init(params)["scale_by_prodigy"]
    assert {name: tuple(x.shape) for name, x in state["p0"].items()} == {"matrix": (4,), "vector": (2,), "scalar": (1,)}
    assert {name: x.shape for name, x in state["s"].items()} == {name: x.shape for name, x in state["p0"].items()}


# Public implementations.


PUBLISHED = [
    (gradtx.dadapt_adagrad, dadaptation.DAdaptAdaGrad, {"d0": 0.05, "momentum": 0.7, "eps": 1e-3}),
    (gradtx.dadapt_adagrad, dadaptation.DAdaptAdaGrad, {"d0": 0.05, "weight_decay": 0.2, "growth_rate": 1.1}),
    (gradtx.dadapt_adam, dadaptation.DAdaptAdam, {"d0": 0.01, "betas": (0.8, 0.95), "weight_decay": 0.2}),
    (gradtx.dadapt_adam, dadaptation.DAdaptAdam, {"d0": 0.01, "decoupled_weight_decay": True, "weight_decay": 0.2}),
    (gradtx.dadapt_adam, dadaptation.DAdaptAdam, {"d0": 0.01, "use_bias_correction": True, "growth_rate": 1.1}),
    (gradtx.dadapt_sgd, dadaptation.DAdaptSGD, {"d0": 0.01, "weight_decay": 0.2, "momentum": 0.7}),
    (gradtx.dadapt_sgd, dadaptation.DAdaptSGD, {"d0": 0.01, "lr": 0.5, "growth_rate": 1.1}),
    (gradtx.dadapt_adan, dadaptation.DAdaptAdan, {"d0": 0.01, "betas": (0.8, 0.7, 0.95), "weight_decay": 0.3}),
    (gradtx.dadapt_adan, dadaptation.DAdaptAdan, {"d0": 0.01, "no_prox": True, "growth_rate": 1.1}),
    (gradtx.dadapt_lion, dadaptation.DAdaptLion, {"d0": 0.01, "betas": (0.7, 0.9), "weight_decay": 0.3}),
    (gradtx.prodigy, prodigyopt.Prodigy, {"d0": 1e-3, "betas": (0.8, 0.95), "weight_decay": 0.3}),
    (gradtx.prodigy, prodigyopt.Prodigy, {"d0": 1e-3, "weight_decay": 0.3, "decoupled_weight_decay": False}),
    (gradtx.prodigy, prodigyopt.Prodigy, {"d0": 1e-3, "beta3": 0.8, "d_coef": 0.5, "slice_p": 3}),
    (gradtx.prodigy, prodigyopt.Prodigy, {"d0": 1e-3, "use_bias_correction": True, "growth_rate": 1.1}),
    (gradtx.prodigy, prodigyopt.Prodigy, {"d0": 1e-3, "safeguard_warmup": True, "lr": 0.3}),
]


def theirs(options):
    return {{"decoupled_weight_decay": "decouple"}.get(name, name): value for name, value in options.items()}


@pytest.mark.slow
@pytest.mark.parametrize(("make", "published", "options"), PUBLISHED, ids=ref.named)
def test_equals_the_authors_optimizer(make, published, options):
    extra = {"decouple": options.get("decoupled_weight_decay", True)} if make is gradtx.prodigy else {}
    ref.follows_along(make(**options), ref.Published(published, **theirs(options) | extra), tolerance=CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("lr", [0.3, 1.0])
def test_prodigy_before_a_constant_rate_is_prodigy_at_that_rate(lr):
    own = gradtx.chain(gradtx.scale_by_prodigy(d0=0.01), gradtx.scale_by_learning_rate(lr))
    follows_along(own, Transformed(gradtx.prodigy(d0=0.01, lr=lr)), tolerance=1e-12)


@pytest.mark.slow
def test_d_is_in_the_state_for_who_wants_to_record_it():
    tx, params = gradtx.prodigy(d0=0.01), problem()
    _, state = tx.update(params, tx.init(params), params)
    assert gradtx.get(state, "d") == state["scale_by_prodigy"]["d"]
