import math

import pytest
import torch

import gradtx
from tests.references import finite_without_gradient, first_update, problem


def neurons(x):
    """The rows of a leaf as lists of numbers; every entry of a vector is one."""
    return x.reshape(-1, 1).tolist() if x.ndim < 2 else x.flatten(1).tolist()


def projected(x):
    if x.ndim < 2:
        return x
    rows = []
    for row in neurons(x):
        mean = sum(row) / len(row)
        size = math.sqrt(sum((entry - mean) ** 2 for entry in row))
        rows.append([(entry - mean) / size for entry in row])
    return torch.tensor(rows, dtype=x.dtype).reshape(x.shape)


def test_project_neurons_follows_the_loop_and_is_idempotent():
    once = gradtx.project_neurons(problem())
    twice = gradtx.project_neurons(once)
    for name, param in problem().items():
        torch.testing.assert_close(once[name], projected(param), rtol=1e-13, atol=1e-15)
        torch.testing.assert_close(twice[name], once[name], rtol=1e-13, atol=1e-15)


def test_project_neurons_keeps_the_tree_and_leaves_the_given_one_alone():
    params = {"a": [torch.tensor([[1.0, 3.0]]), None], "b": torch.tensor(5.0)}
    found = gradtx.project_neurons(params)
    assert (found["b"], found["a"][1], params["a"][0].tolist()) == (torch.tensor(5.0), None, [[1.0, 3.0]])
    assert gradtx.project_neurons(torch.tensor([[2.0, 2.0], [0.0, 0.0]])).tolist() == [[0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("constraints", [True, False])
@pytest.mark.parametrize("param", [[0.0, 0.0], [[0.0, 0.0], [0.0, 0.0]]], ids=str)
def test_weights_of_zero_have_a_scale_of_a_hundredth(param, constraints):
    param = torch.tensor(param)
    state = gradtx.scale_by_neuron_norm(constraints=constraints).init({"w": param})["scale_by_neuron_norm"]
    assert state["scale"]["w"].item() == 0.01
    assert state["scale"]["w"].dtype == torch.float64


@pytest.mark.parametrize(
    ("shape", "expected"), [((), ()), ((5,), (5,)), ((3, 4), (3, 1)), ((2, 3, 2, 2), (2, 1, 1, 1))], ids=str
)
def test_there_is_one_moment_a_neuron(shape, expected):
    state = gradtx.scale_by_neuron_norm().init({"w": torch.ones(shape)})
    assert state["scale_by_neuron_norm"]["exp_avg_sq"]["w"].shape == expected


def test_a_neuron_without_gradient_gets_none():
    update = first_update(gradtx.scale_by_neuron_norm(), [[0.0, 0.0], [0.0, 2.0]], [[1.0, 2.0], [3.0, 5.0]])
    assert update == [[0.0, 0.0], [0.0, pytest.approx(1.0)]]
    assert finite_without_gradient(gradtx.scale_by_neuron_norm())


@pytest.mark.parametrize("shape", [(3, 1), (2, 1, 1, 1)], ids=str)
def test_neurons_of_one_weight_are_an_error(shape):
    with pytest.raises(
        ValueError, match="have a single weight each, which would become 0; train them without constraints"
    ):
        gradtx.project_neurons(torch.ones(shape))
