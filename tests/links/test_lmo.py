import math

import pytest
import torch

import gradtx
from tests.algorithms.matrices import orthogonal
from tests.references import named


def lmo(x, kind="auto", normalized=None, transpose=False, maximum=False):
    if kind == "auto":
        kind = {0: "bias", 1: "bias", 2: "spectral"}.get(x.ndim, "conv")
    y = x.transpose(0, 1) if transpose else x
    if kind in ("spectral", "conv"):
        out, inputs = x.shape[:2]
        size = math.sqrt(out) if normalized is False else math.sqrt(out / inputs)
        o = orthogonal(x.flatten(1), "simple").reshape(x.shape) * (max(1, size) if maximum else size)
        return o / math.prod(x.shape[2:])
    if kind == "sign":
        return x.sign() / (1 if normalized is False else x.shape[1])
    if kind == "column":
        y = y / ((y**2).mean(0) ** 0.5 * (y.shape[1] if normalized else 1) + 1e-8)
    elif kind == "row":
        y = y / ((y**2).sum(-1, keepdim=True) ** 0.5 * (1 if normalized is False else math.sqrt(y.shape[-1])) + 1e-8)
    else:
        return x / ((x**2).mean().sqrt() + 1e-8)
    return y.transpose(0, 1) if transpose else y


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "spectral"}, {"kind": "spectral", "normalized": False}, {"kind": "spectral", "maximum": True},
        {"kind": "sign"}, {"kind": "sign", "normalized": False}, {"kind": "sign", "transpose": True},
        {"kind": "column"}, {"kind": "column", "normalized": True}, {"kind": "column", "transpose": True},
        {"kind": "row"}, {"kind": "row", "normalized": False}, {"kind": "row", "transpose": True}, {"kind": "bias"},
    ],
    ids=named,
)  # fmt: skip
def test_each_oracle_of_a_matrix(options):
    for seed in (1, 2):
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for matrix in (x, x.T.contiguous()):
            tx = gradtx.lmo(**options)
            updates, _ = tx.update({"w": matrix}, tx.init({"w": matrix}))
            torch.testing.assert_close(updates["w"], lmo(matrix, **options), rtol=1e-10, atol=1e-10)


def test_a_kernel_and_numbers_go_to_the_oracle_of_their_rank():
    grads = {"kernel": torch.randn(3, 2, 2, 2).double(), "bias": torch.randn(4).double(), "scalar": torch.tensor(-2.0)}
    tx = gradtx.lmo()
    updates, _ = tx.update(grads, tx.init(grads))
    for name, grad in grads.items():
        torch.testing.assert_close(updates[name], lmo(grad), rtol=1e-7, atol=1e-10)
    assert updates["scalar"].item() == pytest.approx(-1.0)


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("spectral", (5, 3)),
        ("conv", (4, 3, 2, 2)),
        ("sign", (3, 4)),
        ("column", (3, 4)),
        ("row", (3, 4)),
        ("auto", (3, 4)),
    ],
)
def test_weights_that_start_on_the_ball_are_what_the_oracle_gives_for_themselves(kind, shape):
    rng = torch.Generator().manual_seed(1)
    start = gradtx.init_for_lmo(torch.empty(shape, dtype=torch.float64), kind, scale=3.0, generator=rng)
    tx = gradtx.lmo(kind, coefs="newton_schulz", steps=40, eps=0.0)
    updates, _ = tx.update({"w": start}, tx.init({"w": start}))
    torch.testing.assert_close(3.0 * updates["w"], start, rtol=1e-7, atol=1e-10)
    assert gradtx.init_for_lmo(torch.ones(3)).tolist() == [0.0] * 3
    with pytest.raises(ValueError, match=r"init_for_lmo: kind must be 'auto', .*, got 'l2'"):
        gradtx.init_for_lmo(torch.ones(3), "l2")
