"""The private names of torch that compiled steps need: the symbolic tracer and inductor.

`missing_name` checks once per process that this version of torch has all of them. Without one, steps run as by default.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import warnings
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

SHAPES = "torch.fx.experimental.symbolic_shapes"
# The module of each name. Those of inductor are looked up on use, because importing it takes a second.
NAMES = {
    "make_fx": "torch.fx.experimental.proxy_tensor",
    "StatelessSymbolicContext": SHAPES,
    "DimDynamic": SHAPES,
    "ShapeEnv": SHAPES,
    "FakeTensorMode": "torch._subclasses.fake_tensor",
    "compile": "torch._inductor",
    "list_mode_options": "torch._inductor",
    "list_options": "torch._inductor",
}


def _named(name: str) -> Any:
    return getattr(importlib.import_module(NAMES[name]), name)


@functools.cache
def missing_name() -> str | None:
    """Return the first private name that this version of torch lacks; None if it has all of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's modules at their first import
        for name, module in NAMES.items():
            try:
                _named(name)
            except (ImportError, AttributeError):
                return f"{module}.{name}"
    return None


class SymbolicTracer:
    """Trace a function of tensors into a graph that is valid for all sizes of its arguments."""

    def __init__(self) -> None:
        # Without duck shapes, two sizes that happen to be equal remain distinct symbols.
        self._sizes = _named("ShapeEnv")(duck_shape=False)
        fake_mode = _named("FakeTensorMode")
        self._mode = fake_mode(shape_env=self._sizes, allow_non_fake_inputs=True)

    def fixed(self, tensor: Tensor) -> Tensor:
        """Create a stand-in for a tensor whose shape never changes."""
        return self._mode.from_tensor(tensor, static_shapes=True)

    def resizable(self, tensor: Tensor, only_length: bool) -> Tensor:
        """Create a stand-in for a tensor whose sizes, or only the first one, may change, except those that are 1."""
        kinds = _named("DimDynamic")
        dynamic = []
        for dim, size in enumerate(tensor.shape):
            is_fixed = size == 1 or (only_length and dim > 0)
            dynamic.append(kinds.STATIC if is_fixed else kinds.DYNAMIC)
        context = _named("StatelessSymbolicContext")(dynamic_sizes=dynamic)
        return self._mode.from_tensor(tensor, symbolic_context=context)

    def sized_as(self, stand_in: Tensor, tensor: Tensor) -> Tensor:
        """Create a stand-in for a tensor that always has the same length as another."""
        shape = (stand_in.shape[0], *tensor.shape[1:])
        with self._mode:
            return torch.empty(shape, dtype=tensor.dtype, device=tensor.device)

    def graph(
        self,
        function: Callable[..., Any],
        arguments: Sequence[Tensor],
        replaced: Mapping[Any, Any],
    ) -> torch.fx.GraphModule:
        """Trace `function(*arguments)`; `replaced` contains functions in place of some operations."""
        make_graph = _named("make_fx")
        with self._mode, torch.no_grad():
            return make_graph(function, decomposition_table=dict(replaced))(*arguments)

    def assumptions(
        self, arguments: Sequence[Tensor]
    ) -> Callable[[Sequence[Tensor]], bool]:
        """Return whether tensors satisfy the assumptions made so far about the sizes of `arguments`, as a function."""
        text = self._sizes.produce_guards_expression(arguments, ignore_static=False)

        def satisfy(tensors: Sequence[Tensor]) -> bool:
            return not text or self._sizes.evaluate_guards_expression(text, tensors)

        return satisfy


@contextlib.contextmanager
def observing(
    check: Callable[[Any, tuple[Any, ...]], None],
) -> Generator[None, None, None]:
    """Call `check(operator, args)` before every operation inside the block, which then executes as usual."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Observing(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            check(func, args)
            return func(*args, **(kwargs or {}))

    with Observing():
        yield


def compiler_modes() -> Mapping[str, dict[str, Any]]:
    """Return the modes of `torch.compile` and the options of each."""
    return _named("list_mode_options")()


def compiler_option_names() -> Collection[str]:
    """Return the names of the compiler's options."""
    return _named("list_options")()


def compile_graph(
    graph: Any, examples: Sequence[Any], options: Mapping[str, Any]
) -> Callable[..., Any]:
    """Compile a traced graph with inductor."""
    return _named("compile")(graph, examples, options=dict(options))


def asserts_bind_sizes() -> bool:
    """Whether compiled programs need their size assertions, because these also define the names of the sizes.

    This is the case from torch 2.14 on: without the assertions, programs fail with a NameError.
    """
    major, minor = torch.__version__.split(".")[:2]
    return (int(major), int(minor)) >= (2, 14)
