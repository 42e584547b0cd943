"""Engines group leaves into bundles and run programs that update them in place.

A program depends on structure only: the static options of a chain, the slots that exist, and dtypes. Everything else is
an argument, so no hyperparameter, schedule, param group or missing gradient requires another program.

- `base` makes the plan of a step, or takes one that is still valid: `step_plan` says what must be unchanged, `overlap`
  which parameters share memory.
- `lists` runs programs over lists of leaves, with `gradtx.compiler`. Optimizers use it by default.
- `kernels` runs them as kernels if `compile=` requests it: in C++ on CPUs, in Triton on GPUs.
"""

from gradtx.optim.engine.base import Engine

__all__ = ["Engine"]
