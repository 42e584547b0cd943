"""The formulas of docs/howto/many-ranks.md against what ranks send."""

import doctest
from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import gradtx
from tests.distributed.traffic import Traffic
from tests.tiers import by_day

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "many-ranks.md"
# A transformer of width 256, as on the page.
LAYER = [(256, 256)] * 4 + [(1024, 256), (256, 1024)]
SHAPES = LAYER * 4
# The iteration's length changes nothing of what is sent. Bytes of an entry, and a chain.
CHAINS = {
    "muon": (2, gradtx.muon(ns_steps=1)),
    "muon in full precision": (4, gradtx.muon(ns_steps=1, ns_dtype=None)),
    "soap": (4, gradtx.soap(max_precondition_dim=16)),
}


def formulas():
    """The functions that the page defines."""
    names = {}
    for example in doctest.DocTestParser().get_examples(PAGE.read_text(encoding="utf-8")):
        if example.source.startswith(("def ", "import math")):
            exec(example.source, names)
    return names


def messages_and_bytes(name):
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    params = []
    for i, shape in enumerate(SHAPES):
        generator = torch.Generator().manual_seed(i)
        whole = torch.randn(shape, generator=generator)
        param = torch.nn.Parameter(distribute_tensor(whole, mesh, [Shard(0)]))
        param.grad = param.detach().clone()
        params.append((f"{i:02}", param))
    optimizer = gradtx.as_optimizer(CHAINS[name][1], params)
    optimizer.step()
    with Traffic() as traffic:
        optimizer.step()
    return traffic.messages, traffic.bytes


@by_day("muon-4", "muon in full precision-2", "soap-4")
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("name", CHAINS)
def test_ranks_send_what_the_formulas_say(name, ranks, two, four):
    expected = formulas()["sent"](SHAPES, ranks, CHAINS[name][0])
    answers = {2: two, 4: four}[ranks].run(messages_and_bytes, name)
    assert [size for _, size in answers] == expected
    assert [messages for messages, _ in answers] == [["alltoall_base_", "alltoall_base_"]] * ranks
    if (name, ranks) == ("muon", 4):
        assert max(expected) < 2.4e6
