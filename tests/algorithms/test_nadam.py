import pytest
import torch

import gradtx
from tests.algorithms.loops import with_decay
from tests.algorithms.shared_with_torch import SHARED
from tests.references import BETA, DECAY, RATE, WeightsLoop, adam_moments, follows, named


def nadam(
    s, t, g, p, lr=2e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, momentum_decay=4e-3,
    decoupled_weight_decay=False,
):  # fmt: skip
    def direction(s, t, g, p):
        mu, ahead = (betas[0] * (1 - 0.5 * 0.96 ** (i * momentum_decay)) for i in (t, t + 1))
        s.product = mu * (1 if t == 1 else s.product)
        _, v = adam_moments(s, t, g, betas)
        return ((1 - mu) / (1 - s.product) * g + ahead / (1 - s.product * ahead) * s.m) / (v.sqrt() + eps)

    return with_decay(direction)(s, t, g, p, lr, weight_decay, decoupled_weight_decay)


OPTIONS = [
    *((gradtx.nadam, nadam, options) for options in SHARED["NAdam"]),
    (gradtx.nadam, nadam, {"lr": RATE, "betas": (BETA, BETA), "weight_decay": DECAY, "momentum_decay": DECAY}),
]


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=named)
def test_the_weights_follow_the_loop(alias, rule, options):
    follows(alias(**options), WeightsLoop(rule, **options))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_product_is_a_float64_number_of_every_leaf_in_any_dtype(dtype):
    params = {"w": torch.ones(2, dtype=dtype), "s": torch.ones((), dtype=dtype)}
    tx = gradtx.scale_by_nadam(betas=(0.5, 0.9), momentum_decay=0.0)
    state = tx.init(params)
    assert {x.item() for x in state["scale_by_nadam"]["mu_product"].values()} == {1.0}
    for _ in range(2):
        _, state = tx.update(params, state)
    for product in state["scale_by_nadam"]["mu_product"].values():
        assert (product.shape, product.dtype, product.item()) == ((), torch.float64, 1 / 16)
