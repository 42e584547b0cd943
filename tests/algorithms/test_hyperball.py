import pytest
import torch

import gradtx
from tests.algorithms.matrices import matrices_follow, momentum_of, orthogonal
from tests.references import RATE, WeightsLoop, named, weights_follow


def on_sphere(s, t, p, u, lr):
    if t == 1:
        s.R = p.norm()
    q = p - lr * s.R * u / u.norm()
    return s.R * q / q.norm()


def adam_h(s, t, g, p, lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0):
    s.m = betas[0] * s.m + (1 - betas[0]) * g
    s.v = betas[1] * s.v + (1 - betas[1]) * g**2
    u = s.m / (1 - betas[0] ** t) / ((s.v / (1 - betas[1] ** t)).sqrt() + eps) + weight_decay * p
    return on_sphere(s, t, p, u, lr)


def muon_h(s, t, g, p, lr=1e-2, momentum=0.95, nesterov=True, ns_coefficients="simple", ns_steps=None, fallback=None):
    return on_sphere(s, t, p, orthogonal(momentum_of(s, g, momentum, nesterov), ns_coefficients, ns_steps), lr)


CASES = [    (gradtx.muon_h, muon_h, {}),
    (gradtx.muon_h, muon_h, {"lr": RATE, "momentum": 0.5, "nesterov": False, "ns_coefficients": "quintic"}),
]  # fmt: skip


@pytest.mark.parametrize(("alias", "rule", "options"), CASES, ids=named)
def test_the_matrices_follow_the_loop(alias, rule, options):
    matrices_follow(alias, rule, options)


@pytest.mark.parametrize(
    "options", [{}, {"lr": RATE, "betas": (0.6, 0.7), "eps": 1e-2, "weight_decay": 0.3}], ids=named
)
def test_adam_h_follows_the_loop(options):
    weights_follow(gradtx.adam_h(**options), WeightsLoop(adam_h, **options), without=("scalar",), tolerance=1e-10)


@pytest.mark.parametrize("tx", [gradtx.muon_h(), gradtx.hyperball(gradtx.trace(0.9), 0.1)], ids=str)
def test_a_leaf_that_starts_with_norm_0_is_an_error_that_names_it(tx):
    with pytest.raises(ValueError, match=r"scale_to_radius: leaf 'o' has initial norm 0 .*partition"):
        tx.init({"w": torch.ones(2, 2), "o": torch.zeros(2, 2)})


def test_on_the_sphere_an_update_of_zero_keeps_the_weights():
    tx = gradtx.hyperball(gradtx.chain(), 0.1)
    params = {"w": torch.tensor([3.0, 4.0])}
    updates, _ = tx.update({"w": torch.zeros(2)}, tx.init(params), params)
    torch.testing.assert_close(updates["w"], torch.zeros(2), atol=1e-6, rtol=0)
