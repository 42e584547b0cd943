import pytest

import gradtx
from tests.algorithms.low_rank import apollo
from tests.matrix_problem import SEEDS, follows
from tests.references import BETA, RATE, WeightsLoop, named

GAP = {"rank": 2, "update_proj_gap": 4, "lr": 0.02}
APOLLO = [
    {},
    {**GAP, "betas": (0.8, 0.9), "eps": 0.01, "weight_decay": 0.3, "scale": 4.0, "side": "long", "projection": "svd"},
    {**GAP, "rank": 1, "scale": 128.0, "scale_type": "tensor", "scale_front": True, "limit": 1.2, "seed": 5},
    {**GAP, "lr": RATE, "betas": (BETA, BETA), "weight_decay": RATE, "side": "left"},
]
LOOPS = [*((gradtx.apollo_low_rank, apollo, options) for options in APOLLO)]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("alias", "rule", "options"), LOOPS, ids=named)
def test_projected_adam_follows_the_loop(alias, rule, options, seed):
    follows(alias(**options), WeightsLoop(rule, **options), seed, tolerance=1e-11)
