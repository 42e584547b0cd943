"""The engines: leaves in bundles, which programs update in place.

A bundle takes the place of its leaves in `execute`. A program depends on structure only: a chain's static options, the
slots there are, and dtypes. All else is an argument, so that no number, schedule, group or missing gradient makes
another program.

- `base` sorts the leaves of a step into bundles, and keeps the plan as long as it holds.
- `trace` has the core itself as a function of flat arguments, which engines trace.
- `lists` runs programs over lists of leaves, by `gradtx._lists`. It is what optimizers use by default.
- `compiled` compiles programs for bundles of eight leaves, if `compile=` asks for it. Its parts: `bundle` holds the
  arguments, `hoist` takes computations of numbers out of the traced graphs, `numbers` does them once a step, `compiler`
  is the seam for backends, functions `(graph, examples, options) -> callable`, and `inductor` calls torch's compiler.
- `background` has a child process compile.
"""

from gradtx.optim.engine.base import Engine

__all__ = ["Engine"]
