import math

import pytest
import torch

import gradtx
from tests.algorithms.eigenbasis import (
    KL_SOAP,
    adam_in_basis,
    follows_the_loop,
    follows_the_loop_with_eigenvalues_of_0,
    kl_factors,
    rotated_dims,
    soap_like,
)
from tests.matrix_problem import SEEDS, eigenvectors, refined, times
from tests.references import BETA, RATE, named


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


KL_SHAMPOO = [
    {},
    {"lr": 0.02, "betas": (0.8, 0.9), "eps": 0.01, "adam_eps": 0.1, "weight_decay": 0.3, "precondition_frequency": 3},
    {"lr": 0.02, "betas": (0.7, 0.95), "precondition_frequency": 1, "max_precondition_dim": 4},
    {"lr": RATE, "betas": (BETA, BETA), "weight_decay": RATE, "precondition_frequency": 2},
]
LOOPS = [
    *((gradtx.kl_soap, soap_like(adam_in_basis, kl=True), options) for options in KL_SOAP),
    *((gradtx.kl_shampoo, kl_shampoo, options) for options in KL_SHAMPOO),
]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("alias", "rule", "options"), LOOPS, ids=named)
def test_they_follow_the_loop(alias, rule, options, seed):
    follows_the_loop(alias, rule, options, seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("alias", "rule", "options"), LOOPS, ids=named)
def test_they_follow_the_loop_where_the_first_factors_have_an_eigenvalue_0(alias, rule, options, seed):
    follows_the_loop_with_eigenvalues_of_0(alias, rule, options, seed)
