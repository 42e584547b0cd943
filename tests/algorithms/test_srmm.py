import pytest
import torch

import gradtx
from tests.algorithms.loops import groups_follow
from tests.references import RATE, WeightsLoop, named, weights_follow

FALLING = gradtx.linear_schedule(0.8, start_factor=1.0, end_factor=0.2, total_iters=25)
CLOSE = 1e-12


def srmm(s, t, g, p, lr=0.01, beta=0.5, memory_length=100, proximal=0.0):
    if t == 1:
        s.p = p
    n = t if memory_length is None else t % memory_length
    w = (n + 1) ** (-beta)
    s.seen.add(w == 1)
    s.g = (1 - w) * s.g + w * g
    s.p = (1 - w) * s.p + w * p
    return (1 - lr * proximal) * s.p + lr * proximal * p - lr * s.g


OPTIONS = [
    (gradtx.srmm, srmm, {}),
    (gradtx.srmm, srmm, {"lr": 0.2, "beta": 0.8, "memory_length": 7}),
    (gradtx.srmm, srmm, {"lr": 0.2, "beta": 0.3, "memory_length": None, "proximal": 2.0}),
    (gradtx.srmm, srmm, {"lr": 0.2, "beta": 0.3, "memory_length": 1}),
    (gradtx.srmm, srmm, {"lr": RATE, "beta": FALLING, "proximal": FALLING, "memory_length": 10}),
]


@pytest.mark.parametrize(("make", "rule", "options"), OPTIONS, ids=named)
def test_follows_the_loop(make, rule, options):
    reference = WeightsLoop(rule, **options)
    weights_follow(make(**options), reference, tolerance=CLOSE)
    length = options.get("memory_length", 100)
    assert reference.seen == {1: {True}, None: {False}, 100: {False}}.get(length, {True, False})


@pytest.mark.slow
@pytest.mark.parametrize(("cls", "rule"), [(gradtx.optim.SRMM, srmm)], ids=["SRMM"])
def test_groups_have_rates_of_their_own_and_warm_up_from_zero(cls, rule):
    groups_follow(cls, rule, tolerance=CLOSE)


def test_bad_input_is_an_error():
    with pytest.raises(ValueError, match="scale_by_srmm owns the learning rate"):
        gradtx.chain(gradtx.scale_by_srmm(), gradtx.scale_by_learning_rate(0.1))
    with pytest.raises(ValueError, match=r"^scale_by_srmm: lr \* proximal must be in \[0, 1\], got 1.0 \* 1.5; lower"):
        gradtx.scale_by_srmm(lr=1.0, proximal=1.5)
    with pytest.raises(TypeError, match=r"memory_length must be an int, got 2\.5"):
        gradtx.scale_by_srmm(memory_length=2.5)
    params = {"w": torch.ones(1)}
    with pytest.raises(ValueError, match="scale_by_srmm needs params"):
        gradtx.scale_by_srmm().update(params, gradtx.scale_by_srmm().init(params))
