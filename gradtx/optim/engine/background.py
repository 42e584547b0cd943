"""The engine that compiles while training goes on."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from gradtx.optim._member import Member
from gradtx.optim._request import StepRequest
from gradtx.optim.engine.base import SUM_OVER_SHARDS
from gradtx.optim.engine.compiled import COMPILING, CompilationError, CompiledEngine, Order
from gradtx.optim.engine.compiler import Backend
from gradtx.optim.engine.inductor import compile_with_inductor
from gradtx.optim.engine.trace import BundleProgram


class BackgroundEngine(CompiledEngine):
    """Has another thread compile; until a program is ready, its leaves are left to others.

    At exit Python waits for the program that is being compiled: a daemon thread would be stopped inside of torch's C++,
    which aborts the process. Others are not begun then.

    Args:
        options: Options of the backend.
        backend: The way of running programs.
    """

    def __init__(self, options: Mapping[str, Any], backend: Backend = compile_with_inductor):
        super().__init__(options, backend)
        self._threads: dict[int, threading.Thread] = {}  # by the list that the program joins
        self._failure: CompilationError | None = None
        self._is_news = False  # whether a program is ready that the plan does not know

    def wait(self) -> None:
        """Wait until all programs that were asked for are ready."""
        for thread in list(self._threads.values()):
            thread.join()

    def bundles(self, request: StepRequest, members: list[Member]) -> tuple[list[Any], list[Member]]:
        if self._is_news:
            self._is_news = False
            self.plan = None
            self.alone.clear()
        return super().bundles(request, members)

    def _make(self, order: Order, programs: list[BundleProgram]) -> BundleProgram | str:
        if self._failure is not None:
            raise self._failure
        key = id(programs)
        if key in self._with_sums_over_shards:
            return SUM_OVER_SHARDS
        if key not in self._threads:
            thread = threading.Thread(target=self._work, args=(order, programs))
            self._threads[key] = thread
            thread.start()
        return "its program is being compiled"

    def _work(self, order: Order, programs: list[BundleProgram]) -> None:
        try:
            with COMPILING:
                if threading.main_thread().is_alive():
                    super()._make(order, programs)
        except CompilationError as error:
            self._failure = error
        del self._threads[id(programs)]
        self._is_news = True
