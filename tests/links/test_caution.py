import math

import pytest
import torch

import gradtx
from tests import references as ref
from tests.references import Loop, caution_weights, first_update, follows
from tests.rules import uniform

STEPS = 30


def coins(steps, names, seed):
    """The first uniform number of each leaf's stream at each step."""
    step, zeros = ref.Transformed(uniform(seed=seed)), {n: torch.zeros((), dtype=torch.float64) for n in names}
    return [step(zeros, zeros) for _ in range(steps)]


def magma(s, t, g, p, keep=0.5, tau=2.0, momentum=0.9, smoothing=0.9, seed=0):
    s.coins = s.coins or [tree[s.name].item() for tree in coins(STEPS, [s.name], seed)]
    s.m = momentum * s.m + (1 - momentum) * g
    s.s = 1.0 if t == 1 else s.s
    cosine = (s.m * g).sum() / max(s.m.norm().item(), 1e-8) / max(g.norm().item(), 1e-8)
    s.s = smoothing * s.s + (1 - smoothing) / (1 + math.exp(-cosine / tau))
    s.seen.add(s.coins[t - 1] < keep)
    return (s.coins[t - 1] < keep) * s.s * g


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ({}, {False, True}),
        ({"keep": 1.0, "tau": 0.3}, {True}),
        ({"keep": 0.3, "momentum": 0.5, "smoothing": 0.2, "seed": 7}, {False, True}),
        ({"keep": 0.0}, {False}),
    ],
)
def test_masks_by_alignment_follow_the_loop(options, seen):
    reference = ref.Loop(magma, **options)
    ref.follows(gradtx.mask_by_alignment(**options), reference, rate=-0.02, steps=STEPS)
    assert reference.seen == seen


def test_magma_that_keeps_all_is_that_of_pytorch_optimizer():
    from pytorch_optimizer import Magma

    def wrapped(params):
        return Magma(torch.optim.SGD(params, lr=0.01), mask_prob=1.0, moment_key=None)

    tx = gradtx.chain(gradtx.sgd(lr=0.01), gradtx.mask_by_alignment(keep=1.0))
    ref.weights_follow(tx, ref.Published(wrapped), steps=STEPS, tolerance=1e-6)  # alignment in float32 there


RISING = gradtx.linear_schedule(0.99, start_factor=0.5, total_iters=20)


def cautious_momentum(s, t, g, p, factor):
    s.b = 0.9 * s.b + g
    s.seen.update((s.b * g > 0).flatten().tolist())
    return s.b * caution_weights(s.b, g, factor)


@pytest.mark.parametrize("factor", [0.0, 0.4, RISING], ids=str)
def test_scale_by_caution_compares_with_the_gradient_before_all_links(factor):
    reference = Loop(cautious_momentum, factor=factor)
    follows(gradtx.chain(gradtx.trace(0.9), gradtx.scale_by_caution(factor)), reference, -0.05)
    assert reference.seen == {True, False}


def test_a_literal_factor_of_one_leaves_caution_out():
    follows(gradtx.chain(gradtx.trace(0.9), gradtx.scale_by_caution(1.0)), gradtx.trace(0.9), -0.05, tolerance=0.0)


def test_where_no_entry_agrees_a_zero_factor_gives_zero_and_another_one_nothing_at_all():
    against = [gradtx.chain(gradtx.scale(-1.0), gradtx.scale_by_caution(factor)) for factor in (0.0, 0.3)]
    assert [first_update(tx, [1.0, 2.0]) for tx in against] == [[0.0, 0.0], [-1.0, -2.0]]


def test_an_entry_of_zero_counts_as_disagreeing():
    assert first_update(gradtx.scale_by_caution(0.5), [0.0, 2.0]) == pytest.approx([0.0, 8 / 3])  # 2 / 0.75


def test_signs_agree_even_where_their_product_underflows():
    assert first_update(gradtx.scale_by_caution(0.0), [1e-200, -1e-200]) == [1e-200, -1e-200]


def signed(s, t, g, p):
    s.m = 0.9 * s.m + g
    s.seen.update((g * s.m < 0).flatten().tolist())
    return g.sign() * s.m.abs()


def test_take_signs_of_gradient_follows_the_loop():
    loop = Loop(signed)
    tx = gradtx.chain(gradtx.trace(0.9), gradtx.take_signs_of_gradient())
    follows(tx, loop, rate=-0.02)
    assert loop.seen == {True, False}


def test_a_zero_gradient_gives_no_step():
    tx = gradtx.chain(gradtx.trace(0.9), gradtx.take_signs_of_gradient())
    state = tx.init({"w": torch.zeros(1)})
    for grad in (1.0, 0.0):
        updates, state = tx.update({"w": torch.tensor([grad])}, state)
    assert updates["w"].tolist() == [0.0]


def test_caution_behind_it_changes_nothing():
    plain = gradtx.chain(gradtx.scale_by_adam(), gradtx.take_signs_of_gradient())
    follows(gradtx.chain(plain, gradtx.scale_by_caution(0.0)), plain, rate=-0.02)


def agreement_rank(s, t, g, p, fraction=0.5, alpha=2.0, gamma=0.1, momentum=0.9):
    s.m = momentum * s.m + (1 - momentum) * g
    order = sorted(range(g.numel()), key=(s.m * g).flatten().tolist().__getitem__, reverse=True)
    best = order[: math.floor(fraction * g.numel())]
    factors = [alpha if index in best else gamma for index in range(g.numel())]
    s.seen.update(factors)
    return torch.tensor(factors, dtype=g.dtype).reshape(g.shape) * s.m


@pytest.mark.parametrize(
    "options", [{}, {"fraction": 0.3, "alpha": 1 / 0.3, "gamma": 0.3}, {"fraction": 1.0, "gamma": 0.0}, {"gamma": 0.0}]
)
def test_entries_by_rank_of_agreement_follow_the_loop(options):
    reference = Loop(agreement_rank, **options)
    tx = gradtx.chain(gradtx.trace_ema(0.9), gradtx.scale_by_agreement_rank(**options))
    follows(tx, reference, rate=-0.02)
    both = {reference.options.get("alpha", 2.0), reference.options.get("gamma", 0.1)}
    assert reference.seen == ({2.0} if options.get("fraction") == 1.0 else both)


def test_entries_that_tie_for_the_last_place_are_not_among_the_best():
    tx = gradtx.scale_by_agreement_rank(fraction=0.5)
    assert first_update(tx, [1.0, 1.0, 1.0, 3.0]) == [0.1, 0.1, 0.1, 6.0]
    assert first_update(tx, [0.0, 0.0]) == [0.0, 0.0]
    assert first_update(tx, 5.0) == 0.5  # of one entry, none is in the better half
    assert first_update(gradtx.scale_by_agreement_rank(fraction=1), 5.0) == 10.0


@pytest.mark.parametrize("fraction", [0.0, 1.5, -0.5])
def test_a_fraction_outside_of_0_to_1_is_named(fraction):
    with pytest.raises(ValueError, match=rf"scale_by_agreement_rank: fraction must be in \(0, 1\], got {fraction}"):
        gradtx.scale_by_agreement_rank(fraction=fraction)


def test_a_fraction_is_a_plain_number_because_it_decides_how_many_entries_are_best():
    with pytest.raises(TypeError, match="scale_by_agreement_rank: fraction must be a plain number"):
        gradtx.scale_by_agreement_rank(fraction=torch.tensor(0.5))
