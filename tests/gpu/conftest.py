"""The pretended GPU, for all tests of this folder."""

import pytest

from tests.gpu import pretend


@pytest.fixture(autouse=True)
def gpu():
    with pretend.seeing_constants():
        yield pretend.GPU
