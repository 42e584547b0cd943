import math

import pytest
import torch

import gradtx
from tests.algorithms.loops import largest_so_far, step_along_cosines, weights
from tests.references import BETA, DECAY, RATE, Transformed, TreeLoop, adam_moments, follows, named, run


def swats(s, t, g, p, lr=1e-3, betas=(0.9, 0.999), eps=1e-9, weight_decay=0.0, amsgrad=False, switch_tol=None):
    (b1, b2), common = betas, s[""]
    g = {name: g[name] + weight_decay * p[name] for name in g}
    common.seen.add("sgd" if common.sgd else "adam")
    if common.sgd:
        for name in g:
            s[name].b = b1 * s[name].b + g[name]
        return {name: p[name] - (1 - b1) * common.rate * s[name].b for name in g}
    steps = {}
    for name in g:
        adam_moments(s[name], t, g[name], betas)
        v = largest_so_far(s[name]) if amsgrad else s[name].v
        steps[name] = -lr * math.sqrt(1 - b2**t) / (1 - b1**t) * s[name].m / (v.sqrt() + eps)
    ss = sum((steps[name] * steps[name]).sum().item() for name in g)
    sg = sum((steps[name] * g[name]).sum().item() for name in g)
    if sg != 0:
        gamma = ss / -sg
        common.l = b2 * common.l + (1 - b2) * gamma
        rate = common.l / (1 - b2**t)
        if t > 1 and rate > 0 and abs(rate - gamma) < (eps if switch_tol is None else switch_tol):
            common.sgd, common.rate = True, rate
    return {name: p[name] + steps[name] for name in g}


OPTIONS = [
    (gradtx.swats, swats, {}),
    (gradtx.swats, swats, {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.2, "switch_tol": 0.03}),
    (gradtx.swats, swats, {"lr": 0.02, "betas": (0.8, 0.7), "amsgrad": True, "switch_tol": 0.02}),
    (gradtx.swats, swats, {"lr": 0.02, "eps": 0.01}),
    (gradtx.swats, swats, {"lr": RATE, "betas": (BETA, 0.9), "weight_decay": DECAY, "switch_tol": 0.02}),
]


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=named)
def test_the_weights_follow_the_loop(alias, rule, options):
    follows(alias(**options), TreeLoop(rule, **options))


@pytest.mark.parametrize(
    ("rule", "options", "branches"),
    [
        (
            swats,
            {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.2, "switch_tol": 0.03},
            {"adam", "sgd"},
        ),
        (swats, {"lr": 0.02, "betas": (0.8, 0.7), "amsgrad": True, "switch_tol": 0.02}, {"adam", "sgd"}),
        (swats, {"lr": 0.02, "eps": 0.01}, {"adam", "sgd"}),
    ],
    ids=named,
)
def test_the_options_above_take_every_branch(rule, options, branches):
    reference = TreeLoop(rule, **options)
    run(reference)
    assert reference.seen == branches


@pytest.mark.slow
def test_groups_of_swats_switch_together_and_must_agree_on_what_decides():
    params = weights()
    groups = [{"params": params[:1], "lr": 0.02}, {"params": params[1:], "lr": 0.01}]
    optimizer = gradtx.optim.SWATS(groups, betas=(0.8, 0.7), switch_tol=0.05)
    phases = []
    for t in range(12):
        step_along_cosines(optimizer, params, t / 4)
        phases.append({optimizer.state[param]["switched"].item() for param in params})
    assert all(len(phase) == 1 for phase in phases)
    assert phases[0] == {0.0}
    assert phases[-1] == {1.0}
    optimizer.param_groups[0]["betas"] = (0.8, 0.9)
    with pytest.raises(ValueError, match="betas must agree across groups"):
        step_along_cosines(optimizer, params, 0)


def test_the_rate_of_swats_counts_the_steps_of_all_parameters_together():
    params = weights(2)
    optimizer = gradtx.optim.SWATS(params, lr=0.02, betas=(0.8, 0.7), switch_tol=0.0)
    for t in range(3):
        params[0].grad = None
        # The first parameter's first step is the third.
        step_along_cosines(optimizer, params if t == 2 else params[1:], t)
    kept = optimizer.state[params[0]]
    assert (kept["count"].item(), kept["step"].item()) == (3.0, 1.0)
    assert kept["sgd_rate"].item() == pytest.approx(kept["rate_avg"].item() / (1 - 0.7**3), rel=1e-14)


BETAS = (0.5, 0.5)


def run_with(tx, *grads):
    """The updates of a leaf with one entry, and the shared numbers after each step."""
    step, updates, numbers = Transformed(tx), [], []
    for grad in grads:
        grad = torch.tensor([grad], dtype=torch.float64)
        updates.append(step({"w": grad}, {"w": torch.zeros_like(grad)})["w"].item())
        kept = step.state["scale_by_swats"]
        numbers.append(tuple(kept[name].item() for name in ("rate_avg", "sgd_rate", "switched")))
    return updates, numbers, kept


def test_it_switches_once_the_rate_has_settled_and_then_is_sgd_with_a_fresh_momentum():
    tx = gradtx.scale_by_swats(1.0, BETAS, eps=0.0, switch_tol=1e-6)
    updates, numbers, kept = run_with(tx, 2.0, 2.0, 4.0, 8.0)
    # Adam's steps of 1 are those of SGD at 1/2; then b = 4, 2 + 8, times (1 - 0.5) / 2
    assert updates == pytest.approx([-1.0, -1.0, -1.0, -2.5])
    assert numbers == [pytest.approx(x) for x in [(0.25, 0.5, 0), (0.375, 0.5, 1), (0.375, 0.5, 1), (0.375, 0.5, 1)]]
    # Adam's averages stay as they were at the switch
    assert (kept["exp_avg"]["w"].item(), kept["exp_avg_sq"]["w"].item()) == (1.5, 3.0)
    assert kept["momentum_buffer"]["w"].item() == 10.0


def test_without_a_slope_the_average_rate_stays_and_nothing_switches():
    tx = gradtx.scale_by_swats(1.0, BETAS, eps=0.0, switch_tol=1e9)
    _, numbers, _ = run_with(tx, 2.0, 0.0)
    assert numbers[1] == numbers[0] == pytest.approx((0.25, 0.5, 0.0), abs=1e-15)


def test_the_phase_of_sgd_does_not_read_the_learning_rate():
    lr = gradtx.linear_schedule(1.0, start_factor=1.0, end_factor=0.0, total_iters=2)
    tx = gradtx.scale_by_swats(lr, (0.0, 0.5), eps=0.0, switch_tol=1.0)
    updates, numbers, _ = run_with(tx, 2.0, 2.0, 2.0)
    assert numbers[1][2] == 1.0
    assert updates[2] == -numbers[1][1] * 2.0


def test_the_decision_is_a_tensor_so_members_of_a_vmap_switch_on_their_own():
    def phase(tolerance):
        tx = gradtx.scale_by_swats(1.0, BETAS, switch_tol=tolerance)
        grads = {"w": torch.tensor([2.0])}
        state = tx.init(grads)
        for _ in range(2):
            _, state = tx.update(grads, state)
        return state["scale_by_swats"]["switched"]

    assert torch.vmap(phase)(torch.tensor([0.0, 1.0])).tolist() == [0.0, 1.0]
