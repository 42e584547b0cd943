"""One Jacobian from two sources: a function of a vector, and a graph of tensors in place."""

import pytest
import torch

from gradtx.base import jacobian as jacobians
from gradtx.base.jacobian import FunctionJacobian, GraphJacobian
from gradtx.base.vectors import JointVector

SHAPES = {"tall": 9, "square": 5, "wide": 2}


def both(m):
    """The Jacobians of one vector of m entries by five parameters, in two tensors, and the dense one."""
    generator = torch.Generator().manual_seed(m)
    matrix = torch.randn(m, 5, generator=generator, dtype=torch.float64)
    a = torch.randn(2, generator=generator, dtype=torch.float64)
    b = torch.randn(3, 1, generator=generator, dtype=torch.float64)

    def function(vector):
        return torch.sin(matrix @ vector) * vector.sum()

    joint, point = JointVector([a, b]), torch.cat([a, b[:, 0]])
    sources = [a.clone().requires_grad_(), b.clone().requires_grad_()]
    traced = function(torch.cat([sources[0], sources[1][:, 0]]))
    of_function = FunctionJacobian(function, joint, point)
    of_graph = GraphJacobian([traced[:1], traced[1:]], sources, joint)
    return of_function, of_graph, torch.func.jacrev(function)(point), function, point


@pytest.mark.parametrize("m", SHAPES.values(), ids=SHAPES)
def test_rows_and_products_of_both_sources_are_those_of_the_dense_matrix(m):
    *sources, dense, function, point = both(m)
    v, u = torch.linspace(-1, 1, 5, dtype=torch.float64), torch.linspace(1, 2, m, dtype=torch.float64)
    hessian = torch.func.jacfwd(torch.func.jacfwd(function))(point)
    for jacobian in sources:
        with torch.no_grad():  # as in the step of an optimizer
            assert jacobian.size == (m, 5)
            torch.testing.assert_close(jacobian.value, function(point))
            torch.testing.assert_close(jacobian.times(v), dense @ v)
            torch.testing.assert_close(jacobian.transposed(u), u @ dense)
            torch.testing.assert_close(jacobian.rows, dense)
            torch.testing.assert_close(jacobian.second(v), hessian @ v @ v)
            torch.testing.assert_close(jacobian.squares_of_columns(), dense.square().sum(0))


def test_a_matrix_that_takes_several_passes_is_that_of_one(monkeypatch):
    monkeypatch.setattr(jacobians, "CACHE", 1)
    monkeypatch.setattr(jacobians, "LEAST_ROWS", 2)
    for m in SHAPES.values():
        *sources, dense, _, _ = both(m)
        for jacobian in sources:
            torch.testing.assert_close(jacobian.rows, dense)


def test_sums_of_squares_of_a_large_matrix_need_no_matrix(monkeypatch):
    monkeypatch.setattr(jacobians, "ON_DEVICE", 1)
    *sources, dense, _, _ = both(9)
    for jacobian in sources:
        torch.testing.assert_close(jacobian.squares_of_columns(), dense.square().sum(0))
        assert "rows" not in vars(jacobian)


def test_a_vector_that_is_linear_in_the_parameters_has_a_second_derivative_of_zero():
    source = torch.ones(3, dtype=torch.float64, requires_grad=True)
    jacobian = GraphJacobian([2 * source], [source], JointVector([source.detach()]))
    assert jacobian.second(torch.ones(3, dtype=torch.float64)).tolist() == [0.0, 0.0, 0.0]


def test_a_parameter_without_influence_has_a_column_of_zeros():
    used, unused = (torch.ones(2, requires_grad=True) for _ in range(2))
    jacobian = GraphJacobian([used**2], [used, unused], JointVector([used.detach(), unused.detach()]))
    assert jacobian.rows.tolist() == [[2.0, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0]]


def test_a_vector_that_ignores_all_parameters_is_known_as_constant():
    source = torch.ones(2)
    other = torch.ones(2, requires_grad=True)
    joint = JointVector([source])
    assert FunctionJacobian(lambda vector: torch.ones(3), joint, source).is_constant
    assert not FunctionJacobian(lambda vector: 2 * vector, joint, source).is_constant
    assert GraphJacobian([2 * other], [source.clone().requires_grad_()], joint).is_constant
