import pytest

import gradtx
from tests import references as ref
from tests.references import DECAY, PUBLISHED, RATE

STEPS = 30


def rose(s, t, g, p, lr=1e-3, weight_decay=1e-4, centralize=True, stabilize=True):
    g = g + weight_decay * p
    if p.ndim == 0:
        return p - lr * g.sign()
    if p.ndim == 1:
        return p - lr * g / (g.max().abs() - g.min())
    rows = g.flatten(1)
    rows = rows - rows.mean(1, keepdim=True) if centralize else rows
    D = rows.max(1).values.abs() - rows.min(1).values
    if stabilize:
        M, S = D.mean(), D.std(correction=0)
        D = M + (D - M) * M / (S + M)
    return p - lr * (rows / D[:, None]).reshape(p.shape)


ROSES = [{}, {"lr": RATE, "weight_decay": DECAY}, {"centralize": False}, {"stabilize": False, "weight_decay": 0.0}]


@pytest.mark.parametrize("options", ROSES, ids=ref.named)
def test_rose_follows_the_loop(options):
    ref.weights_follow(gradtx.rose(**options), ref.WeightsLoop(rose, **options), steps=STEPS)


@pytest.mark.parametrize("centralize", [False, True])
@pytest.mark.parametrize("stabilize", [False, True])
def test_rose_is_that_of_pytorch_optimizer(centralize, stabilize):
    from pytorch_optimizer import ROSE

    options = {"lr": 0.01, "weight_decay": 0.1, "centralize": centralize, "stabilize": stabilize}
    published = ref.Published(ROSE, bf16_sr=False, **options)
    ref.weights_follow(gradtx.rose(**options), published, steps=STEPS, tolerance=PUBLISHED)


def test_equal_and_negative_entries_have_the_range_of_the_authors():
    tx = gradtx.scale_by_range(centralize=False, stabilize=False)
    assert ref.first_update(tx, [[2.0, 2.0], [-1.0, -3.0], [0.0, 0.0]]) == [[2.0, 2.0], [-0.25, -0.75], [0.0, 0.0]]
    assert ref.first_update(gradtx.scale_by_range(), [[2.0, 2.0]]) == [[0.0, 0.0]]
