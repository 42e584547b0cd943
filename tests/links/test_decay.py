import pytest
import torch

import gradtx
from tests import references as ref

FALLING = gradtx.linear_schedule(0.2, start_factor=1.0, end_factor=0.1, total_iters=20)
RISING_AND_FALLING = gradtx.warmup_linear_schedule(25, max_lr=0.1, init_lr=0.01, warmup_steps=10)


def decayed(
    s, t, g, p, weight_decay, fixed=False, cautious=False, relative_to=None, corrected_by=None, max_lr=None
):  # fmt: skip
    if t == 1:
        s.initial_lr = 1.0 if relative_to is None else relative_to
    term = weight_decay / s.initial_lr * p
    if corrected_by is not None:
        s.peak = max(s.peak, corrected_by)
        term = term * (corrected_by / (s.peak if max_lr is None else max_lr))
    if cautious:
        s.seen.update((g * p > 0).flatten().tolist())
        term = torch.where(g * p > 0, term, torch.zeros_like(p))
    return g - term if fixed else g + term


@pytest.mark.parametrize(
    "options",
    [
        {"weight_decay": 0.0},
        {"weight_decay": 0.3},
        {"weight_decay": 0.3, "fixed": True},
        {"weight_decay": 0.3, "cautious": True},
        {"weight_decay": 0.3, "relative_to": 0.05},
        {"weight_decay": FALLING, "relative_to": FALLING, "cautious": True},
        {"weight_decay": 0.3, "corrected_by": 0.05},
        {"weight_decay": 0.3, "corrected_by": FALLING},
        {"weight_decay": 0.3, "corrected_by": FALLING, "max_lr": 0.5, "cautious": True},
        {"weight_decay": FALLING, "corrected_by": RISING_AND_FALLING, "fixed": True},
        {"weight_decay": FALLING, "corrected_by": RISING_AND_FALLING, "max_lr": FALLING},
    ],
    ids=str,
)
def test_add_decayed_weights_follows_the_loop(options):
    reference = ref.Loop(decayed, **options)
    ref.follows(gradtx.add_decayed_weights(**options), reference, rate=-0.05)
    assert reference.seen == ({True, False} if options.get("cautious") else set())


def regenerated(s, t, g, p, rate, wasserstein=False, relative_to=None):
    if t == 1:
        s.initial, s.initial_lr = p, 1.0 if relative_to is None else relative_to
    target = ref.placed_by_rank(s.initial, p) if wasserstein else s.initial
    s.seen.add("same order" if torch.equal(target, s.initial) else "other order")
    return g + rate / s.initial_lr * (p - target)


@pytest.mark.parametrize(
    "options",
    [
        {"rate": 0.0},
        {"rate": 0.4},
        {"rate": 0.4, "wasserstein": True},
        {"rate": 0.04, "relative_to": 0.2},
        {"rate": FALLING, "relative_to": FALLING, "wasserstein": True},
    ],
    ids=str,
)
def test_regenerate_towards_init_follows_the_loop(options):
    reference = ref.Loop(regenerated, **options)
    ref.follows(gradtx.regenerate_towards_init(**options), reference, rate=-0.3)
    assert not options.get("wasserstein") or reference.seen == {"same order", "other order"}


def test_wasserstein_places_initial_values_by_rank_and_ties_in_their_order():
    tx = gradtx.regenerate_towards_init(0.5, wasserstein=True)
    state = tx.init({"w": torch.tensor([3.0, 1.0, 2.0, 8.0])})
    updates, _ = tx.update({"w": torch.zeros(4)}, state, {"w": torch.tensor([5.0, 7.0, 5.0, 0.0])})
    # ranks 1, 3, 2, 0, so targets 2, 8, 3, 1
    assert updates["w"].tolist() == [1.5, -0.5, 1.0, -0.5]


@pytest.mark.parametrize("make", [gradtx.add_decayed_weights, gradtx.regenerate_towards_init], ids=ref.named)
def test_relative_to_keeps_the_first_rate_of_a_schedule_in_a_slot_of_every_leaf(make):
    step = ref.Transformed(make(0.1, relative_to=FALLING))
    ref.run(step)
    (entry,) = (entry for name, entry in step.state.items() if name != "step")
    assert entry["initial_lr"].keys() == ref.problem().keys()
    assert {(lr.item(), lr.shape, lr.dtype) for lr in entry["initial_lr"].values()} == {(0.2, (), torch.float64)}


def norm_loss(s, t, g, p, factor=1e-4, eps=1e-8):
    return g + 2 * factor * (1 - 1 / (ref.unit_norm(p) + eps)) * p


@pytest.mark.parametrize("options", [{}, {"factor": 0.7}, {"factor": 0.7, "eps": 0.5}, {"factor": FALLING}], ids=str)
def test_add_norm_loss_follows_the_loop(options):
    ref.follows(gradtx.add_norm_loss(**options), ref.Loop(norm_loss, **options), rate=-0.1)


def test_norm_loss_of_zero_weights_is_exactly_zero():
    assert ref.first_update(gradtx.add_norm_loss(0.5), [[0.0, 0.0]], [[0.0, 0.0]]) == [[0.0, 0.0]]


def test_a_rate_that_has_always_been_zero_decays_in_full():
    tx = gradtx.add_decayed_weights(0.5, corrected_by=gradtx.Schedule(lambda step: 0.0 * step))
    assert ref.first_update(tx, [0.0], [2.0]) == [1.0]
    kept = tx.init({"w": torch.zeros(2)})["add_decayed_weights"]["lr_max"]["w"]
    assert (kept.shape, kept.dtype, kept.item()) == ((), torch.float64, 0.0)
