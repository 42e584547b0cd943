"""Gauss-Newton: five ways to solve one system, for residuals and for convex losses of outputs."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

import gradtx
from tests.algorithms.least_squares import (
    damped_solution,
    drawn,
    jacobian_of,
    optimizer_of,
    path_in_optimizer,
    path_of,
    residuals_of,
    start_of,
    tree_of,
    updates_of,
    vector_of,
)

DIRECT, ITERATIVE = ("auto", "qr", "dense", "kernel"), ("cg", "lsmr")
# Iterations stop at rounding errors, which the condition of the normal equations multiplies.
TO_THE_END = {"max_steps": 2000, "tolerance": 1e-15}


def direction(fn, params, **options):
    return vector_of(updates_of(gradtx.scale_by_gauss_newton(**options), params, residual_fn=fn))


def assert_near(found, expected, tolerance):
    assert (found - expected).norm() <= tolerance * (expected.norm() + 1e-12), (found, expected)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    m=st.sampled_from([1, 2, 5, 8, 9, 10, 15, 30]),
    rank=st.sampled_from([1, 4, 9]),
    damping=st.floats(-6, 2).map(lambda x: 10**x),
    scaling=st.sampled_from(["identity", "diagonal"]),
    solve=st.sampled_from([*DIRECT, *ITERATIVE]),
)
def test_every_solve_is_the_dense_form_for_all_shapes_ranks_and_dampings(seed, m, rank, damping, scaling, solve):
    params, fn = start_of(seed), residuals_of(m, seed + 10, rank)
    J, r = jacobian_of(fn, params), fn(params)
    options = TO_THE_END if solve in ITERATIVE else {}
    found = direction(fn, params, damping=damping, scaling=scaling, solve=solve, **options)
    # Errors of normal equations grow with their condition, as do those of the kernel of few residuals.
    is_exact = solve == "qr" or (solve == "auto" and m >= 9)
    assert_near(found, damped_solution(J, r, damping, scaling), 1e-9 if is_exact else 1e-7)


@pytest.mark.parametrize("solve", [*DIRECT, *ITERATIVE])
@pytest.mark.parametrize("m", [4, 9, 20])
def test_steps_of_an_optimizer_are_those_of_pure_updates(m, solve):
    params, fn = start_of(), residuals_of(m)
    tx = gradtx.gauss_newton(lr=0.5, damping=0.1, solve=solve, max_steps=200)
    assert_near(path_in_optimizer(tx, params, fn, 3), path_of(tx, params, 3, residual_fn=fn), 1e-9)


@pytest.mark.parametrize("solve", [*DIRECT, *ITERATIVE])
def test_members_of_a_vmap_over_data_and_damping_step_as_they_do_alone(solve):
    params, targets, fn = start_of(), drawn(5, 3, 20), residuals_of(20)
    dampings = torch.tensor([1e-3, 0.1, 10.0], dtype=torch.float64)

    def step(target, damping):
        tx = gradtx.gauss_newton(damping=damping, solve=solve, max_steps=200)
        return vector_of(updates_of(tx, params, residual_fn=lambda p: fn(p) - target))

    together = torch.vmap(step)(targets, dampings)
    alone = torch.stack([step(target, damping) for target, damping in zip(targets, dampings, strict=True)])
    assert_near(together, alone, 1e-9)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("weights", [None, {"inner": 2.0, "edge": 0.5}])
def test_the_loss_of_terms_is_half_of_the_weighted_sum_of_their_sums_or_means_of_squares(reduction, weights):
    params, inner, edge = start_of(), residuals_of(12, 20), residuals_of(5, 40)

    def terms(p):
        return {"inner": inner(p).reshape(3, 4), "edge": edge(p)}

    def loss(p):
        total = 0.0
        for name, term in terms(p).items():
            square = term.square().mean() if reduction == "mean" else term.square().sum()
            total = total + (weights or {}).get(name, 1.0) * square / 2
        return total

    # Damping far above the curvature leaves the gradient.
    u = direction(terms, params, damping=1e12, reduction=reduction, weights=weights)
    gradient = vector_of(torch.func.grad(loss)(params))
    assert_near(1e12 * u, gradient, 1e-9)
    factors = {"inner": 2.0, "edge": 0.5} if weights else {"inner": 1.0, "edge": 1.0}
    sizes = {"inner": 12, "edge": 5} if reduction == "mean" else {"inner": 1, "edge": 1}

    def joined(p):
        return torch.cat([(factors[n] / sizes[n]) ** 0.5 * t.reshape(-1) for n, t in terms(p).items()])

    u = direction(terms, params, damping=0.1, reduction=reduction, weights=weights)
    assert_near(u, damped_solution(jacobian_of(joined, params), joined(params), 0.1), 1e-9)
    optimizer, leaves = optimizer_of(gradtx.gauss_newton(reduction=reduction, weights=weights), params)
    assert optimizer.step(lambda: terms(leaves)).item() == pytest.approx(loss(params).item(), rel=1e-12)


# Convex losses of outputs.

X, TARGETS, LABELS = drawn(1, 7, 4), drawn(7, 7, 3), torch.tensor([0, 1, 2, 0, 2, 1, 1])
WEIGHTS = {"w": drawn(2, 4, 3), "v": drawn(3, 3, 3), "b": drawn(4, 3)}
BITS, COUNTS = (drawn(5, 7, 3) > 0).double(), drawn(6, 7, 3).abs().round()
LOSSES = {
    "mse": lambda z: functional.mse_loss(z, TARGETS),
    "cross_entropy": lambda z: functional.cross_entropy(z, LABELS),
    "bce": lambda z: functional.binary_cross_entropy_with_logits(z, BITS),
    "poisson": lambda z: functional.poisson_nll_loss(z, COUNTS),
}


def outputs(p):
    return (X @ p["w"]).tanh() @ p["v"] + p["b"]


def dense_direction_of_outputs(loss, damping):
    J = jacobian_of(lambda p: outputs(p).reshape(-1), WEIGHTS)
    z = outputs(WEIGHTS).reshape(-1)
    flat = lambda z: loss(z.reshape(7, 3))  # noqa: E731
    h, H = torch.func.grad(flat)(z), torch.func.hessian(flat)(z)
    return torch.linalg.solve(J.mT @ H @ J + damping * torch.eye(J.shape[1], dtype=J.dtype), J.mT @ h)


@pytest.mark.parametrize("solve", ["auto", "dense", "kernel", "cg"])
@pytest.mark.parametrize("name", LOSSES)
def test_outputs_with_a_loss_give_the_generalized_gauss_newton_direction(name, solve):
    loss, damping = LOSSES[name], 1e-3
    functions = {"loss_of_outputs": loss}
    tx = gradtx.gauss_newton(damping=damping, solve=solve, max_steps=500)
    expected = dense_direction_of_outputs(loss, damping)
    tolerance = 1e-7 if solve == "cg" else 1e-9
    assert_near(-vector_of(updates_of(tx, WEIGHTS, outputs_fn=outputs, **functions)), expected, tolerance)
    optimizer, leaves = optimizer_of(tx, WEIGHTS)
    value = optimizer.step(outputs_fn=lambda: outputs(leaves), **functions)
    assert_near(vector_of(WEIGHTS) - vector_of(leaves).detach(), expected, tolerance)
    assert value is None or value.item() == pytest.approx(loss(outputs(WEIGHTS)).item())


# Limits.


@pytest.mark.parametrize("solve", ["auto", "qr", "dense"])
def test_without_damping_one_step_solves_a_linear_problem_of_full_rank(solve):
    A, y = drawn(1, 12, 9), drawn(2, 12)
    params = start_of()
    u = direction(lambda p: A @ vector_of(p) - y, params, damping=0.0, solve=solve)
    assert_near(vector_of(params) - u, torch.linalg.lstsq(A, y[:, None]).solution[:, 0], 1e-9)


@pytest.mark.parametrize("solve", ["auto", "qr", "dense"])
def test_without_damping_a_wide_problem_takes_the_step_of_least_norm(solve):
    A, y = drawn(1, 4, 9), drawn(2, 4)
    params = start_of()
    fn = lambda p: A @ vector_of(p) - y  # noqa: E731
    u = direction(fn, params, damping=0.0, solve=solve)
    assert_near(u, torch.linalg.pinv(A) @ fn(params), 1e-9)


@pytest.mark.parametrize("solve", [*DIRECT, *ITERATIVE])
def test_large_damping_leaves_the_scaled_gradient(solve):
    params, fn = start_of(), residuals_of(12)
    u = direction(fn, params, damping=1e9, solve=solve)
    assert_near(1e9 * u, jacobian_of(fn, params).mT @ fn(params), 1e-6)  # curvature over damping


# The gradient and the loss behind the link.


@gradtx.per_tensor
def take_the_gradient():
    def update(grad, state, param, ctx):
        return ctx.grad, {}

    return lambda param: {}, update


@gradtx.per_tensor(extras={"value": "scalar?"})
def take_the_value():
    def update(grad, state, param, ctx):
        return ctx.value.to(grad) + torch.zeros_like(grad), {}

    return lambda param: {}, update


def half_square(fn):
    return lambda p: fn(p).square().sum() / 2


def test_later_links_read_the_gradient_not_the_direction():
    params, fn = start_of(), residuals_of(12)
    tx = gradtx.chain(gradtx.scale_by_gauss_newton(damping=0.1), take_the_gradient())
    expected = vector_of(torch.func.grad(half_square(fn))(params))
    assert_near(vector_of(updates_of(tx, params, residual_fn=fn)), expected, 1e-12)
    assert_near(vector_of(params) + expected, path_in_optimizer(tx, params, fn, 1)[0], 1e-12)


def test_later_links_read_the_loss():
    params, fn = start_of(), residuals_of(12)
    tx = gradtx.chain(gradtx.scale_by_gauss_newton(damping=0.1), take_the_value())
    assert_near(vector_of(updates_of(tx, params, residual_fn=fn)), half_square(fn)(params).expand(9), 1e-12)


@pytest.mark.parametrize("conditions", ["armijo", "strong_wolfe"])
def test_a_line_search_around_it_finds_losses_that_fall_in_pure_use_and_in_an_optimizer(conditions):
    params, fn = start_of(), residuals_of(14)
    tx = gradtx.line_search(gradtx.gauss_newton(damping=1e-6), conditions=conditions)
    path = path_of(tx, params, 6, residual_fn=fn)
    losses = [half_square(fn)(tree_of(row, params)) for row in [vector_of(params), *path]]
    assert all(after < before for before, after in itertools.pairwise(losses))
    assert_near(path_in_optimizer(tx, params, fn, 6), path, 1e-9)


def test_a_line_search_shortens_a_step_that_is_too_long():
    fn = lambda p: p["x"].atan()  # noqa: E731
    params = {"x": torch.tensor([3.0], dtype=torch.float64)}
    full = updates_of(gradtx.gauss_newton(damping=0.0), params, residual_fn=fn)["x"]
    assert full.item() == pytest.approx(-10 * math.atan(3.0))  # beyond the basin of Newton's method
    searched = updates_of(gradtx.line_search(gradtx.gauss_newton(damping=0.0)), params, residual_fn=fn)["x"]
    assert (searched / full).item() in (0.5, 0.25, 0.125)
    assert fn({"x": params["x"] + searched}).square() < fn(params).square()


def test_the_step_returns_the_loss():
    params, fn = start_of(), residuals_of(12)
    optimizer, leaves = optimizer_of(gradtx.gauss_newton(), params)
    assert optimizer.step(lambda: fn(leaves)).item() == pytest.approx(half_square(fn)(params).item(), rel=1e-12)


def test_a_plateau_behind_it_reads_the_loss():
    params, fn = start_of(), residuals_of(12)
    tx = gradtx.chain(gradtx.gauss_newton(lr=1e-9), gradtx.reduce_on_plateau(factor=0.5, patience=1))
    path = path_of(tx, params, 6, residual_fn=fn)
    steps = torch.diff(torch.cat([vector_of(params)[None], path]), dim=0).norm(dim=1)
    assert (steps[-1] / steps[0]).item() < 0.6


# Chains.


def test_clips_momentum_and_a_rate_follow_the_direction():
    params, fn = start_of(), residuals_of(12)
    tx = gradtx.chain(
        gradtx.scale_by_gauss_newton(damping=0.1),
        gradtx.clip_by_global_norm(0.5),
        gradtx.trace(0.9),
        gradtx.scale_by_learning_rate(0.1),
    )
    at, momentum = vector_of(params), torch.zeros(9, dtype=torch.float64)
    rows = []
    for _ in range(4):
        p = tree_of(at, params)
        u = damped_solution(jacobian_of(fn, p), fn(p), 0.1)
        momentum = 0.9 * momentum + u * min(1.0, 0.5 / u.norm().item())
        at = at - 0.1 * momentum
        rows.append(at)
    # The clip divides by a norm plus 1e-6.
    assert_near(path_of(tx, params, 4, residual_fn=fn), torch.stack(rows), 1e-5)


def test_decay_is_decoupled():
    params, fn = start_of(), residuals_of(12)
    plain = updates_of(gradtx.gauss_newton(lr=0.5), params, residual_fn=fn)
    decayed = updates_of(gradtx.gauss_newton(lr=0.5, weight_decay=0.1), params, residual_fn=fn)
    assert_near(vector_of(decayed), vector_of(plain) - 0.05 * vector_of(params), 1e-12)


def test_a_branch_has_the_columns_of_its_own_leaves_and_the_others_are_constants():
    params, fn = start_of(), residuals_of(12)
    tx = gradtx.partition(
        {"head": gradtx.gauss_newton(damping=0.1), "body": gradtx.adamw(lr=0.1)}, {"head": "a", "body": "*"}
    )
    gradient = torch.func.grad(half_square(fn))(params)
    updates, _ = tx.update(gradient, tx.init(params), params, residual_fn=fn)
    J = jacobian_of(lambda p: fn({**params, **p}), {"a": params["a"]})
    assert_near(-updates["a"].reshape(-1), damped_solution(J, fn(params), 0.1), 1e-9)
    adamw = gradtx.adamw(lr=0.1)
    expected, _ = adamw.update(gradient, adamw.init(params), params)
    assert_near(updates["c"], expected["c"], 1e-12)


@pytest.mark.parametrize("way", ["none", "freeze"])
def test_frozen_leaves_and_leaves_without_a_gradient_are_constants(way):
    params, fn = start_of(), residuals_of(12)
    tx = gradtx.gauss_newton(damping=0.1)
    given = dict(params)
    if way == "none":
        given["b"] = None
    else:
        tx = gradtx.partition({"on": tx, "off": gradtx.freeze("*")}, {"off": "b", "on": "*"})
    updates, _ = tx.update(given, tx.init(params), params, residual_fn=fn)
    rest = {name: params[name] for name in ("a", "c")}
    J = jacobian_of(lambda p: fn({name: p.get(name, params[name]) for name in params}), rest)
    assert_near(-vector_of({name: updates[name] for name in rest}), damped_solution(J, fn(params), 0.1), 1e-9)
    assert updates["b"] is None or updates["b"] == 0


def test_in_an_optimizer_a_parameter_that_requires_no_gradient_is_a_constant():
    params, fn = start_of(), residuals_of(12)
    optimizer, leaves = optimizer_of(gradtx.gauss_newton(damping=0.1), params)
    leaves["b"].requires_grad_(False)
    optimizer.step(lambda: fn(leaves))
    rest = {name: params[name] for name in ("a", "c")}
    J = jacobian_of(lambda p: fn({name: p.get(name, params[name]) for name in params}), rest)
    moved = vector_of({name: params[name] - leaves[name].detach() for name in rest})
    assert_near(moved, damped_solution(J, fn(params), 0.1), 1e-9)
    assert torch.equal(leaves["b"], params["b"])


# What is not finite, and precision.


@pytest.mark.parametrize("solve", [*DIRECT, *ITERATIVE])
def test_a_residual_that_is_nan_gives_updates_that_are_nan_which_skip_nonfinite_skips(solve):
    params, fn = start_of(), residuals_of(12)

    def broken(p):
        return torch.cat([fn(p), (p["b"] - p["b"] - 1).log().reshape(1)])

    tx = gradtx.gauss_newton(damping=0.1, solve=solve)
    assert vector_of(updates_of(tx, params, residual_fn=broken)).isnan().all()
    guarded = gradtx.chain(tx, gradtx.skip_nonfinite(gradtx.scale(1.0)))
    assert (vector_of(updates_of(guarded, params, residual_fn=broken)) == 0).all()
    assert torch.equal(path_in_optimizer(guarded, params, broken, 1)[0], vector_of(params))


def test_qr_in_float32_loses_the_condition_and_not_its_square():
    m, n = 500, 21
    U, _ = torch.linalg.qr(drawn(1, m, n))
    V, _ = torch.linalg.qr(drawn(2, n, n))
    J = U @ torch.diag(torch.logspace(0, -math.log10(2e3), n, dtype=torch.float64)) @ V.mT
    # A good fit: errors of the solution grow with the square of the condition times what remains of the residuals.
    J, y = J.float(), (J @ drawn(3, n) + 1e-3 * drawn(4, m)).float()
    params = {"w": torch.zeros(n)}
    expected = damped_solution(J.double(), -y.double(), 1e-12)
    u = updates_of(gradtx.scale_by_gauss_newton(damping=1e-12), params, residual_fn=lambda p: J @ p["w"] - y)["w"]
    assert u.dtype == torch.float32
    assert_near(u.double(), expected, 2e-5)  # a tenth of eps times the condition, 2e3
    squared = torch.linalg.solve(J.mT @ J, J.mT @ -y).double()
    assert (squared - expected).norm() > 20 * (u.double() - expected).norm()


@pytest.mark.parametrize("wide", ["params", "residuals"])
def test_residuals_and_parameters_may_have_different_dtypes(wide):
    params, fn = start_of(), residuals_of(12)
    expected = damped_solution(jacobian_of(fn, params), fn(params), 0.1)
    if wide == "params":
        narrow_fn, given = (lambda p: fn(p).float()), params
    else:
        given = {name: leaf.float() for name, leaf in params.items()}
        narrow_fn = lambda p: fn({name: leaf.double() for name, leaf in p.items()})  # noqa: E731
    for solve in (*DIRECT, *ITERATIVE):
        tx = gradtx.gauss_newton(damping=0.1, solve=solve)
        u = updates_of(tx, given, residual_fn=narrow_fn)
        assert {name: leaf.dtype for name, leaf in u.items()} == {name: leaf.dtype for name, leaf in given.items()}
        assert_near(-vector_of(u).double(), expected, 1e-5)
        moved = path_in_optimizer(tx, given, narrow_fn, 1)[0]
        assert_near(vector_of(given).double() - moved.double(), expected, 1e-5)


def test_float32_leaves_without_dimensions_are_solved():
    params = {"a": torch.tensor(1.0), "k": torch.tensor(0.5)}
    x = torch.linspace(0, 2, 10)
    fn = lambda p: p["a"] * (-p["k"] * x).exp() - 2 * (-0.7 * x).exp()  # noqa: E731
    u = updates_of(gradtx.gauss_newton(damping=0.1), params, residual_fn=fn)
    J = jacobian_of(fn, params)
    assert_near(-torch.stack(list(u.values())), damped_solution(J, fn(params), 0.1), 1e-5)


def test_the_order_of_leaves_changes_no_bit():
    params, fn = start_of(), residuals_of(12)
    reversed_ = dict(reversed(params.items()))
    sorted_fn = lambda p: fn({name: p[name] for name in params})  # noqa: E731
    one = updates_of(gradtx.gauss_newton(damping=0.1), params, residual_fn=sorted_fn)
    other = updates_of(gradtx.gauss_newton(damping=0.1), reversed_, residual_fn=sorted_fn)
    assert all(torch.equal(one[name], other[name]) for name in params)


def test_without_damping_residuals_that_are_nan_give_updates_that_are_nan():
    params = start_of()
    for m in (4, 12):
        fn = lambda p, m=m: residuals_of(m)(p) * torch.nan  # noqa: E731
        assert vector_of(updates_of(gradtx.gauss_newton(damping=0.0), params, residual_fn=fn)).isnan().all()


@pytest.mark.parametrize("scaling", ["identity", "diagonal"])
def test_a_decay_averages_the_matrix_over_batches(scaling):
    x, y = drawn(0, 4, 12, 3), drawn(1, 4, 12)
    tx = gradtx.gauss_newton(lr=0.5, damping=1e-2, decay=0.8, scaling=scaling)
    params = {"b": torch.zeros((), dtype=torch.float64), "w": torch.zeros(3, dtype=torch.float64)}
    state, (optimizer, leaves) = tx.init(params), optimizer_of(tx, params)
    expected, average = torch.zeros(4, dtype=torch.float64), torch.zeros(4, 4, dtype=torch.float64)
    for t, (inputs, targets) in enumerate(zip(x, y, strict=True)):

        def residuals(p, inputs=inputs, targets=targets):
            return torch.tanh(inputs @ p["w"] + p["b"]) - targets

        like = {"b": expected[0], "w": expected[1:]}
        J, r = jacobian_of(residuals, like), residuals(like)
        average = 0.8 * average + 0.2 * J.mT @ J
        matrix = average / (1 - 0.8 ** (t + 1))
        D = matrix.diagonal() if scaling == "diagonal" else torch.ones(4, dtype=torch.float64)
        expected = expected - 0.5 * torch.linalg.solve(matrix + 1e-2 * torch.diag(D), J.mT @ r)
        updates, state = tx.update(params, state, params, residual_fn=residuals)
        params = gradtx.apply_updates(params, updates)
        optimizer.step(lambda residuals=residuals: residuals(leaves))
        assert_near(vector_of(params), expected, 1e-9)
        assert_near(vector_of(leaves), expected, 1e-9)


def test_a_decay_needs_the_dense_matrix_and_one_group():
    with pytest.raises(ValueError, match="decay averages the matrix of solve='dense', which solve='cg' does not make"):
        gradtx.scale_by_gauss_newton(decay=0.9, solve="cg")
    a, b = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    groups = [{"params": [("a", a)]}, {"params": [("b", b)]}]
    optimizer = gradtx.as_optimizer(gradtx.gauss_newton(decay=0.9), groups)
    with pytest.raises(ValueError, match="that of leaf 'a' is for 2 entries of 4; pass the parameters as one group"):
        optimizer.step(lambda: a * b - 3)


READERS = {
    "alig": lambda link: gradtx.chain(link, gradtx.alig(max_lr=1.0)),
    "reduce_on_plateau": lambda link: gradtx.chain(link, gradtx.scale(-1.0), gradtx.reduce_on_plateau(patience=1)),
    "cautious": lambda link: gradtx.chain(link, gradtx.scale_by_caution(), gradtx.scale_by_learning_rate(0.1)),
    "momentum": lambda link: gradtx.chain(link, gradtx.trace(0.5), gradtx.scale_by_learning_rate(0.5)),
}


@pytest.mark.parametrize("name", READERS)
def test_links_behind_that_read_the_loss_or_the_gradient_work_in_both_uses(name):
    tx = READERS[name](gradtx.scale_by_gauss_newton(damping=1e-2))
    params, fn = start_of(), residuals_of(12)
    pure = path_of(tx, params, 4, residual_fn=fn)
    torch.testing.assert_close(path_in_optimizer(tx, params, fn, 4), pure, rtol=1e-9, atol=1e-9)
    losses = [fn(tree_of(row, params)).square().sum() for row in pure]
    assert losses[-1] < fn(params).square().sum()
