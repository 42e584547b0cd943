"""Random edits between steps of sharded parameters; see `tests.fuzz.edits`."""

import pytest
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from tests.fuzz import edits


def of_seeds(first, last):
    mesh = init_device_mesh("cpu", (2,))
    return [edits.run(seed, lambda value: distribute_tensor(value, mesh, [Shard(0)])) for seed in range(first, last)]


@pytest.mark.parametrize(
    "first", [0, *(pytest.param(first, marks=pytest.mark.nightly) for first in range(10, 200, 10))]
)
def test_each_step_after_random_edits_is_that_of_a_new_optimizer_with_the_state(first, two):
    for outcomes in two.run(of_seeds, first, first + 10):
        assert set(outcomes) == {"held"}
