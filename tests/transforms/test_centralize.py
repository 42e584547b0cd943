import pytest

import gradtx
from tests.references import Loop, follows, problem


def centralized(s, t, g, p, conv_only=False):
    if g.ndim <= (3 if conv_only else 1):
        return g
    return g - g.mean(dim=tuple(range(1, g.ndim)), keepdim=True)


@pytest.mark.parametrize("conv_only", [False, True])
def test_centralize_follows_the_loop(conv_only):
    follows(gradtx.centralize(conv_only), Loop(centralized, conv_only=conv_only), rate=-0.1)


def normalized(s, t, g, p, eps=1e-8):
    return g / (g.std(correction=1) + eps) if g.numel() > 2 else g


@pytest.mark.parametrize("options", [{}, {"eps": 0.1}, {"eps": gradtx.linear_schedule(0.3)}], ids=str)
def test_normalize_by_std_follows_the_loop(options):
    follows(gradtx.normalize_by_std(**options), Loop(normalized, **options), rate=-0.02)


def test_centralized_units_have_mean_zero_and_small_leaves_pass():
    params = problem()
    updates, _ = gradtx.centralize().update(params, gradtx.centralize().init(params))
    for name in ("matrix", "kernel"):
        # the mean of about 8 numbers of size 1 that sum to 0 up to rounding
        assert updates[name].flatten(1).mean(dim=1).abs().max() < 1e-15
    for name in ("bias", "scalar"):
        assert updates[name].equal(params[name])
