"""FSDP1 gives each rank a piece of flat memory: what acts by leaf is refused, and not silently something else."""

import warnings

import pytest
import torch
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy

import gradtx

BY_LEAF = {
    "lamb": gradtx.lamb(),
    "clip": gradtx.chain(gradtx.clip_by_global_norm(0.1), gradtx.sgd(lr=0.1)),
    "stale clip": gradtx.chain(gradtx.clip_by_global_norm(0.1, stale=True), gradtx.sgd(lr=0.1)),
    "muon": gradtx.muon(fallback=gradtx.adamw()),
    "adafactor": gradtx.adafactor(),
}


def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2)).double()


def flattened(keeps_names, strategy=ShardingStrategy.FULL_SHARD):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return FullyShardedDataParallel(
            model(), use_orig_params=keeps_names, sharding_strategy=strategy, device_id=torch.device("cpu")
        )


def refused(name, keeps_names):
    divided = flattened(keeps_names)
    with pytest.raises(ValueError, match=r"flat pieces of memory, as created by FSDP1.*use FSDP2"):
        gradtx.as_optimizer(BY_LEAF[name], divided.parameters())
    optimizer = gradtx.as_optimizer(BY_LEAF[name], model().parameters())
    groups = list(optimizer.param_groups)
    with pytest.raises(ValueError, match="flat pieces of memory"):
        optimizer.add_param_group({"params": list(divided.parameters())})
    assert optimizer.param_groups == groups


@pytest.mark.parametrize("keeps_names", [False, True])
@pytest.mark.parametrize("name", BY_LEAF)
def test_links_that_act_by_leaf_refuse_flat_pieces(name, keeps_names, two):
    two.run(refused, name, keeps_names)
