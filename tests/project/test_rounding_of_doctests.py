"""No example shows digits in which processors may differ: they may round what is not exact to either neighbour."""

import doctest
import importlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

import gradtx
from gradtx.base.names import HOMES

# Processors agree on what IEEE 754 rounds, +, -, *, / and roots, unless they compute two of them at once.
INEXACT = (
    *("sum", "mean", "norm", "linalg_", "mm", "bmm", "addmm", "baddbmm", "addr", "dot", "mv", "var", "std", "prod"),
    *("lerp", "addcmul", "addcdiv", "pow", "exp", "log", "tanh", "rsqrt", "sigmoid", "atan2", "sin", "cos", "erf"),
    *("softmax", "cumsum", "einsum"),
)


def as_float64(value):
    return value.double() if isinstance(value, torch.Tensor) and value.dtype == torch.float32 else value


class RoundedOtherwise(TorchDispatchMode):
    """Replace each result that is not exact by its neighbour in float32, above or below."""

    def __init__(self, towards):
        super().__init__()
        self.towards = towards

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func.__name__.partition(".")[0].removeprefix("_foreach_")
        if name.endswith("_") or not name.startswith(INEXACT):
            return result
        try:
            exact = func(*tree_map(as_float64, args), **tree_map(as_float64, kwargs))
        except RuntimeError:  # an operation that has float32 tensors made for it
            return result
        if isinstance(result, torch.Tensor):
            return self.neighbour(result, exact)
        return type(result)(map(self.neighbour, result, exact))

    def neighbour(self, result, exact):
        if not isinstance(result, torch.Tensor) or result.dtype != torch.float32 or exact.dtype != torch.float64:
            return result
        other = torch.nextafter(result, torch.full_like(result, self.towards))
        return torch.where((result.double() != exact) & result.isfinite(), other, result)


def examples():
    finder = doctest.DocTestFinder(recurse=False)
    for name, home in HOMES.items():
        if home.startswith(("gradtx.algorithms.", "gradtx.links.", "gradtx.combinators.")):
            names = {"torch": torch, "gradtx": gradtx, **vars(importlib.import_module(home))}
            yield from finder.find(getattr(gradtx, name), name, module=False, globs=names)


@pytest.mark.nightly
@pytest.mark.parametrize("towards", [float("inf"), -float("inf")], ids=["up", "down"])
def test_no_example_shows_digits_that_change_with_the_rounding_of_a_result(towards):
    found, shown = [], 0
    for example in examples():
        lines = []
        with RoundedOtherwise(towards):
            runner = doctest.DocTestRunner(verbose=False)
            runner.run(example, out=lines.append)
        shown += runner.tries
        found += lines
    assert not found, "".join(found)
    assert shown > 1000
