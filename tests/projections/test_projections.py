"""Projections, against a search for the nearest point, and in optimizers."""

import functools

import pytest
import torch

import gradtx
from gradtx import projections

A = torch.tensor([0.5, -1.0, 2.0, 0.0, 1.0, 0.25, -0.5], dtype=torch.float64)
MATRIX = torch.stack([A, A.flip(0), 2 * A])  # the third equation repeats the first
# By name: the projection of a vector, and a function that says how far a point violates the set.
SETS = {
    "simplex": (
        functools.partial(projections.simplex, scale=1.5),
        lambda x: max((x.sum() - 1.5).abs(), (-x).clamp(min=0).max()),
    ),
    "l1_ball": (functools.partial(projections.l1_ball, scale=1.5), lambda x: (x.abs().sum() - 1.5).clamp(min=0)),
    "l2_ball": (functools.partial(projections.l2_ball, scale=1.5), lambda x: (x.norm() - 1.5).clamp(min=0)),
    "linf_ball": (functools.partial(projections.linf_ball, scale=0.4), lambda x: (x.abs().max() - 0.4).clamp(min=0)),
    "box": (
        lambda x: projections.box(x, A - 0.1, A + 0.3),
        lambda x: max((A - 0.1 - x).clamp(min=0).max(), (x - A - 0.3).clamp(min=0).max()),
    ),
    "non_negative": (projections.non_negative, lambda x: (-x).clamp(min=0).max()),
    "halfspace": (lambda x: projections.halfspace(x, A, -0.5), lambda x: (A @ x + 0.5).clamp(min=0)),
    "hyperplane": (lambda x: projections.hyperplane(x, A, 0.7), lambda x: (A @ x - 0.7).abs()),
    "affine": (lambda x: projections.affine(x, MATRIX, MATRIX @ A), lambda x: (MATRIX @ (x - A)).abs().max()),
}


def points(count, size=2.0):
    return size * torch.randn(count, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("name", SETS)
def test_a_projection_is_in_the_set_and_every_other_point_of_it_lies_at_an_obtuse_angle(name):
    """The condition that characterizes the nearest point of a convex set: <v - Pv, y - Pv> <= 0 for all its y."""
    project, violation = SETS[name]
    members = [project(y) for y in points(50)]
    for v in points(20, 3.0).flip(0):
        nearest = project(v)
        assert violation(nearest) < 1e-12
        for y in members:
            assert (v - nearest) @ (y - nearest) < 1e-12


@pytest.mark.parametrize("name", SETS)
def test_a_point_of_the_set_stays(name):
    project, _ = SETS[name]
    inside = project(points(1)[0])
    torch.testing.assert_close(project(inside), inside, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", SETS)
def test_a_tree_is_one_vector_and_keeps_its_structure(name):
    if name == "box":
        pytest.skip("bounds are trees")
    v = points(1)[0]
    parts = {"a": v[:4].reshape(2, 2), "b": [v[4], v[5:]], "none": None}
    normal = {"a": A[:4].reshape(2, 2), "b": [A[4], A[5:]], "none": None}
    of_tree = {
        "halfspace": lambda tree: projections.halfspace(tree, normal, -0.5),
        "hyperplane": lambda tree: projections.hyperplane(tree, normal, 0.7),
    }
    project = of_tree.get(name, SETS[name][0])
    found = project(parts)
    assert found["none"] is None
    joined = torch.cat([found["a"].flatten(), found["b"][0].reshape(1), found["b"][1]])
    torch.testing.assert_close(joined, SETS[name][0](v))


@pytest.mark.parametrize("name", SETS)
def test_projections_run_under_vmap_and_have_derivatives(name):
    project, _ = SETS[name]
    batch = points(5)
    torch.testing.assert_close(torch.vmap(project)(batch), torch.stack(list(map(project, batch))))
    assert torch.autograd.gradcheck(project, batch[0].clone().requires_grad_())


@pytest.mark.parametrize("name", ["simplex", "l1_ball", "l2_ball"])
def test_a_scale_may_be_a_tensor_one_for_each_member(name):
    project = getattr(projections, name)
    scales = torch.tensor([0.5, 2.0], dtype=torch.float64)
    v = points(1)[0]
    together = torch.vmap(lambda scale: project(v, scale))(scales)
    torch.testing.assert_close(together, torch.stack([project(v, float(s)) for s in scales]))


@pytest.mark.parametrize("name", ["l1_ball", "l2_ball", "linf_ball"])
def test_a_ball_of_size_0_is_a_point(name):
    assert getattr(projections, name)(points(1)[0], 0.0).count_nonzero() == 0


def test_bfloat16_is_computed_in_float32_and_rounded_once():
    v = points(1)[0].to(torch.bfloat16)
    found = projections.simplex(v)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, projections.simplex(v.float()).to(torch.bfloat16))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda x: projections.simplex(x, 0.0),
            ValueError,
            r"projections.simplex: scale must be in \(0, inf\), got 0.0",
        ),
        (lambda x: projections.l2_ball(x, -1.0), ValueError, r"projections.l2_ball: scale must be in \[0, inf\)"),
        (lambda x: projections.l1_ball(x, "1"), TypeError, "projections.l1_ball: scale must be a number"),
        (lambda x: projections.box(x, 1.0, 0.0), ValueError, "projections.box: lower must be at most upper"),
        (lambda x: projections.box(x, {"w": x}, 0.0), ValueError, "projections.box: a bound: leaf '' is missing"),
        (lambda x: projections.halfspace(x, x[:2], 0.0), ValueError, r"a: leaf '' has shape \(2,\), needs \(7,\)"),
        (lambda x: projections.affine(x, x, x), ValueError, r"needs a of shape \(equations, 7\) and b of shape"),
        (lambda x: projections.non_negative({"w": 3}), TypeError, "leaf 'w' is a int, needs a tensor"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call(points(1)[0])


@pytest.mark.parametrize("compile", [False, True])
def test_an_optimizer_stays_in_the_set_of_each_leaf(compile):
    fn = functools.partial(projections.simplex, scale=2.0)
    tx = gradtx.chain(gradtx.adam(lr=0.3), gradtx.map_after_step(fn))
    weights = {name: torch.nn.Parameter(points(1)[0][:size]) for name, size in (("a", 3), ("b", 5))}
    optimizer = gradtx.as_optimizer(tx, weights.items(), compile=compile)
    for _ in range(3):
        for weight in weights.values():
            weight.grad = weight.detach().cos()
        optimizer.step()
        for weight in weights.values():
            assert weight.detach().sum() == pytest.approx(2.0)
            assert weight.detach().min() > -1e-15


def test_an_optimizer_stays_in_the_set_of_the_whole_tree():
    tx = gradtx.chain(gradtx.adam(lr=0.3), gradtx.map_tree_after_step(projections.simplex))
    weights = {name: torch.nn.Parameter(points(1)[0][:size].clone()) for name, size in (("a", 3), ("b", 5))}
    optimizer = gradtx.as_optimizer(tx, weights.items())
    for _ in range(3):
        for weight in weights.values():
            weight.grad = weight.detach().cos()
        optimizer.step()
        assert sum(weight.detach().sum() for weight in weights.values()) == pytest.approx(1.0)


def test_a_function_of_trees_that_loses_a_leaf_is_named():
    params = {"a": torch.ones(2), "b": torch.ones(2)}
    tx = gradtx.map_tree_after_step(lambda tree: {"a": tree["a"]})
    with pytest.raises(TypeError, match="must return a dict with the names that it receives"):
        tx.update(params, tx.init(params), params)
