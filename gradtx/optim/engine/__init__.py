"""Engines group leaves into bundles and run programs that update them in place.

A program depends on structure only: the static options of a chain, the slots that exist, and dtypes. Everything else is
an argument, so no hyperparameter, schedule, param group or missing gradient requires another program.

- `base` sorts the leaves of a step into families and bundles, and reuses the plan as long as it is valid.
- `trace` expresses the core as a function of flat arguments, which engines trace.
- `lists` runs programs over lists of leaves, with `gradtx.programs`. Optimizers use it by default.
- `compiled` compiles programs for eight leaves per call if `compile=` requests it. Its parts: `compiled_bundle` stores
  the arguments, `hoist` moves scalar computations out of the traced graphs, to run once per step, and `inductor` calls
  torch's compiler.
"""

from gradtx.optim.engine.base import Engine

__all__ = ["Engine"]
