"""Matrix maths that the loops of several methods share."""

import math

import torch
from torch import Tensor

from tests import references as ref
from tests.links.test_orthogonal import SETS

NOT_MATRICES = ("kernel", "bias", "scalar")


def matrices_follow(alias, rule, options, tolerance=1e-10):
    """Compare the steps of the problem's matrices with those of a loop, and return the branches that it noted.

    With axis="long", both branches must run.
    """
    loop = ref.WeightsLoop(rule, **options)
    ref.weights_follow(alias(**options), loop, without=NOT_MATRICES, steps=30, tolerance=tolerance)
    if options.get("axis") == "long":
        assert loop.seen == {0, 1}
    return loop.seen


def moves_after_a_late_first_gradient(tx):
    params = {"w": torch.ones(2, 3), "x": torch.ones(2)}
    state = tx.init(params)
    for t in range(3):
        grads = {"w": torch.randn(2, 3) if t else None, "x": torch.ones(2)}
        updates, state = tx.update(grads, state, params)
    assert updates["w"].abs().min() > 0


def polynomial(values, name, steps):
    triples, default = SETS[name]
    for i in range(default if steps is None else steps):
        a, b, c = triples[min(i, len(triples) - 1)]
        values = a * values + b * values**3 + c * values**5
    return values


def orthogonal(u: Tensor, name="simple", steps=None) -> Tensor:
    """By singular values: an odd polynomial of a matrix is that of each of them."""
    left, values, right = torch.linalg.svd(u, full_matrices=False)
    return left @ torch.diag(polynomial(values / max(u.norm().item(), 1e-7), name, steps)) @ right


def shape(p, name):
    rows, cols = p.shape
    return {
        "original": math.sqrt(max(1, rows / cols)),
        "spectral": math.sqrt(rows / cols),
        "max_dim": math.sqrt(max(rows, cols)),
        "match_rms_adamw": 0.2 * math.sqrt(max(rows, cols)),
        "none": 1.0,
    }[name]


def momentum_of(s, g, beta, nesterov):
    s.m = beta * s.m + (1 - beta) * g
    return beta * s.m + (1 - beta) * g if nesterov else s.m


def summed_momentum_of(s, g, beta, nesterov):
    s.m = beta * s.m + g
    return g + beta * s.m if nesterov else s.m


def singular(x, steps):
    v = torch.ones(x.shape[1], dtype=x.dtype)
    v = v / v.norm()
    for _ in range(steps):
        v = x.T @ (x @ v)
        v = v / v.norm()
    return x @ v / (x @ v).norm(), v


# Matrices and Adam-atan2.


def mixed(orth, prefix):
    def rule(s, t, g, p, **options):
        o = {
            "lr": 1e-4, "betas": (0.9, 0.99), f"{prefix}_lr": None, "weight_decay": 0.0, "decoupled_wd": False,
            "cautious_factor": 1.0, "a": 1.27, "b": 1.0, f"{prefix}_beta1": 0.95, f"{prefix}_beta2": 0.95,
            f"{prefix}_steps": 5, f"{prefix}_rms_factor": 0.2, "use_normuon": False, "normuon_eps": 1e-10,
            "matrix_ndims": (2, 3), **options,
        }  # fmt: skip
        lr, factor = o["lr"], o["cautious_factor"]
        if p.ndim not in o["matrix_ndims"]:
            wd = o["weight_decay"] / (s.first if t > 1 else lr) if o["decoupled_wd"] else o["weight_decay"]
            if t == 1:
                s.first = lr
            b1, b2 = o["betas"]
            s.m, s.v = b1 * s.m + (1 - b1) * g, b2 * s.v + (1 - b2) * g**2
            u = torch.atan2(s.m / (1 - b1**t), o["b"] * (s.v / (1 - b2**t)).sqrt())
            if factor < 1:
                u = u * ref.caution_weights(u, g, factor)
            return p * (1 - lr * wd) - lr * o["a"] * u
        lr = lr if o[f"{prefix}_lr"] is None else o[f"{prefix}_lr"]
        if t == 1:
            s.first = lr
        wd = o["weight_decay"] / s.first if o["decoupled_wd"] else o["weight_decay"]
        s.m = o[f"{prefix}_beta1"] * s.m + (1 - o[f"{prefix}_beta1"]) * g
        batch = s.m.reshape(-1, *p.shape[-2:])
        u = torch.stack([orth(m, o[f"{prefix}_steps"]) for m in batch])
        if o["use_normuon"]:
            beta, eps = o[f"{prefix}_beta2"], o["normuon_eps"]
            size = u.flatten(1).norm(dim=1)[:, None, None]
            s.q = beta * s.q + (1 - beta) * (u**2).mean(-1, keepdim=True)
            u = u / (s.q.sqrt() + eps)
            u = u * size / u.flatten(1).norm(dim=1).clamp(min=eps)[:, None, None]
        u = u.reshape(p.shape) * math.sqrt(max(p.shape[-2:])) * o[f"{prefix}_rms_factor"]
        if factor < 1:
            u = u * ref.caution_weights(u, g, factor)
        return p * (1 - lr * wd) - lr * u

    return rule


# Shampoo.


def powered(H: Tensor, exponent: float, floor: float = 0.0) -> Tensor:
    left, values, right = torch.linalg.svd(H)
    return left @ torch.diag(values.clamp(min=floor) ** exponent) @ right


PUBLISHED_POLAR = [
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
]


def polar(steps):
    listed = [(a / 1.01, b / 1.01**3, c / 1.01**5) for a, b, c in PUBLISHED_POLAR[:-1]] + [PUBLISHED_POLAR[-1]]
    return [listed[min(i, 7)] for i in range(steps)]
