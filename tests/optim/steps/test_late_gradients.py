"""Leaves whose first gradient arrives after the first step of a clock that leaves share."""

import pytest
import torch

import gradtx

METHODS = {
    "acprop": gradtx.acprop(),
    "clip_to_history": gradtx.chain(
        gradtx.clip_to_history(lambda_rel=0.5, lambda_abs=100.0, warmup_steps=0), gradtx.scale(-0.01)
    ),
    "apollo_low_rank": gradtx.apollo_low_rank(rank=2),
    "fira": gradtx.fira(rank=2, lr=0.01),
    "galore": gradtx.galore(rank=2, lr=0.01),
    "kl_shampoo": gradtx.kl_shampoo(eps=1e-4),
    "sgd_sai": gradtx.sgd_sai(lr=0.01),
}
STEPS = 5


def gradient(i):
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(i))


def pure(tx, missed):
    params = {"late": gradient(99), "other": gradient(98)}
    start, state = params["late"], tx.init(params)
    for i in range(-missed, STEPS):
        grads = {"late": gradient(i) if i >= 0 else None, "other": gradient(50 + i)}
        updates, state = tx.update(grads, state, params)
        params = gradtx.apply_updates(params, updates)
    return (params["late"] - start).norm().item()


def optimizer(tx, missed):
    params = {"late": torch.nn.Parameter(gradient(99)), "other": torch.nn.Parameter(gradient(98))}
    steps = gradtx.as_optimizer(gradtx.skip_nonfinite(tx), params.items())
    for i in range(-missed, STEPS):
        params["late"].grad = gradient(i) if i >= 0 else None
        params["other"].grad = gradient(50 + i)
        steps.step()
    return (params["late"].detach() - gradient(99)).norm().item()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("form", [pure, optimizer])
def test_a_late_leaf_neither_stands_still_nor_jumps(form, name):
    ratio = form(METHODS[name], missed=3) / form(METHODS[name], missed=0)
    if name in ("sgd_sai", "clip_to_history"):  # nothing in them follows the clock
        assert ratio == pytest.approx(1, rel=1e-5)
    assert 0.01 < ratio < 10  # bias corrections follow the clock


@pytest.mark.parametrize("name", ["fira", "apollo_low_rank"])
def test_a_zero_gradient_does_not_stop_a_leaf_for_good(name):
    tx, params = METHODS[name], {"w": gradient(0)}
    state = tx.init(params)
    for grad in (torch.zeros(4, 6), gradient(1), gradient(2)):
        updates, state = tx.update({"w": grad}, state, params)
    assert updates["w"].norm() > 1e-3


def test_kl_shampoo_waits_for_the_first_gradient_that_is_not_zero():
    tx, params = gradtx.scale_by_kl_shampoo(), {"w": gradient(0)}
    state = tx.init(params)
    for grad in (torch.zeros(4, 6), gradient(1)):
        updates, state = tx.update({"w": grad}, state, params)
    assert torch.equal(updates["w"], torch.zeros(4, 6))


@pytest.mark.parametrize("name", ["sgd_sai", "acprop", "fira", "kl_shampoo"])
def test_optimizers_restart_at_a_kept_clock_as_pure_updates_do(name):
    tx = gradtx.restart(METHODS[name], every=3, keep_clock=True)
    params = {"w": gradient(99).double()}
    weight = torch.nn.Parameter(params["w"].clone())
    state, optimizer = tx.init(params), gradtx.as_optimizer(tx, [("w", weight)])
    for i in range(8):
        grads = {"w": gradient(i).double()}
        updates, state = tx.update(grads, state, params)
        params = gradtx.apply_updates(params, updates)
        weight.grad = grads["w"]
        optimizer.step()
    torch.testing.assert_close(weight.detach(), params["w"], rtol=1e-9, atol=1e-12)
