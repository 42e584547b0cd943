import pytest

import gradtx
from tests.algorithms.low_rank import GALORE, adam, apollo, carried, projected
from tests.matrix_problem import SEEDS, follows, weights
from tests.references import WeightsLoop, named


def fira(
    s, t, g, p, lr=1e-3, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.0, rank=128, update_proj_gap=200, scale=0.25,
    side="short", projection="svd", carry="keep", limit=1.01,
):  # fmt: skip
    if p.ndim != 2:
        d, c = adam(s, t, g, betas, eps)
        return (p - lr * c * d) * (1 - lr * weight_decay)
    right, Q = projected(s, t, g, update_proj_gap, rank, projection, side)
    carried(s, t, update_proj_gap, right, carry)
    low = g @ Q if right else Q.T @ g
    d, c = adam(s, t, low, betas, eps)
    up = (lambda x: x @ Q.T) if right else (lambda x: Q @ x)
    dim = 1 if right else 0
    phi = d.norm(dim=dim, keepdim=True) / (low.norm(dim=dim, keepdim=True) + 1e-8)
    x = (g - scale * up(low)) * phi
    n = x.norm()
    growth = max(n / (s.n + 1e-8), limit) / limit if t > 1 else 1.0
    s.seen.add(bool(growth > 1) or t == 1)
    s.n = n / growth
    return (p - lr * c * (scale * up(d) + x / growth)) * (1 - lr * weight_decay)


GAP = {"rank": 2, "update_proj_gap": 4, "lr": 0.02}
FIRA = [*GALORE, {**GAP, "limit": 1.3, "scale": 1.0}]
LOOPS = [*((gradtx.fira, fira, options) for options in FIRA)]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("alias", "rule", "options"), LOOPS, ids=named)
def test_projected_adam_follows_the_loop(alias, rule, options, seed):
    follows(alias(**options), WeightsLoop(rule, **options), seed, tolerance=1e-11)


@pytest.mark.parametrize(("alias", "rule"), [(gradtx.fira, fira), (gradtx.apollo_low_rank, apollo)], ids=named)
def test_growth_is_limited_in_some_steps_only(alias, rule):
    reference = WeightsLoop(rule, **GAP)
    weights(reference, 0)
    assert reference.seen == {True, False}
