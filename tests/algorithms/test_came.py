import pytest

import gradtx
from tests import references as ref
from tests.references import BETA, DECAY, RATE


def inverse_root(R, C):
    return (R[..., :, None] * C[..., None, :] / R.mean(dim=-1)[..., None, None]).rsqrt()


def came(
    s, t, g, p, lr=2e-4, betas=(0.9, 0.999, 0.9999), eps=(1e-30, 1e-16), clip_threshold=1.0, weight_decay=0.0
):  # fmt: skip
    b1, b2, b3 = betas
    sq = g**2 + eps[0]
    if g.ndim >= 2:
        s.R = b2 * s.R + (1 - b2) * sq.mean(dim=-1)
        s.C = b2 * s.C + (1 - b2) * sq.mean(dim=-2)
        x = g * inverse_root(s.R, s.C)
    else:
        s.v = b2 * s.v + (1 - b2) * sq
        x = g / s.v.sqrt()
    rms = x.square().mean().sqrt().item()
    s.seen.add(rms > clip_threshold)
    x = x / max(1.0, rms / clip_threshold)
    u = s.m = b1 * s.m + (1 - b1) * x
    if g.ndim >= 2:
        res = (x - s.m) ** 2 + eps[1]
        s.Rr = b3 * s.Rr + (1 - b3) * res.mean(dim=-1)
        s.Cr = b3 * s.Cr + (1 - b3) * res.mean(dim=-2)
        u = s.m * inverse_root(s.Rr, s.Cr)
    return p - lr * (u + weight_decay * p)


BOTH = {True, False}
OPTIONS = [    (gradtx.came, came, {}, {True}),
    (gradtx.came, came, {"lr": 0.002, "betas": (0.8, 0.9, 0.95), "weight_decay": 0.3, "clip_threshold": 1.4}, BOTH),
    (gradtx.came, came, {"lr": 0.002, "eps": (0.01, 0.02), "clip_threshold": 0.5}, {True}),
    (gradtx.came, came, {"lr": RATE, "betas": (BETA, BETA, BETA), "eps": (BETA, BETA), "weight_decay": DECAY}, set()),
]  # fmt: skip


@pytest.mark.parametrize(("alias", "rule", "options", "seen"), OPTIONS, ids=ref.named)
def test_the_weights_follow_the_loop(alias, rule, options, seen):
    reference = ref.WeightsLoop(rule, **options)
    ref.follows(alias(**options), reference)
    assert reference.seen >= seen
