"""Programs of lists, compiled for a few flat leaves of any length, for pure updates inside `torch.compile`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gradtx.optim.engine import torch_names
from gradtx.optim.engine.compiled import COMPILING, LARGE
from gradtx.optim.engine.hoist import multiply
from gradtx.optim.engine.inductor import compile_with_inductor
from gradtx.programs.bundle import differ_by_leaf
from gradtx.programs.write_lists import RunLists


class CompiledLists:
    """A function like `run`, out of place, for lists of as many vectors; 0-d tensors stay 0-d.

    Args:
        run: The function.
        prepared, columns: Examples of its arguments.
    """

    def __init__(
        self, run: RunLists, prepared: Sequence[Tensor], columns: Sequence[list[Tensor]]
    ):
        self._run = run
        self._width = len(columns[0])
        leaves = list(itertools.chain(*columns))
        # Operations on vectors round their scalars to float32; a loop of a kernel would do it for each vector.
        self._rounds = all(x.ndim and x.dtype is torch.float32 for x in leaves)
        # Whether each result differs by leaf; the index of a scalar that is returned unchanged.
        self._kinds: list[Any] = []
        tracer = torch_names.SymbolicTracer()
        arguments = [tracer.fixed(x.clone()) for x in self._rounded(prepared)]
        self._numbers = len(arguments)
        sized: dict[int, Tensor] = {}
        for i, tensor in enumerate(leaves):
            place = i % self._width
            if not tensor.ndim:
                stand_in = tracer.fixed(tensor.clone())
            elif place in sized:
                stand_in = tracer.sized_as(sized[place], tensor)
            else:
                stand_in = tracer.resizable(tensor, f"leaf{i}", only_length=True)
                sized[place] = stand_in
            arguments.append(stand_in)
        is_large = max(map(Tensor.numel, leaves)) >= LARGE
        options = {} if is_large else {"cpp.threads": 1}
        with COMPILING:
            graph = tracer.graph(self._traced, arguments, {})
            multiply(graph)
            with tracer.compiling():
                self._kernel = compile_with_inductor(graph, arguments, options)

    def _rounded(self, prepared: Sequence[Tensor]) -> list[Tensor]:
        if not self._rounds:
            return list(prepared)
        return [x.float() if x.dtype is torch.float64 else x for x in prepared]

    def _traced(self, *arguments: Tensor) -> list[Tensor]:
        numbers, leaves = arguments[: self._numbers], arguments[self._numbers :]
        starts = range(0, len(leaves), self._width)
        lists = [list(leaves[start : start + self._width]) for start in starts]
        flat: list[Any] = []
        for result in self._run(numbers, lists):
            kind: Any = differ_by_leaf(result)
            if kind:
                flat.extend(result)
            else:
                kind = next((i for i, x in enumerate(numbers) if x is result), -1)
                flat.extend([] if kind >= 0 else [torch.as_tensor(result)])
            self._kinds.append(kind)
        return flat

    def __call__(
        self, prepared: Sequence[Any], columns: Sequence[list[Tensor]]
    ) -> list[Any]:
        numbers = self._rounded(prepared)
        flat = iter(self._kernel(*numbers, *itertools.chain(*columns)))
        results: list[Any] = []
        for kind in self._kinds:
            if kind is True:
                results.append(list(itertools.islice(flat, self._width)))
            else:
                results.append(prepared[kind] if kind >= 0 else next(flat))
        return results
