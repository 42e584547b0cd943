import math

import pytest
import torch

import gradtx
from tests import references as ref
from tests.references import LONG, Transformed

RATE = gradtx.cosine_schedule(0.2, T_max=20, eta_min=0.01)


def adaptive_gd(s, t, g, p, lr=0.2, amplifier=0.02, damping=1.0, theta=1.0, eps=1e-5, weight_decay=0.0):
    own = s[""]
    if t == 1:
        own.rate, own.theta, own.p, own.g = lr, theta, p, g
    D = ref.global_norm({name: p[name] - own.p[name] for name in p})
    G = ref.global_norm({name: g[name] - own.g[name] for name in p})
    grown = own.rate * math.sqrt(1 + amplifier * own.theta)
    if D > 0 and G > 0:
        own.seen.add("measured" if D / (damping * G) < grown else "grown")
        rate = min(grown, D / (damping * G)) + eps
    else:
        rate = own.rate if math.isinf(own.theta) else grown
    if not (t == 1 and math.isinf(own.theta)):
        own.theta = rate / own.rate
    own.rate, own.p, own.g = rate, p, g
    return {name: p[name] - rate * (g[name] + weight_decay * p[name]) for name in p}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lr": 0.02, "amplifier": 0.5, "damping": 0.3, "theta": 2.0, "eps": 1e-3, "weight_decay": 0.2},
        {"lr": 0.02, "amplifier": 2.0, "damping": 0.05, "weight_decay": RATE},
    ],
    ids=str,
)
def test_the_weights_of_adaptive_gd_follow_the_loop(options):
    loop = ref.TreeLoop(adaptive_gd, **options)
    # noisy gradients make steps tiny, and their difference from the weights loses digits
    ref.follows(gradtx.adaptive_gd(**options), loop, steps=LONG, tolerance=1e-9)
    assert "measured" in loop.seen
    assert ref.arguments(gradtx.adaptive_gd) == ref.arguments(adaptive_gd)


@pytest.mark.parametrize("lr", [1e-3, 0.1])
def test_the_form_of_the_paper_follows_the_loop_on_one_loss(lr):
    # With a loss of each step's own the step size would shrink to nothing.
    options = {"lr": lr, "amplifier": 1.0, "damping": 2.0, "theta": math.inf, "eps": 0.0}
    ours, loop, params = (
        ref.Transformed(gradtx.adaptive_gd(**options)),
        ref.TreeLoop(adaptive_gd, **options),
        ref.problem(),
    )
    for t in range(1, 33):
        grads = ref.gradients(params, 1)
        updates, expected = ours(grads, params), loop(grads, params)
        ref.compare_trees(updates, expected, when=f" at step {t}")
        params = gradtx.apply_updates(params, updates)
    assert loop.seen == {"measured", "grown"}


PAPER = {"lr": 1e-6, "amplifier": 1.0, "damping": 2.0, "theta": math.inf, "eps": 0.0}


def descend(tx, grad, start, steps, **extras):
    """Step sizes and weights of a run on the gradient `grad`, of one leaf or several."""
    params = {name: torch.tensor(x, dtype=torch.float64) for name, x in start.items()}
    state, sizes = tx.init(params), []
    for _ in range(steps):
        given = {name: {key: f(params[key]) for key in params} for name, f in extras.items()}
        updates, state = tx.update({name: grad(p) for name, p in params.items()}, state, params, **given)
        params = gradtx.apply_updates(params, updates)
        sizes.append(state["scale_by_local_smoothness"]["step_size"].item())
    return sizes, params, state["scale_by_local_smoothness"]


def test_norms_are_of_differences_and_of_all_leaves_together():
    # curvatures 1 and 3: |dp| / |dg| with dp = -0.1 (1, 3 * 2), so sqrt(1 + 36) / sqrt(1 + 9 * 36)
    curvature = torch.tensor([1.0, 3.0], dtype=torch.float64)
    tx = gradtx.scale_by_local_smoothness(lr=0.1, amplifier=0.0, eps=0.01)
    params = {"a": torch.tensor([1.0], dtype=torch.float64), "b": torch.tensor([2.0], dtype=torch.float64)}
    step = Transformed(tx)
    for _ in range(2):
        updates = step({"a": curvature[0] * params["a"], "b": curvature[1] * params["b"]}, params)
        params = gradtx.apply_updates(params, updates)
    # without growth the old size is the limit
    assert step.state["scale_by_local_smoothness"]["step_size"].item() == pytest.approx(0.11)
    loose = gradtx.scale_by_local_smoothness(lr=0.1, amplifier=1e6, eps=0.01)
    params = {"a": torch.tensor([1.0], dtype=torch.float64), "b": torch.tensor([2.0], dtype=torch.float64)}
    first = 0.1 * math.sqrt(1 + 1e6)
    step = Transformed(loose)
    for _ in range(2):
        updates = step({"a": curvature[0] * params["a"], "b": curvature[1] * params["b"]}, params)
        params = gradtx.apply_updates(params, updates)
    assert first > 1
    measured = math.sqrt(37 / 325) + 0.01
    assert step.state["scale_by_local_smoothness"]["step_size"].item() == pytest.approx(measured)


def test_an_infinite_theta_waits_for_a_measurement():
    sizes, _, state = descend(gradtx.scale_by_local_smoothness(**PAPER), lambda p: 0 * p + 1, {"w": [0.0]}, 3)
    assert sizes == [1e-6] * 3
    assert state["theta"].item() == math.inf


def test_an_infinite_theta_without_growth_gives_no_nan():
    tx = gradtx.scale_by_local_smoothness(**{**PAPER, "amplifier": 0.0})
    sizes, _, _ = descend(tx, lambda p: 5 * p, {"w": [1.0, -3.0]}, 4)
    assert sizes == pytest.approx([1e-6, 0.1, 0.1, 0.1])


def test_a_gradient_of_the_previous_weights_takes_the_place_of_the_previous_gradient():
    tx = gradtx.scale_by_local_smoothness(lr=0.1, amplifier=1e6, eps=0.0)
    start = {"w": torch.tensor([2.0], dtype=torch.float64)}
    state = tx.init(start)
    updates, state = tx.update({"w": torch.tensor([1.0], dtype=torch.float64)}, state, start)
    params = gradtx.apply_updates(start, updates)
    # another batch, of curvature 4: its gradient at both weights
    updates, state = tx.update({"w": 4 * params["w"]}, state, params, prev_grad={"w": 4 * start["w"]})
    assert state["scale_by_local_smoothness"]["step_size"].item() == pytest.approx(0.25)
    with pytest.raises((ValueError, TypeError), match="prev_grd"):
        tx.update({"w": 4 * params["w"]}, state, params, prev_grd={"w": 4 * start["w"]})


def test_it_measures_the_gradient_as_it_came_whatever_stands_before():
    doubled = gradtx.chain(gradtx.scale(2.0), gradtx.scale_by_local_smoothness(**PAPER))
    sizes, params, _ = descend(doubled, lambda p: 5 * p, {"w": [1.0, -3.0]}, 2)
    assert sizes == pytest.approx([1e-6, 0.1])
    assert params["w"].tolist() == pytest.approx([0.0, 0.0], abs=1e-4)  # 0.1 * 2 * 5 is the whole way


def test_a_parameter_that_joins_late_is_not_measured_at_its_first_step():
    def sizes(joins):
        first, late = (torch.nn.Parameter(torch.tensor([x], dtype=torch.float64)) for x in (1.0, 2.0))
        optimizer, found = gradtx.optim.AdaptiveGD([first, late], lr=0.1, amplifier=1e6), []
        for t in range(4):
            first.grad, late.grad = first.detach() * (1 + t), None
            if joins and t == 2:
                late.data.add_(50.0)
                late.grad = torch.ones(1, dtype=torch.float64)
            optimizer.step()
            found.append(optimizer.state[first]["step_size"].item())
        return found

    assert sizes(joins=True) == sizes(joins=False)


def test_groups_share_one_step_size():
    def optimizer(groups):
        return gradtx.optim.AdaptiveGD(groups, lr=0.1)

    weights = [[torch.nn.Parameter(torch.tensor([float(i)], dtype=torch.float64)) for i in (1, 2)] for _ in range(2)]
    together, apart = optimizer(weights[0]), optimizer([{"params": [w]} for w in weights[1]])
    for _ in range(4):
        for one, params in ((together, weights[0]), (apart, weights[1])):
            for i, p in enumerate(params):
                p.grad = (i + 1) * p.detach()
            one.step()
    assert [w.item() for w in weights[0]] == [w.item() for w in weights[1]]


def test_groups_that_disagree_on_the_first_step_size_are_an_error():
    params = [torch.nn.Parameter(torch.ones(1)) for _ in range(2)]
    optimizer = gradtx.optim.AdaptiveGD([{"params": params[:1], "lr": 0.5}, {"params": params[1:]}])
    for param in params:
        param.grad = torch.ones(1)
    with pytest.raises(ValueError, match=r"^scale_by_local_smoothness: lr must agree across groups, got 0.5 and 0.2$"):
        optimizer.step()


@pytest.mark.parametrize("amplifier", [0.02, 1.0])
def test_a_nan_in_a_gradient_makes_every_update_nan_and_lets_no_leaf_step_unbounded(amplifier):
    params = {"bad": torch.ones(2), "good": torch.ones(2)}
    step = Transformed(gradtx.scale_by_local_smoothness(lr=0.1, amplifier=amplifier))
    for size in (1.0, 2.0):
        updates = step({name: size * param for name, param in params.items()}, params)
        params = gradtx.apply_updates(params, updates)
    updates = step({"bad": torch.tensor([math.nan, 1.0]), "good": torch.full((2,), 1e6)}, params)
    assert all(update.isnan().all() for update in updates.values())
