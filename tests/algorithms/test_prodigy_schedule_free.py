import pytest
import torch

import gradtx
from tests import references as ref

LOUD = {"d0": 1e-3}  # d moves within a few steps
# d follows from differences of sums, and 32 steps of feedback amplify their rounding.
CLOSE = 1e-10


def prodigy_schedule_free(
    s, t, grads, params, lr=1.0, betas=(0.9, 0.99), beta3=None, weight_decay=0.0, d0=1e-6, d_coef=1.0, d_limiter=True,
    prodigy_steps=0, decoupling_c=0.0, eps=1e-8, stable=True, slice_p=11,
):  # fmt: skip
    """The rule of the catalog, with all three sequences."""
    b1, b2 = betas
    b3 = b2**0.5 if beta3 is None else beta3
    shared = s[""]
    if t == 1:
        shared.d = d0
        for name, p in params.items():
            s[name].z = s[name].x = s[name].p0 = p
    d = shared.d
    rho = d * lr
    shared.W = shared.W + rho**2
    c = rho**2 / shared.W if shared.W else 0.0
    if decoupling_c > 0:
        c = min(1, c * (1 - b1) * decoupling_c)
    gain = size = 0.0
    new = {}
    for name, g in grads.items():
        leaf, y = s[name], params[name]
        leaf.v = b2 * leaf.v + (1 - b2) * d**2 * g**2
        if eps is None:
            u = 1.2732395 * torch.atan2(d * g, leaf.v.sqrt())
        else:
            u = d * g / (leaf.v.sqrt() + d * eps)
            rms = u.square().mean().sqrt().item()
            shared.seen.add("steadied" if stable and rms > 1 else "as it is")
            if stable:
                u = u / max(1.0, rms) ** 0.5
        if prodigy_steps == 0 or t < prodigy_steps:
            part = slice(None, None, slice_p)
            gain += d**2 / d0**0.5 * (g.flatten()[part] @ (leaf.p0 - leaf.z).flatten()[part]).item()
            leaf.s = b3 * leaf.s + d**2 / d0**0.5 * g.flatten()[part]
            size += leaf.s.abs().sum().item()
        leaf.z = leaf.z - rho * (u + weight_decay * y)
        leaf.x = (1 - c) * leaf.x + c * leaf.z
        new[name] = (1 - b1) * leaf.z + b1 * leaf.x
    if prodigy_steps == 0 or t < prodigy_steps:
        shared.seen.add("counted" if d > d0 or gain > 0 else "ignored")
        shared.N = b3 * shared.N + (gain if d > d0 or gain > 0 else 0.0)
        if size > 0:
            h = shared.N / size
            shared.seen.add("limited" if d_limiter and h > 2**0.25 * d else "free")
            h = min(h, 2**0.25 * d) if d_limiter else h
            shared.d = max(d, d_coef * h)
    return new


OPTIONS = [
    {},
    LOUD,
    {**LOUD, "lr": 0.3, "betas": (0.7, 0.9), "weight_decay": 0.2},
    {**LOUD, "beta3": 0.5, "d_coef": 2.0, "slice_p": 1},
    {**LOUD, "d_limiter": False, "stable": False, "eps": 1e-3},
    {**LOUD, "prodigy_steps": 9, "slice_p": 3},
    {**LOUD, "decoupling_c": 30.0},
    {**LOUD, "decoupling_c": 1.5, "betas": (0.8, 0.95)},
    {**LOUD, "eps": None, "slice_p": 1},
    {**LOUD, "lr": ref.RATE, "weight_decay": ref.DECAY},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_trained_and_evaluated_weights_follow_the_loop(options):
    step = ref.Transformed(gradtx.prodigy_schedule_free(**options))
    reference = ref.TreeLoop(prodigy_schedule_free, **options)
    ref.follows_along(step, reference, tolerance=CLOSE, steps=ref.LONG)
    found = step.tx.eval_params(
        step.state, ref.run(ref.TreeLoop(prodigy_schedule_free, **options), weights=True, steps=ref.LONG)[-1]
    )
    ref.compare_trees(found, {name: reference.slots[name].x for name in found}, CLOSE)
    d = gradtx.get(step.state, "d").item()
    assert d == pytest.approx(reference.slots[""].d, rel=CLOSE)


def test_every_branch_of_the_rule_ran():
    reference = ref.TreeLoop(prodigy_schedule_free, **LOUD)
    ref.run(reference, steps=ref.LONG)
    assert {"counted", "limited", "free", "steadied", "as it is"} <= reference.seen
    assert reference.slots[""].d > 10 * LOUD["d0"]


def test_first_steps_the_wrong_way_do_not_delay_the_estimate():
    step, reference = ref.Transformed(gradtx.prodigy_schedule_free(**LOUD)), ref.TreeLoop(prodigy_schedule_free, **LOUD)
    params = {"w": torch.ones(3, dtype=torch.float64)}
    for sign in (1, -3, -3, -3, -3, 1, 1, 1):
        grads = {"w": torch.full_like(params["w"], sign)}
        updates, expected = step(grads, params), reference(grads, params)
        ref.compare_trees(updates, expected, CLOSE)
        params = gradtx.apply_updates(params, expected)
        assert gradtx.get(step.state, "d_numerator").item() == pytest.approx(reference.slots[""].N, rel=CLOSE)
    assert reference.seen >= {"ignored", "counted"}


@pytest.mark.parametrize("compile", [False, True], ids=["default", "compiled"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_steps_of_an_optimizer_are_those_of_the_loop(options, compile):
    def make(params):
        return gradtx.as_optimizer(gradtx.prodigy_schedule_free(**options), params, compile=compile)

    reference = ref.TreeLoop(prodigy_schedule_free, **options)
    ref.follows_along(ref.Published(make), reference, tolerance=CLOSE)


def test_a_leaf_that_comes_late_does_not_start_the_estimate_again():
    tx = gradtx.prodigy_schedule_free(d0=0.1, prodigy_steps=4, slice_p=1)
    params = {"a": torch.tensor([5.0]), "b": torch.tensor([5.0])}
    state = tx.init(params)
    history = []
    for t in range(8):
        grads = {"a": None if t < 4 else torch.ones(1), "b": torch.ones(1)}
        updates, state = tx.update(grads, state, params)
        params = gradtx.apply_updates(params, updates)
        history.append(gradtx.get(state, "d").item())
    assert history[2] > history[0]
    assert history[2:] == [history[2]] * 6


def test_no_gradient_changes_nothing():
    tx = gradtx.prodigy_schedule_free()
    params = ref.problem()
    zeros = {name: torch.zeros_like(param) for name, param in params.items()}
    updates, state = tx.update(zeros, tx.init(params), params)
    assert all(not update.any() for update in updates.values())
    assert gradtx.get(state, "d").item() == 1e-6


def test_the_average_is_not_that_of_schedule_free_around_prodigy():
    other = gradtx.schedule_free(gradtx.prodigy(betas=(0.0, 0.99), d0=1e-3), lr=1.0, beta=0.9)
    found = ref.run(gradtx.prodigy_schedule_free(**LOUD), steps=ref.LONG)
    assert ref.distance(found, ref.run(other, steps=ref.LONG)) > 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d0": 0.0}, r"prodigy_schedule_free: d0 must be in \(0, inf\), got 0.0"),
        ({"betas": (0.0, 0.99)}, r"prodigy_schedule_free: betas\[0\] must be in \(0, 1\), got 0.0"),
        ({"eps": 0.0}, r"prodigy_schedule_free: eps must be in \(0, inf\), got 0.0"),
        ({"slice_p": 0}, r"prodigy_schedule_free: slice_p must be in \[1, inf\), got 0"),
        ({"prodigy_steps": -1}, r"prodigy_schedule_free: prodigy_steps must be in \[0, inf\), got -1"),
        ({"decoupling_c": -1.0}, r"prodigy_schedule_free: decoupling_c must be in \[0, inf\), got -1.0"),
    ],
    ids=str,
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        gradtx.prodigy_schedule_free(**options)
