"""Solvers of linear systems and of linear least squares, against dense solutions."""

import pytest
import torch

from gradtx.maths.linear_solvers import System, cg, cg_with_report, lsmr

SHAPES = {"tall": (30, 10), "wide": (10, 30), "square": (15, 15)}
TOLERANCE, CLOSE = 1e-15, 1e-9
# Early, where steps are large, and late.
each_end = pytest.mark.parametrize("tolerance", [1e-2, 1e-10])


def matrix(shape, condition=10.0, rank=None, seed=0):
    """A matrix with singular values from 1 to the inverse of its condition."""
    rng = torch.Generator().manual_seed(seed)
    rank = min(shape) if rank is None else rank
    u, v = (torch.linalg.qr(torch.randn(side, rank, generator=rng, dtype=torch.float64))[0] for side in shape)
    return u * condition ** -torch.linspace(0, 1, rank, dtype=torch.float64) @ v.mT


def right_side(length, seed=1):
    return torch.randn(length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def positive_definite(condition=10.0):
    half = matrix(SHAPES["square"], condition**0.5)
    return half @ half.mT


def solved(a, b, damp=0.0, tolerance=TOLERANCE, max_steps=300):
    return lsmr(lambda v: a @ v, lambda u: a.mT @ u, b, damp, tolerance=tolerance, max_steps=max_steps)


def least_squares(a, b, damp=0.0):
    """The solution of least norm, from the singular values of the matrix with the damping below it."""
    unit = torch.eye(a.shape[1], dtype=a.dtype)
    stacked, right = torch.cat([a, damp * unit]), torch.cat([b, b.new_zeros(a.shape[1])])
    return torch.linalg.lstsq(stacked, right, rcond=1e-13, driver="gelsd").solution


def miss(x, expected):
    return ((x - expected).norm() / expected.norm()).item()


def system(a, b, guess=None, tolerance=1e-12, max_steps=100):
    return System(lambda v: a @ v, b, guess, lambda v: v, tolerance, max_steps)


@pytest.mark.parametrize("damp", [0.0, 0.3])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_lsmr_equals_dense_least_squares(shape, damp):
    a, b = matrix(shape), right_side(shape[0])
    x, steps, relative = solved(a, b, damp)
    assert miss(x, least_squares(a, b, damp)) < CLOSE
    assert relative <= TOLERANCE
    assert 0 < steps < 300


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_lsmr_with_damping_equals_the_normal_equations_of_a_singular_matrix(shape):
    a, b = matrix(shape, rank=4), right_side(shape[0])
    normal = a.mT @ a + 0.3**2 * torch.eye(shape[1], dtype=a.dtype)
    x, steps, _ = solved(a, b, 0.3)
    assert miss(x, torch.linalg.solve(normal, a.mT @ b)) < CLOSE
    assert steps <= 6  # an exact solution after as many steps as the rank


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_lsmr_finds_the_solution_of_least_norm_of_a_singular_matrix(shape):
    a, b = matrix(shape, rank=4), right_side(shape[0])
    assert miss(solved(a, b).x, least_squares(a, b)) < CLOSE


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_lsmr_solves_an_ill_conditioned_problem(shape):
    a = matrix(shape, condition=1e6)
    expected = a.mT @ right_side(shape[0])  # has a share in each singular vector
    b = a @ expected
    assert miss(solved(a, b, tolerance=1e-19).x, expected) < CLOSE
    # With a residual that is not 0, the error grows with the square of the condition, as that of dense methods does.
    b = right_side(shape[0])
    assert miss(solved(a, b).x, least_squares(a, b)) < 1e3 * CLOSE


def test_the_relative_residual_of_lsmr_is_that_of_the_normal_equations():
    a, b = matrix(SHAPES["tall"], condition=1e3), right_side(30)
    before = 1.0
    for steps in range(12):
        x, made, relative = solved(a, b, 0.1, max_steps=steps)
        gradient = a.mT @ (b - a @ x) - 0.1**2 * x
        torch.testing.assert_close(relative, gradient.norm() / (a.mT @ b).norm(), rtol=1e-6, atol=1e-12)
        assert made == steps
        assert relative <= before
        before = relative


def test_lsmr_takes_steps_down_to_the_tolerance_and_at_most_so_many():
    a, b = matrix(SHAPES["tall"], condition=1e3), right_side(30)
    x, steps, relative = solved(a, b, tolerance=1e-3)
    assert 0 < relative <= 1e-3
    assert solved(a, b, max_steps=int(steps) - 1).relative > 1e-3
    assert steps.dtype == torch.int64
    none = solved(a, b, max_steps=0)
    assert none.steps == 0
    assert none.relative == 1
    torch.testing.assert_close(none.x, torch.zeros_like(x), rtol=0, atol=0)


@pytest.mark.parametrize("damp", [0.0, 0.3])
def test_lsmr_of_zeros_is_zero(damp):
    a = matrix(SHAPES["tall"])
    outside = right_side(30) - a @ least_squares(a, right_side(30))
    for left, b in ((a, torch.zeros(30)), (0 * a, right_side(30)), (a[:, :0], right_side(30))):
        x, steps, relative = solved(left, b.to(a), damp)
        assert x.tolist() == [0.0] * left.shape[1]
        assert steps == relative == 0
    assert solved(a, outside, damp).x.norm() < 1e-12  # no solution is better than 0


def test_lsmr_tells_of_values_that_are_not_finite():
    a, b = matrix(SHAPES["tall"]), right_side(30)
    x, steps, relative = solved(a, b / 0)
    assert relative.isnan()
    assert steps == 0
    assert x.tolist() == [0.0] * 10


def test_lsmr_in_float32_takes_a_weight_of_another_dtype():
    a, b = matrix(SHAPES["tall"]), right_side(30)
    x, _, relative = solved(a.float(), b.float(), torch.tensor(0.3, dtype=torch.float64), tolerance=1e-6)
    assert x.dtype == relative.dtype == torch.float32
    assert miss(x.double(), least_squares(a, b, 0.3)) < 1e-5


def assert_members_equal(mapped, members, tolerance):
    """Products of batches round otherwise, so that a member may reach the tolerance a step sooner or later."""
    for x, steps, relative, member in zip(*mapped, members, strict=True):
        torch.testing.assert_close(x, member.x, rtol=0, atol=1e-7 * member.x.norm().item())
        assert abs(steps - member.steps) <= (tolerance < 1e-6)
        assert (relative <= tolerance) == (member.relative <= tolerance)


@each_end
def test_lsmr_under_vmap_equals_the_loop(tolerance):
    a = matrix(SHAPES["tall"])
    sides = torch.stack([right_side(30), torch.zeros(30), right_side(30, seed=2), right_side(30) * 1e8])
    damps = torch.tensor([0.0, 0.1, 1.0, 1e-3], dtype=torch.float64)

    def solve(b, damp):
        return solved(a, b, damp, tolerance=tolerance)

    members = [solve(b, damp) for b, damp in zip(sides, damps, strict=True)]
    assert len({int(member.steps) for member in members}) > 2
    assert_members_equal(torch.vmap(solve)(sides, damps), members, tolerance)
    over_sides = [solve(b, 0.1) for b in sides]
    assert_members_equal(torch.vmap(lambda b: solve(b, 0.1))(sides), over_sides, tolerance)
    over_damps = [solve(sides[0], damp) for damp in damps]
    assert_members_equal(torch.vmap(lambda damp: solve(sides[0], damp))(damps), over_damps, tolerance)


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # torch.func.jvp's
def test_lsmr_takes_the_functions_that_derivatives_are():
    a, b = matrix(SHAPES["tall"]), right_side(30)
    at = torch.zeros(10, dtype=torch.float64)

    def residual(x):
        return (a @ x).sin() + x.square().sum()

    def forward(v):
        return torch.func.jvp(residual, (at,), (v,))[1]

    _, backward = torch.func.vjp(residual, at)
    x = lsmr(forward, lambda u: backward(u)[0], b, tolerance=TOLERANCE, max_steps=100).x
    assert miss(x, least_squares(a, b)) < CLOSE


def test_cg_reports_its_steps_and_its_residual():
    a, b = positive_definite(), right_side(15)
    x, steps, relative = cg_with_report(system(a, b))
    assert miss(x, torch.linalg.solve(a, b)) < CLOSE
    assert relative <= 1e-12
    for made in range(int(steps)):
        report = cg_with_report(system(a, b, max_steps=made))
        assert report.steps == made
        assert report.relative > 1e-12
        torch.testing.assert_close(report.relative, (b - a @ report.x).norm() / b.norm(), rtol=1e-6, atol=1e-12)
    assert x.tolist() == cg(system(a, b)).tolist()


def test_cg_reports_no_step_from_a_solution_and_none_in_a_direction_without_curvature():
    a, b = positive_definite(), right_side(15)
    from_solution = cg_with_report(system(a, b, guess=torch.linalg.solve(a, b)))
    assert from_solution.steps == 0
    assert from_solution.relative < 1e-12
    downward = cg_with_report(system(-a, b))
    assert downward.steps == 0
    assert downward.relative == 1
    of_zero = cg_with_report(system(a, torch.zeros_like(b)))
    assert of_zero.steps == of_zero.relative == 0


@each_end
def test_the_report_of_cg_under_vmap_equals_the_loop(tolerance):
    a = positive_definite(condition=100.0)
    sides = torch.stack([right_side(15), torch.zeros(15), a @ a @ right_side(15, seed=2), 1e5 * a[0]])

    def solve(b):
        return cg_with_report(system(a, b, tolerance=tolerance))

    members = [solve(b) for b in sides]
    assert len({int(member.steps) for member in members}) > 2
    assert_members_equal(torch.vmap(solve)(sides), members, tolerance)
