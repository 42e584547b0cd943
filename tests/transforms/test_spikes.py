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
    finite_without_gradient,
    named,
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


@pytest.mark.parametrize("tx", [gradtx.clip_spikes(clip_after=0), gradtx.clip_to_peak_history()], ids=str)
def test_zero_gradients_and_empty_leaves_give_finite_updates(tx):
    assert finite_without_gradient(tx)
    grads = {"w": torch.zeros(0, 3)}
    assert tx.update(grads, tx.init(grads))[0]["w"].shape == (0, 3)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (gradtx.clip_spikes, {"every": 0}, r"every must be in \[1, inf\), got 0"),
        (gradtx.clip_spikes, {"threshold": 0.0}, r"threshold must be in \(0, inf\), got 0.0"),
        (gradtx.clip_spikes, {"clip_after": -1}, r"clip_after must be in \[0, inf\), got -1"),
        (gradtx.clip_to_peak_history, {"theta": 1.0}, r"theta must be in \[0, 1\), got 1.0"),
    ],
    ids=named,
)
def test_rejects_a_number_out_of_range(make, options, message):
    with pytest.raises(ValueError, match=f"^{make.__name__}: {message}$"):
        make(**options)
