import functools
import math

import pytest
import torch

import gradtx
from tests import references as ref
from tests.references import BETA, DECAY, RATE


def amos(
    s, t, g, p, lr=1e-3, beta=0.999, momentum=0.0, extra_l2=0.0, eta=None, slot="scalar", c_coef=0.25, d_coef=0.25,
    eps=2**-125,
):  # fmt: skip
    if eta is None:
        eta = 0.5 if p.ndim <= 1 else math.sqrt(2 / p.shape[1]) if p.ndim == 2 else math.sqrt(1 / p.shape[1])
    elif callable(eta):
        eta = eta(p.shape)
    fresh = g**2
    if slot == "scalar":
        fresh = fresh.mean()
    elif slot == "rows" and g.ndim > 1:
        fresh = fresh.flatten(1).mean(dim=1).reshape(-1, *[1] * (g.ndim - 1))
    s.v = beta * s.v + (1 - beta) * fresh
    r = (1 - beta**t) / s.v.clamp(min=eps)
    c = (1 + c_coef * math.sqrt(lr) * s.b) ** -0.5
    gamma = c * lr**2 * r * fresh
    d = 1 / (1 + d_coef * math.sqrt(lr * eta) * s.b)
    u = d * (lr * eta * r.sqrt() * g + (gamma / 2 + extra_l2) * p)
    s.b = s.b + gamma * (1 + s.b)
    s.m = momentum * s.m + (1 - momentum) * u
    return p - s.m


def fan_in(shape):
    return 1 / (1 + math.prod(shape[1:]))


OPTIONS = [
    (gradtx.amos, amos, {}),
    (gradtx.amos, amos, {"lr": 0.1, "beta": 0.9, "extra_l2": 0.1, "c_coef": 2.0, "d_coef": 3.0, "momentum": 0.8}),
    (gradtx.amos, amos, {"lr": 0.3, "beta": 0.9, "slot": "full", "eta": 0.2}),
    (gradtx.amos, amos, {"lr": 0.3, "beta": 0.9, "slot": "rows", "eta": fan_in, "c_coef": 2.0}),
    (gradtx.amos, amos, {"lr": 0.3, "beta": 0.9, "eps": 0.01, "eta": RATE}),
    (gradtx.amos, amos, {"lr": RATE, "beta": BETA, "momentum": BETA, "extra_l2": DECAY, "c_coef": DECAY}),
]


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=ref.named)
def test_the_weights_follow_the_loop(alias, rule, options):
    ref.follows(alias(**options), ref.WeightsLoop(rule, **options))


@pytest.mark.parametrize(
    ("slot", "shape", "expected"),
    [
        ("scalar", (3, 4), ()),
        ("scalar", (5,), ()),
        ("rows", (3, 4), (3, 1)),
        ("rows", (2, 3, 2, 2), (2, 1, 1, 1)),
        ("rows", (5,), (5,)),
        ("rows", (), ()),
        ("full", (3, 4), (3, 4)),
    ],
    ids=str,
)
def test_slots_have_the_size_that_the_option_says(slot, shape, expected):
    state = gradtx.scale_by_amos(slot=slot).init({"w": torch.ones(shape)})["scale_by_amos"]
    assert {name: tuple(leaves["w"].shape) for name, leaves in state.items()} == {
        "exp_avg_sq": expected,
        "decay": expected,
    }
    assert state["decay"]["w"].dtype == (torch.float64 if slot == "scalar" else torch.float32)


def test_decays_run_over_a_scale_under_vmap_as_one_by_one():
    params, grads = {"w": torch.ones(3)}, {"w": torch.tensor([1.0, -2.0, 3.0])}

    def update(eta):
        tx = gradtx.scale_by_amos(lr=0.1, eta=eta)
        return tx.update(grads, tx.init(params), params)[0]["w"]

    etas = torch.tensor([0.1, 2.0], dtype=torch.float64)
    torch.testing.assert_close(torch.vmap(update)(etas), torch.stack([update(0.1), update(2.0)]))


def test_a_slot_for_every_entry_and_one_scale_is_elementwise():
    # what the adapter asks before it runs a large leaf in parts; a scale from the shape needs the whole leaf
    elementwise = functools.partial(gradtx.scale_by_amos.spec.option, "elementwise")
    assert elementwise({"slot": "full", "eta": 0.5})
    assert not elementwise({"slot": "full", "eta": None})
    assert not elementwise({"slot": "full", "eta": len})
    assert not elementwise({"slot": "rows", "eta": 0.5})


def test_an_unknown_slot_is_refused():
    with pytest.raises(ValueError, match=r"^scale_by_amos: slot must be 'scalar', 'rows' or 'full', got 'row'$"):
        gradtx.scale_by_amos(slot="row")
