"""test_rosenbrock_sparse of torch's own test/test_optim.py: rows of an uncoalesced gradient in turn, for 2000 steps."""

import pytest
import torch
from torch.optim.lr_scheduler import MultiplicativeLR, ReduceLROnPlateau, StepLR

import gradtx
from tests.optim.problems import assert_close


def steps_of(decay, size):
    return lambda optimizer: StepLR(optimizer, gamma=decay, step_size=size)


def plateau(optimizer):
    return ReduceLROnPlateau(optimizer, threshold=1e-4)


def multiplied(optimizer):
    return MultiplicativeLR(optimizer, lambda step: 0.99999)


# As in torch, class, options and schedulers; with a momentum at a rate that does not diverge.
CASES = [
    ("SGD", {"lr": 4.8e-3}, []),
    ("SGD", {"lr": 4.8e-3}, [steps_of(0.99999, 300)]),
    ("SGD", {"lr": 4.8e-3}, [multiplied]),
    ("SGD", {"lr": 1e-3, "momentum": 0.5}, []),
    ("SGD", {"lr": 1e-3, "momentum": 0.5}, [multiplied]),
    ("Adagrad", {"lr": 0.1}, []),
    ("Adagrad", {"lr": 0.1}, [steps_of(1 - 1e-5, 500), plateau]),
    ("SparseAdam", {"lr": 4e-2}, []),
    ("SparseAdam", {"lr": 4e-2, "maximize": True}, []),
]


def rosenbrock(point):
    x, y = point
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


def gradient_in(point, row):
    """One entry of the gradient, as the sum of two that a sparse tensor lists for the same row."""
    at = point.detach().requires_grad_()
    entry = torch.autograd.grad(rosenbrock(at), at)[0][row]
    parts = torch.stack([entry / 4, entry - entry / 4])
    return torch.sparse_coo_tensor([[row, row]], parts, (2,), dtype=point.dtype, check_invariants=True)


def descended(cls, options, schedulers, is_sparse=True):
    point = torch.nn.Parameter(torch.tensor([1.5, 1.5], dtype=torch.float64))
    optimizer = cls([point], **options)
    schedulers = [make(optimizer) for make in schedulers]
    points = []
    for t in range(2000):

        def closure(t=t):
            gradient = gradient_in(point, (t + 1) % 2)
            point.grad = gradient if is_sparse else gradient.to_dense()
            return rosenbrock(point.detach())

        optimizer.step(closure)
        for scheduler in schedulers:
            scheduler.step(*[rosenbrock(point.detach())] * isinstance(scheduler, ReduceLROnPlateau))
        points.append(point.detach().clone())
    return points


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "schedulers"), CASES, ids=lambda value: str(value) * isinstance(value, str)
)
def test_rows_in_turn_descend_as_in_torch_and_as_with_dense_gradients(name, options, schedulers):
    ours = descended(getattr(gradtx.optim, name), options, schedulers)
    if name != "SparseAdam":  # without a gradient, rows of SparseAdam stand still; torch's refuses dense ones
        dense = descended(getattr(gradtx.optim, name), options, schedulers, is_sparse=False)
        assert_close(ours, dense, 1e-12)
    theirs = descended(getattr(torch.optim, name), options, schedulers)
    assert_close(ours, theirs, 1e-9)
    solution = torch.ones(2, dtype=torch.float64)
    start = torch.full((2,), 1.5, dtype=torch.float64)
    if options.get("maximize"):
        assert rosenbrock(ours[-1]) >= rosenbrock(start)
    else:
        assert ours[-1].dist(solution) <= start.dist(solution)
