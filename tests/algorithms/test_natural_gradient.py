"""Natural gradients: Fisher matrices of the outputs, of labels that are drawn, and of gradients of examples."""

import pytest
import torch
from torch.nn import functional

import gradtx
from gradtx.curvature.fisher import drawn_slopes
from gradtx.state.random import Stream
from tests.algorithms.least_squares import (
    drawn,
    jacobian_of,
    optimizer_of,
    path_in_optimizer,
    path_of,
    residuals_of,
    start_of,
    updates_of,
    vector_of,
)

X, LABELS = drawn(1, 6, 4), torch.tensor([0, 1, 2, 0, 2, 1])
WEIGHTS = {"w": drawn(2, 4, 3), "v": drawn(3, 3, 3), "b": drawn(4, 3)}
N, C, SIZE = 6, 3, 24


def outputs(p):
    return (X @ p["w"]).tanh() @ p["v"] + p["b"]


def cross_entropy(z):
    return functional.cross_entropy(z, LABELS)


FUNCTIONS = {"outputs_fn": outputs, "loss_of_outputs": cross_entropy}
GRADIENT = vector_of(torch.func.grad(lambda p: cross_entropy(outputs(p)))(WEIGHTS))
J = jacobian_of(lambda p: outputs(p).reshape(-1), WEIGHTS)
UNIT = torch.eye(SIZE, dtype=torch.float64)


def assert_near(found, expected, tolerance):
    assert (found - expected).norm() <= tolerance * expected.norm(), (found, expected)


# "type2".


@pytest.mark.parametrize("solve", ["auto", "dense", "kernel", "cg"])
def test_the_default_is_gauss_newton_of_the_same_loss(solve):
    options = {"lr": 0.5, "damping": 1e-2, "solve": solve, "weight_decay": 0.1}
    found = path_of(gradtx.natural_gradient(**options), WEIGHTS, 3, **FUNCTIONS)
    assert_near(found, path_of(gradtx.gauss_newton(**options), WEIGHTS, 3, **FUNCTIONS), 1e-12)
    params, fn = start_of(), residuals_of(12)
    if solve != "lsmr":
        options = {"damping": 1e-2, "solve": solve}
        expected = path_of(gradtx.gauss_newton(**options), params, 3, residual_fn=fn)
        assert_near(path_of(gradtx.natural_gradient(**options), params, 3, residual_fn=fn), expected, 1e-12)
        assert_near(path_in_optimizer(gradtx.natural_gradient(**options), params, fn, 3), expected, 1e-9)


def true_fisher():
    """The mean over examples of J_i^T (diag(p) - p p^T) J_i."""
    blocks = J.reshape(N, C, SIZE)
    p = outputs(WEIGHTS).softmax(-1)
    return sum(b.mT @ (torch.diag(q) - torch.outer(q, q)) @ b for b, q in zip(blocks, p, strict=True)) / N


def test_for_cross_entropy_the_default_is_the_true_fisher_matrix():
    u = updates_of(gradtx.scale_by_natural_gradient(damping=1e-3), WEIGHTS, **FUNCTIONS)
    assert_near(vector_of(u), torch.linalg.solve(true_fisher() + 1e-3 * UNIT, GRADIENT), 1e-9)


# "sampled".


def sampled_fisher(slopes):
    rows = torch.einsum("ncp,knc->knp", J.reshape(N, C, SIZE), slopes).reshape(-1, SIZE)
    return rows.mT @ rows / len(rows)


@pytest.mark.parametrize("solve", ["auto", "dense", "kernel", "cg"])
@pytest.mark.parametrize("draws", [1, 4])
def test_given_samples_make_the_fisher_matrix_of_their_outer_products(draws, solve):
    slopes = drawn(9, draws, N, C)
    tx = gradtx.scale_by_natural_gradient(damping=1e-2, fisher="sampled", solve=solve, max_steps=500)
    expected = torch.linalg.solve(sampled_fisher(slopes) + 1e-2 * UNIT, GRADIENT)
    tolerance = 1e-7 if solve == "cg" else 1e-9
    u = updates_of(tx, WEIGHTS, output_samples=slopes, **FUNCTIONS)
    assert_near(vector_of(u), expected, tolerance)
    descent = gradtx.natural_gradient(damping=1e-2, fisher="sampled", solve=solve, max_steps=500)
    optimizer, leaves = optimizer_of(descent, WEIGHTS)
    optimizer.step(outputs_fn=lambda: outputs(leaves), loss_of_outputs=cross_entropy, output_samples=slopes)
    assert_near(vector_of(WEIGHTS) - vector_of(leaves).detach(), expected, tolerance)


COVARIANCES = {
    "categorical": lambda z: torch.diag(z.softmax(-1)) - torch.outer(z.softmax(-1), z.softmax(-1)),
    "gaussian": lambda z: torch.eye(len(z), dtype=z.dtype),
    "bernoulli": lambda z: torch.diag(z.sigmoid() * (1 - z.sigmoid())),
}


@pytest.mark.parametrize("likelihood", COVARIANCES)
def test_drawn_slopes_have_mean_0_and_the_covariance_that_is_the_fisher_matrix(likelihood):
    z, count = torch.tensor([1.0, -2.0, 0.3, 0.0], dtype=torch.float64), 40_000
    stream = Stream(torch.tensor(3), torch.tensor(1), "outputs")
    slopes = drawn_slopes(z.expand(count, 4), likelihood, stream)
    error = 5 / count**0.5  # five standard errors of entries of variance 1 at most, or of their products
    assert slopes.mean(0).abs().max() < error
    assert (slopes.mT @ slopes / count - COVARIANCES[likelihood](z)).abs().max() < 2 * error
    # Of one label each: independent examples.
    assert (slopes[1:] * slopes[:-1]).mean(0).abs().max() < error
    if likelihood == "categorical":
        labels = z.softmax(-1) - slopes
        assert labels.sum(-1).allclose(torch.ones(count, dtype=z.dtype))
        assert ((labels - labels.round()).abs() < 1e-12).all()


@pytest.mark.parametrize("likelihood", COVARIANCES)
def test_many_draws_approach_the_true_fisher_matrix(likelihood):
    z = outputs(WEIGHTS)
    blocks = J.reshape(N, C, SIZE)
    true = sum(b.mT @ COVARIANCES[likelihood](row) @ b for b, row in zip(blocks, z, strict=True)) / N
    tx = gradtx.scale_by_natural_gradient(damping=0.1, fisher="sampled", likelihood=likelihood, samples=3000)
    u = vector_of(updates_of(tx, WEIGHTS, **FUNCTIONS))
    expected = torch.linalg.solve(true + 0.1 * UNIT, GRADIENT)
    assert_near(u, expected, 0.1)
    one = gradtx.scale_by_natural_gradient(damping=0.1, fisher="sampled", likelihood=likelihood)
    assert (vector_of(updates_of(one, WEIGHTS, **FUNCTIONS)) - expected).norm() > (u - expected).norm()


def test_draws_follow_the_seed_and_the_count_of_steps():
    def two(seed):
        tx = gradtx.scale_by_natural_gradient(fisher="sampled", likelihood="categorical", seed=seed)
        first, state = tx.update(WEIGHTS, tx.init(WEIGHTS), WEIGHTS, **FUNCTIONS)
        second, _ = tx.update(WEIGHTS, state, WEIGHTS, **FUNCTIONS)
        return vector_of(first), vector_of(second)

    first, second = two(0)
    assert torch.equal(two(0)[0], first)
    assert torch.equal(two(0)[1], second)
    assert not torch.allclose(first, second)
    assert not torch.allclose(two(1)[0], first)


# "empirical".

EXAMPLES = {"w": drawn(21, 5, 4, 3), "v": drawn(22, 5, 3, 3), "b": drawn(23, 5, 3)}
ROWS = torch.cat([leaf.reshape(5, -1) for leaf in EXAMPLES.values()], dim=1)


@pytest.mark.parametrize("damping", [1e-6, 1e-2, 10.0])
@pytest.mark.parametrize("solve", ["auto", "qr", "dense", "kernel", "cg", "lsmr"])
def test_gradients_of_examples_make_the_empirical_fisher_matrix(solve, damping):
    tx = gradtx.natural_gradient(lr=1.0, damping=damping, fisher="empirical", solve=solve, max_steps=500)
    _, s, Vh = torch.linalg.svd(ROWS / 5**0.5, full_matrices=False)
    expected = Vh.mT @ (Vh @ ROWS.mean(0) / (s.square() + damping))
    tolerance = 1e-6 if solve in ("cg", "lsmr", "dense") and damping < 1e-3 else 1e-9
    assert_near(-vector_of(updates_of(tx, WEIGHTS, grad_sample=EXAMPLES)), expected, tolerance)
    optimizer, leaves = optimizer_of(tx, WEIGHTS)
    for name, leaf in leaves.items():
        leaf.grad_sample = EXAMPLES[name].clone()
    optimizer.step()
    assert_near(vector_of(WEIGHTS) - vector_of(leaves).detach(), expected, tolerance)


def test_a_leaf_without_gradients_of_examples_and_without_a_gradient_stays():
    tx = gradtx.natural_gradient(damping=1e-2, fisher="empirical")
    given = {**EXAMPLES, "b": None}
    updates, _ = tx.update({**WEIGHTS, "b": None}, tx.init(WEIGHTS), WEIGHTS, grad_sample=given)
    rest = {name: WEIGHTS[name] for name in ("w", "v")}
    alone = updates_of(tx, rest, grad_sample={name: EXAMPLES[name] for name in rest})
    assert_near(vector_of({name: updates[name] for name in rest}), vector_of(alone), 1e-12)


def test_members_of_a_vmap_over_dampings_step_as_they_do_alone():
    dampings = torch.tensor([1e-3, 1.0], dtype=torch.float64)

    def run(damping):
        return path_of(gradtx.natural_gradient(damping=damping), WEIGHTS, 2, **FUNCTIONS)

    together = torch.vmap(run)(dampings)
    for damping, found in zip(dampings, together, strict=True):
        assert_near(found, run(damping), 1e-9)
