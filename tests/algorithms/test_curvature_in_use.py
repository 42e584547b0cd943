"""Least squares as users meet it: compiled steps, states of other parameters."""

from __future__ import annotations

import pytest
import torch

import gradtx

X = torch.linspace(0, 3, 20, dtype=torch.float64)
Y = 2 * torch.exp(-1.5 * X)


def residual_fn(params):
    return params["a"] * torch.exp(-params["k"] * X) - Y


def start():
    one = torch.ones((), dtype=torch.float64)
    return {"a": one, "k": one.clone()}


@pytest.mark.parametrize("make", [gradtx.gauss_newton, gradtx.levenberg_marquardt])
def test_a_compiled_train_step_runs_the_update_outside_of_its_graph(make):
    tx = make()

    def step(params, state):
        updates, state = tx.update(params, state, params, residual_fn=residual_fn)
        return gradtx.apply_updates(params, updates), state

    params = start()
    state = tx.init(params)
    expected, _ = step(params, state)
    found, _ = torch.compile(step, backend="eager")(params, state)
    assert found == expected


@pytest.mark.parametrize("tx", [gradtx.spring(lr=0.1), gradtx.levenberg_marquardt(scaling="running")])
def test_a_state_of_other_parameters_is_named(tx):
    state = tx.init(start())
    params = {**start(), "extra": torch.ones((), dtype=torch.float64)}
    with pytest.raises(ValueError, match=r"state lacks \['extra'\]; pass the state"):
        tx.update(params, state, params, residual_fn=residual_fn)


def test_a_pinn_without_create_graph_is_told_of_it():
    weight = torch.nn.Parameter(torch.ones((), dtype=torch.float64))
    optimizer = gradtx.optim.GaussNewton([weight])

    def closure():
        points = X.clone().requires_grad_()
        (slope,) = torch.autograd.grad((weight * points**2).sum(), points)
        return slope - 1

    with pytest.raises(RuntimeError, match="create_graph=True"):
        optimizer.step(closure)
