"""Progress bars where no one can see them."""

import io
import sys

import pytest
import torch

import gradtx
from gradtx.base.progress import progress_bar


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("progress", [None, True, False])
@pytest.mark.parametrize("stderr", [lambda: None, closed], ids=["none", "closed"])
def test_work_without_a_stderr_is_done_without_a_bar(stderr, progress, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stderr())
    bar = progress_bar("work", progress, 2, "steps")
    bar.update()
    bar.set_postfix_str("half")
    bar.close()
    params = {"w": torch.ones(2)}
    loss = lambda params: params["w"].square().sum()  # noqa: E731
    assert gradtx.sharpness(loss, params, progress=progress).values[0] == pytest.approx(2.0)
    over = {"lr": [0.1, 0.2]}
    swept = gradtx.sweep(lambda p, _: loss(p), gradtx.sgd, params, lambda _: None, over, steps=2, progress=progress)
    assert swept.best()[0]["mean"] < 2.0
