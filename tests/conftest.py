"""Fixtures that several folders share."""

import pytest
import torch


@pytest.fixture
def float64_by_default():
    """For optimizers of others, which make their 0-d numbers in the default dtype: 1e-9 of the weights in float32."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
