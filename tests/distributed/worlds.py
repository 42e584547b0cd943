"""Processes that talk to each other through gloo, and run one function after another, each within a time limit."""

from __future__ import annotations

import faulthandler
import os
import tempfile
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

PRELOADED = ["torch.distributed.fsdp", "gradtx.optim", "tests.distributed.problems", "tests.conformance"]
LIMIT = 120.0  # seconds that a function may take; on a busy machine a cold start takes ten


class World:
    """`size` processes, started when they are needed, and started again after one of them failed or hung."""

    def __init__(self, size: int):
        self.size = size
        self._workers: list[tuple[Any, Any]] = []
        self._folder: Any = None

    def run(self, function: Callable[..., Any], *args: Any, limit: float = LIMIT) -> list[Any]:
        """Call `function(*args)`, which can be pickled, in all processes; what they return, by rank.

        A process that says nothing for `limit` seconds after the last answer hangs, and fails the test.
        """
        if not self._workers:
            self._start()
        for _, pipe in self._workers:
            pipe.send((function, args))
        results: dict[int, Any] = {}
        pipes = {pipe: rank for rank, (_, pipe) in enumerate(self._workers)}
        while len(results) < self.size:
            ready = wait([pipe for pipe, rank in pipes.items() if rank not in results], limit)
            for pipe in ready:
                rank = pipes[pipe]
                try:
                    results[rank], error = pipe.recv()
                except EOFError:
                    error = "the process died"
                if error is not None:
                    self.stop()
                    pytest.fail(f"rank {rank} of {self.size}: {error}", pytrace=False)
            if not ready:
                self.stop()
                pytest.fail(f"{function.__name__}: ranks {sorted(results)} of {self.size} came back", pytrace=False)
        return [results[rank] for rank in range(self.size)]

    def survivors(self, function: Callable[..., Any], *args: Any, limit: float = LIMIT) -> dict[int, Any]:
        """Call `function(*args)` in all processes; what those that do not die in it return, by rank."""
        self._start()
        results: dict[int, Any] = {}
        for _, pipe in self._workers:
            pipe.send((function, args))
        for rank, (_, pipe) in enumerate(self._workers):
            try:
                results[rank] = pipe.recv() if pipe.poll(limit) else (None, "hangs")
            except EOFError:
                continue
        self.stop()
        for rank, (_, error) in results.items():
            if error is not None:
                pytest.fail(f"rank {rank} of {self.size}: {error}", pytrace=False)
        return {rank: result for rank, (result, _) in results.items()}

    def _start(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        context = torch.multiprocessing.get_context("forkserver")  # which imports torch once for all processes
        context.set_forkserver_preload(PRELOADED)
        for rank in range(self.size):
            ours, theirs = context.Pipe()
            store = Path(self._folder.name) / "store"
            process = context.Process(target=_serve, args=(theirs, rank, self.size, str(store)), daemon=True)
            process.start()
            theirs.close()
            self._workers.append((process, ours))

    def stop(self) -> None:
        for process, pipe in self._workers:
            pipe.close()
            process.kill()
            process.join()
        self._workers = []
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


def _serve(pipe: Any, rank: int, size: int, store: str) -> None:
    faulthandler.enable()  # a process that crashes says where
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    # A file in place of an address: gloo finds free ports by itself.
    distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=timedelta(seconds=LIMIT)
    )
    while True:
        try:
            function, args = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((function(*args), None))
        except BaseException:
            pipe.send((None, traceback.format_exc()))
