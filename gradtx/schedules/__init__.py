"""Hyperparameters that change with the step: pure functions of the number of updates already done.

Step 0 is the first update. A schedule of a Python int and plain numbers gives a float, otherwise a 0-d float64
tensor, without reading any tensor on the host. A number of a schedule may be a schedule itself.

By keyword every schedule takes the same words, where it has the thing: `lr` (the rate, or its peak), `total_steps`,
`warmup_steps` and `min_lr`. The names in the signatures are those of torch and of the papers, such as `T_max`.
"""

from gradtx._names import public_names as _public_names
from gradtx.schedules.adapter import *
from gradtx.schedules.basic import *
from gradtx.schedules.chebyshev import *
from gradtx.schedules.half_life import *
from gradtx.schedules.restarts import *
from gradtx.schedules.warmup import *

# Type checkers take the names from the imports above.
__all__ = _public_names(globals())  # pyright: ignore[reportUnsupportedDunderAll]
