import pytest
import torch

import gradtx
from tests import references as ref
from tests.algorithms.matrices import moves_after_a_late_first_gradient, powered
from tests.matrix_problem import times, unfolded
from tests.references import BETA, RATE


def shampoo(
    s, t, g, p, lr=1e-1, momentum=0.0, weight_decay=0.0, decoupled_weight_decay=False, matrix_eps=1e-4,
    preconditioning_compute_steps=1, variant="paper",
):  # fmt: skip
    k = p.ndim
    if t == 1:
        s.b, s.H, s.R = g, [matrix_eps * torch.eye(n, dtype=p.dtype) for n in p.shape], [0] * k
    u = (1 - momentum) * g + momentum * s.b
    decayed = p * (1 - lr * weight_decay) if decoupled_weight_decay else p
    u = u if decoupled_weight_decay else u + weight_decay * p
    d = u
    for i in range(k):
        x = unfolded(u if variant == "paper" else d, i)
        s.H[i] = s.H[i] + x @ x.T
        if (t - 1) % preconditioning_compute_steps == 0:
            s.R[i] = powered(s.H[i], -1 / (2 * k) if variant == "paper" else -1 / k, matrix_eps)
        d = times(d, s.R[i], i)
    s.b = d
    return decayed - lr * d


SHAMPOO = [
    {},
    {"lr": 0.02, "momentum": 0.7, "weight_decay": 0.3, "preconditioning_compute_steps": 3, "matrix_eps": 0.01},
    {"lr": 0.02, "momentum": 0.7, "weight_decay": 0.3, "decoupled_weight_decay": True, "matrix_eps": 0.1},
    {"lr": 0.02, "variant": "moskomule", "momentum": 0.5, "weight_decay": 0.1, "matrix_eps": 0.01},
    {"lr": 0.02, "variant": "moskomule", "preconditioning_compute_steps": 4, "matrix_eps": 0.1},
    {"lr": RATE, "momentum": BETA, "weight_decay": RATE, "matrix_eps": 0.1},
]
# The null space of H is magnified by its inverse root: 1e-16 of H is 1e-12 of matrix_eps.
ROOTS = 1e-10


@pytest.mark.parametrize("options", SHAMPOO, ids=ref.named)
def test_shampoo_follows_the_loop(options):
    ref.follows(gradtx.shampoo(**options), ref.WeightsLoop(shampoo, **options), tolerance=ROOTS)


# All.


@pytest.mark.parametrize("make", [gradtx.shampoo], ids=ref.named)
def test_a_leaf_whose_first_gradient_comes_late_moves(make):
    moves_after_a_late_first_gradient(make(preconditioning_compute_steps=100))


@pytest.mark.parametrize("tx", [gradtx.shampoo(lr=1.0), gradtx.soap(lr=1.0, precondition_1d=True)], ids=ref.named)
def test_gradients_through_training_are_finite_at_equal_eigenvalues(tx):
    scale = torch.tensor(1.0, requires_grad=True)
    params = {"w": torch.ones(4), "m": torch.eye(3)}
    state, total = tx.init(params), 0.0
    for _ in range(3):
        updates, state = tx.update({name: scale * p for name, p in params.items()}, state, params)
        total = total + sum(u.sum() for u in updates.values())
    (slope,) = torch.autograd.grad(total, scale)
    assert slope.isfinite()
