"""Combinators: transformations that wrap other transformations."""

from gradtx.base.names import public_names as _public_names
from gradtx.combinators.agreement import *
from gradtx.combinators.blocks import *
from gradtx.combinators.clocks import *
from gradtx.combinators.coordinates import *
from gradtx.combinators.frame import *
from gradtx.combinators.multi_point import *
from gradtx.combinators.outer import *
from gradtx.combinators.precision import *
from gradtx.combinators.qk_clip import *
from gradtx.combinators.selection import *
from gradtx.combinators.slow_weights import *
from gradtx.combinators.tuners import *

# Type checkers read the names from the imports above.
__all__ = _public_names(globals())
