"""Hessian-free: the dense solve at the end of an iteration, Martens' stop, damping that follows the gain."""

import math

import pytest
import torch
from torch.nn import functional

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
    updates_of,
    vector_of,
)


def conjugate_gradient(G, g, lam, x, max_steps, stops):
    """The iteration on (G + lam) x = -g, and Martens' criterion; returns x and the number of steps."""
    A = G + lam * torch.eye(len(g), dtype=g.dtype)
    q = lambda x: (x @ A @ x / 2 + g @ x).item()  # noqa: E731
    r = A @ x + g
    p, values = -r, [q(x)]
    for i in range(1, max_steps + 1):
        if r.norm() <= 1e-15 * g.norm():
            return x, i - 1
        a = (r @ r) / (p @ A @ p)
        x, new = x + a * p, r + a * (A @ p)
        p, r = -new + (new @ new) / (r @ r) * p, new
        values.append(q(x))
        k = max(10, math.ceil(i / 10))
        if stops and i > k and values[i] < 0 and (values[i] - values[i - k]) / values[i] < 5e-4 * k:
            return x, i
    return x, max_steps


def loop(fn, x, steps, lr=1.0, damping=1.0, max_steps=50, stops=True, warm_start=0.95, adapt=True):
    """Returns the points, the dampings, and the numbers of products."""
    lam, solution, points, dampings, counts = damping, torch.zeros_like(x), [], [], []
    for _ in range(steps):
        J, r = torch.func.jacfwd(fn)(x), fn(x)
        G, g = J.mT @ J, J.mT @ r
        solution, count = conjugate_gradient(G, g, lam, warm_start * solution, max_steps, stops)
        predicted = g @ solution + solution @ G @ solution / 2
        rho = ((fn(x + solution).square().sum() - r.square().sum()) / 2 / predicted).item()
        if adapt:
            lam *= 1.5 if rho < 0.25 else 2 / 3 if rho > 0.75 else 1.0
        x = x + lr * solution
        points.append(x)
        dampings.append(lam)
        counts.append(count)
    return torch.stack(points), torch.tensor(dampings, dtype=torch.float64), counts


def flat(fn, params):
    return lambda x: fn(tree_of(x, params))


@pytest.mark.parametrize("m", [4, 9, 20])
@pytest.mark.parametrize("damping", [1e-2, 1.0, 100.0])
def test_without_a_stop_and_adaptation_it_is_the_dense_solve(m, damping):
    params, fn = start_of(), residuals_of(m)
    tx = gradtx.hessian_free(damping=damping, stop="never", adapt=False, max_steps=200)
    x, rows = vector_of(params), []
    for _ in range(3):
        J, r = jacobian_of(fn, tree_of(x, params)), fn(tree_of(x, params))
        x = x - torch.linalg.solve(J.mT @ J + damping * torch.eye(9, dtype=x.dtype), J.mT @ r)
        rows.append(x)
    torch.testing.assert_close(path_of(tx, params, 3, residual_fn=fn), torch.stack(rows), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(path_in_optimizer(tx, params, fn, 3), torch.stack(rows), rtol=1e-7, atol=1e-7)


# So that the criterion of Martens ends iterations, before rounding errors decide the iterates.
WIDE = {"w": 0.1 * drawn(30, 60)}
SCALES = torch.logspace(0, -1, 60, dtype=torch.float64)
FORWARD, TARGET = drawn(31, 80, 60) * SCALES, drawn(32, 80)


def wide(p):
    return (0.3 * FORWARD @ p["w"]).tanh() - TARGET


@pytest.mark.parametrize("stop", ["martens", "never"])
@pytest.mark.parametrize("max_steps", [5, 50])
def test_the_path_is_that_of_a_plain_loop(max_steps, stop):
    options = {"lr": 0.9, "damping": 1.0, "max_steps": max_steps, "warm_start": 0.9}
    expected, dampings, counts = loop(flat(wide, WIDE), WIDE["w"], 4, stops=stop == "martens", **options)
    tx = gradtx.hessian_free(stop=stop, **options)
    torch.testing.assert_close(path_of(tx, WIDE, 4, residual_fn=wide), expected, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(path_in_optimizer(tx, WIDE, wide, 4), expected, rtol=1e-6, atol=1e-8)
    if stop == "martens" and max_steps == 50:
        assert min(counts) < 50  # the criterion was met
    state = tx.init(WIDE)
    params = WIDE
    for damping in dampings:
        updates, state = tx.update(params, state, params, residual_fn=wide)
        params = gradtx.apply_updates(params, updates)
        torch.testing.assert_close(state["scale_by_hessian_free"]["damping"], damping, rtol=1e-12, atol=0.0)


def test_the_damping_grows_after_bad_predictions_and_falls_after_good_ones():
    fn = lambda p: torch.cat([p["x"].atan(), 0.01 * p["x"]])  # noqa: E731
    far, near = ({"x": torch.tensor([x], dtype=torch.float64)} for x in (5.0, 0.1))
    tx = gradtx.hessian_free(damping=1e-4)
    for params, factor in ((far, 1.5), (near, 2 / 3)):
        _, state = tx.update(params, tx.init(params), params, residual_fn=fn)
        assert state["scale_by_hessian_free"]["damping"].item() == pytest.approx(1e-4 * factor, rel=1e-12)
    _, state = tx.update(near, tx.init(near), near, residual_fn=lambda p: fn(p) * torch.nan)
    assert state["scale_by_hessian_free"]["damping"].item() == pytest.approx(1.5e-4, rel=1e-12)


def test_a_warm_start_begins_at_a_share_of_the_last_solution():
    tx = gradtx.hessian_free(damping=1e-3, max_steps=1, warm_start=0.5, adapt=False)
    expected, _, _ = loop(
        flat(wide, WIDE), WIDE["w"], 3, damping=1e-3, max_steps=1, warm_start=0.5, adapt=False, stops=False
    )
    torch.testing.assert_close(path_of(tx, WIDE, 3, residual_fn=wide), expected, rtol=1e-9, atol=1e-9)
    cold = path_of(tx.replace(warm_start=0.0), WIDE, 3, residual_fn=wide)
    assert not torch.allclose(cold, expected)


def test_the_rate_scales_the_step_and_not_the_solution():
    params, fn = start_of(), residuals_of(12)
    whole, half = (gradtx.hessian_free(lr=lr, adapt=False) for lr in (1.0, 0.5))
    full = updates_of(whole, params, residual_fn=fn)
    torch.testing.assert_close(vector_of(updates_of(half, params, residual_fn=fn)), 0.5 * vector_of(full))


def test_outputs_with_a_loss_give_the_generalized_gauss_newton_direction():
    X, labels = drawn(1, 7, 4), torch.tensor([0, 1, 2, 0, 2, 1, 1])
    params = {"w": drawn(2, 4, 3), "b": drawn(3, 3)}
    outputs = lambda p: (X @ p["w"] + p["b"]).tanh()  # noqa: E731
    loss = lambda z: functional.cross_entropy(z, labels)  # noqa: E731
    J = jacobian_of(lambda p: outputs(p).reshape(-1), params)
    z = outputs(params).reshape(-1)
    slope, H = (d(lambda z: loss(z.reshape(7, 3)))(z) for d in (torch.func.grad, torch.func.hessian))
    expected = -torch.linalg.solve(J.mT @ H @ J + 0.01 * torch.eye(15, dtype=z.dtype), J.mT @ slope)
    tx = gradtx.hessian_free(damping=0.01, stop="never", max_steps=200)
    u = updates_of(tx, params, outputs_fn=outputs, loss_of_outputs=loss)
    torch.testing.assert_close(vector_of(u), expected, rtol=1e-7, atol=1e-8)
    optimizer, leaves = optimizer_of(tx, params)
    optimizer.step(outputs_fn=lambda: outputs(leaves), loss_of_outputs=loss)
    torch.testing.assert_close(vector_of(leaves).detach() - vector_of(params), expected, rtol=1e-7, atol=1e-8)


def test_members_of_a_vmap_stop_each_on_its_own():
    dampings = torch.tensor([1.0, 100.0], dtype=torch.float64)

    def run(damping):
        return path_of(gradtx.hessian_free(damping=damping), WIDE, 3, residual_fn=wide)

    together = torch.vmap(run)(dampings)
    for damping, found in zip(dampings, together, strict=True):
        torch.testing.assert_close(found, run(damping), rtol=1e-7, atol=1e-9)


def test_a_checkpoint_keeps_the_solution_and_the_damping():
    params, fn = start_of(), residuals_of(12)
    optimizer, leaves = optimizer_of(gradtx.hessian_free(), params)
    for _ in range(3):
        optimizer.step(lambda: fn(leaves))
    again, copies = optimizer_of(gradtx.hessian_free(), {name: leaf.detach() for name, leaf in leaves.items()})
    again.load_state_dict(optimizer.state_dict())
    optimizer.step(lambda: fn(leaves))
    again.step(lambda: fn(copies))
    assert torch.equal(vector_of(leaves), vector_of(copies))


def test_the_step_returns_the_loss():
    params, fn = start_of(), residuals_of(12)
    optimizer, leaves = optimizer_of(gradtx.hessian_free(), params)
    assert optimizer.step(lambda: fn(leaves)).item() == pytest.approx(fn(params).square().sum().item() / 2)
