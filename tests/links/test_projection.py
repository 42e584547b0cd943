import math

import pytest
import torch

import gradtx
from tests.references import Loop, finite_without_gradient, first_update, follows, named, problem

RISING = gradtx.linear_schedule(0.99, start_factor=0.5, total_iters=20)


def orthogonalized(s, t, g, p, beta=0.9):
    result = g
    if t > 1:
        u = s.e / max(s.e.norm().item(), 1e-12)
        result = g - (g * u).sum() * u
    s.e = beta * s.e + (1 - beta) * g
    return result


@pytest.mark.parametrize("options", [{}, {"beta": 0.0}, {"beta": 0.5}, {"beta": RISING}], ids=str)
def test_orthogonalize_against_ema_follows_the_loop(options):
    follows(gradtx.orthogonalize_against_ema(**options), Loop(orthogonalized, **options), -0.1)


def test_a_leaf_of_one_entry_gets_zero_from_the_second_step_on():
    assert [first_update(gradtx.orthogonalize_against_ema(), 0.7, steps=n) for n in (1, 2, 3)] == [0.7, 0.0, 0.0]


def test_the_part_along_earlier_gradients_of_a_float32_leaf_is_taken_out_in_float64():
    first = torch.tensor([0.1, 0.2, 0.3])
    second = first + torch.tensor([1e-5, 0.0, -1e-5])
    tx = gradtx.orthogonalize_against_ema(0.5)
    _, state = tx.update({"w": first}, tx.init({"w": torch.zeros(3)}))
    updates, _ = tx.update({"w": second}, state)
    u, g = torch.nn.functional.normalize(first.double(), dim=0), second.double()
    assert torch.equal(updates["w"], (g - (g * u).sum() * u).float())


def centralized(s, t, g, p, conv_only=False):
    if g.ndim <= (3 if conv_only else 1):
        return g
    return g - g.mean(dim=tuple(range(1, g.ndim)), keepdim=True)


@pytest.mark.parametrize("conv_only", [False, True])
def test_centralize_follows_the_loop(conv_only):
    follows(gradtx.centralize(conv_only), Loop(centralized, conv_only=conv_only), rate=-0.1)


def test_centralized_units_have_mean_zero_and_small_leaves_pass():
    params = problem()
    updates, _ = gradtx.centralize().update(params, gradtx.centralize().init(params))
    for name in ("matrix", "kernel"):
        # the mean of about 8 numbers of size 1 that sum to 0 up to rounding
        assert updates[name].flatten(1).mean(dim=1).abs().max() < 1e-15
    for name in ("bias", "scalar"):
        assert updates[name].equal(params[name])


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


@pytest.mark.parametrize("shape", [(3, 1), (2, 1, 1, 1)], ids=str)
def test_neurons_of_one_weight_are_an_error(shape):
    with pytest.raises(
        ValueError, match="have a single weight each, which would become 0; train them without constraints"
    ):
        gradtx.project_neurons(torch.ones(shape))


def test_the_last_link_puts_all_weights_on_the_ball_and_leaves_those_within_alone():
    params = problem()
    grads = {name: 3 * p for name, p in params.items()}
    size = torch.stack([(p + 3 * p).square().sum() for p in params.values()]).sum().sqrt()
    tx = gradtx.project_l2_ball(size.item() / 4)
    updates, _ = tx.update(grads, tx.init(params), params)
    torch.testing.assert_close(gradtx.apply_updates(params, updates), params)  # four times as far, a quarter of it
    small = {name: 1e-3 * p.sin() for name, p in params.items()}  # of which p + u - p loses digits
    tx = gradtx.project_l2_ball(size.item())
    updates, _ = tx.update(small, tx.init(params), params)
    assert all(torch.equal(updates[name], small[name]) for name in small)


def test_a_leaf_without_gradient_neither_counts_in_the_ball_nor_moves():
    params = {"a": torch.tensor([6.0]), "b": torch.tensor([100.0])}
    tx = gradtx.project_l2_ball(3.0)
    updates, _ = tx.update({"a": torch.tensor([0.0]), "b": None}, tx.init(params), params)
    assert updates["a"] == -3
    assert updates["b"] is None


def test_an_infinite_ball_and_weights_of_zero_change_nothing():
    params, grads = {"w": torch.zeros(2)}, {"w": torch.zeros(2)}
    for radius in (float("inf"), 1.0):
        tx = gradtx.project_l2_ball(radius)
        assert torch.equal(tx.update(grads, tx.init(params), params)[0]["w"], grads["w"])


def test_momentum_and_the_ball_may_follow_the_step_size_a_learning_rate_may_not():
    gradtx.chain(gradtx.scale_by_polyak(), gradtx.trace(0.9, nesterov=True), gradtx.project_l2_ball(1.0))
    with pytest.raises(ValueError, match="scale_by_polyak owns the learning rate"):
        gradtx.chain(gradtx.scale_by_polyak(), gradtx.scale_by_learning_rate(0.1))


def test_a_zero_gradient_counts_as_scale_invariant():
    tx = gradtx.project_scale_invariant(weight_decay=1.0, wd_ratio=0.25)
    assert first_update(tx, [[0.0, 0.0]], [[2.0, 4.0]]) == [[0.5, 1.0]]


def orthogonal(s, t, g, p):
    rest = g - p * (g * p).sum() / (p * p).sum()
    if rest.norm() <= 4 * 2.0**-52 * g.norm():
        return 0 * g
    return rest * g.norm() / rest.norm()


def test_gradients_orthogonal_to_the_weights_follow_the_loop():
    follows(gradtx.orthogonalize_against_params(), Loop(orthogonal), rate=-0.05)
    tx = gradtx.chain(gradtx.orthogonalize_against_params(), gradtx.trace(0.9))
    follows(tx, Loop(lambda s, t, g, p: momentum(s, orthogonal(s, t, g, p))), rate=-0.05)


def momentum(s, g):
    s.b = 0.9 * s.b + g
    return s.b


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_they_keep_their_length_and_lose_what_points_along_the_weights(dtype):
    rng = torch.Generator().manual_seed(0)
    params = {"w": torch.randn(40, 30, generator=rng, dtype=dtype)}
    grads = {"w": torch.randn(40, 30, generator=rng, dtype=dtype) + params["w"]}
    tx = gradtx.orthogonalize_against_params()
    update = tx.update(grads, tx.init(params), params)[0]["w"]
    g, u, p = (x.to(torch.float64) for x in (grads["w"], update, params["w"]))
    eps = 4 * torch.finfo(dtype).eps
    assert update.dtype == torch.promote_types(dtype, torch.float32)
    assert abs(u.norm() / g.norm() - 1) < eps
    assert abs((u * p).sum()) < eps * u.norm() * p.norm()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_where_nothing_is_left_of_a_gradient_the_update_is_zero(dtype):
    w = torch.randn(7, generator=torch.Generator().manual_seed(0), dtype=dtype)
    params = {"parallel": w, "scalar": w[0], "zero": 0 * w, "nothing": w}
    grads = {"parallel": 1.7 * w, "scalar": 3 * w[1], "zero": w, "nothing": 0 * w}
    tx = gradtx.orthogonalize_against_params()
    updates = tx.update(grads, tx.init(params), params)[0]
    assert torch.equal(updates["zero"], w)  # zero weights have no direction
    assert all(not updates[name].any() for name in ("parallel", "scalar", "nothing"))


GROWING = gradtx.Schedule(lambda step: 0.2 + 0.05 * step)


def floor_relative_update(s, t, g, p, floor=0.35, per="leaf", power=1.0, eps=1e-8):
    if per == "row" and p.ndim > 1:
        return torch.stack(
            [floor_relative_update(s, t, u, w, floor, "leaf", power, eps) for u, w in zip(g, p, strict=True)]
        )
    factor = max(floor * max(p.norm().item(), eps) / max(g.norm().item(), eps), 1.0)
    s.seen.add(factor > 1)
    return g * factor**power


def radial_brake(s, t, g, p, outward=0.5, inward=1.0, form="direction", eps=1e-8, descent=False):
    if form == "norm":
        q = p + g
        scale = outward if q.norm() >= p.norm() else inward
        s.seen.add(bool(q.norm() >= p.norm()))
        wanted = p.norm() + scale * (q.norm() - p.norm())
        return q * wanted / q.norm() - p
    a = (g * p).sum() / p.norm() ** 2
    s.seen.add(bool(a > 0))
    u = g + ((outward if (a < 0 if descent else a > 0) else inward) - 1) * a * p
    if form == "component":
        return u
    q = p + u
    return q * (p.norm() + (u * p).sum() / p.norm()) / q.norm() - p


@pytest.mark.parametrize(
    ("make", "rule", "options"),
    [
        (gradtx.floor_relative_update, floor_relative_update, {}),
        (gradtx.floor_relative_update, floor_relative_update, {"floor": GROWING, "per": "row", "power": 0.5}),
        (gradtx.floor_relative_update, floor_relative_update, {"floor": 0.1, "eps": 0.4}),
        (gradtx.radial_brake, radial_brake, {}),
        (gradtx.radial_brake, radial_brake, {"outward": GROWING, "inward": 0.3}),
        (gradtx.radial_brake, radial_brake, {"form": "component", "outward": GROWING, "inward": 0.3}),
        (gradtx.radial_brake, radial_brake, {"form": "component", "descent": True}),
        (gradtx.radial_brake, radial_brake, {"form": "norm"}),
        (gradtx.radial_brake, radial_brake, {"form": "norm", "outward": 0.1, "inward": 0.7}),
    ],
    ids=named,
)
def test_the_updates_follow_the_loop(make, rule, options):
    loop = Loop(rule, **options)
    factor = -9.0 if rule is floor_relative_update else -0.3
    scaled = gradtx.chain(gradtx.scale(factor), make(**options))

    def reference(grads, params):
        return loop({name: factor * g for name, g in grads.items()}, params)

    follows(scaled, reference, rate=0.1, tolerance=1e-10)
    assert loop.seen == {False, True}


@pytest.mark.parametrize(
    "tx", [gradtx.radial_brake(), gradtx.radial_brake(form="norm"), gradtx.floor_relative_update()], ids=str
)
def test_zeros_stay_finite_and_zero_weights_can_leave(tx):
    assert finite_without_gradient(tx)
    zero = {"w": torch.zeros(2)}
    updates, _ = tx.update({"w": torch.ones(2)}, tx.init(zero), zero)
    assert updates["w"].isfinite().all()
    if tx.hyperparams.get("form") == "direction":
        assert updates["w"].tolist() == [1.0, 1.0]


def test_what_makes_no_sense():
    with pytest.raises(ValueError, match="radial_brake needs params"):
        gradtx.radial_brake().update({"w": torch.ones(1)}, {"step": torch.tensor(0)})
