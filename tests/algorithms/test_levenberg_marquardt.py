"""Levenberg-Marquardt: its paths are those of plain loops and of other libraries; what a rejected trial leaves."""

import copy

import pytest
import torch

import gradtx
from gradtx.base import exact
from tests.algorithms.least_squares import (
    drawn,
    optimizer_of,
    path_in_optimizer,
    path_of,
    residuals_of,
    start_of,
    tree_of,
    updates_of,
    vector_of,
)
from tests.conformance import tensors
from tests.least_squares_problems import CLASSIC, vector


def bend_of(fn, x, h):
    """The second derivative of the residuals along a vector."""
    slope = lambda x: torch.func.jvp(fn, (x,), (h,))[1]  # noqa: E731
    return torch.func.jvp(slope, (x,), (h,))[1]


FACTORS = {"nielsen": (None, None), "marquardt": (10.0, 0.1), "thresholds": (2.0, 1 / 3)}


def loop(
    fn, x, steps, rule="nielsen", scaling="identity", damping=1e-3, relative=True, geodesic=None, accept=0.0,
    low=0.25, high=0.75, up=None, down=None,
):  # fmt: skip
    """The rules of the catalog, one line per symbol; returns the points and the dampings."""
    default_up, default_down = FACTORS[rule]
    up, down = up or default_up, down or default_down
    mu, nu, D, points, dampings = None, 2.0, None, [], []
    for _ in range(steps):
        J, r = torch.func.jacfwd(fn)(x), fn(x)
        g, d = J.mT @ r, J.square().sum(0)
        d = torch.where(d == 0, 1.0, d)
        D = {"identity": torch.ones_like(d), "diagonal": d, "running": d if D is None else torch.maximum(D, d)}[scaling]
        if mu is None:
            mu = damping * J.square().sum(0).max().item() if relative and scaling == "identity" else damping
        A = J.mT @ J + mu * torch.diag(D)
        h = torch.linalg.solve(A, -g)
        s, refused = h, False
        if geodesic is not None:
            a = torch.linalg.solve(A, -J.mT @ bend_of(fn, x, h))
            s, refused = h + a / 2, a.norm() > geodesic * h.norm()
        predicted = (h @ (mu * D * h - g)).item() / 2
        before, after = fn(x).square().sum().item() / 2, fn(x + s).square().sum().item() / 2
        if predicted > 2 * 2**-52 * before:
            rho = (before - after) / predicted if after == after and after < float("inf") else -float("inf")
            taken = rho > accept and not refused
            if refused:
                rho = -float("inf")
            x = x + s if taken else x
            if rule == "nielsen":
                mu, nu = (mu * max(1 / 3, 1 - (2 * rho - 1) ** 3), 2.0) if taken else (mu * nu, 2 * nu)
            elif rule == "marquardt":
                mu *= down if taken else up
            elif not taken or rho < low:
                mu *= up
            elif rho > high:
                mu *= down
        points.append(x)
        dampings.append(mu)
    return torch.stack(points), torch.tensor(dampings, dtype=torch.float64)


def path_with_dampings(tx, params, fn, steps):
    state, points, dampings = tx.init(params), [], []
    for _ in range(steps):
        updates, state = tx.update(params, state, params, residual_fn=fn)
        params = gradtx.apply_updates(params, updates)
        points.append(vector_of(params))
        dampings.append(state["scale_by_levenberg_marquardt"]["damping"])
    return torch.stack(points), torch.stack(dampings)


PROBLEMS = {"Rosenbrock": 16, "Bard": 8, "Osborne 1": 15, "Decay": 15}
OPTIONS = {
    "plain": {},
    "absolute": {"relative": False},
    "strict": {"accept": 0.3},
    "bounds": {"low": 0.01, "high": 0.99, "up": 4.0, "down": 1 / 3.5},
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("scaling", ["identity", "diagonal", "running"])
@pytest.mark.parametrize("rule", ["nielsen", "marquardt", "thresholds"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_the_path_is_that_of_a_plain_loop(name, rule, scaling, options):
    problem, given = CLASSIC[name], OPTIONS[options]
    tx = gradtx.levenberg_marquardt(rule=rule, scaling=scaling, damping=1e-2, **given)
    params = problem.named(problem.starts[0])
    points, dampings = path_with_dampings(tx, params, problem.residual, PROBLEMS[name])
    expected, mu = loop(problem.residual, problem.starts[0], PROBLEMS[name], rule, scaling, 1e-2, **given)
    # The loop solves normal equations, whose condition is a square.
    torch.testing.assert_close(points, expected, rtol=1e-5, atol=1e-7)
    moves = torch.diff(points, dim=0).norm(dim=1) > 1e-5 * points[1:].norm(dim=1)
    torch.testing.assert_close(dampings[1:][moves], mu[1:][moves], rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("solve", ["qr", "dense", "cg", "lsmr"])
@pytest.mark.parametrize("rule", ["nielsen", "marquardt", "thresholds"])
def test_every_solve_takes_the_same_path_in_pure_use_and_in_an_optimizer(rule, solve):
    problem = CLASSIC["Rosenbrock"]
    params = problem.named(problem.starts[0])
    tx = gradtx.levenberg_marquardt(rule=rule, solve=solve)
    expected, _ = loop(problem.residual, problem.starts[0], 15, rule)
    torch.testing.assert_close(path_of(tx, params, 15, residual_fn=problem.residual), expected, rtol=1e-7, atol=1e-9)
    in_optimizer = path_in_optimizer(tx, params, problem.residual, 15)
    torch.testing.assert_close(in_optimizer, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("m", [4, 9, 20])
def test_leaves_of_several_shapes_are_one_vector(m):
    params, fn = start_of(), residuals_of(m)
    expected, _ = loop(lambda x: fn(tree_of(x, params)), vector_of(params), 8)
    torch.testing.assert_close(path_of(gradtx.levenberg_marquardt(), params, 8, residual_fn=fn), expected)
    torch.testing.assert_close(path_in_optimizer(gradtx.levenberg_marquardt(), params, fn, 8), expected)


@pytest.mark.parametrize("geodesic", [0.2, 0.75, 10.0])
@pytest.mark.parametrize("name", ["Rosenbrock", "Decay"])
def test_geodesic_steps_bend_along_the_second_derivative_and_are_refused_where_it_is_large(name, geodesic):
    problem = CLASSIC[name]
    start = problem.starts[0]
    tx = gradtx.levenberg_marquardt(geodesic=geodesic)
    expected, _ = loop(problem.residual, start, 15, geodesic=geodesic)
    for path in (
        path_of(tx, problem.named(start), 15, residual_fn=problem.residual),
        path_in_optimizer(tx, problem.named(start), problem.residual, 15),
    ):
        torch.testing.assert_close(path, expected, rtol=1e-6, atol=1e-8)
    plain, _ = loop(problem.residual, start, 15)
    assert not torch.allclose(plain, expected)


# jaxopt 0.8.5 with jax 0.10 in float64: LevenbergMarquardt(fn, damping_parameter=1e-3, solver="cholesky",
# materialize_jac=True), and the parameters after each `update`.
JAXOPT = {
    "Rosenbrock": [
        [-0.6252087925131077, 0.06589091147226322],
        [-0.6252087925131077, 0.06589091147226322],
        [-0.09474539100478874, -0.26855525467544045],
        [0.4255321291538279, -0.09169832725369695],
        [0.4770949926542153, 0.21981717153239524],
        [0.4770949926542153, 0.21981717153239524],
        [0.6435813927537428, 0.3846646509751245],
        [0.7240597735113841, 0.5163322346766137],
        [0.8512241323538332, 0.7077075168653204],
        [0.9081064949214317, 0.8210049598118444],
        [0.9677657002654485, 0.932874033864383],
        [0.9904888336589673, 0.9805123646811221],
        [0.9988360097420566, 0.9975989855413517],
        [0.9999476247157093, 0.999893805472533],
        [0.9999992007937871, 0.9999983957223462],
    ],
    "Bard": [
        [0.09318564653322192, 1.3372872778025164, 1.5165180697313265],
        [0.09038975856841724, 1.4401608583062362, 1.931568598833893],
        [0.08692965888327209, 1.2925470217618598, 2.186471683921651],
        [0.08335870976064252, 1.1588599357914227, 2.3190961961617145],
        [0.08246721830141851, 1.1346987955500643, 2.3421047620520334],
        [0.0824122186218109, 1.133090619682021, 2.3436427738394454],
    ],
}


@pytest.mark.parametrize("name", JAXOPT)
def test_the_default_is_jaxopts(name):
    problem, expected = CLASSIC[name], torch.tensor(JAXOPT[name], dtype=torch.float64)
    tx = gradtx.levenberg_marquardt(damping=1e-3)
    path = path_of(tx, problem.named(problem.starts[0]), len(expected), residual_fn=problem.residual)
    torch.testing.assert_close(path, expected, rtol=1e-9, atol=1e-9)


# optimistix with equinox 0.13.8, lineax 0.1.1 and jax 0.10 in float64: LevenbergMarquardt(rtol=0, atol=0,
# linear_solver=QR()) on Rosenbrock's function, the accepted point after each `step`.
OPTIMISTIX = [
    [-1.2, 1.0],
    [-0.77866323907455, 0.4344473007712081],
    [-0.77866323907455, 0.4344473007712081],
    [-0.5826748585384552, 0.3062273437485539],
    [-0.41327131579050563, 0.14840837875923224],
    [-0.21865763904913535, 0.015262514509727543],
    [0.0033616030137628705, -0.04679879124131974],
    [0.2024402727614321, -0.0005021195792608846],
    [0.3326170006097817, 0.09006538830593634],
    [0.4243434089418673, 0.16851558678763245],
    [0.4935752195484529, 0.23611930502302178],
    [0.5482120383868988, 0.29518848967351374],
    [0.5928142560265652, 0.3473528114585523],
    [0.6301558662726244, 0.3938424350003608],
    [0.6620278028238245, 0.4355948930502224],
    [0.6896442659629344, 0.47333686563581706],
    [0.7138627817134069, 0.5076413550344999],
    [0.7353099305371309, 0.5389676614954166],
    [0.7544567704108592, 0.5676895417321639],
    [0.8059799489172301, 0.6460534525806730],
]


def test_thresholds_of_its_own_make_it_optimistixs():
    problem = CLASSIC["Rosenbrock"]
    tx = gradtx.levenberg_marquardt(
        damping=1.0, rule="thresholds", relative=False, low=0.01, high=0.99, up=4.0, down=1 / 3.5, accept=0.01
    )
    path = path_of(tx, problem.named(problem.starts[0]), len(OPTIMISTIX), residual_fn=problem.residual)
    expected = torch.tensor(OPTIMISTIX, dtype=torch.float64)
    # optimistix proposes the first point before its first trial.
    torch.testing.assert_close(path[: len(expected) - 1], expected[1:], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["Rosenbrock", "Bard", "Osborne 1", "Decay"])
def test_it_reaches_the_known_minimum(name):
    problem = CLASSIC[name]
    tx = gradtx.levenberg_marquardt()
    path = path_of(tx, problem.named(problem.starts[0]), 60, residual_fn=problem.residual)
    assert problem.loss(path[-1]).item() == pytest.approx(problem.minimum, rel=1e-8, abs=1e-20)


# Rejected trials.


def state_of(tx, params, fn, steps):
    state = tx.init(params)
    for _ in range(steps):
        updates, state = tx.update(params, state, params, residual_fn=fn)
        params = gradtx.apply_updates(params, updates)
    return params, state


def atan(p):
    """Steps with little damping go beyond the basin of Newton's method."""
    return torch.cat([p["x"].atan(), 0.01 * p["x"]])


FAR = {"x": torch.tensor([6.0, -8.0], dtype=torch.float64)}


@pytest.mark.parametrize("scaling", ["identity", "running"])
def test_a_rejected_trial_leaves_the_parameters_and_raises_the_damping(scaling):
    tx = gradtx.levenberg_marquardt(damping=1e-6, scaling=scaling)
    points, dampings = path_with_dampings(tx, FAR, atan, 6)
    assert torch.equal(points[0], FAR["x"])
    ratios = dampings[1:] / dampings[:-1]
    assert ratios[:3].tolist() == [4.0, 8.0, 16.0]


@pytest.mark.parametrize("scaling", ["identity", "running"])
def test_a_checkpoint_amid_rejections_resumes_bit_for_bit(scaling):
    tx = gradtx.levenberg_marquardt(damping=1e-6, scaling=scaling)
    params, state = state_of(tx, FAR, atan, 3)
    assert torch.equal(params["x"], FAR["x"])  # all were rejected
    optimizer, leaves = optimizer_of(tx, FAR)
    for _ in range(3):
        optimizer.step(lambda: atan(leaves))
    saved = copy.deepcopy(optimizer.state_dict())
    weights = {name: leaf.detach().clone() for name, leaf in leaves.items()}
    again, copies = optimizer_of(tx, weights)
    again.load_state_dict(saved)
    for _ in range(12):
        optimizer.step(lambda: atan(leaves))
        again.step(lambda: atan(copies))
        updates, state = tx.update(params, state, params, residual_fn=atan)
        params = gradtx.apply_updates(params, updates)
        assert torch.equal(leaves["x"], copies["x"])
        torch.testing.assert_close(leaves["x"].detach(), params["x"])
    assert not torch.equal(leaves["x"], FAR["x"])


@pytest.mark.parametrize("rule", ["nielsen", "marquardt", "thresholds"])
def test_at_the_minimum_the_damping_stays(rule):
    problem = CLASSIC["Decay"]
    tx = gradtx.levenberg_marquardt(rule=rule)
    points, dampings = path_with_dampings(tx, problem.named(problem.starts[1]), problem.residual, 250)
    assert points.isfinite().all()
    assert dampings.isfinite().all()
    assert dampings.max() < 1e3
    assert len(set(dampings[-50:].tolist())) <= 3  # a trial whose gain is rounding alone may count once more
    assert problem.digits(points[-1]) > 6


@pytest.mark.parametrize("rule", ["nielsen", "marquardt", "thresholds"])
@pytest.mark.parametrize("scaling", ["identity", "diagonal", "running"])
def test_residuals_that_are_nan_take_no_step_and_leave_a_state_that_goes_on(rule, scaling):
    problem = CLASSIC["Rosenbrock"]
    tx = gradtx.levenberg_marquardt(rule=rule, scaling=scaling)
    broken = lambda p: problem.residual(p) * torch.nan  # noqa: E731
    for before in (0, 2):
        params, state = state_of(tx, problem.named(problem.starts[0]), problem.residual, before)
        updates, after = tx.update(params, state, params, residual_fn=broken)
        assert (vector_of(updates) == 0).all()
        old, new = (each["scale_by_levenberg_marquardt"]["damping"] for each in (state, after))
        assert new > old or (before == 0 and new >= old)
        state = after
        for _ in range(60):
            updates, state = tx.update(params, state, params, residual_fn=problem.residual)
            params = gradtx.apply_updates(params, updates)
        assert problem.loss(params) < 1e-12


def test_a_trial_at_which_residuals_are_nan_is_rejected():
    fn = lambda p: p["x"].log() - 1  # noqa: E731
    params = {"x": torch.tensor([20.0], dtype=torch.float64)}  # the first steps go below 0
    tx = gradtx.levenberg_marquardt(damping=1e-8)
    points, dampings = path_with_dampings(tx, params, fn, 60)
    assert points[0] == params["x"]
    assert dampings[1] == 4 * dampings[0]
    assert points.isfinite().all()
    assert points[-1].item() == pytest.approx(torch.e)


def test_a_member_whose_residuals_are_nan_leaves_the_others_of_a_vmap_alone():
    problem = CLASSIC["Rosenbrock"]
    starts = torch.stack([problem.starts[0], vector(torch.nan, 1.0), vector(0.5, 2.0)])
    tx = gradtx.levenberg_marquardt()

    def run(start):
        return path_of(tx, {"x": start}, 12, residual_fn=lambda p: problem.residual(p["x"]))[-1]

    together = torch.vmap(run)(starts)
    assert together[1, 0].isnan()
    assert together[1, 1] == 1.0
    for i in (0, 2):
        torch.testing.assert_close(together[i], run(starts[i]), rtol=1e-9, atol=1e-9)


def test_members_of_a_vmap_over_data_and_damping_accept_each_on_its_own():
    x = torch.linspace(0, 4, 12, dtype=torch.float64)
    ys = torch.stack([2 * (-0.7 * x).exp(), 3 * (-0.1 * x).exp() - 1]) + 0.01 * drawn(1, 2, 12)
    dampings = vector(1e-8, 10.0)

    def run(y, damping):
        tx = gradtx.levenberg_marquardt(damping=damping)
        params = {"a": vector(1.0)[0], "k": vector(3.0)[0]}
        return path_of(tx, params, 15, residual_fn=lambda p: p["a"] * (-p["k"] * x).exp() - y)

    together = torch.vmap(run)(ys, dampings)
    for i in range(2):
        torch.testing.assert_close(together[i], run(ys[i], dampings[i]), rtol=1e-7, atol=1e-9)


def test_the_step_returns_the_loss_and_repeated_trials_take_the_same_path():
    problem = CLASSIC["Rosenbrock"]
    params = problem.named(problem.starts[0])
    optimizer, leaves = optimizer_of(gradtx.levenberg_marquardt(), params)
    loss = optimizer.step(lambda: problem.residual(leaves), max_iter=15)
    assert loss.item() == pytest.approx(problem.loss(problem.starts[0]).item() / 2)
    expected, _ = loop(problem.residual, problem.starts[0], 15)
    torch.testing.assert_close(vector_of(leaves).detach(), expected[-1], rtol=1e-7, atol=1e-9)


def test_a_leaf_without_a_gradient_is_a_constant():
    problem = CLASSIC["Decay"]
    params = problem.named(problem.starts[1])
    tx = gradtx.levenberg_marquardt()
    updates, _ = tx.update({**params, "b1": None}, tx.init(params), params, residual_fn=problem.residual)
    rest = {name: params[name] for name in ("b2", "b3")}
    alone = updates_of(tx, rest, residual_fn=lambda p: problem.residual({"b1": params["b1"], **p}))
    torch.testing.assert_close({name: updates[name] for name in rest}, alone)


@pytest.mark.parametrize("name", ["levenberg_marquardt", "dogleg", "hessian_free"])
def test_states_are_float32_where_a_device_has_no_float64(name, monkeypatch):
    monkeypatch.setattr(exact, "WITHOUT_FLOAT64", ("cpu",))
    tx, params = getattr(gradtx, name)(), {"w": torch.ones(2)}
    state = tx.init(params)
    for _ in range(3):
        updates, state = tx.update(params, state, params, residual_fn=lambda p: torch.cat([p["w"].atan(), p["w"]]))
        params = gradtx.apply_updates(params, updates)
    dtypes = {x.dtype for x in tensors(state).values() if x.is_floating_point()}
    assert dtypes == {torch.float32}
    assert params["w"].abs().max() < 0.9
