"""The engine that compiles programs in the background while training continues."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradtx.optim._member import Member
from gradtx.optim._request import StepRequest
from gradtx.optim.engine.compiled import CompilationError, CompiledEngine, Order
from gradtx.optim.engine.compiler import Backend
from gradtx.optim.engine.inductor import compile_with_inductor
from gradtx.optim.engine.trace import BundleProgram

logger = logging.getLogger("gradtx")
CHILD = (
    "import gradtx.optim.engine.background as background; background.compile_orders()"
)


class BackgroundEngine(CompiledEngine):
    """Compile into torch's disk cache in a child process; until it has finished, another engine updates the leaves.

    A thread is not an option: torch's tracer patches `nn.Module` while it works, and a process cannot exit while a
    thread compiles.

    Args:
        options: Options of the back end.
        backend: The function that compiles graphs.
    """

    def __init__(
        self, options: Mapping[str, Any], backend: Backend = compile_with_inductor
    ):
        super().__init__(options, backend)
        # The orders that wait for a child process, by the id of the list that the program is added to.
        self._orders: dict[int, dict[Any, Order]] = {}
        # The keys of the orders that a child process compiles, and of those that one has compiled.
        self._being_compiled: set[Any] = set()
        self._compiled_elsewhere: set[Any] = set()
        # Polls the child process, if there is one.
        self._has_finished: Callable[[], bool] | None = None

    def wait(self) -> None:
        """Wait for the child process to finish. The next step then loads the compiled programs."""
        while self._has_finished is not None and not self._has_finished():
            time.sleep(0.01)

    def bundles(
        self, request: StepRequest, members: list[Member]
    ) -> tuple[list[Any], list[Member]]:
        result = super().bundles(request, members)
        # Not for single members: the end of their step calls this method with orders for all of them.
        if self._orders and self._has_finished is None and not self.failed:
            self._has_finished = self._compile_elsewhere()
            for position, orders in self._orders.items():
                self._being_compiled.update((position, key) for key in orders)
            self._orders.clear()
        return result

    def _begin_step(self) -> None:
        if self._has_finished is None or not self._has_finished():
            return
        self._has_finished = None
        self._compiled_elsewhere |= self._being_compiled
        self._being_compiled.clear()
        # They have no programs for the leaves of these orders.
        self.plan = None
        self.alone.clear()

    def _make_program(
        self, order: Order, programs: list[BundleProgram]
    ) -> BundleProgram | str:
        position = id(programs)
        # An example holds gradients, which must be freed.
        order_without_values = _without_values(order)
        key = tuple(order_without_values.examples[0])
        if (position, key) in self._compiled_elsewhere:
            return super()._make_program(order, programs)
        if (position, key) not in self._being_compiled:
            orders = self._orders.setdefault(position, {})
            orders.setdefault(key, order_without_values)
        return "its program is being compiled"

    def _compile_elsewhere(self) -> Callable[[], bool]:
        """Start a child process that compiles the orders; return a function that reports whether it has finished.

        Errors in the child are ignored: the same error occurs again in this process, which reports it.
        """
        orders = [list(of_list.values()) for of_list in self._orders.values()]
        try:
            payload = pickle.dumps((type(self), *self.__reduce__()[1], orders))
        except Exception as error:  # such as a user function that has no name
            logger.info(
                "compile='background': the next step compiles, because the chain cannot be pickled: %s",
                error,
            )
            return lambda: True
        with tempfile.TemporaryFile() as file:
            file.write(payload)
            file.seek(0)
            child = subprocess.Popen(
                [sys.executable, "-c", CHILD],
                stdin=file,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )
        return lambda: child.poll() is not None


class StandIn(NamedTuple):
    """The properties of an example tensor that determine its program."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: Tensor) -> StandIn:
        return cls(tuple(tensor.shape), tensor.dtype, tensor.device)

    def tensor(self) -> Tensor:
        return torch.zeros(self.shape, dtype=self.dtype, device=self.device)


def _without_values(order: Order) -> Order:
    examples: list[Any] = [list(map(StandIn.of, example)) for example in order.examples]
    return dataclasses.replace(order, examples=examples)


def compile_orders() -> None:
    """Compile, in a child process, the orders that the parent has written to standard input."""
    kind, options, backend, orders_of_lists = pickle.load(sys.stdin.buffer)
    engine: CompiledEngine = kind(options, backend)
    for orders in orders_of_lists:
        programs: list[BundleProgram] = []
        for order in orders:
            examples = [
                list(map(StandIn.tensor, example)) for example in order.examples
            ]
            order_with_values = dataclasses.replace(order, examples=examples)
            with contextlib.suppress(CompilationError):
                CompiledEngine._make_program(engine, order_with_values, programs)
