"""Engines group leaves into bundles and run programs that update them in place.

A program depends on structure only: the static options of a chain, the slots that exist, and dtypes. Everything else is
an argument, so no hyperparameter, schedule, param group or missing gradient requires another program.

- `base` sorts the leaves of a step into families and bundles, and reuses the plan as long as it is valid.
- `lists` runs programs over lists of leaves, with `gradtx.programs`. Optimizers use it by default.
- `kernels` runs them on GPUs as Triton kernels if `compile=` requests it.
- `compiled` compiles programs for eight leaves per call where no kernels run. Its parts: `trace`
  traces the rules for all sizes, `compiled_bundle` stores the arguments, and `inductor` calls torch's compiler.
"""

from gradtx.optim.engine.base import Engine

__all__ = ["Engine"]
