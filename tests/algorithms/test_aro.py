import math

import pytest
import torch

import gradtx
from tests.algorithms.matrices import matrices_follow, momentum_of, shape
from tests.algorithms.test_sinkgd import in_turn
from tests.references import BETA, DECAY, RATE, named


def rotated(s, u, f):
    """Gram and Schmidt, column by column, in place of a library's QR decomposition: signs of columns cancel."""
    R = s.R if isinstance(s.R, torch.Tensor) else torch.eye(len(u), dtype=u.dtype)
    columns = []
    for column in (u @ f(R.T @ u).T).T:
        for _ in range(2):  # twice is enough for orthogonality
            for earlier in columns:
                column = column - (column @ earlier) * earlier
        columns.append(column / column.norm())
    s.R = torch.stack(columns, dim=1)
    return s.R @ f(s.R.T @ u)


def aro(
    s, t, g, p, lr=0.01, weight_decay=0.01, momentum=0.95, nesterov=False, base="sinkhorn", iterations=5,
    adjust_lr_fn="none", fallback=None,
):  # fmt: skip
    u = momentum_of(s, g, momentum, nesterov)

    def f(x):
        if base == "row":
            return torch.stack([row * math.sqrt(len(row)) / row.norm() for row in x])
        return in_turn(x, iterations, "row", lambda n: 1e-8)

    d = rotated(s, u.T, f).T if len(u) > u.shape[1] else rotated(s, u, f)
    return p * (1 - lr * weight_decay) - lr * shape(p, adjust_lr_fn) * d


CASES = [
    {"lr": 0.01},
    {"lr": RATE, "nesterov": True, "momentum": BETA, "weight_decay": DECAY, "base": "row"},
    {"lr": 0.02, "iterations": 2, "adjust_lr_fn": "original", "momentum": 0.5},
]


@pytest.mark.parametrize("options", CASES, ids=named)
def test_the_matrices_follow_the_loop(options):
    # Rotations of momenta that are nearly singular amplify rounding.
    matrices_follow(gradtx.aro, aro, options, tolerance=1e-9)


def test_zero_gradients_leave_a_rotation():
    tx = gradtx.aro()
    params = {"w": torch.ones(2, 3)}
    updates, state = tx.update({"w": torch.zeros(2, 3)}, tx.init(params), params)
    rotation = state["scale_by_aro"]["rotation"]["w"]
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(2))
    assert updates["w"].isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iterations": 0}, r"aro: iterations must be in \[1, inf\), got 0"),
        ({"base": "sign"}, r"aro: base must be 'sinkhorn' or 'row', got 'sign'"),
    ],
    ids=named,
)
def test_options_out_of_range_are_errors_that_name_them(options, message):
    with pytest.raises(ValueError, match=message):
        gradtx.aro(**options)
