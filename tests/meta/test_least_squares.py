"""Fits agree with scipy's, alone and a thousand at once, and have the gradient of the minimum."""

import pickle
import re
import warnings

import numpy as np
import pytest
import scipy.optimize
import torch
from torch.func import grad, jvp, vmap

import gradtx
from tests.least_squares_problems import NIST

pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit.script:DeprecationWarning"  # torch itself, when a process first uses jvp
)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(actual, expected, tolerance=1e-7):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def decay(x, a, k, c):
    return a * torch.exp(-k * x) + c


START = {"a": 1.0, "k": 1.0, "c": 0.0}
X = torch.linspace(0, 4, 25, dtype=torch.float64)
TRUE = 1.5 + 0.3 * random(12, 3, seed=1)
Y = TRUE[:, :1] * torch.exp(-TRUE[:, 1:2] * X) + TRUE[:, 2:] + 0.05 * random(12, 25, seed=2)
DEVIATIONS = 0.05 + 0.1 * random(25, seed=3).abs()
MATRIX = torch.diag(DEVIATIONS**2) + 1e-3
SIGMAS = {"none": None, "deviations": DEVIATIONS, "matrix": MATRIX}


def by_scipy(y, sigma=None, absolute_sigma=False):
    def model(x, a, k, c):
        return a * np.exp(-k * x) + c

    def jacobian(x, a, k, c):
        falling = np.exp(-k * x)
        return np.stack([falling, -a * x * falling, np.ones_like(x)], axis=1)

    params, covariance = scipy.optimize.curve_fit(
        model,
        X.numpy(),
        y.numpy(),
        list(START.values()),
        sigma=None if sigma is None else sigma.numpy(),
        absolute_sigma=absolute_sigma,
        jac=jacobian,
        ftol=1e-13,
        xtol=1e-13,
    )
    return torch.as_tensor(params), torch.as_tensor(covariance)


def stacked(tree):
    return torch.stack(list(tree.values() if isinstance(tree, dict) else tree), dim=-1)


# What a fit is.


@pytest.mark.parametrize("absolute_sigma", [False, True])
@pytest.mark.parametrize("name", SIGMAS)
def test_parameters_and_covariance_are_those_of_scipy(name, absolute_sigma):
    sigma = SIGMAS[name]
    fit = gradtx.curve_fit(decay, X, Y[0], START, sigma, absolute_sigma=absolute_sigma)
    params, covariance = by_scipy(Y[0], sigma, absolute_sigma)
    close(stacked(fit.params), params)
    close(fit.covariance, covariance)
    close(stacked(fit.errors), covariance.diagonal().sqrt())
    assert fit.converged


def test_a_start_that_is_a_sequence_gives_parameters_by_position():
    fit = gradtx.curve_fit(decay, X.numpy(), Y[0].tolist(), [1.0, 1.0, 0.0])
    close(stacked(fit.params), by_scipy(Y[0])[0])


def test_residuals_are_what_was_minimized():
    fit = gradtx.curve_fit(decay, X, Y[0], START, DEVIATIONS)
    close(fit.residuals, (decay(X, **fit.params) - Y[0]) / DEVIATIONS)
    close(fit.predict(X), decay(X, **fit.params))


def test_the_band_is_the_error_of_a_linear_prediction():
    fit = gradtx.curve_fit(lambda x, a, b: a * x + b, X, Y[0], {"a": 0.0, "b": 0.0})
    rows = torch.stack([X, torch.ones_like(X)], dim=1)
    close(fit.band(X), (rows @ fit.covariance @ rows.T).diagonal().sqrt())


def test_a_parameter_may_have_a_shape_and_arguments_stand_before_the_parameters():
    def polynomial(x, center, weights):
        return ((x - center)[:, None] ** torch.arange(3)) @ weights

    fit = gradtx.curve_fit(polynomial, X, Y[0], {"weights": torch.zeros(3)}, args=(2.0,))
    columns = (X - 2.0)[:, None] ** torch.arange(3)
    close(fit.params["weights"], torch.linalg.lstsq(columns, Y[0]).solution)
    assert fit.errors["weights"].shape == (3,)
    assert fit.params["weights"].dtype is torch.float64


def test_two_variables_are_two_rows_of_x():
    x = torch.stack([X, X**2])
    fit = gradtx.curve_fit(lambda x, a, b: a * x[0] + b * x[1], x, 2 * X - 3 * X**2, {"a": 1.0, "b": 1.0})
    close(stacked(fit.params), torch.tensor([2.0, -3.0], dtype=torch.float64))


# The hardest of NIST's, from the far start. 6 digits: the errors are a hundred thousand times as large.
@pytest.mark.parametrize("name", ["Misra1a", "Thurber", "Hahn1", "MGH09", "BoxBOD", "Eckerle4", "Rat43", "ENSO"])
def test_nist_certifies_parameters_and_errors(name):
    problem = NIST[name]
    fit = gradtx.least_squares(problem.residual, problem.named(problem.starts[0]), steps=200)
    assert fit.converged
    assert problem.digits(torch.stack(list(fit.params.values()))) > 6
    close(torch.stack(list(fit.errors.values())) / problem.deviations, torch.ones_like(problem.deviations), 1e-5)


def test_a_search_that_does_not_reach_the_minimum_says_so():
    problem = NIST["MGH10"]
    with pytest.warns(UserWarning, match="least_squares: the fit has not converged within 20 steps"):
        fit = gradtx.least_squares(problem.residual, problem.named(problem.starts[0]), steps=20)
    assert not fit.converged
    assert fit.steps == 20


def test_an_exact_fit_converges():
    fit = gradtx.curve_fit(decay, X, decay(X, 2.0, 0.7, 0.3), START)
    close(stacked(fit.params), torch.tensor([2.0, 0.7, 0.3], dtype=torch.float64))
    assert fit.converged


def test_until_replaces_the_test_of_convergence():
    def residual_fn(p):
        return torch.cat([p - 1, p**2])

    fit = gradtx.least_squares(residual_fn, torch.zeros(2), until=1e-2)
    gradient = grad(lambda p: residual_fn(p).square().sum() / 2)(fit.params)
    assert 1e-7 < gradient.norm() <= 1e-2
    never = "has not converged within 60 steps"
    with pytest.warns(UserWarning, match=never):
        fit = gradtx.least_squares(residual_fn, torch.zeros(2), until=lambda p, g, loss: loss < 0, steps=60)
    assert not fit.converged


def test_each_member_of_a_batch_stops_where_the_condition_holds():
    def until(params, gradient, loss):
        return loss < 0.5

    fit = gradtx.curve_fit(decay, X, Y, START, until=until)
    alone = [gradtx.curve_fit(decay, X, y, START, until=until) for y in Y]
    assert fit.steps.tolist() == [each.steps.item() for each in alone]
    close(stacked(fit.params), torch.stack([stacked(each.params) for each in alone]))
    with pytest.warns(UserWarning, match="12 of 12 fits have not converged"):
        fit = gradtx.curve_fit(decay, X, Y, START, until=lambda params, gradient, loss: loss < 0, steps=200)
    assert (fit.steps < 200).all()  # nothing is left to gain


@pytest.mark.parametrize(
    "tx",
    [gradtx.gauss_newton(), gradtx.dogleg(), gradtx.line_search(gradtx.gauss_newton())],
    ids=["gauss_newton", "dogleg", "line_search"],
)
def test_any_chain_that_takes_residuals_steps(tx):
    start = {"a": 2.0, "k": 1.3, "c": 1.0}
    close(stacked(gradtx.curve_fit(decay, X, Y[0], start, tx=tx).params), by_scipy(Y[0])[0], 1e-6)


# Batches.


@pytest.mark.parametrize("shape", [(12,), (3, 4)])
def test_a_batch_has_the_fits_of_a_loop(shape):
    fit = gradtx.curve_fit(decay, X, Y.reshape(*shape, 25), START)
    assert fit.covariance.shape == (*shape, 3, 3)
    assert fit.params["k"].shape == fit.steps.shape == fit.converged.shape == shape
    for i, y in enumerate(Y):
        alone = gradtx.curve_fit(decay, X, y, START)
        member = fit.member(tuple(int(k) for k in np.unravel_index(i, shape)))
        close(stacked(member.params), stacked(alone.params))
        close(member.covariance, alone.covariance)
        close(member.residuals, alone.residuals)
        assert member.converged


def test_vmap_by_the_caller_equals_the_batch():
    batch = gradtx.curve_fit(decay, X, Y, START)
    mapped = vmap(lambda y: gradtx.curve_fit(decay, X, y, START))(Y)
    close(stacked(mapped.params), stacked(batch.params))
    close(mapped.covariance, batch.covariance)
    assert mapped.converged.all()
    close(mapped.predict(X), batch.predict(X))


def test_vmap_of_a_batch_is_a_batch_of_both():
    mapped = vmap(lambda y: gradtx.curve_fit(decay, X, y, START))(Y.reshape(3, 4, 25))
    close(stacked(mapped.params).reshape(12, 3), stacked(gradtx.curve_fit(decay, X, Y, START).params))


@pytest.mark.parametrize("name", ["deviations", "matrix"])
def test_members_may_have_points_starts_and_sigmas_of_their_own(name):
    x = X + torch.arange(4)[:, None] / 10
    starts = {"a": torch.linspace(1, 2, 4).double(), "k": 1.0, "c": 0.0}
    sigma = torch.stack([SIGMAS[name] * (i + 1) for i in range(4)])
    fit = gradtx.curve_fit(decay, x, Y[:4], starts, sigma, absolute_sigma=True)
    for i in range(4):
        alone = gradtx.curve_fit(decay, x[i], Y[i], START, sigma[i], absolute_sigma=True)
        close(stacked(fit.member(i).params), stacked(alone.params))
        close(fit.member(i).covariance, alone.covariance)


def test_a_member_that_is_not_finite_leaves_the_others_alone():
    y = Y.clone()
    y[3, 7] = torch.nan
    with pytest.warns(UserWarning, match="1 of 12 fits have not converged"):
        fit = gradtx.curve_fit(decay, X, y, START)
    others = torch.arange(12) != 3
    assert torch.equal(fit.converged, others)
    close(stacked(fit.params)[others], stacked(gradtx.curve_fit(decay, X, Y, START).params)[others])
    assert not fit.covariance[3].isfinite().any()


# Gradients.


def test_the_gradient_of_a_linear_fit_is_the_pseudo_inverse():
    rows = random(10, 3)

    def solve(y):
        return gradtx.least_squares(lambda p, y: rows @ p - y, torch.zeros(3, dtype=torch.float64), y).params

    y = random(10, seed=4)
    close(solve(y), torch.linalg.lstsq(rows, y).solution)
    close(torch.func.jacrev(solve)(y), torch.linalg.pinv(rows))


def rate(y, sigma=DEVIATIONS, x=X):
    return gradtx.curve_fit(decay, x, y, START, sigma).params["k"]


def test_gradients_are_difference_quotients():
    tangent, width = random(25, seed=5), 1e-5
    functions = {
        "y": (rate, Y[0]),
        "sigma": (lambda sigma: rate(Y[0], sigma), DEVIATIONS),
        "matrix": (lambda sigma: rate(Y[0], torch.diag(sigma**2) + 1e-3), DEVIATIONS),
        "x": (lambda x: rate(Y[0], x=x), X),
        "error": (lambda y: gradtx.curve_fit(decay, X, y, START).errors["k"], Y[0]),
    }
    for name, (function, at) in functions.items():
        tangent_here = tangent * (0.1 if name in ("sigma", "matrix") else 1.0)
        quotient = (function(at + width * tangent_here) - function(at - width * tangent_here)) / (2 * width)
        # Quotients of a minimum that is known to eight digits.
        close(grad(function)(at) @ tangent_here, quotient, 1e-4)
    close(jvp(rate, (Y[0],), (tangent,))[1], grad(rate)(Y[0]) @ tangent)


def test_gradients_of_a_batch_are_those_of_its_members():
    y, sigma = Y.clone().requires_grad_(), DEVIATIONS.clone().requires_grad_()
    rate(y, sigma).sum().backward()
    close(y.grad, torch.stack([grad(rate)(each) for each in Y]))
    close(y.grad, vmap(grad(rate))(Y))
    by_sigma = [grad(lambda sigma, y=each: rate(y, sigma))(DEVIATIONS) for each in Y]
    close(sigma.grad, torch.stack(by_sigma).sum(0))


def test_the_result_has_no_gradient_by_the_start():
    start = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    fit = gradtx.curve_fit(decay, X, Y[0], {**START, "a": start})
    assert not fit.params["k"].requires_grad


# What goes wrong.

MISTAKES = {
    "curve_fit: y has 1 entries that are NaN or infinite; remove these points": lambda: gradtx.curve_fit(
        decay, X, torch.cat([Y[0, 1:], torch.tensor([torch.nan])]), START
    ),
    "curve_fit: x has 2 entries that are NaN or infinite": lambda: gradtx.curve_fit(
        decay, torch.where(X < 0.3, torch.inf, X), Y[0], START
    ),
    "curve_fit: 3 parameters need at least as many points, got 2; drop parameters": lambda: gradtx.curve_fit(
        decay, X[:2], Y[0, :2], START
    ),
    "curve_fit: the model must return a tensor of shape (25,), one value for each point of y": lambda: gradtx.curve_fit(
        lambda x, a: a * x[:3], X, Y[0], {"a": 1.0}
    ),
    "curve_fit: sigma has the shape (3,), needs (25,)": lambda: gradtx.curve_fit(decay, X, Y[0], START, DEVIATIONS[:3]),
    "curve_fit: sigma must be positive": lambda: gradtx.curve_fit(decay, X, Y[0], START, DEVIATIONS * 0),
    "curve_fit: the covariance matrix sigma is not positive definite": lambda: gradtx.curve_fit(
        decay, X, Y[0], START, torch.ones(25, 25)
    ),
    "curve_fit: steps must be in [1, inf), got 0": lambda: gradtx.curve_fit(decay, X, Y[0], START, steps=0),
    "least_squares: until must be a number in [0, inf)": lambda: gradtx.least_squares(
        lambda p: p, torch.zeros(2), until=-1
    ),
    "least_squares: tolerance must be in (0, 1), got 2": lambda: gradtx.least_squares(
        lambda p: p, torch.zeros(2), tolerance=2
    ),
    "least_squares: adam takes no residuals; pass tx=gradtx.levenberg_marquardt()": lambda: gradtx.least_squares(
        lambda p: p, torch.zeros(2), tx=gradtx.adam()
    ),
    "least_squares: residual_fn returns a 0-d tensor, as a loss is": lambda: gradtx.least_squares(
        lambda p: p.square().sum(), torch.zeros(2)
    ),
    "minimize: levenberg_marquardt steps by residuals, and the loss alone does not tell the residuals; call "
    "least_squares": lambda: gradtx.minimize(
        gradtx.levenberg_marquardt(), lambda p: p.square().sum(), torch.zeros(2), steps=1
    ),
}
WRONG_TYPES = {
    "curve_fit: start lacks ['k', 'c'] and has ['b'], known: a, c, k; the parameters of the model are ['a', 'k'": (
        lambda: gradtx.curve_fit(decay, X, Y[0], {"a": 1.0, "b": 0.0})
    ),
    "curve_fit: start has 2 values, but the parameters of the model are ['a', 'k', 'c']": lambda: gradtx.curve_fit(
        decay, X, Y[0], [1.0, 2.0]
    ),
    "curve_fit: start: 'a' must be a number or a tensor, got 'one'": lambda: gradtx.curve_fit(
        decay, X, Y[0], {**START, "a": "one"}
    ),
    "least_squares: tx must be a GradientTransformation, got": lambda: gradtx.least_squares(
        lambda p: p, torch.zeros(2), tx=torch.optim.SGD
    ),
    "least_squares: residual_fn must be a function of (params, *args), got 3": lambda: gradtx.least_squares(
        3, torch.zeros(2)
    ),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_a_wrong_value_is_named(message):
    with pytest.raises(ValueError, match=re.escape(message)):
        MISTAKES[message]()


@pytest.mark.parametrize("message", WRONG_TYPES)
def test_a_wrong_type_is_named(message):
    with pytest.raises(TypeError, match=re.escape(message)):
        WRONG_TYPES[message]()


def test_a_model_that_is_not_finite_at_the_start_says_so():
    def model(x, a):
        return torch.log(x + a)

    with pytest.warns(UserWarning, match="has not converged since residuals are not finite at the start"):
        fit = gradtx.curve_fit(model, X, Y[0], {"a": -3.0})
    assert not fit.converged
    assert fit.steps == 0


def test_a_weight_that_the_model_reads_from_outside_is_an_error_since_its_gradient_would_be_lost():
    weight = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    message = "curve_fit: the gradient of the residuals depends on a tensor that requires gradients"
    with pytest.raises(ValueError, match=message):
        gradtx.curve_fit(lambda x, a: a * weight * x, X, Y[0], {"a": 1.0})
    fit = gradtx.curve_fit(lambda x, w, a: a * w * x, X, Y[0], {"a": 1.0}, args=(weight,))
    fit.params["a"].backward()
    close(weight.grad, -fit.params["a"].detach() / 2)


@pytest.mark.parametrize("batch", [Y[0], Y])
def test_float32_converges_to_its_precision(batch):
    fit = gradtx.curve_fit(decay, X.float(), batch.float(), START)
    exact = gradtx.curve_fit(decay, X, batch, START)
    close(stacked(fit.params).double(), stacked(exact.params), 1e-3)
    assert fit.converged.all()
    assert fit.params["k"].dtype is torch.float32


def test_each_member_of_a_vmap_over_dampings_stops_on_its_own():
    def steps(damping):
        return gradtx.curve_fit(decay, X, Y[0], START, tx=gradtx.levenberg_marquardt(damping=damping)).steps

    dampings = torch.tensor([1e-3, 1.0, 10.0], dtype=torch.float64)
    assert vmap(steps)(dampings).tolist() == [steps(damping).item() for damping in dampings]


def test_parameters_may_outnumber_residuals():
    rows = random(3, 8)
    fit = gradtx.least_squares(lambda p: rows @ p - 1, torch.zeros(8, dtype=torch.float64))
    close(rows @ fit.params, torch.ones(3, dtype=torch.float64))
    assert fit.converged


def test_parameters_that_the_data_do_not_determine_have_infinite_errors():
    with pytest.warns(UserWarning, match="curve_fit: the covariance is inf"):
        fit = gradtx.curve_fit(lambda x, a, b: (a + b) * x, X, Y[0], {"a": 1.0, "b": 1.0})
    assert (fit.covariance == torch.inf).all()
    with pytest.warns(UserWarning, match="as many parameters as points"):
        fit = gradtx.curve_fit(decay, X[:3], decay(X[:3], 2.0, 0.7, 0.3), START)
    assert (fit.covariance == torch.inf).all()


# What a fit shows.


def test_the_plot_shows_one_fit_of_a_batch(tmp_path):
    pytest.importorskip("matplotlib")
    fit = gradtx.curve_fit(decay, X, Y, START, DEVIATIONS)
    figure = fit.plot(tmp_path / "fit.png", index=5)
    assert (tmp_path / "fit.png").read_bytes().startswith(b"\x89PNG")
    upper, lower = figure.axes
    (points,) = (line for line in upper.lines if len(line.get_xdata()) == 25)
    close(torch.as_tensor(points.get_ydata()), Y[5])
    assert upper.get_ylabel() == "y"
    assert lower.get_ylabel() == "data - fit"


def test_a_bar_shows_the_steps_if_it_is_asked_for(capsys):
    pytest.importorskip("tqdm")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        gradtx.curve_fit(decay, X, Y[0], START, progress=True)
    assert "curve_fit" in capsys.readouterr().err
    gradtx.curve_fit(decay, X, Y[0], START)
    assert capsys.readouterr().err == ""


def test_a_fit_reads_as_its_parameters():
    fit = gradtx.curve_fit(decay, X, Y[0], START)
    assert re.fullmatch(r"Fit\(a = \S+ ± \S+, k = .*, converged in \d+ steps\)", repr(fit))
    assert repr(gradtx.curve_fit(decay, X, Y, START)) == "Fit(batch of (12,), 12 of 12 converged)"


@pytest.mark.parametrize("members", [None, 2])
def test_a_converged_fit_returns_the_minimum_not_the_slow_weights_of_lookahead(members):
    x = torch.linspace(0, 3, 20, dtype=torch.float64)
    y = 2 * torch.exp(-1.5 * x)
    y = y if members is None else y.expand(members, 20)
    tx = gradtx.with_lookahead(gradtx.gauss_newton())
    fit = gradtx.curve_fit(lambda x, a, k: a * torch.exp(-k * x), x, y, {"a": 1.0, "k": 1.0}, tx=tx)
    assert fit.converged.all()
    torch.testing.assert_close(fit.params["a"], torch.full_like(fit.params["a"], 2.0))


def test_complex_data_are_an_error_instead_of_their_real_part():
    x = torch.linspace(0, 3, 20, dtype=torch.float64)
    with pytest.raises(ValueError, match="y is complex"):
        gradtx.curve_fit(lambda x, a: a * x, x, x * 1j, {"a": 1.0})


def straight(x, a, b):
    return a * x + b


def test_a_fit_predicts_at_points_of_an_array_and_can_be_pickled():
    x = torch.arange(5, dtype=torch.float64)
    fit = gradtx.curve_fit(straight, x, 2 * x + 1, {"a": 1.0, "b": 0.0})
    assert fit.predict(x.numpy()).tolist() == pytest.approx([1, 3, 5, 7, 9])
    assert fit.predict([10.0]).tolist() == pytest.approx([21])
    copy = pickle.loads(pickle.dumps(fit))
    assert copy.predict(x).tolist() == fit.predict(x).tolist()


def test_args_that_are_no_tuple_are_named():
    x = torch.arange(5, dtype=torch.float64)
    with pytest.raises(TypeError, match="curve_fit: args must be a tuple of what the model takes behind x, got"):
        gradtx.curve_fit(straight, x, x, {"b": 0.0}, args=torch.tensor(2.0))
