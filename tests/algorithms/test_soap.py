import math

import pytest
import torch
from torch import Tensor

import gradtx
from tests import references as ref
from tests.algorithms.eigenbasis import (
    AGREEMENT,
    KL_SOAP,
    adam_in_basis,
    follows_the_loop,
    follows_the_loop_with_eigenvalues_of_0,
    rotate,
    rotated_dims,
    soap_like,
)
from tests.algorithms.matrices import moves_after_a_late_first_gradient
from tests.matrix_problem import MATRICES, SEEDS, eigenvectors, follows, newton_schulz, refined, unfolded, weights
from tests.optim.problems import gradient
from tests.references import BETA, RATE, WeightsLoop, named, weights_follow


def laprop_in_basis(s, n, g, x, betas, eps, shampoo_beta=None):
    """The momentum stays in the basis and is turned with it."""
    b1, b2 = betas
    s.v = b2 * s.v + (1 - b2) * x**2
    s.turned = b1 * s.turned + (1 - b1) * x / ((s.v / (1 - b2**n)).sqrt() + eps)
    return s.turned / (1 - b1**n)


SOAP_LAPROP = [KL_SOAP[0], KL_SOAP[1], *KL_SOAP[3:]]
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
    *((gradtx.soap_laprop, soap_like(laprop_in_basis, kl=False), options) for options in SOAP_LAPROP),
]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("alias", "rule", "options"), LOOPS, ids=named)
def test_they_follow_the_loop(alias, rule, options, seed):
    follows_the_loop(alias, rule, options, seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("alias", "rule", "options"), LOOPS, ids=named)
def test_they_follow_the_loop_where_the_first_factors_have_an_eigenvalue_0(alias, rule, options, seed):
    follows_the_loop_with_eigenvalues_of_0(alias, rule, options, seed)


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


# All.


def test_soap_muon_without_a_fallback_names_the_leaf_that_is_no_matrix():
    with pytest.raises(ValueError, match=r"leaf 'bias' has shape \(3,\), needs 2 dimensions"):
        gradtx.soap_muon().init({"bias": torch.ones(3)})


@pytest.mark.parametrize(("shape", "is_quotient"), [((3, 4), True), ((5, 2), False), ((2, 5), False)], ids=str)
def test_soap_has_a_derivative_by_its_second_beta_where_the_first_statistics_leave_no_basis_open(shape, is_quotient):
    """A dimension larger by two or more than the product of the others has a repeated eigenvalue 0 at first."""
    start, fixed, weights = (gradient(torch.zeros(shape, dtype=torch.float64), t) for t in range(3))

    def result(beta):
        tx, params = gradtx.soap(lr=0.1, betas=(0.95, beta), eps=0.1, precondition_frequency=2), {"w": start}
        state = tx.init(params)
        for _ in range(3):
            updates, state = tx.update({"w": params["w"].sin() + fixed}, state, params)
            params = gradtx.apply_updates(params, updates)
        return (weights * params["w"]).sum()

    beta, h = torch.tensor(0.95, dtype=torch.float64), 1e-6
    slope, quotient = torch.func.grad(result)(beta), (result(beta + h) - result(beta - h)) / (2 * h)
    assert slope.isfinite()
    assert ((slope - quotient).abs() < 1e-5 * (1 + quotient.abs())) == is_quotient  # rounding of 1e-15 / h


# All.


@pytest.mark.parametrize("make", [gradtx.soap], ids=ref.named)
def test_a_leaf_whose_first_gradient_comes_late_moves(make):
    moves_after_a_late_first_gradient(make())
