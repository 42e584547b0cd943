import pytest
import torch

import gradtx
from tests import references as ref
from tests.references import BETA, RATE, finite_without_gradient, first_update


def neuron_norm(x):
    return x.abs() if x.ndim < 2 else x.flatten(1).norm(dim=1).reshape(-1, *[1] * (x.ndim - 1))


def unit_neurons(x):
    if x.ndim < 2:
        return x
    rows = x.flatten(1) - x.flatten(1).mean(dim=1, keepdim=True)
    return (rows / rows.norm(dim=1, keepdim=True)).reshape(x.shape)


def nero(s, t, g, p, lr=0.01, beta=0.999, constraints=True):
    start = unit_neurons(p) if constraints else p
    if t == 1:
        s.scale = neuron_norm(start).mean().item() or 0.01
    s.v = beta * s.v + (1 - beta) * neuron_norm(g) ** 2
    moved = start - lr * s.scale * g / (s.v / (1 - beta**t)).sqrt()
    return unit_neurons(moved) if constraints else moved


OPTIONS = [
    (gradtx.nero, nero, {}),
    (gradtx.nero, nero, {"lr": 0.1, "beta": 0.7}),
    (gradtx.nero, nero, {"lr": 0.1, "beta": 0.7, "constraints": False}),
    (gradtx.nero, nero, {"lr": RATE, "beta": BETA}),
]


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=ref.named)
def test_the_weights_follow_the_loop(alias, rule, options):
    ref.follows(alias(**options), ref.WeightsLoop(rule, **options))


def test_the_weights_of_nero_stay_unit_neurons():
    params, tx = gradtx.project_neurons(ref.problem()), gradtx.nero(lr=0.3)
    state = tx.init(params)
    for sign in (1, -1, 1):
        updates, state = tx.update({name: sign * (2 + p).exp() for name, p in params.items()}, state, params)
        params = gradtx.apply_updates(params, updates)
        again = gradtx.project_neurons(params)
        for name in params:
            torch.testing.assert_close(params[name], again[name], rtol=1e-12, atol=1e-12)
    assert params["matrix"].norm() == pytest.approx(2.0)  # four neurons


def test_neurons_of_one_weight_cannot_be_constrained():
    params = {"w": torch.ones(3, 1)}
    with pytest.raises(
        ValueError, match=r"^project_neurons: neurons of shape \(3, 1\) have a single weight.*partition"
    ):
        gradtx.nero().init(params)
    tx = gradtx.nero(constraints=False)
    assert tx.update(params, tx.init(params), params)[0]["w"].isfinite().all()


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
