import math

import pytest
import torch
from adabelief_pytorch import AdaBelief

import gradtx
from tests import references as ref
from tests.algorithms.loops import decayed, stepped
from tests.references import BETA, DECAY, PUBLISHED, RATE


def adabelief(
    s, t, g, p, lr=1e-3, betas=(0.9, 0.999), eps=1e-16, weight_decay=0.0, decoupled_weight_decay=True,
    fixed_decay=False, rectify=True, degenerated_to_sgd=True, amsgrad=False,
):  # fmt: skip
    m, v = ref.belief_moments(s, decayed(g, p, weight_decay, decoupled_weight_decay), betas, eps, amsgrad)
    if rectify:
        direction = ref.rectified(s, t, m, v, betas, eps, 5.0, degenerated_to_sgd)
    else:
        direction = m / (1 - betas[0] ** t) / (v.sqrt() / math.sqrt(1 - betas[1] ** t) + eps)
    if fixed_decay and decoupled_weight_decay:
        return p * (1 - weight_decay) - lr * direction
    return stepped(p, lr, direction, weight_decay, decoupled_weight_decay)


COUPLED = {"weight_decay": 0.3}
DECOUPLED = {"weight_decay": 0.3, "decoupled_weight_decay": True}
SOME = {"lr": 0.02, "betas": (0.8, 0.95), "eps": 0.05}
SCHEDULED = {"lr": RATE, "betas": (BETA, BETA), "weight_decay": DECAY}
OPTIONS = [    (gradtx.adabelief, adabelief, {}),
    (gradtx.adabelief, adabelief, {**SOME, **COUPLED, "decoupled_weight_decay": False}),
    # fixed_decay says nothing about a coupled decay
    (gradtx.adabelief, adabelief, {**SOME, **COUPLED, "decoupled_weight_decay": False, "fixed_decay": True}),
    (gradtx.adabelief, adabelief, {**SOME, **DECOUPLED, "rectify": False}),
    (gradtx.adabelief, adabelief, {**SOME, "weight_decay": 0.01, "fixed_decay": True}),
    (gradtx.adabelief, adabelief, {**SOME, **DECOUPLED, "degenerated_to_sgd": False}),
    (gradtx.adabelief, adabelief, {**SOME, "betas": (0.8, 0.75), "amsgrad": True, "eps": 1e-4}),
    (gradtx.adabelief, adabelief, {**SOME, "betas": (0.8, 0.75), "amsgrad": True, "eps": 1e-4, "rectify": False}),
    (gradtx.adabelief, adabelief, {**SCHEDULED, "eps": 1e-3}),
]  # fmt: skip


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=ref.named)
def test_the_weights_follow_the_loop(alias, rule, options):
    ref.follows(alias(**options), ref.WeightsLoop(rule, **options))


# Our options, and those of theirs that have other names.


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.2},
        {"lr": 0.02, "weight_decay": 0.01, "fixed_decay": True},
        {"lr": 0.02, "weight_decay": 0.2, "degenerated_to_sgd": False},
        {"lr": 0.02, "weight_decay": 0.2, "rectify": False},
        {"lr": 0.02, "betas": (0.8, 0.75), "rectify": False, "amsgrad": True},
        {"lr": 0.02, "weight_decay": 0.2, "decoupled_weight_decay": False},
    ],
    ids=str,
)
def test_adabelief_has_the_weights_of_the_authors(options):
    theirs = {("weight_decouple" if k == "decoupled_weight_decay" else k): v for k, v in options.items()}
    published = ref.Published(AdaBelief, **theirs, print_change_log=False)
    ref.weights_follow(gradtx.adabelief(**options), published, tolerance=PUBLISHED)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_belief_stays_finite_where_its_eps_is_0_in_the_dtype_of_its_state(dtype):
    tx = gradtx.scale_by_belief()
    params = {"w": torch.zeros(3, dtype=dtype)}
    state = tx.init(params)
    for _ in range(8):
        updates, state = tx.update({"w": torch.tensor([0.0, 1e-7, -1.0], dtype=dtype)}, state, params)
    assert updates["w"].isfinite().all()
    assert updates["w"][0] == 0
