"""FSDP1 gives each rank a piece of flat memory: what acts by leaf is refused, and not silently something else."""

import warnings

import pytest
import torch
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy

import gradtx
from tests.distributed.problems import assert_close

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


def steps_as_the_whole(tx, keeps_names, strategy, **options):
    whole, divided = model(), flattened(keeps_names, strategy)
    reference = gradtx.as_optimizer(tx, whole.parameters())
    optimizer = gradtx.as_optimizer(tx, divided.parameters(), **options)
    for t in range(3):
        x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(t))
        for each, of in ((whole, reference), (divided, optimizer)):
            of.zero_grad()
            each(x).square().mean().backward()
            of.step()
    with FullyShardedDataParallel.summon_full_params(divided):
        flat = torch.cat([param.reshape(-1) for param in divided.parameters()])
        expected = torch.cat([param.reshape(-1) for param in whole.parameters()])
        assert_close([flat[: len(expected)]], [expected])


def steps_that_are_fine():
    whole, cut = ShardingStrategy.NO_SHARD, ShardingStrategy.FULL_SHARD
    for keeps_names in (False, True):
        steps_as_the_whole(gradtx.adamw(lr=0.1), keeps_names, cut)
    steps_as_the_whole(BY_LEAF["lamb"], True, whole)


def test_elementwise_links_take_flat_pieces(two):
    two.run(steps_that_are_fine)
