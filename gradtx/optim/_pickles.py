"""Rejects pickles of optimizers that torch cannot load."""

from __future__ import annotations

import functools
import inspect
import pickle
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

# The callers of `__getstate__` that handle tensors themselves, rather than by `Tensor.__reduce_ex__`.
WITH_OWN_TENSORS = ("copy", "torch.serialization", "multiprocessing.reduction")


def check_loadable(owner: str, states: Iterable[Any]) -> None:
    """Raise an error if this is a call by `pickle` and the states have tensors whose pickles torch cannot load.

    Raises:
        TypeError: If the state has 8-bit floats, and this version of torch fails to load them.
    """
    if not any(map(_has_float8, states)) or _torch_loads_float8():
        return
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_globals.get("__name__") in WITH_OWN_TENSORS:
            return
        frame = frame.f_back
    raise TypeError(
        f"{owner}: this version of torch cannot load pickles of float8 tensors, which the state contains; save the "
        "state dict instead: torch.save(optimizer.state_dict(), path)"
    )


def _has_float8(state: Any) -> bool:
    if not isinstance(state, Mapping):  # a wrapper's
        return False
    return any(
        isinstance(value, Tensor) and value.dtype == torch.float8_e4m3fn
        for value in state.values()
    )


@functools.cache
def _torch_loads_float8() -> bool:
    pickled = pickle.dumps(torch.zeros((), dtype=torch.float8_e4m3fn))
    try:
        pickle.loads(pickled)
    except AttributeError:
        return False
    return True
