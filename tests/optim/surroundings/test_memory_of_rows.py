"""What a step with a sparse gradient holds in memory besides weights, gradient and state: rows, never a table."""

import pytest
import torch

import gradtx
from tests.memory import most_of, sizes_of

TABLE, WIDTH, ROWS = 100_000, 64, 128
OF_ROWS = ROWS * WIDTH * 4
OF_TABLE = TABLE * WIDTH * 4
PART = 2**20  # of a slot that is searched for rows that are not 0
LR = 0.05

CHAINS = {
    "sparse_adam": gradtx.sparse_adam(LR),
    "adagrad": gradtx.adagrad(LR),
    "sgd": gradtx.sgd(LR),
    "adamw": gradtx.adamw(LR),
    "adamw in 8 bits": gradtx.adamw(LR, state_dtype="int8"),
    "clip": gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.sparse_adam(LR)),
    "lazy_rows": gradtx.lazy_rows(gradtx.adamw(LR)),
    "lazy_rows, catch_up": gradtx.lazy_rows(gradtx.adamw(LR), catch_up=True),
    "lazy_rows of a momentum": gradtx.lazy_rows(gradtx.sgd(LR, momentum=0.9)),
}
# Which rows move is read from a slot of the whole table, in parts.
MOVING = {
    "momentum": gradtx.sgd(LR, momentum=0.9),
    "accumulate": gradtx.accumulate(gradtx.sparse_adam(LR), every=2),
    "accumulate, lazy_rows": gradtx.accumulate(gradtx.lazy_rows(gradtx.adamw(LR)), every=2),
}


class Steps:
    """Steps of a table, each with new rows."""

    def __init__(self, tx, compile):
        self.param = torch.nn.Parameter(torch.zeros(TABLE, WIDTH))
        self.optimizer = gradtx.as_optimizer(tx, {"table": self.param}.items(), compile=compile)
        self.draw = torch.Generator().manual_seed(0)

    def give_gradient(self):
        index = torch.randint(TABLE, (1, ROWS), generator=self.draw)
        values = torch.randn(ROWS, WIDTH, generator=self.draw)
        self.param.grad = torch.sparse_coo_tensor(index, values, self.param.shape, check_invariants=False)

    def step(self):
        self.give_gradient()
        self.optimizer.step()

    def measured(self):
        self.give_gradient()
        return sizes_of(self.optimizer.step)


def test_the_measure_sees_a_table():
    param = torch.zeros(TABLE, WIDTH)
    assert most_of(sizes_of(lambda: param + param)) >= OF_TABLE


@pytest.mark.parametrize("compile", [False, True], ids=["lists", "compiled"])
@pytest.mark.parametrize("name", CHAINS)
def test_a_step_holds_some_copies_of_the_rows(name, compile):
    steps = Steps(CHAINS[name], compile)
    for _ in range(3):
        steps.step()
    for _ in range(2):
        sizes = steps.measured()
        assert max(sizes) <= 3 * OF_ROWS
        assert most_of(sizes) <= 16 * OF_ROWS


@pytest.mark.parametrize("compile", [False, True], ids=["lists", "compiled"])
@pytest.mark.parametrize("name", MOVING)
def test_a_step_that_looks_for_moving_rows_holds_a_part_of_the_slot_besides(name, compile):
    """In both calls of a cycle of `accumulate`."""
    steps = Steps(MOVING[name], compile)
    for _ in range(4):
        steps.step()
    for _ in range(2):
        sizes = steps.measured()
        moving = 6  # steps whose rows have a momentum
        assert max(sizes) <= max(PART, 3 * moving * OF_ROWS)
        assert most_of(sizes) <= 2 * PART + 16 * moving * OF_ROWS < OF_TABLE / 4
