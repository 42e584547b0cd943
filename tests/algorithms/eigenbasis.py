import math

import torch
from torch import Tensor

from tests.matrix_problem import eigenvectors, follows, merge, refined, times, unfolded
from tests.references import BETA, RATE, WeightsLoop

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


def follows_the_loop(alias, rule, options, seed):
    step, reference = alias(**options), WeightsLoop(rule, **options)
    follows(step, reference, seed, names=("square", "kernel", "bias", "scalar"), tolerance=AGREEMENT)


def follows_the_loop_with_eigenvalues_of_0(alias, rule, options, seed):
    """As `follows_the_loop`, where the first factors have an eigenvalue 0."""
    # Rounding stands in the place of that eigenvalue, and the root of its floor 1e-8 divides by it: a reference whose
    # gradients are moved by one bit is as far from itself.
    follows(alias(**options), WeightsLoop(rule, **options), seed, names=("wide", "tall"), tolerance=1e-8)
