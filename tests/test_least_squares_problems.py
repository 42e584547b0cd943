"""The formulas and the data of the problems agree with what their sources say of the solutions."""

from collections import Counter

import pytest
import torch

from tests.least_squares_problems import CLASSIC, NIST, PROBLEMS

each_problem = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
# Its sum of squares is that of rounding errors in the data, which depends on digits beyond those of the parameters.
EXACT = "Lanczos1"


def jacobian(problem, params):
    return torch.func.jacrev(problem.residual)(params)


def gauss_newton_step(problem, params):
    scale = jacobian(problem, params).norm(dim=0)
    q, r = torch.linalg.qr(jacobian(problem, params) / scale)
    return -torch.linalg.solve(r, q.mT @ problem.residual(params)) / scale


@each_problem
def test_the_solution_has_the_smallest_sum_of_squares_to_ten_digits(problem):
    at = problem.solution
    if problem.name == EXACT:
        at = at + gauss_newton_step(problem, at)
        assert abs(problem.loss(at).item() / problem.minimum - 1) < 1e-2
    else:
        assert problem.loss(at).item() == pytest.approx(problem.minimum, rel=2e-10, abs=0)


@each_problem
def test_the_gradient_is_zero_at_the_solution(problem):
    residual, columns = problem.residual(problem.solution), jacobian(problem, problem.solution)
    gradient = columns.mT @ residual
    # Lanczos2 has a residual of 1e-6, and a gradient from the digits that its parameters lack; so has Lanczos1.
    assert (gradient.abs() <= columns.norm(dim=0) * (2e-5 * residual.norm() + 1e-10)).all()


@each_problem
def test_a_step_from_the_solution_changes_at_most_the_tenth_digit(problem):
    if problem.name != "Powell singular":  # whose step there is not defined
        step = gauss_newton_step(problem, problem.solution)
        assert problem.digits(problem.solution + step) > 9.5


@pytest.mark.parametrize("problem", NIST.values(), ids=NIST)
def test_the_standard_deviations_are_those_of_the_jacobian(problem):
    columns = jacobian(problem, problem.solution)
    scale = columns.norm(dim=0)
    inverse = torch.linalg.inv(torch.linalg.qr(columns / scale)[1])
    variance = problem.minimum / (len(columns) - len(scale))
    torch.testing.assert_close(inverse.norm(dim=1) / scale * variance**0.5, problem.deviations, rtol=1e-8, atol=0)


@each_problem
def test_starts_are_not_solutions_and_have_a_residual(problem):
    for start in problem.starts:
        assert start.shape == problem.solution.shape
        assert problem.residual(start).isfinite().all()
        assert problem.digits(start) < 3
        assert problem.loss(start) > problem.minimum


@each_problem
def test_a_residual_takes_a_vector_a_dict_and_a_batch(problem):
    start = problem.starts[0]
    expected = problem.residual(start)
    assert problem.residual(problem.named(start)).tolist() == expected.tolist()
    batch = torch.stack([start, problem.solution])
    torch.testing.assert_close(torch.vmap(problem.residual)(batch)[0], expected, rtol=1e-12, atol=1e-12)


def test_nist_has_problems_of_each_level_and_two_starts():
    assert Counter(problem.level for problem in NIST.values()) == {"lower": 8, "average": 11, "higher": 8}
    assert {len(problem.starts) for problem in NIST.values()} == {2}


def test_digits_are_those_of_the_worst_parameter():
    problem = CLASSIC["Rosenbrock"]
    one, off = torch.tensor([1.0, 1.0]).double(), torch.tensor([0.0, 1e-4]).double()
    assert problem.digits(one) == 11
    assert problem.digits(one + off) == pytest.approx(4)
    assert problem.digits(one + 1e6 * off) == 0
    assert problem.digits(one / 0) == problem.digits(off / 0) == 0
