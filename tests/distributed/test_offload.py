"""State on the host: what lives in several processes is refused, with the remedy."""

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

import gradtx
from tests.distributed.problems import Model, batch, loss_of, sharded


def replicated_is_refused(later):
    model = Model()

    def train():
        if later:
            optimizer = gradtx.optim.AdamW(model.parameters(), state_device="cpu")
        replicated = DistributedDataParallel(model)
        if not later:
            optimizer = gradtx.optim.AdamW(model.parameters(), state_device="cpu")
        loss_of(replicated, batch(0)).backward()
        optimizer.step()

    with pytest.raises(RuntimeError, match="DistributedDataParallel loses its hooks when a parameter moves"):
        train()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), Model().parameters(), strict=True))


@pytest.mark.parametrize("later", [False, True])
def test_replicated_parameters_are_refused(later, two):
    two.run(replicated_is_refused, later)


def sharded_is_refused():
    model = sharded(Model())
    with pytest.raises(ValueError, match="state_device does not support sharded parameters; pass CPUOffloadPolicy"):
        gradtx.optim.AdamW(model.parameters(), state_device="cpu")


def test_sharded_parameters_are_refused(two):
    two.run(sharded_is_refused)
