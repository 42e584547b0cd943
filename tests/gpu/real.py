"""A real GPU, with the methods of the pretended one, so that the same tests run on both."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tests.gpu.seen import Seen


class Cuda:
    """What tests ask of the device."""

    is_real = True
    name = "cuda"

    def device(self, index: int = 0) -> torch.device:
        return torch.device(self.name, index)

    def to(self, tree: Any, index: int = 0) -> Any:
        """Move the tensors of a tree, parameters too."""
        device = self.device(index)

        def moved(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            there = x.detach().to(device)
            return torch.nn.Parameter(there, x.requires_grad) if isinstance(x, torch.nn.Parameter) else there

        return pytree.tree_map(moved, tree)

    @contextlib.contextmanager
    def counting(self) -> Iterator[Seen]:
        """Count what torch notices of waits; it does not notice those inside of libraries."""
        seen = Seen()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield seen
            finally:
                torch.cuda.set_sync_debug_mode("default")
        seen.peak = torch.cuda.max_memory_allocated() - before
        for warning in caught:
            if "called a synchronizing" in str(warning.message):
                seen.waits[f"{warning.filename}:{warning.lineno}"] += 1

    @contextlib.contextmanager
    def capturing(self) -> Iterator[None]:
        """Capture the block, and replay it once."""
        graph = torch.cuda.CUDAGraph()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The CUDA Graph is empty")  # the block was refused
            with torch.cuda.graph(graph):
                yield
        graph.replay()
        torch.cuda.synchronize()

    @contextlib.contextmanager
    def without_waits(self) -> Iterator[None]:
        # Not in one line: the mode warns that it is a prototype, which is an error in tests, but stays set.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


GPU = Cuda()
