"""Hyperparameters that change with the step: pure functions of the number of updates already done.

Step 0 is the first update. A schedule of a Python int and plain numbers gives a float, otherwise a 0-d float64
tensor, without reading any tensor on the host. A number of a schedule may be a schedule itself.
"""

from gradtx.schedules.adapter import as_lr_scheduler
from gradtx.schedules.basic import (
    constant_schedule,
    cosine_schedule,
    cosine_warm_restarts_schedule,
    cyclic_schedule,
    exponential_schedule,
    join_schedules,
    linear_schedule,
    multistep_schedule,
    one_cycle_schedule,
    polynomial_schedule,
    step_schedule,
)
from gradtx.schedules.chebyshev import (
    chebyshev_schedule,
    get_chebyshev_schedule,
    ranger21_schedule,
)
from gradtx.schedules.warmup import (
    cosine_warmup_restarts_schedule,
    explore_exploit_schedule,
    proportion_schedule,
    rectification_schedule,
    untuned_exponential_warmup,
    untuned_linear_warmup,
    warmup_cosine_schedule,
    warmup_linear_schedule,
    warmup_poly_schedule,
    wsd_schedule,
)

__all__ = [
    "as_lr_scheduler",
    "chebyshev_schedule",
    "constant_schedule",
    "cosine_schedule",
    "cosine_warm_restarts_schedule",
    "cosine_warmup_restarts_schedule",
    "cyclic_schedule",
    "explore_exploit_schedule",
    "exponential_schedule",
    "get_chebyshev_schedule",
    "join_schedules",
    "linear_schedule",
    "multistep_schedule",
    "one_cycle_schedule",
    "polynomial_schedule",
    "proportion_schedule",
    "ranger21_schedule",
    "rectification_schedule",
    "step_schedule",
    "untuned_exponential_warmup",
    "untuned_linear_warmup",
    "warmup_cosine_schedule",
    "warmup_linear_schedule",
    "warmup_poly_schedule",
    "wsd_schedule",
]
