"""Counts the messages of a process, and the bytes that it sends to others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode


class Traffic(TorchDispatchMode):
    """Counts collectives.

    Attributes:
        messages: The name and the bytes of each.
    """

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[tuple[str, int]] = []

    @property
    def count(self) -> int:
        return len(self.messages)

    @property
    def bytes(self) -> int:
        return sum(size for _, size in self.messages)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(kind is DTensor for kind in types):
            return NotImplemented  # it is taken apart first
        namespace, _, name = func.name().partition("::")
        if namespace in ("c10d", "_c10d_functional") and not name.startswith(("wait_tensor", "barrier")):
            self.messages.append((name.partition(".")[0], _bytes_sent(name, args)))
        return func(*args, **(kwargs or {}))


def _bytes_sent(name: str, args: Any) -> int:
    """The bytes that go to other processes, by the best known algorithm."""
    ranks = torch.distributed.get_world_size()
    me = torch.distributed.get_rank()
    if name.startswith("alltoall_base_"):
        _, sent, _, _, counts = args[:5]
        return (sum(counts) - counts[me]) * sent.element_size()
    tensor = _first_tensor(args)
    if name.startswith("all_reduce") or name.startswith("allreduce"):
        return 2 * tensor.nbytes * (ranks - 1) // ranks
    if name.startswith("reduce_scatter") or name.startswith("all_to_all"):
        return tensor.nbytes * (ranks - 1) // ranks
    return tensor.nbytes * (ranks - 1)  # a gather


def _first_tensor(args: Any) -> Tensor:
    for item in args:
        if isinstance(item, Tensor):
            return item
        if isinstance(item, list | tuple) and item and isinstance(item[0], Tensor):
            return item[0]
    raise AssertionError(args)
