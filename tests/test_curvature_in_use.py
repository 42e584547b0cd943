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


class Once(torch.autograd.Function):
    """A square whose backward pass cannot be differentiated."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.square()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 2 * x * gradient


def stepped(square, solve):
    """The weights after a step, in an optimizer."""
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    optimizer = gradtx.as_optimizer(gradtx.gauss_newton(solve=solve), [("weight", weight)])
    optimizer.step(lambda: torch.cat([square(weight), 3 * weight - 1]))
    return weight.detach()


def updated(square, solve):
    """The same, in pure use."""
    params = {"weight": torch.tensor([1.0, 2.0], dtype=torch.float64)}
    tx = gradtx.gauss_newton(solve=solve)

    def residual_fn(p):
        return torch.cat([square(p["weight"]), 3 * p["weight"] - 1])

    updates, _ = tx.update(params, tx.init(params), params, residual_fn=residual_fn)
    return params["weight"] + updates["weight"]


@pytest.mark.parametrize("after", [stepped, updated])
@pytest.mark.parametrize("solve", ["qr", "dense", "kernel", "cg"])
def test_residuals_with_a_single_backward_pass_have_a_matrix_but_no_products(solve, after):
    expected = after(torch.square, solve)
    if solve == "cg":
        with pytest.raises(RuntimeError, match="a backward pass that cannot be differentiated"):
            after(Once.apply, solve)
    else:
        torch.testing.assert_close(after(Once.apply, solve), expected, rtol=1e-12, atol=1e-12)


def test_parameters_without_entries_are_named():
    empty = torch.nn.Parameter(torch.zeros(0, 3))
    optimizer = gradtx.as_optimizer(gradtx.gauss_newton(), [("empty", empty)])
    with pytest.raises(ValueError, match="the parameters have no entries"):
        optimizer.step(lambda: torch.ones(2) + empty.sum())
