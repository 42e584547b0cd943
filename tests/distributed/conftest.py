import pytest

from tests.distributed.worlds import World


@pytest.fixture(scope="session")
def two():
    world = World(2)
    yield world
    world.stop()


@pytest.fixture(scope="session")
def one():
    world = World(1)
    yield world
    world.stop()


@pytest.fixture(scope="session")
def four():
    world = World(4)
    yield world
    world.stop()
