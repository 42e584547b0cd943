"""Schedules: hyperparameters as pure functions of the number of finished updates.

Step 0 is the first update. For a Python int and plain numbers, a schedule returns a float; otherwise a 0-d float64
tensor, without reading any tensor on the host. A numeric argument of a schedule may itself be a schedule.

All schedules accept common keywords for the arguments that they have: `lr` (the rate, or its peak), `total_steps`,
`warmup_steps` and `min_lr`. The names in the signatures are those of torch and of the papers, such as `T_max`.
"""

from gradtx.base.names import public_names as _public_names
from gradtx.schedules.adapter import *
from gradtx.schedules.basic import *
from gradtx.schedules.plot import *
from gradtx.schedules.special import *
from gradtx.schedules.warmup import *

# Type checkers take the names from the imports above.
__all__ = _public_names(globals())
