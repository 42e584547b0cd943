"""What doctests may use without importing it."""

import pytest
import torch

import gradtx


@pytest.fixture(autouse=True)
def _names(doctest_namespace):
    doctest_namespace.update(torch=torch, gradtx=gradtx)
