import pytest
import qhoptim.pyt
import torch

import gradtx
from tests import references as ref
from tests.optim.problems import assert_close, assert_equal, descend, parameters, saved_and_loaded, twins
from tests.references import BETA, DECAY, PUBLISHED, RATE


def accsgd(s, t, g, p, lr, kappa=1000.0, xi=10.0, small_const=0.7, weight_decay=0.0):
    c = small_const
    alpha = 1 - c**2 * xi / kappa
    zeta = c / (c + 1 - alpha)
    g = g + weight_decay * p
    s.avg = alpha * (p if t == 1 else s.avg) + (1 - alpha) * (p - lr * kappa / c * g)
    return zeta * (p - lr * g) + (1 - zeta) * s.avg


def aggmo(s, t, g, p, lr, betas=(0.0, 0.9, 0.99), weight_decay=0.0):
    if t == 1:
        s.b = [0 * g for _ in betas]
    for i, beta in enumerate(betas):
        s.b[i] = beta * s.b[i] + g + weight_decay * p
    return p - lr / len(betas) * sum(s.b)


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


def pid(s, t, g, p, lr, momentum=0.0, dampening=0.0, integral=5.0, derivative=10.0, weight_decay=0.0):
    g = g + weight_decay * p
    if momentum == 0:
        return p - lr * g
    s.i = g if t == 1 else momentum * s.i + (1 - dampening) * g
    s.d = 0 * g if t == 1 else momentum * s.d + (1 - momentum) * (g - s.last)
    s.last = g
    return p - lr * (g + integral * s.i + derivative * s.d)


def gravity(s, t, g, p, lr=0.1, alpha=0.01, beta=0.9, seed=0):
    if t == 1 and alpha:
        start = gradtx.gravity(lr=lr, alpha=alpha, seed=seed).init({s.name: p})
        s.v = start["scale_by_gravity"]["v"][s.name]
    beta_t = (beta * t + 1) / (t + 2)
    s.v = beta_t * s.v + (1 - beta_t) * g / (1 + (g * g.abs().max()) ** 2)
    return p - lr * s.v


OPTIONS = [
    (gradtx.accsgd, accsgd, {"lr": 0.01}),
    (gradtx.accsgd, accsgd, {"lr": 0.02, "kappa": 50.0, "xi": 4.0, "small_const": 0.5, "weight_decay": 0.2}),
    (gradtx.accsgd, accsgd, {"lr": RATE, "kappa": 4.0, "xi": BETA, "small_const": BETA, "weight_decay": DECAY}),
    (gradtx.aggmo, aggmo, {"lr": 0.02}),
    (gradtx.aggmo, aggmo, {"lr": 0.05, "betas": (0.3, 0.8), "weight_decay": 0.2}),
    (gradtx.aggmo, aggmo, {"lr": 0.05, "betas": (0.9,)}),
    (gradtx.aggmo, aggmo, {"lr": RATE, "betas": (BETA, 0.5, BETA, 0.0), "weight_decay": DECAY}),
    (gradtx.qhm, qhm, {"lr": 1.0}),
    (gradtx.qhm, qhm, {"lr": 0.2, "momentum": 0.8, "nu": 0.4, "weight_decay": 0.2}),
    (gradtx.qhm, qhm, {"lr": 0.2, "momentum": 0.8, "weight_decay": 0.2, "decoupled_weight_decay": True}),
    (gradtx.qhm, qhm, {"lr": RATE, "momentum": BETA, "nu": BETA, "weight_decay": DECAY}),
    (gradtx.qhadam, qhadam, {}),
    (gradtx.qhadam, qhadam, {"lr": 0.02, "nus": (0.7, 1.0), "betas": (0.8, 0.9), "weight_decay": 0.2}),
    (gradtx.qhadam, qhadam, {"lr": 0.02, "nus": (0.3, 0.6), "eps": 0.01, "weight_decay": 0.2,
                             "decoupled_weight_decay": True}),
    (gradtx.qhadam, qhadam, {"lr": RATE, "nus": (BETA, BETA), "betas": (BETA, BETA), "weight_decay": DECAY}),
    (gradtx.pid, pid, {"lr": 0.1, "weight_decay": 0.2}),
    (gradtx.pid, pid, {"lr": 0.002, "momentum": 0.9}),
    (gradtx.pid, pid, {"lr": 0.02, "momentum": 0.6, "dampening": 0.3, "integral": 0.5, "derivative": 2.0,
                       "weight_decay": 0.2}),
    (gradtx.pid, pid, {"lr": RATE, "momentum": BETA, "dampening": DECAY, "integral": BETA, "weight_decay": DECAY}),
    (gradtx.gravity, gravity, {}),
    (gradtx.gravity, gravity, {"lr": 0.3, "alpha": 0.1, "beta": 0.5, "seed": 7}),
    (gradtx.gravity, gravity, {"lr": RATE, "alpha": 0.0, "beta": BETA}),
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


# The number of betas is the structure of aggmo's state.


@pytest.mark.slow
def test_groups_of_aggmo_may_have_different_numbers_of_betas():
    first, second = parameters(), parameters()
    names = list(first)
    groups = [{"params": [first[n] for n in names[:2]], "betas": (0.5,)}, {"params": [first[n] for n in names[2:]]}]
    descend(gradtx.optim.AggMo(groups, lr=0.05, betas=(0.3, 0.6, 0.9, 0.0)), first, 5)
    for chosen, betas in ((names[:2], (0.5,)), (names[2:], (0.3, 0.6, 0.9, 0.0))):
        own = {n: second[n] for n in chosen}
        descend(gradtx.optim.AggMo(own.values(), lr=0.05, betas=betas), own, 5)
    assert_equal(list(first.values()), list(second.values()))


def test_betas_written_into_a_group_may_be_more_or_fewer():
    params = parameters()
    optimizer = gradtx.optim.AggMo(params.values(), lr=0.05, betas=(0.5, 0.9))
    descend(optimizer, params, 3)
    buffers = [optimizer.state[params["body.bias"]][f"momentum_buffer_{i}"].clone() for i in range(2)]
    for betas in ((0.5, 0.9, 0.99), (0.5,)):
        optimizer.param_groups[0]["betas"] = betas
        descend(optimizer, params, 1, start=3)
        state = optimizer.state[params["body.bias"]]
        assert [key for key in state if key != "step"] == [f"momentum_buffer_{i}" for i in range(len(betas))]
        gradient = params["body.bias"].grad
        buffers = [beta * b + gradient for beta, b in zip(betas, [*buffers, 0.0], strict=False)]
        assert_close([state[f"momentum_buffer_{i}"] for i in range(len(betas))], buffers, 1e-14)
    optimizer.param_groups[0]["betas"] = ()
    with pytest.raises(ValueError, match=r"^aggmo: betas must have at least one entry$"):
        descend(optimizer, params, 1)


@pytest.mark.slow
@pytest.mark.parametrize("betas", [(0.3, 0.8), (0.9,), (0.0, 0.1, 0.2, 0.3)], ids=str)
def test_a_checkpoint_of_other_betas_continues_in_an_aggmo_built_with_defaults(betas):
    params = parameters()
    optimizer = gradtx.optim.AggMo(params.values(), lr=0.05, betas=betas)
    descend(optimizer, params, 5)
    own = twins(params)
    other = gradtx.optim.AggMo(own.values(), lr=0.01)
    other.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    descend(optimizer, params, 5, start=5)
    descend(other, own, 5, start=5)
    assert_equal(list(own.values()), list(params.values()))


def test_the_initial_movement_of_gravity_does_not_depend_on_a_rate_written_before_the_first_step():
    params = parameters()
    optimizer = gradtx.optim.Gravity(params.values(), lr=0.2, alpha=0.1)
    names = list(params)
    start = optimizer.state_dict()["state"][names.index("body.bias")]["v"].clone()
    optimizer.param_groups[0]["lr"] = 0.05
    before = params["body.bias"].detach().clone()
    for param in params.values():
        param.grad = torch.zeros_like(param)
    optimizer.step()
    assert_close([params["body.bias"]], [before - 0.2 * start * 1.9 / 3], 1e-14)
