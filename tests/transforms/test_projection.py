import pytest
import torch

import gradtx
from tests.references import TOLERANCE, Loop, difference, first_update

P = [[1.0, 0.0], [0.0, 2.0]]


@pytest.mark.parametrize(
    ("grad", "update", "ratio"),
    [
        # Rows [1 1] and [1 1.5]: the part of each along its own row of P goes, (1, 0) and (0, 1.5).
        ([[0.0, 1.0], [1.0, 0.0]], [[0.0, 1.0], [1.0, 0.0]], 0.1),
        # The gradient has 2 * 1 - 1 * 2 = 0 along P, but not by rows; [[1.5 1] [1 1]] has 3.5/5 of P in it.
        ([[2.0, 1.0], [1.0, -1.0]], [[0.8, 1.0], [1.0, -0.4]], 0.1),
        # Neither: [[1.5 1] [1 1.5]] stays.
        ([[2.0, 1.0], [1.0, 1.0]], [[1.5, 1.0], [1.0, 1.5]], 1.0),
    ],
    ids=["rows", "layer", "neither"],
)
def test_one_step_equals_the_hand_computed_values(grad, update, ratio):
    # What is projected is gradient + weights, clamped to 1.5; what is tested is the gradient.
    shift = gradtx.chain(gradtx.add_decayed_weights(1.0), gradtx.clip_by_value(1.5))
    tx = gradtx.chain(shift, gradtx.project_scale_invariant(weight_decay=10.0, eps=0.0))
    expected = [[u + 10 * ratio * p for u, p in zip(*rows, strict=True)] for rows in zip(update, P, strict=True)]
    assert first_update(tx, grad, P) == [pytest.approx(row) for row in expected]


def test_a_vector_is_never_projected_and_decays_in_full():
    tx = gradtx.project_scale_invariant(weight_decay=1.0)
    assert first_update(tx, [0.0, 5.0], [2.0, 0.0]) == [2.0, 5.0]


def test_a_zero_gradient_counts_as_scale_invariant():
    tx = gradtx.project_scale_invariant(weight_decay=1.0, wd_ratio=0.25)
    assert first_update(tx, [[0.0, 0.0]], [[2.0, 4.0]]) == [[0.5, 1.0]]


def test_the_cosine_is_compared_with_delta_over_the_root_of_the_row_length():
    # one row of 4: cosine 0.05 against 0.1 / 2; of a row of 4 of which 0.049 is along p
    def update(along):
        across = (1 - along**2) ** 0.5
        return first_update(gradtx.project_scale_invariant(), [[along, across, 0.0, 0.0]], [[1.0, 0.0, 0.0, 0.0]])

    assert update(0.051)[0][0] == 0.051
    assert update(0.049)[0][0] == pytest.approx(0.0, abs=1e-9)  # eps = 1e-8 of the part along p stays


def orthogonal(s, t, g, p):
    rest = g - p * (g * p).sum() / (p * p).sum()
    if rest.norm() <= 4 * 2.0**-52 * g.norm():
        return 0 * g
    return rest * g.norm() / rest.norm()


def test_gradients_orthogonal_to_the_weights_follow_the_loop():
    assert difference(gradtx.orthogonalize_against_params(), Loop(orthogonal), rate=-0.05) < TOLERANCE
    tx = gradtx.chain(gradtx.orthogonalize_against_params(), gradtx.trace(0.9))
    assert difference(tx, Loop(lambda s, t, g, p: momentum(s, orthogonal(s, t, g, p))), rate=-0.05) < TOLERANCE


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
