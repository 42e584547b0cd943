"""The engine that has programs compiled while training goes on."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from gradtx.optim._member import Member
from gradtx.optim._request import StepRequest
from gradtx.optim.engine.base import SUM_OVER_SHARDS
from gradtx.optim.engine.compiled import CompilationError, CompiledEngine, Order
from gradtx.optim.engine.compiler import Backend
from gradtx.optim.engine.inductor import compile_with_inductor
from gradtx.optim.engine.trace import BundleProgram

logger = logging.getLogger("gradtx")


class BackgroundEngine(CompiledEngine):
    """Has a child process compile into torch's cache on disk; until it is through, leaves are left to others.

    A thread would not do: torch's tracer patches `nn.Module` while it works.

    Args:
        options: Options of the backend.
        backend: The way of running programs.
    """

    def __init__(self, options: Mapping[str, Any], backend: Backend = compile_with_inductor):
        super().__init__(options, backend)
        self._orders: dict[int, Order] = {}  # by the list that the program joins
        self._is_through: Callable[[], bool] | None = None  # asks the child, if there is one

    def wait(self) -> None:
        """Wait until the child process is through; the next step then loads what it has compiled."""
        while self._is_through is not None and not self._is_through():
            time.sleep(0.01)

    def bundles(self, request: StepRequest, members: list[Member]) -> tuple[list[Any], list[Member]]:
        if self._is_through is not None and self._is_through():
            self.plan = None
            self.alone.clear()
            result = super().bundles(request, members)  # loads the programs
            self._is_through = None
            self._orders.clear()
            return result
        result = super().bundles(request, members)
        if self._orders and self._is_through is None:
            self._is_through = compile_elsewhere(self._compiled, list(self._orders.values()))
        return result

    def _make(self, order: Order, programs: list[BundleProgram]) -> BundleProgram | str:
        key = id(programs)
        if key in self._with_sums_over_shards:
            return SUM_OVER_SHARDS
        if key in self._orders and self._is_through is not None and self._is_through():
            return super()._make(order, programs)
        self._orders.setdefault(key, order)
        return "its program is being compiled"


def compile_elsewhere(compile: Callable[[Order], Any], orders: Sequence[Order]) -> Callable[[], bool]:
    """Start a child process that carries out orders, for what this leaves in torch's cache on disk.

    Where a process can't be forked, as one that has used CUDA, there is none, and programs are made at the next step.

    Returns:
        A function that says whether the child is through; if it failed, this process will, and say why.
    """
    if not hasattr(os, "fork") or torch.cuda.is_initialized():
        logger.info("compile='background': this process can't be forked, so the next step compiles")
        return lambda: True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Python 3.12 on, about threads: the child uses none of theirs
        child = os.fork()
    if child == 0:
        _carry_out(compile, orders)
    state = {"through": False}

    def is_through() -> bool:
        if not state["through"]:
            ended, _ = os.waitpid(child, os.WNOHANG)
            state["through"] = ended == child
        return state["through"]

    return is_through


def _carry_out(compile: Callable[[Order], Any], orders: Sequence[Order]) -> None:
    """Carry out orders in a child process, silently, and end it."""
    try:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)
        torch.set_num_threads(1)  # the threads of the parent are not here
        for order in orders:
            compile(order)
    except CompilationError:
        pass
    finally:
        os._exit(0)
