import pytest
import torch

import gradtx
from tests.references import BETA, DECAY, RATE, Loop, Transformed, follows, named


def adasmooth(
    s, t, g, p, lr=1e-3, betas=(0.5, 0.99), eps=1e-6, weight_decay=0.0, decoupled_weight_decay=False, reset_every=None
):
    r1, r2 = betas
    if not decoupled_weight_decay:
        g = g + weight_decay * p
    moved = p - s.before if t > 1 else 0 * p
    s.before = p
    s.S, s.N = s.S + moved, s.N + moved.abs()
    if reset_every is not None and (t - 1) % reset_every == 0:
        s.S, s.N = 0 * p, 0 * p
    e = torch.where(s.N == 0, 0.0, s.S.abs() / s.N)
    c = ((r2 - r1) * e + (1 - r2)) ** 2
    s.v = c * g**2 + (1 - c) * s.v
    step = -lr * g / (s.v + eps).sqrt()
    return step - lr * weight_decay * p if decoupled_weight_decay else step


OPTIONS = [
    (gradtx.adasmooth, adasmooth, {}),
    (gradtx.adasmooth, adasmooth, {"lr": 0.002, "betas": (0.3, 0.95), "eps": 1e-3, "weight_decay": 0.2}),
    (gradtx.adasmooth, adasmooth, {"lr": 0.002, "weight_decay": 0.2, "decoupled_weight_decay": True}),
    (gradtx.adasmooth, adasmooth, {"lr": 0.002, "betas": (0.3, 0.95), "reset_every": 5}),
    (gradtx.adasmooth, adasmooth, {"lr": 0.002, "reset_every": 1}),
    (gradtx.adasmooth, adasmooth, {"lr": RATE, "betas": (0.3, BETA), "weight_decay": DECAY, "reset_every": 7}),
]


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=named)
def test_the_weights_follow_the_loop(alias, rule, options):
    follows(alias(**options), Loop(rule, **options))


DOUBLE = {"dtype": torch.float64}


def tensor(*numbers):
    return torch.tensor(numbers, **DOUBLE)


def path(tx, places, grads=None):
    """The updates of one weight that is moved to `places`, with a gradient of 1."""
    step = Transformed(tx)
    step.state = tx.init({"w": tensor(0.0)})
    return [step({"w": tensor(1.0)}, {"w": tensor(place)})["w"].item() for place in places], step.state


FAST, SLOW = 0.25, 1 / 16  # c of betas (0.5, 0.75): (1 - 0.5)**2 and (1 - 0.75)**2


def test_where_the_parameter_stood_before_the_first_call_is_no_movement():
    tx = gradtx.scale_by_adasmooth((0.5, 0.75), eps=0.0)
    got, state = path(tx, [5.0, 5.0])
    assert got[0] == pytest.approx(SLOW**-0.5)
    assert state["scale_by_adasmooth"]["abs_sum"]["w"].item() == 0.0


@pytest.mark.parametrize("betas", [(0.9, 0.5), (0.5, 0.5)], ids=str)
def test_betas_that_do_not_rise_are_an_error(betas):
    message = rf"^scale_by_adasmooth: betas must be increasing \(fast decay first\), got \({betas[0]}, {betas[1]}\)$"
    with pytest.raises(ValueError, match=message):
        gradtx.scale_by_adasmooth(betas)
