import math

import pytest
import torch

import gradtx
from tests import references as ref
from tests.references import BETA, DECAY, RATE, first_update


def kourkoutas_adamw(
    s, t, g, p, lr=1e-3, betas=(0.9, 0.999), beta2_min=0.9, spike_beta=0.9, tiny_spike=1e-8, warmup_steps=0,
    correct_bias=True, eps=1e-8, weight_decay=0.0,
):  # fmt: skip
    b1, b2_max = betas
    n = g.norm().item()
    s.e = spike_beta * s.e + (1 - spike_beta) * n
    q = n / (s.e + tiny_spike)
    b2 = b2_max - (b2_max - beta2_min) * q / (1 + q)
    if t <= warmup_steps:
        b2 = (beta2_min + b2_max) / 2
    s.seen.add("spike" if q > 1.2 else "steady")
    s.m = b1 * s.m + (1 - b1) * g
    s.v = b2 * s.v + (1 - b2) * g**2
    s.product = (s.product or 1.0) * b2
    m, v = s.m, s.v
    if correct_bias:
        m = m / (1 - b1**t)
        v = v / (1 - s.product if correct_bias == "exact" else 1 - b2_max**t)
    return p * (1 - lr * weight_decay) - lr * m / (v.sqrt() + eps)


OPTIONS = [
    {},
    {"lr": 0.02, "betas": (0.8, 0.95), "beta2_min": 0.5, "spike_beta": 0.5, "weight_decay": 0.3},
    {"lr": 0.02, "correct_bias": "exact", "tiny_spike": 0.1},
    {"lr": 0.02, "correct_bias": False, "eps": 0.05},
    {"lr": 0.02, "correct_bias": "exact", "warmup_steps": 7},
    {"lr": 0.02, "beta2_min": 0.999},
    {"lr": RATE, "betas": (BETA, 0.99), "beta2_min": BETA, "weight_decay": DECAY},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_steps_are_those_of_the_loop(options):
    reference = ref.WeightsLoop(kourkoutas_adamw, **options)
    ref.follows(gradtx.kourkoutas_adamw(**options), reference)
    assert reference.seen == {"spike", "steady"}


@pytest.mark.parametrize("compile", [False, True], ids=["default", "compiled"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_steps_of_an_optimizer_are_those_of_the_loop(options, compile):
    def make(params):
        return gradtx.as_optimizer(gradtx.kourkoutas_adamw(**options), params, compile=compile)

    ref.weights_follow(ref.Published(make), ref.WeightsLoop(kourkoutas_adamw, **options))


def test_without_a_range_for_the_decay_it_is_adamw():
    options = {"lr": 0.02, "betas": (0.8, 0.95), "weight_decay": 0.1}
    ours = gradtx.kourkoutas_adamw(beta2_min=0.95, **options)
    ref.weights_follow(ours, ref.Transformed(gradtx.adamw(**options)))


def test_a_first_step_in_numbers():
    # q = 1 / (1 - spike_beta) = 2: b = 0.9 - 0.6 * 2 / 3 = 0.5, v = 0.5 * 16, m = 4
    tx = gradtx.scale_by_kourkoutas(
        betas=(0.0, 0.9), beta2_min=0.3, spike_beta=0.5, tiny_spike=0.0, correct_bias=False, eps=0.0
    )
    assert first_update(tx, [4.0]) == pytest.approx([4 / math.sqrt(8)])


def test_zero_gradients_give_zero_steps():
    assert ref.finite_without_gradient(gradtx.scale_by_kourkoutas(tiny_spike=0.0))


def test_a_smallest_decay_above_the_largest_is_refused():
    message = r"kourkoutas_adamw: scale_by_kourkoutas: beta2_min must be at most betas\[1\], 0.8, got 0.9"
    with pytest.raises(ValueError, match=message):
        gradtx.kourkoutas_adamw(betas=(0.9, 0.8))
    with pytest.raises(ValueError, match=r"scale_by_kourkoutas: beta2_min must be in \[0, 1\), got 1.0"):
        gradtx.scale_by_kourkoutas(beta2_min=1.0)
    with pytest.raises(ValueError, match="correct_bias must be True, False or 'exact', got 'beta2max'"):
        gradtx.scale_by_kourkoutas(correct_bias="beta2max")


def test_shapes_of_a_layer_have_averages_of_their_own():
    tx = gradtx.scale_by_kourkoutas()
    params = {"loud": torch.zeros(2), "calm": torch.zeros(2)}
    _, state = tx.update({"loud": torch.ones(2) * 100, "calm": torch.ones(2)}, tx.init(params))
    averages = state["scale_by_kourkoutas"]["norm_avg"]
    assert averages["loud"] / averages["calm"] == pytest.approx(100)
