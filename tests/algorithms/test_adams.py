import math

import pytest
import torch

import gradtx
from tests import references as ref
from tests.references import DECAY, finite_without_gradient, first_update, follows


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"betas": (0.8, 0.95), "eps": 0.05, "weight_decay": 0.1},
        {"betas": (0.8, 0.7), "weight_decay": 0.1, "amsgrad": True},
        {"weight_decay": DECAY},
    ],
    ids=str,
)
def test_adams_follows_the_loop(options):
    loop = ref.StableDecay(**options)

    def step(grads, params):
        return {name: -0.02 * direction for name, direction in loop(grads, params).items()}

    ref.follows(gradtx.adams(lr=0.02, **options), step)


@pytest.mark.slow
def test_the_mean_of_adams_spans_parameter_groups():
    def trained(groups):
        params = [torch.nn.Parameter(param) for param in ref.problem().values()]
        optimizer = gradtx.optim.AdamS(groups(params), lr=0.02, weight_decay=0.3)
        for t in range(5):
            for i, param in enumerate(params):
                param.grad = (i + 1) * (param.detach() + t).sin()
            optimizer.step()
        return params

    one, two = trained(lambda p: p), trained(lambda p: [{"params": p[:2]}, {"params": p[2:]}])
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-14, atol=0)


def test_without_decay_it_is_adam():
    tx = gradtx.scale_by_adam_stable_decay((0.8, 0.95), eps=1e-3, weight_decay=0.0)
    follows(tx, gradtx.scale_by_adam((0.8, 0.95), eps=1e-3), rate=-0.02)


def test_the_mean_is_over_entries_of_leaves_with_a_gradient():
    tx = gradtx.scale_by_adam_stable_decay(weight_decay=1.0, eps=0.0)
    params = {"large": torch.ones(9, dtype=torch.float64), "small": torch.ones((), dtype=torch.float64)}
    params["frozen"] = torch.ones(1000, dtype=torch.float64)
    grads = {"large": torch.zeros_like(params["large"]) + 1, "small": torch.tensor(11.0).double(), "frozen": None}
    updates, _ = tx.update(grads, tx.init(params), params)
    assert updates["small"].item() == pytest.approx(1 + 1 / math.sqrt((9 + 121) / 10), rel=1e-14)
    assert updates["frozen"] is None


def test_zero_gradients_skip_the_decay():
    tx = gradtx.scale_by_adam_stable_decay(weight_decay=1.0)
    assert finite_without_gradient(tx)
    assert first_update(tx, [0.0, 0.0], [1.0, 2.0], steps=3) == [0.0, 0.0]


def test_zero_gradients_have_finite_derivatives():
    def first(scale):
        tx = gradtx.scale_by_adam_stable_decay(weight_decay=1.0)
        params = {"w": torch.ones(2, dtype=torch.float64)}
        return tx.update({"w": scale * params["w"]}, tx.init(params), params)[0]["w"].sum()

    assert torch.func.grad(first)(torch.tensor(0.0, dtype=torch.float64)).isfinite()
