import pytest
import torch

import gradtx
from tests.algorithms.loops import updates_of
from tests.references import BETA, RATE, Loop, follows, named, problem


def adashift(s, t, g, p, lr=1e-3, betas=(0.9, 0.999), keep_num=10, eps=1e-10, reduce="max"):
    b1, b2 = betas
    s.past = [*(s.past or []), g]
    if t <= keep_num:
        return 0 * p
    square = s.past[t - keep_num - 1] ** 2
    square = {"max": square.max(), "mean": square.mean(), "none": square}[reduce]
    s.v = b2 * s.v + (1 - b2) * square
    weights = [b1**i for i in range(keep_num)]
    m = sum(w * s.past[t - 1 - i] for i, w in enumerate(weights)) / sum(weights)
    return -lr * m / ((s.v / (1 - b2 ** (t - keep_num))).sqrt() + eps)


OPTIONS = [
    (gradtx.adashift, adashift, {}),
    (gradtx.adashift, adashift, {"lr": 0.02, "betas": (0.8, 0.95), "keep_num": 4, "eps": 1e-3}),
    (gradtx.adashift, adashift, {"lr": 0.02, "betas": (0.8, 0.95), "keep_num": 5, "reduce": "mean"}),
    (gradtx.adashift, adashift, {"lr": 0.002, "betas": (0.8, 0.95), "keep_num": 3, "reduce": "none"}),
    (gradtx.adashift, adashift, {"lr": 0.02, "betas": (0.0, 0.9), "keep_num": 1}),
    (gradtx.adashift, adashift, {"lr": 0.02, "betas": (0.0, 0.9), "keep_num": 2}),
    (gradtx.adashift, adashift, {"lr": RATE, "betas": (BETA, BETA), "keep_num": 4}),
]


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=named)
def test_the_weights_follow_the_loop(alias, rule, options):
    follows(alias(**options), Loop(rule, **options))


DOUBLE = {"dtype": torch.float64}


@pytest.mark.parametrize("reduce", ["max", "mean", "none"])
def test_gradients_that_start_with_zeros_give_zero_not_a_quotient_by_nothing(reduce):
    tx = gradtx.scale_by_adashift(keep_num=1, eps=0.0, reduce=reduce)
    got = updates_of(tx, [0.0, 0.0], [0.0, 0.0], [1.0, 2.0], [2.0, 4.0])
    assert got[:3] == [[0.0, 0.0]] * 3
    assert all(0 < x < 100 for x in got[3])


@pytest.mark.parametrize(("reduce", "shape"), [("max", ()), ("mean", ()), ("none", (4, 3))])
def test_the_average_of_adashift_is_one_number_a_leaf_if_it_is_reduced(reduce, shape):
    kept = gradtx.scale_by_adashift(reduce=reduce).init(problem())["scale_by_adashift"]["exp_avg_sq"]
    assert kept["matrix"].shape == shape
    assert kept["matrix"].dtype == torch.float64


def test_an_unknown_reduction_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"^scale_by_adashift: reduce must be 'max', 'mean' or 'none', got 'median'$"):
        gradtx.scale_by_adashift(reduce="median")
