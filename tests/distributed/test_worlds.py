"""A test of several processes ends, whatever happens in them."""

import time

import pytest

from tests.distributed import worlds


def fail_on_the_first():
    from torch import distributed

    if distributed.get_rank() == 0:
        raise RuntimeError("no luck")
    distributed.barrier()


def sleep_for_ever():
    time.sleep(1000)


def answer():
    return 42


def test_a_process_that_fails_or_hangs_fails_the_test_and_not_the_next(monkeypatch):
    world = worlds.World(2)
    try:
        with pytest.raises(pytest.fail.Exception, match="no luck"):
            world.run(fail_on_the_first)
        assert world.run(answer) == [42, 42]
        monkeypatch.setattr(worlds, "LIMIT", 1.0)
        with pytest.raises(pytest.fail.Exception, match=r"ranks \[\] of 2 came back"):
            world.run(sleep_for_ever)
    finally:
        world.stop()
