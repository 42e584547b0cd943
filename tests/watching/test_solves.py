"""What a watch shows of links that solve linear systems: damping, gain, rejected trials, products."""

import math

import pytest
import torch

import gradtx

X = torch.linspace(0, 4, 30, dtype=torch.float64)
Y = 2.5 * torch.exp(-1.3 * X) + 0.5


def fit(optimizer_class, noise=0.0, **options):
    params = {name: torch.nn.Parameter(torch.tensor(value, dtype=torch.float64)) for name, value in START.items()}
    optimizer = optimizer_class(params.items(), **options)
    generator = torch.Generator().manual_seed(0)

    def residuals():
        model = params["c"] + params["a"] * torch.exp(-params["k"] * X)
        return model - Y + noise * torch.rand(30, generator=generator, dtype=torch.float64)

    return optimizer, residuals


START = {"a": 1.0, "k": 1.0, "c": 0.0}


def watched(optimizer_class, steps, noise=0.0, **options):
    optimizer, residuals = fit(optimizer_class, noise, **options)
    with gradtx.watch(optimizer, every=1) as seen:
        for _ in range(steps):
            optimizer.step(residuals)
    return seen, seen.diagnose()


def test_a_watch_shows_damping_gain_and_whether_a_trial_was_rejected():
    seen, _ = watched(gradtx.optim.LevenbergMarquardt, 4)
    assert [record["step"] for record in seen.solves] == [1, 2, 3, 4]
    for record in seen.solves:
        assert record["link"] == "scale_by_levenberg_marquardt"
        assert record["damping"] > 0
        assert record["rejected"] == (record["gain"] <= 0)
        assert record["condition"] >= 1
    dampings = [record["damping"] for record in seen.solves]
    assert dampings == sorted(dampings, reverse=True)
    assert "scale_by_levenberg_marquardt: damping 0.03 to" in repr(seen)
    assert "0 of 4 trials rejected" in repr(seen)


def test_the_loss_of_a_closure_that_returns_residuals_is_noted():
    optimizer, residuals = fit(gradtx.optim.LevenbergMarquardt)
    with gradtx.watch(optimizer, every=1) as seen:
        losses = [float(optimizer.step(residuals)) for _ in range(3)]
    assert seen.losses == losses


def test_the_gradient_of_a_watched_step_is_that_of_the_loss_and_not_the_direction():
    optimizer, residuals = fit(gradtx.optim.GaussNewton, damping=1e-6)
    params = optimizer.param_groups[0]["params"]
    loss = residuals().square().sum() / 2
    norm = torch.stack(torch.autograd.grad(loss, params)).norm().item()
    with gradtx.watch(optimizer, every=1) as seen:
        optimizer.step(residuals)
    first = seen.samples[0].of_links["scale_by_gauss_newton"]
    assert first["norm_before"] == pytest.approx(norm)
    assert first["norm_after"] != pytest.approx(norm)


def test_a_log_has_what_a_solve_measured():
    logged = []
    optimizer, residuals = fit(gradtx.optim.GaussNewton, solve="cg")
    with gradtx.watch(optimizer, every=1, log=logged.append):
        for _ in range(2):
            optimizer.step(residuals)
    assert logged[0]["watch/link/scale_by_gauss_newton/products"] == 3
    assert logged[0]["watch/link/scale_by_gauss_newton/relative_residual"] < 1e-6


def diagnosed(optimizer, steps, closure):
    with gradtx.watch(optimizer, every=1) as seen:
        for _ in range(steps):
            optimizer.step(closure)
    return {finding.kind: finding for finding in seen.diagnose()}


def test_diagnose_names_trials_that_are_nearly_always_rejected():
    optimizer, residuals = fit(gradtx.optim.LevenbergMarquardt, rule="thresholds")
    calls = iter(range(1000))

    def worse():  # each call returns more than the last one
        return (residuals() + X.sin()) * 1.1 ** next(calls)

    found = diagnosed(optimizer, 25, worse)["trials rejected"]
    assert found.figure == 1.0
    assert "rejected 10 of the last 10 measured trials" in str(found)


def test_diagnose_names_a_damping_at_its_bound():
    optimizer, residuals = fit(gradtx.optim.LevenbergMarquardt)
    calls = iter(range(1000))

    def lost():  # after a first step, no residual is finite any more
        return residuals() * (1.0 if next(calls) < 2 else math.nan)

    found = diagnosed(optimizer, 30, lost)["damping at its bound"]
    assert found.figure == 1e32
    assert "check that residuals are finite" in found.remedy


def test_diagnose_names_an_inner_iteration_that_uses_all_its_steps():
    _, findings = watched(gradtx.optim.GaussNewton, 3, solve="cg", max_steps=1, damping=1e-6)
    found = [finding for finding in findings if finding.kind == "inner iteration ends early"]
    assert len(found) == 1
    assert found[0].remedy == "raise max_steps or damping"


def test_a_fit_that_converges_has_no_findings():
    _, findings = watched(gradtx.optim.LevenbergMarquardt, 20)
    assert findings == []


def test_a_watch_changes_no_bit_of_a_fit():
    optimizer, residuals = fit(gradtx.optim.LevenbergMarquardt)
    for _ in range(6):
        optimizer.step(residuals)
    alone = [param.detach().clone() for param in optimizer.param_groups[0]["params"]]
    optimizer, residuals = fit(gradtx.optim.LevenbergMarquardt)
    with gradtx.watch(optimizer, every=2):
        for _ in range(6):
            optimizer.step(residuals)
    assert all(map(torch.equal, alone, optimizer.param_groups[0]["params"]))


def test_the_sharpness_of_a_chain_with_a_gradient_of_its_own_is_refused():
    message = "the step of scale_by_gauss_newton is no function of the gradient alone"
    with pytest.raises(ValueError, match=message):
        gradtx.sharpness(lambda p: p["w"].square().sum(), {"w": torch.ones(2)}, gradtx.gauss_newton())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "scale_by_gauss_newton: solve='qr' of 33 x 3"),
        ({"solve": "dense"}, "solve='dense' (3 x 3, and a Jacobian of 30 x 3;"),
        ({"solve": "kernel"}, "solve='kernel' (30 x 30, and a Jacobian of 30 x 3;"),
        ({"solve": "cg"}, "solve='cg', from products with a Jacobian of 30 x 3"),
    ],
)
def test_explain_names_how_a_step_was_solved_and_its_memory(options, words):
    optimizer, residuals = fit(gradtx.optim.GaussNewton, **options)
    optimizer.step(residuals)
    explanation = optimizer.explain()
    assert words in repr(explanation)
    assert [way.way for way in explanation] == ["alone"] * 3


def test_explain_says_that_leaves_of_a_line_search_step_alone_and_not_that_they_were_absent():
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = gradtx.as_optimizer(gradtx.line_search(gradtx.lbfgs()), [("w", weight)])

    def closure():
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    (way,) = optimizer.explain()
    assert way.way == "alone"
    assert way.reason
