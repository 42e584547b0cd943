import pytest
import torch

import gradtx
from tests.references import BETA, DECAY, RATE, Loop, first_update, follows, named, run

# Small denominators amplify the rounding of sums: H starts at 0.01.
ROUNDING = 1e-10
loop = Loop


def apollo(
    s, t, g, p, lr=0.01, beta=0.9, eps=1e-4, rebound="constant", warmup=500, init_lr=None, weight_decay=0.0,
    weight_decay_type=None,
):  # fmt: skip
    first = lr / 1000 if init_lr is None else init_lr
    rate = first + (lr - first) * (t - 1) / warmup if t - 1 < warmup else lr
    kind = weight_decay_type or ("L2" if rebound == "constant" else "decoupled")
    if kind == "L2":
        g = g + weight_decay * p
    a = (1 - beta) / (1 - beta**t)
    delta = g - s.m
    s.m = s.m + a * delta
    d, B = s.d + 0 * p, s.B + 0 * p
    sigma, e = (0.01, eps / 0.01) if rebound == "constant" else (delta.abs().max().item(), eps)
    n = (d**4).sum().item() ** 0.25 + e
    q = d / n
    s.B = B - (a * (delta * q).sum() / n + (B * q**2).sum()) * q**2
    s.seen.update((s.B.abs() > sigma).flatten().tolist())
    H = s.B.abs().clamp(min=sigma)
    if rebound == "belief":
        H = H + eps / a
    s.d = s.m / H
    if kind == "decoupled":
        s.d = s.d + weight_decay * p
    if kind == "stable":
        s.d = s.d + weight_decay / H.mean() * p
    return -rate * s.d


BELIEF = {"rebound": "belief", "lr": 0.1, "warmup": 4}
OPTIONS = [
    (gradtx.apollo, apollo, {}),
    (gradtx.apollo, apollo, {"lr": 0.02, "beta": 0.7, "eps": 0.01, "warmup": 10, "weight_decay": 0.2}),
    (gradtx.apollo, apollo, {"lr": 0.002, "warmup": 0, "weight_decay": 0.2, "weight_decay_type": "decoupled"}),
    (gradtx.apollo, apollo, {"lr": 0.002, "warmup": 5, "init_lr": 0.0, "weight_decay": 0.2}),
    (gradtx.apollo, apollo, {"lr": 0.002, "warmup": 1, "weight_decay": 0.02, "weight_decay_type": "stable"}),
    (gradtx.apollo, apollo, BELIEF),
    (gradtx.apollo, apollo, {**BELIEF, "beta": 0.7, "eps": 0.01, "weight_decay": 0.2}),
    (gradtx.apollo, apollo, {**BELIEF, "weight_decay": 0.2, "weight_decay_type": "L2"}),
    (gradtx.apollo, apollo, {**BELIEF, "weight_decay": 0.02, "weight_decay_type": "stable"}),
    (gradtx.apollo, apollo, {**BELIEF, "lr": 2.0, "init_lr": 0.01}),
    (gradtx.apollo, apollo, {**BELIEF, "lr": RATE, "beta": BETA, "eps": BETA, "weight_decay": DECAY, "init_lr": RATE}),
]


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=named)
def test_the_updates_follow_the_loop(alias, rule, options):
    follows(alias(**options), loop(rule, **options), tolerance=ROUNDING)


@pytest.mark.parametrize("options", [OPTIONS[1][2], BELIEF], ids=str)
def test_some_curvatures_are_above_their_bound_and_some_below(options):
    reference = loop(apollo, **options)
    run(reference)
    assert reference.seen == {True, False}


@pytest.mark.parametrize(("rebound", "kind"), [("constant", "L2"), ("belief", "decoupled")])
def test_the_kind_of_decay_follows_from_the_bound_unless_it_is_given(rebound, kind):
    options = {"rebound": rebound, "weight_decay": 0.2, "lr": 0.002, "warmup": 0}
    follows(gradtx.apollo(**options), gradtx.apollo(**options, weight_decay_type=kind), tolerance=0.0)


@pytest.mark.slow
def test_a_scheduler_of_torch_writes_the_rate_that_the_warm_up_ends_at():
    weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = gradtx.optim.ApolloDQN([weight], lr=1.0, warmup=2, init_lr=0.0, beta=0.0)
    moved = []
    for lr in (1.0, 0.5, 0.5, 0.25):
        optimizer.param_groups[0]["lr"] = lr
        before, weight.grad = weight.item(), torch.full_like(weight, 1e-3)
        optimizer.step()
        moved.append(weight.item() - before)
    assert moved == pytest.approx([0.0, -0.025, -0.05, -0.025])


DOUBLE = {"dtype": torch.float64}


def test_belief_without_any_gradient_divides_by_eps_over_a():
    assert first_update(gradtx.scale_by_apollo(rebound="belief"), [0.0, 0.0]) == [0.0, 0.0]


@pytest.mark.parametrize("kind", ["decoupled", "stable"])
@pytest.mark.parametrize("rebound", ["constant", "belief"])
def test_derivatives_of_training_by_its_numbers_are_the_difference_quotients(rebound, kind):
    grads = [torch.tensor([0.3, -1.0, 0.4], **DOUBLE), torch.tensor([0.1, 0.7, -0.2], **DOUBLE)] * 2

    def train(beta, eps, decay):
        tx = gradtx.chain(gradtx.scale_by_apollo(beta, eps, rebound, decay, kind), gradtx.scale_by_learning_rate(0.001))
        params = {"w": torch.tensor([1.0, -2.0, 0.5], **DOUBLE)}
        state = tx.init(params)
        for grad in grads:
            updates, state = tx.update({"w": grad * params["w"]}, state, params)
            params = gradtx.apply_updates(params, updates)
        return params["w"]

    numbers = [torch.tensor(x, **DOUBLE).requires_grad_() for x in (0.8, 0.05, 0.1)]
    assert torch.autograd.gradcheck(train, numbers)
