import pytest

import gradtx
from tests.algorithms.low_rank import GALORE, adam, carried, projected
from tests.matrix_problem import SEEDS, follows
from tests.references import WeightsLoop, named


def galore(
    s, t, g, p, lr=1e-3, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.0, rank=128, update_proj_gap=200, scale=0.25,
    side="short", projection="svd", carry="keep",
):  # fmt: skip
    if p.ndim != 2:
        d, c = adam(s, t, g, betas, eps)
        return (p - lr * c * d) * (1 - lr * weight_decay)
    right, Q = projected(s, t, g, update_proj_gap, rank, projection, side)
    carried(s, t, update_proj_gap, right, carry)
    d, c = adam(s, t, g @ Q if right else Q.T @ g, betas, eps)
    return (p - lr * c * scale * (d @ Q.T if right else Q @ d)) * (1 - lr * weight_decay)


GAP = {"rank": 2, "update_proj_gap": 4, "lr": 0.02}
LOOPS = [*((gradtx.galore, galore, options) for options in GALORE)]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("alias", "rule", "options"), LOOPS, ids=named)
def test_projected_adam_follows_the_loop(alias, rule, options, seed):
    follows(alias(**options), WeightsLoop(rule, **options), seed, tolerance=1e-11)
