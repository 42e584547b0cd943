"""The GPU that the tests of this folder run on: a pretended one, or a real one with GRADTX_GPU=cuda."""

import contextlib
import os

import pytest

# tests/conftest.py has registered the pretended one.
if os.environ.get("GRADTX_GPU") == "cuda":
    from tests.gpu.real import GPU

    seeing_constants = contextlib.nullcontext
else:
    from tests.gpu.pretend import GPU, seeing_constants


@pytest.fixture(autouse=True)
def gpu():
    with seeing_constants():
        yield GPU


@pytest.fixture
def counted(gpu):
    """The pretended GPU, on which launches are counted."""
    if gpu.is_real:
        pytest.skip("counted on the pretended GPU")
    return gpu
