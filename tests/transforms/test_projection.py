import pytest
import torch

import gradtx
from tests.references import Loop, first_update, follows


def test_a_zero_gradient_counts_as_scale_invariant():
    tx = gradtx.project_scale_invariant(weight_decay=1.0, wd_ratio=0.25)
    assert first_update(tx, [[0.0, 0.0]], [[2.0, 4.0]]) == [[0.5, 1.0]]


def orthogonal(s, t, g, p):
    rest = g - p * (g * p).sum() / (p * p).sum()
    if rest.norm() <= 4 * 2.0**-52 * g.norm():
        return 0 * g
    return rest * g.norm() / rest.norm()


def test_gradients_orthogonal_to_the_weights_follow_the_loop():
    follows(gradtx.orthogonalize_against_params(), Loop(orthogonal), rate=-0.05)
    tx = gradtx.chain(gradtx.orthogonalize_against_params(), gradtx.trace(0.9))
    follows(tx, Loop(lambda s, t, g, p: momentum(s, orthogonal(s, t, g, p))), rate=-0.05)


def momentum(s, g):
    s.b = 0.9 * s.b + g
    return s.b


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_they_keep_their_length_and_lose_what_points_along_the_weights(dtype):
    rng = torch.Generator().manual_seed(0)
    params = {"w": torch.randn(40, 30, generator=rng, dtype=dtype)}
    grads = {"w": torch.randn(40, 30, generator=rng, dtype=dtype) + params["w"]}
    tx = gradtx.orthogonalize_against_params()
    update = tx.update(grads, tx.init(params), params)[0]["w"]
    g, u, p = (x.to(torch.float64) for x in (grads["w"], update, params["w"]))
    eps = 4 * torch.finfo(dtype).eps
    assert update.dtype == torch.promote_types(dtype, torch.float32)
    assert abs(u.norm() / g.norm() - 1) < eps
    assert abs((u * p).sum()) < eps * u.norm() * p.norm()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_where_nothing_is_left_of_a_gradient_the_update_is_zero(dtype):
    w = torch.randn(7, generator=torch.Generator().manual_seed(0), dtype=dtype)
    params = {"parallel": w, "scalar": w[0], "zero": 0 * w, "nothing": w}
    grads = {"parallel": 1.7 * w, "scalar": 3 * w[1], "zero": w, "nothing": 0 * w}
    tx = gradtx.orthogonalize_against_params()
    updates = tx.update(grads, tx.init(params), params)[0]
    assert torch.equal(updates["zero"], w)  # zero weights have no direction
    assert all(not updates[name].any() for name in ("parallel", "scalar", "nothing"))
