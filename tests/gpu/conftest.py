"""The GPU that the tests of this folder run on: a pretended one, or a real one with GRADTX_GPU=cuda."""

import os

import pytest


@pytest.fixture(autouse=True)
def gpu():
    if os.environ.get("GRADTX_GPU") == "cuda":
        from tests.gpu.real import GPU

        yield GPU
    else:
        from tests.gpu import pretend

        with pretend.seeing_constants():
            yield pretend.GPU


@pytest.fixture
def counted(gpu):
    """The pretended GPU, on which launches are counted."""
    if gpu.is_real:
        pytest.skip("counted on the pretended GPU")
    return gpu
