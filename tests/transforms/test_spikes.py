import pytest
import torch

import gradtx
from tests.references import BETA, Loop, arguments, follows


def peaks(s, t, g, p, theta=0.999):
    top = g.abs().max().item()
    s.M = theta * s.M + (1 - theta) * top
    usual = s.M / (1 - theta**t)
    s.seen.update((g.abs() > usual * (1 + 1e-9)).flatten().tolist())
    return torch.where(g.abs() > usual, g * usual / top, g)


@pytest.mark.parametrize("options", [{}, {"theta": 0.5}, {"theta": 0.0}, {"theta": BETA}], ids=str)
def test_clip_to_peak_history_follows_the_loop(options):
    reference = Loop(peaks, **options)
    follows(gradtx.clip_to_peak_history(**options), reference, rate=-0.02)
    assert True in reference.seen or options.get("theta") == 0.0
    assert arguments(gradtx.clip_to_peak_history) == arguments(peaks)
