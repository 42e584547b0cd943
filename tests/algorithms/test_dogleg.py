"""Dogleg: its path is that of a plain loop, and its region of trust follows the gain."""

import pytest
import torch

import gradtx
from tests.algorithms.least_squares import (
    drawn,
    optimizer_of,
    path_in_optimizer,
    path_of,
    residuals_of,
    start_of,
    tree_of,
    vector_of,
)
from tests.least_squares_problems import CLASSIC, vector


def bent(newton, cauchy, g, radius):
    """The point of the path at a radius: Madsen, Nielsen and Tingleff 2004, 3.20."""
    if newton.norm() <= radius:
        return newton
    if cauchy.norm() >= radius:
        return -radius * g / g.norm()
    way = newton - cauchy
    a, b, c = way @ way, 2 * cauchy @ way, cauchy @ cauchy - radius**2
    return cauchy + (-b + (b * b - 4 * a * c).sqrt()) / (2 * a) * way


def loop(fn, x, steps, radius=1.0):
    points, radii = [], []
    for _ in range(steps):
        J, r = torch.func.jacfwd(fn)(x), fn(x)
        g = J.mT @ r
        newton = -torch.linalg.lstsq(J, r[:, None]).solution[:, 0]
        h = bent(newton, -g * (g @ g) / (J @ g).square().sum(), g, radius)
        predicted = (-g @ h - (J @ h).square().sum() / 2).item()
        before, after = (fn(at).square().sum().item() / 2 for at in (x, x + h))
        if predicted > 2 * 2**-52 * before:
            rho = (before - after) / predicted if after < float("inf") else -float("inf")
            x = x + h if rho > 0 else x
            if rho > 0.75:
                radius = max(radius, 3 * h.norm().item())
            elif not rho >= 0.25:
                radius /= 2
        points.append(x)
        radii.append(radius)
    return torch.stack(points), torch.tensor(radii, dtype=torch.float64)


def path_with_radii(tx, params, fn, steps):
    state, points, radii = tx.init(params), [], []
    for _ in range(steps):
        updates, state = tx.update(params, state, params, residual_fn=fn)
        params = gradtx.apply_updates(params, updates)
        points.append(vector_of(params))
        radii.append(state["scale_by_dogleg"]["radius"])
    return torch.stack(points), torch.stack(radii)


@pytest.mark.parametrize("radius", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("name", ["Rosenbrock", "Bard", "Osborne 1", "Decay"])
def test_the_path_is_that_of_a_plain_loop(name, radius):
    problem = CLASSIC[name]
    start, steps = problem.starts[0], 12
    expected, radii = loop(problem.residual, start, steps, radius)
    tx = gradtx.dogleg(radius=radius)
    points, found = path_with_radii(tx, problem.named(start), problem.residual, steps)
    # Residuals of a fit that barely falls decide by rounding whether the last trials are taken.
    moves = (expected - torch.cat([start[None], expected[:-1]])).norm(dim=1) > 1e-6 * expected.norm(dim=1)
    torch.testing.assert_close(points[moves], expected[moves], rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(found[moves], radii[moves], rtol=1e-6, atol=0.0)
    in_optimizer = path_in_optimizer(tx, problem.named(start), problem.residual, steps)
    torch.testing.assert_close(in_optimizer[moves], expected[moves], rtol=1e-7, atol=1e-9)


def test_leaves_of_several_shapes_are_one_vector():
    params, fn = start_of(), residuals_of(15)
    expected, _ = loop(lambda x: fn(tree_of(x, params)), vector_of(params), 6)
    torch.testing.assert_close(path_of(gradtx.dogleg(), params, 6, residual_fn=fn), expected, rtol=1e-7, atol=1e-9)


def test_a_step_is_as_long_as_the_radius_unless_newtons_is_shorter():
    A, y = drawn(1, 12, 9), drawn(2, 12)
    fn = lambda p: A @ vector_of(p) - y  # noqa: E731
    params = start_of()
    newton = (torch.linalg.lstsq(A, y[:, None]).solution[:, 0] - vector_of(params)).norm()
    for radius in (1e-3, 0.1 * newton, 0.5 * newton, 0.9 * newton, 2 * newton):
        moved = path_of(gradtx.dogleg(radius=float(radius)), params, 1, residual_fn=fn)[0] - vector_of(params)
        assert moved.norm().item() == pytest.approx(min(radius, newton).item() if radius > 1e-2 else 1e-3, rel=1e-9)


@pytest.mark.parametrize("name", ["Rosenbrock", "Bard", "Osborne 1", "Decay"])
def test_it_reaches_the_known_minimum(name):
    problem = CLASSIC[name]
    start = problem.starts[-1]
    path = path_of(gradtx.dogleg(), problem.named(start), 60, residual_fn=problem.residual)
    assert problem.loss(path[-1]).item() == pytest.approx(problem.minimum, rel=1e-8, abs=1e-20)


def test_at_the_minimum_the_radius_stays():
    problem = CLASSIC["Decay"]
    points, radii = path_with_radii(gradtx.dogleg(), problem.named(problem.starts[1]), problem.residual, 200)
    assert points.isfinite().all()
    assert radii[-1] == radii[-100]


def test_a_rejected_trial_halves_the_radius_and_residuals_that_are_nan_take_no_step():
    fn = lambda p: p["x"].log() - 1  # noqa: E731
    params = {"x": vector(20.0)}
    points, radii = path_with_radii(gradtx.dogleg(radius=100.0), params, fn, 40)
    assert points[0] == 20.0
    assert radii[0] == 50.0
    assert points[-1].item() == pytest.approx(torch.e)
    points, radii = path_with_radii(gradtx.dogleg(), params, lambda p: fn(p) * torch.nan, 2)
    assert (points == 20.0).all()
    assert radii.tolist() == [0.5, 0.25]


def test_members_of_a_vmap_accept_each_on_its_own_and_one_that_is_nan_leaves_the_others_alone():
    problem = CLASSIC["Rosenbrock"]
    starts = torch.stack([problem.starts[0], vector(torch.nan, 1.0), vector(0.5, 2.0)])
    radii = vector(0.1, 1.0, 10.0)

    def run(start, radius):
        return path_of(gradtx.dogleg(radius=radius), {"x": start}, 12, residual_fn=lambda p: problem.residual(p["x"]))

    together = torch.vmap(run)(starts, radii)
    for i in (0, 2):
        torch.testing.assert_close(together[i], run(starts[i], radii[i]), rtol=1e-9, atol=1e-9)


def test_a_checkpoint_resumes_bit_for_bit():
    problem = CLASSIC["Rosenbrock"]
    optimizer, leaves = optimizer_of(gradtx.dogleg(), problem.named(problem.starts[0]))
    for _ in range(5):
        optimizer.step(lambda: problem.residual(leaves))
    again, copies = optimizer_of(gradtx.dogleg(), {name: leaf.detach() for name, leaf in leaves.items()})
    again.load_state_dict(optimizer.state_dict())
    for _ in range(5):
        optimizer.step(lambda: problem.residual(leaves))
        again.step(lambda: problem.residual(copies))
    assert torch.equal(vector_of(leaves), vector_of(copies))


def test_the_step_returns_the_loss():
    problem = CLASSIC["Rosenbrock"]
    optimizer, leaves = optimizer_of(gradtx.dogleg(), problem.named(problem.starts[0]))
    assert optimizer.step(lambda: problem.residual(leaves)).item() == pytest.approx(24.2 / 2)
