import torch

import gradtx
from tests.references import Loop, follows


def lion(s, t, g, p, betas=(0.9, 0.99)):
    u = torch.sign(betas[0] * s.m + (1 - betas[0]) * g)
    s.m = betas[1] * s.m + (1 - betas[1]) * g
    s.seen.update((u == g.sign()).flatten().tolist())
    return u


def test_two_literal_zeros_keep_nothing():
    follows(gradtx.scale_by_lion((0.0, 0.0)), Loop(lion, betas=(0.0, 0.0)), rate=-0.02)
    assert list(gradtx.scale_by_lion((0.0, 0.0)).init({"w": torch.zeros(2)})) == ["step"]
    assert list(gradtx.scale_by_lion((0.0, 0.5)).init({"w": torch.zeros(2)})["scale_by_lion"]) == ["exp_avg"]


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
