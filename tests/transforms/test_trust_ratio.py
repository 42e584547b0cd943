import pytest
import torch

import gradtx
from tests.references import LONG, Loop, arguments, first_update, follows


def trust_ratio(s, t, g, p, clip=False, weight_decay=0.0, always_adapt=True):
    ratio = (p.norm() / g.norm()).item()
    s.seen.add(ratio > 1)
    if clip:
        ratio = min(ratio, 1.0)
    return (ratio if always_adapt or weight_decay != 0 else 1.0) * g


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"clip": True},
        {"always_adapt": False},
        {"always_adapt": False, "weight_decay": 0.1, "clip": True},
        {"always_adapt": False, "weight_decay": torch.tensor(0.0)},
        {"always_adapt": False, "weight_decay": gradtx.Schedule(lambda step: 0.1 * (step % 2))},
    ],
    ids=str,
)
def test_scale_by_trust_ratio_follows_the_loop(options):
    loop = Loop(trust_ratio, **options)
    follows(gradtx.scale_by_trust_ratio(**options), loop, rate=-0.1, steps=LONG)
    assert loop.seen == {True, False} or not options.get("clip")
    assert arguments(gradtx.scale_by_trust_ratio) == arguments(trust_ratio)


@pytest.mark.parametrize(
    "tx", [gradtx.scale_by_trust_ratio(), gradtx.scale_by_lars(eps=0.0), gradtx.scale_by_lars(1.0)], ids=str
)
def test_the_ratio_is_one_where_a_norm_is_zero(tx):
    assert first_update(tx, [3.0, 4.0], [0.0, 0.0]) == [3.0, 4.0]
    assert first_update(tx, [0.0, 0.0], [3.0, 4.0]) == [0.0, 0.0]


def test_an_empty_leaf_passes():
    empty = {"w": torch.zeros(0, 3)}
    for tx in (gradtx.scale_by_trust_ratio(), gradtx.scale_by_lars()):
        assert tx.update(empty, tx.init(empty), empty)[0]["w"].shape == (0, 3)


def test_a_ratio_clipped_by_the_rate_needs_the_rate():
    with pytest.raises(ValueError, match=r"^scale_by_lars: trust_clip needs lr; pass the rate used by"):
        gradtx.scale_by_lars(trust_clip=True)
