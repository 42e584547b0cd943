"""Optimizers pickled by version 0.1 load and continue like an uninterrupted run."""

import pathlib

import pytest
import torch

import gradtx
from tests.optim.problems import assert_close, descend, parameters

DATA = pathlib.Path(__file__).parent / "data"
TOLERANCE = 1e-6  # the same float32 sums in a different order


def adamw(params):
    return gradtx.optim.AdamW(params.values(), lr=0.1)


def partition(params):
    arms = {
        "bias": gradtx.sgd(lr=gradtx.cosine_schedule(0.1, T_max=20), momentum=0.9),
        "weight": gradtx.adam(lr=0.1),
    }
    return gradtx.as_optimizer(gradtx.partition(arms, {"bias": "*.bias", "weight": "*.*"}), list(params.items()))


def unused(params):
    return gradtx.as_optimizer(gradtx.chain(gradtx.sgd(lr=0.1), gradtx.lookahead(k=2)), list(params.items()))


@pytest.mark.parametrize(("make", "steps"), [(adamw, 3), (partition, 3), (unused, 0)])
def test_a_pickle_of_version_0_1_goes_on(make, steps, monkeypatch):
    params, optimizer = torch.load(DATA / f"{make.__name__}_0_1.pt", weights_only=False)
    if optimizer._engine is not None:
        monkeypatch.setattr(torch._inductor, "compile", lambda graph, examples, options: graph)
    if not steps:  # its state is yet to be created, from the initial weights
        with torch.no_grad():
            for param in params.values():
                param.mul_(2)
    descend(optimizer, params, 4, start=steps)
    expected = parameters(torch.float32)
    reference = make(expected)
    descend(reference, expected, steps)
    if not steps:
        with torch.no_grad():
            for param in expected.values():
                param.mul_(2)
    descend(reference, expected, 4, start=steps)
    assert_close(params.values(), expected.values(), TOLERANCE)
    for param, twin in zip(params.values(), expected.values(), strict=True):
        assert list(optimizer.state[param]) == list(reference.state[twin])
        assert optimizer.state[param]["step"] == steps + 4


def test_the_engine_of_a_pickle_is_compiled_for_again(monkeypatch):
    monkeypatch.setattr(torch._inductor, "compile", lambda graph, examples, options: graph)
    params, optimizer = torch.load(DATA / "partition_0_1.pt", weights_only=False)
    descend(optimizer, params, 1, start=3)
    assert optimizer._engine.programs
    assert not optimizer._engine.failed
