import math

import pytest
import torch

import gradtx
from tests import references as ref
from tests.references import BETA, DECAY, RATE, named


def in_turn(x, iterations, order, floors):
    """Every row and every column by a loop; floors by the number of entries."""
    rows, columns = x.shape
    columns_first = order == "long" and rows > columns
    for _ in range(iterations):
        for is_column in (columns_first, not columns_first):
            lines = list(x.T) if is_column else list(x)
            lines = [line * math.sqrt(len(line)) / max(line.norm().item(), floors(len(line))) for line in lines]
            x = torch.stack(lines, dim=1 if is_column else 0)
    return x


def sinkgd(s, t, g, p, lr=1e-3, momentum=0.0, weight_decay=0.0, nesterov=False, iterations=5, order="long"):
    s.m = momentum * s.m + (1 - momentum) * g
    u = (1 - momentum) * g + momentum * s.m if nesterov else s.m
    if g.ndim < 2:
        u = u.sign()
    else:
        matrix = u.reshape(len(u), -1)
        s.seen |= {"low"} if matrix.norm(dim=0).min() < 1 / math.sqrt(len(matrix)) else set()
        u = in_turn(matrix, iterations, order, lambda n: 1 / math.sqrt(n)).reshape(u.shape)
    return p * (1 - lr * weight_decay) - lr * u


CASES = [
    {"lr": 0.01},
    {"lr": RATE, "momentum": BETA, "nesterov": True, "weight_decay": DECAY},
    {"lr": 0.02, "momentum": 0.9, "iterations": 1, "order": "row", "weight_decay": 0.2},
]


@pytest.mark.parametrize("options", CASES, ids=named)
def test_the_weights_follow_the_loop(options):
    loop = ref.WeightsLoop(sinkgd, **options)
    ref.weights_follow(gradtx.sinkgd(**options), loop)
    assert loop.seen == {"low"}  # the bound of norms acted


def test_rows_and_columns_get_root_mean_square_1():
    grads = {"w": torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 30}
    tx = gradtx.sinkgd(lr=1.0, iterations=60)
    update = tx.update(grads, tx.init(grads), grads)[0]["w"]
    for dim in (0, 1):
        torch.testing.assert_close(update.square().mean(dim), torch.ones(4 if dim == 0 else 6).double())


def test_without_momentum_there_is_no_state():
    params = {"w": torch.ones(2, 2)}
    assert list(gradtx.sinkgd().init(params)) == ["step"]
    assert list(gradtx.sinkgd(momentum=0.5).init(params)) == ["step", "trace_ema"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iterations": 0}, r"sinkgd: iterations must be in \[1, inf\), got 0"),
        ({"momentum": 1.0}, r"sinkgd: momentum must be in \[0, 1\), got 1.0"),
        ({"order": "column"}, r"sinkgd: order must be 'long' or 'row', got 'column'"),
    ],
    ids=named,
)
def test_options_out_of_range_are_errors_that_name_them(options, message):
    with pytest.raises(ValueError, match=message):
        gradtx.sinkgd(**options)
