import pytest
import torch

import gradtx
from tests.references import (
    BETA,
    LONG,
    TOLERANCE,
    Loop,
    Transformed,
    arguments,
    difference,
)


def spikes(s, t, g, p, threshold=5000.0, beta2=0.999, clip_after=20, every=500):
    v = s.v + 0 * g
    if t >= clip_after and t % every >= clip_after:
        spike = g**2 > threshold * v
        s.seen.update(spike.flatten().tolist())
        g = torch.where(spike, g.sign() * (threshold * v).sqrt(), g)
    s.v = beta2 * v + (1 - beta2) * g**2
    return g


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ({}, {False}),
        ({"threshold": 2.0, "beta2": 0.9, "clip_after": 5}, {True, False}),
        ({"threshold": 1.5, "beta2": 0.8, "clip_after": 3, "every": 8}, {True, False}),
        ({"threshold": 1.5, "beta2": BETA, "clip_after": 8, "every": 8}, set()),
    ],
    ids=str,
)
def test_clip_spikes_follows_the_loop(options, seen):
    reference = Loop(spikes, **options)
    assert difference(gradtx.clip_spikes(**options), reference, rate=-0.02, steps=LONG) < TOLERANCE
    assert reference.seen >= seen
    assert arguments(gradtx.clip_spikes) == arguments(spikes)


def peaks(s, t, g, p, theta=0.999):
    top = g.abs().max().item()
    s.M = theta * s.M + (1 - theta) * top
    usual = s.M / (1 - theta**t)
    s.seen.update((g.abs() > usual * (1 + 1e-9)).flatten().tolist())
    return torch.where(g.abs() > usual, g * usual / top, g)


@pytest.mark.parametrize("options", [{}, {"theta": 0.5}, {"theta": 0.0}, {"theta": BETA}], ids=str)
def test_clip_to_peak_history_follows_the_loop(options):
    reference = Loop(peaks, **options)
    assert difference(gradtx.clip_to_peak_history(**options), reference, rate=-0.02) < TOLERANCE
    assert True in reference.seen or options.get("theta") == 0.0
    assert arguments(gradtx.clip_to_peak_history) == arguments(peaks)


def test_the_first_gradient_has_its_own_peak():
    step = Transformed(gradtx.clip_to_peak_history())
    grads = {"w": torch.tensor([3.0, -4.0])}
    assert step(grads, grads)["w"].tolist() == pytest.approx([3.0, -4.0])
