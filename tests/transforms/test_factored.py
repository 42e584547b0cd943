import pytest
import torch

import gradtx
from tests.references import TOLERANCE, Loop, difference, first_update, named


def factored(s, t, g, p, decay_rate=-0.8, eps=1e-30, beta=None):
    beta, square = 1 - t**decay_rate if beta is None else beta, g**2 + eps
    if g.ndim < 2:
        s.V = beta * s.V + (1 - beta) * square
        return g / s.V.sqrt()
    s.R = beta * s.R + (1 - beta) * square.mean(-1, keepdim=True)
    s.C = beta * s.C + (1 - beta) * square.mean(-2, keepdim=True)
    return g / (s.R * s.C / s.R.mean(-2, keepdim=True)).sqrt()


def factored_torch(s, t, g, p, beta2_decay=-0.8, eps=None):
    eps = torch.finfo(g.dtype).eps if eps is None else eps
    beta = 1 - t**beta2_decay
    if g.ndim < 2:
        V = s.V = beta * s.V + (1 - beta) * g**2
    else:
        s.R = beta * s.R + (1 - beta) * (g**2).mean(-1, keepdim=True)
        s.C = beta * s.C + (1 - beta) * (g**2).mean(-2, keepdim=True)
        V = s.R * s.C / s.R.mean(-2, keepdim=True).clamp(min=eps)
    return g / V.clamp(min=eps**2).sqrt()


def clip(s, t, g, p, threshold=1.0):
    root = ((g * g).sum() / g.numel()).sqrt()
    s.seen.add(bool(root > threshold))
    return g / max(1.0, (root / threshold).item())


def relative(s, t, g, p, min_scale=1e-3):
    root = ((p * p).sum() / p.numel()).sqrt().item()
    s.seen.add(root > min_scale)
    return g * max(min_scale, root)


OPTIONS = [
    (gradtx.scale_by_factored_rms, factored, {}),
    (gradtx.scale_by_factored_rms, factored, {"decay_rate": -0.4, "eps": 0.1}),
    (gradtx.scale_by_factored_rms, factored, {"decay_rate": gradtx.Schedule(lambda step: -0.3 - 0.01 * step)}),
    (gradtx.scale_by_factored_rms, factored, {"beta": 0.9, "eps": 0.1}),
    (gradtx.scale_by_factored_rms, factored, {"beta": gradtx.Schedule(lambda step: 0.5 + 0.01 * step)}),
    (gradtx.scale_by_factored_rms_torch, factored_torch, {}),
    (gradtx.scale_by_factored_rms_torch, factored_torch, {"beta2_decay": -0.4, "eps": 0.3}),
    (gradtx.clip_by_block_rms, clip, {"threshold": 0.05}),
    (gradtx.scale_by_param_block_rms, relative, {"min_scale": 0.7}),
]


@pytest.mark.parametrize(("make", "rule", "options"), OPTIONS, ids=named)
def test_the_updates_follow_the_loop(make, rule, options):
    reference = Loop(rule, **options)
    assert difference(make(**options), reference, rate=-0.02) < TOLERANCE
    assert reference.seen in (set(), {True, False})


def test_the_first_step_forgets_nothing_and_makes_a_matrix_of_rank_one_all_signs():
    tx = gradtx.scale_by_factored_rms()
    assert first_update(tx, [[2.0, -4.0], [3.0, -6.0]]) == [pytest.approx([1.0, -1.0])] * 2


def test_a_rank_three_leaf_is_factored_in_its_last_two_dimensions():
    state = gradtx.scale_by_factored_rms().init({"w": torch.zeros(2, 3, 4)})["scale_by_factored_rms"]
    assert {slot: tuple(x["w"].shape) for slot, x in state.items()} == {
        "exp_avg_sq_row": (2, 3),
        "exp_avg_sq_col": (2, 4),
    }


def test_two_small_averages_do_not_multiply_to_zero_in_float32():
    grads, tx = {"w": torch.full((2, 2), 1e-14)}, gradtx.scale_by_factored_rms()
    assert tx.update(grads, tx.init(grads))[0]["w"].mean() == pytest.approx(0.995, rel=1e-2)  # eps is 1% of g^2
