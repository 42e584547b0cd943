"""State on the host: what lives in several processes is refused, with the remedy."""

import pytest

import gradtx
from tests.distributed.problems import Model, sharded


def replicated_is_warned():
    with pytest.warns(UserWarning, match=r"state_device: do not wrap .* DistributedDataParallel"):
        gradtx.optim.AdamW(Model().parameters(), state_device="cpu")


def test_replicated_parameters_are_warned_of(two):
    two.run(replicated_is_warned)


def sharded_is_refused():
    model = sharded(Model())
    with pytest.raises(ValueError, match="state_device does not support sharded parameters; pass CPUOffloadPolicy"):
        gradtx.optim.AdamW(model.parameters(), state_device="cpu")


def test_sharded_parameters_are_refused(two):
    two.run(sharded_is_refused)
