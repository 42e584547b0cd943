"""SPRING: the recursion in sample space is the one in the space of parameters."""

import pytest
import torch

import gradtx
from tests.algorithms.least_squares import (
    drawn,
    jacobian_of,
    optimizer_of,
    path_in_optimizer,
    path_of,
    residuals_of,
    start_of,
    tree_of,
    vector_of,
)


def loop(problem, x, steps, lr, damping, mu, norm_constraint=None):
    """phi <- (O^T O + lam)^-1 (O^T e + lam mu phi), in the form of netket; `problem` gives O and e."""
    phi, rows = torch.zeros_like(x), []
    unit = torch.eye(len(x), dtype=x.dtype)
    for _ in range(steps):
        samples, e = problem(x)
        phi = torch.linalg.solve(samples.mT @ samples + damping * unit, samples.mT @ e + damping * mu * phi)
        rate = lr if norm_constraint is None else min(lr, norm_constraint**0.5 / phi.norm().item())
        x = x - rate * phi
        rows.append(x)
    return torch.stack(rows)


def of_residuals(fn, params):
    def problem(x):
        p = tree_of(x, params)
        J, r = jacobian_of(fn, p), fn(p)
        return J / len(r) ** 0.5, r / len(r) ** 0.5

    return problem


@pytest.mark.parametrize("norm_constraint", [None, 1e-2])
@pytest.mark.parametrize("mu", [0.0, 0.9, 0.99])
@pytest.mark.parametrize("m", [4, 9, 20])
def test_residuals_follow_the_recursion_in_the_space_of_parameters(m, mu, norm_constraint):
    params, fn = start_of(), residuals_of(m)
    options = {"lr": 0.2, "damping": 1e-2, "mu": mu, "norm_constraint": norm_constraint}
    expected = loop(of_residuals(fn, params), vector_of(params), 6, **options)
    tx = gradtx.spring(**options)
    torch.testing.assert_close(path_of(tx, params, 6, residual_fn=fn), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(path_in_optimizer(tx, params, fn, 6), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("m", [4, 20])
def test_without_momentum_and_bound_it_is_gauss_newton_in_sample_space(m):
    params, fn = start_of(), residuals_of(m)
    tx = gradtx.spring(lr=0.3, damping=1e-3, mu=0.0, norm_constraint=None)
    expected = gradtx.gauss_newton(lr=0.3, damping=1e-3, solve="kernel", reduction="mean")
    torch.testing.assert_close(
        path_of(tx, params, 5, residual_fn=fn), path_of(expected, params, 5, residual_fn=fn), rtol=1e-9, atol=1e-10
    )


def test_weighted_terms_are_those_of_gauss_newton():
    params, inner, edge = start_of(), residuals_of(6, 20), residuals_of(3, 40)
    terms = lambda p: {"inner": inner(p), "edge": edge(p)}  # noqa: E731
    weights = {"inner": 1.0, "edge": 10.0}
    tx = gradtx.spring(lr=0.3, damping=1e-3, mu=0.0, norm_constraint=None, weights=weights)
    expected = gradtx.gauss_newton(lr=0.3, damping=1e-3, reduction="mean", weights=weights)
    torch.testing.assert_close(
        path_of(tx, params, 3, residual_fn=terms), path_of(expected, params, 3, residual_fn=terms), rtol=1e-9, atol=1e-9
    )


# Outputs: log-amplitudes of walkers, with local energies.


def log_amplitudes(params):
    walkers = WALKERS
    return (walkers @ vector_of(params)).tanh() + 0.1 * (walkers.square() @ vector_of(params))


WALKERS, ENERGIES = drawn(1, 12, 9), drawn(2, 12)


def of_outputs(params, centered):
    def problem(x):
        J = jacobian_of(log_amplitudes, tree_of(x, params))
        e = ENERGIES
        if centered:
            J, e = J - J.mean(0), e - e.mean()
        return J / 12**0.5, e / 12**0.5

    return problem


@pytest.mark.parametrize("centered", [False, True])
def test_outputs_follow_the_recursion_too(centered):
    params = start_of()
    options = {"lr": 0.05, "damping": 1e-3, "mu": 0.9, "norm_constraint": None}
    expected = loop(of_outputs(params, centered), vector_of(params), 5, **options)
    tx = gradtx.spring(centered=centered, **options)
    path = path_of(tx, params, 5, outputs_fn=log_amplitudes, output_grads=ENERGIES)
    torch.testing.assert_close(path, expected, rtol=1e-9, atol=1e-9)
    optimizer, leaves = optimizer_of(tx, params)
    for row in expected:
        optimizer.step(outputs_fn=lambda: log_amplitudes(leaves), output_grads=ENERGIES)
        torch.testing.assert_close(vector_of(leaves).detach(), row, rtol=1e-9, atol=1e-9)


def test_a_constant_added_to_all_energies_changes_nothing_if_centered():
    params, tx = start_of(), gradtx.spring(lr=0.1, centered=True)
    path = path_of(tx, params, 3, outputs_fn=log_amplitudes, output_grads=ENERGIES)
    moved = path_of(tx, params, 3, outputs_fn=log_amplitudes, output_grads=ENERGIES + 5.0)
    torch.testing.assert_close(moved, path, rtol=1e-9, atol=1e-9)


def test_the_constraint_bounds_the_square_of_the_step():
    params, fn = start_of(), residuals_of(12)
    for bound in (1e-4, 1e-2):
        tx = gradtx.spring(lr=10.0, norm_constraint=bound)
        steps = torch.diff(torch.cat([vector_of(params)[None], path_of(tx, params, 4, residual_fn=fn)]), dim=0)
        torch.testing.assert_close(steps.square().sum(1), torch.full((4,), bound, dtype=torch.float64))


def test_float32_solves_by_eigenvalues_as_float64_does():
    params, fn = start_of(), residuals_of(20)
    narrow = {name: leaf.float() for name, leaf in params.items()}
    tx = gradtx.spring(lr=0.1, damping=1e-3, norm_constraint=None)
    path = path_of(tx, narrow, 3, residual_fn=lambda p: fn({n: leaf.double() for n, leaf in p.items()}).float())
    torch.testing.assert_close(path.double(), path_of(tx, params, 3, residual_fn=fn), rtol=1e-4, atol=1e-4)


def test_members_of_a_vmap_over_rates_dampings_and_momenta_step_as_they_do_alone():
    params, fn = start_of(), residuals_of(12)
    numbers = torch.tensor([[0.1, 1e-3, 0.9], [0.5, 0.1, 0.0]], dtype=torch.float64)

    def run(lr, damping, mu):
        return path_of(gradtx.spring(lr=lr, damping=damping, mu=mu), params, 4, residual_fn=fn)

    together = torch.vmap(lambda row: run(*row.unbind()))(numbers)
    for row, found in zip(numbers.tolist(), together, strict=True):
        torch.testing.assert_close(found, run(*row), rtol=1e-9, atol=1e-9)


def test_a_checkpoint_keeps_the_previous_direction():
    params, fn = start_of(), residuals_of(12)
    optimizer, leaves = optimizer_of(gradtx.spring(lr=0.1), params)
    for _ in range(3):
        optimizer.step(lambda: fn(leaves))
    again, copies = optimizer_of(gradtx.spring(lr=0.1), {name: leaf.detach() for name, leaf in leaves.items()})
    again.load_state_dict(optimizer.state_dict())
    optimizer.step(lambda: fn(leaves))
    again.step(lambda: fn(copies))
    assert torch.equal(vector_of(leaves), vector_of(copies))
