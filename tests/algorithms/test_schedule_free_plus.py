import math

import pytest
import torch

import gradtx
from tests import references as ref

# The loss is not that of the gradients: any number between -0.5 and 2 shows what the rule does with it.
LOSSES = [0.75 + 1.25 * math.sin(2.1 * t) for t in range(1, ref.LONG + 1)]
CLOSE = 1e-11
OPTIONS = [
    {},
    {"lr": 0.3, "betas": (0.6, 0.8), "weight_decay": 20.0},
    {"polyak_beta": 0.8},
    {"c_warmup": 5, "r": 2.0},
    {"sf_beta1": 0.7, "sf_beta1_anneal_steps": 9, "sf_beta1_max": 0.98},
    {"weight_lr_power": 0.5, "r": 1.0, "eps": 1e-3},
    {"lr": ref.RATE, "weight_decay": ref.DECAY, "polyak_beta": 0.5},
    {"lr": 0.0, "eps": 0.01},
]


def schedule_free_plus(
    s, t, grads, params, lr=1.0, betas=(0.9, 0.95), sf_beta1=0.9, eps=1e-8, weight_decay=0.0, r=0.0, polyak_beta=0.0,
    c_warmup=0, sf_beta1_anneal_steps=0, sf_beta1_max=0.965, weight_lr_power=2.0,
):  # fmt: skip
    """The rule of the catalog, with all three sequences."""
    shared, k = s[""], t - 1
    if t == 1:
        shared.L = eps
        for name, p in params.items():
            s[name].z = s[name].x = p
    a = min(k / sf_beta1_anneal_steps, 1) if sf_beta1_anneal_steps else 0
    b = 1 - (1 - sf_beta1) ** (1 - a) * (1 - sf_beta1_max) ** a
    f = LOSSES[k] + b * sum((g * (s[name].z - s[name].x)).sum().item() for name, g in grads.items())
    size = math.sqrt(math.pi / 2) * sum(g.abs().sum().item() for g in grads.values())
    shared.S = polyak_beta * shared.S + (1 - polyak_beta) * size
    rho = max(lr, eps) * max(0, f) / (shared.S / (1 - polyak_beta**t))
    shared.seen.add("stays" if rho == 0 else "steps")
    shared.L = max(shared.L, rho)
    c = 1.0
    if k >= c_warmup:
        w = t**r * shared.L**weight_lr_power
        shared.W = shared.W + w
        c = w / shared.W
    new = {}
    for name, g in grads.items():
        leaf = s[name]
        leaf.z = leaf.z - rho**2 * weight_decay * params[name]
        m, v = ref.adam_moments(leaf, t, g, betas)
        leaf.z = leaf.z - rho * m / (v.sqrt() + eps)
        leaf.x = (1 - c) * leaf.x + c * leaf.z
        new[name] = b * leaf.x + (1 - b) * leaf.z
    return new


class Valued(ref.Transformed):
    """A transformation that is told the losses, one after the other."""

    def __init__(self, tx):
        super().__init__(tx)
        self.losses = iter(LOSSES)

    def __call__(self, grads, params):
        state = self.tx.init(params) if self.state is None else self.state
        updates, self.state = self.tx.update(
            grads, state, params, value=torch.tensor(next(self.losses), dtype=torch.float64)
        )
        return updates


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_trained_and_evaluated_weights_follow_the_loop(options):
    step, reference = Valued(gradtx.schedule_free_plus(**options)), ref.TreeLoop(schedule_free_plus, **options)
    ref.follows_along(step, reference, tolerance=CLOSE, steps=ref.LONG)
    last = ref.run(ref.TreeLoop(schedule_free_plus, **options), weights=True, steps=ref.LONG)[-1]
    found = step.tx.eval_params(step.state, last)
    ref.compare_trees(found, {name: reference.slots[name].x for name in found}, CLOSE)
    assert reference.seen == {"steps", "stays"}


class Stepped(ref.Published):
    """An optimizer whose steps are told the losses."""

    def __init__(self, make):
        super().__init__(make)
        self.losses = iter(LOSSES)

    def advance(self):
        self.optimizer.step(value=next(self.losses))


@pytest.mark.parametrize("compile", [False, True], ids=["default", "compiled"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_steps_of_an_optimizer_are_those_of_the_loop(options, compile):
    def make(params):
        return gradtx.as_optimizer(gradtx.schedule_free_plus(**options), params, compile=compile)

    ref.follows_along(Stepped(make), ref.TreeLoop(schedule_free_plus, **options), tolerance=CLOSE)


def test_a_leaf_that_comes_late_sees_the_average_of_the_others_norms():
    tx = gradtx.schedule_free_plus(polyak_beta=0.5)
    params = {"late": torch.ones(1), "w": torch.ones(1)}
    state = tx.init(params)
    for t in range(4):
        grads = {"late": None if t < 3 else torch.zeros(1), "w": torch.ones(1)}
        _, state = tx.update(grads, state, params, value=1.0)
    assert state["scale_by_schedule_free_plus"]["grad_norm_weight"].item() == 1 - 0.5**4


def test_no_gradient_takes_no_step():
    step, params = Valued(gradtx.schedule_free_plus()), ref.problem()
    zeros = {name: torch.zeros_like(param) for name, param in params.items()}
    assert all(not update.any() for update in step(zeros, params).values())


def test_the_loss_is_needed_and_its_absence_named():
    tx, params = gradtx.schedule_free_plus(), {"w": torch.ones(1)}
    with pytest.raises(ValueError, match="schedule_free_plus needs value"):
        tx.update(params, tx.init(params), params)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sf_beta1": 1.0}, r"schedule_free_plus: sf_beta1 must be in \(0, 1\), got 1.0"),
        ({"sf_beta1_max": 0.0}, r"schedule_free_plus: sf_beta1_max must be in \(0, 1\), got 0.0"),
        ({"polyak_beta": 1.0}, r"schedule_free_plus: polyak_beta must be in \[0, 1\), got 1.0"),
        ({"c_warmup": -1}, r"schedule_free_plus: c_warmup must be in \[0, inf\), got -1"),
        ({"r": -1.0}, r"schedule_free_plus: r must be in \[0, inf\), got -1.0"),
    ],
    ids=str,
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        gradtx.schedule_free_plus(**options)
