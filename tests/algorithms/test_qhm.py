import pytest
import qhoptim.pyt
import torch

import gradtx
from tests import references as ref
from tests.references import BETA, DECAY, PUBLISHED, RATE


def qhm(s, t, g, p, lr, momentum=0.999, nu=0.7, weight_decay=0.0, decoupled_weight_decay=False):
    start = p * (1 - lr * weight_decay) if decoupled_weight_decay else p
    g = g if decoupled_weight_decay else g + weight_decay * p
    s.b = momentum * s.b + (1 - momentum) * g
    return start - lr * ((1 - nu) * g + nu * s.b)


def qhadam(
    s, t, g, p, lr=1e-3, betas=(0.9, 0.999), nus=(1.0, 1.0), eps=1e-8, weight_decay=0.0, decoupled_weight_decay=False
):
    start = p * (1 - lr * weight_decay) if decoupled_weight_decay else p
    g = g if decoupled_weight_decay else g + weight_decay * p
    m, v = ref.adam_moments(s, t, g, betas)
    return start - lr * ((1 - nus[0]) * g + nus[0] * m) / (((1 - nus[1]) * g**2 + nus[1] * v).sqrt() + eps)


OPTIONS = [    (gradtx.qhm, qhm, {"lr": 1.0}),
    (gradtx.qhm, qhm, {"lr": 0.2, "momentum": 0.8, "nu": 0.4, "weight_decay": 0.2}),
    (gradtx.qhm, qhm, {"lr": 0.2, "momentum": 0.8, "weight_decay": 0.2, "decoupled_weight_decay": True}),
    (gradtx.qhm, qhm, {"lr": RATE, "momentum": BETA, "nu": BETA, "weight_decay": DECAY}),
    (gradtx.qhadam, qhadam, {}),
    (gradtx.qhadam, qhadam, {"lr": 0.02, "nus": (0.7, 1.0), "betas": (0.8, 0.9), "weight_decay": 0.2}),
    (gradtx.qhadam, qhadam, {"lr": 0.02, "nus": (0.3, 0.6), "eps": 0.01, "weight_decay": 0.2,
                             "decoupled_weight_decay": True}),
    (gradtx.qhadam, qhadam, {"lr": RATE, "nus": (BETA, BETA), "betas": (BETA, BETA), "weight_decay": DECAY}),
]  # fmt: skip


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=ref.named)
def test_the_weights_follow_the_loop(alias, rule, options):
    ref.follows(alias(**options), ref.WeightsLoop(rule, **options))


# qhoptim adds with `add_(number, tensor)`, a form that torch calls deprecated.
old_add = pytest.mark.filterwarnings("ignore:This overload of add:UserWarning")
DIRECT = {"weight_decay": 0.2, "weight_decay_type": "direct"}


@pytest.mark.slow
@old_add
@pytest.mark.parametrize(
    ("options", "theirs"),
    [
        ({}, {"momentum": 0.999, "nu": 0.7}),
        ({"momentum": 0.8, "nu": 0.4, "weight_decay": 0.2}, {"momentum": 0.8, "nu": 0.4, "weight_decay": 0.2}),
        (
            {"momentum": 0.8, "weight_decay": 0.2, "decoupled_weight_decay": True},
            {"momentum": 0.8, "nu": 0.7, **DIRECT},
        ),
    ],
    ids=str,
)
def test_qhm_is_that_of_its_authors(options, theirs):
    published = ref.Published(qhoptim.pyt.QHM, lr=0.3, **theirs)
    ref.weights_follow(gradtx.qhm(lr=0.3, **options), published, tolerance=PUBLISHED)


@pytest.mark.slow
@old_add
@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"lr": 0.02, "betas": (0.8, 0.9), "nus": (0.7, 1.0)}, {"lr": 0.02, "nus": (1.3, 0.4), "eps": 0.01}],
    ids=str,
)
def test_qhadam_is_that_of_its_authors(options, decoupled):
    theirs = ref.Published(qhoptim.pyt.QHAdam, **options, weight_decay=0.2, decouple_weight_decay=decoupled)
    ours = gradtx.qhadam(**options, weight_decay=0.2, decoupled_weight_decay=decoupled)
    ref.weights_follow(ours, theirs, tolerance=PUBLISHED)


def test_a_gradient_whose_square_overflows_stops_its_entry_as_in_adam():
    tx = gradtx.scale_by_qhadam()
    params = {"w": torch.zeros(2)}
    updates, state = tx.update({"w": torch.tensor([1e25, 1.0])}, tx.init(params), params)
    torch.testing.assert_close(updates["w"], torch.tensor([0.0, 1.0]))
    assert state["scale_by_qhadam"]["exp_avg_sq"]["w"].isinf().tolist() == [True, False]
