import pytest
import torch

import gradtx
from tests import references as ref
from tests.algorithms.loops import COMMON, SOME, decayed, hat, stepped
from tests.references import Transformed


def yogi(
    s, t, g, p, lr=1e-2, betas=(0.9, 0.999), eps=1e-3, initial_accumulator_value=1e-6, weight_decay=0.0,
    decoupled_weight_decay=False,
):  # fmt: skip
    m, v = ref.yogi_moments(s, t, decayed(g, p, weight_decay, decoupled_weight_decay), betas, initial_accumulator_value)
    return stepped(p, lr, hat(t, m, v, betas, eps), weight_decay, decoupled_weight_decay)


OPTIONS = [
    *((gradtx.yogi, yogi, options) for options in COMMON),
    (gradtx.yogi, yogi, {**SOME, "initial_accumulator_value": 0.01}),
]


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=ref.named)
def test_the_weights_follow_the_loop(alias, rule, options):
    ref.follows(alias(**options), ref.WeightsLoop(rule, **options))


def test_yogi_keeps_its_square_above_zero():
    step = Transformed(gradtx.scale_by_yogi((0.0, 0.0), initial_accumulator_value=1e-6))
    for t in range(50):
        grad = torch.tensor([1e-3, 0.9e-3, 1e-3 * 0.5**t], dtype=torch.float64)
        assert step({"w": grad}, {"w": grad})["w"].isfinite().all()
    assert (step.state["scale_by_yogi"]["exp_avg_sq"]["w"] >= 0).all()
