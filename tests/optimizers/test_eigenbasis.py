import math

import pytest
import torch
from torch import Tensor

import gradtx
from tests.matrix_problem import (
    MATRICES,
    SEEDS,
    eigenvectors,
    follows,
    merge,
    newton_schulz,
    refined,
    times,
    unfolded,
    weights,
)
from tests.references import BETA, RATE, Transformed, WeightsLoop, named, weights_follow

AGREEMENT = 1e-11  # rounding of 1e-16 turns bases by as much over an eigenvalue gap, twelve times


def rotate(x, Q, back=False):
    for i, basis in Q.items():
        x = times(x, basis if back else basis.T, i)
    return x


def rotated_dims(p, limit):
    return [i for i, n in enumerate(p.shape) if n <= limit] if p.ndim > 1 else []


def kl_factors(s, t, g, dims, beta, floor):
    """The factors after this step, from those before it."""
    w = (1 - beta) / (1 - beta**t)
    new = {}
    for i in dims:
        x = g
        for j in dims:
            if j != i and t > 1:
                lam = torch.diag(s.Q[j].T @ s.S[j] @ s.Q[j]).clamp(min=floor)
                x = times(x, torch.diag(lam**-0.5) @ s.Q[j].T, j)
        outer = unfolded(x, i) @ unfolded(x, i).T / (g.numel() / g.shape[i])
        new[i] = (1 - w) * s.S[i] + w * outer if t > 1 else outer
    return new


def soap_like(direction, kl):
    """SOAP's loop around `direction(s, n, g, g', options) -> direction in the basis`."""

    def rule(
        s, t, g, p, lr=3e-3, weight_decay=0.01, precondition_frequency=10, max_precondition_dim=10000,
        merge_dims=False, **options,
    ):  # fmt: skip
        betas = options["betas"]
        beta = options.get("shampoo_beta")
        beta = betas[1] if beta is None else beta
        if merge_dims and p.ndim > 1:
            g = g.reshape(merge(p.shape, max_precondition_dim))
        dims = rotated_dims(g, max_precondition_dim)
        if t == 1:
            if kl:
                s.S = kl_factors(s, t, g, dims, beta, 1e-8)
            else:
                s.S = {i: (1 - beta) * (unfolded(g, i) @ unfolded(g, i).T) for i in dims}
            s.Q = {i: eigenvectors(s.S[i]) for i in dims}
            return p
        n = t - 1
        d = direction(s, n, g, rotate(g, s.Q), **options)
        new = (p - lr * rotate(d, s.Q, back=True).reshape(p.shape)) * (1 - lr * weight_decay)
        if kl:
            s.S = kl_factors(s, t, g, dims, beta, 1e-8)
        else:
            s.S = {i: beta * s.S[i] + (1 - beta) * (unfolded(g, i) @ unfolded(g, i).T) for i in dims}
        if n % precondition_frequency == 0:
            old, s.Q = s.Q, {}
            for i in dims:
                s.Q[i], order = refined(old[i], s.S[i])
                s.seen.add(order.tolist() != sorted(order.tolist()))
                s.v = s.v.index_select(i, order)
            if isinstance(s.turned, Tensor):
                s.turned = rotate(rotate(s.turned, old, back=True), s.Q)
        return new

    return rule


def adam_in_basis(s, n, g, x, betas, eps, correct_bias=True, shampoo_beta=None, normalize_gradient=False):
    b1, b2 = betas
    s.m, s.v = b1 * s.m + (1 - b1) * g, b2 * s.v + (1 - b2) * x**2
    d = rotate(s.m, s.Q) / (s.v.sqrt() + eps)
    if normalize_gradient:
        d = d / (1e-30 + (d**2).mean().sqrt())
    return d * math.sqrt(1 - b2**n) / (1 - b1**n) if correct_bias else d


def laprop_in_basis(s, n, g, x, betas, eps, shampoo_beta=None):
    """The momentum stays in the basis and is turned with it."""
    b1, b2 = betas
    s.v = b2 * s.v + (1 - b2) * x**2
    s.turned = b1 * s.turned + (1 - b1) * x / ((s.v / (1 - b2**n)).sqrt() + eps)
    return s.turned / (1 - b1**n)


def kl_shampoo(
    s, t, g, p, lr=3e-3, betas=(0.95, 0.95), eps=1e-8, adam_eps=1e-8, weight_decay=0.01, precondition_frequency=10,
    max_precondition_dim=10000,
):  # fmt: skip
    b1, b2 = betas
    dims, n = rotated_dims(p, max_precondition_dim), t - 1
    if t > 1:
        s.m = b1 * s.m + (1 - b1) * g
        d = s.m / (1 - b1**n)
        for i in dims:
            lam = torch.diag(s.Q[i].T @ s.S[i] @ s.Q[i]).clamp(min=eps)
            d = times(d, s.Q[i] @ torch.diag(lam**-0.5) @ s.Q[i].T, i)
        if not dims:
            s.v = b2 * s.v + (1 - b2) * g**2
            d = d * math.sqrt(1 - b2**n) / (s.v.sqrt() + adam_eps)
    new = p if t == 1 else (p - lr * d) * (1 - lr * weight_decay)
    s.S = kl_factors(s, t, g, dims, b2, eps)
    if t == 1:
        s.Q = {i: eigenvectors(s.S[i]) for i in dims}
    elif n % precondition_frequency == 0:
        s.Q = {i: refined(s.Q[i], s.S[i])[0] for i in dims}
    return new


KL_SOAP = [
    {"betas": (0.95, 0.95), "eps": 1e-4},
    {
        "lr": 0.02,
        "betas": (0.8, 0.9),
        "shampoo_beta": 0.7,
        "eps": 0.01,
        "weight_decay": 0.3,
        "precondition_frequency": 3,
    },
    {"lr": 0.02, "betas": (0.8, 0.9), "eps": 0.01, "precondition_frequency": 1, "correct_bias": False},
    {"lr": 0.02, "betas": (0.8, 0.9), "eps": 0.01, "max_precondition_dim": 4, "precondition_frequency": 2},
    {"lr": RATE, "betas": (BETA, BETA), "weight_decay": RATE, "eps": 0.01, "precondition_frequency": 3},
]
SOAP_LAPROP = [KL_SOAP[0], KL_SOAP[1], *KL_SOAP[3:]]
KL_SHAMPOO = [
    {},
    {"lr": 0.02, "betas": (0.8, 0.9), "eps": 0.01, "adam_eps": 0.1, "weight_decay": 0.3, "precondition_frequency": 3},
    {"lr": 0.02, "betas": (0.7, 0.95), "precondition_frequency": 1, "max_precondition_dim": 4},
    {"lr": RATE, "betas": (BETA, BETA), "weight_decay": RATE, "precondition_frequency": 2},
]
# eps is far above rounding: a rotation makes entries 0 in the first steps, and rounding of them would be divided by it.
SOAP = [
    {"betas": (0.95, 0.95), "eps": 1e-3},
    *KL_SOAP[1:3],
    {"betas": (0.95, 0.95), "lr": 0.02, "eps": 0.01, "precondition_frequency": 2, "max_precondition_dim": 3},
    {"betas": (0.95, 0.95), "lr": 0.02, "eps": 0.01, "precondition_frequency": 1, "normalize_gradient": True},
    {
        "betas": (0.95, 0.95),
        "lr": 0.02,
        "eps": 0.01,
        "precondition_frequency": 4,
        "merge_dims": True,
        "max_precondition_dim": 6,
    },
    {"lr": RATE, "betas": (BETA, BETA), "weight_decay": RATE, "eps": 0.01},
]
LOOPS = [
    *((gradtx.soap, soap_like(adam_in_basis, kl=False), options) for options in SOAP),
    *((gradtx.kl_soap, soap_like(adam_in_basis, kl=True), options) for options in KL_SOAP),
    *((gradtx.soap_laprop, soap_like(laprop_in_basis, kl=False), options) for options in SOAP_LAPROP),
    *((gradtx.kl_shampoo, kl_shampoo, options) for options in KL_SHAMPOO),
]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("alias", "rule", "options"), LOOPS, ids=named)
def test_they_follow_the_loop(alias, rule, options, seed):
    step, reference = alias(**options), WeightsLoop(rule, **options)
    follows(step, reference, seed, names=("square", "kernel", "bias", "scalar"), tolerance=AGREEMENT)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("alias", "rule", "options"), LOOPS, ids=named)
def test_they_follow_the_loop_where_the_first_factors_have_an_eigenvalue_0(alias, rule, options, seed):
    # Rounding stands in the place of that eigenvalue, and the root of its floor 1e-8 divides by it: a reference whose
    # gradients are moved by one bit is as far from itself.
    follows(alias(**options), WeightsLoop(rule, **options), seed, names=("wide", "tall"), tolerance=1e-8)


@pytest.mark.parametrize("options", SOAP, ids=named)
def test_soap_follows_the_loop_for_many_steps_on_leaves_of_all_ranks(options):
    reference = WeightsLoop(soap_like(adam_in_basis, kl=False), **options)
    weights_follow(gradtx.soap(**options), reference, tolerance=AGREEMENT)


def test_columns_change_places_in_the_reference():
    reference = WeightsLoop(soap_like(adam_in_basis, kl=False), **SOAP[1])
    weights(reference, 0)
    assert reference.seen == {True, False}


@pytest.mark.slow
def test_merged_dimensions_are_those_of_a_matrix():
    grads = torch.randn(6, 2, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for make in (gradtx.soap, gradtx.kl_soap, gradtx.kl_shampoo, gradtx.soap_laprop):
        tx = make(lr=0.1, merge_dims=True, max_precondition_dim=6, precondition_frequency=2)
        params, flat = {"w": grads[0]}, {"w": grads[0].reshape(6, 4)}
        state, other = tx.init(params), tx.init(flat)
        for g in grads:
            updates, state = tx.update({"w": g}, state, params)
            expected, other = tx.update({"w": g.reshape(6, 4)}, other, flat)
            torch.testing.assert_close(updates["w"].reshape(6, 4), expected["w"], rtol=1e-10, atol=1e-12)


# SOAP-Muon.


def soap_muon(
    s, t, g, p, lr=0.02, weight_decay=0.0, momentum=0.95, nesterov=True, beta2=0.9, eps=1e-8, precondition_frequency=1,
    max_precondition_dim=10000, ns_coefficients=(2.0, -1.5, 0.5), ns_steps=12, adjust_lr_fn="original",
):  # fmt: skip
    dims = rotated_dims(p, max_precondition_dim)
    s.B = momentum * s.B + (1 - momentum) * g
    U = momentum * s.B + (1 - momentum) * g if nesterov else s.B
    if t > 1:
        x = rotate(U, s.Q)
        s.v = beta2 * s.v + (1 - beta2) * x**2
        U = rotate(x / s.v.clamp(min=eps**2).sqrt(), s.Q, back=True)
    X = newton_schulz(U, [ns_coefficients] * ns_steps)
    rows, columns = p.shape
    r = 0.2 * math.sqrt(max(p.shape)) if adjust_lr_fn == "match_rms_adamw" else math.sqrt(max(1, rows / columns))
    if t == 1:
        s.S = {i: (1 - beta2) * unfolded(g, i) @ unfolded(g, i).T for i in dims}
        s.Q = {i: eigenvectors(s.S[i]) for i in dims}
    else:
        s.S = {i: beta2 * s.S[i] + (1 - beta2) * unfolded(g, i) @ unfolded(g, i).T for i in dims}
        if (t - 1) % precondition_frequency == 0:
            for i in dims:
                s.Q[i], order = refined(s.Q[i], s.S[i])
                s.v = s.v.index_select(i, order) if isinstance(s.v, Tensor) else s.v
    return p * (1 - lr * weight_decay) - lr * r * X


SOAP_MUON = [
    {},
    {"lr": 0.1, "weight_decay": 0.2, "momentum": 0.8, "nesterov": False, "beta2": 0.7, "precondition_frequency": 3},
    {"lr": 0.1, "eps": 0.3, "max_precondition_dim": 4, "adjust_lr_fn": "match_rms_adamw", "ns_steps": 5},
    {"lr": 0.1, "ns_coefficients": (3.4445, -4.7750, 2.0315), "ns_steps": 5},
    {"lr": RATE, "momentum": BETA, "beta2": BETA, "weight_decay": RATE},
]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("options", SOAP_MUON, ids=named)
def test_soap_muon_follows_the_loop(options, seed):
    follows(gradtx.soap_muon(**options), WeightsLoop(soap_muon, **options), seed, names=MATRICES, tolerance=1e-10)


def test_soap_muon_sends_other_leaves_to_its_fallback():
    tx = gradtx.soap_muon(lr=0.1, fallback=gradtx.adamw(lr=0.03))
    alone, other = gradtx.soap_muon(lr=0.1), gradtx.adamw(lr=0.03)
    both = weights(tx, 0)[-1]
    torch.testing.assert_close(both["wide"], weights(alone, 0, names=("wide",))[-1]["wide"], rtol=1e-13, atol=0.0)
    torch.testing.assert_close(both["bias"], weights(other, 0, names=("bias",))[-1]["bias"], rtol=1e-13, atol=0.0)


# SPlus and Conda.


def splus(
    s, t, g, p, lr=0.1, betas=(0.9, 0.999), weight_decay=1e-2, ema_rate=0.999, inverse_steps=100,
    nonstandard_constant=1e-3, max_dim=10000,
):  # fmt: skip
    b1, b2 = betas
    dims = rotated_dims(p, max_dim) if p.ndim == 2 else []
    if t == 1:
        s.S = {i: torch.zeros(p.shape[i], p.shape[i], dtype=p.dtype) for i in dims}
        s.Q = {i: torch.eye(p.shape[i], dtype=p.dtype) for i in dims}
    s.m = b1 * s.m + (1 - b1) * g
    step = rotate(rotate(s.m, s.Q).sign(), s.Q, back=True)
    s.S = {i: b2 * s.S[i] + (1 - b2) * unfolded(g, i) @ unfolded(g, i).T for i in dims}
    if t == 1 or t % inverse_steps == 0:
        s.Q = {i: eigenvectors(s.S[i]) for i in dims}
    rate = lr * (2 / sum(p.shape) if p.ndim == 2 and max(p.shape) <= max_dim else nonstandard_constant)
    new = p - rate * step
    s.ema = ema_rate * s.ema + (1 - ema_rate) * new
    s.evaluated = s.ema / (1 - ema_rate**t)
    return new * (1 - rate * weight_decay)


SPLUS = [
    {},
    {"lr": 0.5, "betas": (0.8, 0.9), "weight_decay": 0.3, "ema_rate": 0.9, "inverse_steps": 3},
    {"lr": 0.5, "max_dim": 4, "nonstandard_constant": 0.1, "inverse_steps": 2, "ema_rate": 0.5},
]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("options", SPLUS, ids=named)
def test_splus_follows_the_loop_and_evaluates_with_its_average(options, seed):
    reference, step = WeightsLoop(splus, **options), Transformed(gradtx.splus(**options))
    follows(step, reference, seed, tolerance=AGREEMENT)
    params = weights(WeightsLoop(splus, **options), seed)[-1]
    averages = step.tx.eval_params(step.state, params)
    for name, average in averages.items():
        torch.testing.assert_close(average, reference.slots[name].evaluated, rtol=1e-12, atol=1e-13)


def conda(s, t, g, p, lr=1e-3, betas=(0.9, 0.999), weight_decay=0.0, eps=1e-8, update_proj_gap=2000, scale=1.0):
    b1, b2 = betas
    s.m = b1 * s.m + (1 - b1) * g
    Q, factor = {}, 1.0
    if p.ndim == 2:
        factor, i = scale, 0 if p.shape[0] < p.shape[1] else 1
        if t == 1 or t % update_proj_gap == 0:
            s.Q = torch.linalg.svd(unfolded(s.m, i))[0]
        Q = {i: s.Q}
    s.v = b2 * s.v + (1 - b2) * rotate(g, Q) ** 2
    d = rotate(rotate(s.m, Q) / (s.v.sqrt() + eps), Q, back=True)
    a = lr * factor * math.sqrt(1 - b2**t) / (1 - b1**t)
    return (p - a * d) * (1 - lr * weight_decay)


CONDA = [
    {},
    {"lr": 0.02, "betas": (0.8, 0.9), "weight_decay": 0.3, "eps": 0.01, "update_proj_gap": 4, "scale": 0.25},
    {"lr": 0.02, "update_proj_gap": 1},
    {"lr": RATE, "betas": (BETA, BETA), "weight_decay": RATE, "update_proj_gap": 3},
]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("options", CONDA, ids=named)
def test_conda_follows_the_loop(options, seed):
    follows(gradtx.conda(**options), WeightsLoop(conda, **options), seed, tolerance=AGREEMENT)


# All.


def test_soap_muon_without_a_fallback_names_the_leaf_that_is_no_matrix():
    with pytest.raises(ValueError, match=r"leaf 'bias' has shape \(3,\), needs 2 dimensions"):
        gradtx.soap_muon().init({"bias": torch.ones(3)})
