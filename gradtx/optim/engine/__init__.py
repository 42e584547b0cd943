"""The compiled engine: leaves in bundles, each updated in place by one program that all bundles of a kind share.

A bundle takes the place of its leaves in `execute`. A program depends on structure only: a chain's static options, the
slots there are, dtypes, and which sizes are 1. All else is an argument, so that no number, schedule, group or missing
gradient compiles anything twice.

- `planning` sorts the leaves of a step into bundles, and keeps the plan as long as it holds.
- `bundle` holds the arguments of a program for some leaves, and runs it as operations of the core.
- `trace` records the core itself, run on stand-ins with symbolic sizes.
- `hoist` takes computations of numbers out of the traced graphs.
- `compiler` compiles these graphs by a backend: a function `(graph, examples, options) -> callable`.
- `inductor` is the backend that calls torch's compiler.

gradtx imports this package when an optimizer is made with `compile=`.
"""

from gradtx.optim.engine.inductor import compiler_options
from gradtx.optim.engine.planning import Engine

__all__ = ["Engine", "compiler_options"]
