import math

import torch

from gradtx.state.random import Stream
from tests.references import BETA, RATE

GAP = {"rank": 2, "update_proj_gap": 4, "lr": 0.02}


# GaLore, Fira, APOLLO.


def signed(Q):
    largest = Q.abs().argmax(dim=0)
    return Q * torch.stack([Q[i, k].sign() for k, i in enumerate(largest)])


def projected(s, t, x, gap, rank, projection, side, seed=0):
    """Whether the basis is on the right, and the basis; the last one is in `s.old`."""
    rows, columns = x.shape
    right = {"short": rows >= columns, "long": rows < columns, "right": True, "left": False}[side]
    A = x.T if right else x
    if (t - 1) % gap == 0:
        s.old = s.Q
        k = rank if projection == "random" else min(rank, rows, columns)
        if projection == "svd":
            s.Q = signed(torch.linalg.svd(A)[0][:, :k])
        elif projection == "power":
            Q = torch.eye(len(A), k, dtype=x.dtype) if t == 1 else s.Q
            s.Q = signed(torch.linalg.qr(A @ A.T @ Q)[0])
        else:
            counts = torch.tensor(seed), torch.tensor(t)
            s.Q = Stream(*counts, s.name).normal(torch.zeros(len(A), k, dtype=x.dtype)) / math.sqrt(rank)
    return right, s.Q


def carried(s, t, gap, right, carry):
    if t == 1 or (t - 1) % gap:
        return
    if carry == "reset":
        s.m, s.v = 0 * s.m, 0 * s.v
    elif carry == "rotate":
        s.m = s.m @ s.old.T @ s.Q if right else s.Q.T @ s.old @ s.m


def adam(s, t, x, betas, eps):
    """Adam's direction without its factor, and the factor."""
    b1, b2 = betas
    s.m, s.v = b1 * s.m + (1 - b1) * x, b2 * s.v + (1 - b2) * x**2
    return s.m / (s.v.sqrt() + eps), math.sqrt(1 - b2**t) / (1 - b1**t)


def apollo(
    s, t, g, p, lr=1e-2, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.0, rank=128, update_proj_gap=200, scale=1.0,
    side="short", projection="random", scale_type="channel", scale_front=False, limit=1.01, seed=0,
):  # fmt: skip
    if p.ndim != 2:
        d, c = adam(s, t, g, betas, eps)
        return (p - lr * c * d) * (1 - lr * weight_decay)
    right, Q = projected(s, t, g, update_proj_gap, rank, projection, side, seed)
    low = g @ Q if right else Q.T @ g
    d, c = adam(s, t, low, betas, eps)
    if scale_type == "tensor":
        phi = d.norm() / (low.norm() + 1e-8)
    else:
        dim = 1 if right else 0
        phi = d.norm(dim=dim, keepdim=True) / (low.norm(dim=dim, keepdim=True) + 1e-8)
    u = g * phi * (math.sqrt(scale) if scale_front else 1.0)
    n = u.norm()
    growth = max(n / (s.n + 1e-8), limit) / limit if t > 1 else 1.0
    s.seen.add(bool(growth > 1) or t == 1)
    s.n = n / growth
    u = u / growth * (1.0 if scale_front else math.sqrt(scale))
    return (p - lr * c * u) * (1 - lr * weight_decay)


GALORE = [
    {},
    {**GAP, "betas": (0.8, 0.9), "eps": 0.01, "weight_decay": 0.3, "scale": 0.7, "side": "long", "carry": "rotate"},
    {**GAP, "side": "left", "projection": "power", "carry": "reset"},
    {**GAP, "side": "right", "projection": "random", "rank": 6},
    {**GAP, "lr": RATE, "betas": (BETA, BETA), "weight_decay": RATE, "projection": "power", "carry": "rotate"},
]
