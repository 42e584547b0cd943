"""Checks of the DistributedDataParallel modules that wrap an optimizer's parameters."""

from __future__ import annotations

import gc
from collections.abc import Iterable

from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel

from gradtx import _torch


def wrappers_of(params: Iterable[Tensor]) -> list[DistributedDataParallel]:
    """Return the modules that wrap any of the parameters; they are found among all objects of the process."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return []
    ids = set(map(id, params))
    wrappers: list[DistributedDataParallel] = []
    for candidate in gc.get_objects():
        if not issubclass(type(candidate), DistributedDataParallel):
            continue
        if any(id(param) in ids for param in candidate.parameters()):
            wrappers.append(candidate)
    return wrappers


def check_not_ddp(who: str, params: Iterable[Tensor], reason: str) -> None:
    """Raise an error if DistributedDataParallel wraps a parameter; only the wrapping module reveals this.

    Args:
        who: The option that cannot be combined with it.
        params: The parameters.
        reason: The reason, as a predicate of the subject "DistributedDataParallel".
    """
    if wrappers_of(params):
        raise RuntimeError(f"{who}: DistributedDataParallel {reason}")


def check_not_joining(owner: str, wrappers: Iterable[DistributedDataParallel]) -> None:
    """Raise an error inside `join()`: ranks without further inputs answer the messages of backward, but not of a step.

    Args:
        owner: The optimizer's class.
        wrappers: The modules that wrap its parameters.
    """
    if any(map(_torch.joins_uneven_inputs, wrappers)):
        raise RuntimeError(
            f"{owner}: process_group cannot be combined with DistributedDataParallel.join(): ranks without further "
            "inputs take no steps, so the others would wait for their part of the work; pass "
            "join(throw_on_early_termination=True), or omit process_group"
        )
